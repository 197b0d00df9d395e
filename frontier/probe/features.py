"""Frozen features of labelled samples: reading in batches, normalising, encoding without a mask, pooling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frontier.data.transforms import normalise, resize
from frontier.errors import UserError

from .standardise import Features

POOLINGS = ("mean", "cls", "mean_std")

FeatureFunction = Callable[[Any], Features]
"""What `LabelledSamples.read` gives, for images [B, C, H, W] in stored units -> features [B, F] float32."""


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
        labels: int64 [samples of the split]; negative where a sample has no label.
    """

    read: Callable[[int, int], Any]
    labels: NDArray[np.int64]

    @property
    def labelled(self) -> NDArray[np.int64]:
        """Labels of the samples that have one, in the order of the split."""
        return self.labels[self.labels >= 0]

    def batches(self, size: int) -> Iterator[Any]:
        """The labelled samples in the order of the split, in pieces of at most `size`, read front to back."""
        for start in range(0, len(self.labels), size):
            stop = min(start + size, len(self.labels))
            chosen = self.labels[start:stop] >= 0
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
    """The feature function of a frozen encoder that is on `device` and in eval mode.

    Images are normalised by `mean` and `std` (per band, stored units), resized to `image_size` where they
    have another one, and encoded whole. With `layers` the pooled tokens of these blocks are concatenated;
    without, those after the last block are taken.
    """
    shift, scale = torch.tensor(mean, device=device), torch.tensor(std, device=device)

    @torch.inference_mode()
    def features(images: NDArray[Any]) -> Features:
        values = resize(normalise(torch.from_numpy(images).to(device), shift, scale), image_size)
        found = [encoder.encode(values)] if layers is None else encoder.encode_layers(values, layers)
        return torch.cat([pool(tokens, pooling) for tokens in found], dim=1).cpu().numpy()

    return features


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
