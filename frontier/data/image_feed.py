"""The feed of families that take one image a sample: a column of axes CHW, normalised, augmented, resized."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frontier.config.load import Config
from frontier.config.schema import DataConfig
from frontier.data.feed import Stream
from frontier.data.loader import Batch
from frontier.data.sampler import Sampler
from frontier.data.shards import ShardSet
from frontier.data.square_images import check_statistics, square_images
from frontier.data.synthetic import SyntheticSet, open_images
from frontier.data.transforms import Normaliser, augment, resize
from frontier.errors import UserError

Inputs = Callable[[nn.Module, Tensor, Tensor, int], dict[str, Tensor]]
"""(module, images [B, C, H, W] float32, members [B, 2] int64 (epoch, sample), seed) -> keyword arguments of its forward.
Randomness must be a function of members and seed, so that it is the same on any number of ranks."""


@dataclass(frozen=True)
class ImageFeed:
    """See `frontier.data.feed.Feed`."""

    data: DataConfig
    model: Any
    streams: list[Stream]
    adapter: Inputs

    def fixed(self) -> dict[str, Any]:
        data = self.data
        names = ("block", "window", "column", "split", "image_size", "mean", "std")
        return {f"data.{name}": getattr(data, name) for name in names}

    def reader(self, device: torch.device, seed: int) -> ImageReader:
        return ImageReader(self.data, self.streams[0].shards, self.adapter, device, seed)


class ImageReader:
    """See `frontier.data.feed.Reader`."""

    def __init__(
        self, data: DataConfig, shards: ShardSet | SyntheticSet, adapter: Inputs, device: torch.device, seed: int
    ) -> None:
        self.data, self.adapter, self.device, self.seed = data, adapter, device, seed
        self.normaliser = Normaliser.of(shards, data.column, device, data.mean, data.std)

    def place(self, batches: Mapping[str, Batch]) -> tuple[Tensor, Tensor]:
        """Stored values -> (images [B, C, S, S] float32 normalised and augmented, members [B, 2]), on the device."""
        batch = batches[""]
        members = batch.members.to(self.device, non_blocking=True)
        images = augment(self.normaliser(batch.columns), members, self.data.augment, self.seed)
        return resize(images, self.data.image_size or images.shape[-1]), members

    def inputs(self, module: nn.Module, placed: tuple[Tensor, Tensor], turn: int, turns: int) -> dict[str, Any]:
        images, members = placed
        each = len(images) // turns
        part = slice(turn * each, (turn + 1) * each)
        return self.adapter(module, images[part], members[part], self.seed)


def open_image_feed(config: Config, check: bool, samples: int | None, adapter: Inputs) -> ImageFeed:
    """The feed of `config.data.shards` or `.synthetic`. `check`, `samples`: as of `frontier.train.plan.resolve`.

    Raises UserError for data that the family cannot take.
    """
    data, family = config.data, config.model.family
    if data.sources is not None:
        raise UserError(f"data.sources: model.family={family} takes one kind of image: give data.shards")
    if data.synthetic is not None and data.synthetic.images is not None:
        raise UserError(
            f"data.synthetic.images: model.family={family} takes one image a sample: give data.synthetic.channels and data.image_size"
        )
    shards = open_images(data, check)
    column = data.column
    channels, side = square_images(shards.manifest["images"], column, "data.column", data.shards or "synthetic", family)
    check_statistics("data", data.mean, data.std, channels)
    mean, std = shards.statistics(column)
    sampler = Sampler.plan(
        samples or len(shards),
        config.train.global_batch,
        config.run.seed,
        channels * side**2 * shards.describe(column)[1].itemsize,
        data.block,
        data.window,
    )
    resolved = data.model_copy(
        update={
            "image_size": data.image_size or side,
            "mean": data.mean or [float(m) for m in mean],
            "std": data.std or [float(s) if s > 0 else 1.0 for s in std],
            "block": sampler.block,
            "window": sampler.window,
        }
    )
    columns = Normaliser.of(shards, column, "cpu", resolved.mean, resolved.std).columns
    return ImageFeed(resolved, config.model, [Stream("", shards, sampler, columns)], adapter)
