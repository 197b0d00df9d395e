"""Frozen features for `frontier probe`: the latents of labelled shards that have the inputs of one of the run's sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from frontier.config.load import validate
from frontier.data.loader import Batch
from frontier.errors import UserError
from frontier.probe.baselines import band_statistics, colour_texture
from frontier.probe.features import FeatureFunction, LabelledSamples
from frontier.probe.images import stored_images
from frontier.probe.subject import Ask, Subject, inputs_record, labels_of
from gpna.model import GPNA
from gpna.predict import open_split
from gpna.reader import GPNAReader, picked
from gpna.sources import OpenSource
from gpna.tokenizer import arranged


@dataclass(frozen=True)
class Stored:
    """Columns of some samples as stored; a mask takes some of them."""

    columns: dict[str, Tensor]

    def __getitem__(self, chosen: np.ndarray) -> Stored:
        rows = torch.from_numpy(np.flatnonzero(chosen))
        return Stored({name: values[rows] for name, values in self.columns.items()})

    def batch(self) -> Batch:
        first = next(iter(self.columns))
        return Batch(self.columns, torch.zeros(len(self.columns[first]), 2, dtype=torch.int64), first)


def features(config: Mapping[str, Any], ask: Ask) -> Subject:
    """See `frontier.probe.subject.Subject`. Raises UserError for words without a meaning here and for other inputs than the run's."""
    if ask.gsd_m is not None:
        raise UserError("--gsd-m: what this family knows of ground sample distance is in the shards: leave it out")
    if ask.normalise != "run":
        raise UserError(
            f"--normalise {ask.normalise}: a gpna model reads its inputs by its own statistics: leave it out"
        )
    if ask.column is not None:
        raise UserError(f"--column {ask.column}: a gpna model reads all inputs of a source: name that by --source")
    if ask.resize:
        raise UserError(
            "--resize: a gpna model takes the sizes it was trained on: leave it out, or write the shards so"
        )
    if ask.pooling == "cls":
        raise UserError("--pooling cls: a gpna model has latents and no [cls] token: choose mean or mean_std")
    name = _source(config, ask.source)
    train, test = (open_split(config, name, split, ask.data, wanted=()) for split in ask.splits)
    section = validate(dict(config)).model

    def reader(device: str) -> GPNAReader:
        return GPNAReader(section, {name: train}, torch.device(device), seed=0, training=False)

    def encode(module: nn.Module) -> FeatureFunction:
        model, reads = cast(GPNA, module), reader(ask.device)

        def function(stored: Stored) -> np.ndarray:
            with torch.inference_mode():
                inputs = reads.inputs(model, reads.place({name: stored.batch()}), 0, 1)
                found = model.encode_layers(inputs["sources"], inputs["clusters"], ask.layers)
                return torch.cat([pool(latents, ask.pooling) for latents in found], 1).cpu().numpy()

        return function

    specs = {
        column: {"bands": [{"name": band.name} for band in spec.bands], "gsd_m": spec.gsd_m}
        for column, spec in train.inputs.items()
    }
    origin = {"source": name, **inputs_record(specs)}
    views = {"normalisation": "mean and deviation of the run"}
    fits, measures = (LabelledSamples(_read(source), labels_of(source.shards, ask.target)) for source in (train, test))
    return Subject(train.shards, fits, measures, encode, baseline(train, reader("cpu")), origin, views)


def pool(latents: Tensor, pooling: str) -> Tensor:
    """Latents [B, M, D] -> their mean [B, D], or mean and (population) standard deviation [B, 2 D]; in float32."""
    latents = latents.float()
    mean = latents.mean(1)
    return mean if pooling == "mean" else torch.cat([mean, latents.std(1, correction=0)], 1)


def baseline(source: OpenSource, reader: GPNAReader) -> tuple[str, FeatureFunction]:
    """Colour and texture where the only input is one image, else statistics of every band of every input."""
    specs = source.inputs
    if len(specs) == 1:
        ((column, spec),) = specs.items()
        if spec.axes == "CHW" and min(spec.sides) >= 3:
            _, images = stored_images(source.shards, column, list(spec.mean or ()))
            return "colour_texture", lambda stored: colour_texture(images(picked(source, stored.columns)))

    def statistics(stored: Stored) -> np.ndarray:
        placed = reader.place({source.name: stored.batch()})[source.name]
        found = []
        for column, spec in specs.items():
            values, there = placed.values[column], placed.pixels[column]
            if there is None and reader.normalisers[source.name][column].there(stored.columns) is not None:
                there = torch.ones_like(values, dtype=torch.bool)
            # [B, bands, all that a band has].
            flat = [arranged(x, spec).transpose(1, 2).flatten(2).numpy() for x in (values, there) if x is not None]
            found.append(band_statistics(*flat))
        return np.concatenate(found, 1)

    return "band_statistics", statistics


def _source(config: Mapping[str, Any], wanted: str | None) -> str:
    known = list(config["data"]["sources"])
    if wanted is None and len(known) > 1:
        raise UserError(f"the run has the sources {', '.join(known)}: say by --source whose inputs the shards have")
    if wanted is not None and wanted not in known:
        raise UserError(f"--source {wanted}: the run has {', '.join(known)}")
    return wanted or known[0]


def _read(source: OpenSource) -> Any:
    def read(start: int, stop: int) -> Stored:
        return Stored({name: torch.from_numpy(source.shards.read(name, start, stop)) for name in source.columns})

    return read
