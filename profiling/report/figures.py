"""The drawings of a report. Each returns an inline SVG, or "" where there is nothing measured to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from frontier_profiling.report import probes
from frontier_profiling.report.energy import training_seconds_at
from frontier_profiling.report.probes import encoder_name
from frontier_profiling.report.read import ProbeRow, Run
from frontier_profiling.report.summary import PARTS, Spread, not_finite, restarts, skipped_steps
from frontier_profiling.report.svg import COLOURS, SERIES, draw
from frontier_profiling.report.wording import count, duration, significant

MOST_POINTS = 1000
LOGGABLE = ("loss", "grad_norm")
LOG_FROM = 12.0
"""A curve is drawn on a log axis where its values span more than this ratio (99th over 1st percentile)."""


def smoothing_window(points: int) -> int:
    """Points of the running median: a thirtieth of the curve, odd, at least 1."""
    return max(1, points // 30) | 1


def running_median(values: np.ndarray, window: int) -> np.ndarray:
    """Centred running median; nan are left out, the ends use what there is."""
    half = window // 2
    out = np.full(len(values), np.nan)
    for i in range(len(values)):
        piece = values[max(0, i - half) : i + half + 1]
        piece = piece[np.isfinite(piece)]
        if piece.size:
            out[i] = np.median(piece)
    return out


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(x, median, lowest, highest) over at most `MOST_POINTS` equal runs of points; all three are y where it
    is short.
    """
    y = np.where(np.isfinite(y), y, np.nan)
    if len(x) <= MOST_POINTS:
        return x, y, y, y
    pieces = [piece for piece in np.array_split(np.arange(len(x)), MOST_POINTS) if np.isfinite(y[piece]).any()]
    middle, low, high = (
        np.array([reduce(y[piece]) for piece in pieces]) for reduce in (np.nanmedian, np.nanmin, np.nanmax)
    )
    return np.array([x[piece].mean() for piece in pieces]), middle, low, high


def _needs_log(values: np.ndarray) -> bool:
    values = values[np.isfinite(values)]
    if values.size < 2 or values.min() <= 0:
        return False
    low, high = np.percentile(values, [1, 99])
    return bool(high / low > LOG_FROM)


def _log_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high / low < 100 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _tick(value: float, _: int) -> str:
    """A tick's number without a power of ten set aside: 12,500 · 0.5 · 7e−5."""
    if value != 0 and abs(value) < 1e-3:
        return significant(value)
    return f"{value:,.10g}" if abs(value) < 1e6 else count(value)


def _plain_axes(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_title(y_label, loc="left", color=COLOURS["text"])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    axes.grid(visible=False, axis="x")
    axes.tick_params(length=3, width=0.8)


def _mark_restarts(axes: Axes, run: Run, labels: bool) -> None:
    for index, resumed, at in restarts(run):
        if at is None:
            continue
        axes.axvline(at, color=COLOURS["muted"], linewidth=1.1, linestyle=(0, (4, 3)), zorder=1.5)
        if labels:
            text = f"start {index + 1}, from step {resumed:,}" if resumed is not None else f"start {index + 1}, anew"
            axes.annotate(
                text,
                (at, 1.0),
                xycoords=axes.get_xaxis_transform(),
                xytext=(5, 0),
                textcoords="offset points",
                va="top",
                fontsize=10.5,
                color=COLOURS["muted"],
            )


def _beside(axes: Axes, x: float, y: float, text: str, bold: bool = False) -> None:
    """Text to the right of a bar's end."""
    weight = "bold" if bold else "normal"
    axes.annotate(
        text,
        (x, y),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontweight=weight,
        annotation_clip=False,
    )


def _mark_events(axes: Axes, run: Run) -> None:
    for steps, marker, height in ((skipped_steps(run), "v", 0.03), (not_finite(run), "x", 0.09)):
        if len(steps):
            axes.plot(
                steps,
                np.full(len(steps), height),
                marker,
                transform=axes.get_xaxis_transform(),
                color=COLOURS["alarm"],
                markersize=6,
                clip_on=False,
                zorder=5,
            )


def curve(run: Run, column: str, title: str, *, name: str, width: int, height: int, smooth: bool, events: bool) -> str:
    """One logged column over the step: every point thin, its running median thick (`smooth`), restarts as
    dashed lines.

    `events` marks skipped steps and losses that are not finite on the axis and names the restarts.
    """
    y = run.columns[column]
    if not np.isfinite(y).any():
        return ""
    x, middle, low, high = thin(run.columns["step"], y)
    window = smoothing_window(len(x))

    def paint(axes: Axes) -> None:
        if smooth and window > 1:
            if len(x) < len(y):
                axes.fill_between(x, low, high, color=COLOURS["s1"], alpha=0.22, linewidth=0)
            else:
                axes.plot(x, middle, color=COLOURS["s1"], alpha=0.35, linewidth=0.9)
            axes.plot(x, running_median(middle, window), color=COLOURS["s1"])
        else:
            axes.plot(x, middle, color=COLOURS["s1"], marker="o" if np.isfinite(middle).sum() < 3 else None)
        log = column in LOGGABLE and _needs_log(y)
        if log:
            _log_axis(axes)
        elif column in ("images_per_s", "memory_gib", "lr"):
            axes.set_ylim(0, 1.12 * float(np.nanmax(high)) or None)
        _mark_restarts(axes, run, labels=events)
        if events:
            _mark_events(axes, run)
        _plain_axes(axes, "step", f"{title} (log axis)" if log else title)

    return draw(name, f"{title} over the step", width, height, paint)


def loss_parts(run: Run, *, name: str, width: int, height: int) -> str:
    """Running medians of the parts of the loss that were logged beside it; "" where there are fewer than two."""
    known = {part: y for part, y in run.terms.items() if np.isfinite(y).any()}
    if len(known) < 2:
        return ""
    log = _needs_log(np.concatenate(list(known.values())))

    def paint(axes: Axes) -> None:
        for i, (part, y) in enumerate(known.items()):
            x, middle, _, _ = thin(run.columns["step"], y)
            smooth = running_median(middle, smoothing_window(len(x)))
            style = ("-", (0, (5, 2)), (0, (1.5, 1.5)))[(i // len(SERIES)) % 3]
            marker = "o" if np.isfinite(smooth).sum() < 3 else None
            axes.plot(x, smooth, color=COLOURS[SERIES[i % len(SERIES)]], linestyle=style, marker=marker, label=part)
        if log:
            _log_axis(axes)
        _mark_restarts(axes, run, labels=False)
        _plain_axes(axes, "step", "parts of the loss (log axis)" if log else "parts of the loss")
        axes.legend(loc="upper right", handlelength=1.8)

    return draw(name, "Parts of the loss over the step", width, height, paint)


def power_trace(run: Run, *, name: str, width: int, height: int) -> str:
    """Power of the whole job over the time in training, one point a reading."""
    watts, seconds = run.columns["power_w"], training_seconds_at(run)
    known = np.isfinite(watts) & np.isfinite(seconds)
    if not known.any():
        return ""
    scale, unit = next(((s, u) for s, u in ((3600, "h"), (60, "min")) if seconds[known][-1] > 2 * s), (1, "s"))
    x, middle, low, high = thin(seconds[known] / scale, watts[known])

    def paint(axes: Axes) -> None:
        if len(x) < known.sum():
            axes.fill_between(x, low, high, color=COLOURS["s1"], alpha=0.22, linewidth=0)
        axes.plot(x, middle, color=COLOURS["s1"], marker="o" if len(x) < 3 else None)
        axes.set_ylim(0, 1.12 * float(high.max()))
        _plain_axes(axes, f"time in training, {unit}", "power, W")
        axes.xaxis.set_major_locator(MaxNLocator(6))

    return draw(name, "Power over the time in training", width, height, paint)


def step_split(rows: Sequence[tuple[str, Mapping[str, Spread]]], *, name: str, width: int) -> str:
    """One stacked bar of median seconds per row; the whisker spans the p10 and p90 of the whole step."""
    rows = [(label, split) for label, split in rows if any(split[part].known for part in PARTS)]
    if not rows:
        return ""

    def paint(axes: Axes) -> None:
        longest = 0.0
        for i, (_, split) in enumerate(rows):
            left = 0.0
            for part, colour in zip(PARTS, SERIES, strict=False):
                size = split[part].median if split[part].known else 0.0
                axes.barh(
                    i,
                    size * 1e3,
                    left=left * 1e3,
                    height=0.56,
                    color=COLOURS[colour],
                    label=part if i == 0 else None,
                )
                left += size
            whole = split["step"]
            end = max(left, whole.p90 if whole.known else 0.0)
            if whole.known:
                error = [
                    [max(0.0, whole.median - whole.p10) * 1e3],
                    [max(0.0, whole.p90 - whole.median) * 1e3],
                ]
                axes.errorbar(
                    whole.median * 1e3,
                    i,
                    xerr=error,
                    fmt="none",
                    ecolor=COLOURS["text"],
                    elinewidth=1.4,
                    capsize=4,
                )
                _beside(axes, end * 1e3, i, duration(whole.median), bold=True)
            longest = max(longest, end)
        axes.set_xlim(0, longest * 1e3 * 1.16)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.set_yticks(range(len(rows)), [label for label, _ in rows])
        axes.tick_params(axis="y", length=0, labelcolor=COLOURS["text"])
        axes.tick_params(axis="x", length=3)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(FuncFormatter(_tick))
        axes.set_xlabel("milliseconds of a step")
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=len(PARTS),
            handlelength=1.0,
            handleheight=1.0,
            columnspacing=1.4,
            borderaxespad=0.2,
        )

    return draw(name, "Step time by part", width, 96 + 44 * len(rows), paint)


def probe_bars(rows: Sequence[tuple[str, ProbeRow]], *, name: str, width: int) -> str:
    """Accuracy, or another share of 1, in percent with 95 % intervals: one bar per (label, row), one colour per encoder."""
    if not rows:
        return ""
    metrics = " or ".join(dict.fromkeys(probes.metric_name(row) for _, row in rows))
    guess = probes.chance([row for _, row in rows])
    encoders = sorted({row.encoder for _, row in rows}, key=lambda e: (e != probes.PRETRAINED, e))
    colour = dict(zip(encoders, (*SERIES, *SERIES), strict=False))

    def paint(axes: Axes) -> None:
        place, previous, places = 0.0, None, []
        for label, row in rows:
            place += 0.0 if previous is None else 1.0 if label == previous else 1.45
            previous = label
            places.append(place)
            value = 100 * row.score
            axes.barh(place, value, height=0.72, color=COLOURS[colour[row.encoder]], alpha=0.85)
            end = value
            if row.ci95:
                low, high = (100 * bound for bound in row.ci95)
                axes.errorbar(
                    value,
                    place,
                    xerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
                    fmt="none",
                    ecolor=COLOURS["text"],
                    elinewidth=1.4,
                    capsize=4,
                )
                end = max(end, high)
            _beside(axes, end, place, f"{value:.1f}")
        if guess is not None:
            axes.axvline(100 * guess, color=COLOURS["muted"], linewidth=1.1, linestyle=(0, (1.5, 2)))
            axes.annotate(
                f"chance {100 * guess:.3g}",
                (100 * guess, 1.0),
                xycoords=axes.get_xaxis_transform(),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=10.5,
                color=COLOURS["muted"],
            )
        axes.set_yticks(places, [f"{label} · {encoder_name(row.encoder)}" for label, row in rows])
        axes.set_ylim(places[-1] + 0.7, -0.7)
        axes.set_xlim(0, 100)
        axes.tick_params(axis="y", length=0, labelcolor=COLOURS["text"])
        axes.tick_params(axis="x", length=3)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"{metrics} on the test split, %")

    return draw(name, f"Probe {metrics} with 95 % confidence intervals", width, 78 + 27 * len(rows), paint)


def overlaid_loss(runs: Sequence[tuple[str, Run]], *, over: str, name: str, width: int, height: int) -> str:
    """Running medians of the loss of several runs over `images` seen or over `device_hours` of training."""
    lines = [(label, *_loss_over(run, over)) for label, run in runs]
    if not any(np.isfinite(y).any() for _, _, y in lines):
        return ""

    def paint(axes: Axes) -> None:
        every = []
        for i, (label, x, y) in enumerate(lines):
            if not np.isfinite(y).any():
                continue
            px, middle, _, _ = thin(x, y)
            smooth = running_median(middle, smoothing_window(len(px)))
            style = ("-", (0, (5, 2)), (0, (1.5, 1.5)))[(i // len(SERIES)) % 3]
            marker = "o" if np.isfinite(smooth).sum() < 3 else None
            axes.plot(
                px,
                smooth,
                color=COLOURS[SERIES[i % len(SERIES)]],
                linestyle=style,
                marker=marker,
                label=label,
            )
            every.append(smooth)
        _plain_axes(
            axes,
            {
                "images": "samples seen" if any(run.noun != "image" for _, run in runs) else "images seen",
                "device_hours": "device-hours in training",
            }[over],
            "loss, running median",
        )
        if over == "device_hours":
            axes.xaxis.set_major_locator(MaxNLocator(6))
        if _needs_log(np.concatenate(every)):
            _log_axis(axes)
        axes.legend(loc="upper right", handlelength=1.8)

    return draw(name, f"Loss of {len(runs)} runs over {over.replace('_', ' ')}", width, height, paint)


def _loss_over(run: Run, over: str) -> tuple[np.ndarray, np.ndarray]:
    loss = run.columns["loss"]
    if over == "images":
        return run.columns["samples"], loss
    return device_hours(run), loss


def device_hours(run: Run) -> np.ndarray:
    """Device-hours in training at every logged step: elapsed time inside each start times its ranks; nan
    where unknown.
    """
    out = np.full(len(run), math.nan)
    before = 0.0
    for value, start in enumerate(run.starts):
        own = np.flatnonzero(run.columns["start"] == value)
        world = start.get("world_size")
        if not own.size or not isinstance(world, int):
            continue
        time = run.columns["time"][own]
        out[own] = before + (time - time[0]) * world / 3600
        before = float(out[own][-1]) if math.isfinite(out[own][-1]) else before
    return out
