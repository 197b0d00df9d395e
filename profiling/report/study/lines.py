"""Drawings over the number of nodes (or devices) and over the size of the model, each an inline SVG."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes as Plot
from matplotlib.ticker import FuncFormatter

from frontier_profiling.report.study.axes import end_labels, log_y, name_y, scale_x
from frontier_profiling.report.study.looks import line
from frontier_profiling.report.study.points import Axis, Panel, by, fastest, label, model_order, trained
from frontier_profiling.report.study.scaling import Curve
from frontier_profiling.report.svg import COLOURS, draw
from frontier_profiling.report.wording import percent
from frontier_profiling.rows import Row

Looks = dict[str, tuple[str, str]]


def _lost(plot: Plot, curves: Sequence[Curve], axis: Axis, looks: Looks) -> None:
    """Crosses on the axis where a curve has points that did not end: a gap has a reason."""
    shown: dict[int, int] = {}
    for curve in curves:
        for row in curve.lost:
            x = axis.of(row)
            plot.plot(
                [x],
                [0.035 + 0.05 * shown.get(x, 0)],
                "x",
                transform=plot.get_xaxis_transform(),
                color=COLOURS[looks[curve.label][0]],
                markersize=5.5,
                markeredgewidth=1.8,
                zorder=5,
            )
            shown[x] = shown.get(x, 0) + 1


def _ends(
    plot: Plot,
    marks: Sequence[tuple[float, Curve]],
    axis: Axis,
    looks: Looks,
    size: tuple[int, int],
    ideal: float | None = None,
) -> None:
    """Efficiencies right of the plot; a curve that ends before it has its own beside its last point."""
    last = max(axis.of(curve.rows[-1]) for _, curve in marks)
    named = size[0] > 600
    full = [(y, c) for y, c in marks if axis.of(c.rows[-1]) == last]
    said = {c.label for _, c in full}
    entries = [
        (
            y,
            f"{c.label} {percent(c.efficiency()[-1], 0)}" if named else percent(c.efficiency()[-1], 0),
            looks[c.label][0],
        )
        for y, c in full
    ]
    end_labels(plot, [*entries, *([(ideal, "ideal", "muted")] if ideal else [])], size[1])
    for y, c in marks:
        if axis.of(c.rows[-1]) < last and c.label not in said:
            plot.annotate(
                percent(c.efficiency()[-1], 0),
                (axis.of(c.rows[-1]), y),
                xytext=(6, -9),
                textcoords="offset points",
                fontsize=10,
                color=COLOURS[looks[c.label][0]],
            )


def throughput(
    curves: Sequence[Curve], axis: Axis, looks: Looks, *, name: str, title: str, size: tuple[int, int]
) -> str:
    """images/s over the axis, log-log, with the ideal line through the best first point and efficiencies at the ends."""

    def paint(plot: Plot) -> None:
        values = [row.images_per_s or 0.0 for curve in curves for row in curve.rows]
        xs = [axis.of(row) for curve in curves for row in (*curve.rows, *curve.lost)]
        scale_x(plot, xs, axis.name, size[0] / 380)
        start = min(curves, key=lambda c: (axis.of(c.rows[0]), -(c.rows[0].images_per_s or 0)))
        first, last = start.rows[0], max((c.rows[-1] for c in curves), key=axis.of)
        ends = [first.images_per_s or 0.0, (first.images_per_s or 0.0) * last.devices / first.devices]
        log_y(plot, [*values, *ends], "images/s")
        plot.plot(
            [axis.of(first), axis.of(last)],
            ends,
            color=COLOURS["muted"],
            linewidth=1.1,
            linestyle=(0, (1, 2)),
            zorder=1,
        )
        for curve in curves:
            x, y = [axis.of(row) for row in curve.rows], [row.images_per_s for row in curve.rows]
            plot.plot(x, y, **line(looks[curve.label], curve.source))
        _lost(plot, curves, axis, looks)
        marks = [(c.rows[-1].images_per_s or 0.0, c) for c in curves]
        _ends(plot, marks, axis, looks, size, ideal=ends[1])

    return draw(name, f"Throughput over {axis.name}, {title}", *size, paint)


def efficiency(
    curves: Sequence[Curve], axis: Axis, looks: Looks, *, name: str, title: str, size: tuple[int, int]
) -> str:
    """Efficiency in percent against each curve's own smallest point."""

    def paint(plot: Plot) -> None:
        scale_x(plot, [axis.of(row) for c in curves for row in (*c.rows, *c.lost)], axis.name, size[0] / 380)
        tops = [100 * value for curve in curves for value in curve.efficiency()]
        plot.set_ylim(0, max(110.0, 1.06 * max(tops)))
        plot.axhline(100, color=COLOURS["muted"], linewidth=1.1, linestyle=(0, (1, 2)), zorder=1)
        for curve in curves:
            x = [axis.of(row) for row in curve.rows]
            plot.plot(x, [100 * v for v in curve.efficiency()], **line(looks[curve.label], curve.source))
        _lost(plot, curves, axis, looks)
        name_y(plot, "weak-scaling efficiency, %")
        _ends(plot, [(100 * c.efficiency()[-1], c) for c in curves], axis, looks, size)

    return draw(name, f"Weak-scaling efficiency over {axis.name}, {title}", *size, paint)


def model_sizes(panels: Sequence[Panel], axis: Axis, x: int, looks: Looks, *, name: str, size: tuple[int, int]) -> str:
    """images/s a device over the parameters of the model, one line a strategy: its fastest setting at `x`."""
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    ticks: dict[float, str] = {}
    for panel in panels:
        parameters = next((row.parameters for row in panel.rows if row.parameters), None) or 1e9 * model_order(
            panel.title
        )
        here = [row for row in panel.rows if axis.of(row) == x and trained(row)]
        for key, rows in by(here, lambda row: (row.source, label(row))).items():
            top = fastest(rows)
            if top is not None:
                lines.setdefault(key, []).append((float(parameters), (top.images_per_s or 0.0) / top.devices))
                ticks[float(parameters)] = panel.rows[0].model.removeprefix("vit_")
    if len(ticks) < 2:
        return ""

    def paint(plot: Plot) -> None:
        plot.set_xscale("log")
        log_y(plot, [y for points in lines.values() for _, y in points], "images/s a device")
        for (source, strategy), points in lines.items():
            px, py = zip(*sorted(points), strict=True)
            plot.plot(px, py, **line(looks[strategy], source))
        plot.set_xlim(min(ticks) / 1.3, max(ticks) * 1.3)
        plot.minorticks_off()
        plot.set_xticks(list(ticks), list(ticks.values()))
        plot.set_xlabel("model, by its number of parameters")

    return draw(name, f"Throughput over model size at {axis.say(x)}", *size, paint)


def published(
    ours: Sequence[Row],
    theirs: Sequence[Row],
    axis: Axis,
    looks: Looks,
    *,
    name: str,
    title: str,
    size: tuple[int, int],
) -> str:
    """Our curves and the published ones, images/s a device over the axis; strategies that both have."""
    common = {label(row) for row in ours} & {label(row) for row in theirs}
    rows = [row for row in (*ours, *theirs) if trained(row) and label(row) in common]
    lines = by(rows, lambda row: (label(row), row.source))
    if not common or not rows:
        return ""

    def paint(plot: Plot) -> None:
        scale_x(plot, [axis.of(row) for row in rows], axis.name, size[0] / 380)
        log_y(plot, [(row.images_per_s or 0.0) / row.devices for row in rows], "images/s a device")
        for (strategy, source), found in lines.items():
            best = [fastest(group) for _, group in sorted(by(found, axis.of).items())]
            points = [(axis.of(row), (row.images_per_s or 0.0) / row.devices) for row in best if row]
            plot.plot(*zip(*points, strict=True), **line(looks[strategy], source))

    return draw(name, f"Ours and published throughput, {title}", *size, paint)


def rank_spread(rows: Sequence[Row], axis: Axis, looks: Looks, *, name: str, title: str, size: tuple[int, int]) -> str:
    """The slowest rank's own work over the median rank's, measured points only."""
    known = [row for row in rows if row.rank_spread]
    if not known:
        return ""

    def paint(plot: Plot) -> None:
        scale_x(plot, [axis.of(row) for row in known], axis.name, size[0] / 380)
        for (strategy, source), found in by(known, lambda row: (label(row), row.source)).items():
            look = line(looks[strategy], source)
            plot.plot([axis.of(row) for row in found], [row.rank_spread for row in found], **(look | {"linestyle": ""}))
        plot.axhline(1, color=COLOURS["muted"], linewidth=1.1, linestyle=(0, (1, 2)), zorder=1)
        plot.set_ylim(0.99, max(1.05, 1 + 1.15 * (max(row.rank_spread or 1 for row in known) - 1)))
        name_y(plot, "slowest rank ÷ median rank")
        plot.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.4g}"))

    return draw(name, f"Spread of the ranks, {title}", *size, paint)
