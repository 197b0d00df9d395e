"""Segmentation by Fourier queries: the region of the frequency vectors, and what the benchmark makes of maps."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from frontier.models.init import initialise
from gpna.query_attention import QueryDecoder

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))


@pytest.mark.parametrize("residual", [False, True])
def test_picked_queries_are_the_same_before_and_after_projection(residual):
    decoder = QueryDecoder(16, 4, 3, query_width=10, layers=2, residual=residual)
    initialise(decoder, 0)
    draw = torch.Generator().manual_seed(0)
    table, latents = torch.randn(12, 10, generator=draw), torch.randn(3, 5, 16, generator=draw)
    for count in (2, 9):  # fewer and more than the table has
        pick = torch.randint(0, 12, (3, count), generator=draw)
        keys = decoder.keys_values(latents)
        torch.testing.assert_close(decoder.decode(table, keys, pick), decoder.decode(table[pick], keys))


def test_stripes_are_told_from_other_maps():
    from gpna_segmentation import stripes

    rows, columns = np.mgrid[:32, :32]
    along, across = (columns % 4 < 2)[None], ((rows + columns) % 4 < 2)[None]
    assert stripes(along) > 0.9 and stripes(across) < 0.1
    assert stripes(across) < stripes(0.5 * along + 0.5 * across) < stripes(along)
    assert np.isnan(stripes(np.zeros((2, 16, 16))))


@pytest.mark.slow
def test_few_latents_hold_boundaries_at_every_angle_better_in_the_half_plane():
    """Eight latents an image of 32 x 32 pixels: what a latent says reaches over many pixels, along any direction."""
    from gpna_segmentation import held

    dice = {region: held(region, 8, 0)["dice"] for region in ("axis", "half_plane")}
    assert dice["half_plane"] > dice["axis"] + 0.03, dice
