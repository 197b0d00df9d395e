"""`--ranks N`: one exit code and one cause out of several ranks that end in several ways."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from frontier.launch.local import run_local

HEAD = "import os, signal, sys, time; rank = int(os.environ['RANK'])\n"


def ranks(script: str, count: int = 2, grace_s: float = 10.0) -> int:
    return run_local([sys.executable, "-c", HEAD + script], count, grace_s)


CASES = [
    ("sys.exit(0)", 0, ""),
    ("sys.exit(85)", 85, ""),
    ("sys.exit(2 if rank else 75)", 2, ""),
    ("time.sleep(0 if rank else 0.5); sys.exit(75 if rank else 2)", 2, ""),  # the effect ends before its cause
    ("os.kill(os.getpid(), 9) if rank else sys.exit(75)", 75, "rank 1 ended with signal SIGKILL"),
    ("sys.exit(7 if rank else 75)", 7, "rank 1 ended with exit code 7"),
]


@pytest.mark.parametrize(("script", "code", "words"), CASES, ids=[c[0][:40] for c in CASES])
def test_the_cause_is_blamed(script: str, code: int, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert ranks(script) == code
    err = capfd.readouterr().err
    assert words in err
    assert err.count("\n") == bool(words)


def test_a_hung_rank_is_named_and_killed(capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    assert ranks("sys.exit(75) if rank else time.sleep(60)", grace_s=0.5) == 75
    assert time.monotonic() - began < 30
    assert "rank 0 hung" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's")
def test_ranks_die_with_the_launcher() -> None:
    script = r"os.write(1, b'%d\n' % os.getpid()); time.sleep(60)"
    launch = f"from frontier.launch.local import run_local; run_local([{sys.executable!r}, '-c', {HEAD + script!r}], 2)"
    launcher = subprocess.Popen([sys.executable, "-c", launch], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    lines = [launcher.stdout.readline() for _ in range(2)]
    launcher.kill()
    # The pipe ends when the last process that holds it is gone.
    assert launcher.stdout.read() == ""
    launcher.wait()
    assert all(int(line) > 0 for line in lines)
