"""`python -m frontier_profiling.measure.reading CONFIG --ranks N`: what a run reads, without training: the data-only point of a study.

Every rank reads its own share of every global batch with the run's own loader, as fast as it can. Blocks are read a window of
batches at a time, so a window is what is timed: RUN/reading.json holds its seconds a batch, those of the slowest rank. The first window
is warm-up. The cache of the file system is left as it is.
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
        prog="python -m frontier_profiling.measure.reading", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as run.dir=NEW")
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="ranks on this machine, without a launcher")
    args = parser.parse_args(argv)
    from frontier.launch.ranks import discover

    ranks = discover()
    if ranks.source == "alone" and args.ranks > 1:
        from frontier.launch.local import run_local

        return run_local(
            [sys.executable, "-m", "frontier_profiling.measure.reading", args.config, *args.overrides], args.ranks
        )

    import torch
    import torch.distributed as dist

    from frontier.config.load import load_config
    from frontier.data.feed import Loaders
    from frontier.launch.process_group import process_group
    from frontier.train.plan import resolve

    config = load_config(args.config, args.overrides)
    plan = resolve(config, ranks.world_size, check_shards=ranks.is_main)
    place = plan.dims.data_rank(ranks.rank), plan.dims.data_ranks
    streams, cpu = plan.feed.streams, torch.device("cpu")
    loader = Loaders(streams, *place, config.data.workers, cpu, config.run.seed)
    window = max(stream.sampler.window for stream in streams)
    windows = max(2, -(-plan.steps // window))
    with process_group(ranks, cpu, config.parallel.timeout_s):
        batches = loader.batches(0)
        for _ in range(window):
            next(batches)
        dist.barrier()
        slowest = torch.zeros(windows, dtype=torch.float64)
        begun = time.perf_counter()
        for index in range(windows):
            for _ in range(window):
                next(batches)
            now = time.perf_counter()
            slowest[index], begun = (now - begun) / window, now
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        batches.close()  # type: ignore[attr-defined]
        loader.close()
    if ranks.is_main:
        found = {
            "batches_a_window": window,
            "batch_s": slowest.tolist(),
            "batch_bytes": sum(s.sampler.global_batch * s.sample_bytes for s in streams),
        }
        folder = Path(config.run.dir)
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / ".reading.part"
        part.write_text(json.dumps(found))
        os.replace(part, folder / "reading.json")
        print(f"done: {windows} windows of {window} batches of {plan.batch.global_batch} images")
    return EXIT_OK


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"frontier sweep (reading): {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
