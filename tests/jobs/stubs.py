"""Shard folders that look as large as the real ones: a manifest, and a file that holds the labels, and images that were never written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np

S2_12 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
LANDSAT = ("BLUE", "GREEN", "RED", "SWIR1", "SWIR2", "TEMP1", "NIR", "DMSP", "VIIRS")


def stub(
    path: Path, images: dict[str, tuple], samples: int = 4096, labels: dict[str, np.ndarray] | None = None
) -> None:
    """`images`: name -> (bands, side, type, axes of the mask or None). `labels`: of all samples, columns or maps."""
    path.mkdir(parents=True, exist_ok=True)
    labels = labels or {}
    with h5py.File(path / "train-00000.h5", "w") as file:
        for name, values in labels.items():
            file.create_dataset(name, data=values)
        for name, (bands, side, dtype, masked) in images.items():
            file.create_dataset(name, (samples, len(bands), side, side), dtype)
            if masked:
                file.create_dataset(f"{name}_valid", (samples, len(bands)), "uint8")
    arrays: dict[str, Any] = {
        name: {"shape": list(values.shape[1:]), "axes": "HW", "dtype": values.dtype.name, "role": "target"}
        for name, values in labels.items()
        if values.ndim > 1
    }
    described = {}
    for name, (bands, side, dtype, masked) in images.items():
        mask = f"{name}_valid" if masked else None
        if mask:
            arrays[mask] = {"shape": [len(bands)], "axes": masked, "dtype": "uint8", "role": "mask"}
        described[name] = {
            "shape": [len(bands), side, side],
            "axes": "CHW",
            "dtype": dtype,
            "bands": [{"name": band} for band in bands],
            "mask": mask,
            "nodata": None,
            "statistics": {"mean": [100.0] * len(bands), "std": [50.0] * len(bands)},
        }
    size = (path / "train-00000.h5").stat().st_size
    shard = {"file": "train-00000.h5", "split": "train", "samples": samples, "bytes": size, "sha256": "0" * 64}
    manifest = {
        "schema": "frontier-shards/1",
        "name": path.name,
        "samples": samples,
        "fingerprint": "0" * 64,
        "splits": {"train": {"samples": samples, "shards": [shard["file"]]}},
        "shards": [shard],
        "images": described,
        "arrays": arrays,
        "columns": {name: values.dtype.str for name, values in labels.items() if values.ndim == 1},
        "classes": [],
    }
    (path / "manifest.json").write_text(json.dumps(manifest))


def production(folder: Path, labels: int = 256) -> None:
    """FOLDER/shards with every source of the production configs."""
    random = np.random.default_rng(0)
    shards = folder / "shards"
    landsat = {"image": (LANDSAT, 255, "float32", "C")}
    numbers = {name: random.normal(size=labels) for name in ("asset_index", "women_edu", "water_index")}
    numbers |= {name: random.uniform(-60, 60, labels) for name in ("lon", "lat")}
    stub(shards / "millionaid", {"image": (("red", "green", "blue"), 224, "uint8", None)}, 1_000_000)
    stub(shards / "s1s2", {"s1": (("VV", "VH"), 256, "int16", None), "s2": (S2_12, 256, "uint16", None)}, 100_000)
    stub(shards / "dhs", landsat, labels, numbers)
    kilns = {"image": (("B8A", *S2_12[:8], "B10", *S2_12[9:]), 64, "uint16", None)}
    stub(shards / "brick_kiln", kilns, labels, {"brick_kiln": random.integers(0, 2, labels)})
    maps = {name: random.integers(0, 2, (labels, 224, 224)).astype(np.uint8) for name in ("boundary", "area")}
    stub(shards / "delineation", {"image": (("B04", "B03", "B02"), 224, "uint8", None)}, labels, maps)


def triplets(path: Path, s2: tuple[str, ...] = ("B04", "B03", "B02"), samples: int = 143_572) -> None:
    """Tiles of level 15 as `--reader tile_triplets` writes them: of the paper's set `full` (98 % of its 146,502), or with all bands of Sentinel-2 at 120 px."""
    small = len(s2) > 3
    side, latitude = (120, 50.0) if small else (256, 40.0)
    spacing = np.full(samples, 40_075_016.7 / 2**15 / side * math.cos(math.radians(latitude)), np.float32)
    images = {
        "s1": (("VV", "VH"), side, "int16", None),
        "s2": (s2, side, "uint16" if small else "uint8", None),
    }
    if not small:
        images["naip_2x"] = (("R", "G", "B"), 512, "uint8", None)
    spacings = {f"{name}_spacing_m": spacing * side / given[1] for name, given in images.items()}
    stub(path, images, samples, spacings)
