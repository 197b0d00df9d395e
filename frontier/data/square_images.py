"""What families that cut images into square patches ask of a column, and of what a config says of it. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frontier.data.manifest import nearest
from frontier.errors import UserError


def square_images(
    images: Mapping[str, Any], column: str, where: str, shards: str | Path, family: str
) -> tuple[int, int]:
    """(bands, side in pixels) of `column` of a manifest's `images`.

    `where`: the config key that names the column. Raises UserError where there is none of that name, or its images are not CHW and square.
    """
    if column not in images:
        raise UserError(f"{where} '{column}' is not in {shards}: {nearest(column, images)}")
    axes = images[column]["axes"]
    if axes != "CHW":
        fitting = ", ".join(name for name, spec in images.items() if spec["axes"] == "CHW") or "other shards"
        raise UserError(
            f"{where} '{column}' of {shards} has axes {axes}, model.family={family} takes CHW: choose among {fitting}"
        )
    channels, height, width = images[column]["shape"]
    if height != width:
        raise UserError(f"{shards}: images '{column}' of {height}x{width} are not square: write the shards with --fit")
    return channels, height


def check_statistics(where: str, mean: Sequence[float] | None, std: Sequence[float] | None, bands: int) -> None:
    """Raises UserError where what a config gives does not suit so many bands; `where`: the section that holds `mean` and `std`."""
    for name, values in {"mean": mean, "std": std}.items():
        if values is not None and len(values) != bands:
            raise UserError(f"{where}.{name} has {len(values)} values for {bands} bands: give one each")
    if any(not value > 0 for value in std or []):
        raise UserError(f"{where}.std holds a value that is not positive: give the deviation of every band")
