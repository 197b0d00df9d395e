"""Model families by name. A family brings single-device maths and a batch adapter; the engine brings the rest.

`mae` is built in. Another package adds its own through the entry-point group `frontier.families` in its setup.py:
`"frontier.families": ["scale_alibi = scale_alibi.family:FAMILY"]`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from torch import Tensor, nn

from frontier.config.schema import Section
from frontier.errors import UserError


@dataclass(frozen=True)
class ImageShape:
    """What the data say about the images of a run: side in pixels and number of bands."""

    image_size: int
    channels: int


@dataclass(frozen=True)
class Family:
    """The seam between a model family and the engine.

    Attributes:
        name: `model.family` in a config.
        config: class of the `model:` section.
        build: (section, ImageShape) -> module; called under `torch.device("meta")`. The module has `shard_units()`
            and its `forward(**inputs)` returns a dict with "loss", the mean over the samples of the batch; further
            scalars in it are logged.
        inputs: (module, images, members, seed) -> keyword arguments of `forward`. images [B, C, H, W] float32,
            normalised and augmented, on the device; members [B, 2] int64 (epoch, sample): randomness must be a
            function of these and the seed, so that it is the same on any number of ranks.
        flops: module -> floating-point operations of one sample, forward and backward.
        encoder_parameters: module -> parameters of the part that is kept after pretraining.
        hardware_flops: (module, activation checkpointing) -> those that really run for one sample, with what is computed
            again; None where it is not known, and then no HFU is given.
    """

    name: str
    config: type[Section]
    build: Callable[[Any, ImageShape], nn.Module]
    inputs: Callable[[nn.Module, Tensor, Tensor, int], dict[str, Tensor]]
    flops: Callable[[nn.Module], int]
    encoder_parameters: Callable[[nn.Module], int]
    hardware_flops: Callable[[nn.Module, str], int] | None = None


_BUILT_IN = {"mae": "frontier.models.mae_family:FAMILY"}


def families() -> list[str]:
    """Names of all families installed here."""
    return sorted({*_BUILT_IN, *(e.name for e in entry_points(group="frontier.families"))})


def family(name: str) -> Family:
    """The family `name`; UserError where there is none."""
    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name].split(":")
        return getattr(importlib.import_module(module), attribute)
    for entry in entry_points(group="frontier.families"):
        if entry.name == name:
            return entry.load()
    raise UserError(f"model.family '{name}' is unknown: choose {' or '.join(families())}")
