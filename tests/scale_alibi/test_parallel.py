"""The contrastive loss sees the global batch on any number of ranks: the same gradients, the same curve, under every parallelism.

The whole matrix is `python -m tests.matrix --family scale_alibi`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import read_jsonl
from tests.matrix.cells import VARIANTS, Cell
from tests.matrix.run import Bench
from tests.scale_alibi.triplets import small_config, write_triplets

STEPS, STOP = 8, 4
TWO = [
    Cell.of(2, "zero_3", "accumulation", ("train.micro_batch=4",)),
    Cell.of(2, "tensor_2", "checkpointing", VARIANTS["checkpointing"]),
]
ALONE = ("model.weights.reconstruction=0",)
WAYS = {
    1: [("one", ()), ("one, micro-batches", ("train.micro_batch=4",))],
    2: [
        ("ddp", ("parallel.strategy=ddp",)),
        ("full_shard, micro-batches", ("train.micro_batch=2",)),
        ("tensor_2", ("parallel.strategy=no_shard", "parallel.tensor=2")),
    ],
    4: [
        ("ddp, micro-batches", ("parallel.strategy=ddp", "train.micro_batch=2")),
        ("full_shard", ()),
        ("tensor_2+full_shard", ("parallel.tensor=2", "train.micro_batch=2")),
        ("tensor_2, same samples", ("parallel.tensor=2", "parallel.sequence_parallel=false")),
    ],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_triplets(tmp_path_factory.mktemp("triplets") / "shards")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("scale_alibi"), data, small_config, STEPS, STOP)
    bench.reference()
    bench.cells(TWO)
    return bench


@pytest.mark.parametrize("cell", TWO, ids=lambda cell: cell.name)
def test_same_curve_and_weights(bench: Bench, cell: Cell) -> None:
    difference = bench.difference(cell.name)
    assert difference.ok, difference
    rows, wanted = (read_jsonl(bench.folder / name / "metrics.jsonl") for name in (cell.name, "reference"))
    for row, one in zip(rows, wanted, strict=True):
        for key in ("loss_contrastive", "loss_hires", "matched", "temperature"):
            assert row[key] == pytest.approx(one[key], rel=1e-4, abs=1e-6), key


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Of the contrastive loss alone, every way."""
    folder = tmp_path_factory.mktemp("gradients")
    config = folder / "config.yaml"
    settings = small_config(folder / "run", data)
    del settings["model"]["decoder"]
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    code = (
        "import sys; from frontier.launch.local import run_local; sys.exit(run_local(sys.argv[2:], int(sys.argv[1])))"
    )
    found = {}
    for ranks, ways in WAYS.items():
        jobs = [([*ALONE, *overrides], str(folder / f"{ranks}_{name}.pt")) for name, overrides in ways]
        worker = [sys.executable, "-m", "tests.scale_alibi.gradients_worker", str(config), json.dumps(jobs)]
        done = subprocess.run(
            [sys.executable, "-c", code, str(ranks), *worker],
            capture_output=True,
            text=True,
            timeout=400,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        for (name, _), (_, path) in zip(ways, jobs, strict=True):
            found[f"{ranks} {name}"] = torch.load(path, weights_only=True)
    return found


@pytest.mark.parametrize("way", [f"{ranks} {name}" for ranks, ways in WAYS.items() for name, _ in ways][1:])
def test_contrastive_gradients(gradients: dict[str, dict[str, torch.Tensor]], way: str) -> None:
    """Those of one rank with the whole batch at once, to 1e-6 of the largest."""
    expected, found = gradients["1 one"], gradients[way]
    assert found.keys() == expected.keys()
    scale = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) <= 1e-6 * scale, name
