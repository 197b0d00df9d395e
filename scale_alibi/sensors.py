"""The entries of `model.sensors`: what a sensor's images are, filled in from the shards. No torch here.

GSD is in metres a pixel. Three numbers are told apart: that of the images as stored, which may differ from sample to sample; that of the images
as an encoder sees them, which is the stored one times stored size over encoder size, and which a random crop changes further; and the nominal
one, of an uncropped image of the data as an encoder sees it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from pydantic import Field, field_validator

from frontier.config.schema import Section
from frontier.data.manifest import band_places, nearest
from frontier.data.square_images import check_statistics, square_images
from frontier.errors import UserError

if TYPE_CHECKING:
    from frontier.data.shards import ShardSet
    from frontier.data.synthetic import SyntheticSet

COLUMN = "column:"
"""Begins a `gsd_m` that names a per-sample column."""
FILLED = ("channels", "stored_size", "nominal_gsd_m")
SAME_GROUND = 0.01
"""How far the nominal sides of two sensors' images may differ, as a share."""


class SensorSection(Section):
    """One of `model.sensors`."""

    column: str
    """Of the shards: images CHW, square."""
    bands: list[str] | None = None
    """By their names in the manifest, in this order; default: all."""
    size: int | None = Field(None, gt=0)
    """Side in pixels that the encoder sees; default: as stored."""
    gsd_m: float | str | None = None
    """Metres a pixel as stored: a number, or column:NAME of a per-sample column. Default: the column <column>_spacing_m where the
    shards have it (tile triplets), else what the manifest says of the images."""
    depth: int | None = Field(None, gt=0)
    """Blocks of this sensor's encoder; default: the preset's, half of it for the first sensor."""
    mask_ratio: float | None = Field(None, gt=0, lt=1)
    """Of this sensor's patches, hidden; default: model.mask_ratio."""
    mean: list[float] | None = None
    std: list[float] | None = None
    """Of each of `bands`, in stored units; default: from the manifest."""
    channels: int | None = Field(None, gt=0)
    stored_size: int | None = Field(None, gt=0)
    nominal_gsd_m: float | None = Field(None, gt=0)
    """These three (`FILLED`) are filled in: number of bands, side in pixels as stored, and metres a pixel of an uncropped image as the
    encoder sees it (the median over the split, where it differs from sample to sample). Another value than that is refused."""

    @field_validator("gsd_m", mode="before")
    @classmethod
    def _gsd(cls, value: Any) -> Any:
        if isinstance(value, str):
            fits = bool(value.startswith(COLUMN) and value.removeprefix(COLUMN).strip())
        elif isinstance(value, int | float) and not isinstance(value, bool):
            fits = value > 0 and math.isfinite(value)
        else:
            fits = value is None
        if not fits:
            raise ValueError("gsd_m is a positive number of metres a pixel, or column:NAME of a per-sample column")
        return value

    @field_validator("bands")
    @classmethod
    def _bands(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and (not value or len(set(value)) < len(value)):
            raise ValueError("bands is a list of one or more names, each once")
        return value

    @property
    def gsd_column(self) -> str | None:
        """The per-sample column that says the stored GSD; None where it is the same for all samples."""
        return self.gsd_m.removeprefix(COLUMN) if isinstance(self.gsd_m, str) else None

    @property
    def side_m(self) -> float:
        """Of a resolved section: nominal metres on the ground that an image spans."""
        assert self.nominal_gsd_m is not None and self.size is not None
        return self.nominal_gsd_m * self.size

    def grid(self, patch: int) -> int:
        """Of a resolved section: patches along a side."""
        assert self.size is not None
        return self.size // patch


def resolve_sensor(name: str, section: SensorSection, shards: ShardSet | SyntheticSet, patch: int) -> SensorSection:
    """The section with everything filled in. Raises UserError where the shards have no such images, or do not say their GSD."""
    where, images = f"model.sensors.{name}", shards.manifest["images"]
    column = section.column
    channels, stored = square_images(images, column, f"{where}.column", shards.path, "scale_alibi")
    pick = (
        band_places(images[column], section.bands, f"{where}.bands") if section.bands is not None else range(channels)
    )
    check_statistics(where, section.mean, section.std, len(pick))
    size = section.size or stored
    if size % patch:
        raise UserError(
            f"{where}: images of {size}x{size} pixels do not divide into patches of {patch}: "
            f"set {where}.size={math.ceil(size / patch) * patch}, or model.patch to a divisor of {size}"
        )
    found = (
        [values[list(pick)].tolist() for values in shards.statistics(column)]
        if None in (section.mean, section.std)
        else []
    )
    mean, std = section.mean or found[0], section.std or found[1]
    gsd = find_gsd(where, section, shards)
    # Only real shards have columns of numbers a sample.
    nominal = median_gsd(where, gsd.removeprefix(COLUMN), cast("ShardSet", shards)) if isinstance(gsd, str) else gsd
    return section.model_copy(
        update={
            "gsd_m": gsd,
            "bands": [band["name"] for band in (images[column]["bands"][place] for place in pick)],
            "size": size,
            "channels": len(pick),
            "mean": mean,
            "std": std,
            "stored_size": stored,
            "nominal_gsd_m": nominal * stored / size,
        }
    )


def check_filled(name: str, given: SensorSection, found: SensorSection) -> None:
    """Raises UserError where a config says other things than were found, which nothing would heed."""
    for key in FILLED:
        said, own = getattr(given, key), getattr(found, key)
        if said is not None and not math.isclose(said, own, rel_tol=1e-6):
            raise UserError(
                f"model.sensors.{name}.{key}={said:g}: it is filled in, and here it is {own:g}: leave it out, or set it to null where a "
                "config that this one extends says it"
            )


def find_gsd(where: str, section: SensorSection, shards: ShardSet | SyntheticSet) -> float | str:
    """`gsd_m` as given, checked, or as found. Raises UserError where nothing says it."""
    columns, column = shards.manifest["columns"], section.column
    if section.gsd_column is not None:
        if section.gsd_column not in columns:
            raise UserError(
                f"{where}.gsd_m: no per-sample column '{section.gsd_column}' in {shards.path}: {nearest(section.gsd_column, columns)}"
            )
        if np.dtype(columns[section.gsd_column]).kind not in "iuf":
            raise UserError(
                f"{where}.gsd_m: column '{section.gsd_column}' of {shards.path} holds no numbers: name one of metres a pixel"
            )
        return str(section.gsd_m)
    if section.gsd_m is not None:
        return section.gsd_m
    spacing = f"{column}_spacing_m"
    if spacing in columns:
        return COLUMN + spacing
    stated = shards.manifest["images"][column].get("gsd_m")
    if stated:
        return float(stated)
    # A sample's column gsd_m does not say which of its images it is of: taken only when it is named.
    also = ", or column:gsd_m if that column is of these images" if "gsd_m" in columns else ""
    raise UserError(
        f"{where}: {shards.path} does not say how many metres a pixel of '{column}' spans: set {where}.gsd_m to it{also}"
    )


def median_gsd(where: str, column: str, shards: ShardSet) -> float:
    """Of the whole split. Raises UserError where a sample's is not a positive number."""
    values = shards.column(column).astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(wrong):
        raise UserError(
            f"{where}.gsd_m: column '{column}' of {shards.path} holds {values[wrong[0]]} for sample {wrong[0]} of split "
            f"'{shards.split}' ({len(wrong)} such): write the shards again without these samples, or give a number"
        )
    return float(np.median(values))


def check_ground(sensors: Mapping[str, SensorSection], mend: str) -> None:
    """Resolved sensors show the same ground. Raises UserError, which ends in `mend` with NAME for the one that does not."""
    (first, base), *others = sensors.items()
    for name, sensor in others:
        side, own = base.side_m, sensor.side_m
        if abs(own / side - 1) > SAME_GROUND:
            raise UserError(
                f"model.sensors: {first} shows {side:g} m a side ({base.stored_size} px stored), {name} {own:g} m ({sensor.stored_size} px): all "
                f"sensors must show the same ground: {mend.replace('NAME', name)}"
            )


def check_rows(sensors: Mapping[str, SensorSection], shards: ShardSet | SyntheticSet) -> None:
    """Resolved sensors show the same ground in every sample, where the GSD of one differs from sample to sample. Raises UserError."""
    (first, base), *others = sensors.items()
    for name, sensor in others:
        if not isinstance(base.gsd_m, str) and not isinstance(sensor.gsd_m, str):
            continue  # the nominal sides say it all
        side, own = np.broadcast_arrays(_sides(base, shards), _sides(sensor, shards))
        wrong = np.flatnonzero(np.abs(own / side - 1) > SAME_GROUND)
        if len(wrong):
            row = int(wrong[0])
            raise UserError(
                f"model.sensors: of sample {row} of {shards.path}, {first} and {name} show {side[row]:g} and {own[row]:g} m a side ({len(wrong)} such samples): all "
                f"sensors must show the same ground: mend model.sensors.{name}.gsd_m, or write the shards again without these samples"
            )


def _sides(sensor: SensorSection, shards: ShardSet | SyntheticSet) -> Any:
    """Metres on the ground that an image spans: of all samples, or [N] of each of the split."""
    assert sensor.stored_size is not None
    column = sensor.gsd_column
    gsd = sensor.gsd_m if column is None else cast("ShardSet", shards).column(column).astype(np.float64)
    return np.asarray(gsd) * sensor.stored_size


def check_together(sensors: Mapping[str, SensorSection], patch: int, shards: ShardSet | SyntheticSet) -> None:
    """Resolved sensors show the same ground, on grids that nest. Raises UserError."""
    check_ground(sensors, "mend model.sensors.NAME.gsd_m, or choose other columns")
    check_rows(sensors, shards)
    (first, base), *others = sensors.items()
    grid = base.grid(patch)
    for name, sensor in others:
        own_grid = sensor.grid(patch)
        if own_grid % grid:
            raise UserError(
                f"model.sensors.{name}: its {own_grid}x{own_grid} patches are no whole multiple of the {grid}x{grid} of {first}, the first "
                f"sensor: set model.sensors.{name}.size to a multiple of {grid * patch}"
            )
