"""One float32 curve under every parallelism, also where ranks have different numbers of clusters; the whole matrix is
`python -m tests.matrix --family gpna`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from frontier.config.load import load_config
from frontier.data.feed import Loaders
from frontier.parallel.materialise import initialise_buffers
from frontier.train.plan import resolve
from gpna.fourier import place_features
from tests.conftest import ROOT, curve
from tests.gpna.sets import small_config, write_both, write_scenes
from tests.matrix.cells import VARIANTS, Cell
from tests.matrix.run import Bench

CPU = torch.device("cpu")
STEPS, STOP = 8, 3
FEW_S = 400
"""For a set of ranks: far more than it takes, far less than a collective that waits for good."""

TWO = [
    Cell.of(2, "ddp", "plain", ()),
    Cell.of(2, "zero_2", "accumulation", ("train.micro_batch=4",)),
    Cell.of(2, "zero_3", "plain", ()),
    Cell.of(2, "tensor_2", "checkpointing", VARIANTS["checkpointing"]),
]
FOUR = [
    Cell.of(4, "full_shard", "checkpointing", VARIANTS["checkpointing"]),
    Cell.of(4, "hybrid_2", "accumulation", ("train.micro_batch=4",)),
    Cell.of(4, "tensor_2+full_shard", "plain", ()),
]
LOW = [
    Cell.of(2, "ddp", "bf16", ("parallel.precision=bf16",)),
    Cell.of(2, "full_shard", "bf16", ("parallel.precision=bf16",)),
    Cell.of(2, "zero_2", "bf16", ("parallel.precision=bf16",)),
]


def gentle_config(run_dir: Path, data: Path) -> dict[str, Any]:
    """Smaller steps than the matrix makes, the first ones most of all: AdamW brings any gradient to the size of the learning rate,
    at first what is rounding too (a bias of the tokenizer has one of 3e-8 in the first step, of 1e-3 in the second).
    """
    config = small_config(run_dir, data)
    config["train"] |= {"base_lr": 3e-3, "warmup_steps": STEPS}
    config["model"]["latents_start"] = "places"  # every parallelism makes its own part of these
    return config


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    data = write_both(tmp_path_factory.mktemp("sources"))
    bench = Bench(tmp_path_factory.mktemp("gpna"), data, gentle_config, STEPS, STOP)
    bench.reference()
    bench.cells([*TWO, *FOUR, *LOW])
    return bench


@pytest.mark.parametrize("cell", [*TWO, *FOUR], ids=lambda cell: cell.name)
def test_same_curve_and_weights(bench: Bench, cell: Cell) -> None:
    difference = bench.difference(cell.name)
    assert difference.ok, difference


@pytest.mark.slow
def test_stop_under_one_resume_under_another(bench: Bench) -> None:
    """From DeepSpeed's parts of rows to tensor parallel shards, and from whole weights to sharded ones."""
    for name in bench.resume([(TWO[2], FOUR[2]), (TWO[0], FOUR[0])]).values():
        difference = bench.difference(name)
        assert difference.ok, (name, difference)


@pytest.mark.parametrize("cell", LOW, ids=lambda cell: cell.strategy)
def test_bf16_stays_near_float32(bench: Bench, cell: Cell) -> None:
    difference = bench.difference(cell.name).losses
    assert 1e-6 < difference < 2e-2, "no difference at all would mean that nothing ran in bf16"


def test_coordinates_are_float64_and_reach_a_bf16_module_as_float32_features(bench: Bench) -> None:
    plan = resolve(load_config(bench.config, ["parallel.precision=bf16"]), 1)
    batch = next(Loaders(plan.feed.streams, 0, 1, 0, CPU, 3).batches(0))
    reader = plan.feed.reader(CPU, 3)
    inputs = reader.inputs(None, reader.place(batch), 0, 1)
    given = inputs["sources"]["scenes"]
    assert {t.dtype for t in (given["place"], *given["time"].values(), *given["values"].values())} == {torch.float32}
    lon, lat = (batch["scenes"].columns[name] for name in ("lon", "lat"))
    assert lon.dtype == torch.float64
    exact = place_features(lon, lat, 0.0, plan.config.model.tokens.place)
    torch.testing.assert_close(given["place"], exact, rtol=0, atol=0)
    rounded = place_features(lon.bfloat16().double(), lat.bfloat16().double(), 0.0, plan.config.model.tokens.place)
    assert (rounded - exact).abs().max() > 0.1  # what bf16 coordinates would have cost
    # Tables of fixed encodings, means and deviations of labels stay float32 in a bf16 module.
    plan.model.to(torch.bfloat16)
    whole = resolve(load_config(bench.config, []), 1).model
    initialise_buffers(whole, CPU)
    assert {buffer.dtype for buffer in whole.buffers()} == {torch.float32}


# -- ranks with different numbers of clusters


def uneven_config(run_dir: Path, data: Path) -> dict[str, Any]:
    """A rank's 8 samples lie one after another in the data, where 16 whole images take turns with 16 nearly empty ones."""
    config = gentle_config(run_dir, data)
    config["data"]["sources"] = {"scenes": {"shards": str(data), "block": 8, "window": 1}}
    config["model"]["tasks"].pop("soil")
    return config


UNEVEN = [
    Cell.of(4, "full_shard", "uneven", ()),
    Cell.of(4, "zero_3", "uneven", ()),
    Cell.of(4, "full_shard", "uneven, each alone", ("model.batching.method=each", "train.micro_batch=4")),
]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    data = write_scenes(tmp_path_factory.mktemp("scenes"), missing="groups")
    return Bench(tmp_path_factory.mktemp("uneven"), data, uneven_config, 6, 3)


def clusters(bench: Bench, ranks: int) -> list[list[list[int]]]:
    """[step][rank] tokens of each sample of each cluster, and at the end 1 where the rank has no token missing."""
    plan = resolve(load_config(bench.config), ranks)
    found = []
    streams = [Loaders(plan.feed.streams, rank, ranks, 0, CPU, 3).batches(0) for rank in range(ranks)]
    for _ in range(bench.steps):
        row = []
        for batches in streams:
            reader = plan.feed.reader(CPU, 3)
            placed = reader.place(next(batches))
            parts = reader.inputs(None, placed, 0, 1)["clusters"]
            sizes = [part["length"] if "start" in part else part["tokens"].shape[1] for part in parts]
            row.append([*sizes, int(all(there is None for there in placed["scenes"].tokens.values()))])
        found.append(row)
    return found


def test_ranks_really_differ(uneven: Bench) -> None:
    steps = clusters(uneven, 4)
    assert sum(len({len(sizes) for sizes in row}) > 1 for row in steps) >= 3, "clusters are as many on all ranks"
    assert any({sizes[-1] for sizes in row} == {0, 1} for row in steps), (
        "no step where one rank has all, another lacks tokens"
    )
    assert any(0 in sizes[:-1] for row in steps for sizes in row), "no sample without a token"
    most, fewest = (f(max(sizes[:-1]) for row in steps for sizes in row) for f in (max, min))
    assert most > 3 * fewest


def test_different_clusters_on_every_rank(uneven: Bench) -> None:
    """No hang, the curve and weights of one rank."""
    uneven.run(1, [("reference", ())], FEW_S)
    uneven.run(4, [(cell.name, cell.overrides) for cell in UNEVEN], FEW_S)
    losses = curve(uneven.folder / "reference")
    assert np.isfinite(losses).all()
    for cell in UNEVEN:
        difference = uneven.difference(cell.name)
        assert difference.ok, (cell.name, difference)


@pytest.mark.slow
def test_compiled_blocks_and_selective_checkpoints(bench: Bench) -> None:
    more = ("parallel.compile=true", "parallel.activation_checkpointing=selective")
    cells = [Cell.of(2, "full_shard", word.rpartition(".")[2].replace("=", "_"), (word,)) for word in more]
    bench.cells(cells)
    for cell in cells:
        difference = bench.difference(cell.name)
        assert difference.ok, (cell.name, difference)


def test_zero_3_gathers_once_a_pass_and_reduces_in_one_order(tmp_path: Path) -> None:
    """However often tokenizer and input attention are called, and whatever the number of clusters."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(small_config(tmp_path / "run", write_both(tmp_path / "data"))))
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpna.gathers_worker", str(config)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=FEW_S,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    passes = told["passes"]
    assert passes[1]["clusters"] > passes[0]["clusters"] + 5
    whole = {name for name in told["names"] if not name.startswith(("blocks.", "norm."))}
    assert whole
    for one in passes:
        forward, backward = Counter(one["forward"]), Counter(one["backward"])
        assert {forward[name] for name in whole} == {1}
        assert {backward[name] for name in whole} in ({0}, {1})  # 0: DeepSpeed has kept them from the forward pass
        assert sorted(one["reduced"]) == sorted(told["names"])
        assert one["reduced"] == passes[0]["reduced"]
