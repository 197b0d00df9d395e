"""Watts and joules by a line between idle and busy, from the figures of a system's file (assumed where that says so)."""

from __future__ import annotations

import math

from frontier_profiling.predict.step import Step
from frontier_profiling.predict.system import System


def power_w(system: System, devices: int, step: Step) -> float | None:
    """Of the whole job: nodes' hosts, and devices between idle and busy by how long they compute; None where the file lacks a figure.

    A device that waits for the network is taken as half busy: collectives keep its memory and some of its units at work.
    """
    node = system.node
    if node.device_busy_w is None or node.device_idle_w is None or node.host_w is None:
        return None
    seconds = step.seconds
    work = step.compute.products + step.compute.elementwise + step.compute.optimizer
    busy = min(1.0, (work + 0.5 * (step.exposed + step.compute.launch)) / seconds)
    nodes = math.ceil(devices / node.devices)
    draw = nodes * (
        node.host_w + node.devices * node.device_idle_w
    )  # devices that are left idle are part of the job's nodes
    return draw + devices * (node.device_busy_w - node.device_idle_w) * busy
