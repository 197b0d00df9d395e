"""The device of every rank, and whether they go together: judged by rank 0, over the store, before the process group."""

from __future__ import annotations

import json
import os
import socket
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from frontier.errors import UserError
from frontier.launch.ranks import Ranks

MASKS = (
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "ZE_AFFINITY_MASK",
)
"""Variables that hide devices from a process."""
FAREWELL_S = 10
"""At most so long rank 0, where the store lives, waits for the others to have read a bad verdict."""


@dataclass(frozen=True)
class Seen:
    """What one rank found.

    Attributes:
        kind: cuda (ROCm too), xpu or cpu: what it computes on.
        index: of the device among the `visible` ones.
        identity: UUID and PCI address, the same for two ranks that share a device; "" unknown.
        masks: the variables that hide devices, as set here.
        lacks: why it cannot compute on what it was asked to; "" it can.
    """

    rank: int
    host: str
    kind: str
    index: int = 0
    visible: int = 0
    identity: str = ""
    masks: str = ""
    lacks: str = ""


def find_device(ranks: Ranks, wanted: str = "auto") -> tuple[torch.device, Seen]:
    """The device of this rank, made current, and what it saw. Never raises for what is missing: see `judge`.

    The index is local_rank modulo the visible devices: a launcher that shows every rank one device (Frontier's
    `--gpus-per-task=1 --gpu-bind=closest`) makes it 0.

    Args:
        wanted: cuda, xpu, cpu, or auto: an accelerator where there is one, else the CPU.
    """
    host = socket.gethostname()
    masks = " ".join(f"{name}={os.environ[name]}" for name in MASKS if name in os.environ)
    counts = {"cuda": torch.cuda.device_count, "xpu": torch.xpu.device_count}
    kinds = {"auto": ("cuda", "xpu"), "cpu": ()}.get(wanted, (wanted,))
    kind, visible = next(((kind, n) for kind in kinds if (n := counts[kind]()) > 0), ("cpu", 0))
    lacks, index, identity = "", 0, ""
    if kind != "cpu":
        index = ranks.local_rank % visible
        try:
            torch.accelerator.set_device_index(index)
            identity = _identity(kind, index)
        except RuntimeError as error:
            lacks = f"{kind} device {index} does not answer ({str(error).splitlines()[0][:120]}): leave the node out (--exclude={host}) and tell the site"
    elif wanted not in ("auto", "cpu"):
        lacks = _nothing(wanted, masks)
    device = torch.device("cpu") if kind == "cpu" else torch.device(kind, index)
    return device, Seen(ranks.rank, host, kind, index, visible, identity, masks, lacks)


def _identity(kind: str, index: int) -> str:
    """Both, for either alone may be common to the parts of one card; of Intel's tiles neither is known to tell them apart."""
    if kind != "cuda":
        return ""
    properties = torch.cuda.get_device_properties(index)
    found = [getattr(properties, name, None) for name in ("uuid", "pci_domain_id", "pci_bus_id", "pci_device_id")]
    return "" if None in found else ":".join(map(str, found))


def _nothing(wanted: str, masks: str) -> str:
    build = (
        "CUDA" if torch.version.cuda else "ROCm" if torch.version.hip else "Intel GPUs" if torch.version.xpu else "CPUs"
    )
    built = {"cuda": ("CUDA", "ROCm"), "xpu": ("Intel GPUs",)}[wanted]
    drivers = {"cuda": ("/dev/nvidia0", "/dev/kfd"), "xpu": ("/dev/dri",)}[wanted]
    driver = next((path for path in drivers if Path(path).exists()), f"no {' or '.join(drivers)}")
    saw = f"PyTorch {torch.__version__}, built for {build}, {driver}, {masks or 'no mask'}"
    serves = {"/dev/nvidia0": ("CUDA",), "/dev/kfd": ("ROCm",)}.get(driver, built)
    mend = (
        "ask the scheduler for GPUs and load the site's modules"
        if build in serves
        else f"install PyTorch for {' or '.join(serves)}, as docs/sites.md says for the site"
    )
    return f"run.device={wanted} and no such device ({saw}): {mend}; run.device=auto takes what is there"


def judge(seen: Sequence[Seen]) -> str:
    """What is wrong with the devices of all ranks taken together, in one line; "" nothing.

    A rank without the device that it needs; some ranks on a GPU and others not; several ranks on one GPU. Whether a GPU is
    the same is known by its identity; without one, only where ranks of a node see the same several devices.
    """
    lacking = [s for s in seen if s.lacks]
    if lacking:
        return f"rank {lacking[0].rank} on {lacking[0].host}: {lacking[0].lacks}{_and_more(len(lacking) - 1)}"
    other = [s for s in seen if s.kind != seen[0].kind]
    if other:
        poor = [s for s in seen if s.kind == "cpu"] or other
        rich = next(s for s in seen if s.kind != poor[0].kind)
        return (
            f"rank {poor[0].rank} on {poor[0].host} finds {poor[0].kind}, rank {rich.rank} on {rich.host} {rich.kind}{_and_more(len(poor) - 1)}: "
            f"all need the same: leave the node out (--exclude={poor[0].host}), or train on CPUs with run.device=cpu"
        )
    if seen[0].kind == "cpu":
        return ""
    hosts: dict[str, list[Seen]] = defaultdict(list)
    for s in seen:
        hosts[s.host].append(s)
    doubled = {host: groups for host, here in hosts.items() if len(groups := _devices(here)) < len(here)}
    if not doubled:
        return ""
    host, groups = next(iter(doubled.items()))
    ranks, devices = len(hosts[host]), len(groups)
    together = next(group for group in groups if len(group) > 1)
    named = " and ".join(str(s.rank) for s in together[:4])
    more = f" (and on {len(doubled) - 1} more nodes)" if len(doubled) > 1 else ""
    return (
        f"{ranks} ranks and {devices} GPU{'s' * (devices > 1)} on {host}{more}: ranks {named} would share one: start {devices} a node "
        f"(FRONTIER_RANKS_PER_NODE={devices}, srun --ntasks-per-node={devices}, --ranks {devices}), or ask for {ranks} GPUs"
    )


def _and_more(count: int) -> str:
    return f" (and {count} more rank{'s' * (count > 1)})" if count else ""


def _devices(here: Sequence[Seen]) -> list[list[Seen]]:
    """The ranks of a node by the device they are on."""
    same_view = (
        len({(s.masks, s.visible) for s in here}) == 1
    )  # then another index is another device, whatever its identity
    groups: dict[tuple[object, ...], list[Seen]] = defaultdict(list)
    for s in here:
        if s.identity:
            key: tuple[object, ...] = (s.identity, s.index if same_view else -1)
        elif same_view and s.visible > 1:
            key = (s.index,)
        else:
            key = ("unknown", s.rank)
        groups[key].append(s)
    return list(groups.values())


def agree(store: dist.Store, ranks: Ranks, own: Seen) -> None:
    """Tell rank 0 what this rank has seen and hear its verdict. On every rank, before the process group.

    Raises:
        UserError: the devices do not go together, or a rank cannot start; the same line on every rank.
    """
    if ranks.is_main:
        store.set("device/0", json.dumps(asdict(own)))
        facts = store.multi_get([f"device/{rank}" for rank in range(ranks.world_size)])
        verdict = judge([Seen(**json.loads(fact)) for fact in facts])
        store.set("device/verdict", verdict)
    else:
        store.set(f"device/{ranks.rank}", json.dumps(asdict(own)))
        verdict = store.get("device/verdict").decode()
    if not verdict:
        return
    _farewell(store, ranks, FAREWELL_S)
    raise UserError(verdict)


def refuse(store: dist.Store, ranks: Ranks, why: str, patience_s: float) -> str:
    """This rank cannot start: no other may wait for it. In the place of `agree`; returns what rank 0 says.

    Args:
        why: in one line; of rank 0 it is the verdict at once, whatever the others have seen.
        patience_s: at most so long rank 0 waits for the others to have read it.
    """
    if not ranks.is_main:
        try:
            agree(store, ranks, Seen(ranks.rank, socket.gethostname(), "cpu", lacks=why))
        except UserError as verdict:
            return str(verdict)
        raise AssertionError("rank 0 heard of a rank that cannot start, and found nothing wrong")
    store.set("device/verdict", why)
    _farewell(store, ranks, patience_s)
    return why


def _farewell(store: dist.Store, ranks: Ranks, patience_s: float) -> None:
    """A bad verdict is read; the store lives on rank 0, which leaves last."""
    if store.add("device/read", 1) == ranks.world_size:
        store.set("device/all_read", "")
    if ranks.is_main:
        with suppress(dist.DistError):
            store.wait(["device/all_read"], timedelta(seconds=patience_s))
