"""Probe rows in reading order, and what separates the pretrained encoder from the baselines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from frontier_profiling.report.read import ProbeRow, number
from frontier_profiling.report.wording import flat

PRETRAINED = "pretrained"
PAIRED, INDEPENDENT = "paired bootstrap", "independent samples"
ENCODER_NAMES = {
    PRETRAINED: "pretrained encoder",
    "random": "random encoder",
    "colour_texture": "colour and texture features",
    "band_statistics": "statistics of the bands",
}


@dataclass(frozen=True)
class Difference:
    """accuracy(a) − accuracy(b), with its 95 % interval, and whether the two rows' own intervals are apart."""

    a: ProbeRow
    b: ProbeRow
    value: float
    ci95: tuple[float, float] | None
    intervals_apart: bool | None
    how: str
    """Where the interval comes from: PAIRED or INDEPENDENT."""


def encoder_name(encoder: str) -> str:
    return ENCODER_NAMES.get(encoder, encoder)


def ordered(rows: Sequence[ProbeRow]) -> list[ProbeRow]:
    """By method in the order of the file; inside a method the pretrained encoder first, then by accuracy."""
    methods = list(dict.fromkeys(row.method for row in rows))
    return sorted(rows, key=lambda row: (methods.index(row.method), row.encoder != PRETRAINED, -row.accuracy))


def best(rows: Sequence[ProbeRow], encoder: str | None = None) -> ProbeRow | None:
    """The row of highest accuracy (the first of equals), of one encoder or of all."""
    rows = [row for row in rows if encoder is None or row.encoder == encoder]
    return max(rows, key=lambda row: row.accuracy, default=None)


def baselines(rows: Sequence[ProbeRow]) -> list[ProbeRow]:
    """The best row of every encoder that is not the pretrained one, best first: each is given its best
    method, too.
    """
    names = dict.fromkeys(row.encoder for row in rows if row.encoder != PRETRAINED)
    found = [row for row in (best(rows, name) for name in names) if row is not None]
    return sorted(found, key=lambda row: -row.accuracy)


def difference(a: ProbeRow, b: ProbeRow) -> Difference:
    """The difference of two accuracies with its 95 % interval.

    Where row a carries a paired bootstrap against b (same method, same test images), that is the interval.
    Otherwise it is Newcombe's: with estimates p and intervals [l, u] of a and b the bounds are d − sqrt((p_a
    − l_a)² + (u_b − p_b)²) and d + sqrt((u_a − p_a)² + (p_b − l_b)²) (R. G. Newcombe, Statistics in Medicine
    17:873, 1998, method 10). That takes the rows as independent; on the same test images they agree more
    often than that, so the interval is wider than need be.
    """
    d = a.accuracy - b.accuracy
    if a.ci95 is None or b.ci95 is None:
        return Difference(a, b, d, _paired(a, b), None, PAIRED)
    apart = a.ci95[0] > b.ci95[1] or b.ci95[0] > a.ci95[1]
    paired = _paired(a, b)
    if paired is not None:
        return Difference(a, b, d, paired, apart, PAIRED)
    low = d - math.hypot(a.accuracy - a.ci95[0], b.ci95[1] - b.accuracy)
    high = d + math.hypot(a.ci95[1] - a.accuracy, b.accuracy - b.ci95[0])
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
    told, low, high = (number(value) for value in (found.get("accuracy"), *bounds))
    fits = math.isclose(told, a.accuracy - b.accuracy, abs_tol=1e-9)
    return (low, high) if fits and math.isfinite(low) and math.isfinite(high) else None


def chance(rows: Sequence[ProbeRow]) -> float | None:
    """Accuracy of guessing uniformly among the classes, where all rows tell the same number of classes."""
    classes = {row.details.get("classes") for row in rows}
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
            pairs += [(a, b) for b in ordered(rows) if b.encoder != PRETRAINED and b.method == a.method]
    unique: list[tuple[ProbeRow, ProbeRow]] = []
    for pair in pairs:
        if pair not in unique:
            unique.append(pair)
    return [difference(a, b) for a, b in unique]


def settings(rows: Sequence[ProbeRow]) -> str:
    """How the pretrained rows were made, as far as they tell: data, checkpoint, pooling, layers, number of features."""
    ours = [row for row in rows if row.encoder == PRETRAINED]
    parts = []
    for key in ("data", "checkpoint", "pooling", "layers", "features"):
        told = dict.fromkeys(flat(row.details[key]) for row in ours if row.details.get(key) is not None)
        if told:
            parts.append(f"{key} {' and '.join(told)}")
    return ", ".join(parts)
