"""One scene's bands on the pixels of one tile; and several scenes laid over each other.

Where a tile's pixel is larger than the source's (geometric mean of both axes), it is the area-weighted average of what
it covers (of a turned pixel, its bounding box); else it is interpolated, bilinearly or cubically. Missing pixels take no part; a pixel is valid where at
least half of what it is made of was measured, so that edges and gaps do not grow. GDAL's approximate transformer is at
most 1/8 of a source pixel off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.rasters.grid import geo
from data_prep.tiles.grid import Tile, tile_transform
from data_prep.tiles.scene import MERCATOR, Raster, SceneError, read_window, to_pixels
from frontier.errors import UserError

MOST_VALUES = 1 << 28
"""Source values under one tile beyond which a level is taken for a mistake (1 GiB as float32)."""
Before = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Layer:
    """Bands of one raster: numbers in the file (from 1), their places in the tile, what counts as missing."""

    raster: Raster
    bands: tuple[int, ...]
    places: tuple[int, ...]
    nodata: float | None


@dataclass(frozen=True, slots=True)
class View:
    """How a tile looks in a raster: the window it needs, source pixels a tile pixel, turns round the world.

    `inside`: the whole window lies in the raster.
    """

    top: int
    left: int
    bottom: int
    right: int
    ratio: float
    turns: int
    inside: bool


def view(raster: Raster, tile: Tile, size: int) -> View | None:
    """The window under a tile, wide enough for a cubic kernel; None where the tile lies outside."""
    a, _, c, _, e, f = tile_transform(tile, size)
    steps = np.linspace(0, size, 9)
    u, v = np.meshgrid(steps, steps)
    column, row, turns = to_pixels(raster, a * u + c, e * v + f)
    finite = np.isfinite(column) & np.isfinite(row)
    if not finite.any():
        return None
    ratio = _ratio(column, row, size / 8)
    margin = 3 + int(np.ceil(2 * ratio))
    left, right = int(np.floor(column[finite].min())), int(np.ceil(column[finite].max()))
    top, bottom = int(np.floor(row[finite].min())), int(np.ceil(row[finite].max()))
    if right <= 0 or bottom <= 0 or left >= raster.width or top >= raster.height:
        return None
    top, left, bottom, right = top - margin, left - margin, bottom + margin, right + margin
    inside = finite.all() and top >= 0 and left >= 0 and bottom <= raster.height and right <= raster.width
    return View(top, left, bottom, right, ratio, turns, bool(inside))


def _ratio(column: np.ndarray, row: np.ndarray, step: float) -> float:
    """Side of a square of as many source pixels as one tile pixel covers, in the middle or where it is defined."""
    du, dv = np.gradient(column, step), np.gradient(row, step)
    with np.errstate(invalid="ignore"):
        area = np.abs(du[1] * dv[0] - du[0] * dv[1])
    middle = area[len(area) // 2, len(area) // 2]
    if not np.isfinite(middle):
        known = area[np.isfinite(area)]
        middle = float(np.median(known)) if known.size else 1.0
    return float(np.sqrt(middle))


def warp_layer(
    layer: Layer, tile: Tile, size: int, before: Before, resampling: str, pixels: bool = True
) -> tuple[np.ndarray, np.ndarray] | None:
    """(float32 [bands, size, size], valid bool [size, size]) of a layer; None where the tile lies outside it.

    `before` turns values as stored [bands, h, w] into those that are averaged; it may make some NaN: missing.
    `resampling`: bilinear or cubic, where tile pixels are the smaller ones. Without `pixels` the values may be 0
    where nothing is missing: for those who only ask for what is valid. Raises `UserError` that names the file.
    """
    rasterio, _ = geo()
    from rasterio.control import GroundControlPoint
    from rasterio.warp import Resampling, reproject

    raster = layer.raster
    seen = view(raster, tile, size)
    if seen is None:
        return None
    top, left = max(0, seen.top), max(0, seen.left)
    height, width = min(raster.height, seen.bottom) - top, min(raster.width, seen.right) - left
    if height * width * len(layer.bands) > MOST_VALUES:
        raise UserError(
            f"{raster.path}: tile {'/'.join(map(str, tile))} covers {width}x{height} of its pixels: give a larger level"
        )
    values, valid = read_window(raster, list(layer.bands), top, left, height, width, layer.nodata)
    values = before(values)
    valid &= np.isfinite(values).all(axis=0)
    whole = seen.inside and bool(valid.all())
    if whole and not pixels:
        return np.zeros((len(values), size, size), np.float32), np.ones((size, size), bool)
    # A rim of missing pixels: GDAL would stretch the outermost ones by half a pixel.
    rim = 2
    padded = np.full((len(values), height + 2 * rim, width + 2 * rim), np.nan, np.float32)
    padded[:, rim:-rim, rim:-rim] = np.where(valid, values, np.float32(np.nan))
    there = np.zeros(padded.shape[1:], np.float32)
    there[rim:-rim, rim:-rim] = valid
    where: dict[str, object] = {}
    if raster.transform is None:
        where["gcps"] = [
            GroundControlPoint(row - top + rim, column - left + rim, x, y) for row, column, x, y in raster.gcps
        ]
    else:
        a, b, c, d, e, f = raster.transform
        u, v = left - rim, top - rim
        x, y = a * u + b * v + c - seen.turns * raster.period, d * u + e * v + f
        where["src_transform"] = rasterio.Affine(a, b, x, d, e, y)
    method = Resampling.average if seen.ratio > 1 else Resampling[resampling]
    common = {
        "src_crs": raster.crs,
        "dst_crs": MERCATOR,
        "dst_transform": rasterio.Affine(*tile_transform(tile, size)),
        "num_threads": 1,
        **where,
    }
    out = np.full((len(values), size, size), np.nan, np.float32)
    cover = np.zeros((size, size), np.float32)
    try:
        reproject(padded, out, src_nodata=np.nan, dst_nodata=np.nan, resampling=method, **common)
        if whole:
            cover[:] = 1
        else:
            soft = Resampling.average if method is Resampling.average else Resampling.bilinear
            reproject(there, cover, resampling=soft, **common)
    except rasterio.errors.RasterioError as error:
        raise SceneError(raster.path, f"cannot be warped ({error})") from None
    return out, (cover >= 0.5) & np.isfinite(out).all(axis=0)


@dataclass(frozen=True, slots=True)
class Mosaic:
    """A tile of several scenes. `owner` [size, size] int16: which scene a pixel comes from, -1 where none."""

    values: np.ndarray
    valid: np.ndarray
    owner: np.ndarray

    @property
    def main(self) -> int:
        """The scene that most pixels come from, the first of equals; -1 where there is none."""
        there = self.owner[self.owner >= 0]
        return int(np.argmax(np.bincount(there))) if there.size else -1


def mosaic(
    scenes: Sequence[Sequence[Layer]],
    before: Sequence[Before],
    bands: int,
    tile: Tile,
    size: int,
    resampling: str,
    pixels: bool = True,
) -> Mosaic:
    """Scenes in order of preference: each pixel, with all its bands, is of the first scene that measured it.

    `scenes[k]` are the layers that together hold the bands of scene k. Missing pixels are NaN. `pixels` as in
    `warp_layer`.
    """
    values = np.full((bands, size, size), np.nan, np.float32)
    owner = np.full((size, size), -1, np.int16)
    for number, layers in enumerate(scenes):
        fresh = np.full((bands, size, size), np.nan, np.float32)
        valid = np.ones((size, size), bool)
        for layer in layers:
            warped = warp_layer(layer, tile, size, before[number], resampling, pixels)
            if warped is None:
                valid[:] = False
                break
            fresh[list(layer.places)] = warped[0]
            valid &= warped[1]
        take = valid & (owner < 0)
        values[:, take] = fresh[:, take]
        owner[take] = number
        if (owner >= 0).all():
            break
    return Mosaic(values, owner >= 0, owner)
