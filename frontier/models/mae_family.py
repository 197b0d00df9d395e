"""The MAE family as the engine sees it: its config section, batch adapter and counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from frontier.config.schema import Section
from frontier.data.image_feed import ImageFeed, open_image_feed
from frontier.data.transforms import mask_noise
from frontier.models.counting import flops_per_image
from frontier.models.mae import MAE, MAEConfig
from frontier.models.presets import DecoderShape, ViTShape, get_decoder, get_shape
from frontier.models.registry import Family, ImageShape, image_shape
from frontier.models.texture import TextureMAE


class DecoderSection(Section):
    """Parts of the decoder that differ from the preset's."""

    width: int | None = Field(None, gt=0)
    depth: int | None = Field(None, gt=0)
    heads: int | None = Field(None, gt=0)


class TextureSection(Section):
    """The further targets of `TextureMAE`."""

    weight: float = Field(1.0, gt=0)
    visible: float = Field(0.0, ge=0)
    """Weight of the kept patches in the loss, beside 1 for the masked ones."""


class MAESection(Section):
    """`model:` of the MAE family: a preset, and what differs from it."""

    family: Literal["mae"] = "mae"
    preset: str
    width: int | None = Field(None, gt=0)
    depth: int | None = Field(None, gt=0)
    heads: int | None = Field(None, gt=0)
    mlp_hidden: int | None = Field(None, gt=0)
    mlp: Literal["plain", "gated"] | None = None
    patch: int | None = Field(None, gt=0)
    decoder: DecoderSection = DecoderSection()
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    norm_pix_loss: bool = True
    """Targets normalised patch by patch."""
    texture: TextureSection | None = None
    """Predict patch statistics beside pixels (`frontier.models.texture`): for small images and small data."""

    def encoder_shape(self) -> ViTShape:
        """The preset's with the changes made here; UserError where they do not fit together."""
        names = ("width", "depth", "heads", "mlp_hidden", "mlp", "patch")
        return get_shape(self.preset, **{name: value for name in names if (value := getattr(self, name)) is not None})

    def decoder_shape(self) -> DecoderShape:
        """Likewise."""
        own = {name: value for name, value in self.decoder.model_dump().items() if value is not None}
        return replace(get_decoder(self.preset), **own)

    def maths(self, images: ImageShape) -> MAEConfig:
        """The sizes of the model on such images; UserError where they do not fit together."""
        return MAEConfig(
            encoder=self.encoder_shape(),
            decoder=self.decoder_shape(),
            image_size=images.image_size,
            channels=images.channels,
            mask_ratio=self.mask_ratio,
            norm_pix_loss=self.norm_pix_loss,
        )


def _fixed(section: Any) -> dict[str, Any]:
    return {
        "model.heads": section.encoder_shape().heads,
        "model.decoder.heads": section.decoder_shape().heads,
        "model.norm_pix_loss": section.norm_pix_loss,
    }


def _build(section: Any, images: ImageShape) -> nn.Module:
    if section.texture is not None:
        return TextureMAE(section.maths(images), section.texture.weight, section.texture.visible)
    return MAE(section.maths(images))


def _inputs(module: nn.Module, images: Tensor, members: Tensor, seed: int) -> dict[str, Tensor]:
    return {"images": images, "noise": mask_noise(members, cast(MAE, module).config.patches, seed)}


def _feed(config: Any, check: bool, samples: int | None) -> ImageFeed:
    return open_image_feed(config, check, samples, _inputs)


def _meta_inputs(module: nn.Module, images: ImageShape, micro_batch: int) -> dict[str, Tensor]:
    with torch.device("meta"):
        pixels = torch.empty(micro_batch, images.channels, images.image_size, images.image_size)
        return _inputs(module, pixels, torch.zeros(micro_batch, 2, dtype=torch.int64), 0)


FAMILY = Family(
    name="mae",
    config=MAESection,
    feed=_feed,
    shape=image_shape,
    build=_build,
    meta_inputs=_meta_inputs,
    flops=lambda module: flops_per_image(cast(MAE, module).config).step,
    encoder_parameters=lambda module: sum(p.numel() for p in cast(MAE, module).encoder.parameters()),
    hardware_flops=lambda module, kind, _turns: flops_per_image(cast(MAE, module).config, True, kind).hardware,
    fixed=_fixed,
)
