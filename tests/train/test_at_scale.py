"""A dry run for 75,264 ranks on this machine, and its counts against what small runs really do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from frontier.config.load import load_config
from frontier.data.loader import Loader
from frontier.train.at_scale import shard_files
from frontier.train.plan import resolve
from tests.conftest import run_frontier

FULL_FRONTIER = ("--nodes", "9408", "--samples", "1000000000", "train.global_batch=75264", "parallel.strategy=hybrid_8")


def test_9408_nodes_on_a_laptop(toy: Path, tmp_path: Path) -> None:
    done = run_frontier("pretrain", toy, "--dry-run", "--json", *FULL_FRONTIER)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    scale = told["scale"]
    assert told["mesh"]["world_size"] == scale["ranks"] == 75_264
    assert scale["place"] == {"replica": 9407, "shard": 7, "tensor": 0, "data_rank": 75_263}
    assert scale["setup_s"] < 5 and scale["setup_gib"] < 1
    assert scale["checkpoint"]["files"] == 64 + 2
    assert scale["log_files"]["other_ranks"] == 0
    assert scale["process_groups_of_a_rank"] == 4
    assert not scale["notes"]
    assert not (tmp_path / "run").exists()
    whole = run_frontier("pretrain", toy, "--dry-run", *FULL_FRONTIER, "parallel.strategy=full_shard")
    assert "75,266 files: a hybrid strategy such as hybrid_" in whole.stdout


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("--nodes", "2", "--rank", "16"), "there are ranks 0 to 15"),
        (("--rank", "1"), "go with --nodes"),
        (("--nodes", "0"), "positive"),
    ],
)
def test_wrong_scale(toy: Path, overrides: tuple[str, ...], words: str) -> None:
    done = run_frontier("pretrain", toy, "--dry-run", *overrides)
    assert done.returncode == 2 and words in done.stderr


def test_counts_are_those_of_a_real_run(toy: Path, tmp_path: Path) -> None:
    """Files of a checkpoint and of the run folder, and shard files that a rank reads in its first window."""
    more = ("parallel.strategy=hybrid_2", "checkpoint.writers=2", "train.steps=4")
    told = json.loads(
        run_frontier("pretrain", toy, *more, "--dry-run", "--json", "--nodes", "2", "--ranks-per-node", "2").stdout
    )["scale"]
    assert run_frontier("pretrain", toy, *more, "--ranks", "4", "log.ranks_every=2").returncode == 0
    assert len(list((tmp_path / "run/checkpoints/step_00000004").iterdir())) == told["checkpoint"]["files"] == 4
    files = [p for p in (tmp_path / "run").iterdir() if p.is_file()]
    assert len(files) == told["log_files"]["rank_0"]

    plan = resolve(load_config(toy, []), 4)
    for rank in range(4):
        seen: set[int] = set()
        real = plan.shards.read

        def read(column: str, start: int, stop: int, *into: np.ndarray, real=real, seen=seen) -> np.ndarray:
            starts = plan.shards.shard_starts
            seen.update(int(np.searchsorted(starts, i, side="right")) for i in range(start, stop))
            return real(column, start, stop, *into)

        plan.shards.read = read  # type: ignore[method-assign]
        loader = Loader(plan.shards, "image", plan.sampler, rank, 4, workers=0)
        batches = loader.batches(0)
        for _ in range(plan.sampler.window):
            next(batches)
        plan.shards.read = real  # type: ignore[method-assign]
        assert len(seen) == shard_files(plan.feed.streams[0], plan.dims, rank)
