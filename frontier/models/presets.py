"""Named shapes: the six models of the Frontier study, one beyond it, and small ones for a laptop.

Widths, depths, heads and MLP sizes of `vit_base` ... `vit_15b` are Table 1 of arXiv 2404.11706; patches are
16 for Base and 14 for the others. Two rows need a word:

* `vit_5b`: the published width, depth and MLP give 3.81 B parameters with a plain MLP, and 5.35 B, the
  published count, with a gated one (three matrices of hidden size 15360). The preset is the gated one; `vit_e`
  has the same shape with the plain MLP.
* `orbit_113b`: arXiv 2404.14712 publishes the count. Width 12288 and depth 56 are those commonly given for
  its largest model, not confirmed from the paper's text; with the usual MLP of four widths they give 101.5 B, so the hidden size here (57344, 14/3 of
  the width) is *derived* to meet the published 113 B. Patch and heads are our choice (head dim 192).
"""

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

from frontier.errors import UserError

MLPKind = Literal["plain", "gated"]


@dataclass(frozen=True)
class ViTShape:
    """Sizes of one transformer encoder. `mlp`: "plain" (two matrices, GELU) or "gated" (three matrices,
    SwiGLU).
    """

    width: int
    depth: int
    heads: int
    mlp_hidden: int
    mlp: MLPKind = "plain"
    patch: int = 16

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "mlp_hidden", "patch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} of a model shape: it must be at least 1")
        if self.mlp not in ("plain", "gated"):
            raise UserError(f'mlp "{self.mlp}" of a model shape: use "plain" or "gated"')
        check_heads(self.width, self.heads, "heads")
        if self.width % 4:
            raise UserError(
                f"width {self.width}: the 2-D sine-cosine positions need a multiple of 4, "
                f"e.g. {self.width // 4 * 4 or 4} or {self.width // 4 * 4 + 4}"
            )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of the MAE decoder; its MLP is plain with a hidden size of four widths."""

    width: int = 512
    depth: int = 8
    heads: int = 16


def check_heads(width: int, heads: int, where: str) -> None:
    """Raise `UserError` unless `heads` divides `width`, naming the head counts nearby that do."""
    if heads >= 1 and width % heads == 0:
        return
    dividing = [h for h in range(1, width + 1) if width % h == 0]
    near = sorted(sorted(dividing, key=lambda h: abs(h - heads))[:4])
    raise UserError(f"{where} {heads} does not divide width {width}: use one of {', '.join(map(str, near))}")


def check_image_size(image_size: int, patch: int, where: str = "image_size") -> None:
    """Raise `UserError` unless `patch` divides `image_size`, naming the nearest sizes that it divides."""
    if image_size >= patch and image_size % patch == 0:
        return
    below = image_size // patch * patch
    sizes = f"{below} or {below + patch}" if below else str(patch)
    raise UserError(f"{where} {image_size} is not a multiple of patch {patch}: the nearest is {sizes}")


PRESETS: dict[str, ViTShape] = {
    "vit_debug": ViTShape(width=32, depth=2, heads=2, mlp_hidden=128, patch=8),
    "vit_tiny": ViTShape(width=192, depth=12, heads=3, mlp_hidden=768, patch=8),
    "vit_small": ViTShape(width=384, depth=12, heads=6, mlp_hidden=1536, patch=16),
    "vit_base": ViTShape(width=768, depth=12, heads=12, mlp_hidden=3072, patch=16),
    "vit_huge": ViTShape(width=1280, depth=32, heads=16, mlp_hidden=5120, patch=14),
    "vit_1b": ViTShape(width=1536, depth=32, heads=16, mlp_hidden=6144, patch=14),
    "vit_3b": ViTShape(width=2816, depth=32, heads=32, mlp_hidden=11264, patch=14),
    "vit_5b": ViTShape(width=1792, depth=56, heads=16, mlp_hidden=15360, mlp="gated", patch=14),
    "vit_e": ViTShape(width=1792, depth=56, heads=16, mlp_hidden=15360, patch=14),
    "vit_15b": ViTShape(width=5040, depth=48, heads=48, mlp_hidden=20160, patch=14),
    "orbit_113b": ViTShape(width=12288, depth=56, heads=64, mlp_hidden=57344, patch=16),
}

DECODERS: dict[str, DecoderShape] = {
    "vit_debug": DecoderShape(width=16, depth=1, heads=2),
    "vit_tiny": DecoderShape(width=96, depth=2, heads=3),
    "vit_small": DecoderShape(width=192, depth=4, heads=6),
}
"""Decoders of the laptop presets; every other preset has the MAE default (512 wide, 8 blocks, 16 heads)."""

PUBLISHED_MILLIONS: dict[str, float] = {
    "vit_base": 87,
    "vit_huge": 635,
    "vit_1b": 914,
    "vit_3b": 3067,
    "vit_5b": 5349,
    "vit_15b": 14720,
    "orbit_113b": 113_000,
}
"""Published parameter counts in millions (arXiv 2404.11706 Table 1; arXiv 2404.14712 for `orbit_113b`)."""


def get_shape(name: str, **changes: object) -> ViTShape:
    """The preset `name`, with the fields in `changes` replaced. Raises `UserError` for an unknown name."""
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"use one of {', '.join(PRESETS)}"
        raise UserError(f'model preset "{name}" is unknown: {hint}')
    return replace(PRESETS[name], **changes)  # type: ignore[arg-type]


def get_decoder(name: str) -> DecoderShape:
    """The MAE decoder that goes with the preset `name`."""
    return DECODERS.get(name, DecoderShape())
