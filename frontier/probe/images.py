"""Probing models of one image a sample: the answer for every family that gives none of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from frontier.data.shards import ShardSet
from frontier.data.transforms import Normaliser
from frontier.errors import UserError

from .baselines import cell_statistics, colour_texture
from .features import FeatureFunction, GridFunction, LabelledSamples, encoder_features, encoder_grid
from .methods import NORMALISATIONS
from .subject import Ask, Subject, inputs_record, labels_of, numbers_of, unlike_training


def image_subject(config: Mapping[str, Any], ask: Ask) -> Subject:
    """See `Subject`, of a resolved run config. Raises UserError where the shards do not suit the encoder."""
    if ask.source is not None:
        raise UserError(f"--source {ask.source}: this run has one stream of images: leave it out")
    if ask.gsd_m is not None:
        raise UserError("--gsd-m: models of this family know no ground sample distance: leave it out")
    data = config["data"]
    column = ask.column or data["column"]
    train, test = (ShardSet(ask.data, split=split) for split in ask.splits)
    _check(train, column, data, ask.resize)

    size = data["image_size"]
    spec = train.manifest["images"][column]
    mean, std = numbers_of(ask.normalise, train, column) or (data["mean"], data["std"])

    def looks(module: nn.Module) -> Any:
        if not hasattr(module, "encode") or not (ask.layers is None or hasattr(module, "encode_layers")):
            raise UserError(f"{type(module).__name__} models give no tokens of an image: they cannot be probed")
        return module

    def encode(module: nn.Module) -> FeatureFunction:
        return encoder_features(looks(module), mean, std, size, ask.pooling, ask.layers, ask.device)

    def tokens(module: nn.Module) -> GridFunction:
        return encoder_grid(looks(module), mean, std, size, ask.layers, ask.device)

    fits, measures = (labelled_images(shards, column, mean, ask.target) for shards in (train, test))
    return Subject(
        train,
        fits,
        measures,
        encode,
        ("colour_texture", colour_texture),
        {"column": column, **inputs_record({column: spec})},
        {"normalisation": NORMALISATIONS[ask.normalise], **_size_record(spec, size)},
        tokens,
        ("cell_statistics", cell_statistics),
        unlike_training(train, column, range(len(mean)), mean, std) if ask.normalise == "run" else (),
    )


def _size_record(spec: Mapping[str, Any], size: int) -> dict[str, Any]:
    """How an encoder sees images of a column: {"resize": [from, to] or None, "gsd_seen_m": nominal metres a pixel after that}."""
    own, gsd_m = spec["shape"][1], spec.get("gsd_m")
    return {"resize": None if own == size else [own, size], "gsd_seen_m": gsd_m and gsd_m * own / size}


def labelled_images(shards: ShardSet, column: str, mean: Sequence[float], target: str | None = None) -> LabelledSamples:
    """Of a column of images, in stored units, with the labels of `target` (`targets.labels_of`)."""
    columns, images = stored_images(shards, column, mean)

    def read(start: int, stop: int) -> NDArray[Any]:
        return images({name: torch.from_numpy(shards.read(name, start, stop)) for name in columns})

    return LabelledSamples(read=read, labels=labels_of(shards, target))


def stored_images(
    shards: ShardSet, column: str, mean: Sequence[float]
) -> tuple[tuple[str, ...], Callable[[Mapping[str, Tensor]], NDArray[Any]]]:
    """(columns to read, their batches -> images [B, C, H, W] in stored units).

    What is missing in an image is `mean`, 0 to an encoder as in training, for every encoder and baseline alike.
    """
    centred = Normaliser.of(shards, column, mean=list(mean), std=[1.0] * len(mean))
    whole = centred.mask is None and centred.nodata is None and shards.describe(column)[1].kind in "iu"
    if whole:
        return (column,), lambda stored: stored[column].numpy()
    return tuple(centred.columns), lambda stored: (centred(stored) + centred.mean.view(-1, 1, 1)).numpy()


def _check(shards: ShardSet, column: str, data: Mapping[str, Any], resize: bool) -> None:
    if column not in shards.image_columns:
        known = " or ".join(shards.image_columns)
        raise UserError(f"no image column '{column}' in {shards.path}: choose --column {known}")
    if shards.manifest["images"][column]["axes"] != "CHW":
        raise UserError(
            f"column '{column}' of {shards.path} is no image of bands, rows and columns: choose another --column"
        )
    channels, height, width = shards.manifest["images"][column]["shape"]
    bands, size = len(data["mean"]), data["image_size"]
    if channels != bands:
        raise UserError(
            f"{channels} bands in column '{column}' of {shards.path}, the encoder was trained on {bands}: "
            "choose another --column or shards with the same bands"
        )
    images = f"images of {height} x {width} in {shards.path}"
    if height != width:
        raise UserError(f"{images} are not square: write the shards with --fit")
    if height != size and not resize:
        raise UserError(
            f"{images}, the encoder was trained on {size} x {size}: add --resize, or write them in that size"
        )
