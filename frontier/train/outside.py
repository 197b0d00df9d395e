"""A checkpoint of weights that no run of ours has trained: written by one process, without a process group."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
import yaml
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from frontier.errors import UserError
from frontier.parallel.shares import SavePlanner, Share
from frontier.train.checkpoint import cause_of, seal
from frontier.train.guards import Guard
from frontier.train.plan import RunPlan
from frontier.train.storage import Writer, fsync_folder

CONFIG = "config.yaml"


def check_new_folder(folder: Path) -> None:
    """Raises UserError where `folder` is there already, or cannot be made."""
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder} is there already, --out: give another name, or remove it")
    parent = next(path for path in folder.resolve().parents if path.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise UserError(f"{parent} cannot be written, --out: give another place")


def write_checkpoint(
    folder: Path, module: nn.Module, plan: RunPlan, run: dict[str, Any], origin: dict[str, Any]
) -> None:
    """Write the weights of `module`, the model of `plan`, as a checkpoint of step 0; `folder` appears whole or not at all.

    It has no optimizer state: a run begins with it by train.start_from, and does not resume from it.

    Args:
        run: such a run, not resolved, for `config.yaml` in the folder.
        origin: where the weights come from, for the card of an export.

    Raises:
        UserError: no room, or the place cannot be written.
    """
    check_new_folder(folder)
    config = plan.config
    record = {
        **{"step": 0, "samples": 0, "guard": Guard(None, 0).state(), "fixed": plan.fixed(), "world_size": 1},
        **{"config": config.as_dict(), "config_hash": config.hash(), "parameters": plan.parameter_shapes},
        "origin": origin,
    }
    weights = {f"model.{name}": Share.of(parameter) for name, parameter in module.named_parameters()}
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is meant
            writer = Writer(temporary, 0, lambda: seal(temporary, record))
            dcp.save(weights, storage_writer=writer, planner=SavePlanner(), no_dist=True)
        # After the record, which lists sizes: this file is there to be edited.
        (temporary / CONFIG).write_text(yaml.safe_dump(run, sort_keys=False))
        os.rename(temporary, folder)
        fsync_folder(folder.parent)
    except (CheckpointException, OSError) as error:
        cause = cause_of(error)
        told = cause.strerror if isinstance(cause, OSError) else str(cause)
        raise UserError(
            f"{folder} could not be written ({told}), --out: free some space, or give another place"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
