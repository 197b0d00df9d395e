"""Stacks of dates: several GeoTIFFs of one place become one series [T, C, N, N] with a mask for every date.

A place is a folder that holds rasters, or what `place_pattern` finds in their names. Its dates are put in order; the
grid of the first is the grid of all. Rasters whose pixels lie elsewhere (another size, a shift of metres, another CRS)
are warped onto it, and the notes of the manifest say which and by how much. Series with fewer dates than `steps` end
in steps that are wholly missing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from data_prep.rasters.grid import Grid, ground_distance, transformer
from data_prep.rasters.options import find_files, number
from data_prep.rasters.raster import EXTENSIONS
from data_prep.rasters.raster_layer import SETTINGS, Layer, parse_cut
from data_prep.rasters.raster_places import Looked, chip_records, cut_place, describe_places
from data_prep.rasters.raster_source import ChipSource
from data_prep.readers.geotiff import look_at_all
from data_prep.readers.registry import Reader, Request, Setting
from data_prep.records import inputs_digest
from frontier.errors import UserError

_NOTED = 100
"""Warped rasters that the notes name one by one; all are counted."""


def series_of(paths: Sequence[str], pattern: str) -> dict[str, list[str]]:
    """Place name → its files: by folder, and within it by what `pattern` (its first group) finds in the name."""
    out: dict[str, list[str]] = {}
    for path in paths:
        folder = str(PurePosixPath(path).parent)
        if pattern:
            found = re.search(pattern, PurePosixPath(path).stem)
            if found is None:
                raise UserError(f"--set place_pattern={pattern}: finds nothing in {path}: mend it or remove the file")
            folder += "/" + (found[1] if found.re.groups else found[0])
        out.setdefault(folder, []).append(path)
    return out


def in_order(looked: Sequence[Looked]) -> tuple[list[Looked], list[tuple[str, str]]]:
    """The dated files of one place by date, and (path, reason) of those without a date or with one that is taken."""
    bad = [(one.path, one.layer.time_problem) for one in looked if one.layer is not None and one.layer.time_problem]
    dated: dict[tuple[int, int], Looked] = {}
    for one in looked:
        if one.layer is None or one.layer.time_problem:
            continue
        taken = dated.setdefault(one.layer.time, one)
        if taken is not one:
            bad.append((one.path, f"same date as {taken.path}: one raster a date is expected"))
    mend = ": rename it, or say where the date is with --set date_pattern='(?P<year>…'"
    bad = [(path, why if "same date" in why else why + mend) for path, why in bad]
    return [dated[time] for time in sorted(dated)], bad


def moved(layer: Layer, grid: Grid) -> dict[str, Any] | None:
    """How the pixels of `layer` lie off `grid`: None where they are the same but for whole pixels at the edges.

    shift_m: metres along its rows and down its columns from the corner of `grid` to that of `layer`.
    """
    corners = (np.array([0.0, grid.width, 0]), np.array([0.0, 0, grid.height]))
    x, y = grid.xy(*corners)
    if layer.grid.crs != grid.crs:
        x, y = transformer(grid.crs, layer.grid.crs).transform(x, y)
    columns, rows = layer.grid.pixels(x, y)
    off_column, off_row = columns - corners[0], rows - corners[1]
    shift = (float(off_column[0]), float(off_row[0]))
    part = max(np.abs(off_column - round(shift[0])).max(), np.abs(off_row - round(shift[1])).max())
    if part < 1e-3 and layer.grid.crs == grid.crs:
        return None
    along, down = ground_distance(layer.grid, *shift)
    return {
        "shift_m": [round(-shift[0] * float(along), 3) + 0.0, round(-shift[1] * float(down), 3) + 0.0],
        "size": [layer.grid.height, layer.grid.width],
        "crs": layer.grid.crs[:64],
    }


def open_series(request: Request) -> ChipSource:
    """Look at every raster, order them by date, and cut the stacks. Raises `UserError`, see `Request.settle`."""
    settings = request.settings
    cut = parse_cut(settings)
    try:
        re.compile(settings["place_pattern"])
    except re.error as error:
        raise UserError(f"--set place_pattern={settings['place_pattern']}: {error}") from None
    paths = find_files(request, EXTENSIONS, "GeoTIFFs")
    good, bad = look_at_all(request, paths, cut)
    by_path = {one.path: one for one in good}
    stacks: list[tuple[str, list[Looked]]] = []
    for name, members in series_of(paths, settings["place_pattern"]).items():
        stack, undated = in_order([by_path[path] for path in members if path in by_path])
        bad += undated
        if stack:
            stacks.append((name, stack))
    longest = max((len(stack) for _, stack in stacks), default=0)
    steps = number(settings, "steps", int, 1) if settings["steps"] else longest
    for name, stack in stacks:
        if len(stack) > steps:
            raise UserError(f"{request.path}: place {name} has {len(stack)} dates: give --set steps={longest} or more")
    jobs = [
        (name, tuple(one.layer for one in stack if one.layer), tuple(one.not_numbers for one in stack), cut)
        for name, stack in stacks
    ]
    if bad and request.on_error == "stop":
        request.settle(sorted(bad), len(paths), "rasters")
    found = request.map(cut_place, jobs, costly=True)
    bad += [(place.name, place.error) for place in found if place.error]
    notes = request.settle(sorted(bad), len(paths), "rasters")
    found = [place for place in found if not place.error]
    warped = []
    for place in found:
        for layer in place.layers:
            off = moved(layer, place.layers[0].grid)
            if off is not None:
                warped.append({"file": os.path.basename(layer.path)} | off)
    used = {layer.path for place in found for layer in place.layers}
    tokens = [(one.path, one.token) for one in good if one.layer is not None and one.layer.path in used]
    records, counts = chip_records(request, found, cut.size, cut.stride, cut.min_valid, 8 * cut.size)
    notes |= describe_places(found, good) | counts
    notes |= {
        "places": len(found),
        "places_with_missing_steps": sum(len(place.layers) < steps for place in found),
        "warped_onto_the_first_grid": len(warped),
        "warped": warped[:_NOTED],
    }
    return ChipSource(request, found, records, cut, inputs=inputs_digest(tokens), notes=notes, steps=steps)


_SERIES = dict(SETTINGS)
_SERIES["min_valid"] = replace(
    SETTINGS["min_valid"], help="leave out chips with fewer valid pixels over all dates, 0 to 1"
)
RASTER_SERIES = Reader(
    name="raster_series",
    summary="several GeoTIFFs of one place as time series, aligned onto one grid",
    expects="a folder of GeoTIFFs of one place with a date in each name (m_…_20090818.tif, 1985.tif), or a folder of "
    "such folders",
    open=open_series,
    uses=frozenset({"on_error", "license", "citation"}),
    settings=_SERIES
    | {
        "resampling": Setting(
            "how rasters off the first grid are warped", "bilinear", ("bilinear", "nearest", "cubic", "average")
        ),
        "steps": Setting("dates a series; shorter ones end in missing steps; none: the longest series"),
        "place_pattern": Setting("regular expression for the place in file names, where a folder holds several"),
    },
)
READERS = (RASTER_SERIES,)
