"""What `frontier evaluate` measured of a run's tasks: rows of evaluation.json, and early_stopping.json."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_NEEDED = ("task", "model", "metric", "metrics", "ci95", "split", "n")


def read_evaluation(file: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The entries of evaluation.json in its order."""
    raw = _read(file, notes)
    if raw is None:
        return []
    if not isinstance(raw, list):
        notes.append(f"{file.name} is not a list of rows and was left out.")
        return []
    return raw


def read_early_stopping(file: Path, notes: list[str]) -> dict[str, Any] | None:
    """The content of early_stopping.json, None where there is none."""
    raw = _read(file, notes)
    if raw is None:
        return None
    tasks = raw.get("tasks") if isinstance(raw, dict) else None
    if not isinstance(tasks, list) or not isinstance(raw.get("steps"), list) or not raw["steps"]:
        notes.append(f"{file.name} is not a report of checkpoints and was left out.")
        return None
    kept = [task for task in tasks if isinstance(task, dict) and {"task", "metric", "values", "last"} <= task.keys()]
    return {"common_step": None, "mean_relative_loss": None, "split": "", "left_out": [], **raw, "tasks": kept}


def _read(file: Path, notes: list[str]) -> Any:
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_bytes())
    except ValueError:
        notes.append(f"{file.name} is not readable JSON and was left out.")
        return None


def is_row(row: Any) -> bool:
    """Whether a row of evaluation.json is of a task."""
    if not isinstance(row, dict) or not all(key in row for key in _NEEDED):
        return False
    return isinstance(row["metrics"], dict) and isinstance(row["ci95"], dict)


def by_task(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """[{task, about, metric, names, rows}]: the metric that a task is judged by comes first; the trained model before baselines."""
    out = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = sorted((row for row in rows if row["task"] == task), key=lambda row: row.get("kind") == "baseline")
        first = own[0]
        names = list(dict.fromkeys(name for row in own for name in row["metrics"]))
        names.sort(key=lambda name: name != first["metric"])
        about = [f"{first.get('head')} of {first.get('target')}"]
        about += [str(first["units"])] if first.get("units") else []
        about += [f"{first.get('data')}, split {first['split']}"]
        about += [f"intervals resample by {first['groups']}" if first.get("groups") else "intervals resample samples"]
        measured = [row for row in own if row["metrics"]]
        left = [f"{row['model']}: {row['left_out']}" for row in own if row.get("left_out")]
        out.append(
            {
                "task": task,
                "about": ", ".join(about),
                "metric": first["metric"],
                "names": names,
                "rows": measured,
                "left_out": left,
            }
        )
    return out


def value(number: Any) -> str:
    """A metric with three decimals."""
    return f"{number:.3f}" if isinstance(number, int | float) and math.isfinite(number) else "undefined"


def with_interval(row: dict[str, Any], name: str) -> str:
    """ "0.812 (0.790 to 0.833)"; "" where the row has no such metric."""
    if name not in row["metrics"]:
        return ""
    return with_bounds(row["metrics"][name], row["ci95"].get(name))


def with_bounds(number: Any, bounds: Any) -> str:
    """A value and its interval, where it has one."""
    known = isinstance(bounds, list) and len(bounds) == 2 and all(isinstance(b, int | float) for b in bounds)
    return value(number) + (f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if known else "")


def with_loss(number: Any, loss: Any) -> str:
    """A value at a step, and what of the task's best is lost there."""
    return value(number) + (f" (loses {100 * loss:.1f} %)" if isinstance(loss, int | float) else "")
