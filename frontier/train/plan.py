"""Everything about a run that is known before any process group starts; all mistakes in the input surface here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from frontier.config.load import Config
from frontier.data.sampler import Sampler
from frontier.data.shards import ShardSet
from frontier.data.synthetic import SyntheticSet, open_images
from frontier.errors import UserError
from frontier.launch.mesh import BatchPlan, ParallelDims
from frontier.models.registry import Family, ImageShape, family
from frontier.parallel.tensor import check_divides
from frontier.train.optimizer import Schedule
from frontier.train.preemption import STOP_FILE
from frontier.train.profiler import check_profile


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
    sampler: Sampler
    schedule: Schedule
    steps: int
    shards: ShardSet | SyntheticSet
    family: Family
    model: nn.Module

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
        """With recomputation under activation checkpointing; None where the family does not count it."""
        count = self.family.hardware_flops
        return None if count is None else count(self.model, self.config.parallel.activation_checkpointing)

    def fixed(self) -> dict[str, Any]:
        """What must not change between the two sides of a resume, by config key."""
        c = self.config
        return {
            "run.seed": c.run.seed,
            "train.global_batch": c.train.global_batch,
            "data.block": c.data.block,
            "data.window": c.data.window,
            "data.column": c.data.column,
            "data.split": c.data.split,
            "data.image_size": c.data.image_size,
            "the data's fingerprint": self.shards.fingerprint,
        }


def total_steps(config: Config, sampler: Sampler) -> int:
    """Optimizer steps from steps, epochs (of the sampler) or samples (rounded up to whole batches)."""
    train = config.train
    if train.steps is not None:
        return train.steps
    samples = train.samples if train.samples is not None else (train.epochs or 0) * sampler.epoch_samples
    return max(1, -int(-samples // train.global_batch))


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
    if (Path(config.run.dir) / STOP_FILE).exists():
        raise UserError(f"{Path(config.run.dir) / STOP_FILE} asks this run to stay stopped: remove the file to go on")
    shards = open_images(config.data, check_shards)
    column = config.data.column
    if column not in shards.image_columns:
        raise UserError(
            f"data.column '{column}' is not in {config.data.shards}: it has {', '.join(shards.image_columns)}"
        )
    info = shards.manifest["images"][column]
    if info["axes"] != "CHW":
        raise UserError(
            f"data.column '{column}' of {config.data.shards} has axes {info['axes']}, model.family={config.model.family} takes "
            f"CHW: choose among {', '.join(n for n, i in shards.manifest['images'].items() if i['axes'] == 'CHW') or 'other shards'}"
        )
    channels, height, width = info["shape"]
    image_size = config.data.image_size or height
    if height != width:
        raise UserError(f"{config.data.shards}: images of {height}x{width} are not square: write the shards with --fit")
    mean, std = shards.statistics(column)
    given = {"mean": config.data.mean, "std": config.data.std}
    for name, values in given.items():
        if values is not None and len(values) != channels:
            raise UserError(f"data.{name} has {len(values)} values for {channels} bands of '{column}': give one each")
    if any(v <= 0 for v in config.data.std or []):
        raise UserError("data.std holds a value that is not positive: give the deviation of every band")
    safe_std = [float(s) if s > 0 else 1.0 for s in std]
    sampler = Sampler.plan(
        samples or len(shards),
        config.train.global_batch,
        config.run.seed,
        channels * height * width * np.dtype(info["dtype"]).itemsize,
        config.data.block,
        config.data.window,
    )
    sampler.check_ranks(dims.data_ranks)
    steps = total_steps(config, sampler)
    check_profile(config.log, steps, world_size)
    schedule = Schedule.of(config.train, steps)
    data = config.data.model_copy(
        update={
            "image_size": image_size,
            "mean": config.data.mean or [float(m) for m in mean],
            "std": config.data.std or safe_std,
            "block": sampler.block,
            "window": sampler.window,
        }
    )
    train = config.train.model_copy(update={"warmup_steps": schedule.warmup})
    resolved = replace(config, data=data, train=train)
    chosen = family(config.model.family)
    with torch.device("meta"):
        model = chosen.build(config.model, ImageShape(image_size, channels))
    if parallel.tensor > 1:
        check_divides(model, parallel.tensor)
    return RunPlan(resolved, dims, batch, sampler, schedule, steps, shards, chosen, model)
