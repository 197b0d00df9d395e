"""Checkpoints of a run: asynchronous, committed by rename, the newest valid one used, torn ones passed over."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from frontier.errors import UserError
from frontier.train.storage import (
    COMPLETE,
    INDEX,
    CorruptCheckpoint,
    Reader,
    Writer,
    fsync_folder,
    read_tensors,
    write_json,
)

SCHEMA = 1
_NAME = re.compile(r"step_(\d{8})$")


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def steps_in(folder: Path) -> list[int]:
    """Steps of all checkpoint folders by name, newest first, valid or not."""
    if not folder.is_dir():
        return []
    return sorted((int(m[1]) for p in folder.iterdir() if (m := _NAME.search(p.name)) and p.is_dir()), reverse=True)


def read_record(checkpoint: Path) -> dict[str, Any]:
    """The completeness record, its files checked to be there with their sizes. Raises CorruptCheckpoint."""
    try:
        record = json.loads((checkpoint / COMPLETE).read_text())
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
    return record


def global_bytes(state: dict[str, Tensor]) -> int:
    """Bytes of a checkpoint: every tensor once, whatever its sharding."""
    return sum(t.numel() * t.element_size() for t in state.values())


def _reason(error: BaseException) -> BaseException:
    """The first failure inside a CheckpointException of torch.distributed.checkpoint."""
    if isinstance(error, CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error


class Checkpoints:
    """Saves and finds the checkpoints of a run. Every method with a process group is collective.

    Args:
        folder: RUN/checkpoints.
        keep: newest complete ones that stay; keep_every: multiples of this step stay as well.
        async_save: copy the state, then write it in the background.
        group: a gloo group of all ranks, used only here, so that background writing never meets training's collectives.
    """

    def __init__(
        self, folder: Path, keep: int, keep_every: int | None, async_save: bool, group: dist.ProcessGroup
    ) -> None:
        self.folder, self.keep, self.keep_every, self.async_save, self.group = (
            folder,
            keep,
            keep_every,
            async_save,
            group,
        )
        self.rank = dist.get_rank()
        self._pending: tuple[int, Future] | None = None
        self.last_step: int | None = None
        if self.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for stale in folder.glob(".*"):
                shutil.rmtree(stale, ignore_errors=True)

    def save(self, step: int, state: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Save `state` as the checkpoint of `step`; with async_save returns once the state is copied.

        Raises:
            UserError: the disk has no room for it; older checkpoints stay as they are.
        """
        self.wait()
        self._check_space(state, step)
        temporary, final = self.folder / f".{step_folder(self.folder, step).name}.tmp", step_folder(self.folder, step)
        record = {"schema": SCHEMA, "step": step, "time": time.time(), **record}

        def commit() -> None:
            files = {p.name: p.stat().st_size for p in sorted(temporary.iterdir()) if p.name != COMPLETE}
            write_json(temporary / COMPLETE, {**record, "files": files})
            fsync_folder(temporary)
            if final.exists():  # a damaged one of the same step
                os.replace(final, self.folder / f".old_{final.name}")
            os.replace(temporary, final)
            fsync_folder(self.folder)
            self._drop_old()

        writer = Writer(temporary, self.rank, commit)
        if self.async_save:
            pending = dcp.async_save(state, storage_writer=writer, process_group=self.group)
            assert isinstance(pending, Future)
            self._pending = (step, pending)
        else:
            try:
                dcp.save(state, storage_writer=writer, process_group=self.group)
            except (CheckpointException, OSError) as error:
                raise self._explain(step, error) from None
            self.last_step = step

    def poll(self) -> None:
        """Take notice of a background save that has ended; raises what it raised."""
        if self._pending is not None and self._pending[1].done():
            self.wait()

    def wait(self) -> None:
        """Until the background save, if any, is committed."""
        if self._pending is None:
            return
        step, pending = self._pending
        self._pending = None
        try:
            pending.result()
        except (CheckpointException, OSError) as error:
            raise self._explain(step, error) from None
        self.last_step = step

    def _explain(self, step: int, error: BaseException) -> UserError:
        cause = _reason(error)
        if self.rank == 0:
            shutil.rmtree(self.folder / f".{step_folder(self.folder, step).name}.tmp", ignore_errors=True)
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return UserError(
                f"the disk filled up while the checkpoint of step {step} was written to {self.folder}: free some space "
                "and start again; older checkpoints are untouched"
            )
        return UserError(f"the checkpoint of step {step} could not be written to {self.folder}: {cause}")

    def _check_space(self, state: dict[str, Tensor], step: int) -> None:
        need = global_bytes(state)
        free = [shutil.disk_usage(self.folder).free if self.rank == 0 else 0]
        dist.broadcast_object_list(free, src=0, group=self.group)
        if need > free[0]:
            raise UserError(
                f"not enough disk for the checkpoint of step {step}: {need / 2**30:.2f} GiB needed, {free[0] / 2**30:.2f} GiB "
                f"free in {self.folder}: free some space and start again; older checkpoints are untouched"
            )

    def _drop_old(self) -> None:
        steps = steps_in(self.folder)
        for step in steps[self.keep :]:
            if self.keep_every and step % self.keep_every == 0:
                continue
            doomed = self.folder / f".old_{step_folder(self.folder, step).name}"
            os.replace(step_folder(self.folder, step), doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        for doomed in self.folder.glob(".old_*"):
            shutil.rmtree(doomed, ignore_errors=True)

    def restore(self, state: dict[str, Tensor], check: Any) -> tuple[dict[str, Any] | None, list[str]]:
        """Load the newest valid checkpoint into `state`.

        Args:
            check: called with the record before anything is loaded; raises UserError where it does not fit the run.

        Returns:
            (its record, or None where there is no checkpoint; one line for each that was passed over).

        Raises:
            UserError: checkpoints exist but none can be read.
        """
        passed_over: list[str] = []
        steps = [steps_in(self.folder) if self.rank == 0 else []]
        dist.broadcast_object_list(steps, src=0, group=self.group)
        for step in steps[0]:
            found: list[Any] = [None]
            if self.rank == 0:
                try:
                    found = [read_record(step_folder(self.folder, step))]
                except CorruptCheckpoint as error:
                    found = [str(error)]
            dist.broadcast_object_list(found, src=0, group=self.group)
            record = found[0]
            if isinstance(record, str):
                passed_over.append(record)
                continue
            check(record)
            try:
                dcp.load(state, storage_reader=Reader(step_folder(self.folder, step)), process_group=self.group)
            except CheckpointException as error:
                cause = _reason(error)
                if not isinstance(cause, (CorruptCheckpoint, OSError)):
                    raise
                passed_over.append(str(cause))
                continue
            self.last_step = step
            return record, passed_over
        if steps[0]:
            raise UserError(
                f"none of the {len(steps[0])} checkpoints in {self.folder} can be read ({passed_over[0]}): move the folder "
                "away to begin anew"
            )
        return None, passed_over


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


def build_model(config: dict[str, Any]) -> nn.Module:
    """The model of a resolved config with its initial weights (run.seed), on the host, whole."""
    from frontier.config.load import validate
    from frontier.models.init import initialise
    from frontier.models.registry import ImageShape, family

    checked = validate(config)
    assert checked.data.image_size and checked.data.mean
    with torch.device("meta"):
        module = family(checked.model.family).build(
            checked.model, ImageShape(checked.data.image_size, len(checked.data.mean))
        )
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
