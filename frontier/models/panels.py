"""Rows of pictures that show what a trained model does, as values: what draws them chooses the stretch and the colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

UNKNOWN = 255
"""Class of a pixel that nothing is known of."""


@dataclass(frozen=True)
class PanelRow:
    """Of one sample: for each of `Panels.columns` an image float [bands, H, W] in stored units, NaN where nothing is shown, or a map of
    classes int [H, W], `UNKNOWN` where there is none.
    """

    title: str
    pictures: list[NDArray[Any]]


@dataclass(frozen=True)
class Panels:
    """One group of rows.

    Attributes:
        columns: what the pictures of each row are.
        bands: of the images, entries of a shard manifest.
        caption: sentences on what is shown.
    """

    title: str
    columns: Sequence[str]
    rows: list[PanelRow]
    caption: str
    bands: list[dict[str, Any]] = field(default_factory=list)
