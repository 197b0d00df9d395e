"""From files to chips: look at every raster, then cut every place (one scene, or a stack of dates) into chips."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.rasters.chips import Boxes, block_groups, offsets, places, scene_groups
from data_prep.rasters.grid import Grid, epsg_code, ground_distance
from data_prep.rasters.options import number
from data_prep.rasters.raster import Rasters, decode_all, environment, open_raster
from data_prep.rasters.raster_layer import Cut, Layer, describe_layer, pixel_mask, read_layer
from data_prep.readers.registry import Request
from data_prep.records import Record, file_token
from frontier.errors import UserError

_SIDECARS = (".msk", ".ovr", ".aux.xml")
_FEW = 10
"""Scenes below which whole ones are too coarse to split by."""


@dataclass(frozen=True)
class Looked:
    """What looking at one file showed: its layer, or the reason why it cannot be used."""

    path: str
    layer: Layer | None = None
    error: str = ""
    token: bytes = b""
    not_numbers: bool = False
    sidecars: int = 0


def look(argument: tuple[str, str, Cut]) -> Looked:
    """(root, relative path, cut) → the file's header, and with `cut.decode` whether every block decodes."""
    root, path, cut = argument
    whole = Path(os.path.abspath(Path(root, path)))
    try:
        with environment(), open_raster(whole) as dataset:
            layer = describe_layer(dataset, cut)
            odd = decode_all(dataset) if cut.decode else np.dtype(layer.dtype).kind == "f"
            if odd and cut.nan_error:
                raise UserError(f"{whole}: NaN or infinite pixels: mend them, or pass --set nan=missing")
        token = file_token(whole)
    except UserError as error:
        return Looked(path, error=str(error).removeprefix(f"{whole}: "))
    beside = sum(Path(f"{whole}{end}").exists() for end in _SIDECARS)
    return Looked(path, replace(layer, token=token), "", token, odd, beside)


@dataclass(frozen=True)
class Place:
    """One scene, or one stack of dates, cut into chips [n]; or the reason why not. `grid`: pixels of the chips."""

    name: str
    layers: tuple[Layer, ...]
    grid: Grid
    epsg: int = 0
    corners: np.ndarray | None = None
    lon: np.ndarray | None = None
    lat: np.ndarray | None = None
    gsd: np.ndarray | None = None
    left_out: int = 0
    error: str = ""

    def corner_list(self) -> np.ndarray:
        """(row, column) of the chips, [n, 2]."""
        return np.zeros((0, 2), np.int32) if self.corners is None else self.corners


def chip_grid(layer: Layer, cut: Cut) -> Grid:
    """The layer's own pixels, or with `gsd` square ones of that many true metres at the scene's centre."""
    if cut.gsd is None:
        return layer.grid
    along, down = ground_distance(layer.grid, layer.grid.width / 2, layer.grid.height / 2)
    return layer.grid.scaled(cut.gsd / float(along), cut.gsd / float(down))


def read_place(rasters: Rasters, place: Place, cut: Cut, row: int, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Values [T, C, N, N] and their validity (bool, same shape) of one chip: one entry of T a layer."""
    target = place.grid.window(row, column, cut.size, cut.size)
    with environment():
        read = [read_layer(rasters.get(layer.path, layer.token), layer, target, cut) for layer in place.layers]
    return np.stack([values for values, _ in read]), np.stack([valid for _, valid in read])


def cut_place(argument: tuple[str, tuple[Layer, ...], tuple[bool, ...], Cut]) -> Place:
    """(name, layers, whether each may hold NaN, cut) → the place's chips that are valid enough."""
    name, layers, odd, cut = argument
    grid = chip_grid(layers[0], cut)
    corners = offsets(grid.height, grid.width, cut.size, cut.stride, cut.pad)
    if len(corners) == 0 or grid.height < 1 or grid.width < 1:
        return Place(
            name,
            layers,
            grid,
            error=f"{grid.height}x{grid.width} pixels, less than a chip of {cut.size}: give a smaller --set size=, or "
            "--set edge=pad",
        )
    place = Place(name, layers, grid)
    whole = not cut.pad and not any(odd) and all(layer.grid == grid and not _gaps(layer) for layer in layers)
    keep = np.ones(len(corners), bool)
    if cut.min_valid > 0 and not whole:
        rasters = Rasters()
        try:
            for chip, (row, column) in enumerate(corners.tolist()):
                _, valid = read_place(rasters, place, cut, row, column)
                masks = [pixel_mask(one, layer, cut) for one, layer in zip(valid, layers, strict=True)]
                keep[chip] = np.mean(masks) >= cut.min_valid
        except UserError as error:
            return Place(name, layers, grid, error=str(error))
        finally:
            rasters.close()
    kept = corners[keep]
    lon, lat, gsd = places(grid, kept, cut.size)
    if not np.isfinite(gsd).all():
        return Place(name, layers, grid, error="some of its chips lie nowhere on Earth: crop it, or mend its CRS")
    return Place(name, layers, grid, epsg_code(grid.crs), kept, lon, lat, gsd, int((~keep).sum()))


def _gaps(layer: Layer) -> bool:
    """Whether the header allows for missing pixels."""
    return layer.masked or any(value is not None for value in layer.nodata)


def describe_places(found: Sequence[Place], looked: Sequence[Looked]) -> dict[str, Any]:
    """Counts for the notes of the manifest."""
    layers = [layer for place in found for layer in place.layers]
    return {
        "scenes": len(layers),
        "chips_below_min_valid": sum(place.left_out for place in found),
        "times_unknown": sum(layer.time == (0, 0) for layer in layers),
        "sidecar_files_ignored": sum(one.sidecars for one in looked),
        "placed_by_control_points": sum(layer.gcp_residual > 0 for layer in layers),
    }


def chip_records(
    request: Request, found: Sequence[Place], size: int, stride: int, min_valid: float, block: int
) -> tuple[list[Record], dict[str, Any]]:
    """A record a chip of `size` pixels, with its group, and counts. Payload: (place, row, column, metres a pixel).

    `block`: pixels of a ground block where the settings give no `block_m`.
    """
    mode = request.settings["group"]
    if mode != "block" and request.settings["block_m"]:
        raise UserError("--set block_m: has no effect without --set group=block: leave it out")
    corners = [place.corner_list() for place in found]
    keep = np.ones(sum(map(len, corners)), bool)
    if len(keep) == 0:
        raise UserError(
            f"{request.path}: no chip has {min_valid:g} of its pixels valid: lower --set min_valid= or size="
        )
    if mode != "block":
        whole = Boxes.join([Boxes.of(p.grid, np.zeros((1, 2)), p.grid.height, p.grid.width) for p in found])
        names = scene_groups([place.name for place in found], whole)
        groups = [name for name, part in zip(names, corners, strict=True) for _ in part]
        apart = len(set(names)) == len(names) < _FEW and stride >= size
        mode = "block" if mode == "auto" and apart else "scene"
    if mode == "block":
        boxes = Boxes.join([Boxes.of(p.grid, part, size, size) for p, part in zip(found, corners, strict=True)])
        lon, lat, gsd = (
            np.concatenate([getattr(place, name) for place in found if place.corners is not None])
            for name in ("lon", "lat", "gsd")
        )
        side = number(request.settings, "block_m", float, 1) if request.settings["block_m"] else None
        groups, keep = block_groups(lon, lat, boxes, side or block * float(np.median(gsd)))
    records, chip = [], 0
    for index, (place, part) in enumerate(zip(found, corners, strict=True)):
        if place.lon is None or place.lat is None or place.gsd is None:
            continue
        for k, (row, column) in enumerate(part.tolist()):
            if keep[chip]:
                records.append(
                    Record(
                        os.fsencode(f"{place.name}:{row}:{column}"),
                        (index, row, column, float(place.gsd[k])),
                        group=groups[chip],
                        lon=float(place.lon[k]),
                        lat=float(place.lat[k]),
                    )
                )
            chip += 1
    return records, {"chips_across_blocks_left_out": int((~keep).sum()), "grouped_by": mode, "groups": len(set(groups))}
