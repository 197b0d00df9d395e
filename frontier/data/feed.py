"""What a family trains on: the seam between the config's `data` section and the keyword arguments of its module.

A feed has one or several streams, each a split of some shards with a sampler of its own. Every global batch holds the same
number of samples of each stream, so what a batch is made of does not depend on the number of ranks, nor does any rank ever
lack a stream that the others have.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from frontier.config.schema import DataConfig
from frontier.data.loader import Batch, Supply
from frontier.data.sampler import Sampler
from frontier.data.shards import ShardSet
from frontier.data.synthetic import SyntheticSet, open_loader
from frontier.errors import UserError


@dataclass(frozen=True)
class Stream:
    """Samples of one split: `sampler.global_batch` of them in each global batch, of which `columns` are read.

    `name` is "" where a run has one stream.
    """

    name: str
    shards: ShardSet | SyntheticSet
    sampler: Sampler
    columns: tuple[str, ...]

    @property
    def sample_bytes(self) -> int:
        """Stored bytes that are read of a sample."""
        return stored_bytes(self.shards, self.columns)


def stored_bytes(shards: ShardSet | SyntheticSet, columns: Sequence[str]) -> int:
    """Of a sample, in these columns."""
    described = [shards.describe(name) for name in columns]
    return sum(dtype.itemsize * int(torch.Size(shape).numel()) for shape, dtype in described)


class Reader(Protocol):
    """From the stored columns of a rank's batch to what its module takes, on one device."""

    def place(self, batches: Mapping[str, Batch]) -> Any:
        """The batch on the device, normalised and augmented: once a step."""
        ...

    def inputs(self, module: nn.Module, placed: Any, turn: int, turns: int) -> dict[str, Any]:
        """Keyword arguments of `module.forward` for micro-batch `turn` of `turns`."""
        ...


class Feed(Protocol):
    """A run's data, opened and planned.

    Attributes:
        data: the config's section with everything filled in that depends on the data.
        model: likewise.
        streams: at least one.
    """

    data: DataConfig
    model: Any
    streams: list[Stream]

    def fixed(self) -> dict[str, Any]:
        """What must be equal on both sides of a resume, by config key, beside seed, batch and fingerprints."""
        ...

    def reader(self, device: torch.device, seed: int) -> Reader: ...


def stream_seed(seed: int, name: str) -> int:
    """The seed of a stream's random choices: samples of the same number in two streams are treated differently."""
    return seed if not name else (seed * 0x9E3779B1 + zlib.crc32(name.encode())) % 2**31


def check_turns(streams: Sequence[Stream], data_ranks: int, turns: int) -> None:
    """Raises UserError where a stream's share of the global batch does not fall equally on ranks and micro-batches."""
    for stream in streams:
        share = stream.sampler.global_batch
        if stream.name and share % (data_ranks * turns):
            raise UserError(
                f"data.sources.{stream.name}: its {share} samples of a global batch do not divide over {data_ranks} data ranks x "
                f"{turns} micro-batches: set data.granule to a multiple of {data_ranks * turns}, or change train.micro_batch"
            )
        stream.sampler.check_ranks(data_ranks)


class Loaders:
    """The loaders of all streams of a rank, in step."""

    def __init__(self, streams: Sequence[Stream], rank: int, ranks: int, workers: int, device: torch.device, seed: int):
        self.loaders = {
            s.name: open_loader(s.shards, s.columns, s.sampler, rank, ranks, workers, device, seed) for s in streams
        }

    def batches(self, first_step: int) -> Iterator[dict[str, Batch]]:
        """Endless, by stream; the caller stops asking."""
        with ExitStack() as stack:
            each = {}
            for name, loader in self.loaders.items():
                each[name] = loader.batches(first_step)
                stack.callback(each[name].close)  # type: ignore[attr-defined]
            while True:
                yield {name: next(batches) for name, batches in each.items()}

    def supply(self) -> Supply:
        """What was read so far, over all streams."""
        found = [loader.supply() for loader in self.loaders.values()]
        return Supply(
            sum(s.samples for s in found),
            sum(s.bytes for s in found),
            sum(s.seconds for s in found),
            sum(s.threads for s in found),
        )

    def close(self) -> None:
        for loader in self.loaders.values():
            loader.close()
