"""What a rank computes and moves in a second, measured through the functions that a training step calls."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.optim.adamw import adamw

from frontier.launch.doctor import seconds
from frontier.models.attention import self_attention
from frontier.models.layers import Block
from frontier.models.linear import Linear

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def median_s(action: Callable[[], object], device: torch.device, repeats: int = 5, least_s: float = 2e-3) -> float:
    """Median seconds of one call; calls shorter than `least_s` are timed in bundles of that length."""
    once = min(seconds(action, device, 1))
    calls = min(1000, max(1, math.ceil(least_s / max(once, 1e-7))))

    def bundle() -> None:
        for _ in range(calls):
            action()

    return statistics.median(seconds(bundle if calls > 1 else action, device, repeats)) / calls


@torch.no_grad()
def product_tflops(size: tuple[int, int, int], dtype: torch.dtype, device: torch.device, repeats: int = 5) -> float:
    """TFLOP/s of the engine's linear layer, forward, at (tokens, in, out): 2 tokens in out operations."""
    tokens, inner, outer = size
    layer = Linear(inner, outer, device=device, dtype=dtype)
    x = torch.randn(tokens, inner, device=device).to(dtype)
    return 2 * tokens * inner * outer / median_s(lambda: layer(x), device, repeats) / 1e12


@torch.no_grad()
def triad_gb_per_s(device: torch.device, size: int | None = None, repeats: int = 5) -> float:
    """a = b + s c on float32 tensors of `size` bytes: three of them move. Beyond most caches by default.

    Ones, not zeros: memory that was never written is one shared page of zeros, and reads from a cache.
    """
    size = size or (96 << 20 if device.type == "cpu" else 1 << 30)
    b, c, a = (torch.ones(size // 4, device=device) for _ in range(3))
    return 3 * size / median_s(lambda: torch.add(b, c, alpha=3.0, out=a), device, repeats) / 1e9


def to_device_gb_per_s(device: torch.device, size: int = 256 << 20) -> float:
    """Copy of pinned host memory to the device."""
    host = torch.zeros(size // 4).pin_memory()
    there = torch.zeros(size // 4, device=device)
    return size / median_s(lambda: there.copy_(host, non_blocking=True), device) / 1e9


@dataclass(frozen=True)
class Both:
    """Median seconds of a forward pass, and of the backward pass that follows it."""

    forward_s: float
    backward_s: float


def both(function: Callable[[Tensor], Tensor], x: Tensor, repeats: int = 5, least_s: float = 2e-3) -> Both:
    """Time `function` and its gradient, with respect to x and to the parameters it holds.

    Gradients are made, not added to older ones: as in a step that accumulates nothing. Short passes are timed in bundles.
    """
    x = x.detach().requires_grad_()
    wanted = [x, *(function.parameters() if isinstance(function, nn.Module) else ())]
    seed = torch.ones_like(function(x))
    wait = torch.accelerator.synchronize if x.device.type != "cpu" else lambda: None

    def once() -> tuple[float, float]:
        wait()
        start = time.perf_counter()
        y = function(x)
        wait()
        middle = time.perf_counter()
        torch.autograd.grad(y, wanted, seed)
        wait()
        return middle - start, time.perf_counter() - middle

    once()
    calls = min(200, max(1, math.ceil(least_s / max(sum(once()), 1e-7))))
    taken = []
    for _ in range(repeats):
        bundle = [once() for _ in range(calls)]
        taken.append([sum(column) / calls for column in zip(*bundle, strict=True)])
    forward, backward = (statistics.median(column) for column in zip(*taken, strict=True))
    return Both(forward, backward)


def linear_pass(size: tuple[int, int, int], dtype: torch.dtype, device: torch.device, repeats: int = 5) -> Both:
    """One linear layer of (tokens, in, out)."""
    tokens, inner, outer = size
    layer = Linear(inner, outer, device=device, dtype=dtype)
    return both(layer, torch.randn(tokens, inner, device=device).to(dtype), repeats)


def attention_pass(
    batch: int, tokens: int, heads: int, dim: int, dtype: torch.dtype, device: torch.device, repeats: int = 5
) -> Both:
    return both(self_attention, torch.randn(batch, tokens, heads, 3, dim, device=device).to(dtype), repeats)


def elementwise_pass(tokens: int, width: int, dtype: torch.dtype, device: torch.device, repeats: int = 5) -> Both:
    """What a block does around its products: LayerNorm, GELU, and the addition to the residual stream."""
    norm = nn.LayerNorm(width, eps=1e-6, device=device, dtype=dtype)
    x = torch.randn(tokens, width, device=device).to(dtype)
    return both(lambda t: t + F.gelu(norm(t)), x, repeats)


def elementwise_bytes(tokens: int, width: int, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes that `elementwise_pass` reads and writes, forward and backward.

    Forward: norm 2 tensors, GELU 2, sum 3. Backward: GELU 3 (its input, the gradient, its result), norm 3, and the sum of both gradients of x 3.
    """
    one = tokens * width * dtype.itemsize
    return 7 * one, 9 * one


def block_overhead_s(device: torch.device, dtype: torch.dtype = torch.float32, repeats: int = 5) -> Both:
    """A transformer block with next to nothing to compute: what its operators cost to call."""
    block = Block(8, 2, 32).to(device=device, dtype=dtype)
    return both(block, torch.randn(1, 2, 8, device=device).to(dtype), repeats)


def whole_blocks(sizes: dict[str, int], dtype: torch.dtype, device: torch.device, repeats: int = 5) -> Both:
    """Real transformer blocks, one after the other, on one batch: what the parts above are parts of.

    `sizes`: blocks, batch, tokens, width, heads, hidden.
    """
    blocks = nn.Sequential(*(Block(sizes["width"], sizes["heads"], sizes["hidden"]) for _ in range(sizes["blocks"])))
    x = torch.randn(sizes["batch"], sizes["tokens"], sizes["width"], device=device).to(dtype)
    return both(blocks.to(device=device, dtype=dtype), x, repeats)


def sharded_block_s(mesh: DeviceMesh, repeats: int = 5, blocks: int = 4) -> Both:
    """The same block under FSDP2 with nobody to talk to (a mesh of one rank): its hooks, copies and streams included."""
    device = torch.device(mesh.device_type)  # of an accelerator the current one
    model = nn.Sequential(*(Block(8, 2, 32) for _ in range(blocks))).to(device)
    for block in model:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    x = torch.randn(1, 2, 8, device=device)
    taken = []
    for _ in range(4 * repeats + 1):
        start = time.perf_counter()
        y = model(x)
        if device.type != "cpu":
            torch.accelerator.synchronize()
        middle = time.perf_counter()
        y.sum().backward()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        taken.append(((middle - start) / blocks, (time.perf_counter() - middle) / blocks))
        model.zero_grad()
    forward, backward = (statistics.median(column) for column in zip(*taken[1:], strict=True))
    return Both(forward, backward)


def operator_s(device: torch.device, repeats: int = 5) -> float:
    """One elementwise operator on 16 values, without gradients."""
    x = torch.zeros(16, device=device)
    with torch.no_grad():
        return median_s(lambda: x + 1.0, device, repeats)


ADAMW_BYTES = 28
"""A parameter: float32 weight, gradient and two moments read, all but the gradient written."""


@torch.no_grad()
def optimizer_gb_per_s(device: torch.device, parameters: int = 16 << 20, repeats: int = 5) -> float:
    """PyTorch's fused AdamW, which the engine's optimizer calls, on tensors of a million values."""
    sizes = [1 << 20] * max(1, parameters >> 20)
    weights, grads, first, second = ([torch.ones(n, device=device) for n in sizes] for _ in range(4))
    steps = [torch.ones((), device=device) for _ in sizes]
    one = torch.ones((), device=device)

    def step() -> None:
        adamw(
            weights,
            grads,
            first,
            second,
            [],
            steps,
            fused=True,
            grad_scale=one,
            found_inf=one - 1,
            amsgrad=False,
            beta1=0.9,
            beta2=0.95,
            lr=1e-4,
            weight_decay=0.05,
            eps=1e-8,
            maximize=False,
        )

    return ADAMW_BYTES * sum(sizes) / median_s(step, device, repeats) / 1e9
