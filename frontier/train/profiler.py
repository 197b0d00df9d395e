"""Traces and memory snapshots of chosen steps and ranks: `log.profile_steps`, `log.profile_ranks`, `log.memory_snapshot`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from frontier.config.schema import LogConfig
from frontier.errors import UserError

SNAPSHOT_ENTRIES = 200_000
"""Allocations and frees that a snapshot keeps, the newest."""


def check_profile(log: LogConfig, steps: int, world_size: int) -> None:
    """Raises UserError where the run has no such steps or ranks."""
    if log.profile_steps is None:
        return
    if log.profile_steps[1] > steps:
        raise UserError(
            f"log.profile_steps={list(log.profile_steps)} is beyond the {steps} steps of the run: choose earlier ones"
        )
    absent = [rank for rank in log.profile_ranks if rank >= world_size]
    if absent:
        raise UserError(
            f"log.profile_ranks names rank {absent[0]}, but there are ranks 0 to {world_size - 1}: choose among them"
        )


def check_snapshot(log: LogConfig, device: torch.device) -> None:
    """Raises UserError where the device keeps no record of its memory."""
    if log.memory_snapshot and device.type != "cuda":
        raise UserError(
            f"log.memory_snapshot has no effect on device type {device.type}: only the allocator of a CUDA or ROCm device keeps "
            "such a record; leave it out"
        )


class StepProfiler:
    """Profiles steps `first` to `last` (counted from 1, both in) where this rank is asked to; does nothing otherwise.

    Leaves RUN/profile/rank<r>.json.gz (Chrome and Perfetto open it) and memory_rank<r>.pickle (pytorch.org/memory_viz),
    each written whole or not at all. A start that resumes after `last` profiles nothing.
    """

    def __init__(self, run_dir: Path, log: LogConfig, rank: int, device: torch.device) -> None:
        self.folder, self.rank, self.device = run_dir / "profile", rank, device
        self.steps = log.profile_steps if rank in log.profile_ranks else None
        self.snapshot = log.memory_snapshot and self.steps is not None
        self._running: Any = None
        self._range: Any = None
        if self.snapshot:  # from here on, so that weights and optimizer state are in it
            torch.cuda.memory._record_memory_history(max_entries=SNAPSHOT_ENTRIES, stacks="python")

    def before(self, step: int) -> bool:
        """Before step `step`; whether it is profiled, and so slower than others."""
        if self.steps is None or not self.steps[0] <= step <= self.steps[1]:
            return False
        if self._running is None:
            self._running = torch.profiler.profile(acc_events=True)
            self._running.start()
        self._range = torch.profiler.record_function(f"ProfilerStep#{step}")
        self._range.__enter__()
        return True

    def after(self, step: int) -> str:
        """After step `step`; a line to say where something was written."""
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None
        return self.close() if self.steps is not None and step == self.steps[1] else ""

    def close(self) -> str:
        """Write what was recorded so far."""
        if self._running is None:
            return ""
        running, self._running = self._running, None
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        running.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"rank{self.rank}.json.gz"
        unfinished = self.folder / f".rank{self.rank}.tmp.json.gz"
        running.export_chrome_trace(str(unfinished))
        os.replace(unfinished, file)
        if self.snapshot:
            memory = self.folder / f"memory_rank{self.rank}.pickle"
            torch.cuda.memory._dump_snapshot(str(memory.with_suffix(".tmp")))
            torch.cuda.memory._record_memory_history(enabled=None)
            os.replace(memory.with_suffix(".tmp"), memory)
        return f"profiled: {file}"
