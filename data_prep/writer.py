"""Writing a planned set of shards: resumable, in parallel, with the same bytes for every number of workers."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data_prep.card import CARDS, write_cards
from data_prep.codec import measure
from data_prep.names import CODECS
from data_prep.plan import Plan, PlanOptions, content_fingerprint, make_plan
from data_prep.readers.registry import REPORT
from data_prep.scan import SCAN
from data_prep.shard_file import (
    ShardTask,
    disk_error,
    done_path,
    finished_record,
    remove_stale,
    write_json,
    write_shard,
)
from data_prep.source import Source
from data_prep.statistics import merge_statistics, published_statistics
from data_prep.team import Team, leave_with_parent
from frontier import __version__
from frontier.claim import CLAIM, claimed
from frontier.data.manifest import MANIFEST, SCHEMA
from frontier.errors import TransientError, UserError

PLAN = "plan.json"
Value = TypeVar("Value")


@dataclass(frozen=True)
class Written:
    """What a call of `write` did."""

    manifest: dict[str, Any]
    shards_written: int
    shards_kept: int
    seconds: float


@dataclass
class _Job:
    """What rank 0 found out: the plan, the shards that are whole, and the tasks that remain."""

    plan: Plan
    records: dict[str, dict[str, Any]]
    tasks: list[ShardTask]


def write(
    source: Source,
    directory: str | Path,
    options: PlanOptions,
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int, int, int], None] | None = None,
    team: Team | None = None,
) -> Written:
    """Write `source` to `directory`, or finish what an earlier call began.

    Only shards that are missing or not whole are written, by `workers` processes on every rank of `team`.
    `progress(samples done, samples in all, shards left)` is called after each shard of this rank. Raises `UserError`
    where the directory holds something else, the disk is too small, or the source refuses; `TransientError` where a
    worker process died.
    """
    if workers < 1:
        raise UserError(f"--workers {workers}: give 1 or more")
    with ExitStack() as held:
        return _write(source, Path(directory), options, workers, overwrite, progress, team or Team(), held)


def _write(
    source: Source,
    directory: Path,
    options: PlanOptions,
    workers: int,
    overwrite: bool,
    progress: Callable[[int, int, int], None] | None,
    team: Team,
    held: ExitStack,
) -> Written:
    begun = time.monotonic()
    job: _Job | None = None

    def begin() -> tuple[list[ShardTask], int, int]:
        nonlocal job
        check_target(directory)
        chosen, plan = _plan(source, directory, options)
        _make(directory)
        held.enter_context(claimed(directory))
        job = _prepare(source, directory, chosen, plan, overwrite, team, workers)
        return job.tasks, job.plan.samples, sum(record["samples"] for record in job.records.values())

    tasks, samples, done = team.lead(lambda: _said(begin, directory))
    mine = tasks[team.rank :: team.size]

    def work() -> list[dict[str, Any]]:
        written: list[dict[str, Any]] = []
        reached = done
        for record in _run(mine, source, workers):
            written.append(record)
            reached += record["samples"]
            if progress is not None:
                progress(reached, samples, len(mine) - len(written))
        return written

    fresh = team.collect(work)

    def conclude() -> Written:
        assert job is not None  # rank 0 has run `begin`
        records = job.records | {record["file"]: record for record in fresh}
        ordered = [records[shard.file] for shard in job.plan.shards]
        manifest = _manifest(source, job.plan, ordered)
        if not _same_manifest(directory, manifest):
            write_json(directory / MANIFEST, manifest)
        write_cards(directory)
        (directory / SCAN).unlink(missing_ok=True)
        return Written(manifest, len(fresh), len(job.records), time.monotonic() - begun)

    return team.lead(lambda: _said(conclude, directory))


def _said(work: Callable[[], Value], directory: Path) -> Value:
    """What `work` returns; what the disk refuses it (plan, manifest, cards) as an error in a line."""
    try:
        return work()
    except OSError as error:
        raise disk_error(error, Path(error.filename or directory / PLAN)) from None


def _plan(source: Source, directory: Path, options: PlanOptions) -> tuple[PlanOptions, Plan]:
    options, measured = resolve_codec(source, directory, options)
    plan = make_plan(source, options)
    if measured is not None:
        plan.record["codec_measured"] = measured
    return options, plan


def _prepare(
    source: Source, directory: Path, options: PlanOptions, plan: Plan, overwrite: bool, team: Team, workers: int
) -> _Job:
    """Look at what is already there, and check the space for the rest."""
    _prepare_directory(directory, plan, overwrite)
    remove_stale(directory)
    job = _Job(plan, {}, [])
    # Hashing what is there reads it all: every rank takes its share.
    ask = [(str(directory), shard.file, len(shard.rows), plan.fingerprint) for shard in plan.shards]
    for shard, record in zip(plan.shards, team.map(finished_record, ask, workers, costly=True), strict=True):
        if record is not None:
            job.records[shard.file] = record
            continue
        job.tasks.append(
            ShardTask(
                shard,
                tuple(plan.listing.ids[row] for row in shard.rows),
                np.asarray(plan.listing.labels)[list(shard.rows)],
                plan.record["columns"],
                plan.record["images"],
                plan.record["arrays"],
                options.compression,
                plan.fingerprint,
                str(directory),
            )
        )
    _check_space(directory, source, [len(task.shard.rows) for task in job.tasks])
    if job.tasks:
        # Until the shards are whole again the set must not look complete.
        (directory / MANIFEST).unlink(missing_ok=True)
    return job


def check_target(directory: str | Path) -> None:
    """Raise `UserError` unless `directory` is new, empty, or holds what an earlier write began."""
    directory = Path(directory)
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UserError(f"{directory}: is a file: give a directory to write the shards to")
    try:
        names = [entry.name for entry in os.scandir(directory)]
    except OSError as error:
        raise UserError(f"{directory}: cannot be read ({error.strerror}): give another one") from None
    ours = (REPORT, CLAIM, SCAN, *CARDS)
    foreign = [name for name in names if name not in ours and not name.startswith((f".{PLAN}.tmp-", ".codec-probe-"))]
    if foreign and PLAN not in names:
        raise UserError(f"{directory}: holds other files and no {PLAN}: give an empty or new directory")


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory}: cannot be made ({error.strerror}): give another directory") from None


def resolve_codec(
    source: Source, directory: Path, options: PlanOptions
) -> tuple[PlanOptions, list[dict[str, Any]] | None]:
    """`options` with a codec's name in place of "auto", and the table it was chosen from.

    What an earlier call chose for this directory stays: timings vary, and a second call must find the same plan.
    """
    if options.compression != "auto":
        return options, None
    try:
        found = json.loads((directory / PLAN).read_bytes())
        if found["codec_measured"] and found["options"]["compression"] in CODECS:
            return replace(options, compression=found["options"]["compression"]), found["codec_measured"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    table = measure(source, directory, options.disk_mib_s)
    return replace(options, compression=table[0]["codec"]), table


def _prepare_directory(directory: Path, plan: Plan, overwrite: bool) -> None:
    try:
        found: Any = json.loads((directory / PLAN).read_bytes())
    except FileNotFoundError:
        found = None
    except ValueError:
        found = {}
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({error.strerror}): give another directory") from None
    if found is not None and (not isinstance(found, dict) or found.get("fingerprint") != plan.fingerprint):
        if not overwrite:
            raise UserError(
                f"{directory}: holds shards of another plan ({_difference(found, plan.record)}): give "
                "another directory, the same options as before, or --overwrite"
            )
        _clear(directory, found)
        found = None
    if found is None:
        write_json(directory / PLAN, plan.record)


def _difference(old: Any, new: dict[str, Any]) -> str:
    """The first setting in which two plans differ, for a person."""
    if not isinstance(old, dict):
        return "unreadable"
    for part in ("source", "options"):
        before, after = old.get(part), new[part]
        if not isinstance(before, dict):
            return "unreadable"
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                return f"{key}: {before.get(key)!r} there, {after.get(key)!r} now"
    return "other samples"


def _clear(directory: Path, plan: Any) -> None:
    """Remove the files that `plan` names, the manifest first; nothing else is touched."""
    (directory / MANIFEST).unlink(missing_ok=True)
    shards = plan.get("shards", []) if isinstance(plan, dict) else []
    for shard in shards:
        path = directory / str(shard["file"])
        if not path.resolve().is_relative_to(directory.resolve()):
            continue
        done_path(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    (directory / PLAN).unlink(missing_ok=True)


def _check_space(directory: Path, source: Source, samples: list[int]) -> None:
    """Refuse before the first write where the pending shards cannot fit (uncompressed size, 2 % and 1 MiB over)."""
    one = source.sample_bytes + 256
    needed = int(sum(samples) * one * 1.02) + ((1 << 20) if samples else 0)
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise UserError(
            f"{directory}: {_size(needed)} needed, {_size(free)} free: make room, write fewer samples or give a "
            "directory on another disk"
        )


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


_worker_source: Source | None = None


def _start_worker(source: Source, parent: int) -> None:
    global _worker_source
    _worker_source = source
    leave_with_parent(parent)


def _work(task: ShardTask) -> dict[str, Any]:
    if _worker_source is None:
        raise RuntimeError("worker started without a source")
    return write_shard(task, _worker_source)


def _run(tasks: list[ShardTask], source: Source, workers: int) -> Iterator[dict[str, Any]]:
    workers = min(workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield write_shard(task, source)
        return
    # Not fork: the parent may hold HDF5, threads or MPI.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(source, os.getpid()))
    try:
        for future in as_completed([pool.submit(_work, task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool:
        raise TransientError(
            "a worker process died, most often for want of memory: run the same command again to finish, with "
            "fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _manifest(
    source: Source,
    plan: Plan,
    records: list[dict[str, Any]],
) -> dict[str, Any]:
    described = {}
    for name, spec in plan.record["images"].items():
        parts = [record["statistics"][name] for record in records if record["split"] == "train"]
        described[name] = spec | {
            "statistics": published_statistics(merge_statistics(parts, len(spec["bands"])), spec["dtype"])
        }
    shards = [{key: record[key] for key in ("file", "split", "samples", "bytes", "sha256")} for record in records]
    splits: dict[str, dict[str, Any]] = {}
    for shard in shards:
        split = splits.setdefault(shard["split"], {"samples": 0, "shards": []})
        split["samples"] += shard["samples"]
        split["shards"].append(shard["file"])
    return {
        "schema": SCHEMA,
        "name": source.name,
        "samples": plan.samples,
        "fingerprint": content_fingerprint(plan.fingerprint, shards),
        "plan": plan.fingerprint,
        "splits": splits,
        "shards": shards,
        "images": described,
        "arrays": plan.record["arrays"],
        "columns": plan.record["columns"],
        "targets": plan.record["targets"],
        "classes": list(plan.listing.classes),
        "license": source.license,
        "citation": source.citation,
        "homepage": source.homepage,
        "description": source.description,
        "source": plan.record["source"],
        "options": plan.record["options"],
        "split_check": plan.split_check,
        "notes": plan.listing.notes,
        "created_by": f"frontier {__version__}",
    }


def _same_manifest(directory: Path, manifest: dict[str, Any]) -> bool:
    try:
        return json.loads((directory / MANIFEST).read_bytes()) == manifest
    except (OSError, ValueError):
        return False
