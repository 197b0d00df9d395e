"""Run folders made by hand, so that every number that a report should show is known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

GLOBAL_BATCH, WORLD = 32, 2


def config(path: Path, steps: int, **train: Any) -> dict[str, Any]:
    return {
        "run": {"dir": str(path), "seed": 3},
        "model": {"family": "mae", "preset": "vit_debug", "mask_ratio": 0.75, "norm_pix_loss": True},
        "data": {"shards": str(path / "no-shards"), "column": "image", "image_size": 32},
        "parallel": {"strategy": "full_shard", "precision": "fp32"},
        "train": {"steps": steps, "epochs": None, "samples": None, "global_batch": GLOBAL_BATCH, **train},
    }


def start(index: int, resumed_from: int | None) -> dict[str, Any]:
    return {
        "schema": 1,
        "time": 1.7e9 + 1000 * index,
        "versions": {"python": "3.11.9", "torch": "2.13.0"},
        "host": f"node{index}",
        "device": "test processor",
        "world_size": WORLD,
        "nodes": 1,
        "mesh": {"replicate": 1, "shard": WORLD},
        "strategy": "full_shard",
        "precision": "fp32",
        "parameters": 1_234_567,
        "encoder_parameters": 1_000_000,
        "flops_per_image": 2.5e9,
        "peak_tflops": None,
        "resumed_from": resumed_from,
        "git": "0123abc-dirty",
    }


def rows(steps: int, restarts: tuple[int, ...], seed: int, skipped_at: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl as the trainer writes them: `skipped` counts up, a loss that is not finite is null."""
    random = np.random.default_rng(seed)
    out = []
    for step in range(1, steps + 1):
        index = sum(step > at for at in restarts)
        seconds = 0.5 + 0.1 * random.random()
        parts = {
            "data_s": 0.02,
            "forward_s": 0.3 * seconds,
            "backward_s": 0.5 * seconds,
            "optimizer_s": 0.03,
            "checkpoint_s": 0.0,
        }
        out.append(
            {
                "schema": 1,
                "step": step,
                "epoch": step * GLOBAL_BATCH / 160,
                "samples": step * GLOBAL_BATCH,
                "loss": None if step in skipped_at else 0.4 + 0.6 * math.exp(-step / 20) + 0.01 * random.random(),
                "lr": 1e-4,
                "grad_norm": None if step in skipped_at else 0.5,
                "images_per_s": GLOBAL_BATCH / seconds,
                "step_s": seconds,
                **parts,
                "other_s": seconds - sum(parts.values()),
                "memory_gib": 1.0 + 0.001 * step,
                "memory_kind": "rss",
                "model_tflops": 0.1,
                "mfu": None,
                "power_w": None,
                "energy_j": None,
                "data_supply_ratio": 3.0 + 0.01 * (step % 3),
                "skipped": sum(step >= at for at in skipped_at),
                "time": 1.7e9 + 1000 * index + 0.6 * step,
                "start": index,
            }
        )
    return out


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_run(
    path: Path, steps: int = 60, restarts: tuple[int, ...] = (20, 40), seed: int = 0, skipped_at: tuple[int, ...] = ()
) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config(path, steps)))
    write_lines(path / "starts.jsonl", [start(0, None), *(start(i + 1, at) for i, at in enumerate(restarts))])
    write_lines(path / "metrics.jsonl", rows(steps, restarts, seed, skipped_at))
    return path


def probe_row(method: str, encoder: str, accuracy: float, half: float = 0.02, **details: Any) -> dict[str, Any]:
    return {
        "method": method,
        "encoder": encoder,
        "accuracy": accuracy,
        "ci95": [accuracy - half, accuracy + half],
        "n_train": 1600,
        "n_test": 400,
        **details,
    }
