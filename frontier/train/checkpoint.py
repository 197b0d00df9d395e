"""Checkpoints of a run: asynchronous, committed by rename, the newest valid one used, torn ones passed over."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
import warnings
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from frontier.errors import UserError
from frontier.launch.process_group import lost_rank
from frontier.parallel.shares import LoadPlanner, SavePlanner, Share
from frontier.train.storage import (
    COMPLETE,
    INDEX,
    CorruptCheckpoint,
    Reader,
    Writer,
    fsync_folder,
    read_index,
    read_tensors,
    write_json,
)

SCHEMA = 2
_NAME = re.compile(r"step_(\d{8})")


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def steps_in(folder: Path) -> list[int]:
    """Steps of all checkpoint folders by name, newest first, valid or not."""
    if not folder.is_dir():
        return []
    return sorted((int(m[1]) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name)) and p.is_dir()), reverse=True)


def read_record(checkpoint: Path) -> dict[str, Any]:
    """The completeness record, its files checked to be there with their sizes. Raises CorruptCheckpoint."""
    try:
        record = json.loads((checkpoint / COMPLETE).read_text())
        if record.pop("crc32") != _checksum(record):
            raise CorruptCheckpoint(f"{checkpoint / COMPLETE} is damaged (crc32 differs)")
        files = record["files"]
        if record["schema"] != SCHEMA:
            raise CorruptCheckpoint(f"{checkpoint} has schema {record['schema']}, this version reads {SCHEMA}")
    except OSError:
        raise CorruptCheckpoint(f"{checkpoint} has no {COMPLETE}: its save was interrupted") from None
    except (ValueError, KeyError, TypeError):
        raise CorruptCheckpoint(f"{checkpoint / COMPLETE} is unreadable") from None
    for name, size in files.items():
        path = checkpoint / name
        actual = path.stat().st_size if path.is_file() else None
        if actual != size:
            found = "is missing" if actual is None else f"has {actual} bytes"
            raise CorruptCheckpoint(f"{path} {found}, {size} were written")
    if zlib.crc32((checkpoint / INDEX).read_bytes()) != record["index_crc32"]:
        raise CorruptCheckpoint(f"{checkpoint / INDEX} is damaged (crc32 differs)")
    return record


def _checksum(record: dict[str, Any]) -> int:
    """Of a record as JSON holds it (tuples are lists there)."""
    return zlib.crc32(json.dumps(json.loads(json.dumps(record)), sort_keys=True).encode())


def seal(folder: Path, record: dict[str, Any]) -> None:
    """Write the completeness record of a folder in which everything else is; it then is a checkpoint."""
    files = {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.name != COMPLETE}
    whole = {**record, "schema": SCHEMA, "time": time.time(), "files": files}
    whole["index_crc32"] = zlib.crc32((folder / INDEX).read_bytes())
    write_json(folder / COMPLETE, {**whole, "crc32": _checksum(whole)})
    fsync_folder(folder)


def cause_of(error: BaseException) -> BaseException:
    """The first failure inside a CheckpointException of torch.distributed.checkpoint."""
    if isinstance(error, CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error


def writing_ranks(writers: int, replicate: int, copy: int) -> int:
    """How many of the first ranks write: whole copies of the model (`copy` ranks each), at least one, up to `writers`."""
    return min(replicate, max(1, writers // copy)) * copy


class Checkpoints:
    """Saves and finds the checkpoints of a run. `save`, `wait` and `restore` are collective over all ranks.

    Ranks beyond the first `writing` hold copies of what those write and take no part in writing.

    Args:
        folder: RUN/checkpoints.
        keep: newest complete ones that stay; keep_every: multiples of this step stay as well.
        async_save: copy the state, then write it in the background.
        writing: number of ranks that write, counted from rank 0.
        device: of the default process group's collectives.
    """

    def __init__(
        self, folder: Path, keep: int, keep_every: int | None, async_save: bool, writing: int, device: torch.device
    ) -> None:
        self.folder, self.keep, self.keep_every, self.async_save = folder, keep, keep_every, async_save
        self.device = device
        self.rank = dist.get_rank()
        # Used only for writing, so that background saves never meet training's collectives.
        self.group = dist.new_group(range(writing), backend="gloo")
        self.writes = self.rank < writing
        self.last_step: int | None = None
        self.save_s: float | None = None
        """Seconds that the newest save of this rank took, from the call until it was committed."""
        self._damaged: set[int] = set()
        self._written: float | None = None
        self._error: UserError | None = None
        self._pending: Future | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoint-writer")
        if self.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for stale in folder.glob(".*"):
                shutil.rmtree(stale, ignore_errors=True)

    def save(self, step: int, state: dict[str, Share], record: dict[str, Any]) -> None:
        """Save `state` as the checkpoint of `step`; with async_save returns once the state is copied.

        Raises:
            UserError: the disk has no room for it, or an earlier save failed; older checkpoints stay as they are.
        """
        self.wait()
        called = time.perf_counter()
        self._check_space(state, step)
        temporary, final = self.folder / f".{step_folder(self.folder, step).name}.tmp", step_folder(self.folder, step)

        def commit() -> None:
            seal(temporary, {"step": step, **record})
            if final.exists():  # a damaged one of the same step
                os.replace(final, self.folder / f".old_{final.name}")
            os.replace(temporary, final)
            fsync_folder(self.folder)
            self._damaged.discard(step)
            self._drop_old()

        def write(held: dict[str, Share]) -> None:
            start = time.perf_counter()
            try:
                writer = Writer(temporary, self.rank, commit)
                dcp.save(held, storage_writer=writer, planner=SavePlanner(), process_group=self.group)
            except (CheckpointException, OSError) as error:
                cause = cause_of(error)
                if isinstance(cause, RuntimeError) and lost_rank(cause):
                    raise cause from None  # not the disk: another rank is gone
                self._error = self._explain(step, error)
            self._written = time.perf_counter() - start
            self.save_s = time.perf_counter() - called

        self.last_step = step
        if self.writes:
            held = {name: share.staged() for name, share in state.items()} if self.async_save else state
            self._pending = self._thread.submit(write, held)
        if not self.async_save:
            self.wait()

    def written(self) -> float | None:
        """Seconds that a save took this rank to write, told once after it ended."""
        spent, self._written = self._written, None
        return spent

    def failed(self) -> bool:
        """Whether a background save of this rank is known to have failed; `wait` then raises on all ranks."""
        return self._error is not None

    def wait(self) -> None:
        """Until the background save, if any, is committed. All ranks learn of a failure.

        Raises:
            UserError: it failed on some rank.
        """
        if self._pending is not None:
            self._pending.result()
            self._pending = None
        if self.last_step is not None:
            self._agree(self._error)

    def _agree(self, error: Exception | None) -> None:
        """Raise everywhere, with the words of the first rank that has any, what a rank has met."""
        told: list[Any] = [None] * dist.get_world_size()
        flag = torch.tensor(float(error is not None), device=self.device)
        dist.all_reduce(flag)
        if flag.item():
            dist.all_gather_object(told, None if error is None else str(error))
            raise UserError(next(words for words in told if words is not None))

    def _explain(self, step: int, error: BaseException) -> UserError:
        cause = cause_of(error)
        if self.rank == 0:
            shutil.rmtree(self.folder / f".{step_folder(self.folder, step).name}.tmp", ignore_errors=True)
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return UserError(
                f"the disk filled up while the checkpoint of step {step} was written to {self.folder}: free some space "
                "and start again; older checkpoints are untouched"
            )
        return UserError(f"the checkpoint of step {step} could not be written to {self.folder}: {cause}")

    def _check_space(self, state: dict[str, Share], step: int) -> None:
        need = sum(share.nbytes() for share in state.values())
        free = [shutil.disk_usage(self.folder).free if self.rank == 0 else 0]
        dist.broadcast_object_list(free, src=0)
        if need > free[0]:
            raise UserError(
                f"not enough disk for the checkpoint of step {step}: {need / 2**30:.2f} GiB needed, {free[0] / 2**30:.2f} GiB "
                f"free in {self.folder}: free some space and start again; older checkpoints are untouched"
            )

    def _drop_old(self) -> None:
        # Damaged ones are no checkpoints: they must not take the places of good ones.
        steps = [step for step in steps_in(self.folder) if step not in self._damaged]
        for step in steps[self.keep :]:
            if self.keep_every and step % self.keep_every == 0:
                continue
            doomed = self.folder / f".old_{step_folder(self.folder, step).name}"
            os.replace(step_folder(self.folder, step), doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        for doomed in self.folder.glob(".old_*"):
            shutil.rmtree(doomed, ignore_errors=True)

    def restore(
        self, state: dict[str, Share], check: Any, replicas: dist.ProcessGroup | None = None
    ) -> tuple[dict[str, Any] | None, list[str]]:
        """Load the newest valid checkpoint into `state`: rank 0 reads the index for all, one rank of `replicas` its pieces.

        Args:
            check: called with the record before anything is loaded; raises UserError where it does not fit the run.
            replicas: the ranks that hold the same parts as this one; None: it is the only one.

        Returns:
            (its record, or None where there is no checkpoint; one line for each that was passed over).

        Raises:
            UserError: checkpoints exist but none can be read.
        """
        passed_over: list[str] = []
        steps = [steps_in(self.folder) if self.rank == 0 else []]
        dist.broadcast_object_list(steps, src=0)
        for step in steps[0]:
            folder = step_folder(self.folder, step)
            found: list[Any] = [None, None]
            if self.rank == 0:
                try:
                    found = [read_record(folder), read_index(folder)]
                except CorruptCheckpoint as error:
                    found = [str(error), None]
            dist.broadcast_object_list(found, src=0)
            record, tensors = found
            if tensors is None:
                passed_over.append(record)
                self._damaged.add(step)
                continue
            check(record)
            try:
                self._load_shared(state, Reader(folder, tensors), replicas)
            except UserError as error:
                passed_over.append(str(error))
                self._damaged.add(step)
                continue
            self.last_step = step
            return record, passed_over
        if steps[0]:
            raise UserError(
                f"none of the {len(steps[0])} checkpoints in {self.folder} can be read ({passed_over[0]}): move the folder "
                "away to begin anew"
            )
        return None, passed_over

    def begin_from(
        self, path: str, state: dict[str, Share], replicas: dist.ProcessGroup | None = None
    ) -> tuple[Path, list[str], list[str]]:
        """Load into `state` the weights of another run's checkpoint where names and shapes agree; optimizer state stays as it is.

        `replicas`: as of `restore`.

        Returns:
            (the checkpoint, names of the parameters that were loaded, names of this model's that were not).

        Raises:
            UserError: nothing there, damaged, or nothing in it fits.
        """
        found: list[Any] = [None, None]
        if self.rank == 0:
            try:
                folder = find_checkpoint(path)
                read_record(folder)
                found = [folder, read_index(folder)]
            except (UserError, CorruptCheckpoint) as error:
                found = [f"train.start_from: {error}", None]
        dist.broadcast_object_list(found, src=0)
        folder, tensors = found
        if tensors is None:
            raise UserError(folder)
        weights = {name: share for name, share in state.items() if name.startswith("model.")}
        fits = {n: s for n, s in weights.items() if n in tensors and list(s.shape) == list(tensors[n]["shape"])}
        if not fits:
            raise UserError(
                f"train.start_from: {folder} holds no parameter of this model by name and shape: leave it out"
            )
        self._load_shared(fits, Reader(folder, tensors), replicas)
        return folder, *([n.removeprefix("model.") for n in names] for names in (fits, weights.keys() - fits.keys()))

    def _load_shared(self, state: dict[str, Share], reader: Reader, replicas: dist.ProcessGroup | None) -> None:
        """Read once what the ranks of `replicas` hold alike, and send it on: a file system that feeds thousands of copies of a model
        would take longer than the network. Raises UserError on all ranks where one cannot read.
        """
        first = replicas is None or dist.get_rank(replicas) == 0
        self._agree(self._load(state, reader) if first else None)
        if replicas is None:
            return
        source = dist.get_global_rank(replicas, 0)
        for share in state.values():
            for _, box in share.boxes:
                # The network takes whole tensors on its device; offloaded ones lie on the host.
                sent = box.to(self.device).contiguous()
                dist.broadcast(sent, source, group=replicas)
                if sent is not box and not first:
                    box.copy_(sent)

    def _load(self, state: dict[str, Share], reader: Reader) -> Exception | None:
        """This rank's pieces; what is wrong with the files, if anything."""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # no_dist is meant
                dcp.load(state, storage_reader=reader, planner=LoadPlanner(), no_dist=True)
        except CheckpointException as error:
            cause = cause_of(error)
            if isinstance(cause, (CorruptCheckpoint, OSError)):
                return cause
            raise
        except (CorruptCheckpoint, OSError) as error:
            return error
        return None

    def close(self) -> None:
        """Stop the writing thread, after the save that it may be in."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def check_parameters(record: dict[str, Any], shapes: dict[str, list[int]], where: Path) -> None:
    """Raises UserError, naming the first difference, where a checkpoint holds another model."""
    saved = record["parameters"]
    if saved == shapes:
        return
    missing = [name for name in shapes if name not in saved]
    other = [name for name in saved if name not in shapes]
    differ = [name for name in shapes if name in saved and saved[name] != shapes[name]]
    if differ:
        name = differ[0]
        detail = f"{name} is {saved[name]} there and {shapes[name]} in the config"
    elif missing:
        detail = f"{missing[0]} is not in it"
    else:
        detail = f"it also holds {other[0]}"
    raise UserError(
        f"{where} is a checkpoint of another model ({detail}): set model as it was, or give another run.dir"
    )


def find_checkpoint(path: str | Path) -> Path:
    """A checkpoint folder from itself or from a run folder (its newest complete one). Raises UserError."""
    path = Path(path)
    if (path / COMPLETE).exists() or (path / INDEX).exists():
        return path
    folder = path / "checkpoints"
    found = steps_in(folder)
    for step in found:
        try:
            read_record(step_folder(folder, step))
        except CorruptCheckpoint:
            continue
        return step_folder(folder, step)
    what = "no complete checkpoint" if found else "no checkpoint"
    raise UserError(f"{what} in {path}: give a run folder or RUN/checkpoints/step_<number>")


def check_start(path: str) -> None:
    """Raises UserError where `train.start_from` names no checkpoint: before anything is started."""
    try:
        find_checkpoint(path)
    except UserError as error:
        raise UserError(f"train.start_from: {error}") from None


def build_model(config: dict[str, Any]) -> nn.Module:
    """The model of a resolved config with its initial weights (run.seed), on the host, whole."""
    from frontier.config.load import validate
    from frontier.models.init import initialise
    from frontier.models.registry import family

    checked = validate(config)
    chosen = family(checked.model.family)
    with torch.device("meta"):
        module = chosen.build(checked.model, chosen.shape(checked))
    module.to_empty(device="cpu")
    initialise(module, checked.run.seed)
    return module


def load_model(path: str | Path) -> tuple[nn.Module, dict[str, Any], int]:
    """(model on the host in eval mode, resolved config, step) of a checkpoint or of a run's newest one.

    Raises:
        UserError: nothing there, damaged, or a checkpoint of another model.
    """
    checkpoint = find_checkpoint(path)
    try:
        record = read_record(checkpoint)
        module = build_model(record["config"])
        check_parameters(record, {n: list(p.shape) for n, p in module.named_parameters()}, checkpoint)
        tensors = read_tensors(checkpoint, "model.")
    except CorruptCheckpoint as error:
        raise UserError(f"{error}: use another checkpoint of the run") from None
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(tensors[name])
    return module.eval(), record["config"], record["step"]
