"""Predicted against measured on the ranks of this machine: `python benchmarks/prediction.py [--out benchmarks/results]`.

For 1 and 2 ranks: `frontier doctor --write-system` measures the machine, `frontier pretrain` trains each case for a few steps on
synthetic images, `frontier plan`'s predictor is asked the same. The machine should be idle: both sides are timings.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from frontier_profiling.measure.summary import measured_row
from frontier_profiling.predict.case import Case
from frontier_profiling.predict.predict import predict
from frontier_profiling.predict.system import load_system
from frontier_profiling.rows import Row, to_json


@dataclass(frozen=True)
class Point:
    ranks: int
    model: str
    strategy: str
    micro_batch: int
    precision: str = "fp32"
    checkpointing: str = "none"
    accumulation: int = 1
    image_size: int = 224


POINTS = (
    Point(1, "vit_small", "no_shard", 16),
    Point(1, "vit_small", "no_shard", 16, checkpointing="full"),
    Point(1, "vit_small", "no_shard", 16, checkpointing="selective"),
    Point(1, "vit_small", "no_shard", 16, precision="bf16"),
    Point(1, "vit_small", "no_shard", 64, precision="bf16"),
    Point(1, "vit_tiny", "no_shard", 64, image_size=64),
    Point(1, "vit_base", "no_shard", 8),
    Point(1, "vit_base", "no_shard", 16, precision="bf16"),
    Point(2, "vit_small", "ddp", 16),
    Point(2, "vit_small", "no_shard", 16),
    Point(2, "vit_small", "full_shard", 16),
    Point(2, "vit_small", "shard_grad_op", 16),
    Point(2, "vit_small", "full_shard", 16, checkpointing="full"),
    Point(2, "vit_small", "full_shard", 8, accumulation=4),
    Point(2, "vit_small", "full_shard", 32, precision="bf16"),
    Point(2, "vit_base", "full_shard", 8),
)

ON_A_GPU = (
    Point(1, "vit_base", "no_shard", 64, "bf16"),
    Point(1, "vit_base", "no_shard", 256, "bf16"),
    Point(1, "vit_huge", "no_shard", 64, "bf16"),
    Point(1, "vit_1b", "no_shard", 32, "bf16"),
    Point(1, "vit_1b", "no_shard", 128, "bf16"),
    Point(1, "vit_1b", "no_shard", 128, "bf16", "full"),
    Point(1, "vit_1b", "no_shard", 128, "bf16", "selective"),
    Point(1, "vit_3b", "no_shard", 32, "bf16", "full"),
)


def environment(ranks: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // ranks))}


def describe(ranks: int, folder: Path) -> Path:
    """This machine with so many ranks, as `frontier plan --system` takes it."""
    path = folder / f"local_{ranks}.yaml"
    command = [sys.executable, "-m", "frontier", "doctor", "--ranks", str(ranks), "--write-system", str(path)]
    subprocess.run(command, check=False, env=environment(ranks), stdout=subprocess.DEVNULL)
    if not path.exists():
        raise SystemExit(f"frontier doctor wrote no {path}")
    return path


def train(point: Point, steps: int, folder: Path) -> Row:
    config: dict[str, Any] = {
        "run": {"dir": str(folder)},
        "model": {"family": "mae", "preset": point.model},
        "data": {"synthetic": {"channels": 3, "samples": 1_000_000}, "image_size": point.image_size},
        "parallel": {
            "strategy": point.strategy,
            "precision": point.precision,
            "activation_checkpointing": point.checkpointing,
        },
        "train": {
            "steps": steps,
            "global_batch": point.ranks * point.micro_batch * point.accumulation,
            "micro_batch": point.micro_batch,
        },
        "checkpoint": {"at_end": False},
        "log": {"progress": "none"},
    }
    folder.mkdir()
    (folder.parent / f"{folder.name}.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "frontier", "pretrain", str(folder.parent / f"{folder.name}.yaml")]
    subprocess.run([*command, "--ranks", str(point.ranks)], check=True, env=environment(point.ranks))
    return measured_row(folder)


def ask(point: Point, system: str) -> Row:
    return predict(
        Case(
            point.model,
            load_system(system),
            1,
            point.strategy,
            micro_batch=point.micro_batch,
            accumulation=point.accumulation,
            precision=point.precision,
            activation_checkpointing=point.checkpointing,
            workload="mae",
            image_size=point.image_size,
        )
    )


def parts(row: Row) -> str:
    named = ("compute", "launch", "optimizer", "exposed")
    return ", ".join(f"{name} {1e3 * row.step_parts_s[name]:.0f}" for name in named if row.step_parts_s.get(name))


def gib(row: Row) -> str:
    """Only an accelerator's allocator counts tensors; on a CPU benchmarks/memory_prediction.py does."""
    found = row.memory_gib.get("total_allocated")
    return "not measured" if found is None else f"{found:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of points")
    parser.add_argument("--out", type=Path, help="folder for prediction.md")
    args = parser.parse_args()
    import torch

    points = ON_A_GPU if torch.cuda.is_available() else POINTS
    load, rows, ratios = os.getloadavg()[0], [], []
    lines = [
        "| ranks | model | strategy | precision | checkpointing | micro-batch | measured, ms (p10 - p90) | predicted, ms | predicted / measured | measured parts, ms | predicted parts, ms | GiB of tensors, measured | predicted |",
        "|" + "---|" * 13,
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        chosen = [(n, point) for n, point in enumerate(points) if not args.only or n in args.only]
        systems = {ranks: describe(ranks, folder) for ranks in sorted({point.ranks for _, point in chosen})}
        for number, point in chosen:
            measured = train(point, args.steps, folder / f"run_{number}")
            predicted = ask(point, str(systems[point.ranks]))
            rows += [measured, predicted]
            assert measured.step_s and measured.step_s_low and measured.step_s_high and predicted.step_s
            ratio = predicted.step_s / measured.step_s
            ratios.append(ratio)
            times = f" x {point.accumulation}" if point.accumulation > 1 else ""
            lines.append(
                f"| {point.ranks} | {point.model}, {point.image_size} px | {point.strategy} | {point.precision} | {point.checkpointing} "
                f"| {point.micro_batch}{times} | {1e3 * measured.step_s:.0f} ({1e3 * measured.step_s_low:.0f} - {1e3 * measured.step_s_high:.0f}) "
                f"| {1e3 * predicted.step_s:.0f} | **{ratio:.2f}** | {parts(measured)} | {parts(predicted)} "
                f"| {gib(measured)} | {gib(predicted)} |"
            )
            print(lines[-1], flush=True)
    off = sorted(abs(ratio - 1) for ratio in ratios)
    head = (
        f"`python benchmarks/prediction.py`, {time.strftime('%Y-%m-%d')}, {len(os.sched_getaffinity(0))} cores, load at the start {load:.1f}, "
        f"PyTorch {torch.__version__}. Both columns are of this machine: `frontier doctor --write-system` measured what the prediction is made from."
    )
    last = f"Median |predicted / measured - 1| {100 * statistics.median(off):.0f} %, largest {100 * off[-1]:.0f} %, {len(off)} points."
    text = "\n".join([head, "", *lines, "", last, ""])
    print(text)
    if args.out:
        (args.out / "prediction.md").write_text(text)
        (args.out / "prediction.json").write_text(to_json(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
