"""The seam between a probe and a model family: what was asked, and how the family makes frozen features of labelled shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from frontier.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from frontier.data.shards import ShardSet

    from .features import FeatureFunction, LabelledSamples


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
    """

    data: str
    splits: tuple[str, str]
    column: str | None = None
    source: str | None = None
    pooling: str = "mean"
    layers: list[int] | None = None
    resize: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Subject:
    """What a family answers.

    Attributes:
        shards: of the training split.
        train, test: labelled samples, read as the functions below take them.
        encode: module -> its feature function; called with the module on `Ask.device`, in eval mode.
        baseline: (name, feature function) of statistics that need no encoder.
        origin: keys of the rows that say what was encoded.
    """

    shards: ShardSet
    train: LabelledSamples
    test: LabelledSamples
    encode: Callable[[nn.Module], FeatureFunction]
    baseline: tuple[str, FeatureFunction]
    origin: dict[str, Any]


def labels_of(shards: ShardSet) -> NDArray[np.int64]:
    """Column `label`, one class number a sample, negative where unknown. Raises UserError where there is none."""
    if "label" not in shards.manifest["columns"] or shards.describe("label")[1].kind not in "iub":
        raise UserError(
            f"no labels in {shards.path}: a probe takes a column 'label' of class numbers; write the shards from a folder with a sub-folder a class"
        )
    return shards.column("label").astype(np.int64)
