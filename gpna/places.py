"""Latents that begin as places: `model.latents_start: places`.

With random weights a latent reads all tokens alike, and learns only slowly to look somewhere: Perceivers find dense tasks hard on little data.
Here latent i begins as the code of the i-th cell of a grid over the tile, and the maps to queries and keys begin as multiples of one
another, so that at the start a latent reads the tokens near its cell, and a pixel or a hidden token asks the latents near it. Only the start
differs from `random`: the parameters are the same, and all of them learn.

The code of a place is c(x) = R gamma(x) of width C, gamma its Fourier encoding as tokens have it and R with orthonormal rows (columns where C
is larger); among latents it is E c(x), E with orthonormal columns (rows). R and E are fixed, like the frequencies, and
scaled so that the numbers of a code have a mean square of 1 at a point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frontier.models.init import parameter_generator, xavier
from gpna.fourier import Region, position_features
from gpna.query_attention import QueryAttention, QueryDecoder

SHARPNESS = 10.0
"""Logit, at the start, of a query on what lies at its place and has no other content."""
SAMPLED = 32
"""Side of the grid of places on which another encoding is fitted to the code."""
LEAST = 0.1
"""Singular values of that encoding below this part of the largest count as none: a few percent off, but by small weights."""


def grid(latents: int) -> tuple[int, int]:
    """(rows, columns) of that many cells, as square as divisors allow."""
    rows = next(n for n in range(math.isqrt(latents), 0, -1) if latents % n == 0)
    return rows, latents // rows


def orthonormal(rows: int, columns: int, name: str) -> Tensor:
    """[rows, columns] float32 with orthonormal rows or, where they are more, columns. A function of the arguments."""
    long, short = max(rows, columns), min(rows, columns)
    draw = torch.randn(long, short, generator=parameter_generator(0, name), dtype=torch.float64, device="cpu")
    q, r = torch.linalg.qr(draw)
    q = (q * r.diagonal().sign()).float()  # the one whose r is positive on the diagonal: unique
    return q if rows == long else q.t()


class Begun:
    """Stands as `initial_value` of a linear layer: what `frontier.models.init` asks. Its bias begins at 0."""

    def __init__(self, layer: nn.Linear, weight: Callable[[torch.Generator], Tensor]) -> None:
        self.outputs, self.weight = layer.out_features, weight
        layer.initial_value = self  # type: ignore[assignment]

    def __call__(self, local_name: str, generator: torch.Generator) -> Tensor:
        return self.weight(generator) if local_name == "weight" else torch.zeros(self.outputs, device="cpu")


@dataclass(frozen=True)
class Places:
    """Initial values. `features`, `region`, `highest`: of the tokens' positions; `token_width` C, `width` D, `heads`: of the input attention."""

    features: int
    region: Region
    highest: float
    token_width: int
    width: int
    heads: int

    def tokens(self) -> Tensor:
        """[C, features]: R, the projection of the tokens' positions."""
        scale = math.sqrt(2 * max(1.0, self.token_width / self.features))
        return orthonormal(self.token_width, self.features, "places of tokens") * scale

    def widened(self) -> Tensor:
        """[D, C]: E, from tokens to latents."""
        scale = math.sqrt(max(1.0, self.width / self.token_width))
        return orthonormal(self.width, self.token_width, "places of latents") * scale

    def codes(self, rows: int, columns: int) -> Tensor:
        """[rows * columns, D] of a grid's cells."""
        features = position_features(rows, columns, self.features, self.region, self.highest).flatten(0, 1)
        return features @ self.tokens().t() @ self.widened().t()

    def latents(self, count: int) -> Tensor:
        """[count, D]."""
        return self.codes(*grid(count))

    def fitted(self, size: int, region: Region, highest: float) -> Tensor:
        """[D, size]: the least-squares map of another encoding of places to their codes."""
        other = position_features(SAMPLED, SAMPLED, size, region, highest, torch.float64).flatten(0, 1)
        wanted = self.codes(SAMPLED, SAMPLED).double()
        return torch.linalg.lstsq(other, wanted, rcond=LEAST, driver="gelsd").solution.t().float()

    def queries(self, heads: int) -> Tensor:
        """[D, D]: a multiple of the identity by which a code that meets itself has the logit SHARPNESS in each of `heads`."""
        return torch.eye(self.width, device="cpu") * (SHARPNESS / math.sqrt(self.width / heads))

    def begin_input(self, q: nn.Linear, kv: nn.Linear) -> None:
        """Of the input attention: a latent reads the tokens near its place. `kv` has the keys and the values of a head side by side."""

        def weight(generator: torch.Generator) -> Tensor:
            found = xavier((2 * self.width, self.token_width), generator).unflatten(0, (self.heads, 2, -1))
            found[:, 0] = self.widened().unflatten(0, (self.heads, -1))
            return found.flatten(0, 2)

        Begun(q, lambda generator: self.queries(self.heads))
        Begun(kv, weight)

    def begin_decoder(self, decoder: QueryDecoder, embed: Callable[[], Tensor]) -> None:
        """Of a head: a query, brought to the code of its place by `embed`, asks the latents near it."""

        def weight(generator: torch.Generator) -> Tensor:
            found = xavier((2 * self.width, self.width), generator)
            found[: self.width] = torch.eye(self.width, device="cpu")
            return found

        attention = decoder.attention[0]
        assert isinstance(attention, QueryAttention) and decoder.embed is not None
        heads = self.width // attention.head_dim
        Begun(decoder.embed, lambda generator: embed())
        Begun(attention.q, lambda generator: self.queries(heads))
        Begun(attention.kv, weight)
