"""Retrieval across sensors against sorting, and galleries in closed form against all galleries there are."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scale_alibi import retrieval
from scale_alibi.retrieval import chance, found_in, nearer


def vectors(n: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(n)
    a = torch.randn(n, 6, generator=draw)
    return F.normalize(a, dim=-1), F.normalize(a + noise * torch.randn(n, 6, generator=draw), dim=-1)


def test_ranks_are_places_in_the_sorted_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = vectors(23, 1.0)
    order = np.argsort(-(a.double() @ b.double().T).numpy(), axis=1)
    expected = [int(np.flatnonzero(order[i] == i)[0]) for i in range(23)]
    assert 0 < sum(r == 0 for r in expected) < 23
    for queries in (1024, 5):
        monkeypatch.setattr(retrieval, "QUERIES", queries)
        assert nearer(a, b).tolist() == expected


def test_one_vector_for_all_finds_nothing() -> None:
    same = F.normalize(torch.ones(9, 4), dim=-1)
    assert nearer(same, same).tolist() == [8] * 9
    assert (found_in(nearer(same, same), 9, 5) == 0).all()


@pytest.mark.parametrize(("gallery", "top"), [(2, 1), (4, 1), (4, 2), (7, 1), (7, 3), (8, 5)])
def test_the_closed_form_is_the_mean_over_all_galleries(gallery: int, top: int) -> None:
    a, b = vectors(8, 4.0)
    cosines = (a @ b.T).numpy()
    ranks = nearer(a, b)
    assert len(set(ranks.tolist())) > 3
    found = found_in(ranks, gallery, top)
    for query in range(8):
        others = [i for i in range(8) if i != query]
        hits = [
            sum(cosines[query, i] >= cosines[query, query] for i in chosen) < top
            for chosen in combinations(others, gallery - 1)
        ]
        assert found[query] == pytest.approx(np.mean(hits), abs=1e-12)


def test_a_large_split_and_chance() -> None:
    """Ranks spread evenly are what guessing gives: the mean over them is chance, in every gallery."""
    ranks = np.arange(3000)
    for gallery, top in ((64, 1), (64, 5), (256, 5), (3000, 5)):
        assert found_in(ranks, gallery, top).mean() == pytest.approx(chance(gallery, top), rel=1e-6)
    assert chance(4, 5) == 1.0
