"""Scale-ALiBi's attention against the way of gathered tables: seconds of both passes, and peak memory above the inputs.

    python benchmarks/scale_alibi_attention.py            # writes benchmarks/results/scale_alibi_attention.md (--out for another folder)
    python benchmarks/scale_alibi_attention.py --device cuda
    python benchmarks/scale_alibi_attention.py --quick    # the smallest case, once

The gathered way is that of published code: biases of all tokens [heads, tokens, tokens], gathered for each sample by the ids of its visible
tokens, then PyTorch's fused attention with them as a mask. Here it is spared what that code also makes, a repetition of the table for every
sample and int64 indices of all its entries. Seconds are medians of interleaved repeats, the table made before; so ratios are of one run. On a CPU
they are CPU time of one thread, as wall time wanders where a machine is shared.
Peak memory: on a CPU the growth of the resident set (VmHWM) of a process of its own, on a GPU what PyTorch allocated; the table counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from frontier.train.metrics import device_name  # noqa: E402
from scale_alibi.attention import attend, choose  # noqa: E402
from scale_alibi.attention_table import biases  # noqa: E402
from scale_alibi.geometry import patch_centres, slopes  # noqa: E402

HEADS, DIM = 16, 48
CASES = [(1024, 1024), (4096, 2457), (4096, 4096)]
"""Tokens of the grid and visible ones: all of 32 x 32, 60 % of 64 x 64, all of 64 x 64."""
WAYS = ("gathered", "eager", "sdpa", "ours", "gaussian", "no bias")
LARGEST_GIB = 7.0
"""Cases whose tables alone would take more are not run."""


def inputs(grid: int, tokens: int, batch: int, dtype: torch.dtype, device: str) -> tuple[list[Tensor], Tensor, Tensor]:
    """([q, k, v], places of all tokens [1, grid, 2], ids of the visible ones [B, tokens])."""
    torch.manual_seed(0)
    qkv = [
        torch.randn(batch, tokens, HEADS, DIM, device=device, dtype=dtype).transpose(1, 2).requires_grad_()
        for _ in range(3)
    ]
    at = patch_centres(round(grid**0.5), 8, torch.tensor([[10.0, 10.0]]), 80.0).to(device)
    ids = torch.stack([torch.randperm(grid)[:tokens] for _ in range(batch)]).to(device)
    return qkv, at, ids


def prepared(way: str, qkv: list[Tensor], at: Tensor, ids: Tensor) -> Callable[[], Tensor]:
    """The forward pass of a way; what a model would hold is made here."""
    m = slopes(HEADS).to(at.device)
    seen = at.expand(ids.shape[0], -1, -1).gather(1, ids[..., None].expand(-1, -1, 2))
    if way == "no bias":
        return lambda: F.scaled_dot_product_attention(*qkv)
    if way == "gathered":
        table = biases(at, at, m, 1)[0].to(qkv[0].dtype)

        def gathered() -> Tensor:
            bias = table[:, ids[:, :, None], ids[:, None, :]].transpose(0, 1)
            return F.scaled_dot_product_attention(*qkv, attn_mask=bias)

        return gathered
    power = 2 if way == "gaussian" else 1
    backend = way if way in ("eager", "sdpa") else "auto"
    return lambda: attend(*qkv, seen, seen, m, power=power, backend=backend)


def tables_gib(way: str, grid: int, tokens: int, batch: int) -> float:
    """Of its tables of biases, scores and probabilities, roughly."""
    copies = {"gathered": batch * tokens**2 + grid**2, "eager": 5 * batch * tokens**2}
    return 4 * HEADS * copies.get(way, 0) / 2**30


def both_passes(forward: Callable[[], Tensor], qkv: list[Tensor], upstream: Tensor) -> None:
    torch.autograd.grad(forward(), qkv, upstream)


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def seconds(grid: int, tokens: int, dtype: torch.dtype, device: str, repeats: int) -> dict[str, tuple[float, float]]:
    """Medians of the forward pass alone and of both, of every way, batch 1."""
    qkv, at, ids = inputs(grid, tokens, 1, dtype, device)
    upstream = torch.randn_like(qkv[0])
    ways = {way: prepared(way, qkv, at, ids) for way in WAYS}
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    clock = time.process_time if device == "cpu" else time.perf_counter
    for repeat in range(-1, repeats):  # the first warms up
        for way, forward in ways.items():
            times = []
            for both in (False, True):
                wait(device)
                begin = clock()
                if both:
                    both_passes(forward, qkv, upstream)
                else:
                    with torch.no_grad():
                        forward()
                wait(device)
                times.append(clock() - begin)
            if repeat >= 0:
                found[way].append((times[0], times[1]))
    return {way: tuple(map(statistics.median, zip(*pairs, strict=True))) for way, pairs in found.items()}  # type: ignore[misc]


def resident(key: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}")


def peak_bytes(way: str, grid: int, tokens: int, batch: int, dtype: torch.dtype, device: str) -> int:
    """Of both passes above the inputs, a small case having gone before."""
    small = inputs(64, 64, 1, dtype, device)
    both_passes(prepared(way, *small), small[0], torch.randn_like(small[0][0]))
    qkv, at, ids = inputs(grid, tokens, batch, dtype, device)
    upstream = torch.randn_like(qkv[0])
    wait(device)
    held = torch.cuda.memory_allocated() if device != "cpu" else resident("VmRSS")
    forward = prepared(way, qkv, at, ids)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew, after that of making the table
    both_passes(forward, qkv, upstream)
    wait(device)
    return (torch.cuda.max_memory_allocated() if device != "cpu" else resident("VmHWM")) - held


def measured_apart(*case: Any) -> int:
    """`peak_bytes`, on a CPU in a process of its own."""
    if case[-1] != "cpu":
        return peak_bytes(*case)
    words = [sys.executable, __file__, "--worker", json.dumps([str(c).removeprefix("torch.") for c in case])]
    done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT)
    return int(done.stdout.split()[-1])


def rows_of(grid: int, tokens: int, dtype: torch.dtype, device: str, repeats: int) -> list[str]:
    times = seconds(grid, tokens, dtype, device, repeats)
    name, base = str(dtype).removeprefix("torch."), times["gathered"]
    peaks: dict[tuple[str, int], int] = {}
    for way in WAYS:
        for batch in (1, 4):
            if tables_gib(way, grid, tokens, batch) <= LARGEST_GIB:
                peaks[way, batch] = measured_apart(way, grid, tokens, batch, dtype, device)
    rows = []
    for way in WAYS:
        memory = [
            f"{peaks[way, b] / 2**20:,.0f} | {peaks['gathered', b] / peaks[way, b]:.1f}"
            if (way, b) in peaks and ("gathered", b) in peaks
            else "not run | -"
            for b in (1, 4)
        ]
        forward, both = times[way]
        told = way
        if way in ("ours", "gaussian"):
            q = torch.empty(1, HEADS, tokens, DIM, dtype=dtype, device="meta")
            told += f" ({choose(q, q, 2 if way == 'gaussian' else 1, device)})"
        rows.append(
            f"| {tokens} of {grid} | {name} | {told} | {forward:.4g} | {both:.4g} | {base[1] / both:.2f} | {' | '.join(memory)} |"
        )
        print(rows[-1], flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="1,024 tokens, one repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the table")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cpu":
        torch.set_num_threads(1)
    if args.worker:
        way, grid, tokens, batch, dtype, device = json.loads(args.worker)
        print(peak_bytes(way, int(grid), int(tokens), int(batch), getattr(torch, dtype), device))
        return 0
    rows = [
        "| tokens | precision | way | forward, s | both passes, s | speed / gathered | peak MiB, batch 1 | gathered / this "
        "| peak MiB, batch 4 | gathered / this |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(rows), flush=True)
    for grid, tokens in CASES[: 1 if args.quick else None]:
        for dtype in (torch.float32, torch.bfloat16):
            rows += rows_of(grid, tokens, dtype, args.device, 1 if args.quick else args.repeats)
    machine = device_name(torch.device(args.device))
    if args.device == "cpu":
        machine += f", one thread, load at the end {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    head = f"`python benchmarks/scale_alibi_attention.py --device {args.device}`, {time.strftime('%Y-%m-%d')}, PyTorch {torch.__version__}, {machine}."
    about = (
        f"{HEADS} heads of {DIM} dims, q = k = v in length. Seconds: batch 1, medians of {1 if args.quick else args.repeats} interleaved repeats. "
        "Memory: of both passes, above the inputs, the table of the gathered way included. Ratios above 1 are better than the gathered way."
    )
    name = "scale_alibi_attention.md" if args.device == "cpu" else f"scale_alibi_attention_{args.device}.md"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / name).write_text("\n".join([head, "", about, "", *rows, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
