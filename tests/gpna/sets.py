"""Two small generated sources whose samples have very different numbers of tokens, and a complete run on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.data.sets import write_set

SAMPLES, SIDE, DATES = 64, 16, 10
BANDS = {"blue": 490.0, "green": 560.0, "red": 665.0, "nir": 842.0}
DAY = 86400


def write_scenes(path: Path, samples: int = SAMPLES, missing: str = "many") -> Path:
    """Images [4, 16, 16] with a mask, a table of three numbers, class labels (some missing), maps of four classes.

    `missing`: "many": any number of rows of an image, and some numbers; "none"; "groups": 16 samples of which all is there take turns with
    16 nearly empty ones, two of those without any token.
    """
    random = np.random.default_rng(0)
    label = random.integers(3, size=samples)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    wave = np.sin(2 * np.pi * (1 + label[:, None, None]) * x + 0 * y)[:, None]
    image = (
        1000 + 300 * wave * np.array([1, 0.5, -0.5, -1])[:, None, None] + random.normal(0, 60, (samples, 4, SIDE, SIDE))
    )
    valid = np.ones((samples, SIDE, SIDE), np.uint8)
    for i in range(samples):
        if missing == "many":
            valid[i, random.integers(SIDE + 1) :] = 0
            valid[i, :4, :4] = 1
        elif missing == "groups" and (i // 16) % 2:
            valid[i] = 0
            valid[i, : 4 * (i % 4), :4] = 1
    weather = random.normal(10, 3, (samples, 3)).astype(np.float32)
    if missing == "many":
        weather[random.uniform(size=weather.shape) < 0.3] = np.nan
    if missing == "groups":
        weather[20::32] = weather[24::32] = np.nan
    cover = (np.clip(2 * (wave[:, 0] + 1), 0, 3)).astype(np.uint8)
    cover[:, -2:] = 255
    unlabelled = np.where(random.uniform(size=samples) < 0.2, -1, label)
    write_set(
        path,
        {"image": (image.round().astype(np.int16), "CHW"), "weather": (weather, "C")},
        arrays={"valid": (valid, "HW"), "cover": (cover, "HW")},
        columns={
            "label": unlabelled.astype(np.int64),
            "kind2": label.astype(np.int64),
            "lon": random.uniform(-20, 20, samples),
            "lat": random.uniform(-50, 50, samples),
            "time_start": random.integers(17000 * DAY, 19000 * DAY, samples),
        },
        masks={"image": "valid"},
        statistics={
            "image": {"mean": [1000.0] * 4, "std": [200.0] * 4},
            "weather": {"mean": [10.0] * 3, "std": [3.0] * 3},
        },
        per_shard=16,
    )
    bands = [{"name": name, "centre_nm": centre, "width_nm": 60.0} for name, centre in BANDS.items()]
    return describe(path, image=bands, weather=[{"name": name} for name in ("rain", "heat", "wind")])


def write_series(path: Path, samples: int = SAMPLES) -> Path:
    """Series [10 dates, 3 variables] with missing dates; two numbers to be found, of which some are unknown."""
    random = np.random.default_rng(1)
    phase = random.uniform(0, 2 * np.pi, samples)
    turn = 2 * np.pi * np.arange(DATES) / DATES
    values = np.sin(turn[None, :, None] + phase[:, None, None] + np.arange(3)) + random.normal(
        0, 0.1, (samples, DATES, 3)
    )
    for i in range(samples):
        values[i, random.permutation(DATES)[: random.integers(DATES)]] = np.nan
    soil = np.stack([np.sin(phase), 5 + 2 * np.cos(phase)], 1).astype(np.float32)
    soil[random.uniform(size=soil.shape) < 0.2] = np.nan
    dates = (np.arange(DATES) * 30 + 17500)[None] * DAY + np.zeros((samples, 1), np.int64)
    write_set(
        path,
        {"series": (values.astype(np.float32), "TC")},
        arrays={"dates": (dates, "T"), "soil": (soil, "C")},
        columns={"harvest": soil[:, 0].copy(), "kind": (phase > np.pi).astype(np.int64)},
        statistics={"series": {"mean": [0.0] * 3, "std": [0.7] * 3}},
        per_shard=16,
    )
    return describe(path, series=[{"name": name} for name in ("ndvi", "lst", "rain")])


def describe(path: Path, **bands: list[dict[str, Any]]) -> Path:
    """Say in the manifest what the inputs' bands are."""
    manifest = json.loads((path / "manifest.json").read_text())
    for column, given in bands.items():
        manifest["images"][column]["bands"] = given
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def write_both(folder: Path) -> Path:
    """`folder`/scenes and `folder`/series."""
    write_scenes(folder / "scenes")
    write_series(folder / "series")
    return folder


def small_config(run_dir: Path, data: Path) -> dict[str, Any]:
    """A complete run of a few seconds on what `write_both` made: three tasks and self-supervision, 16 + 16 samples a batch."""
    return {
        "run": {"dir": str(run_dir), "seed": 3},
        "model": {
            "family": "gpna",
            "preset": "gpna_debug",
            "latents": 8,
            "tasks": {
                "kind": {"head": "classification", "source": "scenes", "target": "label"},
                "cover": {
                    "head": "segmentation",
                    "source": "scenes",
                    "target": "cover",
                    "features": 32,
                    "train_pixels": 40,
                },
                "soil": {"head": "regression", "source": "series", "target": "soil"},
            },
            "masked": {"ratio": 0.5, "queries": 16},
        },
        "data": {
            "sources": {
                "scenes": {"shards": str(data / "scenes"), "symmetries": True},
                "series": {"shards": str(data / "series")},
            }
        },
        "parallel": {"timeout_s": 60},
        "train": {"steps": 30, "global_batch": 32, "base_lr": 2e-2, "warmup_steps": 3, "clip_norm": 1.0},
        "log": {"progress": "lines", "every_steps": 50},
    }
