"""Command-line parsing with the project's manners: one line for a mistake, no option under half its name; what options of several verbs mean."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, NoReturn

from frontier.errors import UserError


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose mistakes are a `UserError` instead of a page of usage. Abbreviated options are refused: which ones were
    given must be plain, since they win over a config's.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` lists the options")


def device_named(text: str) -> str:
    """`--device` as torch knows it; "auto": a GPU if any. Raises UserError where there is none such."""
    import torch

    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(text)
    except RuntimeError:
        raise UserError(f"'{text}' is no device, --device: choose auto, cpu, cuda or cuda:<n>") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device '{text}' is not supported, --device: choose auto, cpu, cuda or cuda:<n>")
    visible = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= visible:
        raise UserError(f"no device '{text}' here, --device: {visible} GPUs are visible; use --device auto")
    return text


def run_folder(checkpoint: Path) -> Path:
    """The run that a checkpoint belongs to; the checkpoint itself where it lies alone."""
    around = checkpoint.resolve().parent
    return around.parent if around.name == "checkpoints" else checkpoint


def output_file(given: str | None, checkpoint: Path, name: str) -> Path:
    """Where results go: `given`, or `name` in the run. Raises UserError where it cannot be written."""
    path = Path(given) if given else run_folder(checkpoint) / name
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{path} cannot be written: give a file in an existing, writable folder by --out")
    return path
