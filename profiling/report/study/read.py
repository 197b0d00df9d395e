"""A study folder as it lies on disk: study.yaml (what was asked) and rows.json (one `Row` a point).

Also taken: a folder with rows.json alone, or a file of rows as `frontier plan --json` prints them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from frontier.errors import UserError
from frontier_profiling.rows import Row

OWN = ("measured", "predicted")
SOURCES = (*OWN, "published")
COUNTS = ("nodes", "devices", "micro_batch")
TEXTS = ("model", "system", "strategy")
POSITIVE = (
    "accumulation", "tensor", "global_batch", "image_size", "images_per_s", "step_s", "step_s_low", "step_s_high", "memory_limit_gib",
    "peak_tflops", "joules_per_image", "power_w", "node_hours", "samples",
)  # fmt: skip
"""Fields of a row that are more than nothing where they are known."""
AXES = ("axes", "grid")
KNOWN = ("name", "title", "question", "mode", *AXES)


@dataclass(frozen=True)
class Study:
    """`rows`: the study's own points; `published`: points of a paper that stand beside them."""

    path: Path
    name: str
    rows: list[Row]
    published: list[Row] = field(default_factory=list)
    title: str = ""
    question: str = ""
    mode: str = ""
    axes: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    """Keys of study.yaml that this report does not know."""
    notes: list[str] = field(default_factory=list)
    """What could not be read."""

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent


def read_study(path: Path) -> Study:
    """Raises UserError where there are no rows to report: one line with the file, what is wrong and the mend."""
    file = path / "rows.json" if path.is_dir() else path
    nodes = _nodes(file)
    notes: list[str] = []
    found = [row for i, node in enumerate(nodes) if (row := _row(node, f"{file.name}, row {i + 1}", notes))]
    if not found:
        reason = f": {notes[0]}" if notes else ""
        raise UserError(f"{file} holds no point to report{reason}; run the study (`frontier sweep`) first")
    spec = _yaml(file.parent / "study.yaml", notes) if path.is_dir() else {}
    rows = [row for row in found if row.source in OWN]
    published = [row for row in found if row.source == "published"]
    if not rows:
        rows, published = published, []
    return Study(
        path=path,
        name=str(spec.get("name") or (path.resolve().name if path.is_dir() else path.stem)),
        rows=rows,
        published=published or beside(rows),
        title=str(spec.get("title") or ""),
        question=str(spec.get("question") or ""),
        mode=str(spec.get("mode") or ""),
        axes=next((spec[name] for name in AXES if isinstance(spec.get(name), dict)), {}),
        more={key: value for key, value in spec.items() if key not in KNOWN},
        notes=notes,
    )


def beside(rows: list[Row]) -> list[Row]:
    """The published points of the models and node counts that `rows` has on Frontier; of another system, none."""
    own = [row for row in rows if row.source in OWN and row.system == "frontier"]
    if not own:
        return []
    from frontier_profiling.predict.published import published_rows

    models, nodes = {row.model for row in own}, {row.nodes for row in own}
    return [row for row in published_rows() if row.model in models and row.nodes in nodes]


def _nodes(file: Path) -> list[Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing: no point of the study has ended; run `frontier sweep` first") from error
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror})") from error
    except ValueError as error:
        raise UserError(
            f"{file} is torn or no JSON ({' '.join(str(error).split())}): run the study again, done points are kept"
        ) from error
    nodes = content.get("rows") if isinstance(content, dict) else content
    if not isinstance(nodes, list):
        raise UserError(f'{file} is no study: it holds no list "rows"')
    return nodes


def _yaml(file: Path, notes: list[str]) -> dict[str, Any]:
    """study.yaml as a mapping; what is wrong with it is a note, for the rows can be reported without."""
    try:
        spec = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        notes.append(f"{file.name}: {' '.join(str(error).split())[:160]}")
        return {}
    if not isinstance(spec, dict):
        notes.append(f"{file.name} is no mapping")
        return {}
    return spec


def _row(node: Any, where: str, notes: list[str]) -> Row | None:
    """A Row with every field of its kind, numbers finite; None (and a note) where it names no point."""
    if not isinstance(node, dict):
        notes.append(f"{where} is no mapping, left out")
        return None
    missing = [key for key in TEXTS if not isinstance(node.get(key), str) or not node[key]]
    missing += [key for key in COUNTS if not _is_count(node.get(key))]
    if node.get("source") not in SOURCES:
        missing.append("source")
    if missing:
        notes.append(f"{where} names no point ({', '.join(missing)} missing or wrong), left out")
        return None
    plain = Row("predicted", "", "", "", 1, 1, 1)
    clean: dict[str, Any] = {}
    impossible: list[str] = []
    for spec in fields(Row):
        if spec.name not in node:
            continue
        value, default = _finite(node[spec.name]), getattr(plain, spec.name)
        kind = float if default is None else type(default)
        if value is None or (kind is not float and kind is not bool and not isinstance(value, kind)):
            continue
        if spec.name == "step_ci95_s":
            if isinstance(value, list) and len(value) == 2 and all(_is_number(end) and end > 0 for end in value):
                clean[spec.name] = value
            continue
        if kind is float and not _is_number(value) and spec.name != "fits":
            continue
        if isinstance(value, dict) and spec.name in ("memory_gib", "step_parts_s"):
            wrong = [f"{spec.name}.{key}" for key, size in value.items() if _is_number(size) and size < 0]
            value = {key: size for key, size in value.items() if _is_number(size) and size >= 0}
            impossible += wrong
        if _is_number(value) and (value < 0 or (value == 0 and spec.name in POSITIVE)):
            impossible.append(spec.name)
            continue
        if spec.name == "notes":
            value = [str(item) for item in value]
        clean[spec.name] = value
    if impossible:
        notes.append(f"{where}: {', '.join(impossible)} cannot be so, left out")
    return Row.from_dict(clean)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _finite(value: Any) -> Any:
    """NaN and infinity are "not measured", at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value
