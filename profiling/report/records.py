"""What a report says, as one record in JSON types, and its two forms for machines: report.json and
report.csv.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from frontier_profiling.report import probes, wording
from frontier_profiling.report.pictures import Pictures
from frontier_profiling.report.quantities import quantities
from frontier_profiling.report.read import ProbeRow, Run
from frontier_profiling.report.summary import (
    common_images,
    facts,
    final_loss,
    not_finite,
    progress,
    restarts,
    skipped_steps,
    step_time,
    warmed_up,
)
from frontier_profiling.report.verdict import comparison_verdict, limit_sentence, run_verdict

SCHEMA = "frontier-report/1"


def run_record(run: Run, pictures: Sequence[Pictures]) -> dict[str, Any]:
    """Everything that the report of one run says, in JSON types; null is "not measured" or "not recorded"."""
    found = {figure.key: figure for figure in quantities(run)}
    state, sentence = progress(run)
    split = step_time(run)
    return {
        "schema": SCHEMA,
        "kind": "run",
        "run": run.name,
        "path": str(run.path),
        "verdict": run_verdict(run, found),
        "state": state,
        "progress": sentence,
        "facts": facts(run),
        "figures": {
            key: {
                "value": figure.value,
                "unit": figure.unit,
                "provenance": figure.source,
                "note": figure.note,
            }
            for key, figure in found.items()
        },
        "warm_up": warmed_up(run)[1],
        "limit": limit_sentence(split),
        "probe": [probe_record(row) for row in probes.ordered(run.probe)],
        "differences": [difference_record(d) for d in probes.differences(run.probe)],
        "tasks": run.tasks,
        "held_out": run.held_out,
        "early_stopping": run.early_stopping,
        "starts": run.starts,
        "restarts": [
            {"start": index + 1, "resumed_from": resumed, "drawn_at": at} for index, resumed, at in restarts(run)
        ],
        "skipped_steps": skipped_steps(run).tolist(),
        "not_finite_losses": not_finite(run).tolist(),
        "checkpoints": run.checkpoints,
        "pictures": {
            "images": sum(len(group.rows) for group in pictures),
            "caption": " ".join(group.caption for group in pictures if group.caption),
            "unavailable": " ".join(group.unavailable for group in pictures if group.unavailable),
        },
        "reproduce": reproduce(run),
        "notes": run.notes,
        "config": run.config,
    }


def probe_record(row: ProbeRow) -> dict[str, Any]:
    return {
        "method": row.method,
        "encoder": row.encoder,
        "metric": row.metric,
        row.metric: row.score,
        "ci95" if row.metric == "accuracy" else f"{row.metric}_ci95": list(row.ci95) if row.ci95 else None,
        "n_train": row.n_train,
        "n_test": row.n_test,
        "provenance": "published" if row.published else "measured",
        **row.details,
    }


def difference_record(d: probes.Difference) -> dict[str, Any]:
    return {
        "encoder": d.a.encoder,
        "method": d.a.method,
        "against": d.b.encoder,
        "against_method": d.b.method,
        "difference": d.value,
        "ci95": list(d.ci95) if d.ci95 else None,
        "interval_from": d.how if d.ci95 else None,
        "intervals_apart": d.intervals_apart,
        "provenance": "measured",
    }


def launch_command(run: Run) -> str:
    """The shell line that repeats the run in a new folder."""
    world, nodes = run.fact("world_size", 1), run.fact("nodes", 1)
    launch = "frontier pretrain"
    if isinstance(world, int) and world > 1:
        if isinstance(nodes, int) and nodes > 1:
            launch = f"srun --nodes={nodes} --ntasks-per-node={world // nodes} {launch}"
        else:
            launch = f"torchrun --standalone --nproc-per-node={world} --no-python {launch}"
    return f"{launch} {shlex.quote(str(run.path / 'config.yaml'))} run.dir={shlex.quote(str(run.path) + '-again')}"


def reproduce(run: Run) -> list[str]:
    """Shell lines that repeat the run in a new folder, its probe and this report."""
    new = shlex.quote(str(run.path) + "-again")
    git = run.fact("git")
    lines = []
    if git:
        clean = str(git).removesuffix("-dirty")
        lines.append(
            f"git checkout {shlex.quote(clean)}" + ("  # and the changes not committed" if clean != git else "")
        )
    lines.append(launch_command(run))
    shards = run.setting("data.shards")
    if run.tasks:
        baselines = " --baselines" if any(row.get("kind") == "baseline" for row in run.tasks) else ""
        lines.append(f"frontier evaluate {new} --split {shlex.quote(str(run.tasks[0]['split']))}{baselines}")
    if run.held_out:
        crops = {tuple(row["crop_scale"]) for row in run.held_out if row.get("crop_scale")}
        cropped = "".join(f" --crop-scale {low},{high}" for low, high in crops)
        lines.append(f"frontier evaluate {new} --split {shlex.quote(str(run.held_out[0]['split']))}{cropped}")
    if run.early_stopping:
        lines.append(f"frontier evaluate {new} --checkpoints")
    if run.probe and shards:
        methods = ",".join(dict.fromkeys(row.method for row in run.probe))
        details = run.probe[0].details
        target = f" --target {shlex.quote(str(details['target']))}" if details.get("target", "label") != "label" else ""
        resize = " --resize" if any(row.details.get("resize") for row in run.probe) else ""
        lines.append(f"frontier probe {new} --data {shlex.quote(str(shards))} --method {methods}{target}{resize}")
    return [*lines, f"frontier report {new}"]


def comparison_record(runs: Sequence[Run]) -> dict[str, Any]:
    """The records of several runs (without pictures), and what differs between their configs."""
    images = common_images(runs)
    return {
        "schema": SCHEMA,
        "kind": "comparison",
        "verdict": comparison_verdict(runs),
        "common_images": images,
        "loss_at_common_images": {run.name: final_loss(run, images)[0] for run in runs} if images else None,
        "config_differences": config_differences(runs),
        "runs": [run_record(run, [Pictures(unavailable="left out of a comparison")]) for run in runs],
    }


def with_distinct_names(runs: Sequence[Run]) -> list[Run]:
    """The runs, those that share a folder name renamed by their path below the common parent: `a/run`,
    `b/run`.
    """
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return list(runs)
    paths = [run.path.resolve() for run in runs]
    parent = os.path.commonpath(paths)
    return [
        replace(run, name=path.relative_to(parent).as_posix()) if names.count(run.name) > 1 else run
        for run, path in zip(runs, paths, strict=True)
    ]


def config_differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Dotted config keys whose values are not the same in all runs -> their values, in the order of the runs."""
    every = [_flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for flat in every for key in flat)
    table = {key: [flat.get(key) for flat in every] for key in keys if key != "run.dir"}
    return {key: values for key, values in table.items() if any(value != values[0] for value in values)}


def _flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            out |= _flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def to_json(record: Mapping[str, Any]) -> str:
    """Strict JSON: a nan or an infinity that was read from the run becomes null."""
    return json.dumps(_strict(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _strict(node: Any) -> Any:
    if isinstance(node, dict):
        return {str(key): _strict(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_strict(value) for value in node]
    if isinstance(node, float):
        return node if math.isfinite(node) else None
    if isinstance(node, np.generic):
        return _strict(node.item())
    return node if node is None or isinstance(node, str | int | bool) else str(node)


def to_csv(runs: Sequence[Run]) -> str:
    """One line per run; units stand in the names; the last columns tell which figures are not plain
    measurements.
    """
    out = io.StringIO()
    rows: list[dict[str, Any]] = []
    for run in runs:
        found = quantities(run)
        row: dict[str, Any] = {"run": run.name, "path": str(run.path), "state": progress(run)[0]}
        row |= {key: "not recorded" if value is None else value for key, value in facts(run).items()}
        row |= {f.key: wording.NOT_MEASURED if f.value is None else f"{f.value:.10g}" for f in found}
        for kind in ("measured", "predicted", "published"):
            row[f"provenance_{kind}"] = " ".join(f.key for f in found if f.source == kind)
        rows.append(row)
    # Runs may differ in the parts of their losses.
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(out, fieldnames=columns, restval=wording.NOT_MEASURED, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
