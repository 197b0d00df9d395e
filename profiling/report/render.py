"""The pages for people: drawings, and the HTML and Markdown of one run or of a comparison."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from frontier import __version__
from frontier_profiling.report import figures, held_out, probes, tasks, wording
from frontier_profiling.report.pictures import Pictures
from frontier_profiling.report.quantities import Quantity, quantities
from frontier_profiling.report.read import ProbeRow, Run
from frontier_profiling.report.records import reproduce
from frontier_profiling.report.summary import (
    PARTS,
    WARMUP_LINES,
    common_images,
    facts,
    final_loss,
    progress,
    step_time,
    warmed_up,
)

WIDE, HALF = 940, 460
DETAILED = tuple(f"{part}_s_" for part in PARTS)
"""Figures of the pages' own step-time table, left out of the table of all figures (CSV and JSON have them).
"""


def _markdown(value: Any) -> Any:
    """Text made safe inside a Markdown table cell or sentence."""
    if isinstance(value, Markup):
        return value
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(value).split()))


def _environment(html: bool) -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options: dict[str, Any] = {
        "trim_blocks": True,
        "lstrip_blocks": True,
        "undefined": jinja2.StrictUndefined,
    }
    if html:
        environment = jinja2.Environment(loader=loader, autoescape=True, **options)
    else:
        # Markdown has its own escapes, applied to every expression in place of HTML's.
        environment = jinja2.Environment(loader=loader, autoescape=False, finalize=_markdown, **options)
        environment.filters["raw"] = Markup
    environment.filters |= {
        "flat": wording.flat,
        "moment": wording.moment,
        "significant": wording.significant,
        "percent": wording.percent,
        "interval": wording.interval,
        "count": wording.count,
        "duration": wording.duration,
    }
    return environment


def shown(figure: Quantity) -> str:
    """A figure with its unit, in words: 302 M · 412 ms · 1,234 images/s · not measured."""
    if figure.value is None:
        return wording.NOT_MEASURED
    if figure.unit == "s":
        return wording.duration(figure.value)
    if figure.unit == "h":
        return wording.duration(3600 * figure.value)
    if figure.unit == "FLOP":
        return wording.prefixed(figure.value, "FLOP")
    if figure.unit == "%":
        return f"{figure.value:.1f} %"
    if figure.unit:
        return f"{wording.significant(figure.value)} {figure.unit}"
    whole = figure.value == int(figure.value)
    return wording.count(figure.value) if whole else wording.significant(figure.value, 4)


def by_key(run: Run) -> dict[str, Quantity]:
    return {figure.key: figure for figure in quantities(run)}


def signed(fraction: float) -> str:
    """A difference of two fractions in percentage points, with its sign: +12.3 · −0.4."""
    return f"{100 * fraction:+.1f}".replace("-", wording.MINUS)


def fenced(text: str) -> Markup:
    """Text inside a Markdown code fence, which three backquotes of its own must not close."""
    return Markup(text.rstrip().replace("```", "` ` `"))


def varied(run: Run) -> set[str]:
    """Fields of starts.jsonl that are not the same in all starts."""
    keys = {key for start in run.starts for key in start}
    return {key for key in keys if any(start.get(key) != run.starts[0].get(key) for start in run.starts)}


def bare_number(figure: Quantity) -> str:
    """A measured figure without its unit, which the column's header names."""
    return wording.NOT_MEASURED if figure.value is None else wording.significant(figure.value)


def run_drawings(run: Run) -> dict[str, str]:
    small: dict[str, Any] = {"width": HALF, "height": 250, "events": False}
    starts = [(f"start {i + 1}", step_time(run, _of_start(run, i))) for i in range(len(run.starts))]
    known = [row for row in starts if row[1]["step"].known]
    rows = known[-8:] if len(known) > 1 else []
    probed = probes.ordered(probes.measured(run.probe))
    return {
        "loss": figures.curve(run, "loss", "loss", name="loss", width=WIDE, height=330, smooth=True, events=True),
        "parts": figures.loss_parts(run, name="parts", width=WIDE, height=300),
        "lr": figures.curve(run, "lr", "learning rate", name="lr", smooth=False, **small),
        "grad_norm": figures.curve(run, "grad_norm", "gradient norm", name="grad", smooth=True, **small),
        "images_per_s": figures.curve(run, "images_per_s", f"{run.noun}s/s", name="speed", smooth=True, **small),
        "memory": figures.curve(run, "memory_gib", "memory, GiB", name="memory", smooth=False, **small),
        "power": figures.power_trace(run, name="power", width=WIDE, height=250),
        "split": figures.step_split([*rows, ("all starts" if rows else "", step_time(run))], name="split", width=WIDE),
        "probe": figures.probe_bars(
            [(row.method, row) for row in probed],
            name="probe",
            width=WIDE,
        ),
    }


def _of_start(run: Run, index: int) -> np.ndarray:
    return warmed_up(run)[0] & (run.columns["start"] == index)


def comparison_drawings(runs: Sequence[Run]) -> dict[str, str]:
    named = [(run.name, run) for run in runs]
    tops = [(run.name, row) for run in runs for row in _headline_rows(run)]
    return {
        "loss_images": figures.overlaid_loss(named, over="images", name="li", width=WIDE, height=360),
        "loss_hours": figures.overlaid_loss(named, over="device_hours", name="lh", width=WIDE, height=360),
        "split": figures.step_split([(name, step_time(run)) for name, run in named], name="split", width=WIDE),
        "probe": figures.probe_bars(tops, name="probe", width=WIDE),
    }


def _headline_rows(run: Run) -> list[ProbeRow]:
    top = probes.best(run.probe, probes.PRETRAINED)
    return [row for row in (top, *probes.baselines(run.probe)) if row is not None]


HELPERS: dict[str, Any] = {
    "shown": shown,
    "signed": signed,
    "fenced": fenced,
    "encoder_name": probes.encoder_name,
    "metric_name": probes.metric_name,
    "also": probes.also,
    "with_interval": tasks.with_interval,
    "with_loss": tasks.with_loss,
    "metric_value": tasks.value,
    "version": __version__,
}


def run_context(run: Run, record: Mapping[str, Any], pictures: Sequence[Pictures]) -> dict[str, Any]:
    return {
        "title": run.name,
        "varied": varied(run),
        "record": record,
        "run": run,
        "found": by_key(run),
        "listed": [f for f in quantities(run) if not f.key.startswith(DETAILED)],
        "energy_from": ", ".join(filter(None, (run.fact("energy_source"), run.fact("energy_covers"))))
        or "source not recorded",
        "split": step_time(run),
        "parts": PARTS,
        "probe": probes.ordered(run.probe),
        "best": probes.best(run.probe, probes.PRETRAINED),
        "differences": probes.differences(run.probe),
        "probe_settings": probes.settings(run.probe),
        "tasks": tasks.by_task(run.tasks),
        "held_out": held_out.by_method(run.held_out),
        "early": run.early_stopping,
        "pictures": pictures,
        **HELPERS,
    }


def comparison_context(runs: Sequence[Run], record: Mapping[str, Any]) -> dict[str, Any]:
    common = common_images(runs)
    nouns = {run.noun for run in runs}
    return {
        "title": f"{len(runs)} runs",
        "noun": nouns.pop() if len(nouns) == 1 else "sample",
        "common_images": common,
        "warm_up_lines": WARMUP_LINES,
        "number": bare_number,
        "record": record,
        "runs": [
            {
                "run": run,
                "found": by_key(run),
                "common_loss": final_loss(run, common)[0] if common else None,
                "facts": facts(run),
                "state": progress(run)[0],
                "notes": run.notes,
                "reproduce": reproduce(run),
                "rows": _headline_rows(run),
            }
            for run in runs
        ],
        **HELPERS,
    }


def to_html(template: str, context: Mapping[str, Any], drawings: Mapping[str, str]) -> str:
    """A self-contained page: the style and the drawings are inlined, nothing is loaded from elsewhere."""
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    inlined = {name: Markup(svg) for name, svg in drawings.items()}
    return _environment(html=True).get_template(template).render(context, drawings=inlined, style=Markup(style))


def to_markdown(template: str, context: Mapping[str, Any]) -> str:
    text = _environment(html=False).get_template(template).render(context)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
