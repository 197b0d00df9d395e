"""Scatter plots: throughput against memory with the Pareto front, and predictions against the truth."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes as Plot
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from frontier_profiling.report.study.agreement import BAND, Pair
from frontier_profiling.report.study.axes import compact, log_ticks, name_y
from frontier_profiling.report.study.looks import line
from frontier_profiling.report.study.points import SOURCE_ORDER, Axis, by, fastest, label, peak, tensors_peak, trained
from frontier_profiling.report.svg import COLOURS, draw
from frontier_profiling.rows import Row


def front(rows: Sequence[Row]) -> list[Row]:
    """Rows that no other row beats in both throughput and memory, by growing memory."""
    out: list[Row] = []
    for row in sorted(rows, key=lambda row: (peak(row) or 0.0, -(row.images_per_s or 0.0))):
        if not out or (row.images_per_s or 0.0) > (out[-1].images_per_s or 0.0):
            out.append(row)
    return out


def pareto(
    rows: Sequence[Row], axis: Axis, looks: dict[str, tuple[str, str]], *, name: str, title: str, size: tuple[int, int]
) -> str:
    """images/s over GiB a device at the largest x; up and left is better, the star is the fastest. Of several sources the most trustworthy
    one that has two points is drawn: a front of predicted and measured points would compare what was not made the same way.
    """
    known = [row for row in rows if trained(row) and peak(row)]
    if not known:
        return ""
    x = max(axis.of(row) for row in known)
    sources = by([row for row in known if axis.of(row) == x], lambda row: row.source)
    enough = [source for source, found in sources.items() if len(found) > 1]
    if not enough:
        return ""
    known = sources[min(enough, key=SOURCE_ORDER.__getitem__)]
    best, edge = fastest(known), front(known)
    assert best is not None

    def paint(plot: Plot) -> None:
        plot.step(
            [peak(row) for row in edge],
            [row.images_per_s for row in edge],
            where="post",
            color=COLOURS["muted"],
            linewidth=1.2,
            zorder=1,
        )
        for (strategy, source), found in by(known, lambda row: (label(row), row.source)).items():
            look = line(looks[strategy], source) | {"linestyle": "", "markersize": 7.0}
            plot.plot([peak(row) for row in found], [row.images_per_s for row in found], **look)
        plot.plot(
            [peak(best)],
            [best.images_per_s],
            "*",
            color=COLOURS["alarm"],
            markeredgecolor=COLOURS["page"],
            markersize=14,
            zorder=6,
        )
        right = (peak(best) or 0.0) > 0.5 * max(peak(row) or 0.0 for row in known)
        plot.annotate(
            label(best),
            (peak(best) or 0.0, best.images_per_s or 0.0),
            xytext=(-9 if right else 9, 4),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=10,
            fontweight="bold",
        )
        most, need = max(row.images_per_s or 0.0 for row in known), max(peak(row) or 0.0 for row in known)
        limits = {row.memory_limit_gib for row in known if row.memory_limit_gib}
        near = [limit for limit in limits if limit < 3 * need]
        for limit in near:
            plot.axvline(limit, color=COLOURS["alarm"], linewidth=1.2, linestyle=(0, (4, 2)))
            plot.annotate(
                f"limit {limit:.3g}",
                (limit, 0),
                xycoords=plot.get_xaxis_transform(),
                xytext=(-4, 5),
                textcoords="offset points",
                ha="right",
                fontsize=10,
                color=COLOURS["alarm"],
            )
        plot.set_xlim(0, 1.06 * max([need, *near]))
        plot.set_ylim(0, 1.12 * most)
        plot.xaxis.set_major_locator(MaxNLocator(6))
        plot.yaxis.set_major_locator(MaxNLocator(6))
        plot.yaxis.set_major_formatter(FuncFormatter(compact))
        plot.set_xlabel("peak memory, GiB a device")
        name_y(plot, f"images/s, {axis.say(x)}")

    return draw(name, f"Throughput against memory, {title}", *size, paint)


def agreement(
    pairs: Sequence[Pair], looks: dict[str, tuple[str, str]], *, name: str, size: tuple[int, int], memory: bool = False
) -> str:
    """Predicted over true images/s (or with `memory`, peak GiB) a device on log axes, with the diagonal and the band of ±10 %."""
    if not pairs:
        return ""
    unit = "peak GiB a device" if memory else "images/s a device"

    def of(row: Row) -> float:
        return (tensors_peak(row) or 0.0) if memory else (row.images_per_s or 0.0) / row.devices

    def paint(plot: Plot) -> None:
        points = [(of(p.true), of(p.predicted), p) for p in pairs if of(p.true) and of(p.predicted)]
        values = [v for x, y, _ in points for v in (x, y)]
        low, high = min(values) / 1.15, max(values) * 1.15
        ends = [low, high]
        plot.set_xscale("log")
        plot.set_yscale("log")
        plot.fill_between(
            ends,
            [v * (1 - BAND) for v in ends],
            [v * (1 + BAND) for v in ends],
            color=COLOURS["muted"],
            alpha=0.18,
            linewidth=0,
        )
        plot.plot(ends, ends, color=COLOURS["muted"], linewidth=1.1)
        for (strategy, source), found in by(points, lambda q: (label(q[2].true), q[2].true.source)).items():
            look = line(looks[strategy], source) | {"linestyle": "", "markersize": 5.5}
            plot.plot([x for x, _, _ in found], [y for _, y, _ in found], **look)
        for side in (plot.xaxis, plot.yaxis):
            side.set_major_locator(FixedLocator(log_ticks(low, high)))
            side.set_minor_locator(NullLocator())
            side.set_major_formatter(FuncFormatter(compact))
        plot.set_xlim(low, high)
        plot.set_ylim(low, high)
        sources = sorted({p.true.source for p in pairs})
        plot.set_xlabel(f"{' or '.join(sources)} {unit}")
        name_y(plot, f"predicted {unit}")

    return draw(name, f"Predicted against measured or published {unit}", *size, paint)
