"""`parallel.prefetch` is the number of blocks gathered ahead, no more and no less."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def test_blocks_gathered_at_once() -> None:
    worker = Path(__file__).with_name("prefetch_worker.py")
    code = "import sys; from frontier.launch.local import run_local; sys.exit(run_local(sys.argv[1:], 2))"
    done = subprocess.run(
        [sys.executable, "-c", code, sys.executable, str(worker)],
        capture_output=True, text=True, timeout=120, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for depth, most, units in json.loads(done.stdout.strip().splitlines()[-1]):
        assert most["backward"] == min(1 + depth, units)
        # Forward, depth 1 is left to FSDP2: the host runs ahead of the device and gathers implicitly.
        assert most["forward"] == (min(1 + depth, units) if depth > 1 else 1)
