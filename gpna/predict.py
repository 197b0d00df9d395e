"""A trained model on the samples of a split: predictions, or frozen features."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frontier.config.load import validate
from frontier.data.loader import Batch
from frontier.data.shards import ShardSet
from frontier.errors import UserError
from gpna.config import GPNASection, SourceSection
from gpna.descriptor import Sensor, is_own, recorded_sensor
from gpna.heads import Head
from gpna.model import GPNA, rows_of
from gpna.reader import GPNAReader
from gpna.sensors import InputSpec
from gpna.sources import OpenSource, open_source


@dataclass(frozen=True)
class Predicted:
    """Of one task: what its head predicts (in the units of the labels), and the labels as stored, samples in the split's order."""

    values: np.ndarray
    labels: np.ndarray


def open_split(
    config: Mapping[str, Any],
    name: str,
    split: str,
    shards: str | None = None,
    wanted: Collection[str] | None = None,
) -> OpenSource:
    """Source `name` of a resolved run config on another split, or on other `shards` with the same inputs; all of its samples.

    `wanted`: the tasks whose labels it must have (default: all of this source; none for shards without labels). Raises UserError where it
    has not the inputs and labels that the model was trained on.
    """
    checked = validate(dict(config))
    section: SourceSection = (checked.data.sources or {})[name]
    other = section.model_copy(
        update={"shards": shards or section.shards, "split": split, "samples": None, "samples_seed": 0}
    )
    tasks = {
        task_name: task
        for task_name, task in checked.model.tasks.items()
        if task.source == name and (wanted is None or task_name in wanted)
    }
    opened = open_source(name, other, tasks, check=False, sensors=lost_sensors(section))
    # As in training: its normalisation and its bands, whatever the statistics of these shards.
    return replace(opened, inputs=trained_inputs(section, opened))


def lost_sensors(section: SourceSection) -> dict[str, Sensor]:
    """By column, what the run recorded of the bands whose YAML file is not there any more."""
    found = {}
    for column, given in (section.inputs or {}).items():
        if given.sensor is not None and given.spec and is_own(given.sensor) and not Path(given.sensor).is_file():
            spec = InputSpec.from_dict(given.spec)
            found[column] = recorded_sensor(given.sensor, spec.bands, spec.gsd_m)
    return found


def trained_inputs(section: SourceSection, opened: OpenSource) -> dict[str, Any]:
    """The input specs that the run recorded, checked against what is there."""
    found = {}
    for column, given in (section.inputs or {}).items():
        spec, here = InputSpec.from_dict(given.spec or {}), opened.inputs[column]
        names = [[band.name for band in one.bands] for one in (spec, here)]
        if (spec.axes, spec.shape) != (here.axes, here.shape) or names[0] != names[1]:
            raise UserError(
                f"input '{column}' of {opened.shards.path} is {here.axes} {here.shape} of {', '.join(names[1])}; the model was trained on "
                f"{spec.axes} {spec.shape} of {', '.join(names[0])}"
            )
        found[column] = spec
    return found


def stored_batches(source: OpenSource, size: int) -> Iterator[Batch]:
    """All samples in the split's order, `size` at a time."""
    shards: ShardSet = source.shards
    for start in range(0, len(shards), size):
        stop = min(start + size, len(shards))
        columns = {name: torch.from_numpy(shards.read(name, start, stop)) for name in source.columns}
        members = torch.stack([torch.zeros(stop - start, dtype=torch.int64), torch.arange(start, stop)], 1)
        yield Batch(columns, members, source.columns[0])


def encoded(
    module: GPNA, section: GPNASection, source: OpenSource, device: torch.device, size: int
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """(latents [n, M, D] of the next samples, the module's arguments they were made of), without gradients."""
    reader = GPNAReader(section, {source.name: source}, device, seed=0, training=False)
    module = module.eval()
    for batch in stored_batches(source, size):
        inputs = reader.inputs(module, reader.place({source.name: batch}), 0, 1)
        with torch.inference_mode():
            yield module.encode(inputs["sources"], inputs["clusters"]), inputs


def predicted_batches(
    module: GPNA,
    config: Mapping[str, Any],
    source: OpenSource,
    device: torch.device | str = "cpu",
    size: int = 32,
    texts: Mapping[str, np.ndarray] | None = None,
) -> Iterator[dict[str, Predicted]]:
    """What `predict` returns, for the next `size` samples at a time.

    `texts`: by task of the head `text`, vectors [K, E] (through `gpna.heads.text.scaled`) to ask with instead of the trained ones.
    """
    section: GPNASection = validate(dict(config)).model
    device = torch.device(device)
    asked = {name: torch.from_numpy(vectors).to(device) for name, vectors in (texts or {}).items()}
    for latents, inputs in encoded(module, section, source, device, size):
        found = {}
        with torch.inference_mode():
            rows = rows_of(inputs["sources"])
            for name, outputs in module.outputs(latents, rows).items():
                if name not in source.targets:
                    continue
                head = module.heads[name]
                assert isinstance(head, Head)
                if name in asked:
                    outputs = head(latents[rows[source.name]], asked[name])
                target = inputs["labels"][name]["target"]
                found[name] = Predicted(head.predict(outputs).float().cpu().numpy(), target.cpu().numpy())
        yield found


def predict(
    module: GPNA, config: Mapping[str, Any], source: OpenSource, device: torch.device | str = "cpu", size: int = 32
) -> dict[str, Predicted]:
    """Every task of `source`: class probabilities [n, K], numbers [n, outputs], maps [n, K, rows, columns]."""
    parts = list(predicted_batches(module, config, source, device, size))
    return {
        name: Predicted(
            np.concatenate([part[name].values for part in parts]), np.concatenate([part[name].labels for part in parts])
        )
        for name in source.targets
    }


def features(
    module: GPNA, config: Mapping[str, Any], source: OpenSource, device: torch.device | str = "cpu", size: int = 32
) -> np.ndarray:
    """[n, D] float32: the mean over the latents of each sample."""
    section: GPNASection = validate(dict(config)).model
    found = [
        latents.float().mean(1).cpu().numpy()
        for latents, _ in encoded(module, section, source, torch.device(device), size)
    ]
    return np.concatenate(found)
