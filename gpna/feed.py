"""The feed of the family: several sources, each with a fixed share of every global batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from frontier.config.load import Config
from frontier.config.schema import DataConfig
from frontier.data.feed import Stream, stream_seed
from frontier.data.sampler import Sampler
from frontier.errors import UserError
from gpna.config import GPNASection, changed
from gpna.head_sections import SMALLEST
from gpna.reader import GPNAReader
from gpna.sources import OpenSource, open_source
from gpna.targets import settle

FIXED = ("split", "samples", "samples_seed", "per_batch", "block", "window", "place_uncertainty_m")
"""Of a source, what decides which samples make up a step, and where the model is told that they are."""


@dataclass(frozen=True)
class GPNAFeed:
    """See `frontier.data.feed.Feed`."""

    data: DataConfig
    model: GPNASection
    streams: list[Stream]
    sources: dict[str, OpenSource]

    def fixed(self) -> dict[str, Any]:
        sources = self.data.sources or {}
        found: dict[str, Any] = {"data.sources": list(sources)}
        for name, section in sources.items():
            prefix = f"data.sources.{name}."
            found |= {prefix + key: getattr(section, key) for key in FIXED}
            found[prefix + "inputs"] = list(section.inputs)
            for column, given in section.inputs.items():
                found |= {f"{prefix}inputs.{column}.{key}": value for key, value in given.spec.items()}
        for name, task in self.model.tasks.items():
            found |= {f"model.tasks.{name}.{key}": getattr(task, key, None) for key in ("source", "target")}
        return found

    def reader(self, device: torch.device, seed: int) -> GPNAReader:
        return GPNAReader(self.model, self.sources, device, seed)


def open_feed(config: Config, check: bool, samples: int | None) -> GPNAFeed:
    """Open all sources, settle the tasks by their labels, and share out the global batch. Raises UserError."""
    data, model = config.data, config.model
    if data.sources is None:
        raise UserError("model.family=gpna takes data.sources: write data: {sources: {NAME: {shards: FOLDER}}}")
    unused = sorted({task.source for task in model.tasks.values()} - set(data.sources))
    if unused:
        raise UserError(f"model.tasks: no source '{unused[0]}': data.sources has {', '.join(data.sources)}")
    opened = {
        name: open_source(name, section, {t: task for t, task in model.tasks.items() if task.source == name}, check)
        for name, section in data.sources.items()
    }
    idle = [name for name, source in opened.items() if not source.targets]
    if idle and model.masked is None:
        raise UserError(
            f"data.sources.{idle[0]}: no task learns from it: name it in one of model.tasks, or leave it out"
        )
    refuse_idle(data, model, opened)
    sizes = {name: samples or len(source.shards) for name, source in opened.items()}
    shares = share_out(config.train.global_batch, sizes, data)
    streams, sections = [], {}
    for name, source in opened.items():
        section = source.section
        stored = [source.shards.describe(column) for column in source.columns]
        size = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in stored)
        try:
            seed = stream_seed(config.run.seed, name)
            sampler = Sampler.plan(sizes[name], shares[name], seed, size, section.block, section.window)
        except UserError as error:
            raise UserError(
                f"data.sources.{name}: {error}".replace("train.global_batch", "its share of the batch")
            ) from None
        streams.append(Stream(name, source.shards, sampler, source.columns))
        sections[name] = source.resolved(shares[name], sampler)
    tasks = {name: settle(name, task, opened[task.source]) for name, task in model.tasks.items()}
    return GPNAFeed(
        data.model_copy(update={"sources": sections}), model.model_copy(update={"tasks": tasks}), streams, opened
    )


def refuse_idle(data: DataConfig, model: GPNASection, opened: dict[str, OpenSource]) -> None:
    """Raises UserError for what has no effect on these data, though it would on others."""
    specs = [spec for source in opened.values() for spec in source.inputs.values()]
    idle: list[tuple[str, str]] = []
    if all(spec.form == "point" for spec in specs):
        idle += [
            (f"model.tokens.{key}", "no input has a position") for key in changed(model.tokens, "region", "highest")
        ]
    if not any(band.kind == "optical" for spec in specs for band in spec.bands):
        idle += [(f"model.tokens.{key}", "no band is optical") for key in changed(model.tokens, "highest_spectral")]
    if (masked := model.masked) is not None:
        largest = max(spec.patch_values for spec in specs)
        if masked.norm_pix and largest == 1:
            idle.append(("model.masked.norm_pix", "every token is one value"))
        if masked.texture and largest < SMALLEST:
            idle.append(("model.masked.texture", f"no token is of {SMALLEST} values or more"))
        if masked.together and all(len(spec.bands) == 1 for spec in specs):
            idle.append(("model.masked.together", "every input has one band"))
    if len(opened) == 1:
        ((name, source),) = opened.items()
        idle += [(key, "there is one source") for key, given in
                 (("data.mixing", data.mixing), (f"data.sources.{name}.weight", source.section.weight)) if given]  # fmt: skip
    for name, source in opened.items():
        if source.section.place_uncertainty_m and not {"lon", "lat"} <= set(source.columns):
            idle.append((f"data.sources.{name}.place_uncertainty_m", "its samples have no lon and lat"))
    if idle:
        raise UserError(f"{idle[0][0]} has no effect: {idle[0][1]}; leave it out")


def share_out(global_batch: int, sizes: dict[str, int], data: DataConfig) -> dict[str, int]:
    """Samples of each source in a global batch: in proportion to its weight, in multiples of the granule, at least one.

    Largest remainders; a function of the config and the sizes alone. Raises UserError where there are too few to go round.
    """
    sections: dict[str, Any] = data.sources or {}
    given = {name: section.per_batch for name, section in sections.items()}
    if any(given.values()):  # a resolved config
        missing = [name for name, count in given.items() if count is None]
        if missing:
            raise UserError(
                f"data.sources.{missing[0]}.per_batch is missing, other sources have it: give weight, or per_batch of every source"
            )
        if sum(given.values()) != global_batch:
            raise UserError(
                f"data.sources: per_batch adds up to {sum(given.values())}, train.global_batch is {global_batch}"
            )
        return given
    granule = data.granule
    if granule is None:
        granule = next(
            g for g in (8, 4, 2, 1) if global_batch % g == 0 and (global_batch // g >= len(sections) or g == 1)
        )
    if global_batch % granule or global_batch // granule < len(sections):
        raise UserError(
            f"train.global_batch={global_batch} has no {len(sections)} shares that are multiples of data.granule={granule}: "
            f"choose a multiple of {granule} of at least {granule * len(sections)}"
        )
    if data.mixing and all(section.weight for section in sections.values()):
        raise UserError("data.mixing has no effect where every source has a weight: leave it out, or the weights")
    weights = {name: section.weight or sizes[name] ** data.mixing for name, section in sections.items()}
    units, total = global_batch // granule, sum(weights.values())
    exact = {name: units * weight / total for name, weight in weights.items()}
    found = {name: max(1, int(value)) for name, value in exact.items()}
    while sum(found.values()) < units:  # of equals the first
        found[max(found, key=lambda name: exact[name] - found[name])] += 1
    while sum(found.values()) > units:
        found[min((n for n in found if found[n] > 1), key=lambda name: exact[name] - found[name])] -= 1
    return {name: count * granule for name, count in found.items()}
