"""The GPNA family as the engine sees it."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from frontier.config.load import Config
from frontier.models.registry import Family, encoder_parameters
from gpna.config import GPNASection, SourceSection
from gpna.counting import flops_per_sample
from gpna.evaluate import main as evaluate
from gpna.feed import open_feed
from gpna.head_sections import PixelTask, RegressionTask, TextTask
from gpna.model import GPNA, GPNAConfig, SourceShape
from gpna.pictures import pictures
from gpna.probe import features
from gpna.reader import packed
from gpna.sensors import InputSpec
from gpna.workload import workload


def shape(config: Config) -> dict[str, SourceShape]:
    """What a resolved config says of the sources."""
    return {
        name: SourceShape({c: InputSpec.from_dict(i.spec) for c, i in section.inputs.items()}, section.per_batch)
        for name, section in (config.data.sources or {}).items()
    }


def build(section: GPNASection, sources: dict[str, SourceShape]) -> GPNA:
    """The module, with parameters on the default device."""
    config = GPNAConfig(
        section.size(), section.tokens, section.batching, sources, section.tasks, section.masked, section.latents_start
    )
    return GPNA(config)


FUNCTION = ("head", "attention_heads", "query_residual", "norm_pix", "region", "highest", "mean", "std", "texts")
"""Of a task: weights of the same shapes, another function."""


def fixed(section: GPNASection) -> dict[str, Any]:
    """Likewise of the whole section."""
    found: dict[str, Any] = {"model.heads": section.size().heads}
    found |= {f"model.tokens.{key}": value for key, value in section.tokens.model_dump().items()}
    parts: dict[str, Any] = {f"model.tasks.{name}": task for name, task in section.tasks.items()}
    for where, part in (parts | {"model.masked": section.masked}).items():
        found |= {f"{where}.{key}": getattr(part, key) for key in FUNCTION if hasattr(part, key)}
        if isinstance(part, TextTask) and part.stored is not None:
            found[f"{where}.vectors"] = f"sha256 {hashlib.sha256(part.stored.encode()).hexdigest()[:12]}"
    return found


def meta_inputs(module: nn.Module, sources: dict[str, SourceShape], micro_batch: int) -> dict[str, Any]:
    """Of a micro-batch with the sources' shares in which every token is there."""
    config = cast(GPNA, module).config
    total = sum(source.per_batch for source in sources.values())
    tokens, given, labels, masked = config.tokens, {}, {}, []
    rows: list[np.ndarray] = []
    offset = 0
    for name, source in sources.items():
        count = max(1, round(micro_batch * source.per_batch / total))
        own: list[list[np.ndarray]] = [[] for _ in range(count)]
        values, time = {}, {}
        for column, spec in source.inputs.items():
            kept = spec.tokens
            if config.masked is not None:
                hidden = min(spec.tokens - 1, round(spec.tokens * config.masked.ratio))
                kept, asked = spec.tokens - hidden, min(config.masked.queries, max(1, hidden))
                masked.append(
                    {
                        "source": name,
                        "column": column,
                        "tokens": _meta(count, asked, dtype=torch.int64),
                        "values": _meta(count, asked, spec.patch_values),
                        "known": _meta(count, asked, spec.patch_values, dtype=torch.bool),
                        "samples": _meta(count, dtype=torch.int64),
                    }
                )
            for sample in range(count):
                own[sample].append(offset + sample * spec.tokens + np.arange(kept))
            offset += count * spec.tokens
            values[column] = _meta(count, *spec.shape)
            time[column] = _meta(count, spec.steps, tokens.time)
        rows += [np.concatenate(parts) for parts in own]
        given[name] = {"values": values, "place": _meta(count, tokens.place), "time": time}
        for task_name, task in config.tasks.items():
            if task.source == name:
                labels[task_name] = _meta_labels(task, count)
    return {"sources": given, "clusters": packed(rows, config.batching, "meta"), "labels": labels, "masked": masked}


def _meta(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(size, dtype=dtype, device="meta")


def _meta_labels(task: Any, count: int) -> dict[str, torch.Tensor]:
    if isinstance(task, RegressionTask):
        return {"target": _meta(count, task.outputs or 1)}
    if isinstance(task, PixelTask):
        if task.train_pixels is not None:
            pixels = _meta(count, task.train_pixels, dtype=torch.int64)
            return {"target": _meta(count, task.train_pixels), "pixels": pixels}
        return {"target": _meta(count, *task.side())}
    if isinstance(task, TextTask) and task.task == "regression":
        return {"target": _meta(count)}
    classes = (task.classes,) if task.head == "multilabel" else ()
    return {"target": _meta(count, *classes, dtype=torch.int64)}


USAGE = """\
import json

from frontier.export import load_exported
from gpna.predict import features, open_split

model = load_exported("FOLDER")
config = json.load(open("FOLDER/config.json"))
name, source = next(iter(config["data"]["sources"].items()))
# The inputs of one of its sources, in any shards that have them; None: those of the run.
opened = open_split(config, name, source["split"], shards=None, wanted=())
found = features(model, config, opened)  # float32 [samples, width]: the mean over the latents
"""

FAMILY = Family(
    name="gpna",
    config=GPNASection,
    source=SourceSection,
    feed=open_feed,
    shape=shape,
    build=build,
    meta_inputs=meta_inputs,
    flops=lambda module: flops_per_sample(cast(GPNA, module).config),
    encoder_parameters=encoder_parameters,
    features=features,
    fixed=fixed,
    workload=lambda module: workload(cast(GPNA, module)),
    pictures=pictures,
    evaluate=evaluate,
    usage=USAGE,
)
