"""Small sources of generated numbers whose every value is known, as shards and as a run's config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from frontier.config.load import Config, validate
from tests.data.sets import write_set

CLASSES = 3


def write_scenes(path: Path, samples: int = 40, side: int = 16, seed: int = 0) -> Path:
    """Images CHW of four bands, two of which some samples lack, with a place, a date, a class that colours them, and a map."""
    random = np.random.default_rng(seed)
    label = np.arange(samples, dtype=np.int32) % CLASSES
    image = random.normal(label[:, None, None, None], 1.0, (samples, 4, side, side)).astype(np.float32)
    there = np.ones((samples, 4), np.uint8)
    there[::3, 2:] = 0
    area = (image[:, 0] > label[:, None, None]).astype(np.uint8)
    area[:, 0, 0] = 255
    return write_set(
        path,
        {"image": (image, "CHW")},
        arrays={"image_valid": (there, "C"), "area": (area, "HW")},
        columns={
            "label": np.where(random.random(samples) < 0.1, -1, label).astype(np.int32),
            "lon": random.uniform(-180, 180, samples),
            "lat": random.uniform(-60, 60, samples),
            "time_start": np.full(samples, 1_500_000_000, np.int64),
            "time_end": np.full(samples, 1_510_000_000, np.int64),
        },
        masks={"image": "image_valid"},
        statistics={"image": {"mean": [1.0] * 4, "std": [1.5] * 4}},
    )


def write_series(path: Path, samples: int = 40, steps: int = 5, seed: int = 1) -> Path:
    """Series TC of two variables, whose last dates some samples lack, a table C, a number that they tell, and sites."""
    random = np.random.default_rng(seed)
    series = random.normal(0, 1, (samples, steps, 2)).astype(np.float32)
    lengths = random.integers(1, steps + 1, samples)
    there = (np.arange(steps) < lengths[:, None]).astype(np.uint8)
    begins = 1_400_000_000 + np.arange(steps) * 2_592_000 + np.zeros((samples, 1), np.int64)
    number = (3 + 2 * (series[..., 0] * there).sum(1)).astype(np.float32)
    number[random.random(samples) < 0.15] = np.nan
    table = random.normal(0, 1, (samples, 3)).astype(np.float32)
    return write_set(
        path,
        {"series": (series, "TC"), "table": (table, "C")},
        arrays={"series_valid": (there, "T"), "series_time": (np.where(there, begins, 0), "T")},
        columns={"number": number, "site": (np.arange(samples) // 9).astype(np.int32)},
        masks={"series": "series_valid"},
        statistics={
            "series": {"mean": [0.0] * 2, "std": [1.0] * 2},
            "table": {"mean": [0.0] * 3, "std": [1.0] * 3},
        },
    )


def toy_values(scenes: Path, series: Path, run_dir: Path) -> dict[str, Any]:
    """A run on both: three tasks and hidden tokens."""
    return {
        "run": {"dir": str(run_dir), "seed": 3},
        "model": {
            "family": "gpna",
            "preset": "gpna_debug",
            "tasks": {
                "kind": {"head": "classification", "source": "scenes", "target": "label", "classes": CLASSES},
                "area": {"head": "segmentation", "source": "scenes", "target": "area", "train_pixels": 60},
                "amount": {"head": "regression", "source": "series", "target": "number", "weight": 0.5},
            },
            "masked": {"ratio": 0.5, "queries": 8},
        },
        "data": {
            "sources": {
                "scenes": {"shards": str(scenes), "symmetries": True},
                "series": {"shards": str(series)},
            },
            "granule": 4,
        },
        "train": {"steps": 6, "global_batch": 16, "base_lr": 0.05, "warmup_steps": 1},
        "log": {"progress": "lines", "every_steps": 50},
    }


def toy_config(folder: Path) -> Config:
    """Of `toy_values`, with its shards written below `folder`."""
    scenes, series = write_scenes(folder / "scenes"), write_series(folder / "series")
    return validate(toy_values(scenes, series, folder / "run"))


def split_set(path: Path, shards: dict[str, int]) -> Path:
    """Make the shards of `write_set` the splits of that many shards each, in order."""
    manifest = json.loads((path / "manifest.json").read_text())
    names = [split for split, count in shards.items() for _ in range(count)]
    assert len(names) == len(manifest["shards"])
    for shard, split in zip(manifest["shards"], names, strict=True):
        shard["split"] = split
    manifest["splits"] = {
        split: {
            "samples": sum(shard["samples"] for shard in manifest["shards"] if shard["split"] == split),
            "shards": [shard["file"] for shard in manifest["shards"] if shard["split"] == split],
        }
        for split in shards
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def write_words(path: Path, names: list[str], size: int = 8) -> Path:
    """A file of text vectors, random."""
    vectors = np.random.default_rng(2).normal(0, 1, (len(names), size)).astype(np.float32)
    np.savez(path, names=np.array(names), vectors=vectors)
    return path
