"""`frontier pretrain CONFIG [key=value …]`: alone, with --ranks N, under torchrun, srun and mpiexec, unchanged."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from frontier.arguments import Parser
from frontier.errors import EXIT_OK, EXIT_USER, RankError, TransientError, UserError

if TYPE_CHECKING:
    import torch

    from frontier.config.load import Config
    from frontier.launch.ranks import Ranks


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="frontier pretrain",
        description="Pretrain a model. Resumes by itself from the newest valid checkpoint in run.dir.",
        epilog="exit codes: 0 done, 2 the input is wrong, 75 a passing failure, 85 checkpointed on request: requeue",
    )
    parser.add_argument("config", help="YAML file, or the name of a shipped one: mae_debug (jobs/configs/)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.sub=value", help="such as train.steps=100 parallel.strategy=ddp"
    )
    parser.add_argument("--ranks", type=int, metavar="N", help="start N ranks on this machine (no launcher needed)")
    parser.add_argument("--dry-run", action="store_true", help="print config, mesh, memory and cost, and stop")
    parser.add_argument("--world-size", type=int, metavar="N", help="with --dry-run: as if on N ranks")
    parser.add_argument(
        "--nodes", type=int, metavar="N", help="with --dry-run: as if on N nodes, and what one rank sets up"
    )
    parser.add_argument("--ranks-per-node", type=int, metavar="N", help="with --nodes; default 8")
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="with --nodes: as if the data, each source of them, held N training samples",
    )
    parser.add_argument("--rank", type=int, metavar="R", help="with --nodes: the rank to look at; default the last")
    parser.add_argument("--json", action="store_true", help="with --dry-run: print JSON")
    return parser


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; raises UserError."""
    args = _parser().parse_intermixed_args(argv)
    if (args.world_size is not None or args.json or args.nodes is not None) and not args.dry_run:
        raise UserError("--world-size, --nodes and --json go with --dry-run")
    numbers = {
        "--ranks": args.ranks,
        "--world-size": args.world_size,
        "--nodes": args.nodes,
        "--ranks-per-node": args.ranks_per_node,
        "--samples": args.samples,
    }
    low = next((name for name, number in numbers.items() if number is not None and number < 1), None)
    if low is not None:
        raise UserError(f"{low} {numbers[low]}: give a positive number")
    same = [name for name in ("--ranks", "--world-size", "--nodes") if numbers[name] is not None]
    if len(same) > 1:
        raise UserError(f"{' and '.join(same)} say the same: give one")
    if args.nodes is None and any(v is not None for v in (args.rank, args.samples, args.ranks_per_node)):
        raise UserError("--rank, --samples and --ranks-per-node go with --nodes")
    from frontier.launch.ranks import discover

    ranks = discover()
    if args.ranks is not None and not args.dry_run:
        if ranks.source != "alone":
            raise UserError(
                f"--ranks is for a start without a launcher, this one was started by {ranks.source}: leave it out"
            )
        from frontier.launch.local import run_local

        command = [sys.executable, "-m", "frontier", "pretrain", args.config, *args.overrides]
        if args.ranks > 1:
            return run_local(command, args.ranks)

    from frontier.train.preemption import StopFlag

    # Before the slow imports; a dry run ends as any program does. The handlers stay: a signal in the last moments is late, not deadly.
    stop = None if args.dry_run else StopFlag()

    from frontier.config.load import config_file, extended_files, load_config
    from frontier.config.schema import ZERO
    from frontier.data.stage import stage_root
    from frontier.launch.job import current_job
    from frontier.parallel.zero import check_installed
    from frontier.train.at_scale import Started, at_scale
    from frontier.train.checkpoint import check_start
    from frontier.train.plan import resolve

    per_node = args.ranks_per_node or 8
    world = args.world_size or (args.nodes or 0) * per_node or args.ranks or ranks.world_size
    watched = world - 1 if args.rank is None else args.rank
    if not 0 <= watched < world:
        raise UserError(f"--rank {watched}: there are ranks 0 to {world - 1}")
    try:
        config = load_config(args.config, args.overrides)
        # One rank looks at every shard file; the others look at a shard when they first read it.
        started = Started.now()
        job = current_job()
        plan = resolve(config, world, check_shards=ranks.is_main and not args.nodes, samples=args.samples)
        if config.parallel.strategy in ZERO and not args.dry_run:
            check_installed()
        if config.data.stage and not args.dry_run:
            stage_root(config.data.stage)
        if ranks.is_main and not args.dry_run:
            if config.train.start_from:
                check_start(config.train.start_from)
            _try_to_make(plan.run_dir)
    except UserError as error:
        if args.dry_run and ranks.local_rank:
            return EXIT_USER  # said once a node
        if args.dry_run or ranks.world_size == 1:
            raise
        return _refuse(ranks, error)
    if args.dry_run:
        from frontier.train.dry_run import dry_run

        scale = None
        if args.nodes:
            scale = at_scale(plan, watched, per_node, started, len(extended_files(config_file(args.config))))
        if ranks.is_main:
            dry_run(plan, scale, as_json=args.json)
        return EXIT_OK

    from frontier.launch.devices import agree, find_device
    from frontier.launch.host_memory import keep_freed_memory
    from frontier.launch.process_group import process_group
    from frontier.train.profiler import check_snapshot
    from frontier.train.startup import Startup
    from frontier.train.trainer import train

    startup = Startup()
    startup.mark("imports")
    device, seen = find_device(ranks, config.run.device)
    try:
        if not seen.lacks:
            _check_device(config, device)
            check_snapshot(config.log, device)
    except UserError as error:
        if ranks.world_size == 1:
            raise
        return _refuse(ranks, error)
    if device.type == "cpu":
        keep_freed_memory()
    try:
        with process_group(ranks, device, config.parallel.timeout_s, before=lambda store: agree(store, ranks, seen)):
            assert stop is not None
            return train(plan, ranks, device, stop, job, startup)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RankError(
            f"rank {ranks.rank}: the disk of {config.run.dir} is full: free some space and start again"
        ) from None
    except UserError as error:
        # What all ranks met is said by rank 0 alone, what one rank met by itself, a lost rank once a node.
        told = isinstance(error, RankError) or (isinstance(error, TransientError) and ranks.local_rank == 0)
        if ranks.is_main or told:
            raise
        return error.exit_code


REFUSAL_S = 60
"""At most so long a rank that cannot start looks for the others, which may still be importing."""


def _refuse(ranks: Ranks, error: UserError) -> int:
    """One line for all ranks, and none that waits for this one; returns the exit code.

    What rank 0 meets it says at once. What another rank meets, rank 0 says with its number and host, once all are there.
    """
    from torch.distributed import DistError

    from frontier.cli import complain
    from frontier.launch.devices import refuse
    from frontier.launch.process_group import meet

    if ranks.is_main:
        complain("pretrain", error)
    try:
        refuse(meet(ranks, REFUSAL_S, wait_for_all=False), ranks, str(error), REFUSAL_S)
    except (TransientError, DistError):  # nobody there to hear it, or to say it
        if not ranks.is_main and ranks.local_rank == 0:
            raise error from None
    return error.exit_code


def _check_device(config: Config, device: torch.device) -> None:
    """Raises UserError for what has no effect on this kind of device."""
    from frontier.config.schema import ZERO

    if device.type == "cpu" and config.parallel.offload and config.parallel.strategy not in ZERO:
        raise UserError("parallel.offload has no effect here: on a CPU everything is on the host already; leave it out")


def _try_to_make(run_dir: Path) -> None:
    """It stays only where it was there before: what is refused later leaves nothing behind."""
    try:
        if run_dir.is_dir():
            return
        run_dir.mkdir(parents=True)
        run_dir.rmdir()
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        raise UserError(
            f"run.dir={run_dir} cannot be made ({getattr(error, 'strerror', error)}): mend that, or name another folder"
        ) from None
