"""Small shards with several images a sample, and the feed of a config on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from frontier.config.load import Config, validate
from frontier.data.feed import Loaders
from scale_alibi.feed import ScaleALiBiFeed, open_feed
from scale_alibi.reader import Placed, ScaleALiBiReader
from tests.data.sets import write_set

CPU = torch.device("cpu")
SAMPLES = 24
RADAR, LORES, HIRES = {"column": "radar"}, {"column": "lores"}, {"column": "hires"}


def write_rows(path: Path, sides: dict[str, int] | None = None, gsd: float = 10.0) -> Path:
    """radar [2] float32 with a mask a pixel, lores [5] uint16 with nodata 0, hires [3] uint8; 24 samples, hires twice as fine.

    Columns: place_m (metres a pixel of radar and lores, from sample to sample), wide [1, 16, 8], series (axes TC), name.
    """
    random = np.random.default_rng(0)
    sides = {"radar": 16, "lores": 16, "hires": 32} | (sides or {})
    radar = random.normal(-12, 3, (SAMPLES, 2, sides["radar"], sides["radar"])).astype(np.float32)
    lores = random.integers(1, 9000, (SAMPLES, 5, sides["lores"], sides["lores"])).astype(np.uint16)
    hires = random.integers(0, 256, (SAMPLES, 3, sides["hires"], sides["hires"])).astype(np.uint8)
    mask = np.ones((SAMPLES, sides["radar"], sides["radar"]), np.uint8)
    mask[::2, :, : sides["radar"] // 2] = 0
    lores[1::2, 1, :5] = 0
    place_m = random.uniform(4, 9, SAMPLES).astype(np.float32)
    return write_set(
        path,
        {
            "radar": (radar, "CHW"),
            "lores": (lores, "CHW"),
            "hires": (hires, "CHW"),
            "wide": (np.zeros((SAMPLES, 1, 16, 8), np.uint8), "CHW"),
            "series": (np.zeros((SAMPLES, 3, 2), np.uint8), "TC"),
        },
        arrays={"radar_mask": (mask, "HW")},
        columns={
            "place_m": place_m,
            "fine_m": place_m / 2,
            "other_m": np.where(place_m <= np.sort(place_m)[2], place_m * 0.52, place_m / 2).astype(np.float32),
            "broken_m": np.where(np.arange(SAMPLES) == 5, np.nan, place_m).astype(np.float32),
            "name": np.full(SAMPLES, b"x", "S1"),
        },
        masks={"radar": "radar_mask"},
        nodata={"lores": 0},
        statistics={
            "radar": {"mean": [-12.0, -12.0], "std": [3.0, 0.0]},
            "lores": {"mean": [4000.0 + 100 * band for band in range(5)], "std": [2000.0 + band for band in range(5)]},
            "hires": {"mean": [127.0] * 3, "std": [70.0] * 3},
        },
        gsd={"radar": gsd, "lores": gsd, "hires": gsd / 2},
    )


def config_of(
    sensors: dict[str, dict[str, Any]], model: dict[str, Any] | None = None, batch: int = 8, **data: Any
) -> Config:
    """A complete config; patches of 4 pixels where `model` does not say otherwise."""
    return validate(
        {
            "run": {"dir": "run", "seed": 3},
            "model": {"family": "scale_alibi", "preset": "scale_alibi_debug", "patch": 4, "sensors": sensors}
            | (model or {}),
            "data": data,
            "train": {"steps": 2, "global_batch": batch},
        }
    )


def opened(
    path: Path | None, sensors: dict[str, dict[str, Any]], model: dict[str, Any] | None = None, **data: Any
) -> ScaleALiBiFeed:
    shards = {} if path is None else {"shards": str(path)}
    return open_feed(config_of(sensors, model, **shards, **data), True, None)


def placed(feed: ScaleALiBiFeed, step: int = 0, rank: int = 0, ranks: int = 1) -> tuple[ScaleALiBiReader, Placed]:
    reader = feed.reader(CPU, 3)
    return reader, reader.place(next(Loaders(feed.streams, rank, ranks, 0, CPU, 3).batches(step)))
