"""Training images made on the device instead of read from shards: how fast the rest of a run is.

One fixed batch a rank, made once: the image at place p of the global batch is a function of (seed, column, p), the same on any number of
ranks. The sampler's members advance as with shards, so masks and augmentation change from step to step; images do not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frontier.config.schema import DataConfig
from frontier.data.loader import Batch, Loader, Supply, window_members
from frontier.data.random import stream_keys, uniform
from frontier.data.sampler import Sampler
from frontier.data.shards import ShardSet

CONTENT_STREAM = 14
COLUMN = "image"
MEAN, STD = 127.5, 256 / 12**0.5
"""Of uniform bytes, so that normalised images have mean 0 and deviation 1."""


class SyntheticSet:
    """What the plan of a run asks of a `ShardSet`, without any file: `path`, `manifest`, `image_columns`, `fingerprint`,
    `shard_starts`, `statistics`, `describe`, `len()`.
    """

    def __init__(self, images: Mapping[str, tuple[int, int]], samples: int) -> None:
        """Uniform bytes [channels, side, side] by column from `images`: (channels, side), `samples` of them to the sampler."""
        self.path, self.split = Path("synthetic"), "train"
        self.shapes = {name: (channels, side, side) for name, (channels, side) in images.items()}
        specs = {
            name: {
                "axes": "CHW",
                "shape": list(shape),
                "dtype": "uint8",
                "nodata": None,
                "mask": None,
                "bands": [{"name": f"band_{place}"} for place in range(shape[0])],
            }
            for name, shape in self.shapes.items()
        }
        self.manifest: dict[str, Any] = {"images": specs, "shards": [], "columns": {}, "arrays": {}}
        self.image_columns = list(images)
        self.shard_starts = np.array([0, samples], np.int64)
        self.fingerprint = hashlib.sha256(f"synthetic {self.shapes} {samples}".encode()).hexdigest()

    def __len__(self) -> int:
        return int(self.shard_starts[-1])

    def describe(self, column: str) -> tuple[tuple[int, ...], np.dtype]:
        """(shape of one sample, dtype)."""
        return self.shapes[column], np.dtype(np.uint8)

    def statistics(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """(mean [C], std [C]) float32, in stored units."""
        channels = self.shapes[column][0]
        return np.full(channels, MEAN, np.float32), np.full(channels, STD, np.float32)


class SyntheticLoader:
    """The `Loader` of a `SyntheticSet`: the same members, the same images at every step, nothing read.

    Images belong to places of the global batch, so members stay in the sampler's order, which is the same on any number of ranks.
    """

    def __init__(
        self, images: SyntheticSet, sampler: Sampler, rank: int, ranks: int, device: torch.device, seed: int
    ) -> None:
        sampler.check_ranks(ranks)
        self.sampler, self.rank, self.ranks = sampler, rank, ranks
        self.local_batch = sampler.global_batch // ranks
        self.columns: dict[str, torch.Tensor] = {}
        for number, (name, shape) in enumerate(images.shapes.items()):
            made = self.columns[name] = torch.empty(self.local_batch, *shape, dtype=torch.uint8, device=device)
            for row, image in enumerate(made):  # one at a time: the draws are eight times as large as the image
                place = torch.tensor([[number, rank * self.local_batch + row]], device=device)
                draws = uniform(stream_keys(seed, CONTENT_STREAM, place), image.numel())
                image.copy_((draws * 256).view(image.shape))

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Endless; the caller stops asking."""
        sampler, step = self.sampler, first_step
        while True:
            window = step // sampler.window
            blocks = sampler.window_blocks(window, self.rank, self.ranks)
            members = window_members(sampler, blocks)
            while step // sampler.window == window:
                turn = step % sampler.window
                yield Batch(self.columns, torch.from_numpy(members[turn]), next(iter(self.columns)))
                step += 1

    def supply(self) -> Supply:
        """Nothing was read."""
        return Supply(0, 0, 0.0, 1)

    def close(self) -> None:
        """Nothing to end."""


def open_images(data: DataConfig, check: bool) -> ShardSet | SyntheticSet:
    """What the config's `data` section names. Raises UserError where it cannot be read."""
    if data.synthetic is None:
        assert data.shards is not None
        return ShardSet(data.shards, split=data.split, check=check)
    images = data.synthetic.images
    if images is None:
        assert data.image_size is not None  # the config's own check
        images = {COLUMN: (data.synthetic.channels, data.image_size)}
    return SyntheticSet(images, data.synthetic.samples)


def open_loader(
    images: ShardSet | SyntheticSet,
    columns: tuple[str, ...],
    sampler: Sampler,
    rank: int,
    ranks: int,
    workers: int,
    device: torch.device,
    seed: int,
) -> Loader | SyntheticLoader:
    """Batches of data rank `rank` of `ranks`."""
    if isinstance(images, SyntheticSet):
        return SyntheticLoader(images, sampler, rank, ranks, device, seed)
    return Loader(images, columns, sampler, rank, ranks, workers)
