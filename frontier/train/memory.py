"""Memory of a rank before anything runs: closed forms for weights, gradients and moments, a count on meta for activations.

Everything is in bytes of tensors. What is not counted: the caching allocator's rounding and fragmentation, workspaces inside
kernels, the device context. `python benchmarks/engine.py memory` sets the sum against what is measured.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from frontier.config.schema import ParallelConfig
from frontier.launch.mesh import ParallelDims
from frontier.models.attention import fused_on_meta
from frontier.models.registry import Family, ImageShape
from frontier.parallel.apply import SAVED_WHEN_SELECTIVE, ShardUnits
from frontier.parallel.footprint import model_state, together
from frontier.parallel.tensor import check_divides, planned_modules
from frontier.train.plan import RunPlan


@dataclass(frozen=True)
class MemoryCase:
    """What memory depends on, and no more: neither data nor a run's folder.

    Attributes:
        model: on the meta device.
        inputs: (module, images [B, C, H, W], members [B, 2], seed) -> keyword arguments of its forward, as a family gives them.
        micro_batch: images of a forward pass on a rank.
        accumulation: micro-batches of a step.
    """

    model: nn.Module
    inputs: Callable[[nn.Module, Tensor, Tensor, int], dict[str, Tensor]]
    dims: ParallelDims
    parallel: ParallelConfig
    images: ImageShape
    micro_batch: int
    accumulation: int = 1

    @classmethod
    def of_plan(cls, plan: RunPlan) -> MemoryCase:
        """The case of a run that is resolved against its data."""
        data = plan.config.data
        assert data.image_size and data.mean
        images = ImageShape(data.image_size, len(data.mean))
        batch = plan.batch
        return cls(
            plan.model,
            plan.family.inputs,
            plan.dims,
            plan.config.parallel,
            images,
            batch.micro_batch,
            batch.accumulation,
        )

    @classmethod
    def of_family(
        cls,
        family: Family,
        section: dict[str, Any],
        images: ImageShape,
        parallel: ParallelConfig,
        world_size: int,
        micro_batch: int,
        accumulation: int = 1,
    ) -> MemoryCase:
        """The case of a `model:` section of `family` on images of such a shape, without data.

        Raises:
            UserError: sizes that do not fit together, or a strategy that does not fit the ranks.
        """
        dims = ParallelDims.from_strategy(parallel.strategy, world_size, parallel.tensor, parallel.sequence_parallel)
        with torch.device("meta"):
            model = family.build(family.config(**section), images)
        if parallel.tensor > 1:
            check_divides(model, parallel.tensor)
        return cls(model, family.inputs, dims, parallel, images, micro_batch, accumulation)


@dataclass
class _Unit:
    """Bytes of one unit of checkpointing: of its input, of all it keeps for its backward pass, of what `selective` keeps."""

    input: float = 0.0
    kept: float = 0.0
    dear: float = 0.0


@dataclass
class _Count:
    outside: float = 0.0
    units: list[_Unit] = field(default_factory=list)


class _Dear(TorchDispatchMode):
    """Notes the storages that selective checkpointing keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, Tensor] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        if operator._schema.name in SAVED_WHEN_SELECTIVE:
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor):
                    self.storages.setdefault(tensor.untyped_storage()._cdata, tensor)
        return result


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def count_activations(case: MemoryCase) -> _Count:
    """What autograd keeps for the backward pass of one micro-batch, by unit, from a forward pass on meta.

    Each storage counts once, parameters do not. Inside a module that a tensor group of T splits, a rank keeps 1/T of the features
    of T times (sequence parallelism) or once the samples, and the gathered input.
    """
    tensor, own_samples = case.dims.tensor, case.dims.sequence_parallel
    model = copy.deepcopy(case.model)
    if case.parallel.precision == "bf16":
        model = model.to(torch.bfloat16)
    units = cast(ShardUnits, model).shard_units()
    count = _Count(units=[_Unit() for _ in units])
    seen: dict[int, Tensor] = {p.untyped_storage()._cdata: p for p in model.parameters()}
    now: list[_Unit] = []
    inner: list[bool] = []

    def keep(saved: Tensor) -> Tensor:
        key = saved.untyped_storage()._cdata
        if key not in seen:
            seen[key] = saved
            size = _bytes(saved) / (tensor if inner and not own_samples else 1)
            if now:
                now[-1].kept += size
            else:
                count.outside += size
        return saved

    def enter_unit(unit: _Unit) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            unit.input = _bytes(args[0])
            now.append(unit)

        return hook

    def enter_split(_module: nn.Module, args: tuple[Any, ...]) -> None:
        keep(args[0])
        if own_samples and now:
            now[-1].kept += (tensor - 1) * _bytes(args[0])  # gathered from the group
        inner.append(True)

    for unit, noted in zip(units, count.units, strict=True):
        unit.register_forward_pre_hook(enter_unit(noted))
        unit.register_forward_hook(lambda *_: now.pop() and None)
    if tensor > 1:
        for _, part, _plan in planned_modules(model):
            part.register_forward_pre_hook(enter_split)
            part.register_forward_hook(lambda *_: inner.pop() and None)
    micro, size = case.micro_batch, case.images.image_size
    dear = _Dear()
    with torch.device("meta"), fused_on_meta(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), dear:
        images = torch.empty(micro, case.images.channels, size, size)
        members = torch.zeros(micro, 2, dtype=torch.int64)
        ends: list[int] = []
        for unit in units:
            unit.register_forward_hook(lambda *_: ends.append(len(dear.storages)))
        model(**case.inputs(model, images, members, 0))
    sizes = [_bytes(t) for t in dear.storages.values()]
    for number, noted in enumerate(count.units):
        first = ends[number - 1] if number else 0
        noted.dear = sum(sizes[first : ends[number]]) / (1 if own_samples else tensor)
    return count


def activations(case: MemoryCase) -> tuple[float, float]:
    """(bytes kept from forward to backward, bytes of one unit while it is recomputed or made)."""
    count = count_activations(case)
    largest = max(unit.kept for unit in count.units)
    kind = case.parallel.activation_checkpointing
    if kind == "none":
        return count.outside + sum(unit.kept for unit in count.units), 0.0
    if kind == "full":
        return count.outside + sum(unit.input for unit in count.units), largest
    kept = sum(unit.input + min(unit.dear, unit.kept) for unit in count.units)
    return count.outside + kept, max(max(0.0, unit.kept - unit.dear) for unit in count.units)


def held_parameters(model: nn.Module, tensor: int = 1) -> tuple[int, list[int]]:
    """(parameters of a rank before FSDP cuts them, those of each unit): 1/T of what a tensor group of T splits."""
    split: set[int] = set()
    for _, part, how in planned_modules(model) if tensor > 1 else ():
        for name in (*how.column, *how.row):
            layer = getattr(part, name)
            if layer is not None:
                # A row layer's bias is whole on every rank.
                split |= {id(p) for p in (layer.weight, layer.bias if name in how.column else None) if p is not None}

    def held(module: nn.Module) -> int:
        return sum(p.numel() // (tensor if id(p) in split else 1) for p in module.parameters())

    return held(model), [held(unit) for unit in cast(ShardUnits, model).shard_units()]


def memory_of(case: MemoryCase) -> tuple[dict[str, float], dict[str, float]]:
    """(GiB a rank by component, the part of it that lies on the host under `parallel.offload`); `total` and `peak` as in
    `frontier.parallel.footprint.together`.
    """
    own, units = held_parameters(case.model, case.dims.tensor)
    state = model_state(own, units, case.dims, case.parallel.precision, case.parallel.prefetch)
    kept, recomputed = activations(case)
    memory, on_host = together(state, kept, recomputed, case.dims, case.accumulation, case.parallel.offload)
    gib = [{name: value / 2**30 for name, value in part.items()} for part in (memory, on_host)]
    return gib[0], gib[1]


def predict(plan: RunPlan) -> tuple[dict[str, float], dict[str, float]]:
    """`memory_of` the run that `plan` describes."""
    return memory_of(MemoryCase.of_plan(plan))
