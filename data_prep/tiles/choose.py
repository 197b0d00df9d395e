"""Which tiles become samples: those that every sensor covers, by footprint first and by valid pixels then."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from data_prep.tiles.find import Scene
from data_prep.tiles.grid import HALF_WORLD_M, RADIUS_M, Tile, children, lonlat_bounds, tile_width, tiles_of_box
from data_prep.tiles.regions import Region, any_holds
from data_prep.tiles.scene import Raster, SceneError, outline, to_pixels
from data_prep.tiles.sensors import Recipe, before, layers
from data_prep.tiles.warp import Mosaic, mosaic
from frontier.errors import UserError


@dataclass(frozen=True)
class Work:
    """All that making a tile needs. `scenes[sensor]` in order of preference; `levels[sensor]`: 0 base, 1 children."""

    scenes: dict[str, tuple[Scene, ...]]
    recipe: Recipe
    size: int
    levels: dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Checked:
    """What a tile holds by sensor: (valid fraction, that of the worst child or 1, its main scene), or a bad file."""

    found: dict[str, tuple[float, float, int]]
    bad: tuple[str, str] | None = None


def touched(raster: Raster, level: int, regions: Sequence[Region] | None) -> np.ndarray:
    """[n, 2] int64 (x, y) of the tiles of a level that may overlap a raster, centre in a region where any is given.

    Raises `UserError` with the reason alone where the raster cannot be placed.
    """
    lon, lat = outline(raster)
    tiles = tiles_of_box(lon.min(), lat.min(), lon.max(), lat.max(), level)
    width = tile_width(level)
    if regions is not None:
        x, y = (tiles[:, 0] + 0.5) * width - HALF_WORLD_M, HALF_WORLD_M - (tiles[:, 1] + 0.5) * width
        inside = any_holds(list(regions), np.degrees(x / RADIUS_M), np.degrees(np.arctan(np.sinh(y / RADIUS_M))))
        tiles = tiles[inside]
    keep = np.zeros(len(tiles), bool)
    step = np.array([0, 0.5, 1])
    for start in range(0, len(tiles), 4096):
        part = tiles[start : start + 4096]
        x = (part[:, 0, None, None] + step[None, None, :]) * width - HALF_WORLD_M
        y = HALF_WORLD_M - (part[:, 1, None, None] + step[None, :, None]) * width
        x, y = np.broadcast_arrays(x, y)
        # By halves of the world: tiles on both sides of the antimeridian do not share their turns.
        for side in (part[:, 0] * width < HALF_WORLD_M, part[:, 0] * width >= HALF_WORLD_M):
            if not side.any():
                continue
            column, row, _ = to_pixels(raster, x[side], y[side])
            column, row = (np.where(np.isfinite(c), c, np.nan).reshape(int(side.sum()), 9) for c in (column, row))
            with np.errstate(invalid="ignore"):
                keep[start + np.flatnonzero(side)] = (
                    (_least(column) < raster.width)
                    & (-_least(-column) > 0)
                    & (_least(row) < raster.height)
                    & (-_least(-row) > 0)
                )
    return tiles[keep]


def _least(values: np.ndarray) -> np.ndarray:
    return np.fmin.reduce(values, axis=1)


def touched_or_reason(scene: Scene, level: int, recipe: Recipe, regions: Sequence[Region] | None) -> Any:
    """`touched` of a scene, or (path, reason). Picklable work for `Request.map`."""
    try:
        return touched(layers(scene, recipe)[0].raster, level, regions)
    except UserError as error:
        return scene.rasters[0].path if scene.rasters else scene.name, str(error)


def lay(work: Work, sensor: str, chosen: Sequence[int], tile: Tile, pixels: bool = True) -> Mosaic:
    """One sensor's mosaic of one tile; owners are numbers of `work.scenes[sensor]`. `pixels` as in `warp_layer`."""
    scenes = [work.scenes[sensor][number] for number in chosen]
    found = mosaic(
        [layers(scene, work.recipe) for scene in scenes],
        [before(scene, work.recipe) for scene in scenes],
        len(work.recipe.bands(sensor)),
        tile,
        work.size,
        "bilinear" if sensor == "s1" else work.recipe.resampling,
        pixels,
    )
    return Mosaic(found.values, found.valid, np.array([*chosen, -1], np.int32)[found.owner])


def check(item: tuple[Tile, dict[str, tuple[int, ...]]], work: Work) -> Checked:
    """How much of a tile each sensor measured. `item`: the tile and the scenes that may touch it, by sensor."""
    tile, chosen = item
    found = {}
    try:
        for sensor, numbers in chosen.items():
            whole, worst, main = 1.0, 1.0, -1
            if 1 in work.levels[sensor]:
                parts = [lay(work, sensor, numbers, child, pixels=False) for child in children(tile)]
                fractions = [float(part.valid.mean()) for part in parts]
                whole, worst = float(np.mean(fractions)), min(fractions)
                main = Mosaic(parts[0].values, parts[0].valid, np.stack([part.owner for part in parts])).main
            if 0 in work.levels[sensor]:
                base = lay(work, sensor, numbers, tile, pixels=False)
                whole, main = float(base.valid.mean()), base.main
            found[sensor] = (whole, worst, main)
    except SceneError as error:
        return Checked({}, (error.path, error.reason))
    return Checked(found)


Map = Callable[[Any, Sequence[Any]], list[Any]]


def joint_tiles(
    covers: dict[str, list[np.ndarray]], level: int, regions: bool
) -> dict[Tile, dict[str, tuple[int, ...]]]:
    """Tiles that scenes of every sensor touch -> the numbers of those scenes, by sensor, in order.

    `covers[sensor][k]`: what `touched` found for scene k. Raises `UserError` that says where each sensor's tiles are.
    """
    by_sensor: dict[str, dict[tuple[int, int], list[int]]] = {}
    for sensor, scenes in covers.items():
        tiles = by_sensor[sensor] = {}
        for number, cover in enumerate(scenes):
            for x, y in cover.tolist():
                tiles.setdefault((x, y), []).append(number)
    common = set.intersection(*(set(tiles) for tiles in by_sensor.values()))
    if not common:
        held = "; ".join(f"{sensor} {_extent(list(tiles), level)}" for sensor, tiles in by_sensor.items())
        mend = "give scenes of one place" if len(by_sensor) > 1 else "give other scenes"
        inside = " inside the regions" if regions else ""
        raise UserError(
            f"no tile of level {level} is covered by every sensor{inside}: {held}: {mend}"
            + (", or other regions" if regions else "")
        )
    return {
        Tile(level, x, y): {sensor: tuple(tiles[x, y]) for sensor, tiles in by_sensor.items()}
        for x, y in sorted(common, key=lambda place: (place[1], place[0]))
    }


def _extent(tiles: list[tuple[int, int]], level: int) -> str:
    """How many tiles, and the box round them in degrees."""
    if not tiles:
        return "has no tile"
    bounds = np.array([lonlat_bounds(Tile(level, x, y)) for x, y in tiles])
    west, south = bounds[:, :2].min(axis=0)
    east, north = bounds[:, 2:].max(axis=0)
    return f"has {len(tiles)} tiles (longitude {west:.4f} to {east:.4f}, latitude {south:.4f} to {north:.4f})"


def check_all(
    tiles: dict[Tile, dict[str, tuple[int, ...]]], work: Work, run: Map
) -> tuple[dict[Tile, Checked], list[tuple[str, str]]]:
    """Every tile checked, and the files that cannot be read. Such a file's scene takes no part in what is returned."""
    done: dict[Tile, Checked] = {}
    bad: dict[str, str] = {}
    pending = list(tiles.items())
    while pending:
        answers = run(partial(check, work=work), pending)
        fresh = {answer.bad[0]: answer.bad[1] for answer in answers if answer.bad is not None}
        for (tile, _), answer in zip(pending, answers, strict=True):
            if answer.bad is None:
                done[tile] = answer
        bad |= fresh
        lost = {
            sensor: {k for k, scene in enumerate(scenes) if any(raster.path in bad for raster in scene.rasters)}
            for sensor, scenes in work.scenes.items()
        }
        again = []
        for tile, chosen in tiles.items():
            left = {sensor: tuple(k for k in numbers if k not in lost[sensor]) for sensor, numbers in chosen.items()}
            if left == chosen:
                continue
            tiles[tile] = left
            done.pop(tile, None)
            again.append((tile, left))
        # A tile without one sensor's scenes is not joint any more, but its other files are checked all the same.
        pending = again if fresh else []
    return done, sorted(bad.items())


def describe_best(checked: dict[Tile, Checked], sensors: Sequence[str]) -> str:
    """The best valid fraction of each sensor over all tiles, for an error message."""
    parts = []
    for sensor in sensors:
        best = max((answer.found[sensor][0] for answer in checked.values()), default=math.nan)
        worst_child = max((answer.found[sensor][1] for answer in checked.values()), default=math.nan)
        parts.append(
            f"{sensor} {best:.2f}" + (f" ({worst_child:.2f} of the worst child)" if worst_child < best else "")
        )
    return ", ".join(parts)
