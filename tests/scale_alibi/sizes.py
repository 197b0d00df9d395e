"""A small three-sensor model, and random inputs of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from frontier.models.init import initialise
from frontier.models.presets import DecoderShape
from scale_alibi.config import Size
from scale_alibi.model import ScaleALiBi
from scale_alibi.sizes import ScaleALiBiConfig, SensorShape

SMALL = ScaleALiBiConfig(
    size=Size(32, 2, 4),
    patch=8,
    sensors={
        "radar": SensorShape(2, 32, 1, 0.4),
        "lores": SensorShape(3, 32, 2, 0.4),
        "hires": SensorShape(3, 64, 2, 0.4),
    },
    position="ground",
    reference_m=80.0,
    attention="auto",
    norm_scope="modality",
    decoder=DecoderShape(width=32, depth=1, heads=4),
    contrastive=1.0,
    reconstruction=1.0,
)
GSD = {"radar": 10.0, "lores": 10.0, "hires": 5.0}


def small(seed: int = 0, **changes: Any) -> ScaleALiBi:
    model = ScaleALiBi(replace(SMALL, **changes))
    initialise(model, seed)
    return model


def inputs(batch: int, config: ScaleALiBiConfig = SMALL, scale: Tensor | None = None) -> dict[str, dict[str, Tensor]]:
    """scale [batch]: of every GSD of a sample."""
    draw = torch.Generator().manual_seed(batch)
    scale = torch.ones(batch) if scale is None else scale
    return {
        "images": {
            n: torch.randn(batch, s.channels, s.size, s.size, generator=draw) for n, s in config.sensors.items()
        },
        "gsd": {n: (GSD[n] * scale)[:, None].expand(-1, 2).contiguous() for n in config.sensors},
        "noise": {n: torch.rand(batch, config.grid(n) ** 2, generator=draw) for n in config.sensors},
    }


def holes(given: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """bool by sensor: of radar some pixels are missing in all bands, of hires some values, of the first sample all of its hires
    and the first of its radar patches; of lores nothing is.
    """
    draw = torch.Generator().manual_seed(1)
    radar, hires = given["images"]["radar"], given["images"]["hires"]
    known = {
        "radar": torch.rand(len(radar), 1, *radar.shape[2:], generator=draw) < 0.7,
        "hires": torch.rand(hires.shape, generator=draw) < 0.7,
    }
    known["radar"][0, :, :8, :8] = False
    known["hires"][0] = False
    return known


def part(given: dict[str, dict[str, Tensor]], rows: slice) -> dict[str, dict[str, Tensor]]:
    return {key: {name: value[rows] for name, value in one.items()} for key, one in given.items()}
