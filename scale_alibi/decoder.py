"""From joint tokens to the pixels of all sensors.

The decoder works on the grid of the first sensor, with sinusoidal positions, and gives for each of its cells the values of every sensor there: of one
with r times as many patches along a side, r x r patches at full resolution. (The paper's code keeps every other pixel of the high-resolution image.)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from frontier.models.layers import Block, gather_rows
from frontier.models.linear import Linear
from frontier.models.mae import normalise_patches
from frontier.models.pointwise import LayerNorm
from frontier.models.posembed import sincos_2d
from frontier.models.vit import patchify
from scale_alibi.layers import EPS
from scale_alibi.sizes import ScaleALiBiConfig


def to_cells(patches: Tensor, ratio: int) -> Tensor:
    """Patches [B, (g r)**2, P] of a grid r times as fine -> [B, g**2, r * r * P], each cell's patches row-major."""
    grid = round(patches.shape[1] ** 0.5) // ratio
    x = patches.unflatten(1, (grid, ratio, grid, ratio))
    return x.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)


def from_cells(cells: Tensor, ratio: int) -> Tensor:
    """The inverse of `to_cells`."""
    grid = round(cells.shape[1] ** 0.5)
    x = cells.unflatten(2, (ratio, ratio, -1)).unflatten(1, (grid, grid))
    return x.permute(0, 1, 3, 2, 4, 5).flatten(1, 4)


def targets(
    config: ScaleALiBiConfig, patches: Mapping[str, Tensor], known: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Patches [B, L, P] by sensor -> normalised to mean 0 and deviation 1, float32: each patch ("modality"), or all sensors' values of a cell of
    the first one together ("joint", as CROMA).

    known: bool like the patches of the sensors that it names, of the values that count; the others become 0.
    """
    known = known or {}
    if config.norm_scope == "modality":
        return {name: normalise_patches(values.float(), known.get(name)) for name, values in patches.items()}
    cells = [to_cells(values.float(), config.ratio(name)) for name, values in patches.items()]
    whole = normalise_patches(torch.cat(cells, dim=-1), known_cells(config, patches, known))
    cut = whole.split([c.shape[-1] for c in cells], dim=-1)
    return {name: from_cells(values, config.ratio(name)) for name, values in zip(patches, cut, strict=True)}


def known_cells(config: ScaleALiBiConfig, patches: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> Tensor | None:
    """`known` of all sensors by cells of the first one [B, g**2, values of all sensors]; None where all counts."""
    if not known:
        return None
    every = {n: known[n] if n in known else torch.ones_like(p, dtype=torch.bool) for n, p in patches.items()}
    return torch.cat([to_cells(there, config.ratio(name)) for name, there in every.items()], dim=-1)


def known_patches(
    config: ScaleALiBiConfig, images: Mapping[str, Tensor], known: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """`known` of pixels [B, 1 or C, S, S] -> of patches [B, L, P], for the sensors that it names."""
    return {name: patchify(there.expand_as(images[name]), config.patch) for name, there in (known or {}).items()}


def hidden_error(prediction: Tensor, target: Tensor, known: Tensor | None) -> Tensor:
    """[B]: each sample's mean squared error over the values [B, N, P] that are `known` (None: all); 0 where none is."""
    errors = (prediction.float() - target).square()
    if known is None:
        return errors.mean((1, 2))
    return torch.where(known, errors, 0.0).sum((1, 2)) / known.sum((1, 2)).clamp(min=1)


class Decoder(nn.Module):
    """Joint tokens of the kept cells -> predicted patches of every sensor, everywhere."""

    def __init__(self, config: ScaleALiBiConfig) -> None:
        super().__init__()
        shape = config.decoder
        assert shape is not None
        self.config, self.width = config, shape.width
        self.embed = Linear(config.size.width, shape.width)
        self.mask_token = nn.Parameter(torch.empty(shape.width))
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.heads, 4 * shape.width, eps=EPS) for _ in range(shape.depth)
        )
        self.norm = LayerNorm(shape.width, eps=EPS)
        self.values = {name: config.ratio(name) ** 2 * config.patch_values(name) for name in config.sensors}
        self.pred = Linear(shape.width, sum(self.values.values()))
        grid = config.grid(next(iter(config.sensors)))
        self.register_buffer("positions", torch.empty(grid**2, shape.width), persistent=False)

    positions: Tensor

    def initial_value(self, local_name: str, generator: torch.Generator) -> Tensor:
        """The mask token is drawn from N(0, 0.02**2), as in MAE."""
        return torch.empty(getattr(self, local_name).shape, device="cpu").normal_(0.0, 0.02, generator=generator)

    def initial_buffer(self, local_name: str) -> Tensor:
        return sincos_2d(self.width, round(self.positions.shape[0] ** 0.5), cls_token=False)

    def forward(self, joint: Tensor, order: Tensor) -> dict[str, Tensor]:
        """joint [B, K, D] of the cells order[:, :K], order [B, L] -> predictions [B, L_s, P_s] by sensor, in order of place."""
        x, kept = self.embed(joint), joint.shape[1]
        positions = self.positions.to(x.dtype)
        x = torch.cat([x + positions[order[:, :kept]], (self.mask_token.to(x.dtype) + positions)[order[:, kept:]]], 1)
        for block in self.blocks:
            x = block(x)
        cells = gather_rows(self.pred(self.norm(x)), torch.argsort(order, dim=1))
        cut = cells.split(list(self.values.values()), dim=-1)
        return {name: from_cells(c, self.config.ratio(name)) for name, c in zip(self.values, cut, strict=True)}
