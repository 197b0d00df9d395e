"""A dry run for 75,264 ranks on this machine, and its counts against what small runs really do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import yaml

from frontier.config.load import load_config
from frontier.data.loader import Loader
from frontier.data.shards import ShardSet
from frontier.train.at_scale import shard_files
from frontier.train.plan import resolve
from tests.conftest import ROOT, run_frontier, toy_config
from tests.data.sets import write_set

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


@pytest.mark.parametrize("samples", [None, 10**9])
def test_every_shard_of_a_block_counts_and_none_is_listed(samples: int | None, tmp_path: Path) -> None:
    """Blocks of 8 samples over shards of 2; a billion samples cost no table of their shards."""
    numbers = np.zeros((64, 1, 16, 16), np.uint8)
    statistics = {"image": {"mean": [1.0], "std": [1.0]}}
    shards = write_set(tmp_path / "set", {"image": (numbers, "CHW")}, statistics=statistics, per_shard=2)
    config = toy_config(tmp_path / "run", shards)
    config["data"] = {"shards": str(shards), "block": 8}
    config["train"]["global_batch"] = 8
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    plan = resolve(load_config(tmp_path / "small.yaml"), 8, samples=samples)
    tracemalloc.start()
    counts = {shard_files(plan.feed.streams[0], plan.dims, rank) for rank in range(8)}
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert counts <= {4, 5} and counts, "a block of 8 lies in 4 shards of 2, or in 5 where it begins inside one"


def traced(folder: Path, own: tuple[Path, ...], *words: str | Path) -> list[list[str]]:
    """The names that each rank of a real run gave the file system, those of `own` and below: one a call."""
    folder.mkdir()
    strace = ["strace", "-ff", "-qq", "-e", "trace=%file,clone,clone3,fork,vfork", "-o", folder / "t"]
    done = subprocess.run(
        [*strace, sys.executable, "-m", "frontier", "pretrain", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    calls = {int(path.suffix[1:]): path.read_text(errors="replace").splitlines() for path in folder.iterdir()}
    started = {
        int(thread): process
        for process, lines in calls.items()
        for line in lines
        for thread in re.findall(r"^clone3?\(.*CLONE_THREAD.*= (\d+)$", line)
    }
    found: dict[int, list[str]] = defaultdict(list)
    for process, lines in calls.items():
        while process in started:
            process = started[process]
        for line in lines:
            name = re.match(r'(?!execve)\w+\([^"]*"([^"]+)"', line)
            if name and any(Path(name[1]).is_relative_to(path) for path in own):
                found[process].append(name[1])
    return [names for names in found.values() if any(name.endswith("/STOP") for name in names)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_operations_are_those_of_real_ranks(toy: Path, shards: Path, tmp_path: Path) -> None:
    """Four ranks, of which two hold one copy of the model and two another: a start with three saves, and a resume."""
    more = ("parallel.strategy=hybrid_2", "checkpoint.writers=2", "checkpoint.every_steps=2", "train.steps=6")
    more = (*more, "data.workers=0", "log.ranks_every=100")
    scale = ("--dry-run", "--json", "--nodes", "2", "--ranks-per-node", "2")
    told = json.loads(run_frontier("pretrain", toy, *more, *scale).stdout)["scale"]["file_system_operations"]
    run = tmp_path / "run"
    own = (toy, shards, run)
    ranks = sorted(traced(tmp_path / "first", own, toy, *more, "--ranks", "4"), key=len)
    assert len(ranks) == 4
    inside = [[name for name in names if Path(name).is_relative_to(run / "checkpoints")] for names in ranks]
    outside = [len(names) - len(saved) for names, saved in zip(ranks, inside, strict=True)]
    assert [len(saved) for saved in inside[:2]] == [0, 0], "these hold a copy that others write"
    assert outside[:3] == [told["start_of_a_rank"]] * 3
    assert 2 * 3 <= len(inside[2]) <= 3 * told["checkpoint_of_a_writer"]
    most = told["start_of_rank_0"] + 6 * told["step_of_rank_0"] + 3 * told["checkpoint_of_rank_0"]
    assert 0.6 * most < len(ranks[3]) <= most

    resumed = sorted(
        traced(tmp_path / "second", own, toy, *more, "train.steps=7", "checkpoint.at_end=false", "--ranks", "4"),
        key=len,
    )
    inside = [[name for name in names if Path(name).is_relative_to(run / "checkpoints")] for names in resumed]
    assert [len(names) for names in inside[:3]] == [0, 0, told["resume_of_a_reader"]], (
        "one rank reads for all that hold the same"
    )
    assert sum(map(len, inside)) <= told["resume_in_total"] + 20  # the folder itself, made and cleaned by rank 0


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


def test_counts_are_those_of_a_real_run(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

        monkeypatch.setattr(ShardSet, "in_cache", lambda *_: False)  # its blocks are read, as from a file system
        plan.shards.read = read  # type: ignore[method-assign]
        loader = Loader(plan.shards, "image", plan.sampler, rank, 4, workers=0)
        batches = loader.batches(0)
        for _ in range(plan.sampler.window):
            next(batches)
        plan.shards.read = real  # type: ignore[method-assign]
        assert len(seen) == shard_files(plan.feed.streams[0], plan.dims, rank)
