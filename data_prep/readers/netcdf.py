"""NetCDF cubes of time, y, x (and band): chips [T, C, N, N], or the series of single pixels [T, C].

Variables become bands, with a mask for every value: one sensor may be missing at a date where another is there. The
file's kind is told by its bytes (NetCDF-4 is HDF5; NetCDF-3 also hides under .nc). Cubes with fewer steps than `steps`
end in steps that are wholly missing.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.chips import offsets, places
from data_prep.cube import Cube, common_dtype, cube_disagreement, decode_all, describe_cube, read_bands
from data_prep.cube_file import CubeFile
from data_prep.grid import epsg_code
from data_prep.labels import MISSING_CLASS, parse_classes, to_classes
from data_prep.raster import check_unchanged
from data_prep.raster_layer import SETTINGS, number, words
from data_prep.raster_places import Place, chip_records
from data_prep.raster_source import COLUMNS, TRANSFORM, SortedSource
from data_prep.readers.registry import Reader, Request, Setting
from data_prep.records import Record, file_token, inputs_digest
from data_prep.source import ArrayColumn, Band, ImageColumn, Target
from frontier.errors import UserError

EXTENSIONS = (".nc", ".nc4", ".netcdf", ".cdf")
_TILE = 64
"""Side of the boxes that single pixels are read in."""


@dataclass(frozen=True)
class Choice:
    """The settings, parsed. `size` is 1 for single pixels."""

    variables: tuple[str, ...]
    static: tuple[str, ...]
    label: str
    pixels: bool
    size: int
    stride: int
    min_valid: float
    apply: bool
    crs: str
    fill: float | None
    decode: bool
    class_values: tuple[int, ...]


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
    tiles = corners // _TILE
    for tile in np.unique(tiles, axis=0):
        row, column = (tile * _TILE).tolist()
        box = (row, column, min(_TILE, cube.grid.height - row), min(_TILE, cube.grid.width - column))
        share = read_bands(file, cube, cube.bands, box, False)[1].mean(axis=(0, 1))
        members = (tiles == tile).all(axis=1)
        out[members] = share[tuple((corners[members] - (row, column)).T)]
    return out


class CubeSource(SortedSource):
    """Chips or pixels of cubes: "series", its mask "valid", "times"; optionally "static" with "static_valid", and
    "label_map"."""

    def __init__(
        self,
        request: Request,
        choice: Choice,
        cubes: Sequence[Cube],
        found: Sequence[Place],
        records: Sequence[Record],
        steps: int,
        classes: Sequence[str],
        *,
        inputs: str,
        notes: Mapping[str, Any],
    ) -> None:
        super().__init__(
            records,
            settings={"kind": request.reader.name, "settings": dict(request.settings)},
            inputs=inputs,
            notes=notes,
            classes=classes if choice.pixels else (),
        )
        self.name = request.name or request.path.resolve().name
        self.license = request.license or request.reader.license
        self.citation = request.citation or request.reader.citation
        self.choice, self.cubes, self.places, self.steps = choice, list(cubes), list(found), steps
        self._files, self._tiles = OpenCubes(), OpenCubes()
        space, letters = ((), "") if choice.pixels else ((choice.size, choice.size), "HW")
        first = cubes[0]
        gsd = np.array([record.payload[3] for record in records])
        level = round(float(np.median(gsd)), 6) if np.ptp(gsd) <= 0.01 * gsd.min() else None
        self.images = {}
        self.arrays = {
            "transform": TRANSFORM,
            "times": ArrayColumn((steps, 2), "int64", "TK", "other", ("start", "end"), "Unix seconds UTC, 0 unknown"),
        }
        for name, bands, time in (("series", first.bands, True), ("static", first.static, False)):
            if not bands:
                continue
            shape = ((steps,) if time else ()) + (len(bands), *space)
            axes = ("T" if time else "") + "C" + letters
            mask = "valid" if time else "static_valid"
            units = {band.units for band in bands}
            self.images[name] = ImageColumn(
                shape,
                "float32" if choice.apply else common_dtype(bands),
                tuple(Band(band.name) for band in bands),
                gsd_m=level,
                units=(units.pop() or None) if len(units) == 1 else None,
                scale=1.0 if choice.apply else bands[0].scale,
                offset=0.0 if choice.apply else bands[0].offset,
                axes=axes,
                mask=mask,
            )
            self.arrays[mask] = ArrayColumn(shape, "uint8", axes, "mask")
        if choice.label and not choice.pixels:
            self.arrays["label_map"] = ArrayColumn((choice.size, choice.size), "uint8", "HW", "target")
            self.targets = {"label_map": Target("segmentation", "label_map", tuple(classes), missing=MISSING_CLASS)}
        self.columns = dict(COLUMNS)

    def _read(self, index: int, row: int, column: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Values and validity by column, of a chip or of one pixel (which is cut out of a box that is kept)."""
        cube, side = self.cubes[index], self.choice.size
        if self.choice.pixels:
            row, column, side = row // _TILE * _TILE, column // _TILE * _TILE, _TILE
        box = (row, column, min(side, cube.grid.height - row), min(side, cube.grid.width - column))

        def read() -> dict[str, tuple[np.ndarray, np.ndarray]]:
            file = self._files.get(cube.path, lambda: _open_again(cube), close=True)
            out = {"series": read_bands(file, cube, cube.bands, box, self.choice.apply)}
            if cube.static:
                out["static"] = read_bands(file, cube, cube.static, box, self.choice.apply)
            if cube.label is not None and not self.choice.pixels:
                out["label_map"] = read_bands(file, cube, [cube.label], box, False)
            return out

        return self._tiles.get((index, box), read) if self.choice.pixels else read()

    def load_one(self, record: Record) -> dict[str, Any]:
        index, row, column, gsd = record.payload
        cube, place = self.cubes[index], self.places[index]
        found = self._read(index, row, column)
        inside: tuple[Any, ...] = (..., row % _TILE, column % _TILE) if self.choice.pixels else (...,)
        times = np.zeros((self.steps, 2), np.int64)
        times[: len(cube.times)] = np.array(cube.times)[:, None]
        sample: dict[str, Any] = {
            "transform": np.array(place.grid.window(row, column, 1, 1).affine),
            "times": times,
            "lon": record.lon,
            "lat": record.lat,
            "crs_epsg": place.epsg,
            "gsd_m": gsd,
            "time_start": times[0, 0],
            "time_end": cube.times[-1],
        }
        for name, mask in (("series", "valid"), ("static", "static_valid")):
            if name in found:
                values, valid = (part[inside] for part in found[name])
                filled, there = (
                    np.zeros(self.images[name].shape, values.dtype),
                    np.zeros(self.images[name].shape, np.uint8),
                )
                whole = slice(0, len(values))
                filled[whole], there[whole] = np.where(valid, values, 0), valid
                sample |= {name: filled, mask: there}
        sample["valid_fraction"] = sample["valid"].mean()
        if "label_map" in found:
            values, valid = found["label_map"]
            sample["label_map"] = to_classes(values[0], valid[0], self.choice.class_values)
        return sample


def _open_again(cube: Cube) -> CubeFile:
    check_unchanged(cube.path, cube.token)
    return CubeFile(cube.path)


class OpenCubes:
    """The most recently used few values by key. A copy in another process starts with none."""

    def __init__(self, most: int = 8) -> None:
        self._most, self._held = most, OrderedDict[Any, Any]()

    def __reduce__(self) -> tuple[type[OpenCubes], tuple[int]]:
        return OpenCubes, (self._most,)

    def get(self, key: Any, make: Any, close: bool = False) -> Any:
        """What is held under `key`, else what `make` makes; `close` what is dropped for it."""
        if key not in self._held:
            while len(self._held) >= self._most:
                dropped = self._held.popitem(last=False)[1]
                if close:
                    dropped.close()
            self._held[key] = make()
        self._held.move_to_end(key)
        return self._held[key]


def find_cubes(request: Request) -> list[str]:
    """NetCDF files of the request, a file or a folder at any depth, relative to it, in the order of their bytes."""
    root = request.need()
    if root.is_file():
        return [root.name]
    found = []
    for folder, names, members in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for member in members:
            if member.lower().endswith(EXTENSIONS) and not member.startswith("."):
                path = Path(folder, member)
                if not path.is_symlink() or path.resolve().is_relative_to(root.resolve()):
                    found.append(path.relative_to(root).as_posix())
    if not found:
        raise UserError(f"--from {root}: no NetCDF files: expected files ending in {', '.join(EXTENSIONS)}")
    return sorted(found, key=os.fsencode)


def open_netcdf(request: Request) -> CubeSource:
    """Look at every file and cut those that agree with the first. Raises `UserError`, see `Request.settle`."""
    choice = parse_choice(request.settings)
    paths = find_cubes(request)
    root = request.path.parent if request.path.is_file() else request.path
    good: list[CubeLook] = []
    bad: list[tuple[str, str]] = []
    for one in request.map(look, [(str(root), path, choice) for path in paths]):
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
