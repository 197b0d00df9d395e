"""The order of the checks: what needs nobody first, then the device, then the other ranks."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from frontier.doctor import collectives, compare, environment, libraries, links, machine, meeting, nodes, rates, storage
from frontier.doctor import system as systems
from frontier.doctor.checks import Check, error, ok, warning
from frontier.doctor.meeting import Meeting
from frontier.doctor.visit import FATAL, Options, Output, Visit, check_targets, conclude, gather, lost
from frontier.errors import EXIT_TRANSIENT, TransientError, UserError
from frontier.launch.devices import find_device
from frontier.launch.doctor import all_gather
from frontier.launch.host_memory import keep_freed_memory
from frontier.launch.process_group import process_group
from frontier.launch.ranks import Ranks
from frontier.train.metrics import peak_tflops

WINDOW_S = 0.5
"""Each of the rates that ranks are compared by is measured for so long."""


def examine(ranks: Ranks, output: Output, options: Options) -> int:
    """Look at everything, report on rank 0, return the exit code; collective under several ranks.

    Raises:
        UserError: a file that was asked for cannot be written.
    """
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    visit = Visit(ranks, options, output, host, time.time())
    with visit.bound("env.MASTER_ADDR"):
        apart = [c for c in environment.meeting_place(os.environ, ranks) if c.status == "ERROR"]
    if ranks.world_size > 1 and not apart:
        try:
            visit.meeting = Meeting(ranks, host, options.timeout_s)
        except TransientError as problem:
            if not ranks.is_main:
                return _without_rank_0(visit, str(problem))
            apart = [error("rendezvous", str(problem), "export MASTER_PORT=<a free port>, and MASTER_ADDR=<this host>")]
    try:
        if ranks.is_main:
            check_targets(options)
    except UserError:
        if visit.meeting:
            visit.meeting.tell("go", "stop")
            visit.meeting.tell("verdict", str(UserError.exit_code))
            visit.meeting.leave()
        raise
    if apart and not ranks.is_main:
        return EXIT_TRANSIENT
    device = _alone(visit)
    if visit.meeting is not None:
        return _with_others(visit, visit.meeting, device)
    visit.own += [c for c in apart if c.check == "rendezvous"]
    if gather(visit) and options.target is not None:
        with process_group(ranks, device, options.timeout_s):
            _write_system(visit, device, options.target, [])
    conclude(visit)
    return output.end()


def _alone(visit: Visit) -> torch.device:
    """All that needs nobody else, into `own` and `facts`; returns the device."""
    ranks, own, options = visit.ranks, visit.own, visit.options
    whole = ranks.local_rank == 0
    if options.local is not None and whole:
        with visit.bound("local"), contextlib.suppress(OSError):
            options.local.mkdir(exist_ok=True)  # a user's own folder below the mount
    with visit.bound("versions"):
        visit.facts["versions"] = libraries.versions(os.environ, whole)
        visit.facts["places"] = libraries.places(os.environ, whole, options.local)
        own += [libraries.check_versions(visit.facts["versions"]), *machine.check_limits(), machine.check_host_memory()]
    with visit.bound("devices"):
        device, seen = find_device(ranks)
        if seen.lacks:
            raise UserError(f"rank {ranks.rank} on {visit.host}: {seen.lacks}")
        if device.type == "cpu":
            keep_freed_memory()  # as training does: without it every product pays for page faults
            own.append(libraries.check_cpu_operators())
        site = environment.Site.here(device.type, torch.version.hip is not None)
        own += [*machine.check_devices(ranks, device), machine.check_cores(ranks, site)]
    own += environment.judge(os.environ, ranks, site)
    if whole:
        _node(visit, device)
    if not any(c.status == "ERROR" and c.check in (*FATAL, "env.MASTER_ADDR", "env.MASTER_PORT") for c in own):
        _rates(visit, device)
    return device


def _without_rank_0(visit: Visit, problem: str) -> int:
    """Rank 0 writes the list of bad nodes. Where it is the one that is missing, the first rank of the second node does."""
    ranks, path = visit.ranks, visit.options.bad_nodes
    host = meeting.host_of_rank_0(os.environ)
    if ranks.rank == ranks.local_world_size and path is not None and host is not None:
        with contextlib.suppress(OSError):
            if not (path.exists() and path.stat().st_mtime >= visit.began):
                path.parent.mkdir(parents=True, exist_ok=True)
                nodes.write(path, f"{host} rendezvous: {problem}\n")
    if ranks.local_rank == 0:
        visit.output.abort(problem)
    return EXIT_TRANSIENT


def _with_others(visit: Visit, meet: Meeting, device: torch.device) -> int:
    ranks, timeout_s = visit.ranks, visit.options.timeout_s
    meet.doing = ""
    try:
        if ranks.is_main:
            goes = gather(visit)
            meet.tell("go", "go" if goes else "stop")
        else:
            meet.send(visit.sent())
            goes = meet.ask("go", 3 * timeout_s + 30) == "go"
    except RuntimeError as problem:
        return _without_rank_0(visit, _gone(visit, problem))
    if goes:
        try:
            # Longer than the bound of any check: rank 0 finds out who is late while all are still there.
            with process_group(ranks, device, 2 * timeout_s + 60, dist.PrefixStore("group", meet.store)):
                _together(visit, device)
        except UserError as problem:
            if ranks.is_main:
                visit.output.checks += lost(visit, f"contact was lost ({_cause(problem)})")
    if ranks.is_main:
        conclude(visit)
        return visit.output.end()
    try:
        meet.doing = ""
        code = int(meet.ask("verdict", timeout_s + 30))
        meet.leave()
        return code
    except RuntimeError as problem:
        return _without_rank_0(visit, _gone(visit, problem))


def _cause(problem: UserError) -> str:
    """The backend's words, which the message ends with."""
    return str(problem).rpartition("(")[2].rstrip(")")[:120]


def _gone(visit: Visit, problem: RuntimeError) -> str:
    return (
        f"rank {visit.ranks.rank} on {visit.host} lost rank 0, which died or hung ({str(problem).splitlines()[0][:80]})"
    )


def _node(visit: Visit, device: torch.device) -> None:
    """Once a node: its own folders and energy counters; rank 0 also writes to the shared folder."""
    own, local = visit.own, visit.options.local
    size = (8 << 20) if visit.options.quick else (64 << 20)
    asked = Path(os.environ.get("TMPDIR") or "/tmp")
    with visit.bound("working_dir"):
        free = {"run_gib": storage.free_gib(Path.cwd())}
        if visit.ranks.is_main:
            own += storage.look("working_dir", Path.cwd(), size, needed=True)
            own += storage.locking(dict(os.environ), Path.cwd())
    with visit.bound("tmpdir"):
        own += storage.look("tmpdir", asked, size, needed=asked == Path("/tmp"))
        if asked != Path("/tmp"):
            own += storage.look("tmp", Path("/tmp"), size, needed=True)
        free["tmp_gib"] = storage.free_gib(Path("/tmp"))
    with visit.bound("local"):
        if local is not None:
            own += storage.look("local", local, size, needed=True)
        free["local_gib"] = storage.free_gib(local)
    visit.facts["free"] = free
    with visit.bound("energy"):
        own.append(machine.check_energy(device, visit.ranks))


def _rates(visit: Visit, device: torch.device) -> None:
    """Products, memory and copies of this rank."""
    own, quick = visit.own, visit.options.quick
    widths = (256, 512, 1024) if device.type == "cpu" else (2048, 4096, 8192)
    tokens = 512 if device.type == "cpu" else 8192
    found: dict[str, float] = {}
    for name, dtype in rates.DTYPES.items():
        with visit.bound(f"product.{name}"):
            several = [
                rates.product_tflops((tokens, w, w), dtype, device, 3) for w in (widths[:2] if quick else widths)
            ]
        high, middle = max(several), statistics.median(several)
        found[name] = high
        peak = peak_tflops(device, name)
        text = f"{high:.3g} TFLOP/s at best, {middle:.3g} typically ({tokens} tokens, widths {', '.join(map(str, widths[: len(several)]))})"
        check = ok(f"product.{name}", text, high, "TFLOP/s")
        if peak and high < 0.4 * peak:
            mend = "see whether its clock or its power is capped; leave the node out if others reach more"
            check = warning(f"product.{name}", f"{text}: {high / peak:.0%} of the peak {peak}", mend, high, "TFLOP/s")
        own.append(check)
    if found["bf16"] < found["fp32"]:
        mend = "parallel.precision=fp32 is the faster one here"
        own.append(warning("precision", "bf16 products are slower than fp32 ones on this device", mend))
    with visit.bound("memory_bandwidth"):
        speed = rates.triad_gb_per_s(device, 16 << 20 if quick else None, 3)
    own.append(ok("memory_bandwidth", f"{speed:.4g} GB/s (triad)", speed, "GB/s"))
    if device.type != "cpu":
        with visit.bound("host_to_device"):
            speed = rates.to_device_gb_per_s(device)
        own.append(ok("host_to_device", f"{speed:.3g} GB/s from pinned memory", speed, "GB/s"))
        visit.facts["host_to_device"] = speed


def _together(visit: Visit, device: torch.device) -> None:
    """Everything that needs the other ranks. All measure and hear of all numbers; rank 0 reports."""
    ranks, checks, hosts, table = visit.ranks, visit.output.checks, visit.hosts, visit.table
    with visit.together("clocks"):
        offsets = compare.clock_offsets(device)
        names = _names(visit.host, device)
    if ranks.is_main:
        clocks = compare.clocks_of_nodes(offsets, hosts)
        checks.append(compare.check_clocks(clocks))
        nodes.fill(table, "clock_s", list(clocks.values()), list(clocks))
    products, bandwidths = _at_once(visit, device)
    if ranks.is_main:
        checks.append(compare.check_spread("product.fp32", products, hosts, "TFLOP/s"))
        checks.append(compare.check_spread("memory_bandwidth", bandwidths, hosts, "GB/s"))
        nodes.fill(table, "product_tflops", products, hosts)
        nodes.fill(table, "memory_gb_per_s", bandwidths, hosts)
    _links(visit, names, device)
    with visit.together("collectives"):
        fits = collectives.over_the_machine(device, ranks.local_world_size, visit.options.quick)
    checks += _collectives(fits, ranks, device)
    if visit.options.target is not None:
        _write_system(visit, device, visit.options.target, fits)


def _names(host: str, device: torch.device) -> list[str]:
    """Collective: for every rank a word that it shares with the ranks of its node; their names are longer than 8 bytes."""
    own = int.from_bytes(hashlib.sha256(host.encode()).digest()[:8], "big", signed=True)
    every = torch.empty(dist.get_world_size(), dtype=torch.int64, device=device)
    all_gather(every, torch.tensor([own], device=device))
    return [str(name) for name in every.tolist()]


def _at_once(visit: Visit, device: torch.device) -> tuple[list[float], list[float]]:
    """Collective: (TFLOP/s of a float32 product, GB/s of a triad) of every rank, all at work at the same time.

    Where a rank looks slow all measure again, and the better of both counts: on a shared machine once is chance.
    """
    width, size = (512, 16 << 20) if device.type == "cpu" else (4096, 512 << 20)
    x, layer = torch.ones(width, width, device=device), torch.ones(width, width, device=device)
    b, c, a = (torch.ones(size // 4, device=device) for _ in range(3))
    best: list[list[float]] = []
    for _ in range(2):
        with visit.together("spread"):
            dist.barrier()
        with visit.bound("spread"):
            product = compare.sustained(lambda: torch.mm(x, layer), device, WINDOW_S) * 2 * width**3 / 1e12
            triad = compare.sustained(lambda: torch.add(b, c, alpha=3.0, out=a), device, WINDOW_S) * 3 * size / 1e9
        with visit.together("spread"):
            every = torch.empty(dist.get_world_size(), 2, device=device)
            all_gather(every.view(-1), torch.tensor([product, triad], device=device))
        now = [list(column) for column in zip(*every.tolist(), strict=True)]
        best = [list(map(max, *pair)) for pair in zip(best or now, now, strict=True)]
        if not any(compare.low(column) for column in best):
            break
    return best[0], best[1]


def _links(visit: Visit, names: Sequence[str], device: torch.device) -> None:
    """`link` between nodes, on a CPU by their first ranks, else by all devices at once; `link.inside` between a node's ranks."""
    members = links.grid(names)
    lanes = 1 if device.type == "cpu" else min(map(len, members))
    between, inside = links.plan(members, lanes)
    size = (4 << 20) if device.type == "cpu" else (64 << 20)
    checks, hosts = visit.output.checks, visit.hosts
    if len(members) > 1:
        with visit.together("link"):
            found = links.measure(between, device, size)
            if links.check_between(links.of_nodes(found, names)).status != "OK":
                found = links.better(found, links.measure(between, device, size))
        if visit.ranks.is_main:
            pairs = links.of_nodes(found, hosts)
            checks.append(links.check_between(pairs))
            best = links.best_of(pairs)
            nodes.fill(visit.table, "link_gb_per_s", list(best.values()), list(best))
    if inside:
        with visit.together("link.inside"):
            found = links.measure(inside, device, size)
            if links.check_inside(found, members, names).status != "OK":
                found = links.better(found, links.measure(inside, device, size))
        if visit.ranks.is_main:
            checks.append(links.check_inside(found, members, hosts))


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


def _write_system(visit: Visit, device: torch.device, target: Path, fits: Sequence[collectives.Fit]) -> None:
    runs = systems.measure(visit.ranks, device, visit.options.quick, visit.together)
    if not visit.ranks.is_main:
        return
    checks = visit.output.checks
    read = next((c.value for c in checks if c.check == "working_dir.read"), None)
    disk = read if isinstance(read, float) else None
    described = systems.describe(target.stem, visit.ranks, device, runs, fits, disk)
    try:
        nodes.write(target, systems.text_of(described))
    except OSError as reason:
        mend = "name a file where there is space"
        checks.append(error("system", f"{target} could not be written: {reason.strerror}", mend))
    else:
        checks.append(ok("system", f"{target}: written; `frontier plan --system {target}` uses it"))
