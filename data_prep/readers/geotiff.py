"""GeoTIFF and COG scenes cut into chips on a regular grid, optionally with a label raster.

Each chip is one window of one scene: scenes may have other sizes, grids and CRSs, but the chosen bands must agree in
number, names and type. Only the blocks under a chip are read. With `gsd`, chips are resampled from full resolution
(overviews are not used: how they were made is not recorded), so a chip does not depend on how a file was tiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from data_prep.rasters.options import find_files
from data_prep.rasters.raster import EXTENSIONS, RESAMPLING
from data_prep.rasters.raster_labels import SETTINGS as LABEL_SETTINGS
from data_prep.rasters.raster_labels import Labels, find_labels
from data_prep.rasters.raster_layer import SETTINGS, Cut, disagreement, parse_cut
from data_prep.rasters.raster_places import Looked, Place, chip_records, cut_place, describe_places, look
from data_prep.rasters.raster_source import ChipSource
from data_prep.readers.registry import Reader, Request, Setting
from data_prep.records import Record, inputs_digest


class LabelledChips(ChipSource):
    """Chips with labels: array column "label_map"."""

    def __init__(self, labels: Labels, request: Request, places: Sequence[Place], *rest: Any, **more: Any) -> None:
        super().__init__(request, places, *rest, **more)
        self.labels = labels
        self.arrays = {**self.arrays, "label_map": labels.column(self.cut.size)}
        self.targets = {"label_map": labels.target()}

    def load_one(self, record: Record) -> dict[str, Any]:
        index, row, column, _ = record.payload
        place = self.places[index]
        grid = place.grid.window(row, column, self.cut.size, self.cut.size)
        return super().load_one(record) | {"label_map": self.labels.read(self._rasters, index, grid)}


def look_at_all(request: Request, paths: Sequence[str], cut: Cut) -> tuple[list[Looked], list[tuple[str, str]]]:
    """Every file looked at: those that can stand beside the first good one, and (path, reason) of the others."""
    root = request.path.parent if request.path.is_file() else request.path
    good: list[Looked] = []
    bad: list[tuple[str, str]] = []
    for one in request.map(look, [(str(root), path, cut) for path in paths], costly=True):
        why = one.error
        if one.layer is not None and good and good[0].layer is not None:
            why = disagreement(one.layer, good[0].layer, cut)
        if why:
            bad.append((one.path, why))
        else:
            good.append(one)
    if bad and (request.on_error == "stop" or not good):
        request.settle(bad, len(paths), "rasters")
    if cut.apply_scale is False and good and good[0].layer is not None:
        # The first file is held against the rest above; its own bands are held against each other here.
        why = disagreement(good[0].layer, good[0].layer, cut)
        if why:
            request.settle([(good[0].path, why)], len(paths), "rasters")
    return good, bad


def open_geotiff(request: Request) -> ChipSource:
    """Look at every scene, cut the good ones, and match the labels. Raises `UserError`, see `Request.settle`."""
    cut = parse_cut(request.settings)
    paths = find_files(request, EXTENSIONS, "GeoTIFFs")
    good, bad = look_at_all(request, paths, cut)
    jobs = [(one.path, (one.layer,), (one.not_numbers,), cut) for one in good if one.layer is not None]
    found = request.map(cut_place, jobs, costly=True)
    bad += [(place.name, place.error) for place in found if place.error]
    found = [place for place in found if not place.error]
    labels, unlabelled = find_labels(request, found)
    bad += unlabelled
    notes = request.settle(sorted(bad), len(paths), "scenes")
    if labels is not None:
        kept = [not file.error for file in labels.files]
        files = tuple(file for file, keep in zip(labels.files, kept, strict=True) if keep)
        found = [place for place, keep in zip(found, kept, strict=True) if keep]
        labels = replace(labels, files=files)
    used = {place.name for place in found}
    tokens = [(one.path, one.token) for one in good if one.path in used]
    if labels is not None:
        tokens += [(f"label of {place.name}", file.token) for place, file in zip(found, labels.files, strict=True)]
    records, counts = chip_records(request, found, cut.size, cut.stride, cut.min_valid, 8 * cut.size)
    notes |= describe_places(found, good) | counts
    inputs = inputs_digest(tokens)
    if labels is None:
        return ChipSource(request, found, records, cut, inputs=inputs, notes=notes)
    return LabelledChips(labels, request, found, records, cut, inputs=inputs, notes=notes)


GEOTIFF = Reader(
    name="geotiff",
    summary="GeoTIFF and COG scenes, cut into chips; optionally label rasters",
    expects="a GeoTIFF, or a folder of them at any depth (.tif, .tiff), each with a CRS and a geotransform",
    open=open_geotiff,
    uses=frozenset({"on_error", "license", "citation"}),
    settings=SETTINGS
    | {"resampling": Setting("how pixels are resampled where gsd asks for it", "average", RESAMPLING)}
    | LABEL_SETTINGS,
)
READERS = (GEOTIFF,)
