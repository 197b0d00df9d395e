"""The format `safetensors`: parameters under the names of the module, and the config that rebuilds it. For every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frontier.errors import UserError
from frontier.export.layout import WEIGHTS, Layout, Source, as_json
from frontier.export.parts import PARTS, encoder_names, parameters
from frontier.models.registry import family

FORMAT = "frontier"
CONFIG = "config.json"

_USAGE = """\
from frontier.export import load_exported

model = load_exported("FOLDER")
# images: float32 [B, C, H, W] = (stored - mean) / std, by band
tokens = model.encode(images)  # [B, 1 + patches, width], [cls] first
"""
_PLAIN_USAGE = """\
from frontier.export import load_exported

model = load_exported("FOLDER")  # torch.nn.Module, float32, in eval mode
"""


def check(config: dict[str, Any]) -> None:
    """Every model fits."""


def layout(source: Source, part: str) -> Layout:
    """The parameters of a part ("encoder" or "all") and the resolved config as config.json."""
    tensors = parameters(source.module, part)
    metadata = {
        "format": "pt",
        "layout": FORMAT,
        "family": source.family,
        "part": part,
        "step": str(source.record["step"]),
        "config_hash": source.record["config_hash"],
    }
    notes = [
        "`config.json` is the run's resolved config, from which `load_exported` rebuilds the model; its hash is in the "
        f"metadata of `{WEIGHTS}`."
    ]
    if part == "encoder":
        notes.append("Only the encoder is here: what else the model has is as at the start of training.")
    return Layout(
        part=part,
        tensors=tensors,
        metadata=metadata,
        texts={CONFIG: as_json(source.config)},
        usage=family(source.family).usage or (_USAGE if hasattr(source.module, "encode") else _PLAIN_USAGE),
        notes=tuple(notes),
    )


def load_exported(folder: str | Path) -> nn.Module:
    """The model of a folder of this format: whole, float32, on the host, in eval mode.

    Of a folder that holds the encoder alone, the other parameters have their initial values (run.seed). Nothing in the
    folder is executed: the config is JSON, the weights are safetensors.

    Raises:
        UserError: no such folder, another format, damaged, or weights that are not those of the config.
    """
    from frontier.export.folder import safetensors_library

    safetensors_library()
    from safetensors import SafetensorError, safe_open

    from frontier.train.checkpoint import build_model

    folder = Path(folder)
    weights = folder / WEIGHTS
    for path in (weights, folder / CONFIG):
        if not path.is_file():
            raise UserError(f"no {path}: give a folder that `frontier export --format safetensors` wrote")
    try:
        with safe_open(weights, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("layout") != FORMAT or metadata.get("part") not in PARTS:
                kind = metadata.get("layout", "another")
                raise UserError(f"{weights} is of the format {kind}: its README.md says how to load it")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights} is damaged ({error}): export it again") from None
    try:
        config = json.loads((folder / CONFIG).read_text())
    except ValueError:
        raise UserError(f"{folder / CONFIG} is not JSON: export it again") from None
    module = build_model(config)
    own = dict(module.named_parameters())
    expected = set(encoder_names(module)) if metadata["part"] == "encoder" else set(own)
    wrong = sorted(expected ^ tensors.keys()) or sorted(n for n in expected if own[n].shape != tensors[n].shape)
    if wrong:
        raise UserError(f"{weights} is not of the model in {CONFIG} ({wrong[0]} differs): export it again")
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)
    return module.eval()
