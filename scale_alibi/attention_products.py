"""Attention with a distance bias on a CPU, as matrix products over chunks of queries.

What a fused kernel would do, from PyTorch's products: the scores of a chunk are made in a buffer, bias and all, and are gone with the chunk.
The distances of a chunk serve every head. For the backward pass the logarithm of each query's denominator is kept, so that
probabilities come back as exp(score - log denominator).

With s = 1 / sqrt(d) and w_ij = m (g_ij^power - min_j g_ij^power), whose least value is taken off since it changes no probability:

    P = exp(s Q K^T - w) / rowsum                       O = P V
    dV = P^T dO     dS = P * (dO V^T - rowsum(dO * O))  dQ = s dS K     dK = s dS^T Q

What is subtracted from a row of scores rides along as a further column of Q against ones in K. Scores are float32 in every precision;
in bf16 the products with probabilities are bf16 ones.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from frontier.models.attention import SAVED_OPERATORS
from scale_alibi.geometry import distances, squared_distances

SCORES_A_THREAD = 2**20
"""Scores of a chunk for every thread: in bf16 smaller chunks were measured slower (2^19 by a tenth, 2^18 by a third), larger ones no faster."""
LEAST_SCORE = -80.0
"""Below it exp leaves float32's normal range, where it and the products were measured 2 to 7 times slower. Scores that may be lower are
raised to it: the exp adds nothing that float32 could show."""
SAFE_SCORE = 40.0
"""Scores below this in magnitude need no maximum taken off: exp(40), exp(-40) and sums of them are far inside float32's range."""


class _Chunks(NamedTuple):
    """How many samples, heads and queries have their scores in a chunk: several heads only where all their queries fit, several
    samples only where all their heads do. `scores`: of a chunk. `block`: heads whose float32 copies are held together; in bf16, where a head
    alone makes several chunks, half of them: distances are then made twice, and copies, twice the size of what they copy, take half the room.
    """

    samples: int
    heads: int
    rows: int
    scores: int
    block: int

    @classmethod
    def of(cls, q: Tensor, k: Tensor) -> _Chunks:
        batch, heads, queries, _ = q.shape
        budget = left = max(SCORES_A_THREAD * torch.get_num_threads() // k.shape[2], 1)
        steps = []
        for size in (queries, heads, batch):
            steps.append(min(max(left, 1), size))
            left //= size
        scores = min(budget, batch * heads * queries) * k.shape[2]
        whole = steps[0] == queries or q.dtype == torch.float32
        return cls(steps[2], steps[1], steps[0], scores, heads if whole else -(-heads // 2))

    def blocks(self, q: Tensor) -> list[tuple[slice, slice]]:
        """Samples and heads, block by block."""
        return [
            (samples, heads) for samples in _cut(q.shape[0], self.samples) for heads in _cut(q.shape[1], self.block)
        ]


def _cut(size: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, size)) for first in range(0, size, step)]


def _flat(x: Tensor, *columns: Tensor | float) -> Tensor:
    """x [s, H, n, d] -> [s * H, n, d + c], with further columns: each [s, H, n, 1], or a number."""
    if columns:
        filled = (c if isinstance(c, Tensor) else x.new_full((*x.shape[:-1], 1), c) for c in columns)
        x = torch.cat([x, *filled], -1)
    return x.flatten(0, 1)


class _Ground(NamedTuple):
    """What the bias is made of: see `scale_alibi.attention.attend`."""

    q_at: Tensor
    k_at: Tensor
    slopes: Tensor
    power: int

    def part(self, samples: slice, heads: slice) -> _Ground:
        """Of these samples and heads; places that serve every sample stay as they are."""
        q_at, k_at = (at if at.shape[0] == 1 else at[samples] for at in (self.q_at, self.k_at))
        return _Ground(q_at, k_at, self.slopes[heads], self.power)

    def bias(self, rows: slice) -> Tensor:
        """g^power of these queries, less its least value of each [s or 1, 1, rows, M]."""
        bias = (distances if self.power == 1 else squared_distances)(self.q_at[:, rows], self.k_at)
        return bias.sub_(bias.amin(-1, keepdim=True))[:, None]


class _Room(NamedTuple):
    """Buffers for the scores of a chunk: in float32, in the precision of the products (empty where that is float32), and for their gradients
    (empty in the forward pass).
    """

    scores: Tensor
    low: Tensor
    gradients: Tensor

    @classmethod
    def of(cls, q: Tensor, chunks: _Chunks, backward: bool) -> _Room:
        sizes = chunks.scores if q.dtype != torch.float32 else 0, chunks.scores if backward else 0
        return cls(q.new_empty(chunks.scores, dtype=torch.float32), *(q.new_empty(size) for size in sizes))

    def lowered(self, p: Tensor) -> Tensor:
        """p as the products take it."""
        return _view(self.low, p.shape).copy_(p) if self.low.numel() else p


def _scores(queries: Tensor, keys_t: Tensor, bias: Tensor, slopes: Tensor, buffer: Tensor) -> Tensor:
    """queries [s * h, rows, d] times keys_t [s * h, d, M], less slopes [h] times bias: in the buffer."""
    shape = queries.shape[0], queries.shape[1], keys_t.shape[2]
    scores = _view(buffer, shape)
    torch.bmm(queries, keys_t, out=scores)
    scores.view(-1, slopes.shape[0], *shape[1:]).addcmul_(bias, slopes[:, None, None], value=-1)
    return scores


def _exp(scores: Tensor, least: float) -> Tensor:
    """In place, for scores none of which is below `least`."""
    return (scores if least > LEAST_SCORE else scores.clamp_(min=LEAST_SCORE)).exp_()


def _greatest(queries: Tensor, keys_t: Tensor) -> float:
    """No product of a query and a key is greater in magnitude (Cauchy and Schwarz)."""
    return float((queries.norm(dim=-1).amax(-1) * keys_t.norm(dim=-2).amax(-1)).amax())


def _view(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    return buffer[: math.prod(shape)].view(shape)


def forward_pass(
    q: Tensor, k: Tensor, v: Tensor, q_at: Tensor, k_at: Tensor, slopes: Tensor, power: int
) -> tuple[Tensor, Tensor]:
    """(out [B, H, N, d], logarithm of each query's denominator [B, H, N] in float32); arguments as in `attend`."""
    out, logs = _results(q)
    ground, chunks = _Ground(q_at, k_at, slopes, power), _Chunks.of(q, k)
    room = _Room.of(q, chunks, backward=False)
    for part in chunks.blocks(q):
        _forward_block(ground.part(*part), chunks, room, *(x[part] for x in (q, k, v, out, logs)))
    return out, logs


def _forward_block(
    ground: _Ground, chunks: _Chunks, room: _Room, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logs: Tensor
) -> None:
    """One block, into `out` and `logs`."""
    queries, keys_t = _flat(q.float() * q.shape[-1] ** -0.5), _flat(k.float()).transpose(1, 2)
    values = _flat(v)
    greatest = _greatest(queries, keys_t)
    for rows in _cut(q.shape[2], chunks.rows):
        bias = ground.bias(rows)
        furthest = float(bias.amax())
        for heads in _cut(q.shape[1], chunks.heads):
            own = _own(q, heads)
            p = _scores(queries[own, rows], keys_t[own], bias, ground.slopes[heads], room.scores)
            least = -greatest - furthest * float(ground.slopes[heads].amax())
            if greatest < SAFE_SCORE:
                total = _exp(p, least).sum(-1, keepdim=True)
                log = total.log()
            else:
                top = p.amax(-1, keepdim=True)
                total = _exp(p.sub_(top), least - greatest).sum(-1, keepdim=True)
                log = total.log().add_(top)
            p = room.lowered(p)
            place = slice(None), heads, rows
            out[place] = torch.bmm(p, values[own]).div_(total).view(out[place].shape)
            logs[place] = log.view(logs[place].shape)


def backward_pass(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_at: Tensor,
    k_at: Tensor,
    slopes: Tensor,
    out: Tensor,
    logs: Tensor,
    power: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    results = _like(q), _like(k), _like(v)
    ground, chunks = _Ground(q_at, k_at, slopes, power), _Chunks.of(q, k)
    room = _Room.of(q, chunks, backward=True)
    for part in chunks.blocks(q):
        given = (x[part] for x in (grad, q, k, v, out, logs, *results))
        _backward_block(ground.part(*part), chunks, room, *given)
    return results


def _backward_block(
    ground: _Ground,
    chunks: _Chunks,
    room: _Room,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logs: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    """One block, into dq, dk and dv."""
    scale, low = q.shape[-1] ** -0.5, q.dtype != torch.float32
    delta = (grad.float() * out).sum(-1, keepdim=True).neg_()
    # A bf16 column would round what is subtracted from dO V^T, so the rest goes into another.
    columns = (delta.to(grad.dtype), (delta - delta.to(grad.dtype)).to(grad.dtype))[: 2 if low else 1]
    grads = _flat(grad, *columns)
    values_t = _flat(v, *(1.0 for _ in columns)).transpose(1, 2)
    queries_less = _flat(q.float() * scale, -logs[..., None])
    keys_t = _flat(k.float(), 1.0).transpose(1, 2)
    greatest = _greatest(queries_less[..., :-1], keys_t[:, :-1]) + float(logs.abs().amax())
    queries, keys = _flat(q), _flat(k)
    dk_sum, dv_sum = (torch.zeros(keys.shape, dtype=torch.float32, device=k.device) for _ in range(2))
    for rows in _cut(q.shape[2], chunks.rows):
        bias = ground.bias(rows)
        furthest = float(bias.amax())
        for heads in _cut(q.shape[1], chunks.heads):
            own = _own(q, heads)
            p = _scores(queries_less[own, rows], keys_t[own], bias, ground.slopes[heads], room.scores)
            p = room.lowered(_exp(p, -greatest - furthest * float(ground.slopes[heads].amax())))
            ds = torch.bmm(grads[own, rows], values_t[own], out=_view(room.gradients, p.shape)).mul_(p)
            place = slice(None), heads, rows
            dq[place] = torch.bmm(ds, keys[own]).mul_(scale).view(dq[place].shape)
            for total, weights, x in ((dv_sum, p, grads[..., : v.shape[-1]]), (dk_sum, ds, queries)):
                if low:
                    total[own] += torch.bmm(weights.transpose(1, 2), x[own, rows])
                else:
                    total[own].baddbmm_(weights.transpose(1, 2), x[own, rows])
    dk.copy_(dk_sum.mul_(scale).view(dk.shape))
    dv.copy_(dv_sum.view(dv.shape))


def _own(q: Tensor, heads: slice) -> slice:
    """Of q flattened, the rows of these heads: of all samples only where they are all heads."""
    return slice(heads.start, heads.start + q.shape[0] * (heads.stop - heads.start))


def _like(x: Tensor) -> Tensor:
    """Empty [B, H, n, d] with tokens outside and heads inside, as fused kernels leave their results."""
    return x.new_empty(x.transpose(1, 2).shape).transpose(1, 2)


def _results(q: Tensor) -> tuple[Tensor, Tensor]:
    return _like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


attention_products = torch.library.custom_op("scale_alibi::attention_products", forward_pass, mutates_args=())
attention_products_backward = torch.library.custom_op(
    "scale_alibi::attention_products_backward", backward_pass, mutates_args=()
)


@attention_products.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, q_at: Tensor, k_at: Tensor, slopes: Tensor, power: int) -> tuple[Tensor, Tensor]:
    return _results(q)


@attention_products_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _like(q), _like(k), _like(v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.power = inputs[-1]
    ctx.save_for_backward(*inputs[:-1], *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _grad_logs: Tensor | None) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors  # read once: checkpointing makes them then
    gradients = (None, None, None) if grad is None else attention_products_backward(grad, *tensors, ctx.power)
    return *gradients, None, None, None, None


attention_products.register_autograd(_backward, setup_context=_keep)
SAVED_OPERATORS.add("scale_alibi::attention_products")


def products(q: Tensor, k: Tensor, v: Tensor, q_at: Tensor, k_at: Tensor, slopes: Tensor, power: int) -> Tensor:
    """`attend` by `attention_products`."""
    out: Tensor = attention_products(q, k, v, q_at, k_at, slopes, power)[0]
    return out
