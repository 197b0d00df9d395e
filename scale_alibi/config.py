"""The `model:` section of the Scale-ALiBi family and its sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from frontier.config.schema import Section
from frontier.data.manifest import nearest
from frontier.errors import UserError
from frontier.models.presets import DecoderShape, check_heads
from scale_alibi.sensors import SensorSection

Position = Literal["ground", "grid", "gaussian", "sincos", "sincos_gsd"]
Attention = Literal["auto", "eager", "sdpa", "products", "flex", "augmented"]
TAKEN = ("joint", "contrastive", "reconstruction")
"""No names of sensors: the joint encoding, and terms of the loss, which are logged beside those of sensors as loss_<name>."""
METRIC: tuple[Position, ...] = ("ground", "gaussian", "sincos_gsd")
"""Positions that are told in units of `reference_m`."""


@dataclass(frozen=True)
class Size:
    """Of the encoders. `depth` is that of the encoders after the first, which has half as many blocks, as have the
    cross-encoders.
    """

    width: int
    depth: int
    heads: int


PRESETS: dict[str, Size] = {
    "scale_alibi_debug": Size(32, 2, 4),
    "scale_alibi_tiny": Size(192, 4, 4),
    "scale_alibi_small": Size(384, 8, 8),
    "scale_alibi_base": Size(768, 12, 16),
    "scale_alibi_large": Size(1024, 24, 16),
    "scale_alibi_huge": Size(1280, 32, 16),
    "scale_alibi_1b": Size(1536, 32, 16),
    "scale_alibi_3b": Size(2816, 32, 32),
    "scale_alibi_15b": Size(5120, 48, 64),
}
"""`scale_alibi_base` is the paper's (and CROMA-base), `scale_alibi_large` CROMA-large; above them the widths and depths of the Frontier study, the
width of its largest rounded to a head dim of 80."""

DECODERS: dict[str, DecoderShape] = {
    "scale_alibi_debug": DecoderShape(width=32, depth=1, heads=4),
    "scale_alibi_tiny": DecoderShape(width=128, depth=1, heads=4),
}
PAPER_DECODER = DecoderShape(width=512, depth=1, heads=8)


class DecoderSection(Section):
    """Parts of the decoder that differ from the preset's."""

    width: int | None = Field(None, gt=0)
    depth: int | None = Field(None, gt=0)
    heads: int | None = Field(None, gt=0)


class WeightsSection(Section):
    """Of the terms of the loss (the paper's Eq. 6: 1 and 1). 0: what only this term trains is not built."""

    contrastive: float = Field(1.0, ge=0)
    reconstruction: float = Field(1.0, ge=0)


class ScaleALiBiSection(Section):
    """`model:` of the family."""

    family: Literal["scale_alibi"] = "scale_alibi"
    preset: str
    width: int | None = Field(None, gt=0)
    depth: int | None = Field(None, gt=0)
    heads: int | None = Field(None, gt=0)
    patch: int = Field(8, gt=0)
    """Side of a patch in pixels, of every sensor."""
    sensors: dict[str, SensorSection]
    """By name, in order: the first one's tokens are those of the joint encoding, the others are its contexts one after another."""
    chain: list[str] | None = None
    """That order, where the sensors stand in another; filled in, so that it survives tools that sort keys."""
    position: Position = "ground"
    """ground: Scale-ALiBi, distance in metres over reference_m; grid: 2D-ALiBi and X-ALiBi, distance in patches whatever they span;
    gaussian: its square in metres (ours); sincos: sinusoidal places added to tokens, no bias; sincos_gsd: the same of places in metres."""
    reference_m: float | None = Field(None, gt=0)
    """Metres of one unit of distance; default: a patch of the first sensor at its nominal GSD."""
    attention: Attention = "auto"
    """What computes it: see `scale_alibi.attention`."""
    mask_ratio: float = Field(0.4, gt=0, lt=1)
    """Of each sensor's patches, hidden (the paper's code: 0.4; CROMA: 0.75)."""
    norm_scope: Literal["joint", "modality"] = "modality"
    """Targets normalised over a patch of one sensor, or as in CROMA over all sensors' values of a patch of the first."""
    weights: WeightsSection = WeightsSection()
    decoder: DecoderSection = DecoderSection()

    @field_validator("sensors")
    @classmethod
    def _names(cls, value: dict[str, SensorSection]) -> dict[str, SensorSection]:
        if len(value) < 2:
            raise ValueError("give two sensors or more, such as radar, lores and hires")
        for name in value:
            if not name.isidentifier() or name in TAKEN:
                raise ValueError(
                    f"'{name}' cannot be a sensor's name: use letters, digits and _, and none of {', '.join(TAKEN)}"
                )
        return value

    @model_validator(mode="before")
    @classmethod
    def _in_order(cls, given: Any) -> Any:
        chain = given.get("chain") if isinstance(given, dict) else None
        if isinstance(chain, list) and isinstance(given.get("sensors"), dict):
            sensors = given["sensors"]
            if sorted(map(str, chain)) != sorted(map(str, sensors)):
                raise ValueError(f"model.chain is {', '.join(map(str, chain))}: name each of {', '.join(sensors)} once")
            return {**given, "sensors": {name: sensors[name] for name in chain}}
        return given

    @model_validator(mode="after")
    def _effects(self) -> ScaleALiBiSection:
        weights = self.weights
        if not weights.contrastive and not weights.reconstruction:
            raise ValueError("model.weights are both 0: there is nothing to learn")
        if not weights.reconstruction:
            for key in ("norm_scope", "decoder"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"model.{key} has no effect with weights.reconstruction=0: leave it out")
        if self.mask_ratio != type(self).model_fields["mask_ratio"].default and all(
            sensor.mask_ratio is not None for sensor in self.sensors.values()
        ):
            raise ValueError("model.mask_ratio has no effect, as every sensor has its own: leave it out")
        if self.depth is not None and not weights.reconstruction and all(s.depth for s in self.sensors.values()):
            raise ValueError(
                "model.depth has no effect, as every sensor has its own and weights.reconstruction=0: leave it out"
            )
        if self.reference_m is not None and self.position not in METRIC:
            raise ValueError(f"model.reference_m has no effect with position={self.position}: leave it out")
        if self.attention != "auto" and self.position in ("sincos", "sincos_gsd"):
            raise ValueError(f"model.attention has no effect with position={self.position}: leave it out")
        if self.attention == "augmented" and self.position != "gaussian":
            raise ValueError("model.attention=augmented is for position=gaussian: leave it out")
        return self

    def size(self) -> Size:
        """UserError for an unknown preset, or sizes that do not go together."""
        if self.preset not in PRESETS:
            raise UserError(f'model preset "{self.preset}" is unknown: {nearest(self.preset, PRESETS)}')
        changes = {name: value for name in ("width", "depth", "heads") if (value := getattr(self, name)) is not None}
        size = replace(PRESETS[self.preset], **changes)
        check_heads(size.width, size.heads, "model.heads")
        if size.width % 4:
            raise UserError(f"model.width {size.width}: two-dimensional sinusoidal positions need a multiple of 4")
        return size

    def decoder_shape(self) -> DecoderShape:
        """UserError where width and heads do not go together."""
        own = {name: value for name, value in self.decoder.model_dump().items() if value is not None}
        shape = replace(DECODERS.get(self.preset, PAPER_DECODER), **own)
        check_heads(shape.width, shape.heads, "model.decoder.heads")
        if shape.width % 4:
            raise UserError(
                f"model.decoder.width {shape.width}: two-dimensional sinusoidal positions need a multiple of 4"
            )
        return shape
