"""Bars: memory and step time by part, energy, and what a setting changes. Each drawing is an inline SVG, or ""."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes as Plot
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from frontier_profiling.report.study.axes import compact
from frontier_profiling.report.study.limits import BLOCKING
from frontier_profiling.report.study.looks import PARTS_MEMORY, PARTS_TIME
from frontier_profiling.report.study.points import (
    SOURCE_ORDER,
    Axis,
    before_model,
    by,
    label,
    labels,
    peak,
    shown,
    varying,
    word,
)
from frontier_profiling.report.svg import COLOURS, draw
from frontier_profiling.report.wording import duration, prefixed, significant
from frontier_profiling.rows import Row

OF_MEMORY = ("micro_batch", "activation_checkpointing", "precision", "offload", "prefetch")
CHECKPOINTING = ("none", "selective", "full")
MOST_BARS = 18
"""At one size; with more, of several settings one is drawn."""
MOST = 4
"""Sizes that bars are drawn for, where a study has more; all stand in the table."""
FAR, ROOM = 4.0, 1.26
"""A limit beyond so many times the longest bar is named, not drawn; the axis ends at so much of what it shows, for the texts."""
Bar = tuple[str, list[tuple[float, str]], str, Row]
"""(name, [(size, colour), …], text at the end, row)."""


def chosen(
    rows: Sequence[Row], axis: Axis, known: Callable[[Row], object], apart: Sequence[str] = ()
) -> list[tuple[str, list[Row]]]:
    """Rows to draw as bars, grouped by x: one a strategy and source at up to four x of the axis, from the smallest to the largest, and the
    largest measured one.

    Of several settings, but for those of `apart`, the fastest is taken, of rows without a speed the one that needs
    least memory.
    """
    rows = [row for row in rows if known(row)]
    found = by(sorted(rows, key=axis.of), axis.of)
    xs = list(found)
    if len(xs) > MOST:
        measured = [x for x in xs if any(row.source == "measured" for row in found[x])]
        xs = sorted({*(xs[round(i * (len(xs) - 1) / (MOST - 1))] for i in range(MOST)), *measured[-1:]})
    order = labels(rows)

    def pick(group: Sequence[Row]) -> Row:
        return max(group, key=lambda row: (row.status == "done", row.images_per_s or 0.0, -(peak(row) or 0.0)))

    def place(row: Row) -> tuple:
        return order.index(label(row)), *(_sortable(getattr(row, name)) for name in apart), SOURCE_ORDER[row.source]

    def own(row: Row) -> tuple:
        return label(row), row.source, *(getattr(row, name) for name in apart)

    return [(axis.say(x), sorted((pick(group) for group in by(found[x], own).values()), key=place)) for x in xs]


def held_apart(rows: Sequence[Row], axis: Axis) -> list[str]:
    """Settings that memory depends on and of which a strategy has several at one size; none where that would be too many bars."""
    places = by([row for row in rows if peak(row)], lambda row: (axis.of(row), label(row), row.source))
    names = [name for name in OF_MEMORY if any(varying(found, [name]) for found in places.values())]
    bars: dict[int, set] = {}
    for (x, *place), found in places.items():
        bars.setdefault(x, set()).update((*place, *(getattr(row, name) for name in names)) for row in found)
    return names if max(map(len, bars.values()), default=0) <= MOST_BARS else []


def _stack(
    groups: Sequence[tuple[str, Sequence[Bar]]],
    unit: str,
    *,
    name: str,
    alt: str,
    width: int,
    marks: Mapping[str, float] | None = None,
    top: float | None = None,
) -> str:
    """Horizontal stacked bars in groups with a heading; measured bars are framed, predicted ones paler."""
    if not any(bars for _, bars in groups):
        return ""
    lines = sum(len(bars) for _, bars in groups) + 1.1 * len(groups)

    def paint(plot: Plot) -> None:
        place, ticks, texts = 0.0, [], []
        longest = max(sum(size for size, _ in parts) for _, bars in groups for _, parts, _, _ in bars)
        near = {text: at for text, at in (marks or {}).items() if at <= FAR * longest}
        end = max([longest, *near.values()])
        cut = min(end, top) if top else end
        for heading, bars in groups:
            plot.annotate(
                heading,
                (0, place),
                xycoords=("axes fraction", "data"),
                xytext=(0, 0),
                textcoords="offset points",
                va="center",
                fontsize=10.5,
                fontweight="bold",
            )
            place += 1.0
            for text, parts, after, row in bars:
                left = 0.0
                for size, colour in parts:
                    at, end_at = min(left, cut), min(left + size, cut)
                    paler = 1.0 if row.source == "measured" else 0.72
                    box = Rectangle(
                        (at, place - 0.37), end_at - at, 0.74, color=COLOURS[colour], alpha=paler, linewidth=0
                    )
                    plot.add_artist(box)
                    left += size
                if row.source == "measured":
                    frame = Rectangle((0, place - 0.37), min(left, cut), 0.74, fill=False, linewidth=1.2)
                    frame.set_edgecolor(COLOURS["text"])
                    plot.add_artist(frame)
                dead = row.status != "done"
                plot.annotate(
                    ("» " if left > cut else "") + after,
                    (min(left, cut), place),
                    xytext=(5, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=10,
                    color=COLOURS["alarm" if dead else "text"],
                    annotation_clip=False,
                    zorder=4,
                    bbox={"facecolor": COLOURS["page"], "edgecolor": "none", "alpha": 0.85, "pad": 0.6}
                    if marks
                    else None,
                )
                ticks.append(place)
                texts.append(text)
                place += 1.0
            place += 0.1
        for text, at in (marks or {}).items():
            if text in near:
                plot.axvline(at, color=COLOURS["alarm"], linewidth=1.3, linestyle=(0, (4, 2)), zorder=3)
            plot.annotate(
                text if text in near else f"{text} ▸",
                (at if text in near else cut * ROOM, 1),
                xycoords=plot.get_xaxis_transform(),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center" if text in near else "right",
                fontsize=10,
                color=COLOURS["alarm"],
                annotation_clip=False,
            )
        plot.set_xlim(0, cut * ROOM)
        plot.set_ylim(place - 0.3, -0.6)
        plot.set_yticks(ticks, texts)
        plot.tick_params(axis="y", length=0, labelcolor=COLOURS["text"], labelsize=10.5)
        plot.tick_params(axis="x", length=3)
        plot.grid(visible=False, axis="y")
        plot.spines["left"].set_visible(False)
        plot.xaxis.set_major_locator(MaxNLocator(5))
        plot.xaxis.set_major_formatter(FuncFormatter(compact))
        plot.set_xlabel(unit)

    return draw(name, alt, width, int(66 + 19 * lines), paint)


def _named(row: Row, several: bool) -> str:
    return f"{label(row)} · {row.source}" if several else label(row)


def memory(rows: Sequence[Row], axis: Axis, *, name: str, title: str, width: int) -> str:
    """GiB a device by component against the device's limit; a peak that was only measured as a whole is one grey bar."""
    apart = held_apart(rows, axis)
    groups = chosen(rows, axis, peak, apart)
    several = len({row.source for _, found in groups for row in found}) > 1
    limits = {row.memory_limit_gib for _, found in groups for row in found if row.memory_limit_gib}
    drawn = []
    for heading, found in groups:
        bars: list[Bar] = []
        for row in found:
            whole = peak(row) or 0.0
            parts = [(size, PARTS_MEMORY[part]) for part, size in shares(row, whole).items()] or unknown_parts(
                row, whole
            )
            text = f"{significant(whole)}" + ("" if row.status == "done" else f" {row.status}")
            settings = [shown(getattr(row, name)) for name in apart]
            bars.append((" · ".join([_named(row, several), *settings]), parts, text, row))
        drawn.append((heading, bars))
    marks = {f"limit {significant(limit)}": limit for limit in limits}
    top = 2.0 * max(limits) if limits else None
    return _stack(
        drawn, "GiB a device", name=name, alt=f"Memory by component, {title}", width=width, marks=marks, top=top
    )


def unknown_parts(row: Row, whole: float) -> list[tuple[float, str]]:
    """Of a peak without components: what the process held before its model, where a resident set was measured, and the rest."""
    before = before_model(row)
    return [(whole, "s5")] if before is None else [(before, "grid"), (whole - before, "s5")]


def shares(row: Row, whole: float) -> dict[str, float]:
    """Components of a peak of `whole` GiB, such that they add up to it. A row holds the most of each, and they do not peak together: where
    that is too much all are drawn smaller; what is not accounted for is the allocator's.
    """
    sizes = {part: row.memory_gib[part] for part in PARTS_MEMORY if row.memory_gib.get(part)}
    total = sum(sizes.values())
    if not sizes or not whole:
        return sizes
    if total > whole:
        return {part: size * whole / total for part, size in sizes.items()}
    own = sizes.get("allocator", 0.0) + whole - total
    return sizes | ({"allocator": own} if own else {})


def rest(row: Row) -> float:
    """Seconds of the step that no part accounts for; less than 2 % is rounding and 0."""
    left = (row.step_s or 0.0) - sum(row.step_parts_s.get(part, 0.0) for part in BLOCKING)
    return left if row.step_s and left > 0.02 * row.step_s else 0.0


def step_split(rows: Sequence[Row], axis: Axis, *, name: str, title: str, width: int) -> str:
    """The time of a step by part; red is communication that the step waits for."""
    groups = chosen(rows, axis, lambda row: row.status == "done" and any(row.step_parts_s.get(p) for p in BLOCKING))
    several = len({row.source for _, found in groups for row in found}) > 1
    longest = max((row.step_s or 0.0 for _, found in groups for row in found), default=0.0)
    scale, unit = (1.0, "seconds") if longest >= 2 else (1e3, "milliseconds")
    drawn = []
    for heading, found in groups:
        bars: list[Bar] = []
        for row in found:
            sizes = {p: rest(row) if p == "other" else row.step_parts_s.get(p, 0.0) for p in PARTS_TIME}
            parts = [(scale * size, PARTS_TIME[part]) for part, size in sizes.items()]
            bars.append((_named(row, several), parts, duration(row.step_s or sum(sizes.values())), row))
        drawn.append((heading, bars))
    return _stack(drawn, f"{unit} of a step", name=name, alt=f"Step time by part, {title}", width=width)


def energy(
    rows: Sequence[Row], axis: Axis, looks: Mapping[str, tuple[str, str]], *, name: str, title: str, width: int
) -> str:
    """Joules an image, the power of the whole job beside each bar."""
    groups = chosen(rows, axis, lambda row: row.status == "done" and row.joules_per_image)
    several = len({row.source for _, found in groups for row in found}) > 1
    drawn = []
    for heading, found in groups:
        bars: list[Bar] = []
        for row in found:
            joules = row.joules_per_image or 0.0
            text = significant(joules) + (f" · {prefixed(row.power_w, 'W')}" if row.power_w else "")
            bars.append((_named(row, several), [(joules, looks[label(row)][0])], text, row))
        drawn.append((heading, bars))
    return _stack(drawn, "J/image", name=name, alt=f"Energy per image, {title}", width=width)


def setting(
    rows: Sequence[Row],
    field: str,
    looks: Mapping[str, tuple[str, str]],
    axis: Axis,
    *,
    name: str,
    title: str,
    width: int,
) -> str:
    """images/s of each value of one setting, grouped by strategy, at the largest x that has several values."""
    rows = [row for row in rows if row.status == "done" and row.images_per_s]
    places = by(rows, lambda row: (axis.of(row), label(row)))
    many = {place: found for place, found in places.items() if len({getattr(row, field) for row in found}) > 1}
    if not many:
        return ""
    x = max(at for at, _ in many)
    rows = [row for (at, _), found in many.items() if at == x for row in found]
    several = len({row.source for row in rows}) > 1
    drawn = []
    for strategy in labels(rows):
        bars: list[Bar] = []
        own = by([row for row in rows if label(row) == strategy], lambda row: (getattr(row, field), row.source))
        for (value, source), group in sorted(
            own.items(), key=lambda item: (_sortable(item[0][0]), SOURCE_ORDER[item[0][1]])
        ):
            row = max(group, key=lambda row: row.images_per_s or 0.0)
            text = f"{word(field)} {shown(value)}" + (f" · {source}" if several else "")
            bars.append(
                (text, [(row.images_per_s or 0.0, looks[strategy][0])], significant(row.images_per_s or 0.0), row)
            )
        drawn.append((f"{strategy}, {axis.say(x)}", bars))
    return _stack(drawn, "images/s", name=name, alt=f"Throughput by {word(field)}, {title}", width=width)


def changes(points: Sequence[tuple[str, float, str, str]], *, name: str, width: int) -> str:
    """Change of the throughput in percent: (point, ratio, text beside it, name of the colour), one bar each."""
    if not points:
        return ""

    def paint(plot: Plot) -> None:
        sizes = [100 * (ratio - 1) for _, ratio, _, _ in points]
        widest = max(1.0, *map(abs, sizes))
        for place, (size, (_, _, text, colour)) in enumerate(zip(sizes, points, strict=True)):
            plot.add_artist(Rectangle((0, place - 0.37), size, 0.74, color=COLOURS[colour], linewidth=0))
            side = 1 if size >= 0 else -1
            plot.annotate(
                text,
                (size, place),
                xytext=(5 * side, 0),
                textcoords="offset points",
                va="center",
                ha="left" if side > 0 else "right",
                fontsize=10,
            )
        plot.axvline(0, color=COLOURS["text"], linewidth=1.0)
        plot.set_xlim(-1.45 * widest, 1.45 * widest)
        plot.set_ylim(len(points) - 0.4, -0.6)
        plot.set_yticks(range(len(points)), [text for text, _, _, _ in points])
        plot.tick_params(axis="y", length=0, labelcolor=COLOURS["text"], labelsize=10.5)
        plot.grid(visible=False, axis="y")
        plot.spines["left"].set_visible(False)
        plot.set_xlabel("change of images/s, %")

    return draw(name, "Change of the throughput point by point", width, 60 + 19 * len(points), paint)


def _sortable(value: object) -> tuple[int, float, str]:
    if value in CHECKPOINTING:
        return 0, float(CHECKPOINTING.index(value)), ""
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))
