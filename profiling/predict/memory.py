"""GiB a device by component, before anything runs.

Our engine (fsdp2): the walk through a step that `frontier pretrain --dry-run` uses (`frontier.parallel.footprint`), along phases made from
the counts of `workload.py` where the dry run takes them from a pass on meta.

The published study's (fsdp1), with P parameters in groups of k, W one block's working set in its backward pass:
    allocated   max(12 P / k + inputs of all blocks + W, 16 P / k + W) + libraries
                the first when the backward pass starts (gradients are still to come), the second when it ends
    DDP         20 P + 2 W + libraries: float32, with gradient buckets beside the gradients
    active      the same with what one stream has freed and another cannot reuse yet
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from frontier.parallel.footprint import ROOT, Phase, walk
from frontier_profiling.predict.case import Case
from frontier_profiling.predict.constants import FSDP1Memory, fsdp1_memory
from frontier_profiling.predict.workload import Stack

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


def phases(case: Case) -> list[Phase]:
    """Bytes of activations and unreduced gradients that are alive on a rank, through one micro-batch.

    A block's backward pass begins by recomputing what checkpointing dropped, holds 2 D + hidden of gradients in flight a token, and
    frees what it kept as its parameters' gradients come: the most is at its start or, where the parameters are many, at its end.
    """
    work, el, batch, tensor = case.work, case.element_bytes, case.micro_batch, case.dims.tensor
    # DistributedDataParallel takes each gradient at once; a float32 one is added to what was accumulated.
    stay = case.strategy != "ddp" and not (case.accumulation > 1 and case.precision == "fp32")
    units = [place for place, stack in enumerate(work.stacks) for _ in range(stack.blocks)]
    *before, after = (float(values * batch * el) for values in work.outside_values)
    alive = before[0]
    out: list[Phase] = []
    entering, leaving = (float(values * batch * el) for values in work.before_working)
    if entering:
        out.append(Phase("forward", ROOT, 0.0, alive + entering))
    held: list[_Block] = []
    for number, place in enumerate(units):
        last = number + 1 == len(units) or units[number + 1] != place
        block = _block(work.stacks[place], last, case.activation_checkpointing, batch, el, tensor)
        if number and units[number - 1] != place:
            alive += before[place]
        out.append(Phase("forward", number, alive, alive + block.forward))
        alive += block.stays
        held.append(block)
    # The loss: targets are normalised and differences squared out of place. 1.9 and 2.2: of what the pass on meta holds there in bf16
    # and float32; tests/profiling/predict/test_memory.py sets the whole against it.
    loss = (1.9 if el == 2 else 2.2) * work.loss_values * batch * 4
    # A head's rows are kept where they fit in one chunk; else each chunk is computed again.
    sizes = [(rows * batch, min(rows * batch, most), values) for rows, most, values in work.rows]
    after += sum(float(all_rows * values * el) for all_rows, most, values in sizes if all_rows == most)
    chunk = max((float(most * values * el) for all_rows, most, values in sizes if all_rows > most), default=0.0)
    first = float(work.after_first * batch * el)
    out.append(Phase("forward", ROOT, alive, alive + loss + max(after, after - first + chunk)))
    if work.after_working:
        # A chunk is computed again when what came after it is gone, with a fifth more of gradients in flight.
        most = alive + loss + max(after, after - first + 1.2 * chunk) + work.after_working * batch * el
        out.append(Phase("backward", ROOT, alive + after + loss, most))
    for number in reversed(range(len(units))):
        block, place = held[number], units[number]
        if number + 1 < len(units) and units[number + 1] != place:
            alive -= before[units[number + 1]]
        own = work.stacks[place].block_parameters / tensor * el if stay else 0.0
        parameters, values = work.pending[place] if work.pending else (0, 0)
        beside = el * ((parameters if stay else 0) + values * batch)
        most = max(block.again + block.in_flight, own - block.stays + block.in_flight)
        out.append(Phase("backward", number, alive + beside, alive + beside + most))
        alive -= block.stays
        out.append(Phase("reduce", number, alive + beside + own, alive + beside + own))
    root = float(work.root_parameters * el)
    if leaving:
        out.append(Phase("backward", ROOT, alive, alive + leaving + (root if stay else 0.0)))
    out.append(Phase("reduce", ROOT, root, root))
    return out


@dataclass(frozen=True)
class _Block:
    """Bytes of one block: the most in its forward pass, what stays for the backward pass, what that makes again, gradients in flight."""

    forward: float
    stays: float
    again: float
    in_flight: float


def _block(stack: Stack, last: bool, checkpointing: str, batch: int, el: int, tensor: int) -> _Block:
    # A tensor group of T holds 1/T of the inside of a block for T times the samples, and the gathered inputs of its parts.
    gathered = (tensor - 1) * sum(stack.gathered())
    kept = stack.kept_in_last() if last else stack.kept_values()
    whole = batch * ((kept + gathered) * el + 8 * stack.norm_rows())  # mean and deviation, float32
    whole += stack.masks(batch, el)
    going_on = stack.last_queries if last and stack.last_queries is not None else stack.tokens
    flight = batch * el * going_on * (2 * stack.width + (2 if stack.mlp == "gated" else 1) * stack.hidden)
    one = float(batch * stack.input_values() * el)
    if checkpointing == "none":
        return _Block(whole + one, whole, 0.0, flight)
    if checkpointing == "full":
        return _Block(whole - 6 * one, one, whole - one, flight)
    dear = batch * stack.dear_in(last) * el
    return _Block(whole, dear, max(0.0, whole + 2 * one - dear), flight)


def own_memory(case: Case) -> Memory:
    work, dims = case.work, case.dims
    units = [stack.shapes(dims.tensor) for stack in work.stacks for _ in range(stack.blocks)]
    found, host = walk(
        phases(case), units, work.root_shapes, dims, case.precision, case.prefetch, case.accumulation, case.offload,
        constants=4.0 * work.buffer_values,
    )  # fmt: skip
    found = dict.fromkeys(host, 0.0) | found  # what lies on the host takes nothing of the device
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
    el = 4 if case.strategy == "ddp" else case.element_bytes
    grown = (2 if stack.mlp == "gated" else 1) * stack.hidden
    in_flight = stack.tokens * (4 * stack.width + grown) + c.scores * stack.heads * stack.tokens**2
    block = batch * (stack.kept_values() + in_flight) * el / GIB
    inputs = stack.blocks * batch * stack.input_values() * el / GIB
    weights = stack.block_parameters * el / GIB
    states = {"parameters": 4 * gb / k, "gradients": 4 * gb / k, "optimizer": 8 * gb / k}
    if case.strategy == "ddp":
        parts = states | {"activations": block, "gathered": 0.0, "buffers": 4 * gb, "allocator": c.library_gib}
        total = sum(parts.values())
        return Memory(parts | {"total_allocated": total, "peak": total}, {})

    whole = el * gb if case.strategy == "shard_grad_op" else 0.0
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
    plain = case.but(
        strategy="no_shard", nodes=1, ranks=1, tensor=1, offload=False, accumulation=1, samples=None, data="synthetic"
    )
    return _minimum_devices(plain, most)


@lru_cache(maxsize=512)
def _minimum_devices(case: Case, most: int) -> int | None:
    per_node, k = case.system.node.devices, 1
    while k <= most:
        nodes = -(-k // per_node)
        if nodes > case.system.nodes:
            return None
        sharded = case.but(strategy="no_shard" if k == 1 else f"hybrid_{k}", nodes=nodes, ranks=k)
        if memory(sharded).peak <= case.system.device.memory_gib:
            return k
        k *= 2
    return None
