"""Chips or single pixels of cubes as a source: series TCHW or TC, what does not change with time, and their masks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.rasters.cube import Cube, common_dtype, read_bands
from data_prep.rasters.cube_file import CubeFile
from data_prep.rasters.labels import MISSING_CLASS, to_classes
from data_prep.rasters.raster import check_unchanged
from data_prep.rasters.raster_places import Place
from data_prep.rasters.raster_source import COLUMNS, TRANSFORM, SortedSource
from data_prep.readers.registry import Request
from data_prep.records import Record
from data_prep.source import ArrayColumn, Band, ImageColumn, Target

TILE = 64
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
        self._files, self._tiles = Recent(), Recent()
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
            row, column, side = row // TILE * TILE, column // TILE * TILE, TILE
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
        inside: tuple[Any, ...] = (..., row % TILE, column % TILE) if self.choice.pixels else (...,)
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


class Recent:
    """The most recently used few values by key. A copy in another process starts with none."""

    def __init__(self, most: int = 8) -> None:
        self._most, self._held = most, OrderedDict[Any, Any]()

    def __reduce__(self) -> tuple[type[Recent], tuple[int]]:
        return Recent, (self._most,)

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
