"""A few faults and a few random kills in the default suite; `make test-faults` has them all."""

from __future__ import annotations

import pytest

from tests.faults.kills import random_kills
from tests.faults.lab import Lab, Row
from tests.faults.scenarios import ALL, KNOWN

CUT = (
    "kill a rank in an async save",
    "a rank stopped for less than timeout_s",
    "the three newest checkpoints damaged",
    "a wild number in one sample",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("faults"), ranks=2)


def judge(row: Row) -> None:
    if row.skipped:
        pytest.skip(row.skipped)
    assert not row.failed, f"{row.injected}: {row.verdict}"


@pytest.mark.parametrize("name", CUT)
def test_fault(lab: Lab, name: str) -> None:
    judge(lab.carry_out(next(s for s in ALL if s.name == name)))


def test_random_kills(lab: Lab) -> None:
    row = random_kills(lab, 2)
    judge(row)
    assert len(row.codes) == 3 and row.codes[-1] == 0


def test_scenarios_have_names_of_their_own() -> None:
    names = [s.name for s in ALL]
    assert len(set(names)) == len(names)
    assert {name for name, _ in KNOWN} <= {*names, "random kills in a row"}
