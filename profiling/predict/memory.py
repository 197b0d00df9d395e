"""GiB a device by component, before anything runs.

Our engine (fsdp2): states, gathered weights and buffers by the closed form that `frontier pretrain --dry-run` uses
(`frontier.parallel.footprint`), activations by the counts of `workload.py`.

The published study's (fsdp1), with P parameters in groups of k, W one block's working set in its backward pass:
    allocated   max(12 P / k + inputs of all blocks + W, 16 P / k + W) + libraries
                the first when the backward pass starts (gradients are still to come), the second when it ends
    DDP         20 P + 2 W + libraries: float32, with gradient buckets beside the gradients
    active      the same with what one stream has freed and another cannot reuse yet
"""

from __future__ import annotations

from dataclasses import dataclass

from frontier.parallel.footprint import model_state, together
from frontier_profiling.predict.case import Case
from frontier_profiling.predict.constants import FSDP1Memory, fsdp1_memory

GIB = 2**30
ALLOCATOR = {"cpu": 0.0, "cuda": 0.03, "xpu": 0.03}
"""Share that the caching allocator holds beyond what is alive (rounding, fragmentation), assumed; published reserved over active: 1.03 to 1.4."""
CONTEXT_GIB = {"cpu": 0.0, "cuda": 0.5, "xpu": 0.5}
"""Libraries' workspaces and the device's context, assumed."""


@dataclass(frozen=True)
class Memory:
    """Components (`MEMORY_PARTS`), `total_allocated` and `peak`, GiB."""

    parts: dict[str, float]
    on_host: dict[str, float]

    @property
    def peak(self) -> float:
        return self.parts["peak"]


def memory(case: Case) -> Memory:
    return published_memory(case, fsdp1_memory()) if case.engine == "fsdp1" else own_memory(case)


def activation_bytes(case: Case) -> tuple[float, float]:
    """(kept from forward to backward, of one block while it is recomputed) on a rank."""
    work, el, batch, tensor = case.work, case.element_bytes, case.micro_batch, case.dims.tensor
    kept = float(work.outside_values * batch * el + work.loss_values * batch * 4)
    largest = 0.0
    for stack in work.stacks:
        # A tensor group of T holds 1/T of the inside of a block for T times the samples, and the two gathered inputs.
        gathered = 2 * (tensor - 1) * stack.input_values() if tensor > 1 else 0
        # Means and deviations of two norms in float32 a token.
        whole = batch * ((stack.kept_values() + gathered) * el + 16 * stack.tokens)
        largest = max(largest, whole)
        if case.activation_checkpointing == "none":
            short = stack.blocks * stack.kept_values() - stack.kept_in_all()
            kept += stack.blocks * whole - batch * short * el
        elif case.activation_checkpointing == "full":
            kept += stack.blocks * batch * stack.input_values() * el
        else:
            kept += batch * stack.dear_in_all() * el
    if case.activation_checkpointing == "none":
        return kept, 0.0
    if case.activation_checkpointing == "full":
        return kept, largest
    return kept, max(s.kept_values() - s.kept_dear() for s in work.stacks) * batch * el


def own_memory(case: Case) -> Memory:
    work, dims = case.work, case.dims
    units = [stack.block_parameters // dims.tensor for stack in work.stacks for _ in range(stack.blocks)]
    state = model_state(sum(units) + work.root_parameters, units, dims, case.precision, case.prefetch)
    kept, recomputed = activation_bytes(case)
    found, host = together(state, kept, recomputed, dims, case.accumulation, case.offload)
    kind = case.system.device.type
    found["allocator"] = found["peak"] * ALLOCATOR.get(kind, 0.0) + CONTEXT_GIB.get(kind, 0.0) * GIB
    found["total_allocated"] = found["peak"]
    found["peak"] += found["allocator"]
    del found["total"]
    return Memory({name: value / GIB for name, value in found.items()}, {name: v / GIB for name, v in host.items()})


def published_memory(case: Case, c: FSDP1Memory) -> Memory:
    work, k, batch = case.work, case.dims.shard, case.micro_batch
    (stack,) = work.stacks
    gb = work.parameters / GIB
    el = 4 if case.strategy == "ddp" else 2
    grown = (2 if stack.mlp == "gated" else 1) * stack.hidden
    in_flight = stack.tokens * (4 * stack.width + grown) + c.scores * stack.heads * stack.tokens**2
    block = batch * (stack.kept_values() + in_flight) * el / GIB
    inputs = stack.blocks * batch * stack.input_values() * el / GIB
    weights = stack.block_parameters * 2 / GIB
    states = {"parameters": 4 * gb / k, "gradients": 4 * gb / k, "optimizer": 8 * gb / k}
    if case.strategy == "ddp":
        parts = states | {"activations": block, "gathered": 0.0, "buffers": 4 * gb, "allocator": c.library_gib}
        total = sum(parts.values())
        return Memory(parts | {"total_allocated": total, "peak": total}, {})

    whole = 2 * gb if case.strategy == "shard_grad_op" else 0.0
    start = 12 * gb / k + inputs + block + whole
    end = 16 * gb / k + block + whole
    allocated = max(start + c.start_blocks * weights, end + c.end_blocks * weights) + c.library_gib
    if k == 1:
        active = end + c.active_whole * gb + c.library_gib
    else:
        active = max(start + c.active_start_blocks * weights, end + c.active_end_blocks * weights) + c.library_gib
    at_start = start + c.start_blocks * weights > end + c.end_blocks * weights
    if at_start:
        states["gradients"] = 0.0
    kept = block + (inputs if at_start else 0.0)
    parts = states | {
        "activations": kept,
        "gathered": whole + (c.start_blocks if at_start else c.end_blocks) * weights,
        "buffers": 0.0,
        "allocator": c.library_gib,
    }
    return Memory(parts | {"total_allocated": allocated, "peak": max(active, allocated)}, {})


def minimum_devices(case: Case, most: int = 65536) -> int | None:
    """Fewest devices, a power of two, that hold the model when it is sharded over all of them; None where none up to `most` do."""
    per_node, k = case.system.node.devices, 1
    while k <= most:
        strategy = "no_shard" if k == 1 else f"hybrid_{k}"
        nodes = -(-k // per_node)
        if nodes > case.system.nodes:
            return None
        sharded = case.but(strategy=strategy, nodes=nodes, ranks=k, tensor=1, offload=False, accumulation=1)
        if memory(sharded).peak <= case.system.device.memory_gib:
            return k
        k *= 2
    return None
