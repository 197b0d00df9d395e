"""The three products of a linear layer on this CPU: ours (frontier/models/cpu), oneDNN's and PyTorch's, taking turns.

    python benchmarks/cpu_products.py        # the layers of the `small` model of training_step.py

Ours and oneDNN's include what `frontier.models.linear` asks of them (bias; sums of the bias's gradient); results are
compared with float64 first. Matrices take turns, so that no row is found in a cache that a training step would have
left to others.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from frontier.errors import EXIT_OK
from frontier.launch.host_memory import keep_freed_memory
from frontier.models import linear
from frontier.models.cpu.operators import multiplies
from frontier.processor import processor

LAYERS = (
    (4352, 12, (("qkv", 192, 576), ("proj", 192, 192), ("fc1", 192, 768), ("fc2", 768, 192))),
    (16640, 2, (("qkv", 96, 288), ("proj", 96, 96), ("fc1", 96, 384), ("fc2", 384, 96))),
)
"""Rows (256 images), blocks, and their layers (name, inputs, outputs): encoder and decoder of `small`."""

Way = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def products() -> dict[str, dict[str, Way]]:
    """Of x [n, k], gradients g [n, m], weights w [m, k] and bias b [m]."""
    ops, onednn = torch.ops.frontier, linear.product
    return {
        "forward": {
            "ours": lambda x, g, w, b: ops.cpu_by_weights(x, w, False, b, None),
            "oneDNN": lambda x, g, w, b: onednn(x, w, b),
            "PyTorch": lambda x, g, w, b: F.linear(x, w, b),
        },
        "gradient of x": {
            "ours": lambda x, g, w, b: ops.cpu_by_weights(g, w, True, None, None),
            "oneDNN": lambda x, g, w, b: onednn(g, w.t()),
            "PyTorch": lambda x, g, w, b: g @ w,
        },
        "gradient of w": {
            "ours": lambda x, g, w, b: ops.cpu_weight_gradient(g, x, False)[0],
            "oneDNN": lambda x, g, w, b: onednn(g.t(), x.t()) if g.shape[1] <= x.shape[1] else onednn(x.t(), g.t()).t(),
            "PyTorch": lambda x, g, w, b: g.t() @ x,
        },
    }


def measure(dtype: torch.dtype, rounds: int, turns: int) -> list[str]:
    """Rows of the table, and the sums over all layers of a step."""
    rows, sums = [], {which: dict.fromkeys(ways, 0.0) for which, ways in products().items()}
    for n, blocks, layers in LAYERS:
        for name, k, m in layers:
            xs = [torch.randn(n, k).to(dtype) for _ in range(turns)]
            gs = [torch.randn(n, m).to(dtype) for _ in range(turns)]
            w, b = torch.randn(m, k).to(dtype), torch.randn(m).to(dtype)
            for which, ways in products().items():
                spent: dict[str, list[float]] = {way: [] for way in ways}
                exact = ways["PyTorch"](*(t.double() for t in (xs[0], gs[0], w, b)))
                for way, run in ways.items():
                    apart = (run(xs[0], gs[0], w, b).double() - exact).abs().max() / exact.abs().max()
                    if apart > (1e-5 if dtype == torch.float32 else 1e-2):
                        raise SystemExit(f"{way}'s {which} of {name} is {apart:.1e} from float64's")
                for turn in range(rounds):
                    for way, run in ways.items():
                        start = time.perf_counter()
                        run(xs[turn % turns], gs[turn % turns], w, b)
                        spent[way].append(time.perf_counter() - start)
                middle = {way: statistics.median(times) for way, times in spent.items()}
                for way, seconds in middle.items():
                    sums[which][way] += blocks * seconds
                rates = " | ".join(f"{2e-9 * n * k * m / seconds:.0f}" for seconds in middle.values())
                rows.append(f"| {name} {n} × {k} → {m} | {which} | {rates} |")
    total = {way: sum(of[way] for of in sums.values()) for way in sums["forward"]}
    for which, of in [*sums.items(), ("all three", total)]:
        cells = " | ".join(f"{1e3 * seconds:.0f} ms" for seconds in of.values())
        rows.append(f"| **all layers of a step** | {which} | {cells} |")
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=30, help="of each product")
    parser.add_argument("--turns", type=int, default=6, help="pairs of matrices that take turns")
    parser.add_argument("--out", help="folder for cpu_products.md")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    kept = keep_freed_memory()
    torch.manual_seed(0)
    about = f"{processor('model name') or 'unknown processor'}, {args.threads} threads, PyTorch {torch.__version__}"
    text = [f"## Products of linear layers on {about}", "", f"GFLOP/s, medians; freed memory kept: {kept}."]
    for dtype in (torch.float32, torch.bfloat16):
        text += ["", f"### {str(dtype).removeprefix('torch.')}", ""]
        if not (linear.HAS_ONEDNN and multiplies("cpu", 64, 64, torch.ones(1, 64, dtype=dtype))):
            text += ["Not made by our operators on this processor."]
            continue
        text += ["| matrices | product | ours | oneDNN | PyTorch |", "|---|---|---|---|---|"]
        text += measure(dtype, args.rounds, args.turns)
    print("\n".join(text))
    if args.out:
        folder = Path(args.out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu_products.md").write_text("\n".join(text) + "\n")
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
