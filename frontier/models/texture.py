"""Masked prediction of what a patch looks like, beside its pixels: for small images and small data.

Pixels reward exact copies of smooth detail; the statistics of a patch ask for its colour, contrast and texture, which is what
a frozen encoder is later read for. The targets of a patch, from images normalised to mean 0 and deviation 1 per band over the
data, are, for C bands:

* C means;
* C log(deviation + 0.03);
* 8 log(e_o + 0.01): e_o is the mean gradient magnitude of the bands' mean image in orientation o, each pixel shared linearly
  between its two nearest orientations (as in HOG, Dalal and Triggs 2005; predicting HOG of masked patches is MaskFeat,
  arXiv 2112.09133), and 4 more of the image averaged over 2 x 2 pixels (even patches only);
* 1 log(l + 0.01): l is the mean magnitude of the 4-neighbour Laplacian of the bands' mean image;
* the correlations of neighbouring bands (0-1, 1-2, ..., and last-0 from three bands on) inside the patch.

Fixed constants (measured on EuroSAT RGB at patch 8) bring the logarithms and correlations to about mean 0 and deviation 1, so
that the targets do not depend on the batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frontier.models.mae import MAE, MAEConfig, patch_statistics
from frontier.models.vit import patchify

FINE, COARSE = 8, 4
"""Orientations at full and at half resolution."""
DEVIATION, GRADIENT_FINE, GRADIENT_COARSE = (-1.5, 0.9), (-3.7, 0.7), (-3.2, 0.9)
LAPLACIAN, CORRELATION = (-1.4, 0.85), (0.75, 0.3)
"""(centre, scale) of each group of targets."""


def oriented_gradients(grey: Tensor, orientations: int, patch: int) -> Tensor:
    """grey [B, 1, H, W] -> [B, L, orientations]: mean gradient magnitude of each patch, 0 to 180 degrees in equal steps.

    Central differences, edges repeated; a pixel is shared linearly between its two nearest orientations.
    """
    batch, _, height, width = grey.shape
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")[:, 0]
    gx = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    gy = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    magnitude = (gx.square() + gy.square() + 1e-12).sqrt()
    place = torch.atan2(gy, gx).remainder(math.pi) * (orientations / math.pi)
    low = place.floor()
    share = place - low
    row = torch.arange(height, device=grey.device).div(patch, rounding_mode="floor") * (width // patch)
    cell = row[:, None] + torch.arange(width, device=grey.device).div(patch, rounding_mode="floor")
    bins = low.long().remainder_(orientations)
    sums = grey.new_zeros(batch, (height // patch) * (width // patch) * orientations)
    for index, part in ((bins, magnitude * (1 - share)), ((bins + 1).remainder_(orientations), magnitude * share)):
        sums.scatter_add_(1, (cell * orientations + index).flatten(1), part.flatten(1))
    return sums.view(batch, -1, orientations) / patch**2


def laplacian(grey: Tensor) -> Tensor:
    """grey [B, 1, H, W] -> |4 x - sum of the 4 neighbours|, edges repeated."""
    p = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    return (4 * grey - p[..., 1:-1, 2:] - p[..., 1:-1, :-2] - p[..., 2:, 1:-1] - p[..., :-2, 1:-1]).abs()


def texture_size(channels: int, patch: int) -> int:
    """Targets of a patch."""
    pairs = {1: 0, 2: 1}.get(channels, channels)
    return 2 * channels + FINE + (COARSE if patch % 2 == 0 else 0) + 1 + pairs


def texture_targets(images: Tensor, patch: int) -> Tensor:
    """images [B, C, H, W] normalised, float32 -> [B, L, texture_size(C, patch)], patches in row-major order."""
    batch, channels = images.shape[:2]
    pixels = patchify(images, patch).view(batch, -1, channels, patch * patch)
    grey = images.mean(1, keepdim=True)
    mean = pixels.mean(-1, keepdim=True)
    centred = pixels - mean
    variance = centred.square().mean(-1)
    deviation = (variance * (patch**2 / max(1, patch**2 - 1))).sqrt()

    def scaled(values: Tensor, group: tuple[float, float]) -> Tensor:
        return (values - group[0]) / group[1]

    parts = [
        mean.squeeze(-1),
        scaled((deviation + 0.03).log(), DEVIATION),
        scaled((oriented_gradients(grey, FINE, patch) + 0.01).log(), GRADIENT_FINE),
        scaled((F.avg_pool2d(laplacian(grey), patch).flatten(1).unsqueeze(-1) + 0.01).log(), LAPLACIAN),
    ]
    if patch % 2 == 0:
        coarse = oriented_gradients(F.avg_pool2d(grey, 2), COARSE, patch // 2)
        parts.append(scaled((coarse + 0.01).log(), GRADIENT_COARSE))
    if channels > 1:
        other = centred.roll(-1, dims=2)
        spread = variance + 1e-3
        correlation = (centred * other).mean(-1) / (spread * spread.roll(-1, dims=2)).sqrt()
        parts.append(scaled(correlation[..., : 1 if channels == 2 else channels], CORRELATION))
    return torch.cat(parts, dim=-1)


class TextureMAE(MAE):
    """An MAE that predicts pixels and patch statistics. Parameters are those of `MAE` and `texture.*`.

    loss = pixels + weight * statistics, each a squared error averaged over values, then over patches: masked ones share
    the weight 1 / (1 + visible), kept ones visible / (1 + visible).
    """

    def __init__(self, config: MAEConfig, weight: float, visible: float) -> None:
        super().__init__(config)
        self.weight, self.visible = weight, visible
        self.texture = nn.Linear(config.decoder.width, texture_size(config.channels, config.encoder.patch))

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
