"""Axes of a scaling study: node counts as they are, numbers without powers of ten, labels that keep apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from frontier_profiling.report.svg import COLOURS

MOST_TICKS = 9


def compact(value: float, _: int = 0) -> str:
    """500 · 1,500 · 20 k · 1.5 M."""
    for scale, unit in ((1e9, " B"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= scale:
            return f"{value / min(scale, 1e3 if unit == ' k' else scale):.4g}{unit}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def log_ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers in [low, high], closer ones where the range is short."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    choices = ([1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7], [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9])
    found: list[float] = []
    for mantissas in choices:
        found = [m * 10.0**d for d in decades for m in mantissas if low <= m * 10.0**d <= high]
        if len(found) >= 3:
            break
    step = math.ceil(len(found) / 7) if found else 1
    return found[::step]


def scale_x(axes: Axes, values: Sequence[int], name: str, room: float = 1.0) -> None:
    """A log axis whose ticks are the numbers of nodes (or devices) themselves."""
    values = sorted(set(values))
    axes.set_xscale("log")
    pad = (values[-1] / values[0]) ** 0.05 if len(values) > 1 else 2.0
    axes.set_xlim(values[0] / pad, values[-1] * pad)
    step = math.ceil(len(values) / (MOST_TICKS * room))
    axes.xaxis.set_major_locator(FixedLocator(values[::-1][::step][::-1]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    axes.set_xlabel(name)


def log_y(axes: Axes, values: Sequence[float], title: str, room_above: float = 0.0) -> None:
    low, high = min(values), max(values)
    pad = max((high / low) ** 0.06, 1.08)
    axes.set_yscale("log")
    axes.set_ylim(low / pad, high * pad * (1 + room_above))
    axes.yaxis.set_major_locator(FixedLocator(log_ticks(*axes.get_ylim())))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(compact))
    name_y(axes, title)


def name_y(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", color=COLOURS["muted"], fontsize=10.5)
    axes.tick_params(length=3, width=0.8)


def spread_out(places: Sequence[float], least: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Places moved as little as needed to stand at least `least` apart between `low` and `high`, order kept."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    least = min(least, (high - low) / max(1, len(places) - 1)) if len(places) > 1 else least
    out = list(places)
    groups: list[list[int]] = []
    for i in order:
        groups.append([i])
        while True:
            middle = [sum(places[j] for j in g) / len(g) for g in groups]
            half = [least * (len(g) - 1) / 2 for g in groups]
            middle = [min(max(m, low + h), high - h) for m, h in zip(middle, half, strict=True)]
            if len(groups) < 2 or middle[-1] - half[-1] - (middle[-2] + half[-2]) >= least - 1e-12:
                break
            groups[-2:] = [groups[-2] + groups[-1]]
    for group, m, h in zip(groups, middle if groups else [], half if groups else [], strict=True):
        for k, i in enumerate(group):
            out[i] = m - h + k * least
    return out


def end_labels(axes: Axes, entries: Sequence[tuple[float, str, str]], height: int) -> None:
    """Texts right of the plot, each beside its curve's last y (value, text, colour), moved apart where they would touch."""
    transform = axes.transData + axes.transAxes.inverted()
    at = [float(transform.transform((axes.get_xlim()[1], y))[1]) for y, _, _ in entries]
    # 13 px a line; titles, ticks and the axis' name take about 75 px of the height.
    for place, (_, text, colour) in zip(spread_out(at, 13 / (height - 75)), entries, strict=True):
        axes.annotate(
            text,
            (1.0, place),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
            color=COLOURS[colour],
            annotation_clip=False,
        )
