"""On-device: stored integers -> normalised, augmented float images. Every choice is a function of (seed, epoch, sample)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from frontier.config.schema import AugmentConfig
from frontier.data.random import stream_keys, uniform

SYMMETRY_STREAM, CROP_STREAM, MASK_STREAM = 11, 12, 13


def normalise(images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """(images - mean) / std per band. images [B, C, H, W] in stored units of any type; mean, std [C]. float32."""
    if images.dtype == torch.uint16:
        images = images.to(torch.int32)
    return (images.to(torch.float32) - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear, antialiased where it shrinks; unchanged where the size fits."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def apply_symmetry(images: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """One of the 8 symmetries of the square per image: bit 0 mirrors columns, bit 1 rows, bit 2 transposes.

    images [B, C, S, S]; code [B] int64 in 0..7.
    """
    out = images.clone()
    for value in range(1, 8):
        chosen = (code == value).nonzero().squeeze(1)
        if len(chosen) == 0:
            continue
        part = images[chosen]
        if value & 4:
            part = part.transpose(-1, -2)
        flips = [dim for bit, dim in ((1, -1), (2, -2)) if value & bit]
        out[chosen] = part.flip(flips) if flips else part
    return out


def random_resized_crop(images: torch.Tensor, draws: torch.Tensor, scale: tuple[float, float]) -> torch.Tensor:
    """A crop of a random share of the area (`scale`) and aspect ratio 3/4..4/3, resampled to the old size.

    images [B, C, H, W]; draws [B, 4] uniform: area, log-ratio, place in x, place in y.
    """
    area = scale[0] + draws[:, 0] * (scale[1] - scale[0])
    ratio = torch.exp((draws[:, 1] * 2 - 1) * math.log(4 / 3))
    width = (area * ratio).sqrt().clamp(max=1.0)
    height = (area / ratio).sqrt().clamp(max=1.0)
    left = (draws[:, 2] * 2 - 1) * (1 - width)
    top = (draws[:, 3] * 2 - 1) * (1 - height)
    zero = torch.zeros_like(width)
    theta = torch.stack([torch.stack([width, zero, left], -1), torch.stack([zero, height, top], -1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def augment(images: torch.Tensor, members: torch.Tensor, config: AugmentConfig, seed: int) -> torch.Tensor:
    """The configured augmentations, in the order crop, symmetry. members [B, 2] = (epoch, sample)."""
    if config.crop_scale is not None:
        keys = stream_keys(seed, CROP_STREAM, members)
        images = random_resized_crop(images, uniform(keys, 4), config.crop_scale)
    if config.symmetries:
        draw = uniform(stream_keys(seed, SYMMETRY_STREAM, members), 1).squeeze(1)
        images = apply_symmetry(images, (draw * 8).to(torch.int64))
    return images


def mask_noise(members: torch.Tensor, tokens: int, seed: int) -> torch.Tensor:
    """[B, tokens] uniform noise that orders the patches: the lowest are kept."""
    return uniform(stream_keys(seed, MASK_STREAM, members), tokens)
