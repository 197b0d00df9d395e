"""The best point at each size of the machine, and the sentences that say so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from frontier_profiling.report.study.delta import separated
from frontier_profiling.report.study.limits import limit
from frontier_profiling.report.study.points import (
    FAILED,
    SETTINGS,
    SOURCE_ORDER,
    Axis,
    Panel,
    by,
    fastest,
    label,
    peak,
    settings,
    trained,
    varying,
)
from frontier_profiling.report.study.scaling import efficiencies
from frontier_profiling.report.wording import count, listed, percent, plural, significant
from frontier_profiling.rows import Row

MILLION = 1_000_000
LEVEL = 0.0005
"""A lead below this is none."""


@dataclass(frozen=True)
class Best:
    """The fastest point of a panel at one x, of the most trustworthy source that has any there."""

    panel: str
    x: int
    row: Row
    second: Row | None
    efficiency: float | None
    """Weak-scaling efficiency against the smallest point of the same settings."""
    with_settings: str
    ended: int
    points: int

    @property
    def lead(self) -> float | None:
        """How far the next strategy is behind: 0.02 is 2 %."""
        if self.second is None or not self.second.images_per_s:
            return None
        return (self.row.images_per_s or 0.0) / self.second.images_per_s - 1

    @property
    def node_hours(self) -> tuple[float, int] | None:
        """(node-hours, for how many images): the study's samples, or a million where it names none."""
        row = self.row
        if row.samples and row.node_hours is not None:
            return row.node_hours, row.samples
        samples = row.samples or MILLION
        return (samples / row.images_per_s / 3600 * row.nodes, samples) if row.images_per_s else None


def best_points(panel: Panel, axis: Axis) -> list[Best]:
    """One for each x at which a point ended."""
    out = []
    places = by(panel.rows, lambda row: (axis.of(row), label(row), row.source)).values()
    chosen = {name for found in places for name in varying(found)}
    names = [name for name in SETTINGS if name in chosen]
    weak = efficiencies(panel.rows, axis, "weak")
    for x, rows in sorted(by(panel.rows, axis.of).items()):
        ended = [row for row in rows if trained(row)]
        if not ended:
            continue
        source = min((row.source for row in ended), key=SOURCE_ORDER.__getitem__)
        rivals = [row for row in ended if row.source == source]
        top = fastest(rivals)
        assert top is not None
        second = fastest([row for row in rivals if label(row) != label(top)])
        points = len({(label(row), settings(row, names)) for row in rows})
        done = len({(label(row), settings(row, names)) for row in ended})
        out.append(Best(panel.title, x, top, second, weak.get(id(top)), settings(top, names), done, points))
    return out


def spans(found: Sequence[Best], axis: Axis) -> str:
    """`full_shard at 1 to 4 nodes, hybrid_1 at 8 to 128 nodes`."""
    runs: list[tuple[str, list[int]]] = []
    for best in found:
        name = label(best.row)
        if runs and runs[-1][0] == name:
            runs[-1][1].append(best.x)
        else:
            runs.append((name, [best.x]))

    def where(values: list[int]) -> str:
        return f"{values[0]:,} to {values[-1]:,}" if len(values) > 1 else f"{values[0]:,}"

    said = [f"{name} at {where(values)}" for name, values in runs]
    plain = axis.name if runs[-1][1][-1] != 1 else axis.name[:-1]
    return f"{', '.join(said)} {plain}"


def cost(best: Best) -> str:
    """`4.4 node-hours for 1.28 M images, 3.2 J/image`, or what of that is not known."""
    row = best.row
    energy = f"{significant(row.joules_per_image)} J/image" if row.joules_per_image else f"energy {unknown(row)}"
    hours, samples = best.node_hours or (math.nan, 0)
    return f"{significant(hours)} node-hours for {images(samples)} images, {energy}"


def images(n: int) -> str:
    """1,280,000 -> 1.28 M."""
    number, _, unit = count(n).partition(" ")
    return f"{number.rstrip('0').rstrip('.')} {unit}" if "." in number else count(n)


def _within_range(a: Row, b: Row) -> bool:
    """Both predicted, and either one's range of the step time holds the other's prediction, at equal batch."""
    if not a.source == b.source == "predicted" or not (a.images_per_s and b.images_per_s and a.step_s):
        return False
    ratio = a.images_per_s / b.images_per_s
    return a.step_s_high is not None and a.step_s_high / a.step_s >= ratio


def unknown(row: Row) -> str:
    return {"measured": "not measured", "predicted": "not predicted", "published": "not published"}[row.source]


def about(best: Best, axis: Axis) -> str:
    """The point in words: speed, source, efficiency, lead, limit."""
    row = best.row
    text = f"{significant(row.images_per_s or 0.0)} images/s ({row.source})"
    if best.efficiency is not None and best.x > axis.values[0]:
        text += f" at {percent(best.efficiency, 0)} weak-scaling efficiency"
    if best.lead is not None and best.second is not None:
        if best.lead < LEVEL:
            text += f", level with {label(best.second)}"
        elif separated(row, best.second) is False:
            text += f", not separated from {label(best.second)}"
        else:
            text += f", {percent(best.lead)} ahead of {label(best.second)}"
            if _within_range(row, best.second):
                text += " (within the prediction's uncertainty)"
            elif row.source == "measured" and separated(row, best.second) is None:
                text += " (without an interval to judge it by)"
    found = limit(row)
    if found.word:
        text += f"; limited by {found.word}" + (f", {found.why}" if found.why else "")
    elif not row.step_parts_s:
        text += f"; what limits it is {unknown(row)}"
    return text


def winner(best: Best) -> str:
    """The fastest strategy, and the one that is level with it where there is one."""
    level = best.second is not None and best.lead is not None and best.lead < LEVEL
    return f"{label(best.row)} (level with {label(best.second)})" if level and best.second else label(best.row)


def verdict(found: dict[str, list[Best]], rows: Sequence[Row], axis: Axis) -> str:
    """One sentence for the front page (two where several node counts were tried)."""
    known = {title: best for title, best in found.items() if best}
    if not known:
        return nothing_ended(rows)
    tops = {title: best[-1] for title, best in known.items()}
    first = next(iter(tops.values()))
    systems = listed(sorted({best.row.system for best in tops.values()}))
    if len(known) == 1:
        where = f"On {axis.say(first.x)} of {systems}"
        named = label(first.row) + (f" with {first.with_settings}" if first.with_settings else "")
        verb = "is the fastest" if first.points > 1 else "was tried"
        text = f"{where}, {named} {verb} for {first.panel}: {about(first, axis)}. Cost: {cost(first)}."
        each = next(iter(known.values()))
        if len(each) > 1 and len({label(best.row) for best in each}) > 1:
            text += f" The fastest by size: {spans(each, axis)}."
        elif len(each) > 1 and any(best.points > 1 for best in each):
            text += " It is the fastest at every size tried."
        return text
    x = max(best.x for best in tops.values())
    at_top = [best for best in tops.values() if best.x == x]
    winners = by(at_top, winner)
    said = listed([f"{name} for {listed([best.panel for best in group])}" for name, group in winners.items()])
    sources = listed(sorted({best.row.source for best in at_top}, key=SOURCE_ORDER.__getitem__))
    text = f"On {axis.say(x)} of {systems} the fastest is {said} ({sources})"
    limits = by([best for best in at_top if limit(best.row).word], lambda best: limit(best.row).word)
    if limits:
        text += f"; {listed([f'{name} limits {_all(group, at_top)}' for name, group in limits.items()])}"
    hardest = at_top[-1]
    text += f". {hardest.panel}, the largest, runs at {significant(hardest.row.images_per_s or 0.0)} images/s; cost: {cost(hardest)}."
    lost = [title for title in found if title not in known]
    return text + (f" No point of {listed(lost)} ended." if lost else "")


def _all(group: Sequence[Best], every: Sequence[Best]) -> str:
    if len(group) == len(every):
        return "all of them" if len(every) > 2 else "both" if len(every) == 2 else "it"
    return listed([best.panel for best in group])


def nothing_ended(rows: Sequence[Row]) -> str:
    """`No point of this study ended: 6 of 6 out of memory.`"""
    states = by([row for row in rows if row.status != "done"], lambda row: row.status)
    said = [f"{len(group)} of {len(rows)} {FAILED.get(status, status)}" for status, group in states.items()]
    done = sum(row.status == "done" for row in rows)
    if done:
        said.append(f"{plural(done, 'point')} ended without a speed of training")
    text = f"No point of this study can be ranked: {listed(said)}."
    needs = [(peak(row) or 0.0, row) for row in rows if row.status == "oom" and peak(row) and row.memory_limit_gib]
    if needs:
        need, row = min(needs, key=lambda pair: pair[0])
        text += f" The smallest of them, {label(row)}, needs {significant(need)} GiB a device of {significant(row.memory_limit_gib or 0)} GiB."
    return text


def as_dict(best: Best) -> dict[str, Any]:
    """For report.json."""
    hours = best.node_hours
    return {
        "panel": best.panel,
        "x": best.x,
        "strategy": best.row.strategy,
        "tensor": best.row.tensor,
        "settings": best.with_settings,
        "source": best.row.source,
        "images_per_s": best.row.images_per_s,
        "weak_efficiency": best.efficiency,
        "second": label(best.second) if best.second else None,
        "lead": best.lead,
        "limit": limit(best.row).word or None,
        "why": limit(best.row).why or None,
        "node_hours": hours[0] if hours else None,
        "samples": hours[1] if hours else None,
        "joules_per_image": best.row.joules_per_image,
    }
