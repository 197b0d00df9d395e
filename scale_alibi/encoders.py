"""Parts of the model: encoders of one sensor, cross-encoders of two token streams, summaries and projections of whole images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frontier.errors import UserError
from frontier.models.linear import Linear
from frontier.models.pointwise import LayerNorm, gelu
from scale_alibi.geometry import patch_centres, sincos_at
from scale_alibi.layers import EPS, Block, CrossBlock
from scale_alibi.sizes import POWER, ScaleALiBiConfig


@dataclass(frozen=True)
class Tokens:
    """A token stream: x [B, N, D], its places as its own attention sees them and as a cross-encoder does [B, N, 2]."""

    x: Tensor
    at: Tensor
    joint_at: Tensor


@dataclass(frozen=True)
class Masked:
    """Tokens of the patches that are kept, by sensor, and all patches in the order of their noise, [B, L]: the kept ones first."""

    streams: dict[str, Tokens]
    order: dict[str, Tensor]


class Encoder(nn.Module):
    """Patches of one sensor -> tokens: linear embedding without positions (or with sinusoidal ones), blocks, norm."""

    def __init__(self, config: ScaleALiBiConfig, sensor: str) -> None:
        super().__init__()
        size, self.config, self.sensor = config.size, config, sensor
        self.embed = Linear(config.patch_values(sensor), size.width)
        power, depth = POWER[config.position], config.sensors[sensor].depth
        self.blocks = nn.ModuleList(Block(size.width, size.heads, power, config.attention) for _ in range(depth))
        self.norm = LayerNorm(size.width, eps=EPS)

    def places(self, grid: int, gsd: Tensor) -> tuple[Tensor, Tensor]:
        """For images of `grid` patches a side at gsd [B, 2] metres a pixel: places [B, grid**2, 2] among this sensor's own tokens, and
        beside those of others.

        On "grid" and "sincos" they count patches: of this sensor, and of the first one, as if the data were nominal.
        """
        config = self.config
        if config.position in ("grid", "sincos"):
            own = patch_centres(grid, config.patch, torch.full_like(gsd, 1.0 / config.patch), 1.0)
            return own, own / config.ratio(self.sensor)
        own = patch_centres(grid, config.patch, gsd, config.reference_m)
        return own, own

    def forward(self, patches: Tensor, at: Tensor) -> Tensor:
        """Patches [B, N, C * patch**2] at places [B, N, 2] -> tokens [B, N, D]."""
        return self.after(patches, at, [len(self.blocks) - 1])[0]

    def after(self, patches: Tensor, at: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Tokens [B, N, D] after each of the blocks `layers` (0 is the first), the final norm applied.

        Raises UserError for a block that is not there.
        """
        last = len(self.blocks) - 1
        if not all(0 <= layer <= last for layer in layers):
            raise UserError(
                f"blocks {', '.join(map(str, layers))} of {self.sensor}'s encoder: choose among 0 to {last}"
            )
        x, found = self.embed(patches.to(self.embed.weight.dtype)), {}
        if not POWER[self.config.position]:
            x = x + sincos_at(at - 0.5, x.shape[-1]).to(x.dtype)
        for number, block in enumerate(self.blocks):
            x = block(x, at)
            if number in layers:
                found[number] = self.norm(x)
        return [found[layer] for layer in layers]


class CrossEncoder(nn.Module):
    """Tokens of one stream look at those of another, block by block."""

    def __init__(self, config: ScaleALiBiConfig) -> None:
        super().__init__()
        size, power = config.size, POWER[config.position]
        self.blocks = nn.ModuleList(
            CrossBlock(size.width, size.heads, power, config.attention) for _ in range(config.joint_depth)
        )
        self.norm = LayerNorm(size.width, eps=EPS)

    def forward(self, x: Tensor, context: Tensor, at: Tensor, context_at: Tensor) -> Tensor:
        """x [B, N, D] at [B, N, 2], context [B, M, D] at [B, M, 2] -> [B, N, D]."""
        for block in self.blocks:
            x = block(x, context, at, context_at)
        return self.norm(x)


class Summary(nn.Module):
    """The representation of a whole image: norm and MLP of the mean over its tokens (CROMA's "GAP FFN")."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width, eps=EPS)
        self.fc1 = Linear(width, 4 * width)
        self.fc2 = Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> [B, D]."""
        return self.fc2(gelu(self.fc1(self.norm(tokens.mean(1)))))


class Projections(nn.Module):
    """One linear layer a sensor to the space in which sensors are compared, and its temperature."""

    def __init__(self, sensors: Sequence[str], width: int) -> None:
        super().__init__()
        self.of = nn.ModuleDict({name: Linear(width, width) for name in sensors})
        self.log_scale = nn.Parameter(torch.empty(1))

    def initial_value(self, local_name: str, generator: torch.Generator) -> Tensor:
        """A temperature of 0.07, as in CLIP."""
        return torch.full((1,), math.log(1 / 0.07), device="cpu")

    def forward(self, summaries: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Summaries [B, D] by sensor -> unit vectors [B, S, D] float32 and log_scale [1]."""
        z = torch.stack([self.of[name](summaries[name]).float() for name in self.of], dim=1)
        return F.normalize(z, dim=-1), self.log_scale
