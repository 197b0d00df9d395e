"""The drawn part of the report: one section a question, each with its panels, its legend, or what is missing for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from frontier_profiling.report.study import bars, clouds, lines, traces
from frontier_profiling.report.study.agreement import Pair, summary
from frontier_profiling.report.study.heat import Heat, heat
from frontier_profiling.report.study.looks import (
    MEMORY_WORDS,
    PARTS_MEMORY,
    PARTS_TIME,
    TIME_WORDS,
    legend,
    looks,
    swatches,
)
from frontier_profiling.report.study.points import (
    SETTINGS,
    SOURCE_ORDER,
    Axis,
    Panel,
    before_model,
    label,
    labels,
    panels,
    resident,
    trained,
    word,
)
from frontier_profiling.report.study.read import Study
from frontier_profiling.report.study.scaling import Curve, Kind, curves
from frontier_profiling.report.wording import percent, plural
from frontier_profiling.rows import Row

FULL = 1160
SIZES = {1: (960, 420), 2: (570, 340), 3: (380, 300)}
"""Panels in a row -> width and height of one in CSS pixels."""


@dataclass(frozen=True)
class Section:
    """`panels`: (title, SVG) pairs; `heats`: (title, table) pairs; with neither, `missing` says what is not there."""

    id: str
    title: str
    caption: str = ""
    panels: list[tuple[str, Markup]] = field(default_factory=list)
    heats: list[tuple[str, Heat]] = field(default_factory=list)
    legend: Markup = field(default_factory=Markup)
    sources: list[str] = field(default_factory=list)
    missing: str = ""
    wide: int = 0
    """Panels in a row, where their number does not say it."""

    @property
    def columns(self) -> int:
        return self.wide or columns(len(self.panels) or len(self.heats))

    @property
    def shown(self) -> bool:
        return bool(self.panels or self.heats)


def columns(panels: int) -> int:
    return 2 if panels == 4 else min(3, max(1, panels))


def sources(rows: Sequence[Row]) -> list[str]:
    return sorted({row.source for row in rows}, key=SOURCE_ORDER.__getitem__)


class Drawer:
    """What all sections of one study share: its panels, its axis, and the looks of its strategies."""

    def __init__(self, study: Study, axis: Axis, pairs: Sequence[Pair]) -> None:
        self.study, self.axis, self.pairs = study, axis, pairs
        self.panels = panels(study.rows)
        self.looks = looks(labels([*study.rows, *study.published]))

    def each(
        self,
        id: str,
        title: str,
        caption: str,
        missing: str,
        paint: Callable[[Panel, str, tuple[int, int]], str],
        rows: Sequence[Row] | None = None,
        key: Markup | None = None,
        marks: bool = True,
    ) -> Section:
        """A section of one drawing a panel. `paint` returns "" where the panel has no data for it."""

        def paint_all(wide: int) -> list[tuple[str, Markup]]:
            found = [(panel.title, paint(panel, f"{id}{i}", SIZES[wide])) for i, panel in enumerate(self.panels)]
            return [(name, Markup(svg)) for name, svg in found if svg]

        wide = columns(len(self.panels))
        drawn = paint_all(wide)
        if not drawn:
            return Section(id, title, missing=missing)
        if columns(len(drawn)) < wide:  # some panels have nothing of it: the others may be wider
            wide = columns(len(drawn))
            drawn = paint_all(wide)
        own = list(self.study.rows if rows is None else rows)
        entries = {name: self.looks[name] for name in labels(own)}
        shown_sources = sources(own)
        return Section(
            id,
            title,
            caption,
            drawn,
            legend=key if key is not None else legend(entries, shown_sources if marks else []),
            sources=shown_sources,
            wide=wide,
        )


def sections(study: Study, axis: Axis, pairs: Sequence[Pair]) -> list[Section]:
    """All of them, in the order of the page; those without data say what is missing."""
    d = Drawer(study, axis, pairs)
    rows = [row for row in study.rows if trained(row)]
    out = [*_scaling(d), _heats(d), _models(d, rows), _memory(d), _split(d), _pareto(d, rows)]
    out += [
        _setting(d, name)
        for name in SETTINGS
        if name == "prefetch" or len({getattr(row, name) for row in study.rows}) > 1
    ]
    return [*out, _energy(d), _power(d), _agreement(d), _published(d), _spread(d)]


def _scaling(d: Drawer) -> list[Section]:
    axis = d.axis
    lines_of: dict[tuple[str, Kind], list[Curve]] = {
        (panel.title, kind): curves(panel.rows, axis, kind) for panel in d.panels for kind in ("weak", "strong")
    }

    def rows_of(kind: Kind) -> list[Row]:
        return [row for (_, k), found in lines_of.items() if k == kind for curve in found for row in curve.rows]

    def speed(kind: Kind) -> Callable[[Panel, str, tuple[int, int]], str]:
        def paint(panel: Panel, name: str, size: tuple[int, int]) -> str:
            found = lines_of[panel.title, kind]
            return lines.throughput(found, axis, d.looks, name=name, title=panel.title, size=size) if found else ""

        return paint

    def efficiency(panel: Panel, name: str, size: tuple[int, int]) -> str:
        found = lines_of[panel.title, "weak"]
        return lines.efficiency(found, axis, d.looks, name=name, title=panel.title, size=size) if found else ""

    crosses = (
        " Crosses on the axis are points that did not end."
        if any(c.lost for found in lines_of.values() for c in found)
        else ""
    )
    one = f"it needs points with a constant {{}} at two or more numbers of {axis.name}"
    return [
        d.each(
            "weak",
            "Weak scaling",
            f"Throughput of the whole job with a constant number of images a device, both axes logarithmic. At the right end each curve's efficiency against its own smallest point; dotted: ideal, from the fastest first point.{crosses}",
            one.format("number of images a device"),
            speed("weak"),
            rows_of("weak"),
        ),
        d.each(
            "efficiency",
            "Weak-scaling efficiency",
            f"Images/s a device against the same curve's smallest point, percent.{crosses}",
            one.format("number of images a device"),
            efficiency,
            rows_of("weak"),
        ),
        d.each(
            "strong",
            "Strong scaling",
            f"Throughput with a constant global batch, both axes logarithmic; efficiency at the right end.{crosses}",
            one.format("global batch"),
            speed("strong"),
            rows_of("strong"),
        ),
    ]


def _heats(d: Drawer) -> Section:
    found = [(panel.title, table) for panel in d.panels if (table := heat(panel.rows, d.axis))]
    if not found:
        return Section("map", f"Strategy × {d.axis.name}", missing="it needs two points or more")
    units = {table.unit for _, table in found}
    what = " or ".join(sorted(units))
    caption = (
        f"{what[0].upper()}{what[1:]}: the darker, the better within its model; framed is the fastest of its column; hatched cells did not end. "
        "Empty cells were not tried." + (" Predicted cells stand in italics." if len(sources(d.study.rows)) > 1 else "")
    )
    return Section("map", f"Strategy × {d.axis.name}", caption, heats=found, sources=sources(d.study.rows))


def _models(d: Drawer, rows: Sequence[Row]) -> Section:
    axis = d.axis
    xs = sorted({axis.of(row) for row in rows})
    usable = [x for x in xs if len({row.model for row in rows if axis.of(row) == x}) > 1]
    chosen = dict.fromkeys([usable[0], usable[-1]]) if usable else {}
    size = SIZES[columns(len(chosen))]
    drawn = [
        (axis.say(x), Markup(svg))
        for i, x in enumerate(chosen)
        if (svg := lines.model_sizes(d.panels, axis, x, d.looks, name=f"models{i}", size=size))
    ]
    if not drawn:
        return Section("models", "Throughput against model size", missing="it needs two models or more")
    return Section(
        "models",
        "Throughput against model size",
        "Images/s a device of each strategy's fastest setting, both axes logarithmic.",
        drawn,
        legend=legend({name: d.looks[name] for name in labels(rows)}, sources(rows)),
        sources=sources(rows),
    )


def _memory(d: Drawer) -> Section:
    known = [row for row in d.study.rows if row.memory_gib]
    parts = {p: c for p, c in PARTS_MEMORY.items() if any(row.memory_gib.get(p) for row in known)}
    parts |= {"before": "grid", "rest": "s5"} if any(before_model(row) for row in known) else {}
    return d.each(
        "memory",
        "Memory",
        "Peak a device by component; the dashed line is the device's limit (named at the right edge where it is far beyond all bars). Framed bars are measured, paler ones predicted or published; a grey bar is a peak without its components. Components are the most of each, drawn in proportion where they do not peak together; settings that memory depends on stand beside the strategy. » marks a bar that is cut.",
        "no point tells its memory",
        lambda panel, name, size: bars.memory(panel.rows, d.axis, name=name, title=panel.title, width=size[0]),
        known,
        swatches(parts, MEMORY_WORDS),
    )


def _split(d: Drawer) -> Section:
    known = [row for row in d.study.rows if row.step_parts_s and row.status == "done"]
    parts = {
        p: c
        for p, c in PARTS_TIME.items()
        if any(bars.rest(row) if p == "other" else row.step_parts_s.get(p) for row in known)
    }
    return d.each(
        "split",
        "Where a step's time goes",
        "Red is communication that nothing hides. Framed bars are measured, paler ones predicted.",
        "no point tells the parts of its step",
        lambda panel, name, size: bars.step_split(panel.rows, d.axis, name=name, title=panel.title, width=size[0]),
        known,
        swatches(parts, TIME_WORDS),
    )


def _pareto(d: Drawer, rows: Sequence[Row]) -> Section:
    return d.each(
        "pareto",
        "Throughput against memory",
        f"At the largest number of {d.axis.name}, measured points where there are some, else predicted. On the stepped line lie the points that no other beats in both; the star is the fastest.",
        "it needs two points with throughput and memory at the same size",
        lambda panel, name, size: clouds.pareto(panel.rows, d.axis, d.looks, name=name, title=panel.title, size=size),
        rows,
    )


def _setting(d: Drawer, name: str) -> Section:
    named = word(name)
    return d.each(
        f"by-{name.replace('_', '-')}",
        named[0].upper() + named[1:],
        f"Throughput by {named}, the fastest of the other settings, at the largest number of {d.axis.name} with several. Framed bars are measured.",
        "no strategy has several at one size",
        lambda panel, id, size: bars.setting(
            panel.rows, name, d.looks, d.axis, name=id, title=panel.title, width=size[0]
        ),
        d.study.rows,
        Markup(""),
    )


def _energy(d: Drawer) -> Section:
    known = [row for row in d.study.rows if row.joules_per_image]
    origin = sorted({row.energy_source for row in known if row.energy_source})
    return d.each(
        "energy",
        "Energy",
        "Joules an image, and the power of the whole job." + (f" Source: {', '.join(origin)}." if origin else ""),
        "no point tells its energy",
        lambda panel, name, size: bars.energy(panel.rows, d.axis, d.looks, name=name, title=panel.title, width=size[0]),
        known,
        Markup(""),
    )


def _power(d: Drawer) -> Section:
    known = [row for row in d.study.rows if row.source == "measured"]
    return d.each(
        "power",
        "Power over time",
        f"Of the first node while the run trained, the fastest point of each strategy at the largest number of {d.axis.name}.",
        "no measured point's metrics tell the power",
        lambda panel, name, size: traces.power(d.study, panel, d.axis, d.looks, name, size),
        known,
    )


def _agreement(d: Drawer) -> Section:
    found = d.pairs
    title = "Predicted against measured or published"
    if not found:
        return Section("agreement", title, missing="no point is both predicted and measured or published")
    s = summary(found)
    others = [pair.true for pair in found]
    text = (
        f"{plural(len(found), 'point')}: median error {percent(s['median'] or 0)}, {percent(s['within_10'] or 0, 0)} of them within 10 % (the band), "
        f"{percent(s['within_30'] or 0, 0)} within 30 %."
    )
    if s["memory_median"] is not None:
        text += f" Memory: median error {percent(s['memory_median'])}."
    if any(resident(pair.true) for pair in found):
        text += " Resident sets of CPU ranks are not compared: they hold libraries and freed memory as well."
    size = (SIZES[2][0], 430)
    drawn = [("Throughput", clouds.agreement(found, d.looks, name="agreement", size=size))]
    if any(pair.memory_error is not None for pair in found):
        drawn.append(("Memory", clouds.agreement(found, d.looks, name="agreement-memory", size=size, memory=True)))
    entries = {name: d.looks[name] for name in labels(others)}
    return Section(
        "agreement",
        title,
        text,
        [(name, Markup(svg)) for name, svg in drawn],
        legend=legend(entries, sources(others)),
        sources=["predicted", *sources(others)],
        wide=2,
    )


def _published(d: Drawer) -> Section:
    theirs = d.study.published
    title = "Published curves beside ours"
    if not theirs:
        return Section("published", title, missing="no published point of these models on this system")
    own = [row for row in d.study.rows if trained(row)]
    common = {label(row) for row in own} & {label(row) for row in theirs}
    models = {row.model for row in theirs}
    return d.each(
        "published",
        title,
        "Images/s a device; dotted are the points of the Frontier study (arXiv 2404.11706), whose runs differ by 1 to 2 % among themselves. Strategies that both have.",
        "no strategy is in both",
        lambda panel, name, size: lines.published(
            panel.rows,
            [row for row in theirs if row.model == panel.rows[0].model],
            d.axis,
            d.looks,
            name=name,
            title=panel.title,
            size=size,
        ),
        [row for row in (*own, *theirs) if label(row) in common and row.model in models],
    )


def _spread(d: Drawer) -> Section:
    known = [row for row in d.study.rows if row.rank_spread]
    return d.each(
        "ranks",
        "Spread of the ranks",
        "The slowest rank's own work over the median rank's; 1 is even.",
        "the ranks' own times are not measured",
        lambda panel, name, size: lines.rank_spread(
            panel.rows, d.axis, d.looks, name=name, title=panel.title, size=size
        ),
        known,
    )
