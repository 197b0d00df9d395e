"""Small shards of three sensors that see the same ground, and a complete run on them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.data.sets import write_set

SAMPLES = 48


def write_triplets(path: Path, samples: int = SAMPLES) -> Path:
    """Waves of a direction, length and phase of a sample's own: radar [2, 16, 16] at 10 m, lores [3, 16, 16] at 10 m, hires [3, 32, 32]
    at 5 m, each with other weights and noise; how much ground an image spans differs from sample to sample (column spread).
    """
    random = np.random.default_rng(0)
    spread = random.uniform(0.5, 1.5, samples).astype(np.float32)
    angle, length, phase = (random.uniform(low, high, (samples, 1, 1)) for low, high in ((0, 3.2), (30, 160), (0, 6.3)))

    def seen(side: int, gsd: float, weights: list[float]) -> np.ndarray:
        metres = (np.arange(side) + 0.5) * gsd
        x, y = (axis * spread[:, None, None] for axis in np.meshgrid(metres, metres))
        wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / length + phase)
        values = 120 + 60 * wave[:, None] * np.array(weights)[None, :, None, None]
        return (values + random.normal(0, 10, values.shape)).clip(0, 255).astype(np.uint8)

    images = {
        "s1": (seen(16, 10.0, [1.0, -0.5]), "CHW"),
        "s2": (seen(16, 10.0, [0.8, 1.0, -1.0]), "CHW"),
        "naip": (seen(32, 5.0, [1.0, 0.5, 0.2]), "CHW"),
    }
    return write_set(
        path,
        images,
        columns={"coarse_m": 10 * spread, "fine_m": 5 * spread, "label": (angle[:, 0, 0] > 1.6).astype(np.int64)},
        statistics={
            name: {"mean": [120.0] * v.shape[1], "std": [45.0] * v.shape[1]} for name, (v, _) in images.items()
        },
        per_shard=16,
    )


def changed(source: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The same shards under another manifest."""
    out.mkdir()
    for file in source.glob("*.h5"):
        os.symlink(file, out / file.name)
    manifest = json.loads((source / "manifest.json").read_text())
    change(manifest)
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def small_config(run_dir: Path, data: Path) -> dict[str, Any]:
    """A run of a few seconds; GSD from columns, crops and symmetries. The learning rate is small: AdamW brings any gradient to its size, what is
    rounding too.
    """
    return {
        "run": {"dir": str(run_dir), "seed": 3},
        "model": {
            "family": "scale_alibi",
            "preset": "scale_alibi_debug",
            "heads": 4,
            "patch": 4,
            "decoder": {"heads": 2},
            "sensors": {
                "radar": {"column": "s1", "gsd_m": "column:coarse_m"},
                "lores": {"column": "s2", "gsd_m": "column:coarse_m", "bands": ["b2", "b0"]},
                "hires": {"column": "naip", "gsd_m": "column:fine_m"},
            },
        },
        "data": {"shards": str(data), "augment": {"symmetries": True, "crop_scale": [0.3, 1.0]}},
        "parallel": {"timeout_s": 120},
        "train": {"steps": 12, "global_batch": 16, "base_lr": 2.5e-3, "warmup_steps": 2, "clip_norm": 1.0},
        "log": {"progress": "lines", "every_steps": 50},
    }
