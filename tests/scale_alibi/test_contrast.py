"""InfoNCE in closed form against autograd on the whole table, in one piece and in many."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from frontier.models.peers import Alone, ComparesSamples
from scale_alibi.contrast import MAX_SCALE, Comparison, compare, with_gradient
from tests.scale_alibi.sizes import inputs, part, small


def by_autograd(z: Tensor, log_scale: Tensor) -> Tensor:
    """The definition, by cross-entropies over the table of each pair."""
    pairs, truth = list(itertools.combinations(range(z.shape[1]), 2)), torch.arange(len(z))
    total = torch.zeros(())
    for a, b in pairs:
        table = log_scale.exp() * z[:, a] @ z[:, b].T
        total = total + F.cross_entropy(table, truth) + F.cross_entropy(table.T, truth)
    return total / (2 * len(pairs))


def vectors(samples: int, sensors: int) -> Tensor:
    draw = torch.Generator().manual_seed(sensors)
    return F.normalize(torch.randn(samples, sensors, 16, generator=draw), dim=-1)


class Rank:
    """One of several ranks that run one after another: what they gather is known."""

    def __init__(self, count: int, rank: int, given: list[Tensor]) -> None:
        self.count, self.rank, self.given = count, rank, given

    def gather(self, rows: Tensor) -> Tensor:
        return self.given.pop(0)


@pytest.mark.parametrize("sensors", [2, 3])
@pytest.mark.parametrize("log_scale", [0.0, 2.659, 4.2])
def test_loss_and_gradients(sensors: int, log_scale: float) -> None:
    z, scale = vectors(12, sensors).double().requires_grad_(), torch.tensor([log_scale]).double().requires_grad_()
    expected = by_autograd(z, scale)
    found = with_gradient(z, scale, compare(z, scale, Alone()))
    torch.testing.assert_close(found, expected.squeeze())
    for ours, theirs in zip(*(torch.autograd.grad(loss, [z, scale]) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_two_sensors_are_clips_loss() -> None:
    z, scale = vectors(9, 2), torch.tensor([1.3])
    table = scale.exp() * z[:, 0] @ z[:, 1].T
    truth = torch.arange(9)
    clip = (F.cross_entropy(table, truth) + F.cross_entropy(table.T, truth)) / 2
    torch.testing.assert_close(compare(z, scale, Alone()).loss, clip)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_average_to_the_global_batch(ranks: int) -> None:
    z, scale = vectors(12, 3), torch.tensor([2.0])
    pairs = [(0, 1), (0, 2), (1, 2)]
    tables = {(a, b): scale.exp() * z[:, a] @ z[:, b].T for a, b in pairs}
    spread = torch.stack([s for p in pairs for s in (tables[p].logsumexp(1), tables[p].logsumexp(0))], 1)
    each = len(z) // ranks
    found = [compare(z[r * each : (r + 1) * each], scale, Rank(ranks, r, [z, spread])) for r in range(ranks)]
    leaf, leaf_scale = z.clone().requires_grad_(), scale.clone().requires_grad_()
    expected = by_autograd(leaf, leaf_scale)
    expected.backward()
    torch.testing.assert_close(torch.stack([f.loss for f in found]).mean(), expected.detach().squeeze())
    assert leaf.grad is not None and leaf_scale.grad is not None
    torch.testing.assert_close(torch.cat([f.gradient for f in found]) / len(z), leaf.grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.stack([f.scale_gradient for f in found]).mean(0), leaf_scale.grad)
    right = torch.stack([(t.argmax(d) == torch.arange(12)).float().mean() for t in tables.values() for d in (0, 1)])
    torch.testing.assert_close(torch.stack([f.right for f in found]).mean(), right.mean())


def test_the_scale_stops_at_its_ceiling_and_can_come_back() -> None:
    above = torch.tensor([math.log(MAX_SCALE) + 1])
    matched = vectors(8, 1).expand(-1, 2, -1)  # partners are equal: a higher scale lowers the loss
    crossed = torch.stack([matched[:, 0], matched[:, 0].roll(1, 0)], 1)  # each is nearest to a stranger: it raises it
    assert compare(matched, above, Alone()).scale_gradient == 0
    assert compare(crossed, above, Alone()).scale_gradient > 0
    torch.testing.assert_close(
        compare(crossed, above, Alone()).loss, compare(crossed, torch.tensor([math.log(MAX_SCALE)]), Alone()).loss
    )


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.parametrize("times", [2, 3, 6])
def test_micro_batches_have_the_negatives_of_the_whole_batch(times: int) -> None:
    model, given = small(), inputs(6)
    assert isinstance(model, ComparesSamples)
    whole = model(**given)
    whole["loss"].backward()
    expected = gradients(model)
    each = 6 // times
    turns = [part(given, slice(t * each, (t + 1) * each)) for t in range(times)]
    with torch.no_grad():
        embedded = [model(**one, embed_only=True) for one in turns]
    losses = []
    for one, further in zip(turns, model.compare(embedded), strict=True):
        found = model(**one, **further)
        (found["loss"] / times).backward()
        losses.append(found["loss_contrastive"].detach())
    torch.testing.assert_close(torch.stack(losses).mean(), whole["loss_contrastive"].detach())
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5, msg=name)


def test_a_part_of_the_negatives_is_not_the_same() -> None:
    """What the comparison of the whole batch is for: micro-batches by themselves give another gradient."""
    model, given = small(), inputs(6)
    model(**given)["loss"].backward()
    expected = gradients(model)
    for rows in (slice(0, 3), slice(3, 6)):
        (model(**part(given, rows))["loss"] / 2).backward()
    found = gradients(model)
    assert max((found[n] - expected[n]).abs().max() for n in expected) > 1e-3


def test_a_comparison_keeps_nothing_to_differentiate() -> None:
    z = vectors(4, 2).requires_grad_()
    found: Comparison = compare(z, torch.zeros(1, requires_grad=True), Alone())
    assert not any(t.requires_grad for t in (found.loss, found.gradient, found.scale_gradient, found.right))
