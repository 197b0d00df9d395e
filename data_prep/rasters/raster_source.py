"""Chips of rasters as a source: images CHW of scenes, or series TCHW of stacks of dates, with their masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_prep.rasters.raster import Rasters
from data_prep.rasters.raster_layer import Cut, column_nodata, mask_by_band, pixel_mask
from data_prep.rasters.raster_places import Place, read_place
from data_prep.readers.registry import Request
from data_prep.records import Record, RecordSource
from data_prep.source import ArrayColumn, ImageColumn

COLUMNS = {
    "lon": "float64",
    "lat": "float64",
    "crs_epsg": "int32",
    "gsd_m": "float32",
    "time_start": "int64",
    "time_end": "int64",
    "valid_fraction": "float32",
}
TRANSFORM = ArrayColumn((6,), "float64", "K", "other", ("a", "b", "c", "d", "e", "f"))


class SortedSource(RecordSource):
    """Records that are read in the order of their payloads, so that what lies together is read together."""

    def load(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        order = sorted(range(len(rows)), key=lambda place: self.records[rows[place]].payload)
        back = np.argsort(order)
        return {name: values[back] for name, values in super().load([rows[place] for place in order]).items()}


class ChipSource(SortedSource):
    """Chips of `places`: column "image" [C, N, N] and mask "valid" [N, N]; with `steps`, "series" [T, C, N, N], "valid"
    [T, N, N] and "times" [T, 2]. The mask is by band, as the images are, where no one value marks a missing band."""

    def __init__(
        self,
        request: Request,
        places: Sequence[Place],
        records: Sequence[Record],
        cut: Cut,
        *,
        inputs: str,
        notes: Mapping[str, Any],
        steps: int | None = None,
    ) -> None:
        super().__init__(
            records,
            settings={
                "kind": request.reader.name,
                # Where labels lie is no property of the samples; their content is in `inputs`.
                "settings": {name: value for name, value in request.settings.items() if name != "labels"},
            },
            inputs=inputs,
            notes=notes,
        )
        self.name = request.name or request.path.resolve().name
        self.license = request.license or request.reader.license
        self.citation = request.citation or request.reader.citation
        self.places, self.cut, self.steps = list(places), cut, steps
        self._rasters = Rasters()
        layers = [layer for place in places for layer in place.layers]
        first = layers[0]
        scale, offset = (1.0, 0.0) if cut.apply_scale else first.scales[0]
        nodata = column_nodata(layers, cut)
        self._fill = 0 if nodata is None else nodata
        shape: tuple[int, ...] = (len(first.bands), cut.size, cut.size)
        time = () if steps is None else (steps,)
        axes = "" if steps is None else "T"
        self.column = "image" if steps is None else "series"
        gsd = np.array([record.payload[3] for record in records])
        self.images = {
            self.column: ImageColumn(
                (*time, *shape),
                "float32" if cut.apply_scale else first.dtype,
                first.bands,
                # One number only where it holds for all: every sample has its own in the column gsd_m.
                gsd_m=round(float(np.median(gsd)), 6) if np.ptp(gsd) <= 0.01 * gsd.min() else None,
                nodata=nodata,
                units=first.units if len({layer.units for layer in layers}) == 1 else None,
                scale=scale,
                offset=offset,
                axes=axes + "CHW",
                mask="valid",
            )
        }
        self._by_band = mask_by_band(layers, cut)
        by_band, letters = (shape, "CHW") if self._by_band else (shape[1:], "HW")
        self.arrays = {
            "valid": ArrayColumn((*time, *by_band), "uint8", axes + letters, "mask"),
            "transform": TRANSFORM,
        }
        if steps is not None:
            self.arrays["times"] = ArrayColumn(
                (steps, 2), "int64", "TK", "other", ("start", "end"), units="Unix seconds UTC, 0 unknown"
            )
        self.columns = dict(COLUMNS)

    def load_one(self, record: Record) -> dict[str, Any]:
        index, row, column, gsd = record.payload
        place, steps = self.places[index], self.steps or 1
        found, valid = read_place(self._rasters, place, self.cut, row, column)
        spec = self.images[self.column]
        values = np.full((steps, *found.shape[1:]), self._fill, spec.dtype)
        mask = np.zeros((steps, *found.shape[2 - self._by_band :]), np.uint8)
        share = np.zeros(steps)
        times = np.zeros((steps, 2), np.int64)
        for step, layer in enumerate(place.layers):
            there = pixel_mask(valid[step], layer, self.cut)
            known = valid[step] & there
            values[step] = np.where(known, found[step], self._fill)
            mask[step] = known if self._by_band else there
            share[step], times[step] = there.mean(), layer.time
        dated = times[times[:, 0] != 0]
        sample = {
            self.column: values if self.steps else values[0],
            "valid": mask if self.steps else mask[0],
            "transform": np.array(place.grid.window(row, column, 1, 1).affine),
            "lon": record.lon,
            "lat": record.lat,
            "crs_epsg": place.epsg,
            "gsd_m": gsd,
            "time_start": dated[:, 0].min() if len(dated) else 0,
            "time_end": dated[:, 1].max() if len(dated) else 0,
            "valid_fraction": share.mean(),
        }
        if self.steps:
            sample["times"] = times
        return sample
