"""All that a Scale-ALiBi model is made of, as numbers. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from frontier.models.presets import DecoderShape
from scale_alibi.config import Position, Size

POWER: dict[Position, int] = {"ground": 1, "grid": 1, "gaussian": 2, "sincos": 0, "sincos_gsd": 0}
"""Of the distance in the bias; 0: none."""


@dataclass(frozen=True)
class SensorShape:
    """What the model must know of a sensor: bands, side in pixels, blocks of its encoder, share of its patches that is hidden."""

    channels: int
    size: int
    depth: int
    mask_ratio: float


@dataclass(frozen=True)
class ScaleALiBiConfig:
    """All that the module is made of.

    Attributes:
        sensors: in the order of the chain; the grid of each is a multiple of the first's.
        reference_m: of one unit of distance; not looked at by positions "grid" and "sincos".
        decoder: None where nothing is reconstructed.
        contrastive, reconstruction: weights of the terms of the loss.
    """

    size: Size
    patch: int
    sensors: dict[str, SensorShape]
    position: Position
    reference_m: float
    attention: str
    norm_scope: str
    decoder: DecoderShape | None
    contrastive: float
    reconstruction: float

    def grid(self, sensor: str) -> int:
        """Patches along a side."""
        return self.sensors[sensor].size // self.patch

    def ratio(self, sensor: str) -> int:
        """Patches of the sensor along a side of a patch of the first one."""
        return self.grid(sensor) // self.grid(next(iter(self.sensors)))

    def kept(self, sensor: str) -> int:
        """Patches that the encoder sees in training."""
        return int(self.grid(sensor) ** 2 * (1 - self.sensors[sensor].mask_ratio))

    @property
    def joint_depth(self) -> int:
        """Blocks of each cross-encoder."""
        return max(1, self.size.depth // 2)

    def patch_values(self, sensor: str) -> int:
        return self.sensors[sensor].channels * self.patch**2
