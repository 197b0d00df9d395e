"""How long a start takes: from the start of the process to its imports, to the first step; on all ranks, the slowest named."""

from __future__ import annotations

import math
import os
import socket
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from frontier.launch.doctor import all_gather
from frontier.launch.ranks import Ranks

PARTS = ("launch", "imports", "ready", "first_step")


def process_age_s() -> float:
    """Seconds since the kernel started this process, to 0.01 s; not a number where it does not tell (Linux does)."""
    try:
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return math.nan


class Startup:
    """Marks of this rank in seconds since its process began.

    `imports`: all modules of the trainer are loaded; `ready`: about to make the first step; `first_step`: it is made. Where
    FRONTIER_STEP_BEGAN is exported (seconds since 1970, before srun or mpiexec), `launch` is from there to the start of the
    process, by the clocks of two nodes.
    """

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self.marks: dict[str, float] = {}
        try:
            began = float((os.environ if env is None else env)["FRONTIER_STEP_BEGAN"])
            self.marks["launch"] = max(0.0, time.time() - process_age_s() - began)
        except (KeyError, ValueError):
            pass

    def mark(self, name: str) -> None:
        self.marks[name] = process_age_s()

    def gather(self, ranks: Ranks, device: torch.device) -> dict[str, dict[str, Any]]:
        """Of every mark that all ranks have: median, max, its rank and host. Collective; the same on every rank."""
        own = torch.tensor([self.marks.get(part, math.nan) for part in PARTS], device=device)
        every = torch.empty(len(PARTS) * ranks.world_size, device=device)
        all_gather(every, own)
        found: dict[str, dict[str, Any]] = {}
        hosts: dict[int, str] = {}
        for part, values in zip(PARTS, every.view(-1, len(PARTS)).T.tolist(), strict=True):
            if not all(map(math.isfinite, values)):
                continue
            slowest = values.index(max(values))
            if slowest not in hosts:
                told = [socket.gethostname()]
                dist.broadcast_object_list(told, src=slowest)
                hosts[slowest] = told[0]
            found[part] = {
                "median": round(statistics.median(values), 3),
                "max": round(max(values), 3),
                "max_rank": slowest,
                "max_host": hosts[slowest],
            }
        return found


def line(found: dict[str, dict[str, Any]]) -> str:
    """For a terminal."""
    words = {"launch": "launch", "imports": "imports done", "ready": "ready", "first_step": "first step made"}
    parts = [f"{words[part]} {figure['median']:.1f} s ({figure['max']:.1f})" for part, figure in found.items()]
    if not parts:
        return "start-up: not measured"
    slowest = list(found.values())[-1]
    return f"start-up, median of the ranks (slowest): {', '.join(parts)}; slowest rank {slowest['max_rank']} on {slowest['max_host']}"
