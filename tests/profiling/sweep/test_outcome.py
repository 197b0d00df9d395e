"""How an attempt ended, from its exit code and its last words."""

from __future__ import annotations

from pathlib import Path

import pytest

from frontier_profiling.sweep.outcome import classify, kernel_kills, tail


@pytest.mark.parametrize(
    ("code", "text", "kills", "status", "words"),
    [
        (0, "torch.OutOfMemoryError mentioned, yet all is well", 0, "done", ""),
        (
            1,
            "x\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\ny",
            0,
            "oom",
            "Tried to allocate 2 GiB",
        ),
        (
            1,
            "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
            0,
            "oom",
            "9 bytes",
        ),
        (
            1,
            "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0. Some of the step tasks have been OOM Killed.",
            0,
            "oom",
            "oom_kill",
        ),
        (75, "frontier: rank 1 ended with signal SIGKILL; ending the others", 1, "oom", "killed by the kernel"),
        (
            75,
            "frontier: rank 1 ended with signal SIGKILL; ending the others",
            0,
            "failed",
            "SIGKILL",
        ),  # somebody's kill -9
        (-9, "", 1, "oom", "killed by the kernel"),
        (-9, "", 0, "failed", "signal 9"),
        (1, "Traceback …\nRuntimeError: boom\nat the end", 1, "failed", "RuntimeError: boom"),  # another process's kill
        (2, "frontier pretrain: config key 'x' is missing: add it", 0, "failed", "config key 'x' is missing"),
        (85, "asked to stop", 0, "pending", "asked to stop"),
    ],
)
def test_classify(code: int, text: str, kills: int, status: str, words: str) -> None:
    found, reason = classify(code, text, {"host": 4}, {"host": 4 + kills})
    assert found == status and words in reason and "\n" not in reason


def test_reasons_are_short_lines() -> None:
    _, reason = classify(1, "[rank3]: ValueError: " + "long " * 500, {}, {})
    assert len(reason) < 350 and "[rank3]" not in reason


def test_only_the_attempts_own_words_count(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("CUDA out of memory\n")
    start = log.stat().st_size
    log.write_text("CUDA out of memory\nsecond attempt\n")
    assert tail(log, start) == "second attempt\n"
    assert all(count >= 0 for count in kernel_kills().values())


def test_the_cause_comes_before_its_effects() -> None:
    """Words of a real srun --kill-on-bad-exit after kill -9 of one rank: the others lose contact and are ended."""
    killed = (
        "frontier pretrain: rank 2 on n2 lost contact with another rank, which died, hung for 60 s\n"
        "srun: error: n2: task 3: Killed\nsrun: launch/slurm: _step_signal: Terminating StepId=1.1\n"
        "slurmstepd-n1: error: *** STEP 1.1 ON n1 CANCELLED AT 2026-11-21T16:47:20 ***\n"
        "srun: error: n1: tasks 0-1: Terminated\nsrun: Force Terminated StepId=1.1\n"
    )
    assert classify(143, killed, {}, {}) == ("failed", "exit code 143: srun: error: n2: task 3: Killed")
    assert classify(143, killed, {"host": 1}, {"host": 2})[0] == "oom"
    mistake = "frontier pretrain: train.steps=0 is not positive\n" + killed
    assert classify(2, mistake, {}, {}) == ("failed", "exit code 2: frontier pretrain: train.steps=0 is not positive")
