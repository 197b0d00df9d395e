"""The order of the checks: what needs nobody first, then the device, then the other ranks."""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from frontier.doctor import collectives, compare, machine, rates, storage, system
from frontier.doctor.checks import Check, bounded, error, merge, ok, warning
from frontier.doctor.environment import Site, judge
from frontier.errors import UserError
from frontier.launch.doctor import all_gather
from frontier.launch.host_memory import keep_freed_memory
from frontier.launch.process_group import choose_device, process_group
from frontier.launch.ranks import Ranks, rendezvous
from frontier.train.metrics import peak_tflops

Bound = Callable[[str], AbstractContextManager[None]]
FATAL = (
    "env.MASTER_ADDR",
    "env.MASTER_PORT",
    "env.GLOO_SOCKET_IFNAME",
    "env.NCCL_SOCKET_IFNAME",
    "env.OMP_NUM_THREADS",
)
"""With an ERROR in one of these the ranks would wait for each other in vain."""


class Output(Protocol):
    checks: list[Check]

    def hung(self, found: Check) -> None: ...


def examine(ranks: Ranks, output: Output, *, quick: bool, timeout_s: int, target: Path | None) -> None:
    """Fill `output.checks`; collective under several ranks. With `target`, measure and write a system description."""

    def bound(name: str) -> AbstractContextManager[None]:
        return bounded(name, timeout_s, output.hung)

    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    launcher = "without a launcher" if ranks.source == "alone" else f"by the variables of {ranks.source}"
    output.checks.append(
        ok("ranks", f"{ranks.world_size} on {ranks.nodes} nodes, {launcher}; this is {host}", ranks.world_size, "ranks")
    )
    with bound("versions"):
        found = machine.versions()
        own = [machine.check_versions(found), *machine.check_limits(), machine.check_host_memory()]
    with bound("devices"):
        device = choose_device(ranks)
        if device.type == "cpu":
            keep_freed_memory()  # as training does: without it every product pays for page faults
        site = Site.here(device.type, torch.version.hip is not None)
        own += [*machine.check_devices(ranks, device), machine.check_cores(ranks, site)]
    own += judge(os.environ, ranks, site)
    if ranks.world_size > 1 and any(c.status == "ERROR" and c.check in FATAL for c in own):
        output.checks += [*own, warning("collectives", "not measured: the ranks cannot meet", "mend the ERROR above")]
        return
    if ranks.local_rank == 0:
        own += _node(ranks, device, bound, quick)
    _rates(device, own, bound, quick)
    if ranks.world_size == 1 and target is None:
        output.checks += [*own, ok("collectives", "not measured: one rank")]
        return
    try:
        with process_group(ranks, device, timeout_s):
            _together(ranks, device, host, found, own, output, bound, quick, target)
    except UserError as problem:  # ranks that did not come, or were lost
        text = str(problem).split(": check MASTER_ADDR")[0].split(": its own output")[0]
        where = f"{rendezvous(ranks)[0]}"
        output.checks += own if len(output.checks) == 1 else []
        output.checks.append(
            error("rendezvous", text, f"see what the silent rank printed; can all nodes reach {where}?", timeout_s, "s")
        )


def _node(ranks: Ranks, device: torch.device, bound: Bound, quick: bool) -> list[Check]:
    """Once a node: folders and energy counters. Every node looks at its own $TMPDIR, rank 0 at the shared folder."""
    size, own = (8 << 20) if quick else (64 << 20), []
    if ranks.is_main:
        with bound("working_dir"):
            own += storage.look("working_dir", Path.cwd(), size, needed=True)
            own += storage.locking(dict(os.environ), Path.cwd())
    with bound("tmpdir"):
        asked = os.environ.get("TMPDIR")
        own += storage.look("tmpdir", Path(asked) if asked else Path(tempfile.gettempdir()), size, needed=False)
    with bound("energy"):
        own.append(machine.check_energy(device, ranks))
    return own


def _rates(device: torch.device, own: list[Check], bound: Bound, quick: bool) -> None:
    """Products, memory and copies of this rank, appended to `own`."""
    widths = (256, 512, 1024) if device.type == "cpu" else (2048, 4096, 8192)
    tokens = 512 if device.type == "cpu" else 8192
    found: dict[str, float] = {}
    for name, dtype in rates.DTYPES.items():
        with bound(f"product.{name}"):
            several = [
                rates.product_tflops((tokens, w, w), dtype, device, 3) for w in (widths[:2] if quick else widths)
            ]
        high, middle = max(several), statistics.median(several)
        found[f"product.{name}"] = high
        peak = peak_tflops(device, name)
        text = f"{high:.3g} TFLOP/s at best, {middle:.3g} typically ({tokens} tokens, widths {', '.join(map(str, widths[: len(several)]))})"
        check = ok(f"product.{name}", text, high, "TFLOP/s")
        if peak and high < 0.4 * peak:
            mend = "see whether its clock or its power is capped; leave the node out if others reach more"
            check = warning(f"product.{name}", f"{text}: {high / peak:.0%} of the peak {peak}", mend, high, "TFLOP/s")
        own.append(check)
    if found["product.bf16"] < found["product.fp32"]:
        mend = "parallel.precision=fp32 is the faster one here"
        own.append(warning("precision", "bf16 products are slower than fp32 ones on this device", mend))
    with bound("memory_bandwidth"):
        found["memory_bandwidth"] = rates.triad_gb_per_s(device, 16 << 20 if quick else None, 3)
    own.append(
        ok("memory_bandwidth", f"{found['memory_bandwidth']:.4g} GB/s (triad)", found["memory_bandwidth"], "GB/s")
    )
    if device.type != "cpu":
        with bound("host_to_device"):
            speed = rates.to_device_gb_per_s(device)
        own.append(ok("host_to_device", f"{speed:.3g} GB/s from pinned memory", speed, "GB/s"))


def _together(
    ranks: Ranks,
    device: torch.device,
    host: str,
    versions: dict[str, str | None],
    own: list[Check],
    output: Output,
    bound: Bound,
    quick: bool,
    target: Path | None,
) -> None:
    """Everything that needs the other ranks. Rank 0 alone hears of them all and judges; all learn whether an ERROR was found."""
    every: list[Any] | None = [None] * ranks.world_size if ranks.is_main else None
    fits: list[collectives.Fit] = []
    with bound("ranks"):
        dist.gather_object((host, versions, own if ranks.local_rank == 0 else []), every, dst=0)
    hosts = [e[0] for e in every or []]
    if every is not None:
        output.checks += [*merge([(e[0], e[2]) for e in every if e[2]]), _hosts(hosts, ranks)]
    if ranks.world_size > 1:
        with bound("clocks"):
            offsets = compare.clock_offsets(device)
        if every is not None:
            output.checks += [compare.check_same([e[1] for e in every], hosts), compare.check_clocks(offsets, hosts)]
        with bound("spread"):
            products, bandwidths = zip(*_at_once(device), strict=True)
        if every is not None:
            output.checks.append(compare.check_spread("product.fp32", products, hosts, "TFLOP/s"))
            output.checks.append(compare.check_spread("memory_bandwidth", bandwidths, hosts, "GB/s"))
        with bound("collectives"):
            fits = collectives.over_the_machine(device, ranks.local_world_size, quick)
        output.checks += _collectives(fits, ranks, device)
    if target is not None:
        _write_system(target, ranks, device, output, fits, bound, quick)
    failed = torch.tensor([any(c.status == "ERROR" for c in output.checks)], dtype=torch.int32, device=device)
    dist.broadcast(failed, 0)
    if failed.item() and not ranks.is_main:
        output.checks.append(error("job", "rank 0 reports an ERROR", "see its report"))


def _at_once(device: torch.device) -> list[list[float]]:
    """Collective: (TFLOP/s of a float32 product, GB/s of a triad) of every rank, all at work at the same time."""
    width = 512 if device.type == "cpu" else 4096
    dist.barrier()
    product = rates.product_tflops((width, width, width), torch.float32, device)
    own = torch.tensor([product, rates.triad_gb_per_s(device, 16 << 20)], device=device, dtype=torch.float32)
    every = torch.empty(dist.get_world_size(), 2, device=device)
    all_gather(every.view(-1), own)
    return every.tolist()


def _hosts(hosts: Sequence[str], ranks: Ranks) -> Check:
    counts = {host: hosts.count(host) for host in dict.fromkeys(hosts)}
    first = ", ".join(list(counts)[:4]) + (f" and {len(counts) - 4} more" if len(counts) > 4 else "")
    if len(set(counts.values())) > 1:
        few = min(counts, key=counts.__getitem__)
        text = f"{first}: {counts[few]} ranks on {few}, {max(counts.values())} elsewhere"
        return warning(
            "hosts", text, "give every node the same number of ranks (--ntasks-per-node)", len(counts), "hosts"
        )
    return ok("hosts", f"{first}; {ranks.local_world_size} ranks each", len(counts), "hosts")


def _collectives(fits: Sequence[collectives.Fit], ranks: Ranks, device: torch.device) -> list[Check]:
    out = []
    for fit in fits:
        name = f"{fit.collective}.{fit.ranks}"
        where = "all ranks" if fit.ranks == ranks.world_size else f"groups of {fit.ranks}"
        speed = "no growth with size" if fit.gb_per_s is None else f"{fit.gb_per_s:.3g} GB/s bus bandwidth"
        text = f"{where}: {speed}, {fit.alpha_s * 1e6:.3g} us a hop, up to {fit.points[-1][0] / 2**20:.3g} MiB"
        if device.type == "cuda" and fit.ranks > ranks.local_world_size and fit.gb_per_s and fit.gb_per_s < 2:
            mend = "RCCL/NCCL seems to use TCP sockets: load the site's libfabric or InfiniBand plugin, set NCCL_SOCKET_IFNAME"
            out.append(warning(name, text, mend, fit.gb_per_s, "GB/s"))
        else:
            out.append(ok(name, text, fit.gb_per_s, "GB/s"))
        out.append(ok(f"{name}.latency", f"{where}: {fit.alpha_s * 1e6:.3g} us a hop", fit.alpha_s * 1e6, "us"))
    return out


def _write_system(
    target: Path,
    ranks: Ranks,
    device: torch.device,
    output: Output,
    fits: Sequence[collectives.Fit],
    bound: Bound,
    quick: bool,
) -> None:
    runs = system.measure(ranks, device, quick, bound)
    if ranks.is_main:
        read = next((c.value for c in output.checks if c.check == "working_dir.read"), None)
        disk = read if isinstance(read, float) else None
        described = system.describe(target.stem, ranks, device, runs, fits, disk)
        try:
            system.write(target, described)
        except OSError as reason:
            output.checks.append(
                error("system", f"{target} could not be written: {reason.strerror}", "name a file where there is space")
            )
        else:
            output.checks.append(ok("system", f"{target}: written; `frontier plan --system {target}` uses it"))
