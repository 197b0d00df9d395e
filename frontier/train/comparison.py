"""Who is slower than the others: ranks compared at intervals, outliers named.

In synchronous training a slow rank slows all, and its own step time looks like everybody's. What differs is what a rank does
alone: a fixed matrix product, timed here, and the wait for its data. One small all-gather every `log.ranks_every` steps; rank 0 writes
RUN/ranks.jsonl, whose lines do not grow with the number of ranks.
"""

from __future__ import annotations

import json
import socket
import statistics
from pathlib import Path
from typing import Any

import torch

from frontier.launch.doctor import all_gather, product_seconds
from frontier.launch.ranks import Ranks

OUTLIER = 1.5
"""Times the median from which a rank is named."""
NAMED = 8
"""Ranks named in a line, the slowest first."""
LEAST_WAIT_S = 0.05
"""Data waits below this a step are never named."""


def outliers(values: list[float], least: float = 0.0) -> list[tuple[int, float]]:
    """(rank, times the median) of those over `OUTLIER` times the median and over `least`, slowest first, at most `NAMED`."""
    middle = max(statistics.median(values), 1e-9)
    found = [(rank, value / middle) for rank, value in enumerate(values) if value > max(OUTLIER * middle, least)]
    return sorted(found, key=lambda item: -item[1])[:NAMED]


class RankComparison:
    """Collective once every `every` steps; free otherwise."""

    def __init__(self, run_dir: Path, ranks: Ranks, device: torch.device, every: int) -> None:
        self.path, self.ranks, self.device, self.every = run_dir / "ranks.jsonl", ranks, device, every
        self.waits: list[float] = []

    def step(self, step: int, data_s: float) -> list[str]:
        """Note this rank's wait for data; when the ranks are compared, what stands out about this one."""
        self.waits.append(data_s)
        if step % self.every or self.ranks.world_size == 1:
            return []
        # The largest wait tells nothing: one file opened anew. The mean is what the step pays.
        own = torch.tensor([product_seconds(self.device), statistics.fmean(self.waits)], device=self.device)
        self.waits = []
        every = torch.empty(2 * self.ranks.world_size, device=self.device)
        all_gather(every, own)
        columns = every.view(-1, 2).T.tolist()
        found = {"product_s": outliers(columns[0]), "data_s": outliers(columns[1], LEAST_WAIT_S)}
        if self.ranks.is_main:
            row: dict[str, Any] = {"step": step, "ranks": self.ranks.world_size}
            for (name, slow), values in zip(found.items(), columns, strict=True):
                row[name] = {"median": statistics.median(values), "max": max(values), "slow": [r for r, _ in slow]}
            with open(self.path, "a") as file:
                file.write(json.dumps(row) + "\n")
        what = {"product_s": "computes a fixed product", "data_s": "waits for data"}
        return [
            f"slow rank {rank} on {socket.gethostname()}: {what[name]} {times:.1f} times as long as the median rank"
            for name, slow in found.items()
            for rank, times in slow
            if rank == self.ranks.rank
        ]
