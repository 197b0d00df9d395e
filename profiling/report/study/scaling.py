"""Weak and strong scaling: which rows form a curve, and its efficiency.

Efficiency at x is (images/s a device at x) / (images/s a device at the curve's smallest point). With a constant number of images a device it
is the weak-scaling efficiency, with a constant global batch the strong-scaling one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from frontier_profiling.report.study.points import (
    KEY,
    SETTINGS,
    SUBJECT,
    Axis,
    by,
    global_batch,
    label,
    labels,
    trained,
)
from frontier_profiling.rows import Row

Kind = Literal["weak", "strong"]


@dataclass(frozen=True)
class Curve:
    """One strategy over the scaling axis. `rows` trained, by growing x; `lost`: points of it that did not end."""

    label: str
    source: str
    rows: list[Row]
    lost: list[Row]

    def efficiency(self) -> list[float]:
        each = [(row.images_per_s or 0.0) / row.devices for row in self.rows]
        return [value / each[0] for value in each]


def curves(rows: Sequence[Row], axis: Axis, kind: Kind) -> list[Curve]:
    """The curves of one panel, one a strategy and source.

    Where several settings give one (micro-batches, say), the one with the most points is drawn, and of those the
    fastest at its largest point.
    """
    rest = [name for name in (*SUBJECT, *SETTINGS) if name not in ("micro_batch", "accumulation")]

    def group(row: Row) -> tuple:
        constant = global_batch(row) if kind == "strong" else global_batch(row) / row.devices
        return (row.source, label(row), constant, *(getattr(row, name) for name in rest))

    out: dict[tuple[str, str], Curve] = {}
    for found in by(rows, group).values():
        best: dict[int, Row] = {}
        for row in filter(trained, found):
            x = axis.of(row)
            if x not in best or (row.images_per_s or 0) > (best[x].images_per_s or 0):
                best[x] = row
        if len(best) < 2:
            continue
        line = [best[x] for x in sorted(best)]
        lost = [row for row in found if row.status != "done" and axis.of(row) not in best]
        curve = Curve(label(line[0]), line[0].source, line, lost)
        known = out.get((curve.source, curve.label))
        if known is None or _weight(curve) > _weight(known):
            out[curve.source, curve.label] = curve
    order = labels(rows)
    return sorted(out.values(), key=lambda curve: (order.index(curve.label), curve.source))


def _weight(curve: Curve) -> tuple[int, float]:
    return len(curve.rows), curve.rows[-1].images_per_s or 0.0


def efficiencies(rows: Sequence[Row], axis: Axis, kind: Kind) -> dict[int, float]:
    """id(row) -> efficiency of every row that has a smaller or larger point with its own settings."""
    rest = [name for name in KEY if name not in ("nodes", "devices", "micro_batch", "accumulation")]

    def group(row: Row) -> tuple:
        constant = global_batch(row) if kind == "strong" else (row.micro_batch, row.accumulation)
        return (row.source, constant, *(getattr(row, name) for name in rest))

    out: dict[int, float] = {}
    for found in by([row for row in rows if trained(row)], group).values():
        if len({axis.of(row) for row in found}) < 2:
            continue
        first = min(found, key=axis.of)
        base = (first.images_per_s or 0.0) / first.devices
        for row in found:
            out[id(row)] = (row.images_per_s or 0.0) / row.devices / base
    return out
