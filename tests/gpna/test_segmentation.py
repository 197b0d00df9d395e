"""Segmentation by Fourier queries: the region of the frequency vectors, and what the benchmark makes of maps."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from data_prep.fields import make_fields
from frontier.models.init import initialise
from gpna import metrics
from gpna.head_sections import TaskUnion
from gpna.heads import build_head
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


def fitted(region, labels, steps, latents=8, width=48):
    """Dice of the labels that a segmentation head and free latents of each image learn to say."""
    count, rows, columns = labels.shape
    settings = {"head": "segmentation", "source": "here", "target": "boundary", "size": rows, "classes": 2}
    task = TypeAdapter(TaskUnion).validate_python(
        {**settings, "features": 128, "highest": 6, "region": region, "loss": "both"}
    )
    head = build_head(task, width)
    initialise(head, 0)
    draw = torch.Generator().manual_seed(0)
    free = torch.randn(count, latents, width, generator=draw).requires_grad_()
    optimizer = torch.optim.Adam([*head.parameters(), free], lr=4e-3)
    for _ in range(steps):
        pixels = torch.randint(0, rows * columns, (count, 256), generator=draw)
        loss = head.loss(head(free, pixels), labels.flatten(1).gather(1, pixels)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = head.predict(head(free)).argmax(1)
    return metrics.segmentation(metrics.segmentation_counts(found, labels, 2), resamples=0)["dice"]


@pytest.mark.slow
def test_few_latents_hold_boundaries_at_every_angle_better_in_the_half_plane():
    """Eight latents an image of 32 x 32 pixels: what a latent says reaches over many pixels, along any direction."""
    labels = torch.tensor(np.stack([make_fields(1, index, 32)["boundary"] for index in range(16)]))
    dice = {region: fitted(region, labels, 160) for region in ("axis", "half_plane")}
    assert dice["half_plane"] > dice["axis"] + 0.03, dice
