"""A study's report, and the comparison of two, as texts of files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from frontier.errors import UserError
from frontier_profiling.report import render, wording
from frontier_profiling.report.study import bars, best, delta, record
from frontier_profiling.report.study.agreement import pairs
from frontier_profiling.report.study.best import best_points, unknown
from frontier_profiling.report.study.limits import limit
from frontier_profiling.report.study.points import (
    FAILED,
    SETTINGS,
    global_batch,
    label,
    panels,
    peak,
    scaling_axis,
    settings,
    varying,
)
from frontier_profiling.report.study.points import word as setting_word
from frontier_profiling.report.study.read import Study, read_study
from frontier_profiling.report.study.sections import sections, sources
from frontier_profiling.rows import Row

HERE = Path(__file__).parent


COLUMNS = {
    "step_s_low": "the range of the step time",
    "mfu": "MFU",
    "joules_per_image": "J/image",
    "power_w": "power",
    "node_hours": "node-hours",
}
"""Columns of the table that it does without where no point knows them."""


def figure(row: Row, value: float | None, kind: str = "") -> Any:
    """A number of a row as text; what is absent is said in the words of the row's source."""
    if value is None:
        if row.status != "done":
            return Markup('<span class="absent">–</span>')
        return Markup(f'<span class="absent">{unknown(row)}</span>')
    if kind == "s":
        return wording.duration(value)
    if kind == "%":
        return wording.percent(value)
    return wording.significant(value)


def plain(row: Row, value: float | None, kind: str = "") -> str:
    """`figure` for Markdown."""
    return str(figure(row, value, kind)) if value is not None else "–" if row.status != "done" else unknown(row)


def state(row: Row) -> str:
    """Why a row is no result, in one line; empty where it is one."""
    if row.status == "done":
        return ""
    said = FAILED.get(row.status, row.status)
    reason = row.error or (limit(row).why if row.status == "oom" else "")
    return f"{said}: {reason}" if reason and reason != said else said


def signed_percent(ratio: float) -> str:
    """1.25 -> +25.0 %; what rounds to nothing has no sign."""
    text = f"{100 * (ratio - 1):+.1f} %"
    return "0.0 %" if text[1:] == "0.0 %" else text.replace("-", wording.MINUS)


HELPERS: dict[str, Any] = {
    "figure": figure,
    "plain": plain,
    "state": state,
    "global_batch": global_batch,
    "label": label,
    "limit": limit,
    "peak": peak,
    "settings": settings,
    "unknown": unknown,
    "about": best.about,
    "cost": best.cost,
    "images": best.images,
    "spans": best.spans,
    "signs": delta.SIGNS,
    "point_name": delta.name,
    "setting_word": setting_word,
    "signed_percent": signed_percent,
    "fenced": render.fenced,
    "version": render.__version__,
}


def report(path: Path) -> tuple[dict[str, str], str]:
    """File name -> text of a study's report, and its verdict. Raises UserError as `read_study`."""
    study = read_study(path)
    axis = scaling_axis(study.rows)
    found = {panel.title: best_points(panel, axis) for panel in panels(study.rows)}
    verdict = best.verdict(found, study.rows, axis)
    both = pairs(study.rows, study.published)
    drawn = sections(study, axis, both)
    facts = record.study_record(study, axis, verdict, found, both, drawn)
    more = record.derived(study, axis)
    every = [*study.rows, *study.published]
    common = _common_notes(every)
    context = {
        "title": study.title or study.name,
        "study": study,
        "record": facts,
        "axis": axis,
        "found": found,
        "sections": drawn,
        "tables": [("The study's points", study.rows), ("Published points", study.published)],
        "derived": lambda row: more[id(row)],
        "varied": varying(study.rows, ("workload", "image_size", *SETTINGS)),
        "systems": sorted({row.system for row in every}),
        "told": [name for name in COLUMNS if any(getattr(row, name) is not None for row in every)],
        "untold": [said for name, said in COLUMNS.items() if all(getattr(row, name) is None for row in every)],
        "common_notes": common,
        "row_notes": any(note not in common for row in every for note in row.notes),
        "counts": _counts(study.rows),
        "sources": sorted({row.source for row in every}),
        "script": Markup((HERE / "table.js").read_text(encoding="utf-8")),
        **HELPERS,
    }
    texts = {
        "report.html": _html("study/study.html.j2", context),
        "report.md": render.to_markdown("study/study.md.j2", context),
        "report.csv": record.study_csv(study, axis),
        "report.json": record.to_json(facts),
    }
    return texts, verdict


def comparison(first: Path, second: Path) -> tuple[dict[str, str], str]:
    """The same of two studies, point by point. Raises UserError where they have no point in common."""
    a, b = read_study(first), read_study(second)
    if a.name == b.name:
        a, b = (Study(**{**vars(s), "name": str(s.path)}) for s in (a, b))
    points, *only = delta.compare(a, b)
    verdict = delta.verdict(a, b, points)
    facts = record.comparison_record(a, b, verdict, points, (only[0], only[1]))
    context = {
        "title": f"{a.name} → {b.name}",
        "a": a,
        "b": b,
        "points": points,
        "only": [(a, only[0]), (b, only[1])],
        "sources": sources([row for point in points for row in (point.before, point.after)]),
        "drawing": Markup(bars.changes(delta.bars(points), name="changes", width=940)),
        "record": facts,
        "varied": varying([point.after for point in points], ("workload", "image_size", "system", *SETTINGS)),
        "script": Markup((HERE / "table.js").read_text(encoding="utf-8")),
        **HELPERS,
    }
    texts = {
        "report.html": _html("study/delta.html.j2", context),
        "report.md": render.to_markdown("study/delta.md.j2", context),
        "report.csv": record.to_csv([delta.as_dict(point) for point in points]),
        "report.json": record.to_json(facts),
    }
    return texts, verdict


def _html(template: str, context: dict[str, Any]) -> str:
    extra = Markup((HERE / "study.css").read_text(encoding="utf-8"))
    return render.to_html(template, context | {"study_style": extra}, {})


def _common_notes(rows: Sequence[Row]) -> list[str]:
    """Notes that many rows share, said once under the table."""
    times = Counter(note for row in rows for note in set(row.notes))
    return [note for note, n in times.items() if n > max(2, len(rows) / 8)]


def _counts(rows: Sequence[Row]) -> str:
    """`48 points: 40 done, 8 out of memory`."""
    done = sum(row.status == "done" for row in rows)
    said = [f"{done} done"] if done else []
    for status in FAILED:
        n = sum(row.status == status for row in rows)
        said += [f"{n} {FAILED[status]}"] if n else []
    return f"{wording.plural(len(rows), 'point')}: {wording.listed(said)}"


def reports(paths: Sequence[Path]) -> tuple[dict[str, str], str]:
    """One study, or two to compare. Raises UserError for more."""
    if len(paths) > 2:
        raise UserError(f"{len(paths)} studies: one is reported, two are compared; name one or two")
    return report(paths[0]) if len(paths) == 1 else comparison(*paths)
