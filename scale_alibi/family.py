"""The Scale-ALiBi family as the engine sees it."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from frontier.config.load import Config
from frontier.errors import UserError
from frontier.models.registry import Family, encoder_parameters
from scale_alibi.config import ScaleALiBiSection
from scale_alibi.counting import flops_per_sample, hardware_flops
from scale_alibi.evaluate import main as evaluate
from scale_alibi.feed import open_feed, without_shards
from scale_alibi.model import ScaleALiBi
from scale_alibi.pictures import pictures
from scale_alibi.probe import features
from scale_alibi.sizes import ScaleALiBiConfig, SensorShape
from scale_alibi.workload import workload


def shape(config: Config) -> dict[str, tuple[int, int]]:
    """What a resolved config says of the sensors: bands and side in pixels."""
    return {name: (sensor.channels, sensor.size) for name, sensor in config.model.sensors.items()}


def maths(section: ScaleALiBiSection, sensors: dict[str, tuple[int, int]]) -> ScaleALiBiConfig:
    """The sizes of the model on such images. Raises UserError where they do not fit together."""
    size, weights, shapes = section.size(), section.weights, {}
    for name in sensors:
        if hasattr(nn.ModuleDict(), name):
            raise UserError(
                f"model.sensors: '{name}' cannot be a sensor's name, as PyTorch's modules use it: take another"
            )
    for place, (name, (channels, side)) in enumerate(sensors.items()):
        sensor = section.sensors[name]
        depth = sensor.depth or (size.depth if place else max(1, size.depth // 2))
        shapes[name] = SensorShape(channels, side, depth, sensor.mask_ratio or section.mask_ratio)
    config = ScaleALiBiConfig(
        size,
        section.patch,
        shapes,
        section.position,
        section.reference_m or 1.0,
        section.attention,
        section.norm_scope,
        section.decoder_shape() if weights.reconstruction else None,
        weights.contrastive,
        weights.reconstruction,
    )
    for name in shapes:
        if not 1 <= config.kept(name) < config.grid(name) ** 2:
            raise UserError(
                f"model.mask_ratio of {name} keeps {config.kept(name)} of {config.grid(name) ** 2} patches: one at least must be "
                "kept and one hidden; take larger images, a smaller patch or another ratio"
            )
    return config


def build(section: ScaleALiBiSection, sensors: dict[str, tuple[int, int]]) -> ScaleALiBi:
    """The module, with parameters on the default device."""
    return ScaleALiBi(maths(section, sensors))


def fixed(section: ScaleALiBiSection) -> dict[str, Any]:
    """Weights of the same shapes, another function."""
    found: dict[str, Any] = {f"model.{name}": getattr(section, name) for name in ("position", "reference_m")}
    found["model.heads"] = section.size().heads
    if section.weights.reconstruction:
        found |= {"model.decoder.heads": section.decoder_shape().heads, "model.norm_scope": section.norm_scope}
    return found


def meta_inputs(module: nn.Module, sensors: dict[str, tuple[int, int]], micro_batch: int) -> dict[str, Any]:
    """Of a micro-batch."""
    config = cast(ScaleALiBi, module).config

    def meta(*size: int) -> Tensor:
        return torch.empty(micro_batch, *size, device="meta")

    return {
        "images": {name: meta(channels, side, side) for name, (channels, side) in sensors.items()},
        "gsd": {name: meta(2) for name in sensors},
        "noise": {name: meta(config.grid(name) ** 2) for name in sensors},
    }


USAGE = """\
import json

import torch

from frontier.export import load_exported

model = load_exported("FOLDER")
config = json.load(open("FOLDER/config.json"))
name, sensor = next(iter(config["model"]["sensors"].items()))
mean, std = (torch.tensor(sensor[key]).view(-1, 1, 1) for key in ("mean", "std"))
# Images of the bands sensor["bands"] in stored units, square, sides a multiple of model.patch pixels; here mere means.
stored = mean.expand(1, -1, sensor["size"], sensor["size"])
gsd = torch.full((1, 2), sensor["nominal_gsd_m"])  # metres a pixel of these images along (y, x)
with torch.inference_mode():
    tokens = model.encode(name, (stored - mean) / std, gsd)  # .x float32 [B, patches, width], row by row
    pooled = tokens.x.mean(1)
"""

FAMILY = Family(
    name="scale_alibi",
    config=ScaleALiBiSection,
    feed=open_feed,
    shape=shape,
    build=build,
    meta_inputs=meta_inputs,
    flops=lambda module: flops_per_sample(cast(ScaleALiBi, module).config),
    encoder_parameters=encoder_parameters,
    hardware_flops=lambda module, kind, turns: hardware_flops(cast(ScaleALiBi, module).config, kind, turns),
    fixed=fixed,
    workload=lambda module: workload(cast(ScaleALiBi, module)),
    without_shards=without_shards,
    pictures=pictures,
    evaluate=evaluate,
    features=features,
    usage=USAGE,
)
