"""Strategy × nodes as an HTML table whose cells are tinted by MFU or, where it is unknown or of several peaks, by images/s a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frontier_profiling.report.study.points import FAILED, SOURCE_ORDER, Axis, by, fastest, label, labels, trained
from frontier_profiling.report.wording import significant
from frontier_profiling.rows import Row

STRONGEST = 0.62
"""Opacity of the tint at the panel's best cell: text on it stays readable in light and dark."""
PALEST = 0.5
"""Share of the best at which the tint ends (lower, where a panel holds less)."""


@dataclass(frozen=True)
class Cell:
    """`tint` 0 to `STRONGEST`; `state`: done, oom, another reason, or "" where nothing was tried."""

    text: str
    state: str
    tint: float
    best: bool
    source: str
    title: str


@dataclass(frozen=True)
class Heat:
    unit: str
    columns: list[int]
    rows: list[tuple[str, list[Cell]]]


def heat(rows: Sequence[Row], axis: Axis) -> Heat | None:
    """None where there are not two cells to compare. Of several settings the fastest of the best source is shown."""
    cells = by(rows, lambda row: (label(row), axis.of(row)))
    if len(cells) < 2:
        return None
    chosen = {place: _pick(found) for place, found in cells.items()}
    done = [row for row in chosen.values() if trained(row)]
    # MFU of two precisions is of two peaks: DDP in float32 would look better than what is twice as fast.
    one_peak = len({(row.peak_tflops, row.precision) for row in done}) == 1
    unit = "MFU, %" if one_peak and all(row.mfu for row in done) else "images/s a device"

    def value(row: Row) -> float:
        return 100 * (row.mfu or 0.0) if unit == "MFU, %" else (row.images_per_s or 0.0) / row.devices

    most = max(map(value, done), default=1.0)
    least = min([PALEST * most, *map(value, done)])
    columns = sorted({x for _, x in cells})
    tops = {x: fastest([row for (_, at), row in chosen.items() if at == x]) for x in columns}

    def cell(name: str, x: int) -> Cell:
        row = chosen.get((name, x))
        if row is None:
            return Cell("", "", 0.0, False, "", "not tried")
        if not trained(row):
            short = {"oom": "OOM"}.get(row.status, FAILED.get(row.status, "no speed"))
            return Cell(short, "oom" if row.status == "oom" else "other", 0.0, False, row.source, row.error)
        found = value(row)
        whole = f"{significant(row.images_per_s or 0.0)} images/s, {row.source}"
        return Cell(
            significant(found),
            "done",
            STRONGEST * (0.06 + 0.94 * (found - least) / (most - least)),
            row is tops[x],
            row.source,
            whole,
        )

    return Heat(unit, columns, [(name, [cell(name, x) for x in columns]) for name in labels(rows)])


def _pick(rows: Sequence[Row]) -> Row:
    """The fastest of the most trustworthy source that trained, else the first row that tells why none did."""
    ended = [row for row in rows if trained(row)]
    source = min((row.source for row in ended or rows), key=SOURCE_ORDER.__getitem__)
    return fastest([row for row in ended if row.source == source]) or next(row for row in rows if row.source == source)
