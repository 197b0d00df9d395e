"""Seconds of collectives: alpha-beta models of the mesh axis that each one runs on.

An axis of degree d and stride s joins d ranks that are s apart; it spans s d consecutive ranks. Inside a node the innermost link
that connects so many ranks carries it. Between nodes all its groups of a node share the node's network bandwidth.

Ring all-gather or reduce-scatter of n bytes (whole):   (d - 1) hop + n (d - 1) / d / bandwidth
Ring all-reduce:                                        twice that
Tree all-reduce:                                        2 log2(d) hop + slowdown x the ring's bytes; the quicker of both is taken

The hop of a ring of gathers between nodes grows with the ring, hop (1 + (d / d0)^2): the published collapse of FULL_SHARD, whose time
a block at 1,024 ranks hardly depends on the block's size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from frontier_profiling.predict.constants import Constants
from frontier_profiling.predict.system import System


@dataclass(frozen=True)
class Axis:
    """`degree` ranks, `stride` apart, on a machine."""

    system: System
    degree: int
    stride: int = 1

    @property
    def inside(self) -> bool:
        """Whether each of its groups lies inside one node."""
        return self.degree * self.stride <= self.system.node.devices

    def link(self) -> tuple[float, float]:
        """(GB/s a rank, seconds a hop) of the innermost link that spans the axis inside a node, or of the outermost."""
        links = self.system.links
        if not links:
            return math.inf, 0.0
        chosen = next((link for link in links if link.devices >= self.degree * self.stride), links[-1])
        return chosen.gb_per_s, chosen.latency_s

    def bandwidth(self, c: Constants) -> float:
        """Bytes a second that a rank of the axis can send."""
        inner, _ = self.link()
        if self.inside:
            return inner * c.link_efficiency * 1e9
        assert self.system.network is not None
        groups = min(self.stride, self.system.node.devices)
        return min(inner * c.link_efficiency, self.system.network.node_gb_per_s * c.network_efficiency / groups) * 1e9

    def measured(self, collective: str) -> tuple[float, float] | None:
        """(seconds a hop, bytes a second on the wire) of a collective among so many ranks of a node, where the system's file has
        them: libraries such as gloo differ severalfold between collectives.
        """
        if not self.inside:
            return None
        fits = self.system.efficiency.get("collectives", {}).get("fits", [])
        own = [fit for fit in fits if fit["collective"] == collective and fit["gb_per_s"]]
        if not own:
            return None
        near = min(own, key=lambda fit: abs(fit["ranks"] - self.degree))
        return near["alpha_s"], near["gb_per_s"] * 1e9

    def hop(self, c: Constants) -> float:
        """Seconds of a hop, without congestion."""
        if self.inside:
            return self.link()[1]
        network = self.system.network
        return c.hop_s if network is None or network.latency_s is None else network.latency_s


def gather(axis: Axis, whole_bytes: float, c: Constants, collective: str = "all_gather") -> float:
    """All-gather to, or reduce-scatter from, `whole_bytes`."""
    d = axis.degree
    if d == 1:
        return 0.0
    known = axis.measured(collective)
    if known:
        return (d - 1) * known[0] + whole_bytes * (d - 1) / d / known[1]
    hop = axis.hop(c) * (1.0 if axis.inside else 1 + (d / c.ring_congestion) ** 2)
    return (d - 1) * hop + whole_bytes * (d - 1) / d / axis.bandwidth(c)


def all_reduce(axis: Axis, tensor_bytes: float, c: Constants) -> float:
    """Of a tensor of so many bytes on every rank."""
    d = axis.degree
    if d == 1:
        return 0.0
    known = axis.measured("all_reduce")
    if known:
        return 2 * (d - 1) * known[0] + 2 * tensor_bytes * (d - 1) / d / known[1]
    hop, wire = axis.hop(c), 2 * tensor_bytes * (d - 1) / d / axis.bandwidth(c)
    ring = wire + 2 * (d - 1) * hop
    return ring if axis.inside else min(ring, wire * c.tree_slowdown + 2 * math.log2(d) * hop)
