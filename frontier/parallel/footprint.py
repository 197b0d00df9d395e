"""Bytes of a rank by closed form, from numbers alone: nothing here needs PyTorch, a model or data.

`own` is the number of parameters of a rank before FSDP cuts them (1/T of what a tensor group of T splits), `units` that of each unit
of sharding. `frontier.train.memory` gets both, and the activations, from a model on meta.
"""

from __future__ import annotations

from collections.abc import Sequence

from frontier.config.schema import ZERO
from frontier.launch.mesh import ParallelDims

_FP32 = 4


def model_state(own: int, units: Sequence[int], dims: ParallelDims, precision: str, prefetch: int) -> dict[str, float]:
    """Bytes a rank of weights, gradients and moments, of weights while they are whole, and of buffers of collectives.

    Keys: parameters, gradients, optimizer, gathered, buffers.
    """
    compute_bytes = 2 if precision == "bf16" else _FP32
    per_rank, whole, largest = own / dims.shard * _FP32, own * compute_bytes, max(units)
    state = {"parameters": per_rank, "gradients": per_rank, "optimizer": 2 * per_rank, "gathered": 0.0, "buffers": 0.0}
    if dims.strategy in ("zero_1", "zero_2"):  # working weights are whole, their float32 masters cut
        state["parameters"] += whole
        if dims.strategy == "zero_1":  # accumulated in float32, beside those of autograd
            state["gradients"] = per_rank * dims.shard + (whole if compute_bytes != _FP32 else 0)
        state["buffers"] = 2.0 * largest * _FP32
        return state
    if dims.strategy == "zero_3" and compute_bytes != _FP32:
        state["parameters"] += whole / dims.shard
    if dims.strategy == "ddp":
        # Gradients lie in the buckets themselves; autocast keeps bf16 copies of the weights.
        state["gathered"] = float(whole) if compute_bytes != _FP32 else 0.0
        return state
    if dims.reshard_after_forward:  # the root, the unit in use and those ahead of it
        ahead = sum(sorted(units)[-1 - prefetch :])
        state["gathered"] = float((own - sum(units) + ahead) * compute_bytes)
    else:  # also without sharding FSDP works on a copy
        state["gathered"] = float(whole)
    if dims.replicate * dims.shard == 1:  # one unit, the root
        largest = own
    # The whole gradient of a unit, and the buffer that its reduction reads.
    state["buffers"] = float(largest * (compute_bytes + (_FP32 if dims.shard > 1 else 0)))
    return state


def together(
    state: dict[str, float],
    kept: float,
    recomputed: float,
    dims: ParallelDims,
    accumulation: int,
    offload: bool = False,
) -> tuple[dict[str, float], dict[str, float]]:
    """(bytes by component, the part of it that lies on the host under offload).

    `state` is what `model_state` gives, `kept` the bytes of activations kept from forward to backward, `recomputed` those of
    one unit while it is recomputed. `total` adds all components up. `peak` is what is alive at once: gradients grow as
    activations go, so the larger of the two counts, except under accumulation, where gradients stay.
    """
    memory = {**state, "activations": kept + recomputed}
    on_host = {}
    if offload:
        moved = ("optimizer",) if dims.strategy in ZERO else ("parameters", "gradients", "optimizer")
        on_host = {name: memory.pop(name) for name in moved}
    gradients = memory.get("gradients", 0.0)
    if dims.replicate * dims.shard == 1:
        # One unit: its gradients are reduced at the end, when no activations are left.
        gradients += memory["buffers"]
    others = sum(memory.values()) - gradients - memory["activations"]
    if accumulation > 1:
        growing = gradients + memory["activations"]
    else:
        growing = max(memory["activations"], gradients + recomputed)
    memory["total"] = others + gradients + memory["activations"]
    memory["peak"] = others + growing
    return memory, on_host
