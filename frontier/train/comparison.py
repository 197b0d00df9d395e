"""Who is slower than the others: ranks compared at intervals, outliers named.

In synchronous training a slow rank slows all, and its own step time looks like everybody's. What differs is what a rank does
alone: a fixed matrix product, timed here, its own share of the steps (without waits for others and for data), and the wait for
its data. One small all-gather every `log.ranks_every` steps and at the last one; rank 0 writes RUN/ranks.jsonl, whose lines do not grow
with the number of ranks: of every quantity median, maximum, the rank that has it and its factor over the median.
"""

from __future__ import annotations

import json
import math
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
WARM_UP = 3
"""First steps of a start that do not count: compilation and memory that is still growing."""
SAID = {"product_s": "computes a fixed product", "data_s": "waits for data"}
"""What is said of an outlier. `work_s` is for reports: a rank that is slow there is slow in one of these, or shares its cores."""


def outliers(values: list[float], least: float = 0.0) -> list[tuple[int, float]]:
    """(rank, times the median) of those over `OUTLIER` times the median and over `least`, slowest first, at most `NAMED`."""
    middle = max(statistics.median(values), 1e-9)
    found = [(rank, value / middle) for rank, value in enumerate(values) if value > max(OUTLIER * middle, least)]
    return sorted(found, key=lambda item: -item[1])[:NAMED]


def spread(values: list[float]) -> dict[str, Any] | None:
    """Median and maximum, the rank that has it and how many times the median it is; None where a rank measured nothing."""
    if not all(map(math.isfinite, values)):
        return None
    middle, most = statistics.median(values), max(values)
    return {
        "median": middle,
        "max": most,
        "max_rank": values.index(most),
        "factor": most / middle if middle > 0 else None,
    }


class RankComparison:
    """Collective once every `every` steps and at step `last`; free otherwise."""

    def __init__(self, run_dir: Path, ranks: Ranks, device: torch.device, every: int, last: int) -> None:
        self.path, self.ranks, self.device = run_dir / "ranks.jsonl", ranks, device
        self.every, self.last = every, last
        self.steps = 0
        self.waits: list[float] = []
        self.work: list[float] = []

    def step(self, step: int, parts: dict[str, float], exposed_s: float | None, memory_gib: float) -> list[str]:
        """Note this rank's step by parts; when the ranks are compared, what stands out about this one."""
        self.steps += 1
        self.waits.append(parts["data_s"])
        if self.steps > WARM_UP:
            own = sum(parts[part] for part in ("forward_s", "backward_s", "optimizer_s"))
            self.work.append(math.nan if exposed_s is None else own - exposed_s)
        if (step % self.every and step != self.last) or self.ranks.world_size == 1:
            return []
        # The largest wait tells nothing: one file opened anew. The mean is what the step pays.
        figures = {
            "product_s": product_seconds(self.device),
            "data_s": statistics.fmean(self.waits),
            "work_s": statistics.fmean(self.work) if self.work else math.nan,
            "memory_gib": memory_gib,
        }
        self.waits, self.work = [], []
        own_figures = torch.tensor(list(figures.values()), device=self.device)
        every = torch.empty(len(figures) * self.ranks.world_size, device=self.device)
        all_gather(every, own_figures)
        columns = dict(zip(figures, every.view(-1, len(figures)).T.tolist(), strict=True))
        slow = {"product_s": outliers(columns["product_s"]), "data_s": outliers(columns["data_s"], LEAST_WAIT_S)}
        if self.ranks.is_main:
            row: dict[str, Any] = {"step": step, "ranks": self.ranks.world_size}
            row |= {name: spread(values) for name, values in columns.items()}
            for name, found in slow.items():
                row[name]["slow"] = [rank for rank, _ in found]
            with open(self.path, "a") as file:
                file.write(json.dumps(row) + "\n")
        return [
            f"slow rank {rank} on {socket.gethostname()}: {SAID[name]} {times:.1f} times as long as the median rank"
            for name, found in slow.items()
            for rank, times in found
            if rank == self.ranks.rank
        ]
