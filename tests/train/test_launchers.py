"""One config, unchanged, alone, under torchrun and under mpiexec: the same curve."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from frontier.launch.local import free_port
from tests.conftest import curve, read_jsonl, run_frontier

BIN = Path(sys.executable).parent
LAUNCHERS = {
    "torchrun": [str(BIN / "torchrun"), "--standalone", "--nproc-per-node=2", "-m", "frontier"],
    "mpich": [str(BIN / "mpiexec"), "-n", "2", sys.executable, "-m", "frontier"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_ranks(launcher: str, toy: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    assert run_frontier("pretrain", toy, f"run.dir={alone}", "train.steps=5").returncode == 0
    done = subprocess.run(
        [*LAUNCHERS[launcher], "pretrain", str(toy), "train.steps=5"],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    np.testing.assert_allclose(curve(run), curve(alone), rtol=1e-5)
    start = read_jsonl(run / "starts.jsonl")[0]
    assert start["world_size"] == 2
    assert start["launcher"] == launcher
    assert done.stdout.count("done: 5 steps") == 1


def two_nodes(*words: str | Path, second: dict[str, str] | None = None) -> tuple[list[int], list[str]]:
    """(exit codes, lines on stderr) of two ranks whose launcher ends nobody, each the first of its node; `second`: variables of the other one."""
    given = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    given |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "frontier", "pretrain", *map(str, words)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **given, **more, "RANK": str(rank)},
        )
        for rank, more in enumerate(({}, second or {}))
    ]
    try:
        said = [rank.communicate(timeout=120)[1].splitlines() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.returncode for rank in ranks], [line for lines in said for line in lines]


def test_a_mistake_is_one_line_of_all_nodes(toy: Path) -> None:
    codes, (line,) = two_nodes(toy, "train.stepz=3")
    assert codes == [2, 2] and line.startswith("frontier pretrain: unknown config key 'train.stepz'")


def test_what_rank_0_alone_finds_ends_the_others(toy: Path, shards: Path, tmp_path: Path) -> None:
    """One rank looks at every shard; nobody waits for it until parallel.timeout_s."""
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "manifest.json").write_text((shards / "manifest.json").read_text())
    began = time.monotonic()
    codes, (line,) = two_nodes(toy, f"data.shards={torn}", "parallel.timeout_s=600")
    assert codes == [2, 2] and str(torn) in line and "train-00000.h5" in line
    assert time.monotonic() - began < 55
    assert not (tmp_path / "run").exists()


def test_what_another_rank_alone_finds_is_said_with_its_place(toy: Path) -> None:
    codes, (line,) = two_nodes(toy, "parallel.timeout_s=600", second={"FRONTIER_RESTARTS": "x"})
    assert codes == [2, 2] and line.startswith("frontier pretrain: rank 1 on ") and "FRONTIER_RESTARTS" in line
