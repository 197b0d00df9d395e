"""Probe rows in reading order, and what separates the pretrained encoder from the baselines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from frontier.probe.table import NAMES, further
from frontier_profiling.report.read import ProbeRow, number
from frontier_profiling.report.wording import flat, percent

PRETRAINED = "pretrained"
PAIRED, INDEPENDENT = "paired bootstrap", "independent samples"
ENCODER_NAMES = {
    PRETRAINED: "pretrained encoder",
    "random": "random encoder",
    "colour_texture": "colour and texture features",
    "band_statistics": "statistics of the bands",
    "cell_statistics": "statistics of the cells",
}

_SETTINGS = {
    "data": "data",
    "target": "target",
    "checkpoint": "checkpoint",
    "pooling": "pooling",
    "layers": "layers",
    "features": "features",
    "grid": "grid",
    "bands": "bands",
    "gsd_m": "native m a pixel",
    "resize": "resized",
    "gsd_seen_m": "m a pixel as seen",
    "normalisation": "normalised by",
}
"""Keys of rows, and the words for them."""


@dataclass(frozen=True)
class Difference:
    """score(a) − score(b), with its 95 % interval, and whether the two rows' own intervals are apart."""

    a: ProbeRow
    b: ProbeRow
    value: float
    ci95: tuple[float, float] | None
    intervals_apart: bool | None
    how: str
    """Where the interval comes from: PAIRED or INDEPENDENT."""


def encoder_name(encoder: str) -> str:
    return ENCODER_NAMES.get(encoder, encoder)


def metric_name(row: ProbeRow) -> str:
    return NAMES.get(row.metric, row.metric)


def worded(row: ProbeRow) -> str:
    """The score in percent, with the name of a metric that is not accuracy."""
    return percent(row.score) if row.metric == "accuracy" else f"{percent(row.score)} {metric_name(row)}"


def also(row: ProbeRow) -> str:
    """The other figures of a row, such as "NMI 0.412, ARI 0.305"."""
    return further({"metric": row.metric, row.metric: row.score, **row.details})


def measured(rows: Sequence[ProbeRow]) -> list[ProbeRow]:
    """Those that are not published ones."""
    return [row for row in rows if not row.published]


def ordered(rows: Sequence[ProbeRow]) -> list[ProbeRow]:
    """By method in the order of the file; inside a method the pretrained encoder first, then by score, published ones last."""
    methods = list(dict.fromkeys(row.method for row in rows))
    return sorted(
        rows, key=lambda row: (methods.index(row.method), row.published, row.encoder != PRETRAINED, -row.score)
    )


def best(rows: Sequence[ProbeRow], encoder: str | None = None) -> ProbeRow | None:
    """The measured row of highest score (the first of equals), of one encoder or of all."""
    rows = [row for row in measured(rows) if encoder is None or row.encoder == encoder]
    return max(rows, key=lambda row: row.score, default=None)


def baselines(rows: Sequence[ProbeRow]) -> list[ProbeRow]:
    """The best row of every encoder that is not the pretrained one, best first: each is given its best
    method, too.
    """
    names = dict.fromkeys(row.encoder for row in measured(rows) if row.encoder != PRETRAINED)
    found = [row for row in (best(rows, name) for name in names) if row is not None]
    return sorted(found, key=lambda row: -row.score)


def difference(a: ProbeRow, b: ProbeRow) -> Difference:
    """The difference of two scores with its 95 % interval.

    Where row a carries a paired bootstrap against b (same method, same test images), that is the interval.
    Otherwise it is Newcombe's: with estimates p and intervals [l, u] of a and b the bounds are d − sqrt((p_a
    − l_a)² + (u_b − p_b)²) and d + sqrt((u_a − p_a)² + (p_b − l_b)²) (R. G. Newcombe, Statistics in Medicine
    17:873, 1998, method 10). That takes the rows as independent; on the same test images they agree more
    often than that, so the interval is wider than need be.
    """
    d = a.score - b.score
    if a.ci95 is None or b.ci95 is None:
        return Difference(a, b, d, _paired(a, b), None, PAIRED)
    apart = a.ci95[0] > b.ci95[1] or b.ci95[0] > a.ci95[1]
    paired = _paired(a, b)
    if paired is not None:
        return Difference(a, b, d, paired, apart, PAIRED)
    low = d - math.hypot(a.score - a.ci95[0], b.ci95[1] - b.score)
    high = d + math.hypot(a.ci95[1] - a.score, b.score - b.ci95[0])
    return Difference(a, b, d, (low, high), apart, INDEPENDENT)


def _paired(a: ProbeRow, b: ProbeRow) -> tuple[float, float] | None:
    """The interval that row a carries of its difference to b's encoder under the same method, if it fits the
    two rows.
    """
    every = a.details.get("difference")
    found = every.get(b.encoder) if isinstance(every, dict) and a.method == b.method else None
    if not isinstance(found, dict):
        return None
    bounds = found.get("ci95")
    if not isinstance(bounds, list) or len(bounds) != 2:
        return None
    told, low, high = (number(value) for value in (found.get(a.metric), *bounds))
    fits = math.isclose(told, a.score - b.score, abs_tol=1e-9)
    return (low, high) if fits and math.isfinite(low) and math.isfinite(high) else None


def chance(rows: Sequence[ProbeRow]) -> float | None:
    """Accuracy of guessing uniformly among the classes, where all rows are accuracies of the same number of classes."""
    classes = {row.details.get("classes") if row.metric == "accuracy" else None for row in rows}
    only = classes.pop() if len(classes) == 1 else None
    return 1 / only if isinstance(only, int) and only > 0 else None


def differences(rows: Sequence[ProbeRow]) -> list[Difference]:
    """The pretrained encoder against every baseline under the same method; the best against the best comes
    first.
    """
    pairs: list[tuple[ProbeRow, ProbeRow]] = []
    top = best(rows, PRETRAINED)
    if top is not None:
        pairs += [(top, other) for other in baselines(rows)]
    for a in ordered(rows):
        if a.encoder == PRETRAINED:
            pairs += [(a, b) for b in ordered(measured(rows)) if b.encoder != PRETRAINED and b.method == a.method]
    unique: list[tuple[ProbeRow, ProbeRow]] = []
    for pair in pairs:
        if pair not in unique:
            unique.append(pair)
    return [difference(a, b) for a, b in unique]


def settings(rows: Sequence[ProbeRow]) -> str:
    """How the pretrained rows were made, as far as they tell: data, checkpoint, and how the encoder saw the samples."""
    ours = [row for row in rows if row.encoder == PRETRAINED]
    parts = []
    for key, words in _SETTINGS.items():
        told = dict.fromkeys(flat(row.details[key]) for row in ours if row.details.get(key) is not None)
        if told:
            parts.append(f"{words} {' and '.join(told)}")
    return ", ".join(parts)
