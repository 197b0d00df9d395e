"""An input of a sample: its bands, bound to a shard manifest, its grid of tokens, and its normalisation.

Tokens of an input are ordered (T, H', W', L), band fastest. A token is one band of one date of one footprint: s x s pixels of an
image (CHW, TCHW), s entries of a line such as a histogram (TCK), or one value where there is no space (TC, C).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from frontier.errors import UserError
from gpna.descriptor import (
    RADAR_BANDS,
    SHORTEST_OPTICAL_NM,
    SHORTEST_RADAR_NM,
    Band,
    Sensor,
    built_in,
    default_stem,
    find_sensor,
    is_polarisation,
    known_keys,
    known_sensors,
    nearest,
    vector_of,
)

__all__ = ["Band", "InputSpec", "Sensor", "bands_of", "find_sensor", "input_spec", "known_sensors", "vector_of"]

FOOTPRINTS = (8, 4, 2, 1)
"""Sides of a token in pixels: three, two, one or none of the stem's convolutions have stride 2."""
_NAMELESS = re.compile(r"(?:band|channel|feature|var|column|b|c|x)?[_ -]?\d+", re.IGNORECASE)


@dataclass(frozen=True)
class InputSpec:
    """One input: values of `shape` along `axes` (letters of T, C, H, W, K, each once, C among them), without the batch.

    `footprint`: side of a token in pixels (of an image) or entries (of axis K); 1 where there is neither. Sides need be no multiple
    of it: a grid has ceil(side / footprint) cells, the last ones partly outside (255 pixels make 32 cells of 8).
    `mean` and `std` by band, in stored units: what the feed normalises with, or None. Raises UserError for what does not fit.
    """

    axes: str
    shape: tuple[int, ...]
    bands: tuple[Band, ...]
    gsd_m: float | None
    footprint: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        letters = set(self.axes)
        if len(self.axes) != len(self.shape) or len(letters) != len(self.axes) or not letters <= set("TCHWK"):
            raise UserError(f"axes {self.axes} for shape {self.shape}: give one letter of T, C, H, W, K for each axis")
        if "C" not in letters or ("H" in letters) != ("W" in letters) or {"H", "K"} <= letters:
            raise UserError(f"axes {self.axes}: an input has C, and H with W, or K, or neither")
        if self._size("C") != len(self.bands) or min(self.shape) < 1:
            raise UserError(f"shape {self.shape} along {self.axes} does not fit {len(self.bands)} bands")
        if self.footprint not in FOOTPRINTS or (self.footprint > 1 and self.form == "point"):
            raise UserError(
                f"footprint {self.footprint} of axes {self.axes}: it is one of 8, 4, 2, 1, and 1 without H, W or K"
            )
        for name, given in (("mean", self.mean), ("std", self.std)):
            if given is not None and len(given) != len(self.bands):
                raise UserError(f"{name}: {len(given)} numbers for {len(self.bands)} bands")

    def _size(self, axis: str) -> int:
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    @property
    def form(self) -> str:
        """image (H, W), line (K) or point: what the stem's kernels run along."""
        return "image" if "H" in self.axes else "line" if "K" in self.axes else "point"

    @property
    def steps(self) -> int:
        """T."""
        return self._size("T")

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of values; a line is one row."""
        return self._size("H"), self._size("W") if self.form == "image" else self._size("K")

    @property
    def cell(self) -> tuple[int, int]:
        """Rows and columns of values of one token."""
        return (self.footprint if self.form == "image" else 1), self.footprint

    @property
    def grid(self) -> tuple[int, int, int, int]:
        """(T, H', W', L): how many tokens along each axis."""
        rows, columns = (-(-side // cell) for side, cell in zip(self.sides, self.cell, strict=True))
        return self.steps, rows, columns, len(self.bands)

    @property
    def tokens(self) -> int:
        """T * H' * W' * L."""
        steps, rows, columns, bands = self.grid
        return steps * rows * columns * bands

    @property
    def patch_values(self) -> int:
        """How many values a token stands for."""
        return self.cell[0] * self.cell[1]

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for a resolved config."""
        return {
            "axes": self.axes,
            "shape": list(self.shape),
            "bands": [band.as_dict() for band in self.bands],
            "gsd_m": self.gsd_m,
            "footprint": self.footprint,
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> InputSpec:
        """The inverse of `as_dict`. Raises UserError for a key that is none of an input's."""
        known_keys(given, tuple(cls.__dataclass_fields__), "input")
        bands = tuple(Band.from_dict(band) for band in given["bands"])
        lists = {key: None if given.get(key) is None else tuple(given[key]) for key in ("mean", "std")}
        return cls(given["axes"], tuple(given["shape"]), bands, given.get("gsd_m"), given["footprint"], **lists)


def footprint_of(axes: str, shape: tuple[int, ...]) -> int:
    """8 where the shorter side has 32 values or more, 4 from 16, 2 from 8, else 1: at least four tokens a side where there can be."""
    sides = [size for axis, size in zip(axes, shape, strict=True) if axis in "HWK"]
    shortest = min(sides, default=1)
    return next((footprint for footprint in FOOTPRINTS if shortest >= 4 * footprint), 1)


def input_spec(
    entry: Mapping[str, Any],
    sensor: str | Sensor | None = None,
    *,
    where: str = "input",
    crop: int | None = None,
    footprint: int | None = None,
) -> InputSpec:
    """The input that an entry of a manifest's `images` describes.

    `sensor`, `where`: see `bands_of`. `crop`: side that images are cut to. `footprint`: else by `footprint_of`. Ground sampling distance:
    the manifest's, else the named sensor's. Mean and deviation: the manifest's statistics, else the descriptor's, turned to stored
    units; a deviation of 0 (a constant band) becomes 1. Raises UserError, also where neither has them.
    """
    axes, shape, bands = entry.get("axes", "CHW"), tuple(entry["shape"]), bands_of(entry, sensor, where)
    if crop is not None:
        sides = [size for axis, size in zip(axes, shape, strict=True) if axis in "HW"]
        if not sides or not 1 <= crop <= min(sides):
            raise UserError(
                f"{where}: crop {crop} of shape {shape} along {axes}: give 1 to its shorter side, or no crop"
            )
        shape = tuple(crop if axis in "HW" else size for axis, size in zip(axes, shape, strict=True))
    gsd = entry.get("gsd_m")
    if gsd is None and sensor is not None:
        gsd = (sensor if isinstance(sensor, Sensor) else find_sensor(sensor)).gsd_m
    found = entry.get("statistics")
    if found:
        mean, std = found["mean"], found["std"]
    else:
        bare = next((band.name for band in bands if band.mean is None or band.std is None), None)
        if bare is not None:
            raise UserError(f"{where}: band {bare}: no mean and std in the manifest: give them in a sensor's YAML file")
        scale, offset = entry.get("scale") or 1.0, entry.get("offset") or 0.0
        mean = [((band.mean or 0.0) - offset) / scale for band in bands]
        std = [(band.std or 0.0) / abs(scale) for band in bands]
    return InputSpec(
        axes,
        shape,
        bands,
        gsd,
        footprint_of(axes, shape) if footprint is None else footprint,
        tuple(float(value) for value in mean),
        tuple(float(value) or 1.0 for value in std),
    )


def bands_of(entry: Mapping[str, Any], sensor: str | Sensor | None = None, where: str = "input") -> tuple[Band, ...]:
    """The bands of an entry of a manifest's `images`, in order.

    With `sensor` (a descriptor, its name or a path) every band is the descriptor's band of that name. Without, each band is, in this order:
    what its centre wavelength says; the band of that name of a descriptor that the entry's sensor text speaks of; C-band SAR where
    it is called VV, VH, HH or HV; the colour that its common name or name says; else a variable of its name. A descriptor that is
    recognised still gives stems and units, wavelengths are the manifest's. `where` (source and column) stands in messages and makes
    keys of bands without a real name ("band_1"), which thus share nothing with other inputs. Raises UserError.
    """
    given = entry["bands"]
    if sensor is not None:
        found = sensor if isinstance(sensor, Sensor) else find_sensor(sensor)
        chosen = []
        for band in given:
            one = found.find(band["name"])
            if one is None:
                raise UserError(
                    f"{where}: band {band['name']} is not in {found.path}: {nearest(band['name'], found.bands)}"
                )
            chosen.append(_called(one, band["name"]))
        return _distinct(tuple(chosen), where)
    text = str(entry.get("sensor") or "").lower()
    spoken = [s for s in map(built_in, known_sensors()) if any(phrase in text for phrase in s.says)]
    return _distinct(tuple(_recognise(band, spoken, entry.get("units"), where) for band in given), where)


def _recognise(given: Mapping[str, Any], spoken: list[Sensor], units: str | None, where: str) -> Band:
    name, centre, width = given["name"], given.get("centre_nm"), given.get("width_nm")
    known = next((found for s in spoken if (found := s.find(name))), None)
    if centre and centre < SHORTEST_OPTICAL_NM:
        raise UserError(
            f"{where}: band {name}: {centre:g} nm in the manifest is too short for light: write the shards with wavelengths in nm, "
            "or name a sensor"
        )
    if centre and centre < SHORTEST_RADAR_NM:
        if known is not None and known.kind == "optical":
            own = known.stem != default_stem(known)  # set by the descriptor, not made of its wavelength
            band = replace(known, name=name, centre_nm=float(centre), width_nm=float(width) if width else None)
            return band if own else replace(band, stem=default_stem(band))
        band = Band(name, "optical", "", float(centre), float(width) if width else None, units=units)
        return replace(band, stem=default_stem(band))
    if known is not None:
        return _called(known, name)
    polarisation = name.upper()
    if is_polarisation(polarisation) and set(polarisation) <= {"H", "V"}:
        letter = "C" if not centre else [letter for letter, longest in RADAR_BANDS.items() if centre <= longest][-1:]
        band = Band(name, "sar", "", radar_band="".join(letter) or "P", polarisation=polarisation, units=units)
        return replace(band, stem=default_stem(band))
    colour = built_in("rgb").find(given.get("common_name") or name)
    if colour is not None:
        return replace(colour, name=name)
    band = Band(f"{where} {name}" if _NAMELESS.fullmatch(name) else name, "variable", "", units=units)
    return replace(band, stem=default_stem(band))


def _called(known: Band, name: str) -> Band:
    """A descriptor's band under the manifest's name; a variable keeps the descriptor's, by which the model knows it."""
    return known if known.kind == "variable" else replace(known, name=name)


def _distinct(bands: tuple[Band, ...], where: str) -> tuple[Band, ...]:
    names = [band.name for band in bands]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: two bands are called {name}: name them apart")
    return bands
