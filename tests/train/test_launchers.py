"""One config, unchanged, alone, under torchrun and under mpiexec: the same curve."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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
