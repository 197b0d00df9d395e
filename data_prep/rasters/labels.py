"""Classes of label maps: their names and stored values, and the numbers 0, 1, … that samples get."""

from __future__ import annotations

import numpy as np

from frontier.errors import UserError

MISSING_CLASS = 255
"""A pixel without a label."""


def parse_classes(text: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(names, stored values) of a setting: "water,land" are the values 0 and 1 (no values); "0:none,100:crop" says them.

    Raises `UserError`.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    pairs = [part.partition(":") for part in parts]
    told = [bool(colon) for _, colon, _ in pairs]
    names = tuple((name if colon else value).strip() for value, colon, name in pairs)
    if not any(told):
        values: tuple[int, ...] = ()
    else:
        try:
            if not all(told):
                raise ValueError
            values = tuple(int(value) for value, _, _ in pairs)
        except ValueError:
            raise UserError(f"--set classes={text}: give names, or VALUE:NAME of each with whole numbers") from None
    if len(set(names)) != len(names) or len(set(values)) != len(values) or "" in names:
        raise UserError(f"--set classes={text}: a name or value is given twice, or is empty")
    if len(names) > MISSING_CLASS:
        raise UserError(f"--set classes: {len(names)} classes, 255 at most")
    return names, values


def to_classes(found: np.ndarray, there: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    """Class numbers (uint8, 255 where not `there`) of stored labels: themselves, or their places in `values`.

    Raises `ValueError` with the first label that is none.
    """
    out = np.full(found.shape, MISSING_CLASS, np.uint8)
    if values:
        known = ~there
        for number, value in enumerate(values):
            here = there & (found == value)
            out[here] = number
            known = known | here
        if not known.all():
            raise ValueError(f"label {found[~known][0]} is not among the values of --set classes=…")
        return out
    odd = there & ((found < 0) | (found >= MISSING_CLASS))
    if odd.any():
        raise ValueError(
            f"label {found[odd][0]}: classes are 0 to 254; name the values with --set classes=VALUE:NAME,…"
        )
    out[there] = found[there]
    return out
