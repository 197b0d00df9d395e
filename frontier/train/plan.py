"""Everything about a run that is known before any process group starts; all mistakes in the input surface here."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frontier.config.load import Config
from frontier.data.feed import Feed, check_turns
from frontier.data.sampler import Sampler
from frontier.data.shards import ShardSet
from frontier.data.synthetic import SyntheticSet
from frontier.errors import UserError
from frontier.launch.mesh import BatchPlan, ParallelDims
from frontier.models.registry import Family, family
from frontier.parallel.tensor import check_divides
from frontier.train.optimizer import Schedule
from frontier.train.preemption import STOP_FILE
from frontier.train.profiler import check_profile

FINGERPRINT = "the data's fingerprint"
"""Beside the config keys of `RunPlan.fixed`."""


@dataclass(frozen=True)
class RunPlan:
    """A config resolved against its data and the number of ranks.

    Attributes:
        config: with every default filled in from the data (image_size, mean, std, block, window, warmup_steps, steps).
        model: on the meta device.
        batch: how the global batch falls on the ranks.
        steps: optimizer steps of the whole run.
    """

    config: Config
    dims: ParallelDims
    batch: BatchPlan
    schedule: Schedule
    steps: int
    feed: Feed
    family: Family
    model: nn.Module

    @property
    def shards(self) -> ShardSet | SyntheticSet:
        """Of the first stream: the only one where a sample is one image."""
        return self.feed.streams[0].shards

    @property
    def sampler(self) -> Sampler:
        """Of the first stream."""
        return self.feed.streams[0].sampler

    @property
    def epoch_samples(self) -> int:
        """Samples of a pass over the data: over all streams."""
        return sum(stream.sampler.epoch_samples for stream in self.feed.streams)

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run.dir)

    @property
    def parameter_shapes(self) -> dict[str, list[int]]:
        return {name: list(p.shape) for name, p in self.model.named_parameters()}

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def flops_per_image(self) -> int:
        return self.family.flops(self.model)

    @property
    def hardware_flops_per_image(self) -> int | None:
        """With what is computed again; None where the family does not count it."""
        count, kind = self.family.hardware_flops, self.config.parallel.activation_checkpointing
        return None if count is None else count(self.model, kind, self.batch.accumulation)

    def fixed(self) -> dict[str, Any]:
        """What must not change between the two sides of a resume, by config key: what makes the stream of samples and what the model sees of
        them. Beside it stands what the family says of its own section.
        """
        c = self.config
        prints = [stream.shards.fingerprint for stream in self.feed.streams]
        return {
            "run.seed": c.run.seed,
            "train.global_batch": c.train.global_batch,
            **self.feed.fixed(),
            FINGERPRINT: prints[0] if len(prints) == 1 else prints,
        }


MOST_STEPS = 10**12


def total_steps(config: Config, epoch_samples: int) -> int:
    """Optimizer steps from steps, epochs (of so many samples) or samples (rounded up to whole batches). Raises UserError for more than
    any run makes: a slip of the pen."""
    train = config.train
    if train.steps is not None:
        steps = train.steps
    else:
        samples = train.samples if train.samples is not None else (train.epochs or 0) * epoch_samples
        steps = max(1, -int(-samples // train.global_batch)) if samples < math.inf else MOST_STEPS + 1
    if steps > MOST_STEPS:
        key = next(name for name in ("steps", "epochs", "samples") if getattr(train, name) is not None)
        raise UserError(
            f"train.{key}={getattr(train, key):g} makes more than {MOST_STEPS:,} steps: give a smaller number"
        )
    return steps


def resolve(config: Config, world_size: int, check_shards: bool = True, samples: int | None = None) -> RunPlan:
    """Open the data, fix the topology and build the model on meta.

    Args:
        check_shards: look at every shard file now; without it each is looked at when it is first read.
        samples: plan as if the split held so many (for a dry run).

    Raises:
        UserError: for anything in the input that cannot work.
    """
    parallel = config.parallel
    dims = ParallelDims.from_strategy(parallel.strategy, world_size, parallel.tensor, parallel.sequence_parallel)
    batch = BatchPlan.divide(config.train.global_batch, config.train.micro_batch, dims.data_ranks)
    if os.path.exists(Path(config.run.dir) / STOP_FILE):  # of a name that cannot be: no
        raise UserError(f"{Path(config.run.dir) / STOP_FILE} asks this run to stay stopped: remove the file to go on")
    chosen = family(config.model.family)
    feed = chosen.feed(config, check_shards, samples)
    check_turns(feed.streams, dims.data_ranks, batch.accumulation)
    steps = total_steps(config, sum(stream.sampler.epoch_samples for stream in feed.streams))
    check_profile(config.log, steps, world_size)
    schedule = Schedule.of(config.train, steps)
    train = config.train.model_copy(update={"warmup_steps": schedule.warmup})
    resolved = replace(config, data=feed.data, model=feed.model, train=train)
    with torch.device("meta"):
        model = chosen.build(resolved.model, chosen.shape(resolved))
    if parallel.tensor > 1:
        check_divides(model, parallel.tensor)
    return RunPlan(resolved, dims, batch, schedule, steps, feed, chosen, model)
