"""Small shards of two kinds of inputs, and a run on both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.data.sets import write_set

COUNT, CLASSES = 56, 2
SERIES = (4, 3)


def _splits(path: Path, per_shard: int = 14) -> Path:
    """The last of the shards become the split test."""
    file = path / "manifest.json"
    manifest = json.loads(file.read_text())
    names = [shard["file"] for shard in manifest["shards"]]
    manifest["shards"][-1]["split"] = "test"
    manifest["splits"] = {
        "train": {"samples": (len(names) - 1) * per_shard, "shards": names[:-1]},
        "test": {"samples": per_shard, "shards": names[-1:]},
    }
    file.write_text(json.dumps(manifest))
    return path


def image_set(path: Path, bands: int = 3, size: int = 16, seed: int = 0) -> Path:
    """uint8 images whose stripes tell their label, with a map of 4 x 4 and a number."""
    random = np.random.default_rng(seed)
    label = np.arange(COUNT) % CLASSES
    wave = np.sin(np.arange(size) * np.where(label == 0, 0.5, 2.0)[:, None])
    images = 120 + 80 * wave[:, None, None, :] + random.normal(0, 10, (COUNT, bands, size, size))
    return _splits(
        write_set(
            path,
            {"x": (images.clip(0, 255).astype(np.uint8), "CHW")},
            arrays={"land": (random.integers(0, 3, (COUNT, 4, 4)).astype(np.uint8), "HW")},
            columns={"label": label.astype(np.int64), "dry": (label + random.normal(0, 0.1, COUNT)).astype(np.float32)},
            statistics={"x": {"mean": [120.0] * bands, "std": [57.0] * bands}},
            per_shard=14,
        )
    )


def series_set(path: Path, gaps: bool = True, seed: int = 1) -> Path:
    """float32 series of SERIES dates and variables whose level tells their label; some values are missing."""
    random = np.random.default_rng(seed)
    label = np.arange(COUNT) % CLASSES
    values = random.normal(0, 1, (COUNT, *SERIES)) + 2.0 * label[:, None, None]
    if gaps:
        values[::5, 1] = np.nan
    return _splits(
        write_set(
            path,
            {"s": (values.astype(np.float32), "TC")},
            columns={
                "label": label.astype(np.int64),
                "lon": np.linspace(0, 9, COUNT),
                "lat": np.linspace(40, 49, COUNT),
            },
            statistics={"s": {"mean": [0.0] * 3, "std": [1.0] * 3}},
            per_shard=14,
        )
    )


def run_config(folder: Path, images: Path, series: Path | None = None, **changes: Any) -> Path:
    """File of the config of a few steps on one source or two; `changes` by dotted key with __ for dots."""
    sources: dict[str, Any] = {"scenes": {"shards": str(images)}}
    tasks: dict[str, Any] = {"scene": {"head": "classification", "source": "scenes", "target": "label"}}
    if series is not None:
        sources["sites"] = {"shards": str(series)}
        tasks["site"] = {"head": "classification", "source": "sites", "target": "label"}
    config: dict[str, Any] = {
        "run": {"dir": str(folder / "run"), "seed": 3},
        "model": {"family": "gpna", "preset": "gpna_debug", "tasks": tasks, "masked": {"ratio": 0.5, "queries": 8}},
        "data": {"sources": sources},
        "train": {"steps": 3, "global_batch": 16, "base_lr": 4.0e-3, "warmup_steps": 1},
        "log": {"progress": "lines", "every_steps": 50},
    }
    for key, value in changes.items():
        node = config
        *parents, last = key.split("__")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "gpna.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
