"""The encoders of a probe beside one another: the trained one, a random one of its shape, and statistics of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from frontier.errors import UserError
from frontier.train.checkpoint import build_model

from .evaluate import Row, evaluate
from .features import FeatureFunction, GridFunction, LabelledSamples
from .methods import SUBJECT
from .published import normalised
from .segment import MakeGrid, evaluate_maps
from .subject import Ask, Subject
from .targets import Target


def compare(
    trained: Callable[[], nn.Module],
    config: Mapping[str, Any],
    ask: Ask,
    subject: Subject,
    target: Target,
    validation: LabelledSamples | None,
    methods: Sequence[str],
    *,
    seed: int,
    batch: int,
    progress: Callable[[str], None],
) -> list[Row]:
    """Rows of `evaluate` or `evaluate_maps`, each with how its encoder looked at the samples.

    `trained` gives the module of the checkpoint away; `config` is the run's. Raises UserError.
    """
    # Another seed than the run's: its own initial weights could be those that training started from.
    random_seed = (config["run"]["seed"] + 1 + seed) % 2**31
    random_config = {**config, "run": {**config["run"], "seed": random_seed}}
    modules = {SUBJECT: trained, "random": lambda: build_model(random_config)}
    options: dict[str, Any] = {
        "methods": methods,
        "seed": seed,
        "batch": batch,
        "device": ask.device,
        "where": ask.data,
        "progress": progress,
        "validation": validation,
    }
    if target.kind == "segmentation":
        grids = _grids(modules, config, ask, subject)
        rows = evaluate_maps(grids, subject.train, subject.test, _classes(target, subject), **options)
        pooled: Row = {}
    else:
        rows = evaluate(_features(modules, ask, subject), subject.train, subject.test, **options)
        pooled = {"pooling": ask.pooling}
    views = {**pooled, "layers": "last" if ask.layers is None else ask.layers, **subject.views}
    own = {
        SUBJECT: {**views, "encoder_seed": config["run"]["seed"]},
        "random": {**views, "encoder_seed": random_seed},
    }
    data = subject.shards.manifest["name"]
    for row in rows:
        row |= own.get(row["encoder"], {"normalisation": "none"})
        if row["metric"] == "accuracy" and target.kind == "classification":
            row |= normalised(data, row["accuracy"])
    return rows


def _features(
    modules: Mapping[str, Callable[[], nn.Module]], ask: Ask, subject: Subject
) -> dict[str, Callable[[], FeatureFunction]]:
    name, statistics = subject.baseline

    def factory(build: Callable[[], nn.Module]) -> Callable[[], FeatureFunction]:
        return lambda: subject.encode(build().eval().to(ask.device))

    return {encoder: factory(build) for encoder, build in modules.items()} | {name: lambda: statistics}


def _grids(
    modules: Mapping[str, Callable[[], nn.Module]], config: Mapping[str, Any], ask: Ask, subject: Subject
) -> dict[str, MakeGrid]:
    if subject.tokens is None or subject.cells is None:
        raise UserError(
            f"a {config['model']['family']} model has no grid of tokens, and labels of pixels cannot be probed: choose another --target"
        )
    tokens, (name, statistics) = subject.tokens, subject.cells

    def factory(build: Callable[[], nn.Module]) -> MakeGrid:
        return lambda grid: tokens(build().eval().to(ask.device))

    def cells(grid: tuple[int, int] | None) -> GridFunction:
        assert grid is not None  # an encoder has come before
        return lambda samples: statistics(samples, grid)

    return {encoder: factory(build) for encoder, build in modules.items()} | {name: cells}


def _classes(target: Target, subject: Subject) -> int:
    """How many classes pixels can have: those that are named, or those that occur."""
    if target.classes:
        return len(target.classes)
    labels = [split.labelled for split in (subject.train, subject.test)]
    return 1 + max(int(np.where(part == 255, 0, part).max(initial=0)) for part in labels)
