"""Latency and bandwidth of collectives, fitted to measured times."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from frontier.launch.doctor import all_gather, reduce_scatter, seconds

SIZES = (4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20)
QUICK = (4 << 10, 256 << 10, 4 << 20)
ENOUGH_S = 0.5
"""Larger tensors are left out once one call takes so long."""


@dataclass(frozen=True)
class Fit:
    """t(S) = hops x alpha_s + wire(S) / gb_per_s of a ring of `ranks`, for a whole tensor of S bytes.

    all_gather and reduce_scatter: hops = n - 1, wire = S (n - 1) / n; all_reduce twice both.
    """

    collective: str
    ranks: int
    alpha_s: float
    gb_per_s: float | None
    """None where times do not grow with the size."""
    points: tuple[tuple[int, float], ...]
    """(bytes of the whole tensor, median seconds of the slowest rank)"""


def _turns(collective: str) -> int:
    return 2 if collective == "all_reduce" else 1


def fit(collective: str, ranks: int, points: Sequence[tuple[int, float]]) -> Fit:
    """Least squares of relative errors, both constants at least 0."""
    sizes, times = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    turns = _turns(collective)
    hops = np.full_like(sizes, turns * (ranks - 1))
    wire = turns * sizes * (ranks - 1) / ranks / 1e9
    matrix, one = np.stack([hops / times, wire / times], 1), np.ones_like(times)
    alpha, per_gb = np.linalg.lstsq(matrix, one, rcond=None)[0]
    if alpha < 0 or per_gb < 0:  # the best on the border of the quadrant
        alone = [column @ one / (column @ column) for column in matrix.T]
        errors = [float(np.sum((column * x - 1) ** 2)) for column, x in zip(matrix.T, alone, strict=True)]
        alpha, per_gb = (alone[0], 0.0) if errors[0] < errors[1] else (0.0, alone[1])
    return Fit(
        collective,
        ranks,
        float(alpha),
        1 / float(per_gb) if per_gb > 0 else None,
        tuple((int(s), t) for s, t in points),
    )


def _action(collective: str, size: int, ranks: int, device: torch.device, group: dist.ProcessGroup) -> Callable:
    count = max(1, size // 4 // ranks) * ranks
    whole, part = torch.ones(count, device=device), torch.ones(count // ranks, device=device)
    if collective == "all_reduce":
        return lambda: dist.all_reduce(whole, group=group)
    if collective == "all_gather":
        return lambda: all_gather(whole, part, group=group)
    return lambda: reduce_scatter(part, whole, group=group)


def measure(group: dist.ProcessGroup, device: torch.device, sizes: Sequence[int]) -> list[Fit]:
    """The three collectives of FSDP over `group`. Collective over the world: all groups of a mesh axis measure at once."""
    ranks = dist.get_world_size(group)
    fits = []
    for collective in ("all_reduce", "all_gather", "reduce_scatter"):
        points: list[tuple[int, float]] = []
        for size in sizes:
            dist.barrier()
            taken = seconds(_action(collective, size, ranks, device, group), device, 7 if size <= 1 << 20 else 5)
            own = torch.tensor([statistics.median(taken)], device=device, dtype=torch.float32)
            dist.all_reduce(own, op=dist.ReduceOp.MAX)
            points.append((max(1, size // 4 // ranks) * ranks * 4, own.item()))
            if own.item() > ENOUGH_S:
                break
        fits.append(fit(collective, ranks, points))
    return fits


def sizes_of_groups(world: int, local: int, quick: bool) -> list[int]:
    """Numbers of consecutive ranks to measure: powers of two inside a node, a node, everything."""
    inside = [] if quick else [n for n in (2**k for k in range(1, 20)) if n < local and local % n == 0]
    whole = {n for n in (local, world) if n > 1 and world % n == 0}
    return sorted({*inside, *whole})


def over_the_machine(device: torch.device, local: int, quick: bool = False) -> list[Fit]:
    """Collective over the world: fits for every size of group, innermost first."""
    world, fits = dist.get_world_size(), []
    for ranks in sizes_of_groups(world, local, quick):
        if ranks == world:
            group = dist.group.WORLD
        else:
            group = init_device_mesh(device.type, (world // ranks, ranks), mesh_dim_names=("of", "in"))[
                "in"
            ].get_group()
        assert group is not None
        fits += measure(group, device, QUICK if quick else SIZES)
    return fits
