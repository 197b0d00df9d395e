"""Weights that others can load: `frontier export`, and the loader of its own layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def load_exported(folder: str | Path) -> nn.Module:
    """The model of a folder that `frontier export --format safetensors` wrote; see `frontier.export.native.load_exported`."""
    from frontier.export.native import load_exported as load

    return load(folder)
