"""The rows of a probe as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .methods import SUBJECT

NAMES = {
    "accuracy": "accuracy",
    "raw_accuracy": "raw accuracy",
    "accuracy_matched_on_test": "matched on test",
    "nmi": "NMI",
    "ari": "ARI",
    "micro_map": "micro mAP",
    "macro_map": "macro mAP",
    "miou": "mIoU",
    "iou": "IoU",
    "dice": "Dice",
    "dice_macro": "mean Dice",
    "majority_rate": "majority",
    "geobench_normalised": "GEO-Bench normalised",
}
"""Figures of a row, as a reader calls them."""


def headline(row: Mapping[str, Any]) -> tuple[str, float, list[float] | None]:
    """(metric, value, 95 % interval or None) of a row; rows without `metric` are of accuracy. Value NaN where there is none."""
    metric = row.get("metric") or "accuracy"
    value, bounds = row.get(metric), row.get("ci95" if metric == "accuracy" else f"{metric}_ci95")
    return str(metric), float("nan") if value is None else float(value), bounds


def further(row: Mapping[str, Any]) -> str:
    """The other figures of a row, such as "NMI 0.412, ARI 0.305"."""
    metric = headline(row)[0]
    found = [(label, row.get(name)) for name, label in NAMES.items() if name != metric]
    told = [f"{label} {value:.3f}" for label, value in found if isinstance(value, float) and math.isfinite(value)]
    return ", ".join([*told, *([f"as {row['published_method']}"] if "published_method" in row else [])])


def grouped(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows method by method in the order of the first of each; inside a method as they come, published ones last."""
    order = list(dict.fromkeys(row["method"] for row in rows))
    return sorted(rows, key=lambda row: (order.index(row["method"]), row.get("kind") == "published"))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A text table of the rows of `evaluate`, and of published ones, method by method.

    The last columns are the paired difference of the figure with its 95 % interval (where that holds 0 the test samples cannot
    tell the two encoders apart) and the other figures.
    """
    rows = grouped(rows)
    metric = headline(next((row for row in rows if row.get("kind") != "published"), rows[0]))[0]
    differences = {row["method"]: row["difference"] for row in rows if "difference" in row}
    lines = [
        ("method", "encoder", "features", NAMES.get(metric, metric), "95 % interval", f"{SUBJECT} minus this", "also")
    ]
    for index, row in enumerate(rows):
        first = index == 0 or rows[index - 1]["method"] != row["method"]
        difference = differences.get(row["method"], {}).get(row["encoder"])
        own, value, bounds = headline(row)
        lines.append(
            (
                row["method"] if first else "",
                row["encoder"],
                str(row.get("features", "")),
                f"{value:.3f}" if own == metric else "",
                "published" if row.get("kind") == "published" else _interval(bounds),
                f"{difference[metric]:+.3f} {_interval(difference['ci95'], '+')}" if difference else "",
                further(row) if own == metric else ", ".join(filter(None, (f"{NAMES[own]} {value:.3f}", further(row)))),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    shown = [column for column in range(len(widths)) if column < 6 or any(line[column] for line in lines[1:])]
    return "\n".join(
        "  ".join(
            line[column].rjust(widths[column]) if column in (2, 3) else line[column].ljust(widths[column])
            for column in shown
        ).rstrip()
        for line in lines
    )


def _interval(bounds: Sequence[float] | None, sign: str = "") -> str:
    return "" if not bounds else f"[{bounds[0]:{sign}.3f}, {bounds[1]:{sign}.3f}]"
