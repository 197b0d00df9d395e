"""The seam between a probe and a model family: what was asked, and how the family makes frozen features of labelled shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .targets import labels_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from frontier.data.shards import ShardSet

    from .features import FeatureFunction, GridFunction, LabelledSamples

__all__ = ["Ask", "Subject", "inputs_record", "labels_of"]


@dataclass(frozen=True)
class Ask:
    """The words of the command line that are the family's to answer.

    Attributes:
        data: folder of the shards; splits: (training, test).
        column: image column, where a model takes one image.
        source: whose inputs, where a run has several sources.
        pooling: one of `features.POOLINGS`.
        layers: blocks whose features are concatenated; None: the last.
        resize: bring images to the model's size.
        device: where to compute.
        target: which labels, for `targets.labels_of`; None: the shards' own choice.
        gsd_m: metres a pixel of the images as stored; None: what the shards say.
    """

    data: str
    splits: tuple[str, str]
    column: str | None = None
    source: str | None = None
    pooling: str = "mean"
    layers: list[int] | None = None
    resize: bool = False
    device: str = "cpu"
    target: str | None = None
    gsd_m: float | None = None


@dataclass(frozen=True)
class Subject:
    """What a family answers.

    Attributes:
        shards: of the training split.
        train, test: labelled samples, read as the functions below take them.
        encode: module -> its feature function; called with the module on `Ask.device`, in eval mode.
        baseline: (name, feature function) of statistics that need no encoder.
        origin: keys of all rows that say what was looked at, such as `inputs_record` gives.
        views: keys of the rows of encoders that say how they saw it: normalisation, size.
        tokens: module -> features of the cells of a grid over the sample, for labels of pixels; None where a model has no grid.
        cells: (name, (samples, (rows, columns)) -> the same of statistics that need no encoder).
    """

    shards: ShardSet
    train: LabelledSamples
    test: LabelledSamples
    encode: Callable[[nn.Module], FeatureFunction]
    baseline: tuple[str, FeatureFunction]
    origin: dict[str, Any]
    views: dict[str, Any] = field(default_factory=dict)
    tokens: Callable[[nn.Module], GridFunction] | None = None
    cells: tuple[str, Callable[[Any, tuple[int, int]], Tensor]] | None = None


def inputs_record(inputs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """For `Subject.origin`: band names and nominal metres a pixel of inputs by name, as a manifest's `images` describes them.

    {column: …} where there are several.
    """
    bands = {name: [band.get("name") for band in spec.get("bands") or ()] for name, spec in inputs.items()}
    gsd_m = {name: spec.get("gsd_m") for name, spec in inputs.items()}
    if len(inputs) == 1:
        return {"bands": next(iter(bands.values())), "gsd_m": next(iter(gsd_m.values()))}
    return {"bands": bands, "gsd_m": gsd_m}
