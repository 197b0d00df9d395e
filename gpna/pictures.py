"""Pictures of what a trained model does: maps of its segmentation tasks, and hidden tokens of its first image input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from frontier.config.load import validate
from frontier.data.loader import Batch
from frontier.data.manifest import split_to_show
from frontier.errors import UserError
from frontier.models.panels import PanelRow, Panels
from gpna.config import GPNASection
from gpna.head_sections import SegmentationTask
from gpna.heads import Queries
from gpna.model import GPNA, key, rows_of
from gpna.predict import open_split
from gpna.reader import GPNAReader, Placed
from gpna.sensors import InputSpec
from gpna.sources import OpenSource
from gpna.tokenizer import arranged, over_values, patches

SAMPLES = 4
SEED = 0
"""Of the hidden tokens."""


def pictures(module: nn.Module, config: Mapping[str, Any], shards: str | None = None) -> list[Panels]:
    """Of a resolved run's trained module. `shards` replaces the folder of its only source.

    Raises UserError where there is nothing to show, or shards are missing.
    """
    model, section = cast(GPNA, module), validate(dict(config)).model
    names = list(config["data"]["sources"])
    if shards is not None and len(names) > 1:
        raise UserError(f"--data: the run has the sources {', '.join(names)}: pictures come from where they are")
    found: list[Panels] = []
    maps = [task for task, given in section.tasks.items() if isinstance(given, SegmentationTask)]
    for name in names:
        source = open_split(
            config, name, split_to_show(shards or config["data"]["sources"][name]["shards"]), shards, maps
        )
        image = next((column for column, spec in source.inputs.items() if spec.form == "image"), None)
        if image is None:
            continue
        chosen = np.unique(np.linspace(0, len(source.shards) - 1, SAMPLES).round().astype(int))
        columns = {column: torch.from_numpy(source.shards.take(column, chosen)) for column in source.columns}
        members = torch.stack([torch.zeros(len(chosen), dtype=torch.int64), torch.from_numpy(chosen)], 1)
        batch = Batch(columns, members, source.columns[0])
        found += _maps(model, section, source, batch, image)
        if section.masked is not None:
            found.append(_hidden(model, section, source, batch, image))
    if not found:
        raise UserError("no source has images, or the run has neither a segmentation task nor model.masked")
    return found


def _titles(source: OpenSource, batch: Batch) -> list[str]:
    return [f"{source.shards.split} sample {n:,}" for n in batch.members[:, 1].tolist()]


def _first_date(values: Tensor, spec: InputSpec) -> np.ndarray:
    """[B, *axes] normalised -> [B, bands, H, W] of the first date in stored units."""
    shape = (-1, 1, 1)
    mean, std = (torch.tensor(given, dtype=torch.float32).view(shape) for given in (spec.mean, spec.std))
    return (arranged(values.float().cpu(), spec)[:, 0] * std + mean).numpy()


def _where(source: OpenSource, image: str) -> str:
    spec = source.inputs[image]
    dates = "" if spec.steps == 1 else f", the first of {spec.steps} dates"
    return f"{len(source.shards):,} samples of the {source.shards.split} split of source {source.name}, evenly spread; input {image}{dates}."


def _maps(model: GPNA, section: GPNASection, source: OpenSource, batch: Batch, image: str) -> list[Panels]:
    if not source.targets:
        return []
    reader = GPNAReader(section, {source.name: source}, torch.device("cpu"), SEED, training=False)
    placed = reader.place({source.name: batch})
    with torch.inference_mode():
        inputs = reader.inputs(model, placed, 0, 1)
        latents = model.encode(inputs["sources"], inputs["clusters"])
        outputs = model.outputs(latents, rows_of(inputs["sources"]))
    images = _first_date(placed[source.name].values[image], source.inputs[image])
    found = []
    for name in source.targets:
        head: Any = model.heads[name]
        predicted = head.predict(outputs[name]).argmax(1).numpy()
        labels = placed[source.name].labels[name].numpy()
        rows = [
            PanelRow(title, [picture, label.astype(np.int64), guess])
            for title, picture, label, guess in zip(_titles(source, batch), images, labels, predicted, strict=True)
        ]
        caption = f"{_where(source, image)} Grey in the labels: unknown."
        found.append(Panels(f"Task {name}", ("image", "label", "prediction"), rows, caption, _bands(source, image)))
    return found


def _hidden(model: GPNA, section: GPNASection, source: OpenSource, batch: Batch, image: str) -> Panels:
    """What is hidden of an input, and what the model says it is."""
    assert section.masked is not None and model.masked is not None
    spec = source.inputs[image]
    everything = section.masked.model_copy(update={"queries": max(s.tokens for s in source.inputs.values())})
    whole_maps = {name: _all_pixels(task) for name, task in section.tasks.items()}
    asking = section.model_copy(update={"masked": everything, "tasks": whole_maps})
    still = replace(source, section=source.section.model_copy(update={"symmetries": False}))
    reader = GPNAReader(asking, {source.name: still}, torch.device("cpu"), SEED)
    placed = reader.place({source.name: batch})
    with torch.inference_mode():
        inputs = reader.inputs(model, placed, 0, 1)
        latents = model.encode(inputs["sources"], inputs["clusters"])
        given = inputs["sources"][source.name]
        (asked,) = (one for one in inputs["masked"] if one["column"] == image)
        name = key(source.name, image)
        encodings = model.tokenizer.queries(name, given["place"], given["time"][image], asked["tokens"])
        (guess,) = model.masked.predict(model.masked(latents, [Queries(encodings, spec.patch_values)]))
    return _panels(section, source, placed[source.name], batch, image, asked, guess)


def _panels(
    section: GPNASection,
    source: OpenSource,
    whole: Placed,
    batch: Batch,
    image: str,
    asked: Mapping[str, Any],
    guess: Tensor,
) -> Panels:
    assert section.masked is not None
    spec, known = source.inputs[image], asked["known"]
    if section.masked.norm_pix and spec.patch_values > 1:
        # On the true footprint's mean and deviation: contrast is given, structure is predicted.
        count = known.sum(-1, keepdim=True).clamp(min=1)
        mean = (asked["values"] * known).sum(-1, keepdim=True) / count
        spread = (((asked["values"] - mean) * known).square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
        guess = guess * spread + mean
    true = whole.values[image].float()
    cut = patches(true, spec)
    index = asked["tokens"]
    wanted = known.any(-1)
    hide = torch.zeros(cut.shape[:2], dtype=torch.bool)
    hide.scatter_(1, index, wanted)
    filled = cut.clone().scatter_(
        1,
        index[..., None].expand_as(guess),
        torch.where(wanted[..., None], guess, cut.gather(1, index[..., None].expand_as(guess))),
    )
    hidden = over_values(hide.float(), spec) > 0
    pixels = whole.pixels[image]
    there = torch.ones_like(true, dtype=torch.bool) if pixels is None else pixels
    predicted = joined(filled, spec)
    shapes = {
        "original": torch.where(there, true, torch.nan),
        "shown": torch.where(there & ~hidden, true, torch.nan),
        "predicted": torch.where(hidden, predicted, torch.nan),
        "predicted + shown": torch.where(there | hidden, torch.where(hidden, predicted, true), torch.nan),
    }
    each = [_first_date(values, spec) for values in shapes.values()]
    rows = [PanelRow(title, [values[i] for values in each]) for i, title in enumerate(_titles(source, batch))]
    caption = (
        f"{_where(source, image)} {100 * section.masked.ratio:.0f} % of the tokens of every input are hidden at random (seed {SEED}); grey: "
        "nothing, in one band or all."
    )
    if section.masked.norm_pix:
        caption += " The model predicts footprints normalised by their own mean and deviation; for display they are put back on the true ones."
    return Panels(f"Hidden tokens of {source.name}", tuple(shapes), rows, caption, _bands(source, image))


def joined(cut: Tensor, spec: InputSpec) -> Tensor:
    """The inverse of `patches`: [B, N, patch_values] -> [B, *axes]."""
    steps, rows, columns, bands = spec.grid
    (tall, broad), (high, wide) = spec.cell, spec.sides
    x = cut.view(-1, steps, rows, columns, bands, tall, broad).permute(0, 1, 4, 2, 5, 3, 6)
    x = x.reshape(-1, steps, bands, rows * tall, columns * broad)[..., :high, :wide]
    sizes = {"T": steps, "C": bands, "H": high, "W": wide, "K": wide}
    there = [letter for letter in ("TCK" if spec.form == "line" else "TCHW") if letter in spec.axes]
    x = x.reshape(-1, *(sizes[letter] for letter in there))
    return x.permute(0, *(1 + there.index(letter) for letter in spec.axes))


def _all_pixels(task: Any) -> Any:
    return task.model_copy(update={"train_pixels": None}) if hasattr(task, "train_pixels") else task


def _bands(source: OpenSource, image: str) -> list[dict[str, Any]]:
    return list(source.shards.manifest["images"][image]["bands"])
