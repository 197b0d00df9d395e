"""The rows of a probe as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .evaluate import SUBJECT

_HEAD = ("method", "encoder", "features", "accuracy", "95 % interval", f"{SUBJECT} minus this")


def _interval(bounds: Sequence[float], sign: str = "") -> str:
    return f"[{bounds[0]:{sign}.3f}, {bounds[1]:{sign}.3f}]"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A text table of the rows of `evaluate`, method by method.

    The last column is the paired difference in accuracy with its 95 % interval; where that holds 0 the test
    images cannot tell the two encoders apart.
    """
    differences = {row["method"]: row["difference"] for row in rows if "difference" in row}
    lines = [_HEAD]
    for index, row in enumerate(rows):
        first = index == 0 or rows[index - 1]["method"] != row["method"]
        difference = differences.get(row["method"], {}).get(row["encoder"])
        lines.append(
            (
                row["method"] if first else "",
                row["encoder"],
                str(row["features"]),
                f"{row['accuracy']:.3f}",
                _interval(row["ci95"]),
                f"{difference['accuracy']:+.3f} {_interval(difference['ci95'], '+')}" if difference else "",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in (2, 3) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
