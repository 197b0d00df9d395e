"""Masked prediction of what a patch looks like, beside its pixels: for small images and small data.

Pixels reward exact copies of smooth detail; the statistics of a patch ask for its colour, contrast and direction of texture,
which is what a frozen encoder is later read for. Each patch has 2 C + 4 targets, from images normalised to mean 0 and
deviation 1 per band over the data:

* the mean of every band;
* log(deviation + 0.03) of every band;
* log(e_o + 0.01) for four orientations o: e_o is the patch's mean gradient magnitude of the bands' mean image, shared
  linearly between the two nearest of the orientations 0, 45, 90, 135 degrees (as in HOG, Dalal and Triggs 2005; predicting
  HOG of masked patches is MaskFeat, arXiv 2112.09133).

The logarithms are brought to about mean 0 and deviation 1 by fixed constants (measured on EuroSAT RGB at patch 8), so that
targets do not depend on the batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frontier.models.mae import MAE, MAEConfig, patch_statistics
from frontier.models.vit import patchify

ORIENTATIONS = 4
DEVIATION_CENTRE, DEVIATION_SCALE = -1.5, 0.9
GRADIENT_CENTRE, GRADIENT_SCALE = -3.25, 0.8


def oriented_gradients(grey: Tensor) -> Tensor:
    """grey [B, 1, H, W] -> [B, 4, H, W]: gradient magnitude by orientation, central differences, edges repeated."""
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")[:, 0]
    gx = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    gy = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    magnitude = (gx.square() + gy.square() + 1e-12).sqrt()
    place = torch.atan2(gy, gx).remainder(math.pi) / math.pi * ORIENTATIONS
    centres = torch.arange(ORIENTATIONS, device=grey.device).view(1, -1, 1, 1)
    distance = (place.unsqueeze(1) - centres).abs()
    distance = torch.minimum(distance, ORIENTATIONS - distance)
    return magnitude.unsqueeze(1) * (1 - distance).clamp(min=0)


def texture_targets(images: Tensor, patch: int) -> Tensor:
    """images [B, C, H, W] normalised, float32 -> [B, L, 2 C + 4], patches in row-major order."""
    batch, channels = images.shape[:2]
    pixels = patchify(images, patch).view(batch, -1, channels, patch * patch)
    gradients = F.avg_pool2d(oriented_gradients(images.mean(1, keepdim=True)), patch)
    return torch.cat(
        [
            pixels.mean(-1),
            ((pixels.std(-1) + 0.03).log() - DEVIATION_CENTRE) / DEVIATION_SCALE,
            ((gradients.flatten(2).transpose(1, 2) + 0.01).log() - GRADIENT_CENTRE) / GRADIENT_SCALE,
        ],
        dim=-1,
    )


class TextureMAE(MAE):
    """An MAE that predicts pixels and patch statistics. Parameters are those of `MAE` and `texture.*`.

    loss = pixels + weight * statistics, each a squared error averaged over values, then over patches: masked ones share
    the weight 1 / (1 + visible), kept ones visible / (1 + visible).
    """

    def __init__(self, config: MAEConfig, weight: float, visible: float) -> None:
        super().__init__(config)
        self.weight, self.visible = weight, visible
        self.texture = nn.Linear(config.decoder.width, 2 * config.channels + ORIENTATIONS)

    def forward(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """As `MAE.forward`; returns "loss" and its parts "pixels" and "texture"."""
        config = self.config
        patches, ids = self._shuffled(images, noise)
        kept = config.kept
        latent = self.encoder(patches[:, :kept], ids[:, :kept])
        first = 0 if self.visible else kept
        tokens = self.decoder.tokens(latent, ids, 1 + first)
        target = patches[:, first:].float()
        if config.norm_pix_loss:
            mean, deviation = patch_statistics(target)
            target = (target - mean) / deviation
        texture = texture_targets(images, config.encoder.patch)
        texture = torch.gather(texture, 1, ids[:, first:, None].expand(-1, -1, texture.shape[-1]))
        pixels = self._average(self.decoder.pred(tokens), target)
        statistics = self._average(self.texture(tokens), texture)
        return {"loss": pixels + self.weight * statistics, "pixels": pixels, "texture": statistics}

    def _average(self, prediction: Tensor, target: Tensor) -> Tensor:
        error = (prediction.float() - target).square().mean(-1)
        if not self.visible:
            return error.mean()
        seen, hidden = error[:, : self.config.kept].mean(), error[:, self.config.kept :].mean()
        return (hidden + self.visible * seen) / (1 + self.visible)
