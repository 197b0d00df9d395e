"""Power over time of the points that were measured here, from their runs' metrics.jsonl."""

from __future__ import annotations

import json
import math
from pathlib import Path

from matplotlib.axes import Axes as Plot
from matplotlib.ticker import FuncFormatter, MaxNLocator

from frontier_profiling.report.study.axes import compact, name_y
from frontier_profiling.report.study.looks import line
from frontier_profiling.report.study.points import Axis, Panel, fastest, label
from frontier_profiling.report.study.read import Study
from frontier_profiling.report.svg import draw
from frontier_profiling.rows import Row

MOST_POINTS = 400
Trace = tuple[list[float], list[float]]


def trace(study: Study, row: Row) -> Trace | None:
    """(seconds since the first line, watts) of one measured row; None where its run tells no power.

    The row's path must lie inside the study: a rows.json from elsewhere opens no other file.
    """
    root = study.folder.resolve()
    folder = (root / row.path).resolve() if row.path else None
    if row.source != "measured" or folder is None or not folder.is_relative_to(root):
        return None
    files = (folder / "run" / "metrics.jsonl", folder / "metrics.jsonl")
    file = next((file for file in files if file.is_file()), None)
    return _read(file) if file else None


def _read(file: Path) -> Trace | None:
    seconds, watts = [], []
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            node = json.loads(text)
            at, power = float(node["time"]), float(node["power_w"])
        except (ValueError, KeyError, TypeError):
            continue
        if math.isfinite(at) and math.isfinite(power):
            seconds.append(at)
            watts.append(power)
    if len(seconds) < 2:
        return None
    step = math.ceil(len(seconds) / MOST_POINTS)
    return [at - seconds[0] for at in seconds[::step]], watts[::step]


def power(
    study: Study, panel: Panel, axis: Axis, looks: dict[str, tuple[str, str]], name: str, size: tuple[int, int]
) -> str:
    """The power of the first node at the largest x that has traces, the fastest point of each strategy."""
    found: dict[int, dict[str, list[Row]]] = {}
    traces: dict[int, Trace] = {}
    for row in panel.rows:
        one = trace(study, row)
        if one is not None:
            traces[id(row)] = one
            found.setdefault(axis.of(row), {}).setdefault(label(row), []).append(row)
    if not found:
        return ""
    x = max(found)

    def paint(plot: Plot) -> None:
        highest = 0.0
        for strategy, rows in found[x].items():
            at, watts = traces[id(fastest(rows) or rows[0])]
            plot.plot(at, watts, **(line(looks[strategy], "measured") | {"marker": None}))
            highest = max(highest, *watts)
        plot.set_ylim(0, 1.1 * highest or None)
        plot.xaxis.set_major_locator(MaxNLocator(6))
        plot.yaxis.set_major_formatter(FuncFormatter(compact))
        plot.set_xlabel("seconds")
        name_y(plot, f"watts, {axis.say(x)}")

    return draw(name, f"Power over time, {panel.title}", *size, paint)
