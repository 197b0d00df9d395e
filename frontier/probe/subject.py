"""The seam between a probe and a model family: what was asked, and how the family makes frozen features of labelled shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from frontier.errors import UserError

from .targets import labels_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from frontier.data.shards import ShardSet

    from .features import FeatureFunction, GridFunction, LabelledSamples

__all__ = ["Ask", "Subject", "inputs_record", "labels_of", "numbers_of", "unlike_training"]


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
        normalise: one of `frontier.probe.methods.NORMALISATIONS`.
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
    normalise: str = "run"


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
        notes: for the user, a line each.
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
    notes: tuple[str, ...] = ()


def inputs_record(inputs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """For `Subject.origin`: band names and nominal metres a pixel of inputs by name, as a manifest's `images` describes them.

    {column: …} where there are several.
    """
    bands = {name: [band.get("name") for band in spec.get("bands") or ()] for name, spec in inputs.items()}
    gsd_m = {name: spec.get("gsd_m") for name, spec in inputs.items()}
    if len(inputs) == 1:
        return {"bands": next(iter(bands.values())), "gsd_m": next(iter(gsd_m.values()))}
    return {"bands": bands, "gsd_m": gsd_m}


def numbers_of(
    normalise: str, shards: ShardSet, column: str, pick: Sequence[int] | None = None
) -> tuple[list[float], list[float]] | None:
    """What is subtracted from, and what divides, each band of `column` (of `pick`, where not all are taken), in stored units; None: the run's.

    Raises UserError where the shards do not say the statistics that are asked for.
    """
    if normalise == "run":
        return None
    if not shards.manifest["images"][column].get("statistics"):
        raise UserError(
            f"--normalise {normalise}: {shards.path} has no statistics of '{column}', for want of a train split: leave it out"
        )
    mean, std = (v if pick is None else v[list(pick)] for v in shards.statistics(column))
    if normalise == "data_2std":
        mean, std = mean - 2 * std, 4 * std
    return mean.tolist(), std.tolist()


def unlike_training(
    shards: ShardSet, column: str, bands: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> tuple[str, ...]:
    """A note where the run's numbers, for these places of bands, leave values that it cannot have been trained on: other units, as a rule."""
    if not shards.manifest["images"][column].get("statistics"):
        return ()
    own_mean, own_std = shards.statistics(column)
    for place, centre, spread in zip(bands, mean, std, strict=True):
        off, width = float(own_mean[place] - centre) / spread, float(own_std[place]) / spread
        if abs(off) > 4 or not 0.1 < width < 10:
            return (
                f"column '{column}' of {shards.path}: a band has mean {off:.3g} and deviation {width:.3g} after the run's normalisation, as if it were in "
                "other units than the training's: --normalise data takes the mean and deviation of these shards",
            )
    return ()
