"""Which steps are left out, and when it is enough."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from frontier.errors import UserError
from frontier.train.comparison import outliers
from frontier.train.guards import HISTORY, LEAST, Guard
from tests.conftest import ROOT, read_jsonl, run_frontier


def feed(guard: Guard, steps: int, norm: float = 2.0, loss: float = 0.5) -> None:
    for step in range(steps):
        assert guard.judge(step, True, norm, loss) is None


def test_limits_come_from_the_median_of_recent_updates() -> None:
    guard = Guard(10.0, 3)
    feed(guard, LEAST - 1)
    assert guard.limits() == (math.inf, math.inf)
    feed(guard, 1)
    assert guard.limits() == (20.0, 5.0)
    feed(guard, HISTORY, norm=4.0)
    assert guard.limits() == (40.0, 5.0)
    assert Guard(None, 3).limits() == (math.inf, math.inf)


def test_skipped_steps_are_counted_and_leave_no_trace_in_the_limits() -> None:
    guard = Guard(10.0, 3)
    feed(guard, LEAST)
    before = guard.limits()
    assert "gradient norm 25" in str(guard.judge(17, False, 25.0, 0.5))
    assert "loss 9" in str(guard.judge(18, False, 2.0, 9.0))
    assert "not finite" in str(guard.judge(19, False, math.nan, math.nan))
    assert (guard.updates, guard.skipped, guard.spikes, guard.in_a_row) == (LEAST, 3, 2, 3)
    assert guard.limits() == before
    with pytest.raises(UserError, match=r"4 steps in a row were skipped \(train.max_skipped=3\).*spike"):
        guard.judge(20, False, 25.0, 0.5)


def test_state_survives_a_checkpoint() -> None:
    guard = Guard(10.0, 3)
    feed(guard, 40, norm=1 / 3)
    guard.judge(41, False, math.inf, 1.0)
    other = Guard(10.0, 3)
    other.restore(json.loads(json.dumps(guard.state())))
    assert other.limits() == guard.limits()
    assert other.state() == guard.state()


def test_outliers() -> None:
    assert outliers([1.0, 1.1, 0.9, 1.0]) == []
    assert [rank for rank, _ in outliers([1.0, 1.1, 4.0, 1.0, 2.0])] == [2, 4]
    assert outliers([0.001, 0.001, 0.004], least=0.05) == []


def test_ranks_are_compared_at_intervals(toy: Path, tmp_path: Path) -> None:
    done = run_frontier("pretrain", toy, "--ranks", "2", "train.steps=12", "log.ranks_every=5", "run.doctor=true")
    assert done.returncode == 0, done.stderr
    rows = read_jsonl(tmp_path / "run" / "ranks.jsonl")
    assert [row["step"] for row in rows] == [5, 10, 12]  # and at the last step
    assert all(row["ranks"] == 2 and 0 < row["product_s"]["median"] <= row["product_s"]["max"] for row in rows)
    for row in rows:
        for name in ("product_s", "work_s", "memory_gib"):
            assert row[name]["factor"] == pytest.approx(row[name]["max"] / row[name]["median"])
            assert row[name]["max_rank"] in (0, 1) and row[name]["factor"] >= 1
    doctor = read_jsonl(tmp_path / "run" / "starts.jsonl")[0]["doctor"]
    assert 0 < doctor["product_gflops"]["min"] <= doctor["product_gflops"]["median"]
    assert all(value > 0 for value in doctor["bus_gb_per_s"].values())
    assert "doctor: bus bandwidth" in done.stdout
    assert "Warning" not in done.stderr


def test_a_slow_rank_speaks_for_itself(toy: Path) -> None:
    """With the limit at 0 every rank stands out; each says so, not only rank 0."""
    slow = "import sys, frontier.train.comparison as c; c.OUTLIER = 0.0; from frontier.cli import main; sys.exit(main(sys.argv[1:]))"
    start = "import sys; from frontier.launch.local import run_local; sys.exit(run_local(sys.argv[1:], 2))"
    words = ["pretrain", str(toy), "train.steps=5", "log.ranks_every=5"]
    done = subprocess.run(
        [sys.executable, "-c", start, sys.executable, "-c", slow, *words],
        capture_output=True, text=True, timeout=120, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert f"slow rank {rank} on " in done.stderr
