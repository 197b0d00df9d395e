"""Seconds of a step: what is computed, what moves, what of it is hidden and what the step waits for.

Without gathers (ddp, no_shard, hybrid_1, zero_1) gradients are reduced beside the backward pass: only what outlasts it is exposed.
With them (everything that shards) a block cannot start before its weights are there, so communication between nodes slows computing
even where it would fit behind it: exposed = max(0, moved - computed) + contention x min(moved between nodes, computed).
FSDP1's NO_SHARD reduced without overlap, as published.
"""

from __future__ import annotations

from dataclasses import dataclass

from frontier.config.schema import ZERO
from frontier_profiling.predict.case import Case
from frontier_profiling.predict.compute import Compute, compute
from frontier_profiling.predict.constants import Constants
from frontier_profiling.predict.links import Axis, all_reduce, gather


@dataclass(frozen=True)
class Moved:
    """Seconds of collectives of one step of one rank, hidden or not."""

    gathers: float = 0.0
    gathers_backward: float = 0.0
    """The part of `gathers` that belongs to the backward pass."""
    scatters: float = 0.0
    reduces: float = 0.0
    tensor: float = 0.0
    """Of the tensor axis: always waited for."""
    between_nodes: float = 0.0
    """The part of gathers, scatters and reduces that crosses nodes."""

    @property
    def data_axes(self) -> float:
        return self.gathers + self.scatters + self.reduces


@dataclass(frozen=True)
class Step:
    compute: Compute
    moved: Moved
    exposed: float
    supply: float | None = None
    """Seconds that the storage takes to give the step's samples; None where there is nothing to read or its rate is not known."""
    transfers: float = 0.0
    """Copies to and from the host under offload: part of `exposed`."""

    @property
    def busy(self) -> float:
        """Seconds of a step that need not wait for data."""
        return self.compute.passes + self.compute.optimizer + self.exposed

    @property
    def data(self) -> float:
        """Seconds that the step waits for data: reading goes on beside it."""
        return max(0.0, (self.supply or 0.0) - self.busy)

    @property
    def seconds(self) -> float:
        return self.busy + self.data


def gathers_per_micro_batch(strategy: str) -> int:
    """How often the weights are gathered in a forward and a backward pass (ZeRO-1/2: once a step, after the update)."""
    if strategy in ("shard_grad_op", "zero_1", "zero_2"):
        return 1
    return 2


def moved(case: Case, c: Constants) -> Moved:
    dims, work, times = case.dims, case.work, case.accumulation
    shard, replicate = (
        Axis(case.system, dims.shard, dims.tensor),
        Axis(case.system, dims.replicate, dims.tensor * dims.shard),
    )
    units = [(stack.blocks, stack.block_parameters / dims.tensor) for stack in work.stacks]
    units.append((1, work.root_parameters))
    gathers = backward = scatters = reduces = 0.0
    if dims.shard > 1:
        whole_run = case.strategy in ("zero_1", "zero_2")
        per_micro = gathers_per_micro_batch(case.strategy)
        turns = 1 if whole_run else times * per_micro
        once = sum(n * gather(shard, size * case.element_bytes, c) for n, size in units)
        gathers = turns * once
        if per_micro == 2:  # else the weights are there still
            compared, _ = work.compared(times)
            gathers += times * sum(
                s.blocks * gather(shard, s.block_parameters / dims.tensor * case.element_bytes, c) for s in compared
            )
        backward = 0.0 if whole_run or per_micro == 1 else times * once
        reduction_turns = times if case.strategy in ("zero_2", "zero_3") else 1
        if case.strategy == "zero_1":
            reduces = sum(n * all_reduce(shard, size * case.reduce_bytes, c) for n, size in units)
        else:
            scatters = reduction_turns * sum(
                n * gather(shard, size * case.reduce_bytes, c, "reduce_scatter") for n, size in units
            )
    reduces += sum(n * all_reduce(replicate, size * case.reduce_bytes / dims.shard, c) for n, size in units)
    between = (0.0 if shard.inside else gathers + scatters) + (0.0 if replicate.inside else reduces)
    return Moved(gathers, backward, scatters, reduces, tensor_traffic(case, c), between)


def tensor_traffic(case: Case, c: Constants) -> float:
    """Each part of a block gathers its input from the group and scatters its result, forward and backward; full checkpointing
    repeats the forward pair.
    """
    degree = case.dims.tensor
    if degree == 1:
        return 0.0
    axis = Axis(case.system, degree, 1)
    pairs = 3 if case.activation_checkpointing == "full" else 2
    seconds = 0.0
    for stack in case.work.stacks:
        exchanged = (*stack.gathered(), *[stack.input_values()] * stack.parts)
        once = sum(gather(axis, degree * case.micro_batch * n * case.element_bytes, c) for n in exchanged)
        seconds += stack.blocks * pairs * once
    return seconds * case.accumulation


def exposed(case: Case, work: Compute, m: Moved, c: Constants) -> float:
    """Seconds of communication that the step waits for."""
    return m.tensor + c.overlap * _not_hidden(case, work, m, c) + (1 - c.overlap) * m.data_axes


def _not_hidden(case: Case, work: Compute, m: Moved, c: Constants) -> float:
    """Of the data axes, where communication can hide."""
    if case.dims.shard == 1:
        hidden_by = 0.0 if case.engine == "fsdp1" and case.strategy == "no_shard" else work.passes * work.backward_share
        return max(0.0, m.reduces - hidden_by / case.accumulation)
    # Without prefetch the backward pass reaches each gather unprepared.
    unprepared = m.gathers_backward if case.prefetch == 0 else 0.0
    crossing = m.between_nodes - (0.0 if Axis(case.system, case.dims.shard, case.dims.tensor).inside else unprepared)
    outlasting = max(0.0, m.data_axes - unprepared - work.passes)
    slowed = c.contention * min(crossing, work.passes)
    return min(m.data_axes, outlasting + slowed + unprepared)


def offload_transfers(case: Case, c: Constants) -> float:
    """Seconds of copies between host and device: own float32 weights before each gathering and own gradients after each reduction (FSDP),
    own gradients and updated weights once a step (ZeRO, whose optimizer alone is on the host). None of it is taken as hidden.
    """
    if not case.offload or case.system.device.type == "cpu":
        return 0.0
    own = 4 * case.work.parameters / case.dims.shard / case.dims.tensor
    turns = 2 if case.strategy in ZERO else gathers_per_micro_batch(case.strategy) * case.accumulation + 1
    return turns * own / (c.host_copy_gb_per_s * 1e9)


def supply(case: Case) -> float | None:
    """Seconds that the storage takes for the samples of a step."""
    rate = case.system.read_gb_per_s(case.nodes)
    return None if case.data != "shards" or rate is None else case.read_bytes / (rate * 1e9)


def step(case: Case, c: Constants) -> Step:
    work = compute(case, c)
    m = moved(case, c)
    transfers = offload_transfers(case, c)
    waited = exposed(case, work, m, c) + transfers
    return Step(work, m, waited, supply(case), transfers)
