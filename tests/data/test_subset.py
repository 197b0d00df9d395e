"""Some samples of a split as a split of their own."""

from pathlib import Path

import numpy as np
import pytest

from frontier.data.shards import ShardSet
from frontier.data.subset import Subset
from frontier.errors import UserError
from tests.data.sets import write_set


@pytest.fixture
def whole(tmp_path: Path) -> ShardSet:
    image = np.arange(20 * 3, dtype=np.int32).reshape(20, 3, 1, 1)
    return ShardSet(write_set(tmp_path / "set", {"image": (image, "CHW")}, columns={"label": np.arange(20)}))


def test_reads_are_those_of_the_chosen_samples(whole: ShardSet) -> None:
    part = Subset(whole, 6, 1)
    rows = part.column("label")
    assert len(part) == 6 and len(set(rows)) == 6 and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(part.read("image", 1, 5), whole.take("image", rows[1:5]))
    np.testing.assert_array_equal(part.take("image", [5, 0]), whole.take("image", rows[[5, 0]]))
    out = np.zeros((6, 3, 1, 1), np.int32)
    part.read("image", 0, 3, out, np.array([4, 2, 0]))
    np.testing.assert_array_equal(out[[4, 2, 0]], whole.take("image", rows[:3]))
    assert not out[[1, 3, 5]].any()
    with pytest.raises(IndexError):
        part.read("image", 0, 7)


def test_smaller_draws_are_parts_of_larger_ones(whole: ShardSet) -> None:
    draws = [set(Subset(whole, count, 5).column("label")) for count in (3, 8, 20)]
    assert draws[0] < draws[1] < draws[2] == set(range(20))
    assert set(Subset(whole, 8, 6).column("label")) != draws[1]


def test_another_draw_is_other_data(whole: ShardSet) -> None:
    prints = {Subset(whole, count, seed).fingerprint for count, seed in ((5, 0), (5, 1), (6, 0))}
    assert len(prints | {whole.fingerprint}) == 4
    with pytest.raises(UserError, match="21 samples .* its split train has 20"):
        Subset(whole, 21, 0)
