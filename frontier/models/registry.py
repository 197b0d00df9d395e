"""Model families by name. A family brings single-device maths and a batch adapter; the engine brings the rest.

Those of this suite are known as strings, so that nothing of them is imported before a run names one. Another package adds its own
through the entry-point group `frontier.families` in its setup.py: `"frontier.families": ["mine = my_package.family:FAMILY"]`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, cast

from torch import nn

from frontier.config.schema import Section
from frontier.errors import UserError
from frontier.models.panels import Panels
from frontier.models.workload import Workload


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
        feed: (config, look at every shard now, samples to plan for or None) -> `frontier.data.feed.Feed`.
        shape: resolved config -> what the model must know of the data, such as `ImageShape`; needs no data.
        build: (section, shape) -> module; called under `torch.device("meta")`. The module has `shard_units()`
            and its `forward(**inputs)` returns a dict with "loss", the mean over the samples of the batch; further
            scalars in it are logged.
        flops: module -> floating-point operations of one sample, forward and backward.
        encoder_parameters: module -> parameters of the part that is kept after pretraining.
        meta_inputs: (module, shape, micro-batch) -> keyword arguments of its forward, on meta: to count memory.
        hardware_flops: (module, activation checkpointing, micro-batches of a step) -> those that really run for one sample, with what is
            computed again; None where it is not known, and then no HFU is given.
        fixed: section -> by config key, what leaves the shapes of weights alone but makes another function of them, such as a number of
            heads: it must be equal on both sides of a resume. None: shapes tell all.
        source: class of the entries of `data.sources`; None where the family takes one kind of data.
        features: (a run's resolved config, `frontier.probe.subject.Ask`) -> `frontier.probe.subject.Subject`: frozen features of labelled
            shards. None where a sample is one image and the module has `encode(images)`: `frontier.probe.images`.
        workload: module (on meta) -> `frontier.models.workload.Workload`, for `frontier plan --config`; None where the predictor has presets.
        without_shards: a config whose shards are not here -> (one of the same model on images made on the device, what it assumes), for
            `frontier plan --config`. None: nothing is known without them.
        pictures: (trained module, the run's resolved config, shards that replace the run's or None) -> [`frontier.models.panels.Panels`] for
            the report. None where the module has `reconstruct(images, noise)`.
        evaluate: words of `frontier evaluate`, a checkpoint of this family among them -> exit code: it parses them, with what `frontier.evaluate`
            has for that, and measures on held-out samples. None where there is only `frontier probe`.
        usage: Python lines for the model card that load the exported folder FOLDER and use it; "" where the module has `encode(images)`.
    """

    name: str
    config: type[Section]
    feed: Callable[[Any, bool, int | None], Any]
    shape: Callable[[Any], Any]
    build: Callable[[Any, Any], nn.Module]
    flops: Callable[[nn.Module], int]
    encoder_parameters: Callable[[nn.Module], int]
    meta_inputs: Callable[[nn.Module, Any, int], dict[str, Any]]
    hardware_flops: Callable[[nn.Module, str, int], int] | None = None
    fixed: Callable[[Any], dict[str, Any]] | None = None
    source: type[Section] | None = None
    features: Callable[[dict[str, Any], Any], Any] | None = None
    workload: Callable[[nn.Module], Workload] | None = None
    without_shards: Callable[[Any], tuple[Any, str]] | None = None
    pictures: Callable[[nn.Module, dict[str, Any], str | None], list[Panels]] | None = None
    evaluate: Callable[[list[str]], int] | None = None
    usage: str = ""


def encoder_parameters(module: nn.Module) -> int:
    """Of a module that names what is kept by `encoder_names()`."""
    named = dict(module.named_parameters())
    names: list[str] = cast(Any, module).encoder_names()
    return sum(named[name].numel() for name in names)


def image_shape(config: Any) -> ImageShape:
    """Of a resolved config whose `data` has one image a sample."""
    return ImageShape(config.data.image_size, len(config.data.mean))


_BUILT_IN = {
    "mae": "frontier.models.mae_family:FAMILY",
    "gpna": "gpna.family:FAMILY",
    "scale_alibi": "scale_alibi.family:FAMILY",
}


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
