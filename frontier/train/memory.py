"""Memory of a rank before anything runs: closed forms for weights, gradients and moments, a count on meta for activations.

Everything is in bytes of tensors. What is not counted: the caching allocator's rounding and fragmentation, workspaces inside
kernels, the device context. `python benchmarks/engine.py memory` sets the sum against what is measured.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from frontier.config.schema import ZERO
from frontier.models.attention import fused_on_meta
from frontier.parallel.apply import SAVED_WHEN_SELECTIVE, ShardUnits
from frontier.parallel.tensor import planned_modules
from frontier.train.plan import RunPlan

_FP32 = 4


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


def count_activations(plan: RunPlan) -> _Count:
    """What autograd keeps for the backward pass of one micro-batch, by unit, from a forward pass on meta.

    Each storage counts once, parameters do not. Inside a module that a tensor group of T splits, a rank keeps 1/T of the features
    of T times (sequence parallelism) or once the samples, and the gathered input.
    """
    config, tensor = plan.config, plan.dims.tensor
    assert config.data.image_size and config.data.mean
    together = plan.dims.sequence_parallel
    model = copy.deepcopy(plan.model)
    if config.parallel.precision == "bf16":
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
            size = _bytes(saved) / (tensor if inner and not together else 1)
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
        if together and now:
            now[-1].kept += (tensor - 1) * _bytes(args[0])  # gathered from the group
        inner.append(True)

    for unit, noted in zip(units, count.units, strict=True):
        unit.register_forward_pre_hook(enter_unit(noted))
        unit.register_forward_hook(lambda *_: now.pop() and None)
    if tensor > 1:
        for _, part, _plan in planned_modules(model):
            part.register_forward_pre_hook(enter_split)
            part.register_forward_hook(lambda *_: inner.pop() and None)
    micro, size = plan.batch.micro_batch, config.data.image_size
    dear = _Dear()
    with torch.device("meta"), fused_on_meta(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), dear:
        images = torch.empty(micro, len(config.data.mean), size, size)
        members = torch.zeros(micro, 2, dtype=torch.int64)
        ends: list[int] = []
        for unit in units:
            unit.register_forward_hook(lambda *_: ends.append(len(dear.storages)))
        model(**plan.family.inputs(model, images, members, config.run.seed))
    sizes = [_bytes(t) for t in dear.storages.values()]
    for number, noted in enumerate(count.units):
        first = ends[number - 1] if number else 0
        noted.dear = sum(sizes[first : ends[number]]) / (1 if together else tensor)
    return count


def activations(plan: RunPlan) -> tuple[float, float]:
    """(bytes kept from forward to backward, bytes of one unit while it is recomputed or made)."""
    count = count_activations(plan)
    largest = max(unit.kept for unit in count.units)
    kind = plan.config.parallel.activation_checkpointing
    if kind == "none":
        return count.outside + sum(unit.kept for unit in count.units), 0.0
    if kind == "full":
        return count.outside + sum(unit.input for unit in count.units), largest
    kept = sum(unit.input + min(unit.dear, unit.kept) for unit in count.units)
    return count.outside + kept, max(max(0.0, unit.kept - unit.dear) for unit in count.units)


def held_parameters(plan: RunPlan) -> tuple[int, list[int]]:
    """(parameters of a rank before FSDP cuts them, those of each unit): 1/T of what a tensor group of T splits."""
    tensor = plan.dims.tensor
    split: set[int] = set()
    for _, part, how in planned_modules(plan.model) if tensor > 1 else ():
        for name in (*how.column, *how.row):
            layer = getattr(part, name)
            if layer is not None:
                # A row layer's bias is whole on every rank.
                split |= {id(p) for p in (layer.weight, layer.bias if name in how.column else None) if p is not None}

    def held(module: nn.Module) -> int:
        return sum(p.numel() // (tensor if id(p) in split else 1) for p in module.parameters())

    return held(plan.model), [held(unit) for unit in cast(ShardUnits, plan.model).shard_units()]


def model_state(plan: RunPlan) -> dict[str, float]:
    """Bytes a rank of weights, gradients and moments, of weights while they are whole, and of buffers of collectives."""
    config, dims = plan.config, plan.dims
    strategy = config.parallel.strategy
    compute_bytes = 2 if config.parallel.precision == "bf16" else _FP32
    own, units = held_parameters(plan)
    per_rank, whole, largest = own / dims.shard * _FP32, own * compute_bytes, max(units)
    state = {"parameters": per_rank, "gradients": per_rank, "optimizer": 2 * per_rank, "gathered": 0.0, "buffers": 0.0}
    if strategy in ("zero_1", "zero_2"):  # working weights are whole, their float32 masters cut
        state["parameters"] += whole
        if strategy == "zero_1":  # accumulated in float32, beside those of autograd
            state["gradients"] = per_rank * dims.shard + (whole if compute_bytes != _FP32 else 0)
        state["buffers"] = 2.0 * largest * _FP32
        return state
    if strategy == "zero_3" and compute_bytes != _FP32:
        state["parameters"] += whole / dims.shard
    if strategy == "ddp":
        # Gradients lie in the buckets themselves; autocast keeps bf16 copies of the weights.
        state["gathered"] = float(whole) if compute_bytes != _FP32 else 0.0
        return state
    if dims.reshard_after_forward:  # the root, the unit in use and those ahead of it
        ahead = sum(sorted(units)[-1 - config.parallel.prefetch :])
        state["gathered"] = float((own - sum(units) + ahead) * compute_bytes)
    else:  # also without sharding FSDP works on a copy
        state["gathered"] = float(whole)
    if dims.replicate * dims.shard == 1:  # one unit, the root
        largest = own
    # The whole gradient of a unit, and the buffer that its reduction reads.
    state["buffers"] = float(largest * (compute_bytes + (_FP32 if dims.shard > 1 else 0)))
    return state


def predict(plan: RunPlan) -> tuple[dict[str, float], dict[str, float]]:
    """(GiB a rank by component, the part of it that lies on the host under `parallel.offload`).

    `total` adds all components up. `peak` is what is alive at once: gradients grow as activations go, so the larger of the two
    counts, except under accumulation, where gradients stay.
    """
    parallel = plan.config.parallel
    state = model_state(plan)
    kept, recomputed = activations(plan)
    memory = {**state, "activations": kept + recomputed}
    on_host = {}
    if parallel.offload:
        moved = ("optimizer",) if parallel.strategy in ZERO else ("parameters", "gradients", "optimizer")
        on_host = {name: memory.pop(name) / 2**30 for name in moved}
    gradients = memory.get("gradients", 0.0)
    if plan.dims.replicate * plan.dims.shard == 1:
        # One unit: its gradients are reduced at the end, when no activations are left.
        gradients += memory["buffers"]
    others = sum(memory.values()) - gradients - memory["activations"]
    if plan.batch.accumulation > 1:
        growing = gradients + memory["activations"]
    else:
        growing = max(memory["activations"], gradients + recomputed)
    memory["total"] = others + gradients + memory["activations"]
    memory["peak"] = others + growing
    return {name: value / 2**30 for name, value in memory.items()}, on_host
