"""GeoTIFFs as everything here reads them: opened alone, placed on the ground, and read window by window.

A raster is opened by GDAL's GeoTIFF driver and nothing else: no VRT (which names other files and URLs), no overview,
mask, world or metadata file beside it. What is read depends on that one file's bytes. A `Grid` says where pixels lie;
`read_grid` brings the bands of a raster onto any grid, with the validity of every value, reading only the blocks that
it touches. rasterio and pyproj are the extra "geo", imported where they are used.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.rasters.grid import Grid, geo, lonlat, transformer
from data_prep.records import file_token, need_regular
from frontier.errors import UserError

EXTENSIONS = (".tif", ".tiff", ".gtiff")
RESAMPLING = ("average", "bilinear", "nearest", "cubic")
_ALIGNED = 1e-3
"""Pixels by which two grids may differ at a corner and still be the same grid."""
_CHECK_BYTES = 16 << 20


def environment() -> Any:
    """The context to open and read in: no files beside the raster, damage is an error, little memory."""
    return geo()[0].Env(
        GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR",
        GDAL_PAM_ENABLED="NO",
        GDAL_GEOREF_SOURCES="INTERNAL",
        GDAL_ERROR_ON_LIBJPEG_WARNING="TRUE",
        GDAL_NUM_THREADS="1",
        GDAL_CACHEMAX=64,
        CPL_VSIL_CURL_ALLOWED_EXTENSIONS="{none}",
    )


def reason(error: BaseException) -> str:
    """One line of what GDAL said, the innermost cause first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def open_raster(path: str | Path) -> Any:
    """The raster, a rasterio dataset; to be called, read and closed inside `environment()`.

    Raises `UserError` with the path and why it cannot be read, or is none that is meant.
    """
    rasterio, _ = geo()
    path = Path(os.path.abspath(path))
    try:
        need_regular(path)
        with open(path, "rb") as file:
            head = file.read(4)
        if not head:
            raise UserError(f"{path}: empty file")
        if head[:2] not in (b"II", b"MM") or head[2:4] not in (b"*\0", b"\0*", b"+\0", b"\0+"):
            raise UserError(f"{path}: not a TIFF (a VRT or another format under this name): convert it to GeoTIFF")
        with warnings.catch_warnings():
            # What lacks a place is dealt with by `georeference`.
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            dataset = rasterio.open(path, driver="GTiff")
    except rasterio.errors.RasterioError as error:
        raise UserError(f"{path}: cannot be opened ({reason(error)})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or reason(error)})") from None
    problem = ""
    if dataset.count == 0 or dataset.width == 0 or dataset.height == 0:
        problem = "no pixels"
    elif len(dataset.subdatasets) > 1:
        problem = f"holds {len(dataset.subdatasets)} pages, one is expected: split them (tiffsplit)"
    elif len(set(dataset.dtypes)) > 1 or np.dtype(dataset.dtypes[0]).kind not in "uif":
        problem = f"pixels of {', '.join(sorted(set(dataset.dtypes)))}: one real type is expected"
    if problem:
        dataset.close()
        raise UserError(f"{path}: {problem}")
    return dataset


def check_unchanged(path: str | Path, token: bytes) -> None:
    """Raise `UserError` where a file is gone, or is not the one that had `token` (b"": any will do)."""
    try:
        changed = bool(token) and file_token(Path(path)) != token
    except OSError as error:
        raise UserError(f"{path}: cannot be read any more ({error.strerror}): restore it") from None
    if changed:
        raise UserError(f"{path}: changed while it was read: run the same command again")


class Rasters:
    """Open rasters by path, the most recently used few. A copy in another process starts with none."""

    def __init__(self, most: int = 16) -> None:
        self._most, self._open = most, OrderedDict[str, Any]()

    def __reduce__(self) -> tuple[type[Rasters], tuple[int]]:
        return Rasters, (self._most,)

    def get(self, path: str | Path, token: bytes = b"") -> Any:
        """As `open_raster`. Raises `UserError` also where the file no longer has the `token` given (`file_token`)."""
        key = str(path)
        if key not in self._open:
            check_unchanged(path, token)
            while len(self._open) >= self._most:
                self._open.popitem(last=False)[1].close()
            self._open[key] = open_raster(path)
        self._open.move_to_end(key)
        return self._open[key]

    def close(self) -> None:
        """Close all of them."""
        while self._open:
            self._open.popitem()[1].close()


def georeference(dataset: Any, *, crs: str = "", gcps: bool = False) -> tuple[Grid, float]:
    """The grid of a raster, and how far its control points lie from it at most (pixels; 0 without them).

    `crs` is taken where the file names none. With `gcps`, an affine fit to the file's ground control points does where
    it has no transform. Raises `UserError` (path, reason, mend) where the place is not known.
    """
    rasterio, pyproj = geo()
    path, found, affine, residual = dataset.name, dataset.crs, dataset.transform, 0.0
    points, points_crs = dataset.gcps
    if affine.is_identity and points:
        if not gcps:
            raise UserError(
                f"{path}: placed by {len(points)} ground control points only: warp it (gdalwarp), or pass "
                "--set gcps=use to fit an affine transform"
            )
        found, affine = points_crs or found, rasterio.transform.from_gcps(points)
        if affine.determinant != 0:
            fit = Grid("", (affine.a, affine.b, affine.c, affine.d, affine.e, affine.f), dataset.height, dataset.width)
            columns, rows = fit.pixels([point.x for point in points], [point.y for point in points])
            residual = max(math.hypot(c - p.col, r - p.row) for c, r, p in zip(columns, rows, points, strict=True))
    if not found:
        if not crs:
            raise UserError(f"{path}: no CRS: set it (gdal_edit.py -a_srs EPSG:…) or pass --set crs=EPSG:…")
        name = crs
    else:
        # 100: the very CRS of that code, not one much like it.
        code = found.to_epsg(confidence_threshold=100)
        name = f"EPSG:{code}" if code else found.to_wkt()
    if affine.is_identity:
        raise UserError(f"{path}: no geotransform: set one (gdal_edit.py -a_ullr …) or warp it")
    if affine.determinant == 0 or not all(map(math.isfinite, affine[:6])):
        raise UserError(
            f"{path}: geotransform {tuple(affine[:6])} has no inverse: set another (gdal_edit.py -a_ullr …)"
        )
    a, b, c, d, e, f = map(float, affine[:6])
    grid = Grid(name, (a, b, c, d, e, f), dataset.height, dataset.width)
    try:
        centre = lonlat(grid.crs, *grid.xy(grid.width / 2, grid.height / 2))
    except pyproj.exceptions.ProjError as error:
        raise UserError(f"{path}: CRS cannot be brought to longitude and latitude ({reason(error)})") from None
    if not np.isfinite(centre).all() or abs(float(centre[1])) > 90:
        raise UserError(f"{path}: its centre lies nowhere on Earth in {name[:40]}: mend the CRS or the geotransform")
    return grid, residual


def as_stored(nodata: float | None, dtype: np.dtype) -> float | None:
    """`nodata` as a pixel of `dtype` holds it; None where no pixel can."""
    if nodata is None or (dtype.kind == "f" and math.isnan(nodata)):
        return None
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return float(np.asarray(nodata, dtype))
    limits = np.iinfo(dtype)
    return nodata if float(nodata).is_integer() and limits.min <= nodata <= limits.max else None


def read_window(
    dataset: Any, bands: Sequence[int], nodata: Sequence[float | None], row: int, column: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Values [C, height, width] and their validity (bool, same shape) of pixels that may lie outside the raster.

    Not valid: outside, NaN or infinite, the band's `nodata`, and what alpha or an internal mask leaves out. Raises
    `UserError` where the blocks do not decode, or need more memory than there is.
    """
    try:
        return _read_window(dataset, bands, nodata, row, column, height, width)
    except MemoryError:
        raise UserError(
            f"{dataset.name}: {height}x{width} pixels of {len(bands)} bands need more memory than there is: cut it into "
            "smaller blocks (gdal_translate -co TILED=YES)"
        ) from None


def _read_window(
    dataset: Any, bands: Sequence[int], nodata: Sequence[float | None], row: int, column: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    rasterio, _ = geo()
    dtype = np.dtype(dataset.dtypes[0])
    values = np.zeros((len(bands), height, width), dtype)
    valid = np.zeros(values.shape, bool)
    top, left = max(row, 0), max(column, 0)
    bottom, right = min(row + height, dataset.height), min(column + width, dataset.width)
    if bottom <= top or right <= left:
        return values, valid
    window = rasterio.windows.Window(left, top, right - left, bottom - top)
    inside = (slice(None), slice(top - row, bottom - row), slice(left - column, right - column))
    try:
        found = dataset.read(list(bands), window=window)
        there = np.isfinite(found) if dtype.kind == "f" else np.ones(found.shape, bool)
        if rasterio.enums.MaskFlags.per_dataset in dataset.mask_flag_enums[bands[0] - 1]:
            there &= dataset.read_masks(bands[0], window=window) > 0
    except (rasterio.errors.RasterioError, OSError) as error:
        raise UserError(f"{dataset.name}: does not decode ({reason(error)})") from None
    for band, missing in enumerate(nodata):
        stored = as_stored(missing, dtype)
        if stored is not None:
            there[band] &= found[band] != dtype.type(stored)
    values[inside], valid[inside] = found, there
    return values, valid


def read_grid(
    dataset: Any, source: Grid, target: Grid, bands: Sequence[int], nodata: Sequence[float | None], resampling: str
) -> tuple[np.ndarray, np.ndarray]:
    """The raster (which lies on `source`) on the pixels of `target`: values [C, H, W] of its dtype, validity (bool).

    Where both grids have the same pixels this is a plain read. Else GDAL's warper weighs the valid values alone, and
    a pixel is valid where they make up half of its weight. Kernels widen when shrinking, so nothing is aliased.
    """
    rasterio, _ = geo()
    corners = (np.array([0, target.width, 0, target.width]), np.array([0, 0, target.height, target.height]))
    if source.crs == target.crs:
        columns, rows = source.pixels(*target.xy(*corners))
        left, top = round(float(columns[0])), round(float(rows[0]))
        away = max(np.abs(columns - left - corners[0]).max(), np.abs(rows - top - corners[1]).max())
        if away < _ALIGNED:
            return read_window(dataset, bands, nodata, top, left, target.height, target.width)
    along, down = np.linspace(0, target.width, 9), np.linspace(0, target.height, 9)
    mesh = target.xy(*(part.ravel() for part in np.meshgrid(along, down)))
    if source.crs != target.crs:
        mesh = transformer(target.crs, source.crs).transform(*mesh)
    columns, rows = source.pixels(*mesh)
    shape = (len(bands), target.height, target.width)
    dtype = np.dtype(dataset.dtypes[0])
    if not (np.isfinite(columns).all() and np.isfinite(rows).all()):
        return np.zeros(shape, dtype), np.zeros(shape, bool)
    shrink = (max(1e-9, np.ptp(columns) / target.width), max(1e-9, np.ptp(rows) / target.height))
    # A kernel reaches two pixels of the coarser grid; the mesh bends between its knots.
    margin = [math.ceil(2.5 * max(1.0, factor)) + 2 for factor in shrink]
    left, right = math.floor(columns.min()) - margin[0], math.ceil(columns.max()) + margin[0]
    top, bottom = math.floor(rows.min()) - margin[1], math.ceil(rows.max()) + margin[1]
    inside = left >= 0 and top >= 0 and right <= source.width and bottom <= source.height
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, source.width), min(bottom, source.height)
    if right <= left or bottom <= top:
        return np.zeros(shape, dtype), np.zeros(shape, bool)
    values, valid = read_window(dataset, bands, nodata, top, left, bottom - top, right - left)
    work = np.float32 if dtype.itemsize <= 2 or dtype == np.float32 else np.float64
    where = source.window(top, left, bottom - top, right - left)
    how = {
        "src_transform": rasterio.Affine(*where.affine),
        "src_crs": rasterio.crs.CRS.from_user_input(source.crs),
        "dst_transform": rasterio.Affine(*target.affine),
        "dst_crs": rasterio.crs.CRS.from_user_input(target.crs),
        "resampling": rasterio.enums.Resampling[resampling],
        "tolerance": 0.01,
    }
    total, weight = np.zeros(shape, work), np.ones(shape, np.float32)
    rasterio.warp.reproject(np.where(valid, values, 0).astype(work), total, **how)
    if not (inside and valid.all()):
        # Mostly the bands lack the same pixels, and one of them tells for all.
        parts = valid[:1] if (valid == valid[:1]).all() else valid
        found = np.zeros((len(parts), *shape[1:]), np.float32)
        rasterio.warp.reproject(parts.astype(np.float32), found, **how)
        weight[:] = found
    there = weight >= 0.5
    total = np.divide(total, weight, out=np.zeros_like(total), where=there)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        total = np.clip(np.rint(total), limits.min, limits.max)
    return total.astype(dtype), there


def decode_all(dataset: Any) -> bool:
    """Decode every block of every band and mask, a few MiB at a time; True where a value is NaN or infinite.

    Raises `UserError` at the first block that does not decode.
    """
    high, wide = dataset.block_shapes[0]
    pixel = dataset.count * np.dtype(dataset.dtypes[0]).itemsize
    across = min(dataset.width, wide * max(1, _CHECK_BYTES // (pixel * wide * high)))
    down = high * max(1, _CHECK_BYTES // (pixel * across * high))
    odd, bands, none = False, list(dataset.indexes), [None] * dataset.count
    for row in range(0, dataset.height, down):
        for column in range(0, dataset.width, across):
            size = (min(down, dataset.height - row), min(across, dataset.width - column))
            values, _ = read_window(dataset, bands, none, row, column, *size)
            odd = odd or (values.dtype.kind == "f" and not np.isfinite(values).all())
    return odd
