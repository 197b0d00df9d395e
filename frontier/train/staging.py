"""Before training: each node copies its shards to its own disk (`frontier.data.stage`), and its ranks read them there."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import torch
import torch.distributed as dist

from frontier.data.feed import Stream
from frontier.data.shards import ShardSet
from frontier.data.stage import PATIENCE_S, Hung, Staged, bounded, stage, stage_folder
from frontier.launch.ranks import Ranks


def shares_of_stage(streams: Sequence[Stream], limit: int | None) -> list[tuple[ShardSet, int | None]]:
    """(shards, bytes they may take of `limit`) of the streams that read files; by their sizes where not all can fit."""
    found = [stream.shards for stream in streams if isinstance(stream.shards, ShardSet)]
    sizes = [sum(entry["bytes"] for entry in shards.entries) for shards in found]
    total = max(1, sum(sizes))
    return [
        (shards, None if limit is None else limit * size // total) for shards, size in zip(found, sizes, strict=True)
    ]


def stage_on_every_node(
    shards: ShardSet,
    root: Path,
    limit: int | None,
    ranks: Ranks,
    device: torch.device,
    timeout_s: float,
    say: Callable[[str], None],
) -> None:
    """Rank 0 of each node copies, the others wait; then all ranks of the node read the copies. Collective.

    Copying may take longer than a collective may wait (`timeout_s`): the ranks meet at least four times in that span to ask
    whether all nodes are done. Which copies are right is told to a node's ranks by a file in its stage, under a name of this
    start alone. `say` gets the outcome of rank 0, and of any node where a copy failed or hung or that has fewer than rank 0's.
    """
    token = torch.tensor([time.time_ns()], device=device)
    dist.broadcast(token, 0)
    ready = stage_folder(root, shards) / f".ready-{int(token.item())}.json"
    leads, patience = ranks.local_rank == 0, min(PATIENCE_S, timeout_s / 4)
    with ThreadPoolExecutor(1, "stage-leader") as pool:
        job = pool.submit(_stage, shards, root, limit, ready, patience) if leads else None
        begun, beat = time.monotonic(), 0.05
        while True:
            if job is not None:
                wait([job], timeout=beat)
            waiting = torch.tensor([float(job is not None and not job.done())], device=device)
            dist.all_reduce(waiting)
            if waiting.item() == 0:
                break
            beat = min(timeout_s / 4, max(beat, (time.monotonic() - begun) / 4))
    staged = job.result() if job is not None else None
    usual = torch.tensor([float(len(staged.paths) if staged is not None else 0)], device=device)
    dist.broadcast(usual, 0)
    if staged is not None and (ranks.is_main or staged.failed or len(staged.paths) < usual.item()):
        say(staged.line(len(shards.entries)))
    try:
        files = bounded(lambda _: json.loads(ready.read_bytes()), patience, f"at {ready}")
    except (OSError, Hung):  # the stage's disk takes nothing or hangs: all is read from where it was written
        files = []
    shards.use_copies({file: ready.parent / file for file in files})
    rates = [staged.bytes / staged.seconds] if staged is not None and staged.bytes and not staged.failed else []
    slowest = torch.tensor([min(rates, default=math.inf)], device=device)
    dist.all_reduce(slowest, dist.ReduceOp.MIN)  # and all have read `ready`
    if ranks.is_main and ranks.nodes > 1 and math.isfinite(slowest.item()):
        say(f"staging, slowest of {ranks.nodes} nodes: {slowest.item() / 2**20:.0f} MiB/s")
    if leads and files:
        ready.unlink(missing_ok=True)


def _stage(shards: ShardSet, root: Path, limit: int | None, ready: Path, patience: float) -> Staged:
    staged = stage(shards, root, limit, patience)
    temporary = ready.with_suffix(f".tmp-{os.getpid()}")

    def write(_: object) -> None:
        temporary.write_text(json.dumps(sorted(staged.paths)))
        os.replace(temporary, ready)

    try:
        if staged.paths:
            bounded(write, patience, f"at {ready.parent}")
    except (OSError, Hung) as error:
        staged.left.insert(0, f"{ready.parent}: {error.strerror}" if isinstance(error, OSError) else str(error))
        staged.paths, staged.failed = {}, True
    return staged
