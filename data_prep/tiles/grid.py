"""XYZ tiles of the Web-Mercator square (EPSG:3857): closed forms, nothing else.

Level z has 2^z x 2^z tiles; x runs east from the antimeridian, y south from the northern limit (85.0511 degrees).
With R = 6378137 m, a tile of level z is 2πR / 2^z Mercator metres wide; on the ground it is cos(latitude) times that.
(cos(latitude) takes the Earth for a sphere; on the ellipsoid the true length differs by up to 0.7 %.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

RADIUS_M = 6378137.0
HALF_WORLD_M = math.pi * RADIUS_M
"""Web-Mercator coordinates run from minus to plus this."""
LIMIT_LAT = math.degrees(math.atan(math.sinh(math.pi)))
"""85.0511…: the latitude at which the square ends."""
MAX_LEVEL = 24


class Tile(NamedTuple):
    """One tile: level, column from the west, row from the north."""

    z: int
    x: int
    y: int


def tile_width(level: int) -> float:
    """Width and height of a tile in Mercator metres."""
    return 2 * HALF_WORLD_M / (1 << level)


def tile_bounds(tile: Tile) -> tuple[float, float, float, float]:
    """(west, south, east, north) in Mercator metres."""
    width = tile_width(tile.z)
    west, north = tile.x * width - HALF_WORLD_M, HALF_WORLD_M - tile.y * width
    return west, north - width, west + width, north


def tile_transform(tile: Tile, size: int) -> tuple[float, float, float, float, float, float]:
    """Affine (a, b, c, d, e, f) from pixel (column, row) of a `size` x `size` tile to Mercator metres."""
    west, _, _, north = tile_bounds(tile)
    step = tile_width(tile.z) / size
    return step, 0.0, west, 0.0, -step, north


def children(tile: Tile) -> tuple[Tile, Tile, Tile, Tile]:
    """The four tiles of the next level: top left, top right, bottom left, bottom right (rows of an image)."""
    z, x, y = tile.z + 1, 2 * tile.x, 2 * tile.y
    return Tile(z, x, y), Tile(z, x + 1, y), Tile(z, x, y + 1), Tile(z, x + 1, y + 1)


def ancestor(tile: Tile, levels: int) -> Tile:
    """The tile `levels` up that holds `tile`, or the whole world."""
    up = min(levels, tile.z)
    return Tile(tile.z - up, tile.x >> up, tile.y >> up)


def mercator_to_lonlat(x: float, y: float) -> tuple[float, float]:
    """Degrees of a point in Mercator metres."""
    return math.degrees(x / RADIUS_M), math.degrees(math.atan(math.sinh(y / RADIUS_M)))


def lonlat_to_mercator(lon: float, lat: float) -> tuple[float, float]:
    """Mercator metres of a point in degrees; a latitude beyond the limit is taken for the limit."""
    lat = min(max(lat, -LIMIT_LAT), LIMIT_LAT)
    return math.radians(lon) * RADIUS_M, math.asinh(math.tan(math.radians(lat))) * RADIUS_M


def tile_centre(tile: Tile) -> tuple[float, float]:
    """(longitude, latitude) in degrees of the tile's middle in the Mercator plane."""
    west, south, east, north = tile_bounds(tile)
    return mercator_to_lonlat((west + east) / 2, (south + north) / 2)


def lonlat_bounds(tile: Tile) -> tuple[float, float, float, float]:
    """(west, south, east, north) in degrees."""
    west, south, east, north = tile_bounds(tile)
    return *mercator_to_lonlat(west, south), *mercator_to_lonlat(east, north)


def tile_at(lon: float, lat: float, level: int) -> Tile:
    """The tile that holds a point. Longitudes wrap; latitudes beyond the limit belong to the outermost row."""
    count = 1 << level
    x, y = lonlat_to_mercator(lon, lat)
    column = math.floor((x + HALF_WORLD_M) / (2 * HALF_WORLD_M) * count)
    row = math.floor((HALF_WORLD_M - y) / (2 * HALF_WORLD_M) * count)
    return Tile(level, column % count, min(max(row, 0), count - 1))


def tiles_of_box(west: float, south: float, east: float, north: float, level: int) -> np.ndarray:
    """[n, 2] int64 (x, y) of the tiles that a box in degrees touches, by y, then x from the west of the box.

    `east` may exceed 180, or be less than `west` (across the antimeridian); no tile comes twice.
    """
    if south >= LIMIT_LAT or north <= -LIMIT_LAT:
        return np.empty((0, 2), np.int64)
    count = 1 << level
    if east < west:
        east += 360
    first = math.floor((west + 180) / 360 * count)
    # A box that ends on an edge does not touch the tile beyond it.
    last = max(first, math.ceil((east + 180) / 360 * count) - 1)
    columns = np.arange(first, min(last, first + count - 1) + 1) % count
    top = tile_at(0, north, level).y
    _, y = lonlat_to_mercator(0, south)
    bottom = max(top, min(count, math.ceil((HALF_WORLD_M - y) / (2 * HALF_WORLD_M) * count)) - 1)
    rows = np.arange(top, bottom + 1)
    return np.stack([np.tile(columns, len(rows)), np.repeat(rows, len(columns))], -1).astype(np.int64)


def ground_spacing(level: int, size: int, lat: float) -> float:
    """Metres on the ground between pixels of a `size` x `size` tile at latitude `lat`: Mercator metres x cos(lat)."""
    return tile_width(level) / size * math.cos(math.radians(lat))
