"""Places and distances against the paper's Fig. 2, loops, and published slopes."""

from __future__ import annotations

import math

import pytest
import torch

from frontier.models.posembed import sincos_2d
from scale_alibi.geometry import distances, patch_centres, sincos_at, slopes


def gsd(*metres: float) -> torch.Tensor:
    return torch.tensor(metres)[:, None].expand(-1, 2)


def test_figure_2() -> None:
    """4 x 4 pixels and 8 x 8 pixels of the same ground, patches of 2 pixels: distances in patches of the first."""
    low, high = patch_centres(2, 2, gsd(10.0), 20.0), patch_centres(4, 2, gsd(5.0), 20.0)
    table = distances(low, high)[0]
    assert table.shape == (4, 16)
    assert table[:, 0].tolist() == pytest.approx([0.3536, 1.2748, 1.2748, 1.7678], abs=5e-5)
    assert table.min() == pytest.approx(math.sqrt(2) / 4)


def test_the_first_sensor_has_the_distances_of_2d_alibi() -> None:
    grid = 5
    found = distances(*[patch_centres(grid, 8, gsd(10.0), 80.0)] * 2)[0]
    for i in range(grid * grid):
        for j in range(grid * grid):
            rows, columns = i // grid - j // grid, i % grid - j % grid
            assert found[i, j] == pytest.approx(math.hypot(rows, columns), abs=1e-6)
    assert (found.diagonal() == 0).all()


def test_high_resolution_has_half_of_them() -> None:
    one = distances(*[patch_centres(6, 8, gsd(10.0), 80.0)] * 2)
    half = distances(*[patch_centres(6, 8, gsd(5.0), 80.0)] * 2)
    torch.testing.assert_close(half, one / 2)


def test_each_sample_has_its_own_gsd_along_both_axes() -> None:
    found = patch_centres(2, 4, torch.tensor([[10.0, 10.0], [3.0, 7.0]]), 1.0)
    assert found[1].tolist() == [[6.0, 14.0], [6.0, 42.0], [18.0, 14.0], [18.0, 42.0]]


def test_scaling_every_gsd_and_the_reference_changes_nothing() -> None:
    for factor in (0.3, 17.0):
        torch.testing.assert_close(
            patch_centres(4, 8, gsd(10.0, 3.3) * factor, 80.0 * factor), patch_centres(4, 8, gsd(10.0, 3.3), 80.0)
        )


def test_slopes() -> None:
    """ALiBi's: 8 heads 1/2 to 1/256; 16 with ratio 2^-1/2; 12 as its published code has them."""
    assert slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert slopes(16)[:4].tolist() == pytest.approx([2**-0.5, 0.5, 2**-1.5, 0.25])
    assert slopes(16)[-1] == pytest.approx(2.0**-8)
    assert slopes(12).tolist() == pytest.approx([2.0**-i for i in range(1, 9)] + [2 ** -(i + 0.5) for i in range(4)])
    assert slopes(1).tolist() == [2.0**-8]


def test_sinusoids_at_whole_places_are_those_of_a_grid() -> None:
    places = patch_centres(6, 1, gsd(1.0), 1.0) - 0.5
    torch.testing.assert_close(sincos_at(places, 32)[0], sincos_2d(32, 6, cls_token=False), atol=1e-6, rtol=0)
