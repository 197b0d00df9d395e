"""Clustered batches of the GPNA: padding, and the time of a training step, against other ways to batch; in one run.

    python benchmarks/gpna_batching.py --output benchmarks/results/gpna_batching.md

The mix: a sample is of one of SustainBench's six token counts (676, 832, 1152, 2352, 6272, 12544) or a series, all seven with equal chance; a series'
length is log-uniform from 144 (one pixel: 16 dates of 9 bands) to 15,000. "Many series": every second sample is one. "Uniform series": every second
sample is one, of uniform length, 200 to 15,000.

Variants of a step take turns; the median of the turns counts, after one that does not. CPU time of the process stands beside the wall time, which
wanders where a machine is shared; rates are of CPU time, and so of one thread (a thread that waits for another counts as busy). "Length buckets": a pool of `--pool` batches is sorted by length and cut into batches of
equal size, each padded to its longest sample; it changes which samples meet in a batch, and still pads. Its time is that of the whole pool, scaled by real tokens to
one batch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from frontier.launch.host_memory import keep_freed_memory  # noqa: E402
from frontier.models.init import initialise  # noqa: E402
from frontier.models.layers import Block  # noqa: E402
from frontier.train.metrics import device_name  # noqa: E402
from gpna.batching import cluster, dbscan, pack, waste  # noqa: E402
from gpna.input_attention import InputAttention  # noqa: E402

SETS = [676, 832, 1152, 2352, 6272, 12544]
SIZES = [10_000, 73_613, 11_048, 1_966, 117_062, 1_497]
SERIES = 39_568
REFERENCE = (32, 88_798, 14_400)
"""Samples, tokens and longest sample of the batch in which clusters were first seen to be 4.1 to 4.8 times as fast as padding."""
DRAWS = 300
Clusters = list[np.ndarray]


def draw(samples: int, seed: int, series: float, uniform: bool = False) -> np.ndarray:
    """Token counts of a batch, a share of `series` of them series."""
    random = np.random.default_rng(seed)
    low, high = np.log(144), np.log(15_001)
    lengths = (
        random.integers(200, 15_001, samples) if uniform else np.exp(random.uniform(low, high, samples)).astype(int)
    )
    return np.where(random.random(samples) < series, lengths, random.choice(SETS, samples))


def published(samples: int, seed: int) -> np.ndarray:
    """Token counts of a batch whose sets are drawn by the square root of their sizes."""
    random = np.random.default_rng(seed)
    weights = np.sqrt([*SIZES, SERIES])
    chosen = random.choice([*SETS, 0], samples, p=weights / weights.sum())
    return np.where(chosen, chosen, np.exp(random.uniform(np.log(144), np.log(15_001), samples)).astype(int))


MIXES: dict[str, Callable[[int, int], np.ndarray]] = {
    "the mix": lambda samples, seed: draw(samples, seed, 1 / 7),
    "many series": lambda samples, seed: draw(samples, seed, 1 / 2),
    "uniform series": lambda samples, seed: draw(samples, seed, 1 / 2, uniform=True),
    "published sizes": published,
}

WAYS: dict[str, Callable[[np.ndarray], Clusters]] = {
    "one padded batch": lambda lengths: cluster(lengths, method="one"),
    "per-sample loop": lambda lengths: cluster(lengths, method="each"),
    "DBSCAN alone, eps 256 (the paper)": lambda lengths: dbscan(lengths, 256),
    "fewest clusters, 256 tokens": lambda lengths: cluster(lengths, 256, method="greedy"),
    "fewest clusters, 4 % of the mean": lambda lengths: cluster(lengths, 0.04, method="greedy"),
    "**DBSCAN + split, default**": cluster,
    "DBSCAN + split, cost 0.002": lambda lengths: cluster(lengths, cluster_cost=0.002),
}


def padding_tables(out: list[str]) -> None:
    for name, lengths_of in MIXES.items():
        out += [
            "",
            f"Padding, {name}: waste (padding tokens per real token), mean and largest of 10 batches · clusters · largest padding of a sample.",
        ]
        out += ["", "| clusters by | batch of 64 | 256 | 1,024 |", "|---|---|---|---|"]
        for way, clusters_of in WAYS.items():
            cells = []
            for samples in (64, 256, 1024):
                wastes, counts, most = [], [], 0
                for seed in range(10):
                    lengths = lengths_of(samples, seed)
                    found = clusters_of(lengths)
                    wastes.append(waste(lengths, found))
                    counts.append(len(found))
                    most = max(most, *(int(np.ptp(lengths[rows])) for rows in found))
                cells.append(
                    f"{statistics.mean(wastes):.2%}, {max(wastes):.2%} · {statistics.mean(counts):.0f} · {most:,}"
                )
            out.append(f"| {way} | " + " | ".join(cells) + " |")


def padded_ratio(lengths: np.ndarray) -> float:
    """Tokens of one padded batch over real tokens: about what clusters can gain."""
    return len(lengths) * int(lengths.max()) / int(lengths.sum())


def ratio_table(out: list[str]) -> None:
    shares = (0.05, 0.25, 0.5, 0.75, 0.95)
    out += [
        "",
        f"Tokens of one padded batch over real ones: quantiles {', '.join(map(str, shares))} of {DRAWS} batches.",
        "",
        "| mix | batch of 32 | 64 | 256 |",
        "|---|---|---|---|",
    ]
    for name, lengths_of in MIXES.items():
        cells = []
        for samples in (32, 64, 256):
            found = np.quantile([padded_ratio(lengths_of(samples, seed)) for seed in range(DRAWS)], shares)
            cells.append(", ".join(f"{value:.2f}" for value in found))
        out.append(f"| {name} | " + " | ".join(cells) + " |")


def like_reference(name: str) -> int:
    """The draw of `name` that is nearest to REFERENCE in tokens and longest sample."""
    samples, tokens, longest = REFERENCE

    def away(seed: int) -> float:
        lengths = MIXES[name](samples, seed)
        return abs(int(lengths.sum()) - tokens) / tokens + abs(int(lengths.max()) - longest) / longest

    return min(range(DRAWS), key=away)


def clustering_times(out: list[str]) -> None:
    random = np.random.default_rng(0)
    cases = {
        **{name: lengths_of(20_000, 0) for name, lengths_of in MIXES.items()},
        "all 6,272": np.full(20_000, 6272),
        "all distinct, 1 to 20,000": random.permutation(20_000) + 1,
        "all distinct, to 1,000,000": random.permutation(20_000) * 50 + 1,
    }
    ways: dict[str, Callable[[np.ndarray], Clusters]] = {
        "default": cluster,
        "256 tokens": lambda lengths: cluster(lengths, 256),
        "default, max_tokens 100,000": lambda lengths: cluster(lengths, max_tokens=100_000),
        "fewest clusters": lambda lengths: cluster(lengths, method="greedy"),
    }
    out += ["", "Clustering 20,000 samples: ms, median of 7.", "", "| lengths | " + " | ".join(ways) + " |"]
    out.append("|---" * (len(ways) + 1) + "|")
    for name, lengths in cases.items():
        cells = []
        for way in ways.values():
            times = []
            for _ in range(7):
                begun = time.perf_counter()
                way(lengths)
                times.append(time.perf_counter() - begun)
            cells.append(f"{statistics.median(times) * 1e3:.0f}")
        out.append(f"| {name} | " + " | ".join(cells) + " |")


class Step:
    """Forward and backward of the input attention, and of a stack of blocks on its latents."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.read = InputAttention(args.width, args.latents, args.width, args.heads, 4 * args.width)
        self.tower = nn.Sequential(*(Block(args.width, args.heads, 4 * args.width) for _ in range(args.blocks)))
        initialise(self.read, 0)
        initialise(self.tower, 0)

    def __call__(self, flat: torch.Tensor, clusters: list[dict]) -> np.ndarray:
        """(wall, CPU) seconds of the input attention, and of the whole step with the blocks; forward and backward."""
        marks = [now()]
        latents = self.read(flat, clusters)
        marks.append(now())
        seen = latents.detach().requires_grad_()
        self.tower(seen).square().mean().backward()
        marks.append(now())
        latents.backward(seen.grad)
        marks.append(now())
        forward, tower, backward = np.diff(np.array(marks), axis=0)
        return np.stack([forward + backward, forward + tower + backward])


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def inputs(lengths: np.ndarray, clusters: Clusters, width: int) -> tuple[torch.Tensor, list[dict]]:
    """Tokens, sample after sample, the samples of one data set together as a feed gives them; and the plain packing."""
    order = np.argsort(lengths, kind="stable")
    starts = np.empty_like(lengths)
    starts[order] = np.cumsum(lengths[order]) - lengths[order]
    index = [np.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)]
    flat = torch.randn(int(lengths.sum()), width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    return flat, pack(index, clusters).plain()


def step_table(args: argparse.Namespace, name: str, samples: int, seed: int, out: list[str]) -> None:
    step = Step(args)
    lengths = MIXES[name](samples, seed)
    work: dict[str, list[tuple[np.ndarray, Clusters]]] = {
        way: [(lengths, clusters_of(lengths))] for way, clusters_of in WAYS.items()
    }
    pool = np.sort(np.concatenate([MIXES[name](samples, seed + k) for k in range(args.pool)]))
    work["length buckets"] = [(part, cluster(part, method="one")) for part in np.split(pool, args.pool)]
    real = int(lengths.sum())
    times: dict[str, list[np.ndarray]] = {way: [] for way in work}
    for turn in range(args.rounds + 1):
        for way, batches in work.items():
            spent = sum(step(*inputs(batch, clusters, args.width)) for batch, clusters in batches)
            if turn:
                times[way].append(spent * real / sum(int(batch.sum()) for batch, _ in batches))
    medians = {way: np.median(np.stack(found), 0) for way, found in times.items()}
    base = medians["one padded batch"]
    out += [
        "",
        f"Forward and backward of one batch of {samples} samples, {name}, draw {seed}: {real:,} tokens, the longest sample {lengths.max():,}; padded to it, "
        f"{padded_ratio(lengths):.2f} times the tokens. {args.latents} latents, width {args.width}, {args.heads} heads, float32, "
        f"{args.threads} thread(s), {args.rounds} turns; the step has {args.blocks} blocks on the latents besides.",
        "",
        "| batches by | clusters | waste | largest padding | input attention: s, CPU s | **rate** | step: s, CPU s | **rate** |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, batches in work.items():
        tokens = sum(int(b.sum()) for b, _ in batches)
        padded = sum(waste(b, c) * b.sum() for b, c in batches) / tokens
        most = max(int(np.ptp(b[rows])) for b, c in batches for rows in c)
        counts = len(batches[0][1]) if len(batches) == 1 else f"{len(batches)} batches"
        cells = [f"{wall:.2f}, {cpu:.2f} | {base[k, 1] / cpu:.2f}" for k, (wall, cpu) in enumerate(medians[way])]
        out.append(f"| {way} | {counts} | {padded:.2%} | {most:,} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--latents", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pool", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    load = os.getloadavg()[0]
    out = [
        f"`python benchmarks/gpna_batching.py {' '.join(sys.argv[1:])}`, {time.strftime('%Y-%m-%d')}, {device_name(torch.device('cpu'))}, load at the start {load:.1f}, PyTorch {torch.__version__}."
    ]
    clustering_times(out)
    padding_tables(out)
    ratio_table(out)
    for name, draws in (("the mix", 1), ("many series", 1), ("published sizes", 3)):
        for seed in range(args.seed, args.seed + draws):
            step_table(args, name, args.samples, seed, out)
    samples, tokens, longest = REFERENCE
    out += [
        "",
        f"The goal of four times was stated for a batch of {samples} samples with {tokens:,} tokens, the longest {longest:,}, padded {samples * longest / tokens:.2f} times the tokens. "
        f"The nearest of {DRAWS} draws:",
    ]
    step_table(args, "published sizes", samples, like_reference("published sizes"), out)
    text = "\n".join(out) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
