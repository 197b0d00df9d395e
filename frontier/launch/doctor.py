"""Numbers of the machine as this job sees it, measured before the first step (`run.doctor: true`)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

# Their names changed in PyTorch 2.13.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

MIB = 16
"""Size of the tensors that collectives are measured with, MiB a rank."""


def seconds(action: Callable[[], object], device: torch.device, repeats: int = 3) -> list[float]:
    """Seconds of each of `repeats` runs, after one that warms up."""
    taken = []
    for turn in range(repeats + 1):
        if device.type != "cpu":
            torch.accelerator.synchronize()
        start = time.perf_counter()
        action()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        if turn:
            taken.append(time.perf_counter() - start)
    return taken


def _shortest(action: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    return min(seconds(action, device, repeats))


def product_seconds(device: torch.device, repeats: int = 3) -> float:
    """The shortest of `repeats` timings of one float32 product of squares (512 on a CPU, 4096 elsewhere), seconds."""
    size = 512 if device.type == "cpu" else 4096
    a = torch.ones(size, size, device=device)
    return _shortest(lambda: a @ a, device, repeats)


def examine(device: torch.device) -> dict[str, Any]:
    """Product rate of the ranks and bandwidth of collectives over all of them. Collective; the same on every rank.

    Bandwidths are bus bandwidths, GB/s: bytes of the larger tensor over time, times (n - 1) / n, twice that for all_reduce (the
    convention of nccl-tests), so they compare with a link's rate at any number n of ranks.
    """
    world = dist.get_world_size()
    size = 512 if device.type == "cpu" else 4096
    own = torch.tensor([2 * size**3 / product_seconds(device) / 1e9], device=device)
    every = torch.empty(world, device=device)
    all_gather(every, own)
    rates = every.tolist()
    found: dict[str, Any] = {
        "product_gflops": {
            "min": min(rates),
            "median": statistics.median(rates),
            "slowest_rank": rates.index(min(rates)),
        }
    }
    if world > 1:
        count = MIB * 2**18 // world * world
        whole, part = torch.ones(count, device=device), torch.ones(count // world, device=device)
        wire = 4 * count * (world - 1) / world / 1e9
        found["bus_gb_per_s"] = {
            "all_reduce": 2 * wire / _shortest(lambda: dist.all_reduce(whole), device),
            "all_gather": wire / _shortest(lambda: all_gather(whole, part), device),
            "reduce_scatter": wire / _shortest(lambda: reduce_scatter(part, whole), device),
        }
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """For a terminal."""
    rate = found["product_gflops"]
    out = [
        f"doctor: float32 product {rate['median']:.0f} GFLOP/s a rank (median; slowest {rate['min']:.0f}, rank {rate['slowest_rank']})"
    ]
    if "bus_gb_per_s" in found:
        parts = ", ".join(f"{name} {value:.2f}" for name, value in found["bus_gb_per_s"].items())
        out.append(f"doctor: bus bandwidth over all ranks, {MIB} MiB, GB/s: {parts}")
    return out
