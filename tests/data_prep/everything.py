"""A small source with something of every kind: series, masks, maps, vectors, missing labels, places unknown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from data_prep.source import ArrayColumn, Band, ImageColumn, Listing, Source, Target

CLASSES = ("water", "field | meadow", "town")
EPOCH = 1_600_000_000


def stream(row: int) -> np.random.Generator:
    return np.random.default_rng([7, row])


class Everything(Source):
    """`count` samples near the antimeridian; every fifth has no place and no time, every seventh no labels."""

    name = "everything"
    license = "CC-BY-4.0"
    citation = "Nobody (2020). Everything, small."
    homepage = "https://example.org/everything"
    description = "Made up, to try every kind of column."
    images: ClassVar[dict[str, ImageColumn]] = {
        "series": ImageColumn(
            (2, 3, 4, 5),
            "uint16",
            (Band("B02", 492.4, 66.0, "blue"), Band("B08", 832.8, 106.0, "nir"), Band("ndvi")),
            gsd_m=10.0,
            nodata=0,
            units="reflectance",
            scale=1e-4,
            offset=-0.1,
            axes="TCHW",
            mask="series_there",
            sensor="Sentinel-2 L2A",
        ),
        "weather": ImageColumn((6, 2), "float32", (Band("rain"), Band("heat")), axes="TC"),
    }
    arrays: ClassVar[dict[str, ArrayColumn]] = {
        "series_there": ArrayColumn((2,), "uint8", "T", "mask"),
        "land": ArrayColumn((4, 5), "uint8", "HW", "target"),
        "crops": ArrayColumn((3,), "int8", "K", "target", CLASSES),
    }
    columns: ClassVar[dict[str, str]] = {
        "lon": "float64",
        "lat": "float64",
        "time_start": "int64",
        "time_end": "int64",
        "crs_epsg": "int32",
        "gsd_m": "float32",
        "wealth": "float32",
    }
    targets: ClassVar[dict[str, Target]] = {
        "place": Target("classification", "label", CLASSES, missing=-1, metric="accuracy"),
        "land": Target("segmentation", "land", CLASSES, missing=255),
        "crops": Target("multilabel", "crops", CLASSES, missing=-1),
        "wealth": Target("regression", "wealth", units="USD", missing="nan"),
    }

    def __init__(self, count: int = 30) -> None:
        self.count = count

    def describe(self) -> dict[str, Any]:
        return {"kind": "everything", "count": self.count}

    def listing(self) -> Listing:
        rows = range(self.count)
        ids = [f"sample/{row:03d}".encode() for row in rows]
        labels = np.array([-1 if row % 7 == 0 else row % 3 for row in rows], np.int32)
        splits = [("train", "train", "val", "test")[row % 4] for row in rows]
        return Listing(ids, labels, ids, splits, CLASSES, {"skipped": 2, "other_files": 0})

    def load(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        samples = [self.sample(int(row)) for row in rows]
        return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}

    def sample(self, row: int) -> dict[str, Any]:
        random = stream(row)
        placed, labelled = row % 5 != 0, row % 7 != 0
        start = EPOCH + 86400 * row if placed else 0
        land = random.integers(0, 3, (4, 5)).astype(np.uint8)
        land[0] = 255
        values: dict[str, Any] = {
            "series": random.integers(1, 9000, (2, 3, 4, 5)).astype(np.uint16),
            "weather": random.normal(size=(6, 2)).astype(np.float32),
            "series_there": np.array([1, row % 2], np.uint8),
            "land": land,
            "crops": random.integers(0, 2, 3).astype(np.int8) if labelled else np.full(3, -1, np.int8),
            "lon": (179.0 + 0.1 * row + 180) % 360 - 180 if placed else np.nan,
            "lat": -17.0 + 0.01 * row if placed else np.nan,
            "time_start": start,
            "time_end": start + 3600 if placed else 0,
            "crs_epsg": 32760 if placed else 0,
            "gsd_m": 10.0,
            "wealth": 100.0 + row if labelled else np.nan,
        }
        stored = {key: column.dtype for key, column in (*self.images.items(), *self.arrays.items())}
        return {key: np.asarray(value, (stored | self.columns)[key]) for key, value in values.items()}
