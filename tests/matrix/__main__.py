"""`python -m tests.matrix`: the whole matrix and all pairs of stop-and-resume, as a Markdown table.

--family gpna   --ranks 1,2,4,8   --strategies full_shard,zero_2   --variants plain   --no-pairs   --out FOLDER
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import run_frontier, toy_config, write_images
from tests.gpna.sets import small_config, write_both
from tests.matrix.cells import FURTHER, RANKS, STEPS, STOP, STRATEGIES, VARIANTS, Cell, matrix
from tests.matrix.run import TOLERANCE, Bench
from tests.scale_alibi.triplets import small_config as triplet_config
from tests.scale_alibi.triplets import write_triplets


def toy_data(folder: Path) -> Path:
    """The images of the tests as shards."""
    write_images(folder / "images")
    done = run_frontier("shards", "write", "--from", folder / "images", folder / "toy")
    if done.returncode:
        sys.exit(done.stderr)
    return folder / "toy"


FAMILIES = {
    "mae": (toy_data, toy_config, STEPS, STOP),
    "gpna": (write_both, small_config, 12, 5),
    "scale_alibi": (write_triplets, triplet_config, 12, 5),
}
"""By family: what makes its data, its small run on them, its steps, and where the first side of a stop-and-resume ends."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=tuple(FAMILIES), default="mae")
    parser.add_argument("--ranks", default=",".join(map(str, RANKS)))
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--no-pairs", action="store_true")
    parser.add_argument("--out", type=Path, default=None, help="folder for the runs; default: a temporary one")
    args = parser.parse_args()
    ranks = tuple(int(r) for r in args.ranks.split(","))
    strategies = tuple(args.strategies.split(","))
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        make_data, config, steps, stop = FAMILIES[args.family]
        bench = Bench(args.out or Path(scratch) / "runs", make_data(Path(scratch)), config, steps, stop)
        bench.reference()
        variants = tuple(args.variants.split(","))
        cells = [c for c in matrix(ranks, strategies) if c.variant in variants or args.variants == ",".join(VARIANTS)]
        failed = table(bench, cells, strategies, list(itertools.product(ranks, variants)))
        pairs = 0
        if not args.no_pairs and {2, 4} <= set(ranks):
            pairs, bad = pair_table(bench, [c for c in cells if c.variant == "plain"])
            failed += bad
    print(
        f"\n{len(cells)} runs and {pairs} pairs in {time.monotonic() - start:.0f} s, {failed} failed "
        f"(losses and final weights within {TOLERANCE:g} of one rank alone, float32)."
    )
    return 1 if failed else 0


def table(bench: Bench, cells: list[Cell], strategies: tuple[str, ...], columns: list[tuple[int, str]]) -> int:
    bench.cells(cells)
    found = {(c.ranks, c.strategy, c.variant): bench.difference(c.name) for c in cells}
    print(
        "Largest relative difference of a loss / largest difference of a final weight; - where the mesh does not exist.\n"
    )
    print("| strategy | " + " | ".join(f"{r} ranks, {v}" for r, v in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for strategy in strategies:
        shown = []
        for r, variant in columns:
            d = found.get((r, strategy, variant))
            shown.append("-" if d is None else f"{d.losses:.0e} / {d.weights:.0e}{'' if d.ok else ' **failed**'}")
        print(f"| {strategy} | " + " | ".join(shown) + " |")
    more = [(c, found[c.ranks, c.strategy, c.variant]) for c in cells if c.variant in FURTHER]
    for cell, d in more:
        print(
            f"\n{cell.strategy}, {cell.variant}, {cell.ranks} ranks: {d.losses:.0e} / {d.weights:.0e}{'' if d.ok else ' **failed**'}"
        )
    return sum(not d.ok for d in found.values())


def pair_table(bench: Bench, cells: list[Cell]) -> tuple[int, int]:
    first, second = ([c for c in cells if c.ranks == r] for r in (2, 4))
    pairs = list(itertools.product(first, second))
    names = bench.resume(pairs)
    found = {key: bench.difference(name) for key, name in names.items()}
    print(
        f"\nStopped after step {bench.stop} on 2 ranks (rows), gone on under another strategy on 4 ranks (columns): largest relative difference of a loss.\n"
    )
    print("| from \\ to | " + " | ".join(c.strategy for c in second) + " |")
    print("|---|" + "---|" * len(second))
    for a in first:
        shown = [found[a.name, b.name] for b in second]
        print(f"| {a.strategy} | " + " | ".join(f"{d.losses:.0e}{'' if d.ok else ' **failed**'}" for d in shown) + " |")
    return len(pairs), sum(not d.ok for d in found.values())


if __name__ == "__main__":
    sys.exit(main())
