"""The report for machines: report.json and report.csv of a study and of a comparison."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from frontier import __version__
from frontier_profiling.report.study import best, delta
from frontier_profiling.report.study.agreement import Pair, summary
from frontier_profiling.report.study.limits import limit
from frontier_profiling.report.study.points import Axis, label, panels
from frontier_profiling.report.study.read import Study
from frontier_profiling.report.study.scaling import efficiencies
from frontier_profiling.report.study.sections import Section
from frontier_profiling.report.wording import flat as flat_text
from frontier_profiling.rows import Row, flat

MOST_TEXT = 240
OF_ONE_POINT = ("wall_s", "attempts", "slurm_job_id", "date", "time", "rss_before_model_gib")
"""Facts that tell points apart rather than the environment: shown where all rows have the same."""


def filled(value: Any) -> Any:
    """Without what is empty, at any depth."""
    if isinstance(value, dict):
        kept = {key: filled(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in (None, "", [], {})}
    return [filled(item) for item in value] if isinstance(value, list) else value


def environment(study: Study) -> dict[str, str]:
    """What the study asked for and what its rows ran on; where rows differ, all values."""
    out: dict[str, list[str]] = {}

    def add(name: str, value: Any) -> None:
        value = filled(value)
        if value not in (None, "", [], {}):
            text = flat_text(value)
            text = text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + "…"
            if text not in out.setdefault(name, []):
                out[name].append(text)

    add("mode", study.mode)
    for name, value in study.axes.items():
        add(f"axis {name}", ", ".join(map(str, value)) if isinstance(value, list) else value)
    for name, value in study.more.items():
        add(name, value)
    for row in study.rows:
        for name in (
            "system",
            "workload",
            "engine",
            "precision",
            "activation_checkpointing",
            "image_size",
            "energy_source",
        ):
            add(name, getattr(row, name))
        add("peak_tflops", row.peak_tflops and f"{row.peak_tflops:g} TFLOP/s a device, published")
        for name, value in row.facts.items():
            add(name, value)
    most = 6
    for name in OF_ONE_POINT:
        if len(out.get(name, ())) > 1:
            del out[name]
    return {
        name.replace("_", " "): ", ".join(values[:most]) + (f", … ({len(values)} values)" if len(values) > most else "")
        for name, values in out.items()
    }


def derived(study: Study, axis: Axis) -> dict[int, dict[str, Any]]:
    """id(row) -> what the report adds to it."""
    weak: dict[int, float] = {}
    strong: dict[int, float] = {}
    for panel in (*panels(study.rows), *panels(study.published)):
        weak |= efficiencies(panel.rows, axis, "weak")
        strong |= efficiencies(panel.rows, axis, "strong")
    return {
        id(row): {
            "label": label(row),
            "images_per_s_per_device": row.images_per_s_per_device,
            "weak_efficiency": weak.get(id(row)),
            "strong_efficiency": strong.get(id(row)),
            "limited_by": limit(row).word or None,
            "limited_why": limit(row).why or None,
        }
        for row in (*study.rows, *study.published)
    }


def study_record(
    study: Study,
    axis: Axis,
    verdict: str,
    found: Mapping[str, Sequence[best.Best]],
    pairs: Sequence[Pair],
    drawn: Sequence[Section],
) -> dict[str, Any]:
    more = derived(study, axis)
    return {
        "schema": "frontier-study-report/1",
        "version": __version__,
        "study": study.name,
        "title": study.title,
        "question": study.question,
        "path": str(study.path),
        "verdict": verdict,
        "axis": axis.name,
        "best": [best.as_dict(item) for items in found.values() for item in items],
        "predicted_against": summary(pairs),
        "environment": environment(study),
        "missing": {section.title: section.missing for section in drawn if not section.shown},
        "notes": study.notes,
        "rows": [row.as_dict() | more[id(row)] for row in study.rows],
        "published": [row.as_dict() | more[id(row)] for row in study.published],
    }


def comparison_record(
    a: Study, b: Study, verdict: str, points: Sequence[delta.Point], only: tuple[list[Row], list[Row]]
) -> dict[str, Any]:
    return {
        "schema": "frontier-study-comparison/1",
        "version": __version__,
        "a": {"study": a.name, "path": str(a.path), "notes": a.notes},
        "b": {"study": b.name, "path": str(b.path), "notes": b.notes},
        "verdict": verdict,
        "points": [delta.as_dict(point) for point in points],
        "only_a": [row.as_dict() for row in only[0]],
        "only_b": [row.as_dict() for row in only[1]],
    }


def to_json(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1, allow_nan=False, default=str) + "\n"


def study_csv(study: Study, axis: Axis) -> str:
    more = derived(study, axis)
    return to_csv([flat(row) | more[id(row)] for row in (*study.rows, *study.published)])


def to_csv(table: Sequence[Mapping[str, Any]]) -> str:
    """One line a point; an empty cell is not known or not measured."""
    names = list(dict.fromkeys(name for line in table for name in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in line.items()} for line in table)
    return out.getvalue()
