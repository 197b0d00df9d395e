"""Frozen features of labelled samples: reading in batches, normalising, encoding without a mask, pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frontier.data.transforms import normalise, resize
from frontier.errors import UserError

from .standardise import Features
from .targets import MISSING_PIXEL

POOLINGS = ("mean", "cls", "mean_std")

FeatureFunction = Callable[[Any], Features]
"""What `LabelledSamples.read` gives, for images [B, C, H, W] in stored units -> features [B, F] float32."""
GridFunction = Callable[[Any], Tensor]
"""The same -> features of the cells of a grid that covers the sample, [B, rows, columns, D] float32."""


class Encoder(Protocol):
    """What the probe asks of a model: tokens [B, 1 + L, D], [cls] first, of normalised images."""

    def encode(self, images: Tensor) -> Tensor:
        """Tokens after the last block and the final norm."""

    def encode_layers(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Tokens after each of the blocks `layers`, the final norm applied."""


@dataclass(frozen=True)
class LabelledSamples:
    """The labelled samples of one split.

    Attributes:
        read: (start, stop) -> consecutive samples of the split, as feature functions take them: an array, or anything else that a
            mask [stop - start] can be taken of.
        labels: int64 classes [samples of the split], negative where a sample has none; or uint8 [samples, K] of 0 and 1, else
            missing; or uint8 maps [samples, H, W] with 255 where a pixel has no class.
    """

    read: Callable[[int, int], Any]
    labels: NDArray[Any]

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """Which samples have labels: all of several, and any pixel of a map."""
        if self.labels.ndim == 1:
            return np.asarray(self.labels >= 0)
        if self.labels.ndim == 2:
            return np.asarray((self.labels <= 1).all(axis=1))
        return np.asarray((self.labels != MISSING_PIXEL).any(axis=(1, 2)))

    @property
    def labelled(self) -> NDArray[Any]:
        """Labels of the samples that have one, in the order of the split."""
        return self.labels if self.known.all() else self.labels[self.known]

    def batches(self, size: int) -> Iterator[Any]:
        """The labelled samples in the order of the split, in pieces of at most `size`, read front to back."""
        for start in range(0, len(self.labels), size):
            stop = min(start + size, len(self.labels))
            chosen = self.known[start:stop]
            if chosen.any():
                samples = self.read(start, stop)
                yield samples if chosen.all() else samples[chosen]


def pool(tokens: Tensor, pooling: str) -> Tensor:
    """Tokens [B, 1 + L, D] -> [B, D], or [B, 2D] for mean_std.

    mean: over the L patch tokens; cls: the first token; mean_std: mean and (population) standard deviation
    over the patch tokens, concatenated. Computed in float32.
    """
    tokens = tokens.float()
    if pooling == "cls":
        return tokens[:, 0]
    patches = tokens[:, 1:]
    if pooling == "mean":
        return patches.mean(dim=1)
    if pooling == "mean_std":
        return torch.cat([patches.mean(dim=1), patches.std(dim=1, correction=0)], dim=1)
    raise UserError(f"pooling '{pooling}' is unknown, --pooling: choose {', '.join(POOLINGS)}")


def encoder_features(
    encoder: Encoder,
    mean: Sequence[float],
    std: Sequence[float],
    image_size: int,
    pooling: str = "mean",
    layers: Sequence[int] | None = None,
    device: str | torch.device = "cpu",
) -> FeatureFunction:
    """The feature function of a frozen encoder that is on `device` and in eval mode: `tokens_of`, pooled."""
    tokens = tokens_of(encoder, mean, std, image_size, layers, device)

    @torch.inference_mode()
    def features(images: NDArray[Any]) -> Features:
        return torch.cat([pool(found, pooling) for found in tokens(images)], dim=1).cpu().numpy()

    return features


def encoder_grid(
    encoder: Encoder,
    mean: Sequence[float],
    std: Sequence[float],
    image_size: int,
    layers: Sequence[int] | None = None,
    device: str | torch.device = "cpu",
) -> GridFunction:
    """The patch tokens of `tokens_of` in their places, blocks beside one another: images -> [B, g, g, D] on `device`."""
    tokens = tokens_of(encoder, mean, std, image_size, layers, device)

    @torch.inference_mode()
    def grid(images: NDArray[Any]) -> Tensor:
        patches = torch.cat([found[:, 1:].float() for found in tokens(images)], dim=2)
        side = math.isqrt(patches.shape[1])
        return patches.unflatten(1, (side, side))

    return grid


def tokens_of(
    encoder: Encoder,
    mean: Sequence[float],
    std: Sequence[float],
    image_size: int,
    layers: Sequence[int] | None,
    device: str | torch.device,
) -> Callable[[NDArray[Any]], list[Tensor]]:
    """Images [B, C, H, W] in stored units -> tokens [B, 1 + L, D] after the last block, or after each of `layers`.

    Images are normalised by `mean` and `std` (per band, stored units), resized to `image_size` where they
    have another one, and encoded whole.
    """
    shift, scale = torch.tensor(mean, device=device), torch.tensor(std, device=device)

    def tokens(images: NDArray[Any]) -> list[Tensor]:
        values = resize(normalise(torch.from_numpy(images).to(device), shift, scale), image_size)
        return [encoder.encode(values)] if layers is None else encoder.encode_layers(values, layers)

    return tokens


def extract(function: FeatureFunction, samples: LabelledSamples, batch: int, name: str) -> Features:
    """Features [labelled samples, F] in the order of the split. Raises UserError where one is not finite."""
    found = np.concatenate([function(part) for part in samples.batches(batch)])
    broken = int(np.sum(~np.isfinite(found).all(axis=1)))
    if broken:
        raise UserError(
            f"features of {broken} of {len(found)} samples are not finite, encoder '{name}': the weights "
            "have diverged or the samples hold such values; probe an earlier checkpoint or mend the shards"
        )
    return found
