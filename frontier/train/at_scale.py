"""What one rank of a large job sets up, and what the job asks of its file system: `--dry-run --nodes N`.

The plan of the chosen rank is really made (mesh, sampler, blocks and shard files of its first window, its part in a checkpoint) and
timed; nothing is communicated or written. Counts are of this program's own files; the Python environment's are the site's
concern (unpack it on node-local storage).

Operations are those on names, which one metadata server answers for all: open (with its close), create, stat, mkdir, rename,
unlink, listing. They are counted by construction, as the code makes them; tests/train/test_at_scale.py holds them against the system calls of
real ranks. Reads and writes of open files go to the many servers that hold data.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from frontier.data.feed import Stream
from frontier.launch.mesh import ParallelDims
from frontier.train.checkpoint import writing_ranks
from frontier.train.plan import RunPlan

MANY_FILES = 20_000
"""Files of one checkpoint from which a warning is given: a Lustre metadata server creates some ten thousand files a second."""


def peak_rss_gib() -> float:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 2**30


@dataclass(frozen=True)
class Started:
    """Taken before the plan is made: what the plan costs is the difference from here."""

    clock: float
    rss_gib: float

    @classmethod
    def now(cls) -> Started:
        return cls(time.perf_counter(), peak_rss_gib())


def shard_files(stream: Stream, dims: ParallelDims, rank: int) -> int:
    """Different shard files of a stream that `rank` reads in its first window."""
    if not stream.shards.manifest["shards"]:
        return 0
    sampler = stream.sampler
    blocks = sampler.window_blocks(0, dims.data_rank(rank), dims.data_ranks)
    read = (blocks.starts[:, None] + np.arange(sampler.block)) % sampler.samples
    starts = stream.shards.shard_starts
    if sampler.samples != len(stream.shards):  # planned as if there were more shards like the largest
        return len(np.unique(read // int(np.diff(starts).max())))
    return len(np.unique(np.searchsorted(starts, read, side="right")))


def operations(plan: RunPlan, files: int, configs: int, writing: int) -> dict[str, float]:
    """On names, by occasion. `files`: shard files of a rank's first window; `writing`: ranks that write a checkpoint."""
    dims, streams = plan.dims, plan.feed.streams
    world, copy = dims.world_size, dims.shard * dims.tensor
    listed = sum(len(stream.shards.manifest["shards"]) for stream in streams)
    read = sum(bool(stream.shards.manifest["shards"]) for stream in streams)
    # Each config: stat, lstat, open. STOP. A stream: stat of its folder, open of the manifest. A shard: stat, lstat, two opens.
    start = 3 * configs + 1 + 2 * read + 4 * files
    # Its folder, made or found, and its file. Rank 0 besides: free space, index, record and folder with their renames, the newest and the
    # oldest looked at; a stat of each file, and an unlink of each in the one that is dropped.
    writer, first = 3, 26 + 2 * (writing + 2)
    # Record and index; of each file twice whether it is there, and its size. Of the rest every reader opens what holds its parts.
    opened, looked = max(1, writing // dims.shard), 8 + 2 * (writing + 2)
    return {
        "start_of_a_rank": start,
        "start_of_rank_0": start + 4 * listed + 20,
        "start_in_total": start * world + 4 * listed + 20,
        "step_of_a_rank": 0,
        "step_of_rank_0": 1,  # is there a STOP file?
        "checkpoint_of_a_writer": writer,
        "checkpoint_of_rank_0": writer + first,
        "checkpoint_of_other_ranks": 0,
        "checkpoint_in_total": writer * writing + first,
        "resume_of_a_reader": opened,
        "resume_of_other_ranks": 0,
        "resume_in_total": opened * copy + looked,
    }


def at_scale(plan: RunPlan, rank: int, ranks_per_node: int, started: Started, configs: int = 1) -> dict[str, Any]:
    """The figures of `rank`; keys end in their unit, counts have none. `configs`: files that the config is made of."""
    dims, saving = plan.dims, plan.config.checkpoint
    world, copy = dims.world_size, dims.shard * dims.tensor
    writing = writing_ranks(saving.writers, dims.replicate, copy)
    state_bytes = 12 * plan.parameters  # parameters and two moments, float32
    streams = plan.feed.streams
    files_of = [shard_files(stream, dims, rank) for stream in streams]
    blocks_of = [
        s.sampler.blocks_per_window // dims.data_ranks if n else 0 for s, n in zip(streams, files_of, strict=True)
    ]
    files, blocks = sum(files_of), sum(blocks_of)
    saves = plan.steps // saving.every_steps if saving.every_steps else int(saving.at_end)
    setup_s = time.perf_counter() - started.clock
    window = sum(n * s.sampler.block * s.sample_bytes for s, n in zip(streams, blocks_of, strict=True))
    copies = {"replicate": world // dims.replicate, "shard": world // dims.shard, "tensor": world // dims.tensor}
    axes = [axis for axis, degree in dims.as_dict().items() if degree > 1]
    report = {
        "provenance": {"setup": "measured on this machine", "counts": "by construction"},
        "ranks": world,
        "nodes": world // ranks_per_node,
        "rank": rank,
        "place": {
            "replica": dims.replica(rank),
            "shard": rank // dims.tensor % dims.shard,
            "tensor": rank % dims.tensor,
            "data_rank": dims.data_rank(rank),
        },
        "setup_s": setup_s,
        "setup_gib": max(0.0, peak_rss_gib() - started.rss_gib),
        "process_groups_of_a_rank": dims.process_groups(),
        "process_groups_in_total": 2 + sum(copies[axis] for axis in axes),
        "sampler_state_bytes": 0,
        "reader": {
            "blocks_a_window": blocks,
            "bytes_a_window": window,
            "host_gib": 2 * window / 2**30,
            "steps_a_window": min(stream.sampler.window for stream in streams),
            "shard_files_first_window": files,
        },
        "checkpoint": {
            "writing_ranks": writing,
            "files": writing + 2,
            "bytes": state_bytes,
            "bytes_a_writer": state_bytes // writing,
            "this_rank_writes": rank < writing,
            "checkpoints_of_the_run": saves,
            "reading_ranks": copy,
            "bytes_a_reader": state_bytes // dims.shard,
            "this_rank_reads": rank < copy,
        },
        "log_files": {"rank_0": 4, "other_ranks": 0},
        "file_system_operations": operations(plan, files, configs, writing),
    }
    notes = []
    if writing > MANY_FILES:
        fit = max(
            d for d in range(1, world // dims.tensor + 1) if world % (d * dims.tensor) == 0 and d * dims.tensor <= 512
        )
        notes.append(
            f"one copy of the model lies on {copy:,} ranks, so a checkpoint has {writing + 2:,} files: a hybrid strategy such as "
            f"hybrid_{fit} writes {writing_ranks(saving.writers, world // (fit * dims.tensor), fit * dims.tensor) + 2:,}"
        )
    return report | {"notes": notes}


def lines(report: dict[str, Any]) -> list[str]:
    """The report for a terminal."""
    reader, saved, names = report["reader"], report["checkpoint"], report["file_system_operations"]
    place = ", ".join(f"{k} {v}" for k, v in report["place"].items())
    return [
        f"scale       {report['ranks']:,} ranks on {report['nodes']:,} nodes; rank {report['rank']:,}: {place}",
        f"set-up      {report['setup_s']:.2f} s and {report['setup_gib']:.3f} GiB on this machine for the plan of that rank (measured)",
        f"groups      a rank is in {report['process_groups_of_a_rank']} process groups, {report['process_groups_in_total']:,} exist",
        f"reading     a rank: {reader['blocks_a_window']} blocks every {reader['steps_a_window']} steps from "
        f"{reader['shard_files_first_window']} shard files, {reader['host_gib']:.3f} GiB on the host; sampler state: none",
        f"writing     {saved['files']:,} files a checkpoint by {saved['writing_ranks']:,} ranks, "
        f"{saved['bytes_a_writer'] / 2**30:.2f} GiB each; logs: 4 files by rank 0, none by others",
        f"resuming    {saved['reading_ranks']:,} ranks read the checkpoint, up to {saved['bytes_a_reader'] / 2**30:.2f} GiB each"
        + (", and send it to the others" if saved["reading_ranks"] < report["ranks"] else ""),
        f"operations  on names, start: {names['start_of_a_rank']} a rank, {names['start_in_total']:,} in total; step: 0, rank 0 {names['step_of_rank_0']}; "
        f"checkpoint: {names['checkpoint_of_a_writer']} a writer, {names['checkpoint_in_total']:,} in total; "
        f"resume: {names['resume_of_a_reader']} a reader, {names['resume_in_total']:,} in total",
        *(f"note        {note}" for note in report["notes"]),
    ]
