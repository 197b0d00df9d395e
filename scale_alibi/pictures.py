"""Pictures of a trained model: hidden patches of every sensor, and what the model says is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from frontier.data.manifest import split_to_show
from frontier.errors import UserError
from frontier.models.panels import PanelRow, Panels
from scale_alibi.held_out import HeldOut, open_held_out
from scale_alibi.model import ScaleALiBi
from scale_alibi.reconstruct import reconstruct
from scale_alibi.sizes import ScaleALiBiConfig

SAMPLES = 4
SEED = 0
"""Of the hidden patches."""
COLUMNS = ("original", "shown", "predicted", "predicted + shown")


def pictures(module: nn.Module, config: Mapping[str, Any], shards: str | None = None) -> list[Panels]:
    """Of a resolved run's trained module: a group for each sensor, the same samples in all. `shards` replaces the run's.

    Raises UserError where the run reconstructs nothing, or shards are missing.
    """
    model = cast(ScaleALiBi, module)
    if model.decoder is None:
        raise UserError("model.weights.reconstruction is 0: the run reconstructs nothing")
    where = shards or config["data"]["shards"]
    if where is None:
        raise UserError("the config names no data.shards")
    held_out = open_held_out(config, split_to_show(where), shards)
    total = len(held_out.shards)
    batch = held_out.batch(np.unique(np.linspace(0, total - 1, SAMPLES).round().astype(int)))
    reader = held_out.reader("cpu", SEED)
    given = reader.inputs(model, reader.place({"": batch}), 0, 1)
    with torch.inference_mode():
        predicted, hidden = reconstruct(model, **given)
    titles = [f"{held_out.shards.split} sample {n:,}" for n in batch.members[:, 1].tolist()]
    found = []
    for name, images in given["images"].items():
        there = given["known"].get(name, torch.ones(1, dtype=torch.bool))
        gone = _pixels(hidden[name], model.config.patch, images)
        shapes = (
            torch.where(there, images, torch.nan),
            torch.where(there & ~gone, images, torch.nan),
            torch.where(gone, predicted[name], torch.nan),
            torch.where(there | gone, predicted[name], torch.nan),
        )
        each = [_stored_units(held_out, name, values) for values in shapes]
        rows = [PanelRow(title, [values[i] for values in each]) for i, title in enumerate(titles)]
        caption = f"{len(titles)} of {total:,} samples of the {held_out.shards.split} split, evenly spread. {_caption(model.config, name)}"
        found.append(Panels(f"Hidden patches of {name}", COLUMNS, rows, caption, _bands(held_out, name)))
    return found


def _pixels(hidden: Tensor, patch: int, images: Tensor) -> Tensor:
    """Patches [B, L] -> pixels [B, 1, S, S]."""
    grid = images.shape[-1] // patch
    return hidden.view(-1, 1, grid, grid).repeat_interleave(patch, 2).repeat_interleave(patch, 3)


def _stored_units(held_out: HeldOut, name: str, values: Tensor) -> NDArray[np.float32]:
    mean, std = (
        torch.tensor(given).view(-1, 1, 1) for given in (held_out.sensors[name].mean, held_out.sensors[name].std)
    )
    return (values * std + mean).numpy()


def _bands(held_out: HeldOut, name: str) -> list[dict[str, Any]]:
    """Manifest entries of those that the model takes, in its order."""
    sensor = held_out.sensors[name]
    stored = {band["name"]: band for band in held_out.shards.manifest["images"][sensor.column]["bands"]}
    return [stored[band] for band in sensor.bands or stored]


def _caption(config: ScaleALiBiConfig, name: str) -> str:
    total = config.grid(name) ** 2
    given = (
        "their own mean and deviation"
        if config.norm_scope == "modality"
        else "the mean and deviation of all sensors' values of a cell"
    )
    return (
        f"{total - config.kept(name)} of {total} patches of {config.patch} x {config.patch} pixels are hidden at random (seed {SEED}), of each sensor others; "
        f"grey: nothing. The model predicts patches normalised by {given}; for display they are put back on the true ones: brightness and contrast are "
        "given, structure is predicted."
    )
