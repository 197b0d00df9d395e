"""Wilson intervals against closed values, the bootstrap against its definition and its coverage."""

import numpy as np
import pytest

from frontier.probe.intervals import paired_bootstrap, wilson


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.27753),  # closed: 0 and z²/(n + z²)
        (10, 10, 0.72247, 1.0),
        (81, 263, 0.2553, 0.3662),  # this and the next: Newcombe, Stat. Med. 17:857, 1998, table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_closed_values(correct: int, total: int, low: float, high: float) -> None:
    assert wilson(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_solves_its_equation() -> None:
    for bound in wilson(37, 50):
        assert abs(37 / 50 - bound) == pytest.approx(1.959964 * np.sqrt(bound * (1 - bound) / 50), rel=1e-5)


@pytest.mark.parametrize(("correct", "total"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_proportion(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        wilson(correct, total)


def test_bootstrap_agrees_with_resampling_images() -> None:
    random = np.random.default_rng(0)
    a, b = random.random(400) < 0.8, random.random(400) < 0.7
    difference, low, high = paired_bootstrap(a, b, seed=1)
    assert difference == pytest.approx(a.mean() - b.mean())
    chosen = random.integers(0, 400, (4000, 400))
    plain = np.quantile((a[chosen].astype(float) - b[chosen]).mean(axis=1), [0.025, 0.975])
    assert (low, high) == pytest.approx(tuple(plain), abs=0.005)


def test_bootstrap_is_paired_and_seeded() -> None:
    random = np.random.default_rng(0)
    hard = random.random(500) < 0.5
    other = hard.copy()
    other[:5] ^= True
    assert paired_bootstrap(hard, hard, seed=0) == (0.0, 0.0, 0.0)
    _, low, high = paired_bootstrap(hard, other, seed=0)
    assert high - low < 0.03  # unpaired: 0.12
    assert paired_bootstrap(hard, other, seed=0) == paired_bootstrap(hard, other, seed=0)
    with pytest.raises(ValueError, match="shapes"):
        paired_bootstrap(hard, hard[1:], seed=0)


def test_bootstrap_covers_the_truth() -> None:
    random = np.random.default_rng(3)
    covered = 0
    for trial in range(300):
        shared = random.random(300)
        a, b = shared < 0.80, (0.6 * shared + 0.4 * random.random(300)) < 0.62
        _, low, high = paired_bootstrap(a, b, seed=trial, resamples=500)
        # P(0.6 u + 0.4 v < 0.62): the line u = (0.62 - 0.4 v)/0.6 cuts the unit square at v = 0.05.
        truth = 0.80 - (0.05 + 0.95 * (1.0 + (0.62 - 0.4) / 0.6) / 2)
        covered += low <= truth <= high
    assert 0.91 <= covered / 300 <= 0.98
