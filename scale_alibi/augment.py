"""Augmentation that keeps the geometry true: what moves on the ground moves for all sensors of a sample, and GSD follows.

A sample has one window of the ground and one symmetry of the square, the same for all its sensors. The window is cut from each sensor's image as
stored and resampled in one step to the pixels that its encoder sees (averaged where these are the coarser ones), so GSD along each axis is
that of the stored image, times stored over seen pixels, times the window's share of that side; a symmetry that exchanges rows and
columns exchanges both. Places of patches, counted from the window's corner in metres, are then true for all sensors: exactly, and to a
twentieth of a pixel where pixels are averaged, which is what sampling the averaging filter costs.

Missing values are 0 after normalisation. Where an image is resampled, a pixel is the mean of what is there of the pixels that it is
made of, if that is at least half of their weight, else it is missing: so nothing missing is mixed in, and the border of what is there
stays where it is, to half a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from frontier.config.schema import AugmentConfig
from frontier.data.transforms import apply_symmetry, draw_symmetries, draw_windows, resample, resize


@dataclass(frozen=True)
class View:
    """How the samples of a batch are seen.

    Attributes:
        windows: [B, 4], see `frontier.data.transforms.crop_windows`; None: whole images.
        symmetries: [B] int64, see `frontier.data.transforms.apply_symmetry`; None: as stored.
    """

    windows: Tensor | None = None
    symmetries: Tensor | None = None


def draw_view(members: Tensor, config: AugmentConfig, seed: int) -> View:
    """A function of the seed and members [B, 2] = (epoch, sample) alone."""
    return View(
        None if config.crop_scale is None else draw_windows(members, config.crop_scale, seed),
        draw_symmetries(members, seed) if config.symmetries else None,
    )


def see_images(images: Tensor, there: Tensor | None, view: View, size: int) -> tuple[Tensor, Tensor | None]:
    """Normalised images [B, C, S, S] as the encoder sees them: [B, C, size, size], 0 where missing; and which pixels are there.

    there: bool that broadcasts to `images`, and so is what comes back; None: nothing is missing.
    """
    if there is not None:
        there = there.expand(-1, -1, *images.shape[-2:])
    if view.windows is not None or images.shape[-1] != size:
        seen = _resampled(images, view.windows, size)
        if there is not None:
            weight = _resampled(there.to(images.dtype), view.windows, size)
            there = weight >= 0.5
            seen = torch.where(there, seen / weight.clamp(min=0.5), 0.0)
        images = seen
    if view.symmetries is None:
        return images, there
    return apply_symmetry(images, view.symmetries), None if there is None else apply_symmetry(there, view.symmetries)


def _resampled(images: Tensor, windows: Tensor | None, size: int) -> Tensor:
    return resize(images, size) if windows is None else resample(images, windows, size)


def see_gsd(gsd: Tensor, stored: int, size: int, view: View) -> Tensor:
    """[B, 2] metres a pixel along (y, x) as the encoder sees it, from those [B] of images of `stored` x `stored` pixels."""
    seen = (gsd * (stored / size))[:, None].expand(-1, 2)
    if view.windows is not None:
        seen = seen * view.windows[:, 2:]
    if view.symmetries is not None:
        seen = torch.where((view.symmetries & 4 > 0)[:, None], seen.flip(1), seen)
    return seen
