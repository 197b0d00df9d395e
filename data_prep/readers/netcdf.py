"""NetCDF cubes of time, y, x (and band): chips [T, C, N, N], or the series of single pixels [T, C].

Variables become bands, with a mask for every value: one sensor may be missing at a date where another is there. The
file's kind is told by its bytes (NetCDF-4 is HDF5; NetCDF-3 also hides under .nc). Cubes with fewer steps than `steps`
end in steps that are wholly missing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_prep.rasters.chips import offsets, places
from data_prep.rasters.cube import Cube, cube_disagreement, decode_all, describe_cube, read_bands
from data_prep.rasters.cube_file import CubeFile
from data_prep.rasters.cube_source import TILE, Choice, CubeSource
from data_prep.rasters.grid import epsg_code
from data_prep.rasters.labels import MISSING_CLASS, parse_classes, to_classes
from data_prep.rasters.options import find_files, number, words
from data_prep.rasters.raster_layer import SETTINGS
from data_prep.rasters.raster_places import Place, chip_records
from data_prep.readers.registry import Reader, Request, Setting
from data_prep.records import file_token, inputs_digest
from frontier.errors import UserError

EXTENSIONS = (".nc", ".nc4", ".netcdf", ".cdf")


def parse_choice(settings: Mapping[str, str]) -> Choice:
    """Raises `UserError` for a setting that cannot be."""
    pixels = settings["unit"] == "pixel"
    if pixels and settings["size"]:
        raise UserError(f"--set size={settings['size']}: has no effect with unit=pixel: leave it out")
    size = 1 if pixels else (number(settings, "size", int, 1) if settings["size"] else 32)
    return Choice(
        words(settings["variables"]),
        words(settings["static"]),
        settings["label"],
        pixels,
        size,
        number(settings, "stride", int, 1) if settings["stride"] else size,
        number(settings, "min_valid", float, 0, 1),
        settings["scaling"] == "apply",
        settings["crs"],
        number(settings, "fill", float, -math.inf) if settings["fill"] else None,
        settings["check"] == "blocks",
        parse_classes(settings["classes"])[1],
    )


@dataclass(frozen=True)
class CubeLook:
    """What one file holds: its cube and chips, and their labels where single pixels have them; or why it cannot be used."""

    path: str
    cube: Cube | None = None
    place: Place | None = None
    labels: np.ndarray | None = None
    greatest: int = -1
    token: bytes = b""
    error: str = ""


def look(argument: tuple[str, str, Choice]) -> CubeLook:
    """(root, relative path, choice) → the file's header, decoded values and chips."""
    root, path, choice = argument
    whole = os.path.abspath(Path(root, path))
    try:
        with CubeFile(whole) as file:
            cube = describe_cube(file, choice.variables, choice.static, choice.label, choice.crs, choice.fill)
            if choice.decode:
                decode_all(file, cube)
            place, labels, greatest = _cut(file, cube, path, choice)
        token = file_token(Path(whole))
        return CubeLook(path, replace(cube, token=token), place, labels, greatest, token)
    except UserError as error:
        return CubeLook(path, error=str(error).removeprefix(f"{whole}: "))


def _cut(file: CubeFile, cube: Cube, name: str, choice: Choice) -> tuple[Place, np.ndarray | None, int]:
    """The chips, or pixels, that are valid enough; labels of pixels; the greatest class."""
    grid, size = cube.grid, choice.size
    corners = offsets(grid.height, grid.width, size, choice.stride, False)
    if len(corners) == 0:
        raise UserError(
            f"{file.path}: {grid.height}x{grid.width} pixels, less than a chip of {size}: give a smaller size"
        )
    keep = np.ones(len(corners), bool)
    if choice.min_valid > 0:
        keep = _valid_share(file, cube, corners, choice) >= choice.min_valid
    kept = corners[keep]
    labels, greatest = None, -1
    if cube.label is not None:
        values, valid = read_bands(file, cube, [cube.label], (0, 0, grid.height, grid.width), False)
        try:
            classes = to_classes(values[0], valid[0], choice.class_values)
        except ValueError as error:
            raise UserError(f"{file.path}: {cube.label.name}: {error}") from None
        there = classes[classes != MISSING_CLASS]
        greatest = int(there.max()) if len(there) else -1
        if choice.pixels:
            found = classes[tuple(kept.T)].astype(np.int32)
            labels = np.where(found == MISSING_CLASS, -1, found)
    lon, lat, gsd = places(grid, kept, size)
    place = Place(name, (), grid, epsg_code(grid.crs), kept, lon, lat, gsd, int((~keep).sum()))
    return place, labels, greatest


def _valid_share(file: CubeFile, cube: Cube, corners: np.ndarray, choice: Choice) -> np.ndarray:
    """Share of valid values over all steps and bands, of each chip or pixel from `corners` [n, 2] on: [n]."""
    out = np.empty(len(corners))
    if not choice.pixels:
        for chip, (row, column) in enumerate(corners.tolist()):
            box = (row, column, choice.size, choice.size)
            out[chip] = read_bands(file, cube, cube.bands, box, False)[1].mean()
        return out
    tiles = corners // TILE
    for tile in np.unique(tiles, axis=0):
        row, column = (tile * TILE).tolist()
        box = (row, column, min(TILE, cube.grid.height - row), min(TILE, cube.grid.width - column))
        share = read_bands(file, cube, cube.bands, box, False)[1].mean(axis=(0, 1))
        members = (tiles == tile).all(axis=1)
        out[members] = share[tuple((corners[members] - (row, column)).T)]
    return out


def open_netcdf(request: Request) -> CubeSource:
    """Look at every file and cut those that agree with the first. Raises `UserError`, see `Request.settle`."""
    choice = parse_choice(request.settings)
    paths = find_files(request, EXTENSIONS, "NetCDF files")
    root = request.path.parent if request.path.is_file() else request.path
    good: list[CubeLook] = []
    bad: list[tuple[str, str]] = []
    for one in request.map(look, [(str(root), path, choice) for path in paths], costly=True):
        why = one.error
        if one.cube is not None:
            why = cube_disagreement(one.cube, (good[0].cube if good else None) or one.cube, choice.apply)
        if why:
            bad.append((one.path, why))
        else:
            good.append(one)
    notes = request.settle(bad, len(paths), "files")
    cubes = [one.cube for one in good if one.cube is not None]
    found = [one.place for one in good if one.place is not None]
    longest = max(len(cube.times) for cube in cubes)
    steps = number(request.settings, "steps", int, 1) if request.settings["steps"] else longest
    if longest > steps:
        raise UserError(f"{request.path}: a cube has {longest} steps: give --set steps={longest} or more")
    names, _ = parse_classes(request.settings["classes"])
    if names and not choice.label:
        raise UserError("--set classes: has no effect without --set label=…: leave it out")
    greatest = max(one.greatest for one in good)
    names = names or cubes[0].label_classes
    if names and greatest >= len(names):
        raise UserError(
            f"{request.path}: {len(names)} class names, but labels up to {greatest}: name them by --set classes=…"
        )
    classes = names or tuple(str(value) for value in range(greatest + 1))
    records, counts = chip_records(
        request, found, choice.size, choice.stride, choice.min_valid, 32 if choice.pixels else 8 * choice.size
    )
    if choice.pixels and choice.label:
        label_of = [
            {tuple(corner): int(label) for corner, label in zip(place.corner_list().tolist(), one.labels, strict=True)}
            for one, place in zip(good, found, strict=True)
            if one.labels is not None
        ]
        records = [replace(r, label=label_of[r.payload[0]][r.payload[1:3]]) for r in records]
    notes |= counts | {
        "cubes": len(cubes),
        "chips_below_min_valid": sum(place.left_out for place in found),
        "cubes_with_missing_steps": sum(len(cube.times) < steps for cube in cubes),
        "fill_value_of_the_whole_file_used": sum(cube.fill_of_file for cube in cubes),
    }
    inputs = inputs_digest((one.path, one.token) for one in good)
    return CubeSource(request, choice, cubes, found, records, steps, classes, inputs=inputs, notes=notes)


NETCDF = Reader(
    name="netcdf",
    summary="NetCDF cubes of time, y and x: chips or single pixels as time series",
    expects="a NetCDF-4 or NetCDF-3 file, or a folder of them at any depth (.nc), with CF coordinates and a grid mapping",
    open=open_netcdf,
    uses=frozenset({"on_error", "license", "citation"}),
    settings={
        "unit": Setting("a sample is a chip, or the series of one pixel", "chip", ("chip", "pixel")),
        "size": Setting("side of a chip in pixels; none: 32"),
        "stride": Setting("pixels from one sample to the next; none: the size; 1 for pixels"),
        "min_valid": Setting("leave out samples with a smaller share of valid values, 0 to 1", "0.5"),
        "variables": Setting("variables in order, comma-separated; none: all numeric ones with time, y and x"),
        "static": Setting("variables with y and x alone, as a second input, comma-separated"),
        "label": Setting("variable with y and x alone that holds classes: a map of chips, the label of pixels"),
        "classes": Setting(
            "names of the classes 0, 1, …, or VALUE:NAME of each, comma-separated; none: flag_meanings, or numbers"
        ),
        "steps": Setting("steps of a series; shorter ones end in missing steps; none: the longest"),
        "fill": Setting("stored value that marks what is missing; none: the variable's, else the file's _FillValue"),
        "scaling": Setting(
            "record scale_factor and add_offset, or apply them (float32, physical units)", "record", ("record", "apply")
        ),
        "crs": Setting("CRS of files that name none, such as EPSG:32631"),
        "check": Setting("at listing, read every value, or what min_valid needs", "blocks", ("blocks", "headers")),
        "group": SETTINGS["group"],
        "block_m": replace(SETTINGS["block_m"], help="side of a ground block in metres; none: 8 chips, or 32 pixels"),
    },
)
READERS = (NETCDF,)
