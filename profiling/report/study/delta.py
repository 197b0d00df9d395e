"""Two studies point by point: what changed, and whether the intervals allow to say so.

The ratio of two throughputs, each with the 95 % interval of its median step, gets the interval of Donner and Zou's MOVER on the logarithms:
from d - sqrt((a - a_low)² + (b_high - b)²) to d + sqrt((a_high - a)² + (b - b_low)²), d = a - b. Without intervals of the medians, the p10–p90 ranges must lie apart. Predictions carry
no noise: every difference is the formula's. Runs of one configuration differ by 1 to 2 %, so less than `LEAST` is no difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from frontier.errors import UserError
from frontier_profiling.report.study.points import FAILED, KEY, SOURCE_ORDER, by, key, peak, shown, word
from frontier_profiling.report.study.read import Study
from frontier_profiling.report.wording import listed
from frontier_profiling.rows import Row

LEAST = 0.01
LEAST_ENERGY = 0.05
"""Energy has no interval: a smaller difference is none."""
Judgement = Literal["better", "worse", "no difference", "no claim"]
SIGNS = {"better": "▲", "worse": "▼", "no difference": "=", "no claim": "?"}


def separated(a: Row, b: Row) -> bool | None:
    """Whether the throughputs differ beyond their noise; None where it is not known."""
    if not a.images_per_s or not b.images_per_s:
        return None
    bounds = ratio_interval(a, b)
    if bounds is not None:
        return bounds[0] > 1 or bounds[1] < 1
    if a.source == b.source == "predicted":
        return a.images_per_s != b.images_per_s
    left, right = _speeds(a, (a.step_s_low, a.step_s_high)), _speeds(b, (b.step_s_low, b.step_s_high))
    if left and right and "predicted" not in (a.source, b.source):
        return left[1] < right[0] or right[1] < left[0]
    return None


def ratio_interval(a: Row, b: Row) -> tuple[float, float] | None:
    """95 % interval of a's images/s over b's; None where either median has none."""
    left, right = _speeds(a, a.step_ci95_s), _speeds(b, b.step_ci95_s)
    if not left or not right or not a.images_per_s or not b.images_per_s:
        return None
    x, low_x, high_x = (math.log(v) for v in (a.images_per_s, *left))
    y, low_y, high_y = (math.log(v) for v in (b.images_per_s, *right))
    d = x - y
    return math.exp(d - math.hypot(x - low_x, high_y - y)), math.exp(d + math.hypot(high_x - x, y - low_y))


def _speeds(row: Row, steps: tuple[float | None, float | None] | None) -> tuple[float, float] | None:
    """Bounds of the step time as bounds of images/s, low first."""
    low, high = steps or (None, None)
    if not low or not high or not row.step_s or not row.images_per_s or low <= 0:
        return None
    images = row.images_per_s * row.step_s
    return images / high, images / low


@dataclass(frozen=True)
class Change:
    """One figure before and after. `ratio`: after over before."""

    before: float | None
    after: float | None
    judgement: Judgement
    how: str

    @property
    def ratio(self) -> float | None:
        return self.after / self.before if self.before and self.after else None

    @property
    def sign(self) -> str:
        return SIGNS[self.judgement]


@dataclass(frozen=True)
class Point:
    """The same configuration in both studies."""

    before: Row
    after: Row
    throughput: Change
    memory: Change
    energy: Change


def compare(a: Study, b: Study) -> tuple[list[Point], list[Row], list[Row]]:
    """(points in both, rows only in a, rows only in b). Raises UserError where no configuration is in both."""
    ours, theirs = (by(study.rows, key) for study in (a, b))
    common = [point for point in ours if point in theirs]
    if not common:
        raise UserError(f"{a.path} and {b.path} have no point in common: {_apart(a.rows, b.rows)}")
    points = []
    for name in common:
        before, after = _partners(ours[name], theirs[name])
        points.append(Point(before, after, throughput(before, after), memory(before, after), energy(before, after)))
    only = [
        [row for name, rows in x.items() if name not in y for row in rows] for x, y in ((ours, theirs), (theirs, ours))
    ]
    return points, only[0], only[1]


def _partners(ours: Sequence[Row], theirs: Sequence[Row]) -> tuple[Row, Row]:
    """Of several sources: the same one in both, measured first."""
    both = [(a, b) for a in ours for b in theirs]
    return min(both, key=lambda p: (p[0].source != p[1].source, SOURCE_ORDER[p[0].source], SOURCE_ORDER[p[1].source]))


def _apart(ours: Sequence[Row], theirs: Sequence[Row]) -> str:
    """The fields in which they never agree, else the advice to look."""
    said = []
    for name in KEY:
        left, right = ({getattr(row, name) for row in rows} for rows in (ours, theirs))
        if not left & right:
            said.append(f"{word(name)} {_few(left)} against {_few(right)}")
    return listed(said) if said else "no configuration (model, strategy, nodes, settings) is in both"


def _few(values: set) -> str:
    names = sorted(map(shown, values))
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def throughput(a: Row, b: Row) -> Change:
    before, after = a.images_per_s, b.images_per_s
    if a.status != b.status and "done" in (a.status, b.status):
        return Change(
            before, after, "better" if b.status == "done" else "worse", f"{_state(a)} before, {_state(b)} now"
        )
    if not before or not after:
        return Change(before, after, "no claim", _state(b) if b.status == a.status != "done" else "not known in both")
    ratio, apart = after / before, separated(a, b)
    if apart is None:
        return Change(before, after, "no claim", "no interval in both")
    bounds = ratio_interval(b, a)
    if bounds:
        how = f"95 % interval of the ratio {bounds[0]:.3f} to {bounds[1]:.3f}"
    elif a.source == b.source == "predicted":
        how = "both predicted: no noise"
    else:
        how = f"p10–p90 {'apart' if apart else 'overlap'}"
    if not apart or abs(ratio - 1) < LEAST:
        return Change(before, after, "no difference", how + ("; less than 1 %" if apart else ""))
    return Change(before, after, "better" if ratio > 1 else "worse", how)


def memory(a: Row, b: Row) -> Change:
    """Peaks are reproducible: 1 % is a difference."""
    return _less_is_better(peak(a), peak(b), LEAST)


def energy(a: Row, b: Row) -> Change:
    both = a.source == b.source == "predicted"
    return _less_is_better(a.joules_per_image, b.joules_per_image, LEAST if both else LEAST_ENERGY)


def _less_is_better(before: float | None, after: float | None, least: float) -> Change:
    if not before or not after:
        return Change(before, after, "no claim", "not known in both")
    ratio = after / before
    word: Judgement = "no difference" if abs(ratio - 1) < least else "better" if ratio < 1 else "worse"
    return Change(before, after, word, f"{'over' if word != 'no difference' else 'under'} {100 * least:.0f} %")


def _state(row: Row) -> str:
    return FAILED.get(row.status, row.status)


def verdict(a: Study, b: Study, points: Sequence[Point]) -> str:
    """One sentence."""
    counts = {name: sum(point.throughput.judgement == name for point in points) for name in SIGNS}
    said = [f"{n} {'faster' if w == 'better' else 'slower' if w == 'worse' else w}" for w, n in counts.items() if n]
    text = f"{b.name} against {a.name}, {len(points)} common point{'s' if len(points) != 1 else ''}: {listed(said)} in throughput"
    ranked = [
        (p.throughput.ratio, p) for p in points if p.throughput.ratio and p.throughput.judgement in ("better", "worse")
    ]
    for what, found in (
        ("largest gain", max(ranked, key=lambda r: r[0], default=None)),
        ("largest loss", min(ranked, key=lambda r: r[0], default=None)),
    ):
        if found and (found[0] > 1) == (what == "largest gain"):
            text += f"; {what} {100 * (found[0] - 1):+.1f} % ({name(found[1].after)})".replace("-", "−")
    return text + "."


COLOURS = {"better": "s3", "worse": "alarm", "no difference": "s5", "no claim": "s5"}
MOST_BARS = 40


def bars(points: Sequence[Point]) -> list[tuple[str, float, str, str]]:
    """For `bars.changes`: up to 40 points, those that changed most, in their own order."""
    known = [point for point in points if point.throughput.ratio]
    chosen = sorted(known, key=lambda p: -abs(math.log(p.throughput.ratio or 1.0)))[:MOST_BARS]
    kept = {id(point) for point in chosen}
    return [
        (
            name(p.after),
            p.throughput.ratio or 1.0,
            f"{p.throughput.sign} {p.throughput.judgement}",
            COLOURS[p.throughput.judgement],
        )
        for p in known
        if id(p) in kept
    ]


def name(row: Row) -> str:
    nodes = f"{row.nodes:,} node{'s' if row.nodes != 1 else ''}"
    return f"{row.model}, {row.strategy}, {nodes}" + (f", {row.devices:,} devices" if row.nodes == 1 else "")


def as_dict(point: Point) -> dict[str, Any]:
    """For report.json and report.csv: before, after, ratio, judgement and reason of each figure."""
    row = point.after
    out: dict[str, Any] = {field: getattr(row, field) for field in KEY}
    out |= {"source_a": point.before.source, "source_b": row.source}
    out |= {"status_a": point.before.status, "status_b": row.status}
    for what, unit in (("throughput", "images_per_s"), ("memory", "peak_gib"), ("energy", "joules_per_image")):
        change: Change = getattr(point, what)
        out |= {f"{unit}_a": change.before, f"{unit}_b": change.after, f"{what}_ratio": change.ratio}
        out |= {f"{what}_judgement": change.judgement, f"{what}_how": change.how}
    return out
