"""What every format hands over to be written, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

WEIGHTS = "model.safetensors"
RUN_CONFIG = "frontier_config.json"
"""The run's resolved config in the formats whose own config.json is another."""


@dataclass(frozen=True)
class Source:
    """A checkpoint to be exported, its weights on the host in float32."""

    checkpoint: Path
    record: dict[str, Any]
    module: nn.Module

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config of the run."""
        return self.record["config"]

    @property
    def family(self) -> str:
        return str(self.config["model"]["family"])

    @property
    def run(self) -> Path | None:
        """The run folder around the checkpoint, where it still lies in one."""
        around = self.checkpoint.resolve().parent
        return around.parent if around.name == "checkpoints" else None


@dataclass(frozen=True)
class Layout:
    """The content of an exported folder beside its model card.

    Attributes:
        part: words for the card: which parameters.
        tensors: name -> float32 tensor, for the file of weights.
        metadata: of model.safetensors; strings.
        texts: further files, name -> content.
        usage: Python lines that load it, for the card.
        notes: paragraphs of the card on what the format means.
        tags: front matter of the card, key -> value.
        weights: name of the file of weights.
        save: writes that file where it is not safetensors: the same bytes for the same tensors.
    """

    part: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    texts: dict[str, str]
    usage: str
    notes: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    weights: str = WEIGHTS
    save: Callable[[Path], None] | None = None


def as_json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"
