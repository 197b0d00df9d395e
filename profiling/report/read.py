"""A run folder, read into plain records. What is torn, missing or odd becomes a note in the report, never a
crash.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from frontier.errors import UserError
from frontier_profiling.report import held_out, tasks

COLUMNS = (
    "step", "epoch", "samples", "loss", "lr", "grad_norm", "images_per_s", "step_s", "data_s", "forward_s",
    "backward_s", "optimizer_s", "checkpoint_s", "other_s",
    "memory_gib", "model_tflops", "mfu", "power_w", "skipped", "time", "start", "data_supply_ratio",
    "exposed_s", "exposed_forward_s", "exposed_backward_s", "exposed_optimizer_s",
    "memory_allocated_gib", "memory_active_gib", "memory_reserved_gib", "allocation_retries", "out_of_memory",
    "rss_peak_gib", "energy_j", "profiled",
)  # fmt: skip
"""Numeric keys of a metrics.jsonl line; a key that is absent or null reads as nan."""

SCHEMA = 1


@dataclass(frozen=True)
class ProbeRow:
    """One frozen-feature evaluation: `metric` in [0, 1] on the test split and its 95 % confidence interval."""

    method: str
    encoder: str
    score: float
    ci95: tuple[float, float] | None
    n_train: int | None
    n_test: int | None
    details: dict[str, Any]
    metric: str = "accuracy"
    published: bool = False
    """A figure of others on the same data set, not measured here."""


@dataclass(frozen=True)
class Run:
    """What a run folder says about itself.

    `columns` maps each name of `COLUMNS` to a float64 array over the logged steps, in step order, one entry
    per step. `notes` are sentences on what could not be read.
    """

    path: Path
    name: str
    config: dict[str, Any]
    config_text: str
    starts: list[dict[str, Any]]
    columns: dict[str, np.ndarray]
    memory_kind: str | None
    probe: list[ProbeRow]
    checkpoints: list[int]
    notes: list[str]
    energy_source: str = ""
    ranks: list[dict[str, Any]] = field(default_factory=list)
    """Lines of ranks.jsonl: comparisons of the ranks."""
    tasks: list[dict[str, Any]] = field(default_factory=list)
    """Rows of evaluation.json that are of tasks."""
    held_out: list[dict[str, Any]] = field(default_factory=list)
    """Those of models without tasks (`frontier_profiling.report.held_out`)."""
    early_stopping: dict[str, Any] | None = None
    terms: dict[str, np.ndarray] = field(default_factory=dict)
    """The parts of the loss that were logged beside it, `loss_<name>` by name, as `columns`."""

    def __len__(self) -> int:
        return len(self.columns["step"])

    @property
    def noun(self) -> str:
        """What the run's samples are called: image, where it has one stream of them."""
        return "image" if self.setting("data.sources") is None else "sample"

    def setting(self, dotted: str, default: Any = None) -> Any:
        """The resolved config's value at a dotted key, or `default`."""
        node: Any = self.config
        for key in dotted.split("."):
            if not isinstance(node, dict) or key not in node:
                return default
            node = node[key]
        return node

    def fact(self, key: str, default: Any = None) -> Any:
        """A field of the latest start, or `default` where it was not recorded."""
        value = self.starts[-1].get(key) if self.starts else None
        return default if value is None else value


def read_run(path: str | Path) -> Run:
    """Read one run folder.

    Raises UserError if the folder, its config.yaml or its metrics.jsonl is missing; all else is optional.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"no run folder at {path}: give the `run.dir` of a `frontier pretrain` run")
    missing = [name for name in ("config.yaml", "metrics.jsonl") if not (path / name).is_file()]
    if missing:
        raise UserError(
            f"{path} is not a run: {' and '.join(missing)} missing there; "
            "give the `run.dir` of a `frontier pretrain` run"
        )
    notes: list[str] = []
    config, text = _read_config(path / "config.yaml")
    starts = _read_starts(path / "starts.jsonl", notes)
    columns, terms, memory_kind, energy_source = _read_metrics(path / "metrics.jsonl", notes)
    ranks = path / "ranks.jsonl"
    evaluation = _read_evaluation(path / "evaluation.json", notes)
    return Run(
        path=path,
        name=path.resolve().name,
        config=config,
        config_text=text,
        starts=starts,
        columns=columns,
        memory_kind=memory_kind,
        probe=_read_probe(path / "probe.json", notes),
        checkpoints=_read_checkpoints(path / "checkpoints"),
        notes=notes,
        energy_source=energy_source or str((starts[-1] if starts else {}).get("energy_source") or ""),
        ranks=_json_lines(ranks, notes) if ranks.is_file() else [],
        tasks=[row for row in evaluation if tasks.is_row(row)],
        held_out=[row for row in evaluation if held_out.is_row(row)],
        early_stopping=tasks.read_early_stopping(path / "early_stopping.json", notes),
        terms=terms,
    )


def _read_config(file: Path) -> tuple[dict[str, Any], str]:
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file} is not readable YAML ({reason}): restore the resolved config of the run") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} holds no settings: restore the resolved config of the run")
    return config, text


def _json_lines(file: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file. A torn last line (the writer was killed) and broken lines are left
    out and noted.
    """
    lines = file.read_bytes().split(b"\n")
    last = len(lines) - 1
    rows: list[dict[str, Any]] = []
    broken: list[int] = []
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif i == last:
            notes.append(f"{file.name}: its last line (line {i + 1}) is torn and was left out.")
        else:
            broken.append(i + 1)
    if broken:
        shown = ", ".join(map(str, broken[:5])) + (", …" if len(broken) > 5 else "")
        notes.append(f"{file.name}: {len(broken)} unreadable line(s) left out (line {shown}).")
    newer = sorted({row["schema"] for row in rows if isinstance(row.get("schema"), int) and row["schema"] > SCHEMA})
    if newer:
        notes.append(f"{file.name}: written with schema {newer[-1]}; this report understands schema {SCHEMA}.")
    return rows


def number(value: Any) -> float:
    """A JSON value as a float; nan for null, text and anything else that is not a number."""
    if isinstance(value, bool | int | float):
        return float(value)
    try:
        return float(value) if isinstance(value, str) else math.nan
    except ValueError:
        return math.nan


def _read_metrics(file: Path, notes: list[str]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], str | None, str]:
    rows = _json_lines(file, notes)
    by_step: dict[int, dict[str, Any]] = {}
    stepless = 0
    for row in rows:
        step = number(row.get("step"))
        if math.isfinite(step):
            by_step[int(step)] = row  # a step redone after a restart replaces the line of the abandoned attempt
        else:
            stepless += 1
    if stepless:
        notes.append(f"{file.name}: {stepless} line(s) without a step number left out.")
    twice = len(rows) - stepless - len(by_step)
    if twice:
        notes.append(
            f"{file.name}: {twice} step(s) logged more than once (redone after a restart); the last line counts."
        )
    kept = [by_step[step] for step in sorted(by_step)]
    parts = dict.fromkeys(key for row in kept for key in row if key.startswith("loss_"))
    columns, terms = (
        {name: np.array([number(row.get(name)) for row in kept], dtype=np.float64) for name in names}
        for names in (COLUMNS, parts)
    )
    kinds, sources = (
        [row[key] for row in kept if isinstance(row.get(key), str)] for key in ("memory_kind", "energy_source")
    )
    return (
        columns,
        {name.removeprefix("loss_"): values for name, values in terms.items()},
        kinds[-1] if kinds else None,
        sources[-1] if sources else "",
    )


def _read_starts(file: Path, notes: list[str]) -> list[dict[str, Any]]:
    if not file.is_file():
        notes.append("starts.jsonl is missing: the environment of this run was not recorded.")
        return []
    return _json_lines(file, notes)


def _read_probe(file: Path, notes: list[str]) -> list[ProbeRow]:
    if not file.is_file():
        return []
    try:
        raw = json.loads(file.read_bytes())
    except ValueError:
        notes.append("probe.json is not readable JSON and was left out.")
        return []
    if not isinstance(raw, list):
        notes.append("probe.json is not a list of rows and was left out.")
        return []
    rows = [row for row in map(_probe_row, raw) if row is not None]
    if len(rows) < len(raw):
        notes.append(f"probe.json: {len(raw) - len(rows)} row(s) without method, encoder or figure left out.")
    return rows


def _probe_row(raw: Any) -> ProbeRow | None:
    if not isinstance(raw, dict) or not raw.get("method") or not raw.get("encoder"):
        return None
    metric = str(raw.get("metric") or "accuracy")
    score = number(raw.get(metric))
    if not math.isfinite(score):
        return None
    bounds = raw.get("ci95" if metric == "accuracy" else f"{metric}_ci95")
    ci = tuple(map(number, bounds)) if isinstance(bounds, list) and len(bounds) == 2 else (math.nan, math.nan)
    sizes = [number(raw.get(key)) for key in ("n_train", "n_test")]
    known = (
        "method",
        "encoder",
        "metric",
        "n_train",
        "n_test",
        *(("accuracy", "ci95") if metric == "accuracy" else ()),
    )
    return ProbeRow(
        method=str(raw["method"]),
        encoder=str(raw["encoder"]),
        score=score,
        ci95=(ci[0], ci[1]) if all(map(math.isfinite, ci)) else None,
        n_train=int(sizes[0]) if math.isfinite(sizes[0]) else None,
        n_test=int(sizes[1]) if math.isfinite(sizes[1]) else None,
        details={key: value for key, value in raw.items() if key not in known},
        metric=metric,
        published=raw.get("kind") == "published",
    )


def _read_evaluation(file: Path, notes: list[str]) -> list[Any]:
    """Rows of evaluation.json; what is none becomes a note."""
    raw = tasks.read_evaluation(file, notes)
    rows = [row for row in raw if tasks.is_row(row) or held_out.is_row(row)]
    if len(rows) < len(raw):
        notes.append(f"{file.name}: {len(raw) - len(rows)} row(s) without what was measured left out.")
    return rows


def _read_checkpoints(folder: Path) -> list[int]:
    """Steps of the checkpoints that carry their completeness record."""
    names = [file.parent.name.removeprefix("step_") for file in folder.glob("step_*/complete.json")]
    return sorted(int(name) for name in names if name.isdigit())
