"""Exposed communication: the part of the collectives that a step waits for.

How it is measured depends on who waits:

| backend, strategy | what is added up |
|---|---|
| gloo, FSDP2 and ZeRO | host time inside `Work.wait` (and `wait_tensor` of tensor parallelism): nothing else runs on the host meanwhile |
| gloo, ddp | DDP's own timers: its buckets' collectives less what backward computation covers |
| NCCL/RCCL, FSDP2 | stalls of the compute stream on other streams, by a pair of device events around every such wait |
| all else | not measured (None); a trace (`log.profile_steps`) tells |

It holds the transfer and the wait for ranks that come late. Of NCCL, collectives that run on the compute stream itself (the one small
sum of a step, in `Engine.update`) are left out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from frontier.config.schema import ZERO, ParallelConfig

HOST, DDP, STREAM = "host waits in collectives", "DDP's timers", "stalls of the compute stream"
"""Names of the ways, as in starts.jsonl (`exposed_from`)."""


def way(device: torch.device, parallel: ParallelConfig) -> str | None:
    """How exposed communication is measured here; None: it is not."""
    ddp = parallel.strategy == "ddp"
    if device.type == "cpu":
        # Compiled blocks wait in generated code.
        return DDP if ddp else None if parallel.tensor > 1 and parallel.compile else HOST
    if device.type == "cuda" and not ddp and parallel.strategy not in ZERO and parallel.tensor == 1:
        return STREAM
    return None


class Waits:
    """What this rank waited for collectives since it was made; None where `way` is None."""

    def __init__(self, way: str | None, model: nn.Module | None = None) -> None:
        """`model`: the wrapper that is called, needed for DDP."""
        self.way, self._seconds = way, 0.0
        self._ddp = model if way == DDP and isinstance(model, DistributedDataParallel) else None
        self._pairs: list[tuple[torch.Event, torch.Event]] = []
        self._thread = threading.get_ident()  # a checkpoint's thread waits for itself
        if self._ddp is not None:
            self._ddp._set_ddp_runtime_logging_sample_rate(1)

    def host_seconds(self) -> float:
        """So far, where the host waits."""
        return self._seconds

    def stalled(self) -> float | None:
        """Seconds of device events since the last call; the device must be synchronised. None where the host is timed."""
        if self.way != STREAM:
            return None
        pairs, self._pairs = self._pairs, []
        return sum(before.elapsed_time(after) for before, after in pairs) / 1e3

    def backward_ended(self) -> None:
        """After a backward pass that reduced gradients."""
        if self._ddp is not None:
            assert self._ddp.logger is not None
            self._ddp.logger.set_runtime_stats_and_log()  # of this pass; DDP itself does so a step later
            found = self._ddp._get_ddp_logging_data()
            spent = found.get("backward_comm_time", 0) - found.get("backward_compute_comm_overlap_time", 0)
            self._seconds += max(0.0, spent / 1e9)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count inside the block. What is replaced for it is put back."""
        if self.way == STREAM:
            stream = torch.cuda.Stream
            with _replaced(stream, "wait_event", self._timed_on_device(stream.wait_event)):
                yield
        elif self.way in (HOST, DDP):
            with (
                _replaced(dist.Work, "wait", self._timed(dist.Work.wait)),
                _replaced(funcol, "wait_tensor", self._timed(funcol.wait_tensor)),
            ):
                yield
        else:
            yield

    def _timed(self, wait: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return wait(*args, **kwargs)
            finally:
                if threading.get_ident() == self._thread:
                    self._seconds += time.perf_counter() - begun

        return timed

    def _timed_on_device(self, wait_event: Any) -> Any:
        compute = torch.cuda.current_stream()

        def timed(stream: Any, event: Any) -> None:
            if stream != compute:
                wait_event(stream, event)
                return
            pair = torch.Event(enable_timing=True), torch.Event(enable_timing=True)
            pair[0].record(compute)
            wait_event(stream, event)
            pair[1].record(compute)
            self._pairs.append(pair)

        return timed


@contextmanager
def _replaced(owner: Any, name: str, by: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, by)
    try:
        yield
    finally:
        setattr(owner, name, before)
