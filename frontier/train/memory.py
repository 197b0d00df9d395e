"""Memory of a rank before anything runs: activations from a pass on meta, everything else by closed form.

Everything is in bytes of tensors. What is not counted: the caching allocator's rounding and fragmentation, workspaces inside
kernels, the device context. `python benchmarks/memory_prediction.py` sets it against what is measured.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from frontier.config.schema import ParallelConfig
from frontier.launch.mesh import ParallelDims
from frontier.models.registry import Family
from frontier.parallel.apply import ShardUnits
from frontier.parallel.footprint import Phase, Shapes, walk
from frontier.parallel.tensor import check_divides
from frontier.train.pass_on_meta import split_for_one_rank, trace
from frontier.train.plan import RunPlan


@dataclass(frozen=True)
class MemoryCase:
    """What memory depends on, and no more: neither data nor a run's folder.

    Attributes:
        model: on the meta device.
        meta_inputs: (module, shape, micro-batch) -> keyword arguments of its forward, on meta, as a family gives them.
        shape: what the model knows of the data.
        micro_batch: samples of a forward pass on a rank.
        accumulation: micro-batches of a step.
        device_type: whose attention kernels count.
    """

    model: nn.Module
    meta_inputs: Callable[[nn.Module, Any, int], dict[str, Any]]
    dims: ParallelDims
    parallel: ParallelConfig
    shape: Any
    micro_batch: int
    accumulation: int = 1
    device_type: str = "cuda"

    @classmethod
    def of_plan(cls, plan: RunPlan) -> MemoryCase:
        """The case of a run that is resolved against its data."""
        batch = plan.batch
        return cls(
            plan.model,
            plan.family.meta_inputs,
            plan.dims,
            plan.config.parallel,
            plan.family.shape(plan.config),
            batch.micro_batch,
            batch.accumulation,
        )

    @classmethod
    def of_family(
        cls,
        family: Family,
        section: dict[str, Any],
        shape: Any,
        parallel: ParallelConfig,
        world_size: int,
        micro_batch: int,
        accumulation: int = 1,
        device_type: str = "cuda",
    ) -> MemoryCase:
        """The case of a `model:` section of `family` on data of such a shape, without data.

        Raises:
            UserError: sizes that do not fit together, or a strategy that does not fit the ranks.
        """
        dims = ParallelDims.from_strategy(parallel.strategy, world_size, parallel.tensor, parallel.sequence_parallel)
        with torch.device("meta"):
            model = family.build(family.config(**section), shape)
        if parallel.tensor > 1:
            check_divides(model, parallel.tensor)
        return cls(model, family.meta_inputs, dims, parallel, shape, micro_batch, accumulation, device_type)


def on_one_rank(case: MemoryCase) -> nn.Module:
    """The model (on meta) as a rank holds it before FSDP cuts it."""
    dims = case.dims
    return split_for_one_rank(copy.deepcopy(case.model), dims.tensor, dims.sequence_parallel)


def shapes(model: nn.Module) -> tuple[list[Shapes], Shapes]:
    """(shapes of the parameters of each unit of sharding, those of all others)."""
    units = cast(ShardUnits, model).shard_units()
    inside = {id(p) for unit in units for p in unit.parameters()}
    root = [tuple(p.shape) for p in model.parameters() if id(p) not in inside]
    return [[tuple(p.shape) for p in unit.parameters()] for unit in units], root


def phases(case: MemoryCase) -> list[Phase]:
    """A micro-batch's forward and backward pass: bytes alive, by phase."""
    parallel, model = case.parallel, on_one_rank(case)
    inputs = case.meta_inputs(model, case.shape, case.micro_batch)
    # DistributedDataParallel takes each gradient at once; a float32 one is added to what was accumulated.
    stay = parallel.strategy != "ddp" and not (case.accumulation > 1 and parallel.precision == "fp32")
    return trace(model, inputs, parallel.precision, parallel.activation_checkpointing, stay, case.device_type)


def memory_of(case: MemoryCase) -> tuple[dict[str, float], dict[str, float]]:
    """(GiB a rank by component, the part of it that lies on the host under `parallel.offload`): see
    `frontier.parallel.footprint.walk`.
    """
    model = on_one_rank(case)
    units, root = shapes(model)
    parallel = case.parallel
    parts = walk(
        phases(case),
        units,
        root,
        case.dims,
        parallel.precision,
        parallel.prefetch,
        case.accumulation,
        parallel.offload,
        sum(b.nbytes for b in model.buffers()),
    )
    memory, on_host = ({name: value / 2**30 for name, value in part.items()} for part in parts)
    return memory, on_host


def predict(plan: RunPlan) -> tuple[dict[str, float], dict[str, float]]:
    """`memory_of` the run that `plan` describes."""
    return memory_of(MemoryCase.of_plan(plan))
