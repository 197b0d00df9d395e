"""The sizes of one MAE. No torch here: counting and prediction start at once."""

from dataclasses import dataclass, field, replace
from typing import Any

from frontier.errors import UserError
from frontier.models.presets import DecoderShape, ViTShape, check_heads, check_image_size, get_decoder, get_shape


@dataclass(frozen=True)
class MAEConfig:
    """Everything that fixes the maths of one MAE. Defaults are those of the MAE recipe.

    Raises `UserError` where sizes do not fit together.
    """

    encoder: ViTShape
    decoder: DecoderShape = field(default_factory=DecoderShape)
    image_size: int = 224
    channels: int = 3
    mask_ratio: float = 0.75
    norm_pix_loss: bool = True
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        check_image_size(self.image_size, self.encoder.patch)
        check_heads(self.decoder.width, self.decoder.heads, "decoder heads")
        if self.decoder.width % 4:
            raise UserError(f"decoder width {self.decoder.width}: 2-D sine-cosine positions need a multiple of 4")
        if self.decoder.depth < 1:
            raise UserError(f"decoder depth {self.decoder.depth}: it must be at least 1")
        if self.channels < 1:
            raise UserError(f"channels {self.channels}: it must be at least 1")
        if not 0.0 < self.mask_ratio < 1.0:
            raise UserError(f"mask_ratio {self.mask_ratio}: it must lie between 0 and 1, e.g. 0.75")
        if not 1 <= self.kept < self.patches:
            raise UserError(
                f"mask_ratio {self.mask_ratio} of {self.patches} patches keeps {self.kept}: at least one patch "
                f"must be kept and one masked; use a larger image_size, a smaller patch or another mask_ratio"
            )

    @classmethod
    def preset(cls, name: str, *, patch: int | None = None, **changes: Any) -> "MAEConfig":
        """The preset `name` with its decoder; `changes` are fields of `MAEConfig`, `patch` replaces the patch
        size.
        """
        shape = get_shape(name) if patch is None else get_shape(name, patch=patch)
        config: dict[str, Any] = {"encoder": shape, "decoder": get_decoder(name)}
        return cls(**(config | changes))

    @property
    def patches(self) -> int:
        """Patches of an image (L)."""
        return (self.image_size // self.encoder.patch) ** 2

    @property
    def kept(self) -> int:
        """Patches that are kept (K): the integer part of L (1 - mask_ratio), as in the paper's code."""
        return int(self.patches * (1 - self.mask_ratio))

    @property
    def patch_values(self) -> int:
        """Values of a patch, C * patch**2."""
        return self.channels * self.encoder.patch**2

    def replace(self, **changes: Any) -> "MAEConfig":
        return replace(self, **changes)
