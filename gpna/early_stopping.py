"""When each task would have stopped: one set of weights is best for each task at another step, and one step must be chosen for all.

At checkpoint s a task whose best value over the checkpoints is b has lost |b - value(s)| / |b| of it. The common step is the one
with the least mean of these losses over the tasks, the earliest of equals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from frontier.table import table
from gpna.evaluation import LOWER, SCHEMA, Row


def early_stopping(by_step: Mapping[int, Sequence[Row]]) -> dict[str, Any]:
    """{schema, split, steps, common_step, mean_relative_loss {at_common_step, at_last_step}, left_out, tasks, provenance}.

    `by_step`: rows of `gpna.evaluation.measure` of each checkpoint. Of each task {task, metric, better, n, best_step, best, best_ci95,
    last, common, relative_loss_last, relative_loss_common, values, ci95}, where values and ci95 go with `steps`, by the metric that its row
    names. Tasks with an undefined value, or a best value of 0, have no relative loss: `left_out` names them.
    """
    steps = sorted(by_step)
    first = {row["task"]: row for row in by_step[steps[0]]}
    rows = {name: [next(r for r in by_step[step] if r["task"] == name) for step in steps] for name in first}
    tasks, losses = [], {}
    for name, along in rows.items():
        metric = along[0]["metric"]
        values = [float(row["metrics"][metric]) for row in along]
        lower = metric in LOWER
        known = [k for k, value in enumerate(values) if math.isfinite(value)]
        task: dict[str, Any] = {"task": name, "metric": metric, "better": "lower" if lower else "higher"}
        task |= {"n": along[0]["n"], "values": values, "ci95": [row["ci95"][metric] for row in along]}
        if known:
            # Of equals the earliest.
            best = min(known, key=lambda k: (values[k] if lower else -values[k], k))
            task |= {"best_step": steps[best], "best": values[best], "best_ci95": task["ci95"][best]}
            if len(known) == len(values) and values[best] != 0:
                losses[name] = [abs(values[best] - value) / abs(values[best]) for value in values]
        tasks.append(task | {"last": values[-1]})
    common = None
    if losses:
        means = [sum(loss[k] for loss in losses.values()) / len(losses) for k in range(len(steps))]
        common = min(range(len(steps)), key=lambda k: (means[k], k))
    for task in tasks:
        task["common"] = None if common is None else task["values"][common]
        loss = losses.get(task["task"])
        task["relative_loss_last"] = None if loss is None else loss[-1]
        task["relative_loss_common"] = None if loss is None or common is None else loss[common]
    return {
        "schema": SCHEMA,
        "split": by_step[steps[0]][0]["split"],
        "steps": steps,
        "common_step": None if common is None else steps[common],
        "mean_relative_loss": None if common is None else {"at_common_step": means[common], "at_last_step": means[-1]},
        "left_out": [name for name in rows if name not in losses],
        "tasks": tasks,
        "provenance": "measured",
    }


def as_text(report: Mapping[str, Any]) -> str:
    """The report as a table and a sentence."""
    common, steps = report["common_step"], report["steps"]
    lines = [("task", "metric", "best at step", "best", f"at step {steps[-1]} (last)", f"at step {common} (common)")]
    for task in report["tasks"]:
        lines.append(
            (
                task["task"],
                f"{task['metric']} ({task['better']} is better)",
                str(task.get("best_step", "none")),
                _number(task.get("best")),
                _with_loss(task["last"], task["relative_loss_last"]),
                _with_loss(task["common"], task["relative_loss_common"]),
            )
        )
    told = [table(lines)]
    if common is not None:
        mean = report["mean_relative_loss"]
        told.append(
            f"One step for all: {common} loses {100 * mean['at_common_step']:.1f} % of the tasks' best values on average, the last step "
            f"{100 * mean['at_last_step']:.1f} % ({len(steps)} checkpoints, split {report['split']})."
        )
    if report["left_out"]:
        told.append(f"Without a relative loss: {', '.join(report['left_out'])} (undefined, or a best value of 0).")
    return "\n\n".join(told)


def _number(value: float | None) -> str:
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _with_loss(value: float | None, loss: float | None) -> str:
    return _number(value) + ("" if loss is None else f" (loses {100 * loss:.1f} %)")
