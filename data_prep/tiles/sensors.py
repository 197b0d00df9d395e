"""What a tile of each sensor is: its bands, what is averaged, and what is stored.

- Sentinel-1: stored dB, averaged and interpolated as linear power P. Input units: `db` P = 10^(v/10); `linear` P = v;
  `amplitude` P = (v / calibration)², for GRD digital numbers. What is not above 0 in the latter two is missing. Kept
  as int16 of 0.01 dB, or float16 dB; missing is 0 there and 0 in the mask.
- Sentinel-2 `all`: v x scale + offset, that is 1e4 x reflectance, uint16, the 12 bands of L2A; 0 is missing in the
  files. `rgb`: the true-colour image (8 bits) where the scene has one, else made of B04, B03, B02 as ESA defines the
  L2A one: 1 … 255 for reflectance 0 … 0.2, each source pixel cut off before averaging.
- NAIP: 8 bits as they are, 16 bits / 257; red, green, blue and, if asked, near infrared.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from data_prep.scenes_spectra import S1_BANDS, S2_BANDS
from data_prep.source import Band
from data_prep.tiles.find import Scene
from data_prep.tiles.warp import Before, Layer
from frontier.errors import UserError

_COLOUR = (
    Band("R", common_name="red"),
    Band("G", common_name="green"),
    Band("B", common_name="blue"),
    Band("N", common_name="nir"),
)
_S2_COLOUR = (
    Band("B04", 664.6, 31, "red"),
    Band("B03", 559.8, 36, "green"),
    Band("B02", 492.4, 66, "blue"),
)
TRUE_COLOUR_FULL = 2000.0
"""1e4 x reflectance that an L2A true-colour image shows as 255 (ESA, Sentinel-2 definitions: TCI)."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The choices that the pixels depend on. `s2_offset` None: what each scene's baseline asks for."""

    units: str = "db"
    calibration: float = 1.0
    s1_dtype: str = "int16"
    s2_bands: str = "rgb"
    s2_scale: float = 1.0
    s2_offset: float | None = None
    naip_bands: str = "rgb"
    naip_nodata: float | None = None
    resampling: str = "bilinear"

    def bands(self, sensor: str) -> tuple[Band, ...]:
        """The bands that a tile of a sensor has."""
        if sensor == "s1":
            return S1_BANDS
        if sensor == "s2":
            return _S2_COLOUR if self.s2_bands == "rgb" else S2_BANDS
        return _COLOUR[: len(self.naip_bands)]

    def dtype(self, sensor: str) -> str:
        """How a tile of a sensor is stored."""
        if sensor == "s1":
            return self.s1_dtype
        return "uint16" if sensor == "s2" and self.s2_bands == "all" else "uint8"


def layers(scene: Scene, recipe: Recipe) -> tuple[Layer, ...]:
    """The files and bands of a scene that its tiles are made of. Raises `UserError` with the reason alone."""
    choices: list[tuple[str, ...]] = [tuple(band.name for band in recipe.bands(scene.sensor))]
    if scene.sensor == "s2" and recipe.s2_bands == "rgb":
        choices.insert(0, ("TCI_R", "TCI_G", "TCI_B"))
    for names in choices:
        found = [scene.where(name) for name in names]
        if None not in found:
            break
    else:
        there = ", ".join(name for name, _, _ in scene.bands) or "none"
        missing = [name for name, place in zip(names, found, strict=True) if place is None]
        raise UserError(f"lacks {', '.join(missing)}: it has {there}")
    out = []
    for number, raster in enumerate(scene.rasters):
        chosen = [(k, place[1]) for k, place in enumerate(found) if place is not None and place[0] == number]
        if not chosen:
            continue
        nodata = raster.nodata
        if scene.sensor == "s2" and nodata is None:
            nodata = 0.0
        if scene.sensor == "naip":
            if raster.dtype not in ("uint8", "uint16"):
                raise UserError(f"holds {raster.dtype} pixels, an aerial image has 8 or 16 bits")
            nodata = nodata if recipe.naip_nodata is None else recipe.naip_nodata
        out.append(Layer(raster, tuple(index for _, index in chosen), tuple(k for k, _ in chosen), nodata))
    return tuple(out)


def before(scene: Scene, recipe: Recipe) -> Before:
    """What is done to stored values before they are averaged: a function of arrays, pixel by pixel."""
    if scene.sensor == "s1":
        return partial(to_power, units=recipe.units, calibration=recipe.calibration)
    if scene.sensor == "naip":
        return partial(np.multiply, np.float32(1 / 257)) if scene.rasters[0].dtype == "uint16" else _as_it_is
    if recipe.s2_bands == "rgb" and scene.where("TCI_R") is not None:
        return _as_it_is
    offset = scene.offset if recipe.s2_offset is None else recipe.s2_offset
    return partial(to_reflectance, scale=recipe.s2_scale, offset=offset, colour=recipe.s2_bands == "rgb")


def _as_it_is(values: np.ndarray) -> np.ndarray:
    return values


def to_power(values: np.ndarray, units: str, calibration: float) -> np.ndarray:
    """Linear power of backscatter; NaN where there is none."""
    values = values.astype(np.float32)
    if units == "db":
        with np.errstate(over="ignore"):
            return np.power(np.float32(10), values / np.float32(10))
    positive = np.where(values > 0, values, np.float32(np.nan))
    return positive if units == "linear" else np.square(positive / np.float32(calibration))


def to_reflectance(values: np.ndarray, scale: float, offset: float, colour: bool) -> np.ndarray:
    """1e4 x reflectance, or 1 … 255 of a true-colour image."""
    scaled = np.maximum(values * np.float32(scale) + np.float32(offset), 0)
    return true_colour(scaled) if colour else scaled


def true_colour(scaled: np.ndarray) -> np.ndarray:
    """1 … 255 (not rounded) for 1e4 x reflectance 0 … `TRUE_COLOUR_FULL`."""
    return 1 + 254 * np.clip(scaled / np.float32(TRUE_COLOUR_FULL), 0, 1)


def stored(sensor: str, values: np.ndarray, valid: np.ndarray, recipe: Recipe) -> np.ndarray:
    """What is kept of averaged values [C, n, n]: rounded, within the type's range, 0 where not `valid` [n, n]."""
    dtype = np.dtype(recipe.dtype(sensor))
    filled = np.where(valid, values, 1 if sensor == "s1" else 0)
    if sensor == "s1":
        # A floor far below any noise, so that a power of 0 has a logarithm.
        filled = 10 * np.log10(np.maximum(filled, 1e-20))
        if dtype.kind == "f":
            return np.where(valid, filled, 0).astype(dtype)
        filled = 100 * filled
    limits = np.iinfo(dtype)
    return np.where(valid, np.clip(np.rint(filled), limits.min, limits.max), 0).astype(dtype)
