"""What a trained model makes of hidden patches, put back into images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from frontier.models.layers import gather_rows
from frontier.models.mae import patch_statistics
from frontier.models.vit import patchify, unpatchify
from scale_alibi.decoder import from_cells, to_cells
from scale_alibi.encoders import Masked
from scale_alibi.model import ScaleALiBi
from scale_alibi.sizes import ScaleALiBiConfig


def predict(model: ScaleALiBi, masked: Masked) -> dict[str, Tensor]:
    """Patches of every sensor [B, L, P] float32, normalised as `scale_alibi.decoder.targets`, in order of place."""
    assert model.decoder is not None
    first = next(iter(model.config.sensors))
    return {n: p.float() for n, p in model.decoder(model.join(masked.streams), masked.order[first]).items()}


def restore(config: ScaleALiBiConfig, patches: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `scale_alibi.decoder.targets`: normalised `values` on the mean and deviation of the true `patches`, both
    [B, L, P] by sensor.
    """
    if config.norm_scope == "modality":
        found = {name: patch_statistics(true.float()) for name, true in patches.items()}
        return {name: values[name] * deviation + mean for name, (mean, deviation) in found.items()}
    cells = torch.cat([to_cells(true.float(), config.ratio(name)) for name, true in patches.items()], dim=-1)
    mean, deviation = patch_statistics(cells)
    return {n: from_cells(to_cells(v, config.ratio(n)) * deviation + mean, config.ratio(n)) for n, v in values.items()}


def reconstruct(
    model: ScaleALiBi, images: Mapping[str, Tensor], gsd: Mapping[str, Tensor], noise: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """-> by sensor (images [B, C, S, S] with hidden patches replaced by the prediction, bool [B, L] which are hidden).

    Predictions are put back on the mean and deviation of the true target: brightness and contrast are given, structure is
    predicted. With `norm_scope="joint"` they are those of all sensors' values of a cell.
    """
    config = model.config
    masked = model.encode_masked(images, gsd, noise)
    patches = {name: patchify(images[name], config.patch) for name in config.sensors}
    filled = restore(config, patches, predict(model, masked))
    hidden, out = {}, {}
    for name, true in patches.items():
        gone = torch.ones(true.shape[:2], dtype=torch.bool, device=true.device)
        hidden[name] = gone.scatter_(1, masked.order[name][:, : config.kept(name)], False)
        both = torch.where(hidden[name][..., None], filled[name], true.float())
        out[name] = unpatchify(both, config.patch, config.sensors[name].channels)
    return out, hidden


def squared_errors(
    config: ScaleALiBiConfig, order: Tensor, name: str, prediction: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Of each sample [B], the mean squared error over hidden patches of `prediction` [B, L, P], and of the mean over the patches that
    the encoder saw of `target` [B, L, P], which knows the image and nothing of the place.
    """
    kept, hidden = order[:, : config.kept(name)], order[:, config.kept(name) :]
    wanted = gather_rows(target, hidden)
    plain = gather_rows(target, kept).mean(1, keepdim=True)
    guess = gather_rows(prediction, hidden)
    return (guess - wanted).square().mean((1, 2)), (plain - wanted).square().mean((1, 2))
