"""Bytes of a rank in one training step by closed form, from numbers alone: nothing here needs PyTorch, a model or data.

A step is a list of `Phase`s: forward and backward pass of every unit, each with the bytes of activations that are alive in it. Upon them
`walk` lays what the parallelism holds at that moment: shards, gathered weights, gradients, buffers of collectives. The peak is the
largest sum, not the sum of the largest. Phases come from a pass on meta (`frontier.train.pass_on_meta`) or from any formula.

What FSDP2 (PyTorch 2.13) holds, for a unit of P parameters, padded to P' so that every matrix has as many rows as ranks (dim 0 is
cut), c bytes a weight in computation, S ranks a shard group:

* forward pass: P'c for the weights and P'c for the buffer they were gathered into, which goes as the next unit's arrives;
* backward pass: P'c for the weights and P'c for each unit gathered ahead; the buffer goes with the copy;
* reduction: its gradient, Pc, and the float32 buffer of the reduce-scatter, 4P', which stays through the next unit's backward pass;
* between steps of accumulation: gradients are not reduced, so the whole model's lie on every rank, 4P each.

One rank alone is not wrapped: `_one_rank`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from frontier.config.schema import ZERO
from frontier.launch.mesh import ParallelDims

_FP32 = 4
ROOT = -1

Shapes = Sequence[tuple[int, ...]]
"""Shapes of the parameters of a unit, as a rank holds them before FSDP cuts them."""


@dataclass(frozen=True)
class Phase:
    """A part of a step, in the order of time.

    Attributes:
        kind: forward or backward pass, or the moment in which the gradient of `unit` is complete.
        unit: its number, or ROOT for what lies outside of all units.
        start: bytes alive as it starts, of activations and of gradients that are not reduced yet.
        peak: the most of them that are alive within.
    """

    kind: Literal["forward", "backward", "reduce"]
    unit: int
    start: float
    peak: float


def count(shapes: Shapes) -> int:
    """Parameters."""
    return sum(math.prod(shape) for shape in shapes)


def padded(shapes: Shapes, shard: int) -> int:
    """Parameters with the rows that FSDP adds, such that dim 0 divides by `shard`."""
    return sum(-(-shape[0] // shard) * shard * math.prod(shape[1:]) if shape else shard for shape in shapes)


class _Ledger:
    """What a rank holds beside activations, by component, and the largest sums so far."""

    def __init__(self) -> None:
        self.now: dict[str, float] = {}
        self.most: dict[str, float] = {"activations": 0.0}
        self.peak = 0.0

    def add(self, name: str, size: float) -> None:
        self.now[name] = self.now.get(name, 0.0) + size
        self.most[name] = max(self.most.get(name, 0.0), self.now[name])

    def note(self, activations: float, more: float = 0.0) -> None:
        """A moment: `activations` are alive, and `more` bytes for that moment."""
        self.most["activations"] = max(self.most["activations"], activations)
        self.peak = max(self.peak, sum(self.now.values()) + activations + more)


class _Weights:
    """Gathering and dropping of the weights of units, as FSDP2 does it."""

    def __init__(self, ledger: _Ledger, sizes: dict[int, float], shard: int, cast: bool) -> None:
        self.ledger, self.sizes, self.shard, self.cast = ledger, sizes, shard, cast
        self.flying: set[int] = set()  # gathered, not copied out
        self.whole: set[int] = set()
        self.held = 0.0  # buffer of the last gathering in the forward pass

    def fetch(self, unit: int, activations: float) -> None:
        """Start to gather."""
        if unit in self.flying or unit in self.whole or unit not in self.sizes or self.shard == 1:
            return
        self.flying.add(unit)
        self.ledger.add("gathered", self.sizes[unit])
        self.ledger.note(activations, self.sizes[unit] / self.shard if self.cast else 0.0)

    def gather(self, unit: int, activations: float, forward: bool) -> None:
        """Have it whole."""
        if unit in self.whole or unit not in self.sizes:
            return
        self.fetch(unit, activations)
        size = self.sizes[unit]
        if forward:
            self.release()
        self.ledger.add("gathered", size)
        self.whole.add(unit)
        self.ledger.note(activations)
        if unit in self.flying:
            self.flying.remove(unit)
            self.held = size
            if not forward:
                self.release()

    def release(self) -> None:
        self.ledger.add("gathered", -self.held)
        self.held = 0.0

    def drop(self, unit: int) -> None:
        if unit in self.whole:
            self.whole.remove(unit)
            self.ledger.add("gathered", -self.sizes[unit])


def walk(
    phases: Sequence[Phase],
    units: Sequence[Shapes],
    root: Shapes,
    dims: ParallelDims,
    precision: str,
    prefetch: int = 1,
    accumulation: int = 1,
    offload: bool = False,
    constants: float = 0.0,
) -> tuple[dict[str, float], dict[str, float]]:
    """(bytes of a rank by component, the part of it that lies on the host under offload).

    Args:
        phases: of one micro-batch, with whole gradients of a unit (c bytes a parameter) until its "reduce" (DistributedDataParallel: none).
        units: shapes of the parameters of each unit of sharding.
        root: shapes of all other parameters.
        constants: bytes of the model's buffers.

    Returns:
        parameters, gradients, optimizer, gathered, buffers, activations: the most of each; `total`, their sum; and `peak`, the most that is
        alive at once.
    """
    width = 2 if precision == "bf16" else _FP32
    ledger = _Ledger()
    everything = [shape for shapes in (*units, root) for shape in shapes]
    cut = count(everything) if dims.strategy in ZERO else padded(everything, dims.shard)
    share = cut / dims.shard * _FP32
    states = {"parameters": share, "optimizer": 2 * share}
    on_host = {**states, "gradients": share} if offload and dims.strategy not in ZERO else {}
    if not on_host:
        for name, size in states.items():
            ledger.add(name, size)
    ledger.add("buffers", constants)
    ledger.add("gathered", 0.0)
    ledger.add("gradients", 0.0)
    if dims.strategy in ZERO:
        _deepspeed(ledger, phases, units, everything, dims, width, accumulation)
        if offload:
            on_host = {"optimizer": ledger.most.pop("optimizer")}
            ledger.peak -= on_host["optimizer"]
    elif dims.strategy == "ddp":
        # Gradients lie in the buckets themselves; autocast keeps bf16 copies of the weights.
        ledger.add("gradients", share)
        ledger.add("gathered", float(count(everything) * width) if width != _FP32 else 0.0)
        for phase in phases:
            ledger.note(phase.peak)
    elif dims.world_size == 1 and not on_host:
        _one_rank(ledger, phases, units, root, width, accumulation)
    else:
        _fsdp(ledger, phases, units, root, dims, width, prefetch, accumulation, bool(on_host))
    order = ("parameters", "gradients", "optimizer", "gathered", "buffers", "activations")
    memory = {name: ledger.most[name] for name in order if name in ledger.most and name not in on_host}
    memory["total"] = sum(memory.values())
    memory["peak"] = ledger.peak
    return memory, on_host


def _fsdp(
    ledger: _Ledger,
    phases: Sequence[Phase],
    units: Sequence[Shapes],
    root: Shapes,
    dims: ParallelDims,
    width: int,
    prefetch: int,
    accumulation: int,
    offload: bool,
) -> None:
    shard = dims.shard
    alone = (
        dims.replicate * shard == 1
    )  # nothing is shared (tensor parallelism, offload): one group of parameters, the root
    groups: dict[int, Shapes] = {ROOT: root, **dict(enumerate(units))}
    if alone:
        groups = {ROOT: [shape for shapes in groups.values() for shape in shapes]}
    sizes = {name: padded(shapes, shard) for name, shapes in groups.items()}
    weights = _Weights(ledger, {name: float(n * width) for name, n in sizes.items()}, shard, width != _FP32)
    reducing, collected = 0.0, 0.0  # the reduce-scatter's buffer; whole gradients that wait
    waiting = {name: float(count(shapes) * _FP32) if accumulation > 1 else 0.0 for name, shapes in groups.items()}
    ledger.add("gradients", sum(waiting.values()))
    last = len(units) - 1
    forward = True
    for phase in phases:
        unit = phase.unit
        if phase.kind == "forward":
            weights.gather(ROOT, phase.start, True)
            weights.gather(unit, phase.start, True)
            if prefetch > 1 and dims.reshard_after_forward and unit != ROOT:
                for ahead in range(unit + 1, unit + 1 + prefetch):
                    weights.fetch(ahead, phase.start)
            ledger.note(phase.peak)
            if dims.reshard_after_forward and unit != ROOT:
                weights.drop(unit)
            continue
        if forward:
            forward = False
            weights.release()
            if dims.reshard_after_forward:
                weights.fetch(last, phase.start)
        if phase.kind == "backward":
            weights.gather(unit, phase.start, False)
            if dims.reshard_after_forward and unit != ROOT:
                for ahead in range(unit - 1, max(0, unit - prefetch) - 1, -1):
                    weights.fetch(ahead, phase.start)
            ledger.note(phase.peak)
        elif unit not in groups:  # alone: reduced with all others, at the end
            if accumulation == 1:
                size = float(count(units[unit]) * width)
                collected += size
                ledger.add("gradients", size)
        else:
            weights.drop(unit)
            ledger.add("buffers", -reducing)
            reducing = float(sizes[unit] * _FP32)
            ledger.add("buffers", reducing)
            ledger.note(phase.start)
            ledger.add("gradients", -waiting[unit] - collected)
            if not offload:
                ledger.add("gradients", sizes[unit] / shard * _FP32)
            ledger.note(phase.start - count(groups[unit]) * width + collected)


def _one_rank(
    ledger: _Ledger, phases: Sequence[Phase], units: Sequence[Shapes], root: Shapes, width: int, accumulation: int
) -> None:
    """Nothing is wrapped; in bf16 working copies stand in for the parameters (`frontier.parallel.working_copies`)."""
    sizes = {ROOT: float(count(root)), **{number: float(count(unit)) for number, unit in enumerate(units)}}
    everything, cast, collected = sum(sizes.values()), width != _FP32, 0.0
    if cast:
        ledger.add("gathered", everything * width)
    if accumulation > 1:
        ledger.add("gradients", everything * _FP32)
    for phase in phases:
        ledger.note(phase.peak)
        if phase.kind == "reduce" and (cast or accumulation == 1):
            if cast and phase.unit == ROOT:  # all are there: they become float32 together
                ledger.note(phase.start, everything * _FP32)
            collected += sizes[phase.unit] * width
            ledger.add("gradients", sizes[phase.unit] * width)
    if cast:
        ledger.add("gradients", -collected)
        if accumulation == 1:
            ledger.add("gradients", everything * _FP32)


def _deepspeed(
    ledger: _Ledger,
    phases: Sequence[Phase],
    units: Sequence[Shapes],
    everything: Shapes,
    dims: ParallelDims,
    width: int,
    accumulation: int,
) -> None:
    own, largest = count(everything), max(count(unit) for unit in units)
    share = own / dims.shard * _FP32
    if dims.strategy == "zero_3":
        ledger.add("parameters", own * width / dims.shard if width != _FP32 else 0.0)
        ledger.add("gathered", 2.0 * largest * width)
        ledger.add("buffers", float(largest * _FP32))
    else:  # working weights are whole, their float32 masters cut
        ledger.add("parameters", own * width)
        ledger.add("buffers", 2.0 * largest * _FP32)
    # Stage 1 accumulates in float32, beside the gradients of autograd.
    first = own * _FP32 + (own * width if width != _FP32 else 0) if dims.strategy == "zero_1" else share
    kept = max(phase.peak for phase in phases if phase.kind == "forward")
    working = max(phase.peak - phase.start for phase in phases if phase.kind == "backward")
    ledger.most["gradients"] = first
    ledger.note(kept + first if accumulation > 1 else max(kept, first + working))
