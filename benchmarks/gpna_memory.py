"""Memory that `--dry-run` predicts for GPNA against the peak of all tensors alive on real ranks (gloo, CPU).

    python benchmarks/gpna_memory.py            # writes benchmarks/results/gpna_memory.md (--out for another folder)

Two generated sources, of which every token is there: images [6, 32, 32] with labels and maps, series [12, 3] with a number. What is
measured, and what is not counted: benchmarks/memory_prediction.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

CASES: list[tuple[int, tuple[str, ...]]] = [
    (1, ()),
    (1, ("parallel.precision=bf16",)),
    (1, ("model.masked={ratio: 0.75, queries: 32}",)),
    (2, ("parallel.strategy=ddp",)),
    (2, ("parallel.strategy=no_shard",)),
    (2, ()),
    (2, ("parallel.activation_checkpointing=full",)),
    (2, ("parallel.activation_checkpointing=selective",)),
    (2, ("parallel.strategy=shard_grad_op",)),
    (2, ("parallel.tensor=2", "parallel.strategy=no_shard")),
    (2, ("train.micro_batch=8",)),
    (2, ("parallel.precision=bf16", "parallel.activation_checkpointing=full")),
    (4, ("parallel.strategy=hybrid_2", "train.global_batch=64")),
]
"""Ranks and overrides; gpna_small of 4 blocks, 16 + 16 samples in a batch, full_shard in float32 where not said otherwise."""


def write(folder: Path) -> Path:
    """A config and its two sources."""
    from tests.data.sets import write_set
    from tests.gpna.sets import DAY, describe

    random = np.random.default_rng(0)
    n = 128
    write_set(
        folder / "images",
        {"image": (random.integers(0, 2000, (n, 6, 32, 32), dtype=np.int16), "CHW")},
        arrays={"cover": (random.integers(0, 4, (n, 32, 32), dtype=np.uint8), "HW")},
        columns={"label": random.integers(0, 5, n)},
        statistics={"image": {"mean": [1000.0] * 6, "std": [500.0] * 6}},
        per_shard=n,
    )
    describe(
        folder / "images", image=[{"name": f"x{i}", "centre_nm": 500.0 + 50 * i, "width_nm": 40.0} for i in range(6)]
    )
    write_set(
        folder / "series",
        {"series": (random.normal(size=(n, 12, 3)).astype(np.float32), "TC")},
        arrays={"dates": (np.arange(12)[None] * 30 * DAY + np.full((n, 1), 17000 * DAY), "T")},
        columns={"number": random.normal(size=n).astype(np.float32)},
        statistics={"series": {"mean": [0.0] * 3, "std": [1.0] * 3}},
        per_shard=n,
    )
    describe(folder / "series", series=[{"name": name} for name in ("heat", "rain", "wind")])
    tasks = {
        "kind": {"head": "classification", "source": "images", "target": "label"},
        "cover": {"head": "segmentation", "source": "images", "target": "cover"},
        "number": {"head": "regression", "source": "series", "target": "number"},
    }
    config = {
        "run": {"dir": str(folder / "run")},
        "model": {"family": "gpna", "preset": "gpna_small", "depth": 4, "tasks": tasks},
        "data": {"sources": {name: {"shards": str(folder / name)} for name in ("images", "series")}},
        "train": {"steps": 3, "global_batch": 32},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def step_peak(plan: Any, rank: int) -> float:
    """Measured GiB at the peak of a step on this rank: the lesser of the second and the third."""
    import torch
    from memory_prediction import live_bytes_mode

    from frontier.data.feed import Loaders
    from frontier.parallel.engine import TorchEngine

    cpu, peaks, times = torch.device("cpu"), [], plan.batch.accumulation
    config = plan.config
    batch = next(Loaders(plan.feed.streams, rank, plan.dims.data_ranks, 0, cpu, 0).batches(0))
    reader = plan.feed.reader(cpu, 0)
    placed = reader.place(batch)
    turns = [reader.inputs(plan.model, placed, turn, times) for turn in range(times)]
    with live_bytes_mode() as live:
        engine = TorchEngine(plan.model, config.parallel, config.train, plan.dims, cpu, 0)
        for _ in range(3):
            live.reset()
            for number, inputs in enumerate(turns):
                loss = engine.forward(inputs, last=number + 1 == times)["loss"]
                engine.backward(loss, times)
                loss = loss.detach()
            engine.update(loss.reshape(1), 1e-4, float("inf"), float("inf"))
            peaks.append(live.peak)
        seen = set(live.references)
    held = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for turn in turns for t in tensors(turn)}
    return (min(peaks[1:]) - sum(size for key, size in held.items() if key in seen)) / 2**30


def tensors(found: Any) -> list[Any]:
    import torch
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)]


def plan_of(config: str, overrides: list[str], ranks: int) -> Any:
    from frontier.config.load import load_config
    from frontier.train.plan import resolve

    return resolve(load_config(config, overrides), ranks)


def worker(config: str, cases: list[list[str]], result: Path) -> None:
    """`step_peak` of several cases on the same ranks, a line of `result` each: that of the rank that has most."""
    import torch
    import torch.distributed as dist

    from frontier.launch.process_group import process_group
    from frontier.launch.ranks import discover

    ranks = discover()
    with process_group(ranks, torch.device("cpu"), 600):
        for overrides in cases:
            found: list[Any] = [None] * ranks.world_size
            plan = plan_of(config, overrides, ranks.world_size)
            dist.all_gather_object(found, step_peak(plan, plan.dims.data_rank(ranks.rank)))
            if ranks.is_main:
                with result.open("a") as file:
                    file.write(f"{max(found)}\n")


def predicted(config: str, overrides: list[str], ranks: int) -> float:
    """GiB; as on a CPU, whose attention keeps other things than a GPU's."""
    from dataclasses import replace

    from frontier.train.memory import MemoryCase, memory_of

    return memory_of(replace(MemoryCase.of_plan(plan_of(config, overrides, ranks)), device_type="cpu"))[0]["peak"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of gpna_memory.md")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker[0], json.loads(args.worker[1]), Path(args.worker[2]))
        return 0
    import torch

    rows = ["| ranks | overrides | measured, GiB | predicted, GiB | ratio |", "|---|---|---|---|---|"]
    ratios = []
    launch = (
        "import sys; from frontier.launch.local import run_local; sys.exit(run_local(sys.argv[2:], int(sys.argv[1])))"
    )
    with tempfile.TemporaryDirectory() as scratch:
        config = str(write(Path(scratch)))
        for ranks in sorted({ranks for ranks, _ in CASES}):
            cases = [list(overrides) for count, overrides in CASES if count == ranks]
            result = Path(scratch) / f"peaks_{ranks}"
            command = [sys.executable, "-c", launch, str(ranks), sys.executable, __file__]
            command += ["--worker", config, json.dumps(cases), str(result)]
            subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
            for overrides, line in zip(cases, result.read_text().splitlines(), strict=True):
                told, peak = predicted(config, overrides, ranks), float(line)
                ratios.append(told / peak)
                rows.append(
                    f"| {ranks} | {' '.join(overrides) or '-'} | {peak:.4f} | {told:.4f} | **{told / peak:.3f}** |"
                )
                print(rows[-1], flush=True)
    verdict = f"Predicted over measured: {min(ratios):.3f} to {max(ratios):.3f}; within 5 %: {sum(abs(r - 1) <= 0.05 for r in ratios)} of {len(ratios)}."
    head = f"`python benchmarks/gpna_memory.py`, {time.strftime('%Y-%m-%d')}, PyTorch {torch.__version__}."
    about = "gpna_small of 4 blocks, 16 + 16 samples in a batch where not said otherwise, full_shard in float32; bytes of tensors, inputs not counted."
    (args.out / "gpna_memory.md").write_text("\n".join([head, "", about, "", *rows, "", verdict, ""]))
    print(verdict)
    return 0


if __name__ == "__main__":
    sys.exit(main())
