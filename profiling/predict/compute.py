"""Seconds that a device computes: a roofline of products and elementwise work, plus what the host holds it up."""

from __future__ import annotations

import math
from dataclasses import dataclass

from frontier_profiling.predict.case import Case
from frontier_profiling.predict.constants import Constants

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
    inside = sum(stack.blocks * stack.block_flops for stack in work.stacks)
    # Where a machine's attention was measured it counts by itself, else at the rate of products.
    attention_rate = case.system.constant(f"attention_tflops_{case.precision}")
    attention = sum(stack.blocks * stack.attention_flops for stack in work.stacks) if attention_rate else 0
    # Outside the blocks nothing is recomputed, and the embedding's input needs no gradient.
    product_s = images * ((inside - attention) * products + work.outside_flops * 2.5) / rate
    if attention_rate:
        product_s += images * attention * products / (attention_rate * 1e12)
    plain_rate = case.system.constant(f"elementwise_gb_per_s_{case.precision}")
    if plain_rate:
        # Measured over both passes together: 7 tensors are read and written forward, 9 backward.
        plain = sum(stack.blocks * stack.plain_values for stack in work.stacks)
        passes = 1 + 9 / 7 + (elementwise - 3)
        element_s = images * plain * passes * case.element_bytes / (plain_rate * 1e9)
    else:
        values = sum(stack.blocks * stack.elementwise_values for stack in work.stacks)
        element_s = images * values * elementwise * case.element_bytes / bandwidth
    launch_s = times * work.blocks * host * c.launch_s * (1 + c.tensor_launch * (case.tensor > 1))
    own = work.parameters / dims.shard / dims.tensor
    measured = case.system.constant("optimizer_gb_per_s")
    speed = bandwidth if measured is None else measured * 1e9
    if case.offload and device.type != "cpu":  # the ranks of a node share its host
        speed = c.host_update_gb_per_s * 1e9 / min(case.devices, case.system.node.devices)
    update_s = OPTIMIZER_BYTES * own / speed
    return Compute(product_s, element_s, launch_s, update_s, (products - 1) / products)
