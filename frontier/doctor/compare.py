"""Ranks held against each other: clocks, versions, speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from frontier.doctor.checks import Check, error, ok, warning
from frontier.launch.doctor import all_gather

SLOW = 0.75
"""A rank below this part of the median rate is named."""
SKEW_S = 1.0


def clock_offsets(device: torch.device, rounds: int = 5) -> list[float]:
    """Collective: seconds that each rank's clock is ahead of rank 0's, the median of `rounds` barriers."""
    seen = []
    every = torch.empty(dist.get_world_size(), 2, dtype=torch.int64, device=device)
    for _ in range(rounds):
        dist.barrier()
        all_gather(every.view(-1), torch.tensor(divmod(time.time_ns(), 10**9), dtype=torch.int64, device=device))
        (first_s, first_ns), *_ = times = every.tolist()
        seen.append([(s - first_s) + (ns - first_ns) / 1e9 for s, ns in times])
    return [statistics.median(column) for column in zip(*seen, strict=True)]


def check_clocks(offsets: Sequence[float], hosts: Sequence[str]) -> Check:
    worst = max(range(len(offsets)), key=lambda r: abs(offsets[r]))
    apart = max(offsets) - min(offsets)
    if abs(offsets[worst]) > SKEW_S:
        text = f"rank {worst} on {hosts[worst]} is {offsets[worst]:+.2f} s off rank 0"
        return warning("clocks", text, "tell the site's support: file times and logs will not fit together", apart, "s")
    return ok("clocks", f"{apart * 1e3:.1f} ms apart, the barrier's own spread included", apart, "s")


def check_same(found: Sequence[dict[str, str | None]], hosts: Sequence[str]) -> Check:
    """Versions of all ranks."""
    for rank, other in enumerate(found):
        for name, version in found[0].items():
            if other.get(name) != version:
                text = f"{name} is {version} on rank 0 and {other.get(name)} on rank {rank} ({hosts[rank]})"
                return error("same_versions", text, "start all ranks from one environment")
    return ok("same_versions", f"the same on all {len(found)} ranks", len(found), "ranks")


def check_spread(name: str, rates: Sequence[float], hosts: Sequence[str], unit: str) -> Check:
    """Names the slowest rank where it is far below the median."""
    median = statistics.median(rates)
    slowest = min(range(len(rates)), key=rates.__getitem__)
    part = rates[slowest] / median
    text = f"slowest rank {slowest} on {hosts[slowest]}: {rates[slowest]:.3g} {unit}, {part:.0%} of the median"
    if part < SLOW:
        mend = f"find what else runs on {hosts[slowest]}"
        if len(set(hosts)) > 1:
            mend += f", or leave it out (sbatch --exclude={hosts[slowest]})"
        return warning(f"{name}.spread", text, mend, part, "of the median")
    return ok(f"{name}.spread", text, part, "of the median")
