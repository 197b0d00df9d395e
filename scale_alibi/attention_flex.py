"""Attention with a distance bias as one kernel on GPUs: FlexAttention, whose scores get their bias from the places of two tokens.

The kernel is compiled once for a head dim, a number of heads and a precision. The first sizes of batch and sequences are compiled
as they are; when other ones come, torch.compile makes them variables, once. Where it cannot, it raises an error: the
uncompiled FlexAttention would hold every score.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from frontier.models.attention import SAVED_OPERATORS, attention_padding

LEAST_HEAD_DIM = 16
"""FlexAttention's kernels take no smaller one."""


def score_mod(q_at: Tensor, k_at: Tensor, slopes: Tensor, power: int) -> Callable[..., Tensor]:
    """What FlexAttention calls for each score; places [B, N, 2] and [B, M, 2]."""
    (q_y, q_x), (k_y, k_x) = ([axis.contiguous() for axis in at.unbind(-1)] for at in (q_at, k_at))

    def less_distance(score: Tensor, sample: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        y = q_y[sample, query] - k_y[sample, key]
        x = q_x[sample, query] - k_x[sample, key]
        squared = y * y + x * x
        return score - slopes[head] * (torch.sqrt(squared) if power == 1 else squared)

    return less_distance


def uncompiled(q: Tensor, k: Tensor, v: Tensor, q_at: Tensor, k_at: Tensor, slopes: Tensor, power: int) -> Tensor:
    """`attend` by FlexAttention, to be compiled."""
    batch, dim = q.shape[0], q.shape[-1]
    padding = max(attention_padding(dim, q.device.type), LEAST_HEAD_DIM - dim)
    if padding > 0:
        q, k, v = (F.pad(t, (0, padding)) for t in (q, k, v))
    less_distance = score_mod(q_at.expand(batch, -1, -1), k_at.expand(batch, -1, -1), slopes, power)
    out: Tensor = flex_attention(q, k, v, score_mod=less_distance, scale=dim**-0.5)
    return out[..., :dim]


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(uncompiled, fullgraph=True)


def flex(q: Tensor, k: Tensor, v: Tensor, q_at: Tensor, k_at: Tensor, slopes: Tensor, power: int) -> Tensor:
    """`attend` by compiled FlexAttention, on a GPU."""
    return _compiled()(q, k, v, q_at, k_at, slopes, power)


SAVED_OPERATORS.add("flex_attention")
