"""Raster files of scenes: their headers, where their pixels lie, and reading a window of them. Needs rasterio, pyproj.

Only plain local files are opened, by GDAL's GeoTIFF and JPEG 2000 drivers: nothing in a file or a list can point
elsewhere (virtual rasters, network paths).
"""

from __future__ import annotations

import atexit
import math
import os
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.rasters.grid import geo
from data_prep.rasters.raster import environment, reason
from data_prep.records import need_regular
from data_prep.tiles.grid import HALF_WORLD_M, RADIUS_M
from frontier.errors import UserError

DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".jp2": "JP2OpenJPEG"}
"""The files that are taken for scenes, and GDAL's driver for them; anything else in them is refused."""
MERCATOR = "EPSG:3857"
LONLAT = "EPSG:4326"
Affine6 = tuple[float, float, float, float, float, float]


@dataclass(frozen=True, slots=True)
class Raster:
    """The header of one file. `transform` (pixel to `crs`) or `gcps` ((row, column, x, y), …) says where it lies."""

    path: str
    crs: str
    transform: Affine6 | None
    gcps: tuple[tuple[float, float, float, float], ...]
    width: int
    height: int
    dtype: str
    nodata: float | None
    names: tuple[str, ...]
    """Descriptions of the bands without alpha, "" where there is none."""
    masked: bool
    """Whether an alpha band or a mask says what is missing."""
    date: str = ""
    period: float = 0.0
    """How far apart in x the same place comes again: 360 for degrees, the world's width in Web Mercator, else 0."""


class SceneError(UserError):
    """A file that cannot be used, and why: for those who collect them."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}: replace it")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type[SceneError], tuple[str, str]]:
        return SceneError, (self.path, self.reason)


def _driver(path: str | Path) -> str:
    return DRIVERS.get(Path(path).suffix.lower(), "GTiff")


def read_header(path: Path, alpha: bool = True) -> Raster:
    """The header of a file; not `alpha`: a band that is marked as alpha is taken for data.

    Raises `UserError` with the reason alone where it cannot be used.
    """
    rasterio, pyproj = geo()
    with environment(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            need_regular(path)
            with rasterio.open(path, driver=_driver(path)) as file:
                gcps, gcps_crs = file.gcps
                crs, placed = file.crs, not file.transform.is_identity
                if placed:
                    gcps = []
                elif gcps:
                    crs = gcps_crs
                is_alpha = [alpha and kind == rasterio.enums.ColorInterp.alpha for kind in file.colorinterp]
                bands = [k for k, hidden in enumerate(is_alpha) if not hidden]
                if bands != list(range(len(bands))) or not bands:
                    raise UserError("its alpha band is not the last one")
                if crs is None:
                    raise UserError("has no CRS")
                if not placed and not gcps:
                    raise UserError("has a CRS but neither a transform nor ground control points")
                tags = file.tags()
                flags = set(file.mask_flag_enums[0])
                masked = rasterio.enums.MaskFlags.per_dataset in flags
                if not alpha and rasterio.enums.MaskFlags.alpha in flags:
                    masked = False
                nodata = file.nodata
                header = Raster(
                    path=str(path),
                    crs=crs.to_wkt(),
                    transform=tuple(file.transform)[:6] if placed else None,
                    gcps=tuple((p.row, p.col, p.x, p.y) for p in gcps),
                    width=file.width,
                    height=file.height,
                    dtype=file.dtypes[0],
                    nodata=None if nodata is None else float(nodata),
                    names=tuple(file.descriptions[k] or "" for k in bands),
                    masked=masked,
                    date=str(tags.get("ACQUISITIONDATETIME") or tags.get("TIFFTAG_DATETIME") or ""),
                )
        except (rasterio.errors.RasterioError, OSError) as error:
            raise UserError(f"cannot be opened ({getattr(error, 'strerror', None) or reason(error)})") from None
    if np.dtype(header.dtype).kind not in "uif":
        raise UserError(f"holds {header.dtype} pixels, real numbers are expected")
    if header.transform is not None and abs(_area(header.transform)) == 0:
        raise UserError("has a transform that maps every pixel to one line")
    found = pyproj.CRS.from_wkt(header.crs)
    period = 0.0
    if found.is_geographic:
        period = 360.0
    elif found.equals(pyproj.CRS(MERCATOR)):
        period = 2 * HALF_WORLD_M
    return replace(header, period=period)


def _area(transform: Affine6) -> float:
    a, b, _, d, e, _ = transform
    return a * e - b * d


@lru_cache(maxsize=64)
def projector(source: str, target: str) -> Any:
    """pyproj transformer of (x, y) arrays, longitude before latitude; what cannot be projected becomes inf."""
    _, pyproj = geo()
    return pyproj.Transformer.from_crs(source, target, always_xy=True)


@lru_cache(maxsize=16)
def _control(raster: Raster) -> Any:
    """GDAL's polynomial through the ground control points."""
    rasterio, _ = geo()
    from rasterio.transform import GCPTransformer

    points = [rasterio.control.GroundControlPoint(row, col, x, y) for row, col, x, y in raster.gcps]
    return GCPTransformer(points)


def to_pixels(raster: Raster, x: np.ndarray, y: np.ndarray, crs: str = MERCATOR) -> tuple[np.ndarray, np.ndarray, int]:
    """Columns and rows (0 at the outer edge of the first pixel) of points given in `crs`, and the turns taken.

    Where coordinates repeat round the world, they are moved by `turns` periods to where the raster lies.
    """
    sx, sy = projector(crs, raster.crs).transform(np.ravel(x), np.ravel(y))
    sx, sy = np.asarray(sx, np.float64), np.asarray(sy, np.float64)
    turns = 0
    if raster.transform is None:
        column, row = _control_pixels(raster, sx, sy)
    else:
        if raster.period == 360 and crs == MERCATOR:
            # The square's right edge is 180, not -180.
            near = math.degrees(float(np.median(x)) / RADIUS_M)
            sx = near + np.mod(sx - near + 180, 360) - 180
        if raster.period and np.isfinite(sx).any():
            a, b, c, *_ = raster.transform
            middle = a * raster.width / 2 + b * raster.height / 2 + c
            # One step for all points: a tile stays whole.
            turns = round((middle - float(np.mean(sx[np.isfinite(sx)]))) / raster.period)
            sx = sx + turns * raster.period
        column, row = _inverse(raster.transform, sx, sy)
    return column.reshape(np.shape(x)), row.reshape(np.shape(x)), turns


def _inverse(transform: Affine6, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b, c, d, e, f = transform
    area = _area(transform)
    with np.errstate(invalid="ignore"):
        return (e * (x - c) - b * (y - f)) / area, (a * (y - f) - d * (x - c)) / area


def _control_pixels(raster: Raster, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    column, row = np.full(x.shape, np.inf), np.full(x.shape, np.inf)
    finite = np.isfinite(x) & np.isfinite(y)
    if finite.any():
        # GDAL's pixel edges, as for transforms: no rounding to whole pixels.
        rows, columns = _control(raster).rowcol(x[finite], y[finite], op=lambda value: value)
        row[finite], column[finite] = np.asarray(rows, np.float64), np.asarray(columns, np.float64)
    return column, row


def outline(raster: Raster, points: int = 21) -> tuple[np.ndarray, np.ndarray]:
    """Longitude (continuous, so it may leave ±180) and latitude along the raster's edge, in degrees.

    Raises `UserError` with the reason alone where none of it lies on the Earth.
    """
    step = np.linspace(0, 1, points)
    u = np.concatenate([step, np.ones(points), step[::-1], np.zeros(points)]) * raster.width
    v = np.concatenate([np.zeros(points), step, np.ones(points), step[::-1]]) * raster.height
    if raster.transform is None:
        x, y = _control(raster).xy(v, u, offset="ul")
    else:
        a, b, c, d, e, f = raster.transform
        x, y = a * u + b * v + c, d * u + e * v + f
    lon, lat = projector(raster.crs, LONLAT).transform(np.asarray(x), np.asarray(y))
    lon, lat = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
    if raster.period == 360:
        lon = np.asarray(x, np.float64)  # pyproj would wrap what lies beyond 180
    finite = np.isfinite(lon) & np.isfinite(lat)
    if not finite.any():
        raise UserError("lies outside the area of its CRS")
    return np.unwrap(lon[finite], period=360), lat[finite]


def native_spacing(raster: Raster, lon: float, lat: float) -> float:
    """Ground distance between the raster's pixels near a place, in metres: geodesic, geometric mean of both axes."""
    _, pyproj = geo()
    column, row, turns = to_pixels(raster, np.array([lon]), np.array([lat]), LONLAT)
    u = column + np.array([0, 1, 0])
    v = row + np.array([0, 0, 1])
    if raster.transform is None:
        x, y = (np.asarray(part) for part in _control(raster).xy(v, u, offset="ul"))
    else:
        a, b, c, d, e, f = raster.transform
        x, y = a * u + b * v + c - turns * raster.period, d * u + e * v + f
    lons, lats = projector(raster.crs, LONLAT).transform(x, y)
    if not np.isfinite([*lons, *lats]).all():
        return math.nan
    earth = pyproj.Geod(ellps="WGS84")
    _, _, along = earth.inv(lons[0], lats[0], lons[1], lats[1])
    _, _, down = earth.inv(lons[0], lats[0], lons[2], lats[2])
    return math.sqrt(along * down)


@lru_cache(maxsize=32)
def _opened(path: str, size: int, changed: int) -> Any:
    rasterio, _ = geo()
    with environment(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rasterio.open(path, driver=_driver(path))


# GDAL must not be called by an interpreter that is half gone.
atexit.register(_opened.cache_clear)
atexit.register(_control.cache_clear)


def read_window(
    raster: Raster, bands: list[int], row: int, column: int, height: int, width: int, nodata: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [bands, height, width], valid bool [height, width]) of a window that lies inside the raster.

    A pixel is missing where a mask or alpha below one half says so, where every one of `bands` (from 1) is `nodata`,
    or where any is not finite. Raises `SceneError`.
    """
    rasterio, _ = geo()
    window = rasterio.windows.Window(column, row, width, height)
    try:
        state = os.stat(raster.path)
        file = _opened(raster.path, state.st_size, state.st_mtime_ns)
        with environment():
            values = file.read(bands, window=window)
            masks = file.read_masks(bands[0], window=window) if raster.masked else None
        valid = np.isfinite(values).all(axis=0)
        if masks is not None:
            valid &= masks >= 128
        if nodata is not None and not math.isnan(nodata):
            valid &= (values != nodata).any(axis=0)
    except (rasterio.errors.RasterioError, OSError) as error:
        # A damaged file must not be served from what was cached of it.
        _opened.cache_clear()
        raise SceneError(raster.path, f"cannot be read ({reason(error)})") from None
    return values.astype(np.float32), valid
