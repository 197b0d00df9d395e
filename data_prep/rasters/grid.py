"""Where pixels lie on the ground: grids, longitude and latitude, and the true metres that a pixel spans.

rasterio and pyproj are the extra "geo", imported where they are used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from frontier.errors import UserError


def geo() -> tuple[Any, Any]:
    """(rasterio, pyproj), or `UserError` naming the extra that brings them."""
    try:
        import pyproj
        import rasterio
        import rasterio.warp
        import rasterio.windows
    except ImportError as error:
        raise UserError(
            f"placing rasters on the ground needs rasterio and pyproj ({error}): install the extra 'geo'"
        ) from None
    return rasterio, pyproj


@dataclass(frozen=True)
class Grid:
    """Where height x width pixels lie: x = a col + b row + c, y = d col + e row + f in `crs` (WKT or EPSG:n)."""

    crs: str
    affine: tuple[float, float, float, float, float, float]
    height: int
    width: int

    def window(self, row: int, column: int, height: int, width: int) -> Grid:
        """The same grid from pixel (row, column) on, which may lie outside."""
        a, b, c, d, e, f = self.affine
        corner = (a * column + b * row + c, d * column + e * row + f)
        return replace(self, affine=(a, b, corner[0], d, e, corner[1]), height=height, width=width)

    def scaled(self, along: float, down: float) -> Grid:
        """Pixels `along` times as wide and `down` times as high from the same corner; those wholly inside."""
        a, b, c, d, e, f = self.affine
        # Rounding of the scales must not cost the last row.
        sides = (math.floor(self.height / down + 1e-6), math.floor(self.width / along + 1e-6))
        return Grid(self.crs, (a * along, b * down, c, d * along, e * down, f), *sides)

    def xy(self, columns: Any, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates in `crs` of pixel positions; (0, 0) is the outer corner of the first pixel."""
        a, b, c, d, e, f = self.affine
        columns, rows = np.asarray(columns, np.float64), np.asarray(rows, np.float64)
        return a * columns + b * rows + c, d * columns + e * rows + f

    def pixels(self, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """(columns, rows) of coordinates: the inverse of `xy`."""
        a, b, c, d, e, f = self.affine
        x, y = np.asarray(x, np.float64) - c, np.asarray(y, np.float64) - f
        det = a * e - b * d
        return (e * x - b * y) / det, (a * y - d * x) / det


@lru_cache(maxsize=64)
def transformer(source: str, target: str) -> Any:
    """pyproj's transformer between two CRS, x (or longitude) first."""
    pyproj = geo()[1]
    return pyproj.Transformer.from_crs(source, target, always_xy=True)


def lonlat(crs: str, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Longitude in [-180, 180) and latitude (WGS 84, degrees) of coordinates in `crs`; infinite where there is none."""
    lon, lat = transformer(crs, "EPSG:4326").transform(np.asarray(x, np.float64), np.asarray(y, np.float64))
    lon, lat = np.asarray(lon), np.asarray(lat)
    with np.errstate(invalid="ignore"):
        return (lon + 180.0) % 360.0 - 180.0, lat


def ground_distance(grid: Grid, columns: Any, rows: Any) -> tuple[np.ndarray, np.ndarray]:
    """True metres on the WGS 84 ellipsoid that one pixel spans (along a row, down a column) at pixel positions.

    Holds for every CRS: degrees shrink with cos(latitude), as do the nominal metres of Web Mercator.
    """
    geod = geo()[1].Geod(ellps="WGS84")
    columns, rows = np.asarray(columns, np.float64), np.asarray(rows, np.float64)

    def span(across: float, down: float) -> np.ndarray:
        ends = [lonlat(grid.crs, *grid.xy(columns + s * across, rows + s * down)) for s in (-0.5, 0.5)]
        return np.asarray(geod.inv(*ends[0], *ends[1])[2])

    return span(1, 0), span(0, 1)


@lru_cache(maxsize=64)
def is_geographic(crs: str) -> bool:
    """Whether coordinates in `crs` are degrees."""
    return bool(geo()[1].CRS.from_user_input(crs).is_geographic)


def epsg_code(crs: str) -> int:
    """The EPSG number of a CRS, 0 where it has none."""
    return geo()[1].CRS.from_user_input(crs).to_epsg() or 0
