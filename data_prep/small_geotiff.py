"""Decoding a small GeoTIFF in memory: pixels, coordinate reference system, transform, place and pixel size."""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from frontier.errors import UserError

TRANSFORM = ("a", "b", "c", "d", "e", "f")
"""Entries of an affine transform: x = a column + b row + c, y = d column + e row + f, from the upper left corner."""


@dataclass(frozen=True)
class Chip:
    """One GeoTIFF: pixels [C, H, W]; EPSG code or 0; transform, centre in degrees and pixel side in m, NaN if unknown."""

    pixels: np.ndarray
    epsg: int
    transform: tuple[float, ...]
    lon: float
    lat: float
    gsd_m: float


def rasterio_or_error(purpose: str) -> Any:
    """The module rasterio, or a `UserError` that says what installs it."""
    try:
        import rasterio
        import rasterio.warp
    except ImportError as error:
        raise UserError(f"{purpose} needs rasterio ({error}): install frontier with the extra 'geo'") from None
    # GDAL's own messages repeat what is raised.
    logging.getLogger("rasterio").addHandler(logging.NullHandler())
    return rasterio


def decode_chip(data: bytes) -> Chip:
    """The GeoTIFF in `data`; no other format is tried. Raises `UserError` with the reason where it does not decode."""
    rasterio = rasterio_or_error("reading GeoTIFF")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.MemoryFile(data) as file, file.open(driver="GTiff") as image:
                pixels = image.read()
                crs, affine = image.crs, image.transform
    except (rasterio.errors.RasterioError, rasterio.errors.CRSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else "damaged"
        raise UserError(f"does not decode as GeoTIFF: {reason}") from None
    if crs is None or affine.is_identity:
        transform = (math.nan,) * 6 if affine.is_identity else tuple(affine)[:6]
        return Chip(pixels, 0 if crs is None else crs.to_epsg() or 0, transform, math.nan, math.nan, math.nan)
    row, column = pixels.shape[1] / 2, pixels.shape[2] / 2
    x, y = affine.a * column + affine.b * row + affine.c, affine.d * column + affine.e * row + affine.f
    try:
        (lon,), (lat,) = rasterio.warp.transform(crs, "EPSG:4326", [x], [y])
    except rasterio.errors.RasterioError as error:
        raise UserError(f"its place cannot be found: {str(error).splitlines()[0]}") from None
    gsd = math.sqrt(abs(affine.determinant)) * crs.linear_units_factor[1] if crs.is_projected else math.nan
    return Chip(pixels, crs.to_epsg() or 0, tuple(affine)[:6], lon, lat, gsd)
