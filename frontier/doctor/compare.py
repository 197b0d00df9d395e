"""Ranks and nodes held against each other: clocks, versions, speed. No rank is right because of its number: the majority is.

Measuring is collective; judging is plain functions of what every rank found, so that all ranks could come to the same verdict.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from frontier.doctor.checks import Check, error, leave_out, ok, some, warning
from frontier.launch.doctor import all_gather

SLOW, VERY_SLOW = 0.75, 0.5
"""Parts of the median. A rank below the second is named; one below the first where it is `far` from the others too; below the
second and far, its node is one to leave out."""
FAR = 3.5
"""From four values on: so many times further from the median than the others are (1.4826 x their median distance, the standard
deviation of normally spread values; 3.5 is Iglewicz and Hoaglin's advice, 1993). Of fewer values none is near."""
SKEW_S, WILD_SKEW_S = 1.0, 60.0
"""Clocks that are further from the median than the first are named; than the second, an ERROR."""


def low(values: Sequence[float]) -> list[int]:
    """Indices of the values to be named, the lowest first."""
    median, far = _middle(values)
    found = [i for i, v in enumerate(values) if v < VERY_SLOW * median or v < min(SLOW * median, far)]
    return sorted(found, key=values.__getitem__)


def very_low(values: Sequence[float]) -> list[int]:
    """Of these, the ones that nothing but the node explains: on a busy machine half the median alone is chance."""
    median, far = _middle(values)
    return [i for i in low(values) if values[i] < min(VERY_SLOW * median, far)]


def _middle(values: Sequence[float]) -> tuple[float, float]:
    """(median, below what a value is far from it)."""
    median = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(v - median) for v in values) if len(values) > 3 else 0.0
    return median, median - FAR * spread


def hosts_of(hosts: Sequence[str], ranks: Sequence[int]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(hosts[r] for r in ranks))


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


def clocks_of_nodes(offsets: Sequence[float], hosts: Sequence[str]) -> dict[str, float]:
    """Seconds that each node's clock is ahead of the median node's."""
    by_host: dict[str, list[float]] = {}
    for host, offset in zip(hosts, offsets, strict=True):
        by_host.setdefault(host, []).append(offset)
    own = {host: statistics.median(values) for host, values in by_host.items()}
    middle = statistics.median_low(own.values())  # a clock that exists, not the middle of two
    return {host: offset - middle for host, offset in own.items()}


def check_clocks(offsets: dict[str, float]) -> Check:
    """Of `clocks_of_nodes`."""
    apart = max(offsets.values()) - min(offsets.values())
    off = sorted((h for h, o in offsets.items() if abs(o) > SKEW_S), key=lambda h: -abs(offsets[h]))
    if not off:
        return ok("clocks", f"{apart * 1e3:.1f} ms apart, the barrier's own spread included", apart, "s")
    judge = error if any(abs(offsets[h]) > WILD_SKEW_S for h in off) else warning
    mend = "tell the site's support: file times, logs and the time left of a job will not fit together"
    if 2 * len(off) >= len(offsets):
        named = some(f"{h} {o:+.2f} s" for h, o in offsets.items())
        text = f"{apart:.2f} s apart, and no majority that tells which clocks are wrong: {named}"
        return _about(judge("clocks", text, mend, apart, "s"), tuple(offsets), {})
    text = f"off the median of {len(offsets)} nodes: {some(f'{h} {offsets[h]:+.2f} s' for h in off)}"
    blame = {h: f"clock {offsets[h]:+.2f} s off" for h in off if abs(offsets[h]) > WILD_SKEW_S}
    return _about(judge("clocks", text, f"{mend}; {leave_out(off)}", apart, "s"), tuple(off), blame)


def check_same(name: str, found: Sequence[dict[str, str | None]], hosts: Sequence[str]) -> Check:
    """Versions (`same_versions`, an ERROR) or places (a WARNING) of all ranks: those that differ from the majority are named."""
    judge = error if name == "same_versions" else warning
    words: list[str] = []
    odd: dict[str, list[str]] = {}
    open_question = False
    for key in dict.fromkeys(key for one in found for key in one):
        known = {rank: one[key] for rank, one in enumerate(found) if key in one}
        counts = Counter(known.values()).most_common()
        if len(counts) < 2:
            continue
        right, many = counts[0]
        if 2 * many <= len(known):
            open_question = True
            each = (f"{value} on {hosts[next(r for r, v in known.items() if v == value)]}" for value, _ in counts)
            words.append(f"{key} is {some(each)}: no majority tells which is meant")
            for rank in known:
                odd.setdefault(hosts[rank], [])
            continue
        for value, _ in counts[1:]:
            ranks = [rank for rank, v in known.items() if v == value]
            where = some(hosts_of(hosts, ranks))
            words.append(f"{key} is {value} on {where}, {right} on most")
            for host in hosts_of(hosts, ranks):
                odd.setdefault(host, []).append(f"{key} is {value}, {right} on most nodes")
    if not words:
        return ok(name, f"the same on all {len(found)} ranks", len(found), "ranks")
    mend = "start all ranks from one environment"
    if not open_question:
        mend += f": stage it again on {some(odd)}, or {leave_out(odd)}"
    blame = {host: "; ".join(reasons) for host, reasons in odd.items() if reasons} if judge is error else {}
    if len(set(hosts)) < 2:
        blame = {}
    return _about(judge(name, "; ".join(words[:4]), mend), tuple(odd), blame)


def sustained(action: Callable[[], object], device: torch.device, window_s: float) -> float:
    """Calls a second over a window, waits included: the middle of short calls would not see a process that is stopped at times."""
    wait = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    action()
    wait()
    start = time.perf_counter()
    action()
    wait()
    bundle = max(1, int(0.02 / max(time.perf_counter() - start, 1e-6)))
    calls, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < window_s:
        for _ in range(bundle):
            action()
        wait()
        calls += bundle
    return calls / taken


def check_spread(name: str, rates: Sequence[float], hosts: Sequence[str], unit: str) -> Check:
    """Names the ranks that are far below the median."""
    median = statistics.median(rates)
    slowest = min(range(len(rates)), key=rates.__getitem__)
    part = rates[slowest] / median
    text = f"slowest rank {slowest} on {hosts[slowest]}: {rates[slowest]:.3g} {unit}, {part:.0%} of the median"
    slow = low(rates)
    if not slow:
        return ok(f"{name}.spread", text, part, "of the median")
    named = some(f"rank {r} on {hosts[r]} {rates[r]:.3g} ({rates[r] / median:.0%})" for r in slow)
    where = hosts_of(hosts, slow)
    text = f"{len(slow)} of {len(rates)} ranks far below the median of {median:.3g} {unit}: {named}"
    mend = f"find what else runs on {some(where)}, and whether clocks or power are capped there"
    blame = {}
    if len(set(hosts)) > 1:
        mend += f", or leave it out ({leave_out(where)})"
    if len(set(hosts)) > 2:
        blame = {
            hosts[r]: f"{name} of rank {r} is {rates[r] / median:.0%} of the median" for r in reversed(very_low(rates))
        }
    return _about(warning(f"{name}.spread", text, mend, part, "of the median"), where, blame)


def check_free(free: dict[str, float]) -> Check:
    """Node-local storage with less than half the free space of the median node, from three nodes on."""
    hosts, values = list(free), list(free.values())
    half = VERY_SLOW * statistics.median(values)
    few = [i for i, v in enumerate(values) if v < half] if len(values) > 2 else []
    if not few:
        least = min(range(len(values)), key=values.__getitem__)
        return ok("local.spread", f"least space on {hosts[least]}: {values[least]:.1f} GiB free", values[least], "GiB")
    text = f"much less space than the median {statistics.median(values):.1f} GiB: " + some(
        f"{hosts[i]} {values[i]:.1f} GiB" for i in few
    )
    where = tuple(hosts[i] for i in few)
    mend = f"remove what earlier jobs left on {some(where)}, or {leave_out(where)}"
    return _about(warning("local.spread", text, mend, min(values), "GiB"), where, {})


def _about(check: Check, hosts: tuple[str, ...], blame: dict[str, str]) -> Check:
    return Check(check.check, check.status, check.text, check.value, check.unit, check.mend, hosts, blame)
