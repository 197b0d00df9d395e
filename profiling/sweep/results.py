"""What a study leaves: rows.json, rows.csv, a table for the terminal, and the report."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from frontier.config.schema import ZERO
from frontier.errors import UserError
from frontier.launch.mesh import ParallelDims
from frontier_profiling.rows import Row, Source, Status, from_json, to_csv, to_json
from frontier_profiling.sweep.execute import seen_command
from frontier_profiling.sweep.grid import Point
from frontier_profiling.sweep.state import Place, place, read_json, write_text
from frontier_profiling.sweep.study import Study, lookup

LABELS = (
    "micro_batch",
    "global_batch",
    "prefetch",
    "activation_checkpointing",
    "tensor",
    "precision",
    "data",
    "image_size",
)
"""Axes that a line of the table names where a study has several values of them."""


def blank_row(study: Study, point: Point, source: Source, system: str) -> Row:
    """The row of a point of which nothing is known yet; skipped with its reason where it cannot work."""
    parallel = lookup(study.config, "parallel") or {}
    try:
        dims = ParallelDims.from_strategy(point.strategy, point.ranks, point.tensor)
        mesh = dims.as_dict()
    except UserError:
        mesh = {}
    predicted = source == "predicted"
    engine = study.engine if predicted else "deepspeed" if point.strategy in ZERO else "fsdp2"
    return Row(
        source=source,
        model=point.model,
        system=system,
        strategy=point.strategy,
        nodes=point.nodes,
        devices=point.ranks,
        micro_batch=point.micro_batch,
        status="skipped" if point.skip else "pending",
        error=point.skip,
        workload=study.workload if predicted else "mae",
        engine=engine,
        image_size=point.image_size,
        global_batch=point.global_batch,
        accumulation=point.accumulation,
        precision=point.precision,
        activation_checkpointing=point.activation_checkpointing,
        tensor=point.tensor,
        prefetch=point.prefetch,
        compile=bool(parallel.get("compile")),
        offload=bool(parallel.get("offload")),
        data=point.data,
        mesh=mesh,
    )


AXES = (
    "source", "model", "system", "strategy", "nodes", "devices", "micro_batch", "workload", "engine", "image_size", "global_batch",
    "accumulation", "precision", "activation_checkpointing", "tensor", "prefetch", "compile", "offload", "data", "mesh",
)  # fmt: skip
"""Fields that the study knows of a point before it runs."""


def measured_rows(study: Study, out: Path, found: Sequence[Point]) -> list[Row]:
    """A row for every point, from its folder. Where the devices were not the study's system's, they are rows of `local`."""
    rows = [_measured(study, place(out, point), point, out) for point in found]
    elsewhere = sorted({str(row.facts["device"]) for row in rows if not measured_there(study, row)})
    for row in rows if elsewhere else []:
        row.notes = [*row.notes, f"the study names {row.system}; measured on {', '.join(elsewhere)}"]
        row.system = "local"
    return rows


def measured_there(study: Study, row: Row) -> bool:
    """Whether the device that a row was measured on can be one of the study's system's; True where either is unknown."""
    from frontier_profiling.predict.system import load_system

    seen, kind = row.facts.get("device"), row.facts.get("device_type")
    if seen is None or study.system == "local":
        return True
    try:
        device = load_system(study.system).device
    except UserError:
        return True
    model = re.search(r"[A-Za-z]*\d{3,}[A-Za-z]*", device.name)  # MI250X, A100, 1550
    return kind == device.type and (kind == "cpu" or model is None or bool(re.search(rf"\b{model[0]}\b", str(seen))))


def _measured(study: Study, where: Place, point: Point, out: Path) -> Row:
    known = where.status()
    blank = blank_row(study, point, "measured", system_name(study))
    blank.status = "skipped" if point.skip else cast(Status, known["status"])
    blank.error = point.skip or known.get("reason", "")
    blank.path = str(where.folder.relative_to(out))
    if blank.status not in ("skipped", "pending"):
        blank.command = seen_command(study, point, where)
        blank.facts = {
            key: known[key] for key in ("host", "slurm_job_id", "attempts", "wall_s") if known.get(key) is not None
        }
    if blank.status != "done":
        return blank
    try:
        row = _reading(where, blank) if point.data == "only" else _summary(where.run)
    except (UserError, OSError, ValueError, KeyError) as error:
        blank.status, blank.error = "failed", f"its metrics cannot be read: {' '.join(str(error).split())}"
        return blank
    for name in AXES:
        setattr(row, name, getattr(blank, name))
    row.status, row.error = "done", ""
    if study.samples and row.images_per_s:
        row.samples, row.node_hours = study.samples, study.samples / row.images_per_s * row.nodes / 3600
    row.command, row.path, row.facts = blank.command, blank.path, {**row.facts, **blank.facts}
    return row


def _summary(run_dir: Path) -> Row:
    from frontier_profiling.measure.summary import measured_row

    return measured_row(run_dir)


def _reading(where: Place, blank: Row) -> Row:
    """The row of a point that only read (`frontier_profiling.measure.reading`)."""
    import numpy as np

    from frontier_profiling.measure.timed import timed

    found = read_json(where.run / "reading.json")
    if found is None:
        raise UserError(f"{where.run / 'reading.json'} is not there")
    row = Row.from_dict(blank.as_dict())
    window, step = int(found["batches_a_window"]), timed(np.array(found["batch_s"], dtype=float))
    if step is None:
        raise UserError(f"{where.run / 'reading.json'} holds no times")
    row.step_s, row.step_s_low, row.step_s_high, row.step_ci95_s = step.median, step.p10, step.p90, step.ci95
    row.steps_timed, row.images_per_s = step.count * window, (row.global_batch or 0) / step.median
    row.step_parts_s, row.limit = {"data": step.median}, "data"
    row.facts = {"mib_per_s": found["batch_bytes"] / step.median / 2**20, "batches_a_window": window}
    row.notes = [
        f"reading only: median of {step.count} windows of {window} batches, of the slowest rank, the first dropped"
    ]
    return row


def system_name(study: Study) -> str:
    """The word that rows carry: the name inside a system's file, else as the study has it."""
    path = Path(study.system)
    if path.suffix in (".yaml", ".yml"):
        try:
            return str(yaml.safe_load(path.read_text())["name"])
        except (OSError, yaml.YAMLError, KeyError, TypeError):
            return path.stem
    return study.system


def write_rows(study: Study, out: Path, rows: Sequence[Row]) -> list[Row]:
    """Write rows.json and rows.csv; returns what they hold. Rows of another source that stand there stay: a study predicted
    and then measured into one folder has both.
    """
    sources = {row.source for row in rows}
    everything = [*rows, *(row for row in read_rows(out) if row.source not in sources)]
    about = study.model_dump(include={"name", "title", "question", "scaling", "mode"})
    write_text(out / "rows.json", to_json(everything, study=about) + "\n")
    write_text(out / "rows.csv", to_csv(everything))
    return everything


PLACE = (
    "model", "strategy", "nodes", "micro_batch", "accumulation", "tensor", "prefetch", "activation_checkpointing", "precision", "data",
    "image_size",
)  # fmt: skip


def place_in_grid(node: Point | Row) -> tuple[Any, ...]:
    """Equal for a point and its row."""
    ranks = node.ranks if isinstance(node, Point) else node.devices
    return ranks, *(getattr(node, name) for name in PLACE)


def predicted_before(out: Path, found: Sequence[Point]) -> list[Point]:
    """The points that have a predicted row in OUT: `--only` of a later call leaves them there, predicted anew."""
    known = {place_in_grid(row) for row in read_rows(out) if row.source == "predicted"}
    return [point for point in found if place_in_grid(point) in known]


def read_rows(out: Path) -> list[Row]:
    """What OUT/rows.json holds; nothing where there is none, or none that can be read."""
    try:
        return from_json((out / "rows.json").read_text())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def write_study(study: Study, out: Path) -> None:
    """OUT/study.yaml, resolved: alone enough to go on. The mode that stands there stays: another one is of this call alone."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}): give another --out") from None
    node, known = study.as_dict(), out / "study.yaml"
    try:
        node["mode"] = yaml.safe_load(known.read_text())["mode"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        pass
    write_text(known, yaml.safe_dump(node, sort_keys=False, allow_unicode=True, width=120))


def table(rows: Sequence[Row]) -> str:
    """Images/s by strategy and size, a block for every model and source; * marks the best of a column."""
    blocks = []
    for source in dict.fromkeys(row.source for row in rows):
        own = [row for row in rows if row.source == source]
        varying = [name for name in LABELS if len({getattr(row, name) for row in own}) > 1]
        if all(row.global_batch == row.micro_batch * row.devices * row.accumulation for row in own):
            varying = [name for name in varying if name != "global_batch"]
        else:
            varying = [name for name in varying if name != "micro_batch"]
        for model in dict.fromkeys(row.model for row in own):
            blocks.append(_block(source, model, [row for row in own if row.model == model], varying))
    return "\n\n".join(blocks)


def _block(source: str, model: str, rows: Sequence[Row], varying: Sequence[str]) -> str:
    by_nodes = len({row.nodes for row in rows}) > 1 or any(row.nodes > 1 for row in rows)
    sizes = sorted({(row.devices, row.nodes) for row in rows})
    lines: dict[str, dict[tuple[int, int], Row]] = {}
    strategy_width = max(len(row.strategy) for row in rows) if varying else 0
    for row in rows:
        label = "  ".join(
            [
                row.strategy.ljust(strategy_width),
                *(f"{name.replace('activation_checkpointing', 'ac')}={getattr(row, name)}" for name in varying),
            ]
        )
        lines.setdefault(label, {})[row.devices, row.nodes] = row
    training = [
        row for row in rows if row.status == "done" and (row.data != "only" or len({r.data for r in rows}) == 1)
    ]
    best = {
        size: max((row.images_per_s or 0.0 for row in training if (row.devices, row.nodes) == size), default=0.0)
        for size in sizes
    }
    head = [
        f"{nodes} node{'s' if nodes > 1 else ''}" if by_nodes else f"{n} rank{'s' if n > 1 else ''}"
        for n, nodes in sizes
    ]
    cells = [[_cell(line.get(size), best[size]) for size in sizes] for line in lines.values()]
    first = max([len(label) for label in lines] + [len(model) + 2])
    widths = [max(len(head[i]), *(len(row[i]) for row in cells)) for i in range(len(sizes))]
    out = [f"{model}, images/s, {source}"]
    out.append("  ".join([" " * first, *(text.rjust(width) for text, width in zip(head, widths, strict=True))]))
    for label, row in zip(lines, cells, strict=True):
        out.append(
            "  ".join([label.ljust(first), *(text.rjust(width) for text, width in zip(row, widths, strict=True))])
        )
    return "\n".join(out)


def _cell(row: Row | None, best: float) -> str:
    if row is None:
        return ""
    if row.status != "done":
        return row.status
    if row.images_per_s is None:
        return "not measured"
    digits = 0 if best >= 100 else 1
    return f"{row.images_per_s:,.{digits}f}" + ("*" if row.images_per_s == best else " ")


def counts(rows: Sequence[Row]) -> str:
    """How many points ended how, in one line."""
    order = ("done", "oom", "timeout", "failed", "skipped", "running", "pending")
    found = {status: sum(row.status == status for row in rows) for status in order}
    return f"{len(rows)} points: " + ", ".join(f"{count} {status}" for status, count in found.items() if count)


def report(out: Path) -> str:
    """Write the study report; returns what the report says of itself, or why there is none."""
    said = io.StringIO()
    try:
        from frontier_profiling.report.command import main

        with contextlib.redirect_stdout(said):
            main([str(out)])
    except UserError as error:
        return f"no report: {' '.join(str(error).split())}"
    return said.getvalue().strip()


def as_json(study: Study, rows: Sequence[Row], **more: Any) -> str:
    return json.dumps(json.loads(to_json(rows, study=study.as_dict(), **more)), indent=1)
