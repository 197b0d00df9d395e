"""What a trained model makes of hidden patches, put back into images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from frontier.models.layers import gather_rows
from frontier.models.mae import patch_statistics
from frontier.models.vit import patchify, unpatchify
from scale_alibi.decoder import from_cells, hidden_error, known_cells, known_patches, to_cells
from scale_alibi.encoders import Masked
from scale_alibi.model import ScaleALiBi
from scale_alibi.sizes import ScaleALiBiConfig


def predict(model: ScaleALiBi, masked: Masked) -> dict[str, Tensor]:
    """Patches of every sensor [B, L, P] float32, normalised as `scale_alibi.decoder.targets`, in order of place."""
    assert model.decoder is not None
    first = next(iter(model.config.sensors))
    return {n: p.float() for n, p in model.decoder(model.join(masked.streams), masked.order[first]).items()}


def restore(
    config: ScaleALiBiConfig,
    patches: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    known: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The inverse of `scale_alibi.decoder.targets` where values are known: normalised `values` on the mean and deviation of the true
    `patches`, both [B, L, P] by sensor.
    """
    known = known or {}
    if config.norm_scope == "modality":
        found = {name: patch_statistics(true.float(), known.get(name)) for name, true in patches.items()}
        return {name: values[name] * deviation + mean for name, (mean, deviation) in found.items()}
    cells = torch.cat([to_cells(true.float(), config.ratio(name)) for name, true in patches.items()], dim=-1)
    mean, deviation = patch_statistics(cells, known_cells(config, patches, known))
    return {n: from_cells(to_cells(v, config.ratio(n)) * deviation + mean, config.ratio(n)) for n, v in values.items()}


def reconstruct(
    model: ScaleALiBi,
    images: Mapping[str, Tensor],
    gsd: Mapping[str, Tensor],
    noise: Mapping[str, Tensor],
    known: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Arguments as of `ScaleALiBi.forward` -> by sensor (images [B, C, S, S] with hidden patches replaced by the prediction, bool [B, L] which are hidden).

    Predictions are put back on the mean and deviation of the true target: brightness and contrast are given, structure is
    predicted. With `norm_scope="joint"` they are those of all sensors' values of a cell.
    """
    config = model.config
    masked = model.encode_masked(images, gsd, noise)
    patches = {name: patchify(images[name], config.patch) for name in config.sensors}
    filled = restore(config, patches, predict(model, masked), known_patches(config, images, known))
    hidden, out = {}, {}
    for name, true in patches.items():
        gone = torch.ones(true.shape[:2], dtype=torch.bool, device=true.device)
        hidden[name] = gone.scatter_(1, masked.order[name][:, : config.kept(name)], False)
        both = torch.where(hidden[name][..., None], filled[name], true.float())
        out[name] = unpatchify(both, config.patch, config.sensors[name].channels)
    return out, hidden


def squared_errors(
    config: ScaleALiBiConfig, order: Tensor, name: str, prediction: Tensor, target: Tensor, known: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Of each sample [B], the mean squared error over hidden patches of `prediction` [B, L, P], and of the mean over the patches that
    the encoder saw of `target` [B, L, P], which knows the image and nothing of the place. `known` [B, L, P]: the values that count.
    """
    kept, hidden = order[:, : config.kept(name)], order[:, config.kept(name) :]
    wanted, seen = gather_rows(target, hidden), gather_rows(target, kept)
    if known is None:
        there, plain = None, seen.mean(1, keepdim=True)
    else:
        there = gather_rows(known, hidden)
        plain = seen.sum(1, keepdim=True) / gather_rows(known, kept).sum(1, keepdim=True).clamp(min=1)
    return hidden_error(gather_rows(prediction, hidden), wanted, there), hidden_error(plain, wanted, there)
