"""Predictions against what was measured or published for the same configuration."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from frontier_profiling.report.study.points import SETTINGS, SUBJECT, by, tensors_peak, trained
from frontier_profiling.rows import Row

LOOSE = ("system", "workload", "image_size", "engine", "compile", "data")
"""Not compared with a published point, which does not state them or calls them otherwise."""
BAND = 0.10


@dataclass(frozen=True)
class Pair:
    predicted: Row
    true: Row

    @property
    def error(self) -> float:
        """Of the throughput: predicted / true - 1."""
        return (self.predicted.images_per_s or 0.0) / (self.true.images_per_s or 1.0) - 1

    @property
    def memory_error(self) -> float | None:
        ours, theirs = tensors_peak(self.predicted), tensors_peak(self.true)
        return ours / theirs - 1 if ours and theirs else None


def pairs(rows: Sequence[Row], published: Sequence[Row]) -> list[Pair]:
    """Every measured or published point with a speed that has a prediction of the same configuration."""
    names = (*SUBJECT, "strategy", "tensor", "nodes", "devices", *(name for name in SETTINGS if name != "engine"))
    exact = _index([row for row in rows if row.source == "predicted" and trained(row)], names)
    out = [
        Pair(exact[key], row)
        for row in rows
        if row.source == "measured" and trained(row) and (key := _key(row, names)) in exact
    ]
    few = tuple(name for name in names if name not in LOOSE)
    loose = _index([row for row in rows if row.source == "predicted" and trained(row)], few)
    every = [row for row in (*rows, *published) if row.source == "published" and trained(row)]
    return out + [Pair(loose[key], row) for row in every if (key := _key(row, few)) in loose]


def _key(row: Row, names: Sequence[str]) -> tuple:
    return tuple(getattr(row, name) for name in names)


def _index(rows: Sequence[Row], names: Sequence[str]) -> dict[tuple, Row]:
    return {key: found[0] for key, found in by(rows, lambda row: _key(row, names)).items()}


def summary(found: Sequence[Pair]) -> dict[str, float | int | None]:
    """Median of the absolute errors, the share within 10 % and within 30 %, and of the memory the median."""
    errors = [abs(pair.error) for pair in found]
    memory = [abs(error) for pair in found if (error := pair.memory_error) is not None]
    if not errors:
        return {"points": 0, "median": None, "within_10": None, "within_30": None, "memory_median": None}
    return {
        "points": len(errors),
        "median": statistics.median(errors),
        "within_10": sum(error <= 0.10 for error in errors) / len(errors),
        "within_30": sum(error <= 0.30 for error in errors) / len(errors),
        "memory_median": statistics.median(memory) if memory else None,
    }
