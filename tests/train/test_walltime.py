"""Steps that fit into a job, a stop before its end, restarts, start-up: the sums by a clock of the test's own, then real ranks."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from frontier.train.startup import Startup, process_age_s
from frontier.train.walltime import Walltime, assumed_save_s
from tests.conftest import curve, read_jsonl, run_frontier


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_unknown_end_says_and_stops_nothing() -> None:
    walltime = Walltime(None, 30, 5)
    walltime.step(1.0)
    assert walltime.steps_that_fit() is None and walltime.why_to_stop() is None


def test_steps_that_fit() -> None:
    clock = Clock()
    walltime = Walltime(1100.0, 30, 10, clock)
    assert walltime.steps_that_fit() is None  # nothing is known of a step
    walltime.step(20.0)
    assert walltime.steps_that_fit() == 3  # 60 s
    for seconds in (2.0, 2.0, 9.0):
        walltime.step(seconds)
    assert walltime.steps_that_fit() == 30  # the median, without the first
    walltime.saved(None)
    assert walltime.steps_that_fit() == 30
    walltime.saved(40.0)
    assert walltime.steps_that_fit() == 15
    clock.now = 1200.0
    assert walltime.steps_that_fit() == 0


def test_the_last_step_ends_in_time() -> None:
    """Whatever the moment: with steps as long as expected, the save ends before the reserve, and one step more would not."""
    for end in (1040.0, 1047.3, 1049.9):
        clock = Clock()
        walltime = Walltime(end, 30, 5, clock)
        steps = 0
        while not (why := walltime.why_to_stop()):
            clock.now += 1.0
            steps += 1
            walltime.step(1.0)
        clock.now += 1.0  # the step that carries the flag
        assert clock.now + 5 + 30 <= end < clock.now + 1.0 + 5 + 30
        assert "a save of 5.0 s (assumed)" in why and "checkpoint.reserve_s=30" in why and "more time" not in why


def test_a_job_too_short_makes_steps_and_says_so() -> None:
    clock = Clock()
    walltime = Walltime(1010.0, 30, 5, clock)
    assert walltime.why_to_stop() is None  # the first step of a start is always made
    walltime.step(1.0)
    assert "no more than two steps fit into this job: give it more time" in (walltime.why_to_stop() or "")
    never = Walltime(1010.0, None, 5, clock)
    never.step(1.0)
    assert never.why_to_stop() is None and never.steps_that_fit() == 5


def test_the_assumed_save() -> None:
    assert assumed_save_s(0, 1) == 5 and assumed_save_s(36_000_000_000, 60) == pytest.approx(11)


def test_the_age_of_a_process() -> None:
    first = process_age_s()
    time.sleep(0.1)
    assert 0.05 < process_age_s() - first < 5 and first > 0.1
    began = time.time() - process_age_s() - 3
    assert Startup({"FRONTIER_STEP_BEGAN": f"{began}"}).marks["launch"] == pytest.approx(3, abs=0.5)
    assert Startup({}).marks == {} and Startup({"FRONTIER_STEP_BEGAN": "x"}).marks == {}


def test_the_job_ends_soon(toy: Path, tmp_path: Path) -> None:
    """Two ranks in a job that ends within the reserve: two steps, a checkpoint, 85, no signal; the next start goes on."""
    soon = {
        "FRONTIER_JOB_END": str(time.time() + 600),
        "FRONTIER_RESTARTS": "2",
        "FRONTIER_STEP_BEGAN": str(time.time()),
    }
    run = tmp_path / "run"
    words = ("pretrain", toy, "train.steps=5", "checkpoint.reserve_s=700", "log.every_steps=1")
    done = run_frontier(*words, "--ranks", "2", **soon)
    assert done.returncode == 85, done.stderr
    assert "start 3, ends in 0:09:" in done.stdout and "0 more steps fit into this job" in done.stdout
    assert "asked to stop (the job ends in 5" in done.stdout and "give it more time) after step 2: saved" in done.stdout
    assert (run / "checkpoints/step_00000002/complete.json").exists()
    assert [(row["restarts"], row["steps_that_fit"]) for row in read_jsonl(run / "metrics.jsonl")] == [(2, 0)] * 2
    start = read_jsonl(run / "starts.jsonl")[0]
    assert (start["scheduler"], start["restarts"]) == ("none", 2) and start["job_end"] > time.time()
    assert list(start["startup_s"]) == ["launch", "imports", "ready", "first_step"]
    figures = [start["startup_s"][part]["median"] for part in ("imports", "ready", "first_step")]
    assert 0.5 < figures[0] < figures[1] < figures[2] < 120
    assert start["startup_s"]["imports"]["max_rank"] in (0, 1) and start["startup_s"]["imports"]["max_host"]

    past = run_frontier(*words, FRONTIER_JOB_END="1000")  # left behind by another job
    assert past.returncode == 0, past.stderr
    assert "is in the past: left out of account" in past.stdout and "fit into" not in past.stdout
    assert run_frontier(*words, f"run.dir={tmp_path / 'whole'}").returncode == 0
    assert curve(run) == pytest.approx(curve(tmp_path / "whole"), rel=1e-5)
    assert [row["restarts"] for row in read_jsonl(run / "metrics.jsonl")] == [2, 2, 0, 0, 0]
