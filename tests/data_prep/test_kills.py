"""The fast cut of `python -m tests.data_prep.kills`."""

from __future__ import annotations

from pathlib import Path

from tests.data_prep.kills import run


def test_a_few_random_kills(tmp_path: Path) -> None:
    seen = run(3, 1, tmp_path, images=240)
    assert sum(count for what, count in seen.items() if what.startswith(("workers", "mpi"))) == 3
