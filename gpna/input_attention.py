"""The input cross-attention of Perceiver IO (arXiv 2107.14795): learned latents read the tokens of their sample.

Tokens of all samples of a batch lie in one flat buffer; `gpna.batching` says which of them form the clusters that are padded together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from frontier.errors import UserError
from frontier.models.attention import attention_padding, padded_attention
from frontier.models.layers import MLP
from frontier.models.linear import Linear
from frontier.models.pointwise import LayerNorm


class Divide(torch.autograd.Function):
    """The tokens of each cluster, [n, length, C]: views of the flat buffer where they are runs of it, else gathered.

    The gradient is written into one buffer, each token's once. Autograd's own rule would make a buffer of all tokens for every cluster and add
    them up. It holds because no token is in two clusters; padding, which all points to row 0, goes to a row that is then dropped.
    """

    @staticmethod
    def forward(ctx: Any, flat: Tensor, clusters: Sequence[dict[str, Any]]) -> tuple[Tensor, ...]:
        ctx.shape, ctx.clusters = flat.shape, clusters
        parts = []
        for part in clusters:
            if "start" in part:
                shape = len(part["samples"]), part["length"]
                parts.append(flat.narrow(0, part["start"], shape[0] * shape[1]).unflatten(0, shape))
            else:
                parts.append(flat.index_select(0, part["tokens"].flatten()).unflatten(0, part["tokens"].shape))
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        rows, width = ctx.shape
        out = grads[0].new_zeros(rows + 1, width)
        for part, grad in zip(ctx.clusters, grads, strict=True):
            grad = grad.flatten(0, 1)
            if "start" in part:
                out.narrow(0, part["start"], len(grad)).copy_(grad)
            else:
                there = part.get("there")
                to = part["tokens"] if there is None else torch.where(there, part["tokens"], rows)
                out.index_put_((to.flatten(),), grad)
        return out[:rows], None


def attend(q: Tensor, k: Tensor, v: Tensor, there: Tensor | None) -> Tensor:
    """Attention of q [n, heads, M, d] over those of k, v [n, heads, N, d] that are `there` [n, N]; None: all."""
    if there is None or q.device.type == "meta":  # a mask changes no shape
        return padded_attention(q, k, v)
    dim = q.shape[-1]
    padding = attention_padding(dim, q.device.type)
    if padding:
        q, k, v = (F.pad(t, (0, padding)) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=there[:, None, None], scale=dim**-0.5)[..., :dim]


class InputAttention(nn.Module):
    """latents + proj(attention(norm(latents), norm(tokens))), then x + mlp(norm(x)), for every sample.

    Keys, values and the output projection have no bias: that of the keys cancels in the softmax, the others add the same vector to every
    latent of every sample, which the learned latents hold already. So a sample without tokens keeps exactly the latents.

    Args:
        token_width: C, channels of a token.
        latents: M, their number.
        width: D, channels of a latent.
        heads: attention heads; they divide `width`.
        mlp_hidden: hidden units of the MLP.
        checkpoint: compute normed tokens, keys and values anew in the backward pass instead of keeping them: C + 2 D numbers a token less.
    """

    gathered_once = True  # clusters differ in number between ranks, so nothing in their loop may be gathered

    def __init__(
        self, token_width: int, latents: int, width: int, heads: int, mlp_hidden: int, checkpoint: bool = False
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"{heads} heads do not divide the latents' width {width}: choose a divisor")
        self.heads, self.checkpoint = heads, checkpoint
        self.begin: Callable[[int], Tensor] | None = None
        self.latents = nn.Parameter(torch.empty(latents, width))
        self.latent_norm = LayerNorm(width, eps=1e-6)
        self.token_norm = LayerNorm(token_width, eps=1e-6)
        self.q = Linear(width, width)
        self.kv = Linear(token_width, 2 * width, bias=False)
        self.proj = Linear(width, width, bias=False)
        self.mlp_norm = LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, mlp_hidden)

    def initial_value(self, local_name: str, generator: torch.Generator) -> Tensor:
        """The latents: normal, standard deviation 0.02, as in Perceiver IO, added to what they `begin` as."""
        drawn = torch.empty(self.latents.shape, device="cpu").normal_(0.0, 0.02, generator=generator)
        return drawn if self.begin is None else drawn + self.begin(len(drawn))

    def forward(self, flat: Tensor, clusters: Sequence[dict[str, Any]]) -> Tensor:
        """Latents of every sample that have read its tokens.

        Args:
            flat: tokens of all samples, [N, C].
            clusters: `Packing.plain()` of B samples, on flat's device.

        Returns:
            [B, M, D], in the order of the samples.
        """
        q = self.q(self.latent_norm(self.latents)).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        read = []
        for tokens, part in zip(Divide.apply(flat, clusters), clusters, strict=True):
            if self.checkpoint and torch.is_grad_enabled():
                read.append(recompute(self.read, q, tokens, part.get("there"), use_reentrant=False))
            else:
                read.append(self.read(q, tokens, part.get("there")))
        order = torch.cat([part["samples"] for part in clusters]).argsort()
        x = self.latents + self.proj(torch.cat(read).index_select(0, order))
        return x + self.mlp(self.mlp_norm(x))

    def read(self, q: Tensor, tokens: Tensor, there: Tensor | None) -> Tensor:
        """Queries [heads, M, d] and tokens [n, length, C] -> [n, M, D]."""
        normed = self.token_norm(tokens)
        if not tokens.shape[1]:  # a sum of nothing, with all weights in the graph (oneDNN takes no empty matrices)
            nothing = F.linear(normed, self.kv.weight).unflatten(-1, (2, -1)).sum((1, 2))
            return nothing[:, None] + 0 * q.transpose(0, 1).flatten(1)
        kv = self.kv(normed)
        k, v = (t.transpose(1, 2) for t in kv.unflatten(-1, (self.heads, 2, -1)).unbind(-2))
        return attend(q.expand(len(tokens), -1, -1, -1), k, v, there).transpose(1, 2).flatten(2)
