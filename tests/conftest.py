"""Shared by all rooms: a small folder of images as shards, and a way to run the command as its user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = Path(os.environ.get("FRONTIER_TEST_DATA", ROOT.parent / "shared" / "data"))


def run_frontier(*args: str | Path, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
    """`frontier …` in a process of its own, one thread a rank."""
    return subprocess.run(
        [sys.executable, "-m", "frontier", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def curve(run_dir: Path) -> list[float]:
    """Losses of metrics.jsonl in order, the steps checked to be 1, 2, 3, …"""
    rows = read_jsonl(run_dir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def write_images(folder: Path) -> None:
    """200 PNGs of 32 px in 2 classes: smooth blobs and stripes with noise."""
    from PIL import Image

    random = np.random.default_rng(0)
    y, x = np.mgrid[0:32, 0:32] / 32
    for name, frequency in (("blobs", 1.0), ("stripes", 6.0)):
        (folder / name).mkdir(parents=True)
        for i in range(100):
            phase = random.uniform(0, 6.3, 3)
            wave = np.stack([np.sin(6.3 * frequency * (x * np.cos(p) + y * np.sin(p)) + p) for p in phase], -1)
            pixels = 127 + 70 * wave + random.normal(0, 20, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i:03d}.png")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder


@pytest.fixture(scope="session")
def shards(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image folder as shards, 160 train and 40 test samples."""
    out = tmp_path_factory.mktemp("shards") / "toy"
    done = run_frontier("shards", "write", "--from", image_folder, out)
    assert done.returncode == 0, done.stderr
    return out


def toy_config(run_dir: Path, shards: Path) -> dict:
    """A complete run of a few seconds."""
    return {
        "run": {"dir": str(run_dir), "seed": 3},
        "model": {"family": "mae", "preset": "vit_debug"},
        "data": {"shards": str(shards), "augment": {"symmetries": True, "crop_scale": [0.4, 1.0]}},
        "parallel": {"timeout_s": 60},
        "train": {"steps": 50, "global_batch": 32, "base_lr": 4e-3, "warmup_steps": 5, "clip_norm": 0.2},
        "log": {"progress": "lines", "every_steps": 50},
    }


@pytest.fixture
def toy(tmp_path: Path, shards: Path) -> Path:
    """Path of a config; its run folder is tmp_path / "run"."""
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(toy_config(tmp_path / "run", shards)))
    return path
