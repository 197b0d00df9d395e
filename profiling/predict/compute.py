"""Seconds that a device computes: a roofline of products and elementwise work, plus what the host holds it up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from frontier_profiling.predict.case import Case
from frontier_profiling.predict.constants import Constants
from frontier_profiling.predict.system import System
from frontier_profiling.predict.workload import Stack

OPTIMIZER_BYTES = 28
"""AdamW a parameter: reads weight, gradient and two moments (16), writes weight and moments (12); float32."""


@dataclass(frozen=True)
class Compute:
    """Seconds of one optimizer step of one rank, by part."""

    products: float
    elementwise: float
    launch: float
    optimizer: float
    backward_share: float
    """Part of products + elementwise + launch that is backward or recomputation."""

    @property
    def passes(self) -> float:
        """Forward and backward."""
        return self.products + self.elementwise + self.launch


def passes_of(checkpointing: str, c: Constants) -> tuple[float, float, float]:
    """(products, elementwise work, host time) in units of one forward pass: backward is two, recomputation one more."""
    if checkpointing == "full":
        return 4.0, 4.0, 4.0
    if checkpointing == "selective":
        return 3.0, 4.0, 3.0 + c.selective_recompute
    return 3.0, 3.0, 3.0


def compute(case: Case, c: Constants) -> Compute:
    """A tensor group of T ranks computes T micro-batches together, each rank 1/T of the features: its products are those of one
    micro-batch, its elementwise work too (sequence parallelism).
    """
    device, work, dims = case.system.device, case.work, case.dims
    times = case.accumulation
    images = case.micro_batch * times
    products, elementwise, host = passes_of(case.activation_checkpointing, c)
    rate = device.peak_tflops[case.precision] * 1e12 * c.product_efficiency(case.precision)
    rate *= c.tensor_products ** math.log2(case.tensor)
    bandwidth = device.memory_gb_per_s * 1e9 * c.memory_efficiency
    again, again_outside = work.compared(times)
    # Outside the blocks nothing is recomputed.
    outside_s = images * (work.outside_flops * work.outside_passes + again_outside) / rate
    moved_s = images * work.outside_moved * case.element_bytes / bandwidth
    found = [
        blocks_s(case.system, stacks, images, case.precision, products + more, elementwise + more, rate, bandwidth)
        for stacks, more in ((again, 1), (work.stacks[len(again) :], 0))
    ]
    product_s, element_s = (sum(parts) for parts in zip(*found, strict=True))
    more = whole_over_parts(case.system, case.precision, rate, bandwidth)
    product_s, element_s = product_s * more + outside_s, element_s * more + moved_s
    passes = work.blocks * host + sum(stack.blocks for stack in again)
    launch_s = times * passes * c.launch_s * (1 + c.tensor_launch * (case.tensor > 1))
    own = work.parameters / dims.shard / dims.tensor
    measured = case.system.constant("optimizer_gb_per_s")
    speed = bandwidth if measured is None else measured * 1e9
    if case.offload and device.type != "cpu":  # the ranks of a node share its host
        speed = c.host_update_gb_per_s * 1e9 / min(case.devices, case.system.node.devices)
    update_s = OPTIMIZER_BYTES * own / speed
    return Compute(product_s, element_s, launch_s, update_s, (products - 1) / products)


def blocks_s(
    system: System, stacks: Sequence[Stack], images: int, precision: str, products: float, elementwise: float, rate: float,
    bandwidth: float,
) -> tuple[float, float]:  # fmt: skip
    """(seconds of products, of elementwise work) of blocks on so many images; `products` and `elementwise` count passes, `rate` is
    FLOP/s, `bandwidth` bytes/s. Where a machine's attention or elementwise work was measured, it counts at its own rate.
    """
    flops = sum(stack.blocks * stack.block_flops for stack in stacks)
    element_bytes = 2 if precision == "bf16" else 4
    attention_rate, plain_rate = (
        system.constant(f"{name}_{precision}") for name in ("attention_tflops", "elementwise_gb_per_s")
    )
    product_s = images * flops * products / rate
    if attention_rate:
        attention = images * sum(stack.blocks * stack.attention_flops for stack in stacks) * products
        product_s += attention / (attention_rate * 1e12) - attention / rate
    if plain_rate:
        # Measured over both passes together: 7 tensors are read and written forward, 9 backward.
        plain = sum(stack.blocks * stack.plain_values for stack in stacks)
        return product_s, images * plain * (1 + 9 / 7 + elementwise - 3) * element_bytes / (plain_rate * 1e9)
    values = sum(stack.blocks * stack.elementwise_values for stack in stacks)
    return product_s, images * values * elementwise * element_bytes / bandwidth


def whole_over_parts(system: System, precision: str, rate: float, bandwidth: float) -> float:
    """What real blocks took on this machine over the sum of their parts, 1 where they were not measured or it is less."""
    node = system.efficiency.get(f"blocks_s_{precision}")
    if node is None:
        return 1.0
    stack = Stack(node["blocks"], node["tokens"], node["width"], node["heads"], node["hidden"], "plain")
    return max(1.0, node["value"] / sum(blocks_s(system, [stack], node["batch"], precision, 3.0, 3.0, rate, bandwidth)))
