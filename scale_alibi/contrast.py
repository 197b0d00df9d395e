"""InfoNCE over all pairs of sensors, both directions, with the whole global batch as negatives.

With unit vectors z_s^i of sensor s and sample i, temperature scale t = exp(log_scale) and P pairs of sensors,

    L = -1 / (2 P N) sum_{pairs (a, b)} sum_i [log softmax_j(t z_a^i . z_b^j)_i + log softmax_j(t z_b^i . z_a^j)_i]

for N samples. For two sensors it is the loss of CLIP and CROMA. The gradient is worked out in closed form with the forward pass: with
p_ij = exp(t a_i . b_j - r_i) along rows and q_ij = exp(t a_i . b_j - c_j) along columns, r and c their log-sum-exps,

    dL/da_i = t / (2 P N) [sum_j (p_ij + q_ij) b_j - 2 b_i],    likewise for b,
    dL/dt   = 1 / (2 P N) sum_i [sum_j p_ij a_i . b_j + sum_j q_ji a_j . b_i - 2 a_i . b_i].

A rank needs the vectors of all ranks and their log-sum-exps, so two gathers without gradients, and none in the backward pass; its work is B_rank x N
products, not N^2. A rank's loss and gradients are scaled to its own samples, so that the mean over ranks is that of the global batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from frontier.models.peers import Peers

MAX_SCALE = 100.0
"""Of the temperature scale, as in CLIP."""


@dataclass(frozen=True)
class Comparison:
    """Of a rank's B samples.

    Attributes:
        loss: mean over them.
        gradient: [B, S, D], of the global sum over samples, so B times that of a loss which is the mean over these samples.
        scale_gradient: of `loss`, for log_scale.
        right: share of the rank's queries whose own partner is the nearest of the global batch, mean over pairs and directions.
    """

    loss: Tensor
    gradient: Tensor
    scale_gradient: Tensor
    right: Tensor


def scale_of(log_scale: Tensor) -> Tensor:
    """The temperature scale [1] float32 that is used: exp(log_scale), at most `MAX_SCALE`."""
    return log_scale.float().clamp(max=math.log(MAX_SCALE)).exp()


@torch.no_grad()
def compare(z: Tensor, log_scale: Tensor, peers: Peers) -> Comparison:
    """Unit vectors z [B, S, D] float32 of this rank's samples and log_scale [1] -> `Comparison`. Collective."""
    kind = z.device.type
    if not torch.amp.is_autocast_available(kind):  # meta
        return _compare(z, log_scale, peers)
    with torch.autocast(kind, enabled=False):
        return _compare(z, log_scale, peers)


def _compare(z: Tensor, log_scale: Tensor, peers: Peers) -> Comparison:
    pairs = list(combinations(range(z.shape[1]), 2))
    everyone = peers.gather(z)
    scale = scale_of(log_scale)
    rows = len(z)
    own = torch.arange(rows, device=z.device) + peers.rank * rows
    # Per pair: a of this rank against all b, and b of this rank against all a.
    cosines = [(z[:, a] @ everyone[:, b].T, z[:, b] @ everyone[:, a].T) for a, b in pairs]
    spread = torch.stack([torch.logsumexp(scale * c, 1) for pair in cosines for c in pair], 1)
    spreads = peers.gather(spread)
    share = 1.0 / (2 * len(pairs))
    loss, by_scale, right = (z.new_zeros(()) for _ in range(3))
    gradient = torch.zeros_like(z)
    for number, (a, b) in enumerate(pairs):
        partners = (z[:, a] * z[:, b]).sum(1)
        loss += share * (spread[:, 2 * number : 2 * number + 2].sum(1) - 2 * scale * partners).mean()
        by_scale -= share * 2 * partners.mean()
        for side, (mine, theirs) in enumerate(((a, b), (b, a))):
            cosine, forth, back = cosines[number][side], 2 * number + side, 2 * number + 1 - side
            p = torch.exp(scale * cosine - spread[:, forth, None])
            q = torch.exp(scale * cosine - spreads[None, :, back])
            gradient[:, mine] += share * scale * ((p + q) @ everyone[:, theirs] - 2 * z[:, theirs])
            by_scale += share * (p * cosine).sum(1).mean()
            right += share * (cosine.argmax(1) == own).float().mean()
    by_scale = by_scale * scale.squeeze()
    # At the ceiling the gradient goes through only where it leads down: else the scale could never come back.
    held = (log_scale >= math.log(MAX_SCALE)).squeeze() & (by_scale < 0)
    return Comparison(loss, gradient, torch.where(held, 0.0, by_scale).reshape(1), right)


class _Attach(torch.autograd.Function):
    """A value with gradients that are known already."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, log_scale: Tensor, value: Tensor, gradient: Tensor, scale_gradient: Tensor
    ) -> Tensor:
        ctx.save_for_backward(gradient, scale_gradient)
        ctx.dtype = log_scale.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        gradient, scale_gradient = ctx.saved_tensors
        return grad * gradient, (grad * scale_gradient).to(ctx.dtype), None, None, None


def with_gradient(z: Tensor, log_scale: Tensor, found: Comparison) -> Tensor:
    """The loss of `found`, as a function of z [B, S, D] and log_scale [1]; `found` is of just these samples, or cut to them."""
    return _Attach.apply(z, log_scale, found.loss, found.gradient / len(z), found.scale_gradient)
