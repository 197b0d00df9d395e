"""Links between nodes, and inside them: pairs exchange a few MiB, in a fixed number of rounds whatever the number of nodes.

A pair that is slow does not tell which of the two it is. In another round both have other partners: who is slow with all of
them is the slow one.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from frontier.doctor.checks import Check, leave_out, ok, some
from frontier.doctor.compare import VERY_SLOW, low, very_low
from frontier.launch.doctor import all_gather

ROUNDS = 3
"""With an odd number of members one has a rest in each round: two partners are left in the worst case."""
REPEATS = 8

Pair = tuple[int, int]


def rounds(members: int, most: int = ROUNDS) -> list[list[Pair]]:
    """Up to `most` rounds of disjoint pairs of 0 … members - 1, no pair twice: some of a round-robin tournament's.

    In round r of the tournament i and j meet where i + j = r modulo n - 1; member n - 1 meets the one without a partner.
    """
    if members < 2:
        return []
    even = members + members % 2
    turns, out = even - 1, []
    count = min(most, turns)
    for r in (k * turns // count for k in range(count)):
        pairs = []
        for i in range(turns):
            j = (r - i) % turns
            if j == i:
                j = even - 1
            if i < j < members:
                pairs.append((i, j))
        out.append(pairs)
    return out


def grid(hosts: Sequence[object]) -> list[list[int]]:
    """Ranks of every node, nodes in the order of their first rank."""
    nodes: dict[object, list[int]] = {}
    for rank, host in enumerate(hosts):
        nodes.setdefault(host, []).append(rank)
    return list(nodes.values())


def plan(nodes: Sequence[Sequence[int]], lanes: int) -> tuple[list[list[Pair]], list[list[Pair]]]:
    """Pairs of ranks of every round (between nodes, inside nodes). Between nodes the first `lanes` ranks of each take part."""
    between = [
        [(nodes[a][lane], nodes[b][lane]) for a, b in pairs for lane in range(min(lanes, len(nodes[a]), len(nodes[b])))]
        for pairs in rounds(len(nodes))
    ]
    inside: list[list[Pair]] = []
    for node in nodes:
        for turn, pairs in enumerate(rounds(len(node))):
            while len(inside) <= turn:
                inside.append([])
            inside[turn] += [(node[a], node[b]) for a, b in pairs]
    return between, inside


def measure(turns: Sequence[Sequence[Pair]], device: torch.device, size: int) -> list[dict[Pair, float]]:
    """Collective over the world: for every round the GB/s that each of its pairs exchanges in each direction, its slower side's word.

    A barrier a round and one all_gather, whatever the number of ranks. The best of `REPEATS` exchanges after one that connects.
    """
    rank = dist.get_rank()
    own = torch.full((max(1, len(turns)),), math.nan, device=device)
    out, into = torch.ones(size // 4, device=device), torch.empty(size // 4, device=device)
    for turn, pairs in enumerate(turns):
        partner = next((b if a == rank else a for a, b in pairs if rank in (a, b)), None)
        dist.barrier()
        if partner is not None:
            taken = [_exchange(partner, out, into, device) for _ in range(REPEATS + 1)]
            own[turn] = size / min(taken[1:]) / 1e9
    every = torch.empty(dist.get_world_size(), len(own), device=device)
    all_gather(every.view(-1), own)
    found = every.tolist()
    return [{(a, b): min(found[a][t], found[b][t]) for a, b in pairs} for t, pairs in enumerate(turns)]


def _exchange(partner: int, out: torch.Tensor, into: torch.Tensor, device: torch.device) -> float:
    start = time.perf_counter()
    operations = [dist.P2POp(dist.isend, out, partner), dist.P2POp(dist.irecv, into, partner)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def better(first: list[dict[Pair, float]], second: list[dict[Pair, float]]) -> list[dict[Pair, float]]:
    return [{pair: max(rate, b[pair]) for pair, rate in a.items()} for a, b in zip(first, second, strict=True)]


def of_nodes(found: Sequence[Mapping[Pair, float]], hosts: Sequence[str]) -> list[tuple[str, str, float]]:
    """(node, node, GB/s) of every pair of nodes: the slowest of its lanes."""
    out: dict[tuple[str, str], float] = {}
    for pairs in found:
        for (a, b), rate in pairs.items():
            key = (hosts[a], hosts[b])
            out[key] = min(rate, out.get(key, math.inf))
    return [(a, b, rate) for (a, b), rate in out.items()]


def best_of(pairs: Sequence[tuple[str, str, float]]) -> dict[str, float]:
    """The best that each node reaches with any of its partners: its own link can do at least that."""
    best: dict[str, float] = {}
    for a, b, rate in pairs:
        for node in (a, b):
            best[node] = max(rate, best.get(node, 0.0))
    return best


def check_between(pairs: Sequence[tuple[str, str, float]]) -> Check:
    """`link`: nodes that are slow with every partner, and pairs that are slow though both are quick with others."""
    best = best_of(pairs)
    nodes, rates = list(best), list(best.values())
    if len(nodes) == 2:
        a, b, rate = pairs[0]
        text = (
            f"{rate:.3g} GB/s each way between {a} and {b}; with two nodes it cannot be told whose link a slow one is"
        )
        return ok("link", text, rate, "GB/s")
    median = statistics.median(rates)
    least = min(rates)
    unit = "GB/s"
    if slow := low(rates):
        where = tuple(nodes[i] for i in slow)
        named = some(f"{nodes[i]} {rates[i]:.3g} GB/s ({rates[i] / median:.0%})" for i in slow)
        text = f"slow with every partner, far below the median node's {median:.3g} GB/s: {named}"
        mend = f"tell the site's support: cable, switch port or network adapter of {some(where)}; {leave_out(where)}"
        blame = {nodes[i]: f"link at best {rates[i] / median:.0%} of the median node's" for i in very_low(rates)}
        return Check("link", "WARNING", text, least, unit, mend, where, blame)
    bad = sorted((p for p in pairs if p[2] < VERY_SLOW * median), key=lambda p: p[2])
    text = f"{median:.3g} GB/s each way at the median node, {least:.3g} at the slowest ({nodes[rates.index(least)]})"
    if bad:
        named = some((f"{a} and {b} ({rate:.3g} GB/s)" for a, b, rate in bad), 4)
        where = tuple(dict.fromkeys(node for a, b, _ in bad for node in (a, b)))
        mend = "if it stays so, tell the site's support: both are quick with others, so it is the way between them"
        return Check("link", "WARNING", f"{text}; slow only between {named}", least, unit, mend, where)
    return ok("link", text, least, unit)


def check_inside(found: Sequence[Mapping[Pair, float]], nodes: Sequence[Sequence[int]], hosts: Sequence[str]) -> Check:
    """`link.inside`: the same two places of a node held against the same two of the other nodes (places differ by design)."""
    places = {rank: (node, place) for node, members in enumerate(nodes) for place, rank in enumerate(members)}
    by_place: dict[Pair, dict[int, float]] = {}
    for pairs in found:
        for (a, b), rate in pairs.items():
            by_place.setdefault((places[a][1], places[b][1]), {})[places[a][0]] = rate
    rates = [rate for row in by_place.values() for rate in row.values()]
    text = f"{min(rates):.3g} to {max(rates):.3g} GB/s each way between ranks of a node"
    words: list[str] = []
    slow: dict[str, str] = {}
    blame: dict[str, str] = {}
    for (a, b), row in by_place.items():
        keys, values = list(row), list(row.values())
        if len(values) < 3:
            continue
        median = statistics.median(values)
        for i in low(values):
            host = hosts[nodes[keys[i]][0]]
            reason = f"local ranks {a} and {b} at {values[i] / median:.0%} of the median of the same two on other nodes"
            words.append(f"{host}: {reason}")
            slow.setdefault(host, reason)
            if i in very_low(values):
                blame.setdefault(host, reason)
    if not slow:
        return ok("link.inside", text, min(rates), "GB/s")
    mend = f"look for a device that has lost links or lanes on {some(slow)}; {leave_out(slow)}"
    return Check("link.inside", "WARNING", f"{text}; {some(words, 4)}", min(rates), "GB/s", mend, tuple(slow), blame)
