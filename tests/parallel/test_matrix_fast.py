"""A fast cut of the parallelism matrix (`make test-matrix` runs all of it): what tests/train/test_one_curve.py leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.matrix.cells import FURTHER, VARIANTS, Cell
from tests.matrix.run import Bench

TWO = [Cell.of(2, "tensor_2", "plain", ()), Cell.of(2, "full_shard", "plain", ())]
FOUR = [
    Cell.of(4, "tensor_2", "checkpointing", VARIANTS["checkpointing"]),
    Cell.of(4, "tensor_2+hybrid_2", "accumulation", VARIANTS["accumulation"]),
    Cell.of(4, "tensor_2+full_shard", "plain", ()),
    *(Cell.of(4, row, name, more) for name, (row, more) in FURTHER.items() if "zero" not in row),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("matrix"), shards)
    bench.reference()
    bench.cells([*TWO, *FOUR])
    return bench


@pytest.mark.parametrize("cell", [*TWO, *FOUR], ids=lambda cell: cell.name)
def test_same_curve_and_weights(bench: Bench, cell: Cell) -> None:
    difference = bench.difference(cell.name)
    assert difference.ok, difference


def test_stop_under_one_resume_under_another(bench: Bench) -> None:
    to_sharded, to_tensor = (Cell.of(4, row, "plain", ()) for row in ("hybrid_2", "tensor_2+full_shard"))
    pairs = [(TWO[0], to_sharded), (TWO[1], to_tensor)]
    for name in bench.resume(pairs).values():
        difference = bench.difference(name)
        assert difference.ok, (name, difference)
