"""Before training: each node copies its shards to its own disk (`frontier.data.stage`), and its ranks read them there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import torch
import torch.distributed as dist

from frontier.data.shards import ShardSet
from frontier.data.stage import Staged, stage, stage_folder
from frontier.launch.ranks import Ranks


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
    start alone. `say` gets the outcome of rank 0, and of any node whose disk failed.
    """
    token = torch.tensor([time.time_ns()], device=device)
    dist.broadcast(token, 0)
    ready = stage_folder(root, shards) / f".ready-{int(token.item())}.json"
    leads = ranks.local_rank == 0
    with ThreadPoolExecutor(1, "stage-leader") as pool:
        job = pool.submit(_stage, shards, root, limit, ready) if leads else None
        begun, beat = time.monotonic(), 0.05
        while True:
            if job is not None:
                wait([job], timeout=beat)
            waiting = torch.tensor([float(job is not None and not job.done())], device=device)
            dist.all_reduce(waiting)
            if waiting.item() == 0:
                break
            beat = min(timeout_s / 4, max(beat, (time.monotonic() - begun) / 4))
    if job is not None:
        staged = job.result()
        if ranks.is_main or staged.failed:
            say(staged.line(len(shards.entries)))
    try:
        files = json.loads(ready.read_bytes())
    except OSError:  # the stage's disk takes nothing: all is read from where it was written
        files = []
    shards.use_copies({file: ready.parent / file for file in files})
    dist.all_reduce(torch.zeros(1, device=device))  # all have read it
    if leads:
        ready.unlink(missing_ok=True)


def _stage(shards: ShardSet, root: Path, limit: int | None, ready: Path) -> Staged:
    staged = stage(shards, root, limit)
    temporary = ready.with_suffix(f".tmp-{os.getpid()}")
    try:
        temporary.write_text(json.dumps(sorted(staged.paths)))
        os.replace(temporary, ready)
    except OSError as error:
        staged.left.insert(0, f"{ready.parent}: {error.strerror}")
        staged.paths, staged.failed = {}, True
    return staged
