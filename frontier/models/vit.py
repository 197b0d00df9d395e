"""Patches and the vision transformer encoder."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frontier.errors import UserError
from frontier.models.layers import Block
from frontier.models.linear import Linear
from frontier.models.pointwise import LayerNorm
from frontier.models.posembed import sincos_2d
from frontier.models.presets import ViTShape, check_image_size


def patchify(images: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] -> [B, L, C * patch**2]: row-major patches, each flattened channel first, then row, then
    column.
    """
    batch, channels, height, width = images.shape
    x = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)


def unpatchify(patches: Tensor, patch: int, channels: int) -> Tensor:
    """The inverse of `patchify` for square images."""
    batch, length, _ = patches.shape
    grid = int(length**0.5)
    x = patches.reshape(batch, grid, grid, channels, patch, patch)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, grid * patch, grid * patch)


class ViT(nn.Module):
    """The encoder: linear patch embedding, [cls] token, fixed positions, blocks, final norm."""

    pos_embed: Tensor

    def __init__(self, shape: ViTShape, image_size: int, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        check_image_size(image_size, shape.patch)
        self.shape, self.channels, self.grid = shape, channels, image_size // shape.patch
        self.patch_embed = Linear(channels * shape.patch**2, shape.width)
        self.cls_token = nn.Parameter(torch.empty(shape.width))
        self.register_buffer("pos_embed", torch.empty(1 + self.grid**2, shape.width), persistent=False)
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.heads, shape.mlp_hidden, shape.mlp, eps) for _ in range(shape.depth)
        )
        self.norm = LayerNorm(shape.width, eps=eps)

    def initial_value(self, local_name: str, generator: torch.Generator) -> Tensor:
        """Tokens are drawn from N(0, 0.02**2), as in MAE."""
        return torch.empty(getattr(self, local_name).shape, device="cpu").normal_(0.0, 0.02, generator=generator)

    def initial_buffer(self, local_name: str) -> Tensor:
        return sincos_2d(self.shape.width, self.grid)

    def embed(self, patches: Tensor, ids: Tensor | None = None) -> Tensor:
        """Patches [B, K, C * patch**2] at positions `ids` [B, K] (None: all) -> tokens [B, 1 + K, D], [cls]
        first.
        """
        x = self.patch_embed(patches.to(self.patch_embed.weight.dtype))
        positions = self.pos_embed.to(x.dtype)
        x = x + (positions[1:] if ids is None else positions[1:][ids])
        cls = (self.cls_token.to(x.dtype) + positions[0]).expand(x.shape[0], 1, -1)
        return torch.cat([cls, x], dim=1)

    def forward(self, patches: Tensor, ids: Tensor | None = None) -> Tensor:
        """The encoder without masking of its own: `embed`, blocks, final norm -> [B, 1 + K, D]."""
        x = self.embed(patches, ids)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def intermediate(self, patches: Tensor, layers: Sequence[int], norm: bool = True) -> list[Tensor]:
        """Tokens [B, 1 + K, D] after the blocks numbered `layers` (0 is the first, -1 the last), in that
        order.

        With `norm` the final norm is applied to each. Raises `UserError` for a block that does not exist.
        """
        depth = len(self.blocks)
        wanted = []
        for layer in layers:
            if not -depth <= layer < depth:
                raise UserError(f"layer {layer} of {depth} blocks: use {-depth} to {depth - 1}")
            wanted.append(layer % depth)
        x, kept = self.embed(patches), {}
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in wanted:
                kept[number] = self.norm(x) if norm else x
        return [kept[number] for number in wanted]
