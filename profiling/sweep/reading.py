"""`python -m frontier_profiling.sweep.reading CONFIG --ranks N`: what a run reads, without training: the data-only point of a study.

Every rank reads its own share of every global batch with the run's own loader, as fast as it can. RUN/reading.json holds images/s
of all ranks together, over the slowest rank's time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from frontier.errors import EXIT_OK, UserError


def main(argv: Sequence[str]) -> int:
    """Returns the exit code. Raises UserError."""
    parser = argparse.ArgumentParser(
        prog="python -m frontier_profiling.sweep.reading", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("config")
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="ranks on this machine, without a launcher")
    args = parser.parse_args(argv)
    from frontier.launch.ranks import discover

    ranks = discover()
    if ranks.source == "alone" and args.ranks > 1:
        from frontier.launch.local import run_local

        return run_local([sys.executable, "-m", "frontier_profiling.sweep.reading", args.config], args.ranks)

    import torch
    import torch.distributed as dist

    from frontier.config.load import load_config
    from frontier.data.loader import Loader
    from frontier.launch.process_group import process_group
    from frontier.train.plan import resolve

    config = load_config(args.config)
    plan = resolve(config, ranks.world_size, check_shards=ranks.is_main)
    loader = Loader(
        plan.shards,
        config.data.column,
        plan.sampler,
        plan.dims.data_rank(ranks.rank),
        plan.dims.data_ranks,
        config.data.workers,
    )
    # Whole windows: a window's first batch waits for all of it, the others come at once.
    window = plan.sampler.window
    steps = max(2, -(-plan.steps // window)) * window
    with process_group(ranks, torch.device("cpu"), config.parallel.timeout_s):
        batches = loader.batches(0)
        for _ in range(window):
            next(batches)
        dist.barrier()
        began = time.perf_counter()
        for _ in range(steps):
            next(batches)
        slowest = torch.tensor(time.perf_counter() - began, dtype=torch.float64)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        batches.close()  # type: ignore[attr-defined]
        loader.close()
    if ranks.is_main:
        seconds, images = float(slowest), steps * plan.batch.global_batch
        found = {
            "steps": steps,
            "seconds": seconds,
            "images_per_s": images / seconds,
            "bytes_per_s": images * loader.sample_bytes / seconds,
        }
        folder = Path(config.run.dir)
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / ".reading.part"
        part.write_text(json.dumps(found))
        os.replace(part, folder / "reading.json")
        print(f"done: {images} images in {seconds:.2f} s, {images / seconds:.1f} images/s")
    return EXIT_OK


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"frontier sweep (reading): {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
