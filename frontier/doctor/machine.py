"""What this process finds on its node: limits, devices, memory, energy counters."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
from pathlib import Path
from typing import Any

import psutil
import torch

from frontier.doctor import storage
from frontier.doctor.checks import Check, error, ok, warning
from frontier.doctor.environment import Site
from frontier.launch.ranks import Ranks
from frontier.train.metrics import device_name


def host_memory_gib() -> tuple[float, float]:
    """(total, available) GiB that processes of this node may use, the limit of the control group included."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for name, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            limit = int(Path("/sys/fs/cgroup", name).read_text())
            taken = int(Path("/sys/fs/cgroup", used).read_text())
            if limit < total:
                total, available = limit, min(available, limit - taken)
    return total / 2**30, available / 2**30


def check_host_memory() -> Check:
    total, available = host_memory_gib()
    text = f"{available:.1f} of {total:.1f} GiB available"
    if available < 0.2 * total:
        return warning("host_memory", text, "end what else runs here, or ask for the whole node", available, "GiB")
    return ok("host_memory", text, available, "GiB")


def check_limits() -> list[Check]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    if 0 <= soft < 1024:
        found = [warning("open_files", f"{files} files a process", "ulimit -n 65536", soft, "files")]
    else:
        found = [ok("open_files", f"{files} files a process", soft if soft >= 0 else None, "files")]
    return [*found, storage.shared_memory()]


def check_cores(ranks: Ranks, site: Site) -> Check:
    """Cores that this rank may run on."""
    everything = os.cpu_count() or 1
    text = f"{site.cores} of {everything} logical processors for this rank, {ranks.local_world_size} ranks on the node"
    if site.cores == 1 and everything > 1 and site.device != "cpu":
        return warning("cores", f"{text}: it must also feed its device", "srun -c7 (or --cpus-per-task)", 1, "cores")
    return ok("cores", text, site.cores, "cores")


def check_devices(ranks: Ranks, device: torch.device) -> list[Check]:
    if device.type == "cpu":
        return [ok("devices", f"no accelerator: {device_name(device)}", 0, "devices")]
    visible = torch.accelerator.device_count()
    name = device_name(device)
    text = f"{visible} x {name} visible to a rank, {ranks.local_world_size} ranks on the node"
    if 1 < visible < ranks.local_world_size:
        mend = f"start {visible} ranks a node: two on one device run in turns"
        found = [warning("devices", text, mend, visible, "devices")]
    elif visible > ranks.local_world_size:
        found = [warning("devices", text, f"start {visible} ranks a node", visible, "devices")]
    else:
        found = [ok("devices", text, visible, "devices")]
    free, total = (value / 2**30 for value in torch.accelerator.get_memory_info(device))
    memory = f"{free:.2f} of {total:.2f} GiB free"
    if free < 0.9 * total:
        mend = "another process holds memory of this device: end it, or leave this node out"
        return [*found, error("device_memory", memory, mend, free, "GiB")]
    return [*found, ok("device_memory", memory, free, "GiB")]


def check_energy(device: torch.device, ranks: Ranks) -> Check:
    """Whether joules can be measured here; nothing is guessed."""
    try:
        meter: Any = importlib.import_module("frontier.energy").open_meter(device.type, ranks.local_world_size)
    except ImportError:
        return ok("energy", "not measured: no meter in this version")
    if meter is None:
        text = "not measured: no counter can be read here"
        if device.type == "cpu":
            return ok("energy", text)
        return warning("energy", text, "pip install amdsmi (AMD) or nvidia-ml-py (NVIDIA); see docs/energy.md")
    source = meter.source
    meter.close()
    return ok("energy", f"{source.name}: {source.covers}", source.name)
