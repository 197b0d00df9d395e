"""The grid's points: what each one is, and why some cannot work."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from frontier.config.load import check_sections, merge
from frontier.config.schema import ParallelConfig
from frontier.errors import UserError
from frontier.launch.mesh import BatchPlan, ParallelDims
from frontier.models.presets import check_image_size, get_shape
from frontier_profiling.sweep.study import COMPARISON, Study, lookup

DEFAULTS: dict[str, tuple[str, Any]] = {
    "model": ("model.preset", None),
    "strategy": ("parallel.strategy", "full_shard"),
    "micro_batch": ("train.micro_batch", 32),
    "global_batch": ("train.global_batch", None),
    "tensor": ("parallel.tensor", 1),
    "prefetch": ("parallel.prefetch", 1),
    "activation_checkpointing": ("parallel.activation_checkpointing", "none"),
    "precision": ("parallel.precision", "fp32"),
}
"""axis -> (its key in a run's config, the value where neither grid nor config has one)"""

SHORT = {
    "micro_batch": "mb",
    "global_batch": "gb",
    "tensor": "tp",
    "prefetch": "prefetch",
    "activation_checkpointing": "ac",
}


@dataclass(frozen=True)
class Point:
    """One point. `skip` says in one line why it cannot work, or is empty."""

    id: str
    model: str
    strategy: str
    nodes: int
    ranks: int
    micro_batch: int
    accumulation: int
    global_batch: int
    tensor: int
    prefetch: int
    activation_checkpointing: str
    precision: str
    data: str
    image_size: int
    skip: str = ""

    def axes(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key not in ("id", "skip")}


def points(study: Study, ranks_per_node: int) -> list[Point]:
    """All points of the grid but the excluded ones, in the grid's order: model, then the other axes, then strategy and size.

    Raises:
        UserError: an unknown model; a grid of which nothing is left.
    """
    axes = _axes(study)
    _check_config(study, axes)
    order = ["model", *(k for k in axes if k not in ("model", "strategy", "nodes", "ranks")), "strategy"]
    order.append("nodes" if "nodes" in axes else "ranks")
    varying = [key for key in order if len(axes[key]) > 1]
    found = []
    for values in itertools.product(*(axes[key] for key in order)):
        chosen = dict(zip(order, values, strict=True))
        if not any(_matches(rule, chosen) for rule in study.exclude):
            found.append(_point(study, chosen, varying, ranks_per_node))
    if not found:
        raise UserError(f"study {study.name}: exclude leaves no point of the grid")
    return found


def _axes(study: Study) -> dict[str, list[Any]]:
    given = {key: value for key, value in study.grid.model_dump().items() if value is not None}
    for axis, (key, default) in DEFAULTS.items():
        if axis in given or (axis == "global_batch" and study.scaling == "weak"):
            continue
        value = lookup(study.config, key)
        value = default if value is None else value
        if axis == "model" and value is None:
            raise UserError(f"study {study.name}: grid.model is missing: name presets such as vit_base")
        given[axis] = [value]
    if study.scaling == "strong" and "micro_batch" not in study.grid.model_fields_set:
        given["micro_batch"] = [lookup(study.config, "train.micro_batch")]
    given.setdefault("data", ["shards" if lookup(study.config, "data.shards") else "synthetic"])
    excluded = [rule["model"] for rule in study.exclude if "model" in rule]
    named = [name for value in excluded for name in (value if isinstance(value, list) else [value])]
    for name in [*given["model"], *(name for name in named if not set(name) & set("*?["))]:
        get_shape(name)
    return given


def _check_config(study: Study, axes: Mapping[str, Sequence[Any]]) -> None:
    """The study's own sections of a run's config, on a point that the grid's values cannot spoil. Raises UserError."""
    plain = Point(
        id="", model=axes["model"][0], strategy="full_shard", nodes=1, ranks=1, micro_batch=1, accumulation=1, global_batch=1,
        tensor=max(axes["tensor"]), prefetch=1, activation_checkpointing="none", precision="fp32", data="synthetic",
        image_size=_image_size(study, "synthetic"),
    )  # fmt: skip
    for name, section in study.config.items():
        if not isinstance(section, Mapping):
            raise UserError(f"study {study.name}: config.{name} is a section: give its keys")
    try:
        check_sections(run_config(study, plain, "run"))
    except UserError as error:
        raise UserError(f"study {study.name}: {error}") from None


def _image_size(study: Study, data: str) -> int:
    """Pixels of a side that the model sees: the config's, else as stored in the shards, else 224."""
    given = lookup(study.config, "data.image_size")
    if given is not None or data == "synthetic":
        return 224 if given is None else given
    try:
        manifest = json.loads((Path(lookup(study.config, "data.shards")) / "manifest.json").read_text())
        return int(manifest["images"][lookup(study.config, "data.column") or "image"]["shape"][-1])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return 224  # no shards here, or none that the run would take: it says so


def _matches(rule: Mapping[str, Any], chosen: Mapping[str, Any]) -> bool:
    return all(key in chosen and _fits(wanted, chosen[key]) for key, wanted in rule.items())


def _fits(wanted: Any, value: Any) -> bool:
    if isinstance(wanted, list):
        return any(_fits(one, value) for one in wanted)
    comparison = COMPARISON.fullmatch(wanted) if isinstance(wanted, str) else None
    if comparison and isinstance(value, int | float):
        number = float(comparison[2])
        return {"<=": value <= number, ">=": value >= number, "<": value < number, ">": value > number}[comparison[1]]
    return fnmatchcase(str(value), str(wanted))


def _point(study: Study, chosen: Mapping[str, Any], varying: Sequence[str], ranks_per_node: int) -> Point:
    nodes = chosen.get("nodes", 1)
    ranks = chosen["ranks"] if "ranks" in chosen else nodes * ranks_per_node
    skip, micro, accumulation = "", chosen["micro_batch"], 1
    image_size = _image_size(study, chosen["data"])
    try:
        check_image_size(image_size, lookup(study.config, "model.patch") or get_shape(chosen["model"]).patch)
        dims = _dims(study, chosen, ranks)
        data_ranks = dims.data_ranks
    except UserError as error:
        skip, data_ranks = str(error), ranks
    if study.scaling == "weak":
        batch = micro * data_ranks
    else:
        batch = chosen["global_batch"]
        try:
            plan = BatchPlan.divide(batch, micro, data_ranks)
            micro, accumulation = plan.micro_batch, plan.accumulation
        except UserError as error:
            skip = skip or str(error)
            micro = micro or max(1, batch // data_ranks)
    if chosen["data"] != "synthetic" and study.mode != "predicted":
        skip = skip or _no_shards(lookup(study.config, "data.shards"))
    return Point(
        id=_id(chosen, varying, ranks),
        model=chosen["model"],
        strategy=chosen["strategy"],
        nodes=nodes,
        ranks=ranks,
        micro_batch=micro,
        accumulation=accumulation,
        global_batch=batch,
        tensor=chosen["tensor"],
        prefetch=chosen["prefetch"],
        activation_checkpointing=chosen["activation_checkpointing"],
        precision=chosen["precision"],
        data=chosen["data"],
        image_size=image_size,
        skip=" ".join(skip.split()),
    )


def _no_shards(folder: str | None) -> str:
    """Why a point that reads cannot, or nothing."""
    if folder and (Path(folder) / "manifest.json").is_file():
        return ""
    there = f"there are none in {folder}" if folder else "none are given"
    return f"needs shards, {there}: --set data.shards=FOLDER (`frontier shards write --scenes 2400 --sensors rgb FOLDER` makes some)"


def _dims(study: Study, chosen: Mapping[str, Any], ranks: int) -> ParallelDims:
    """The mesh; UserError where it cannot be, in the words of the run that would refuse it."""
    given = lookup(study.config, "parallel") or {}
    keys = ("strategy", "tensor", "prefetch", "activation_checkpointing", "precision")
    try:
        parallel = ParallelConfig.model_validate({**given, **{key: chosen[key] for key in keys}})
    except ValidationError as error:
        found = error.errors()[0]
        if found["loc"]:
            raise UserError(f"config parallel.{'.'.join(map(str, found['loc']))}: {found['msg']}") from None
        raise UserError(found["msg"].removeprefix("Value error, ")) from None
    tensor, shape = parallel.tensor, get_shape(chosen["model"])
    for what, count in (("heads", shape.heads), ("hidden units", shape.mlp_hidden)):
        if count % tensor:
            raise UserError(f"parallel.tensor={tensor} does not divide the {count} {what} of {chosen['model']}")
    return ParallelDims.from_strategy(parallel.strategy, ranks, tensor, parallel.sequence_parallel)


def _id(chosen: Mapping[str, Any], varying: Sequence[str], ranks: int) -> str:
    """model-strategy-n8 and every other axis that has several values: the name of the point's folder."""
    size = f"n{chosen['nodes']}" if "nodes" in chosen else f"r{ranks}"
    parts = [chosen["model"], chosen["strategy"], size]
    for key in varying:
        if key not in ("model", "strategy", "nodes", "ranks"):
            parts.append(f"{SHORT.get(key, '')}{chosen[key]}")
    return "-".join(parts)


def select(found: Sequence[Point], patterns: Sequence[str]) -> list[Point]:
    """Points that fit one of the patterns: an id, or MODEL[/STRATEGY[/NODES-OR-RANKS]] with * for anything.

    Raises:
        UserError: a pattern that fits none.
    """
    if not patterns:
        return list(found)
    kept: dict[str, Point] = {}
    for pattern in patterns:
        fitting = [p for p in found if p.id == pattern or _like(p, pattern)]
        if not fitting:
            raise UserError(
                f"--only {pattern} fits no point: patterns are MODEL/STRATEGY/NODES with *, such as {found[0].model}/*"
            )
        kept |= {p.id: p for p in fitting}
    return [p for p in found if p.id in kept]


def _like(point: Point, pattern: str) -> bool:
    parts, size = pattern.split("/"), point.id.split("-")[2]
    own = (point.model, point.strategy, size[1:])
    return len(parts) <= 3 and all(fnmatchcase(value, part) for part, value in zip(parts, own, strict=False))


def warmup(steps: int) -> int:
    """Steps before `steps` timed ones: what `frontier_profiling.measure` drops, five, of a short run a fifth of all."""
    return min(5, -(-steps // 4))


def run_config(study: Study, point: Point, run_dir: str) -> dict[str, Any]:
    """The config of `frontier pretrain` for a point: the study's, and over it the point's."""
    synthetic = point.data == "synthetic"
    data = dict(lookup(study.config, "data") or {})
    if synthetic:
        of_files = ("shards", "split", "column", "workers", "block", "window", "mean", "std", "stage", "stage_gib")
        data = {key: value for key, value in data.items() if key not in of_files}
        data.setdefault("synthetic", {"channels": 3, "samples": max(1_000_000, 64 * point.global_batch)})
        if not (data["synthetic"] or {}).get("images"):  # several, each with a side of its own
            data["image_size"] = point.image_size
    else:
        data.pop("synthetic", None)
    given = {key: value for key, value in study.config.items() if key != "data"}
    log = {"every_steps": 10, "ranks_every": max(1, study.steps // 2), "progress": "lines"}
    base = merge({"model": {"family": "mae"}, "log": log, "train": {"warmup_steps": 1}}, given)
    steps = study.steps + warmup(study.steps)
    own = {
        "run": {"dir": run_dir},
        "model": {"preset": point.model},
        "data": data,
        "parallel": {
            "strategy": point.strategy,
            "tensor": point.tensor,
            "prefetch": point.prefetch,
            "activation_checkpointing": point.activation_checkpointing,
            "precision": point.precision,
        },
        "train": {
            "steps": steps,
            "epochs": None,
            "samples": None,
            "global_batch": point.global_batch,
            "micro_batch": point.micro_batch,
        },
        "checkpoint": {"every_steps": None, "at_end": False},
    }
    return merge(base, own)


def fingerprint(config: Mapping[str, Any]) -> str:
    """Of what a point computes: its config without the place where the run lies."""
    node = json.loads(json.dumps(config))
    node.get("run", {}).pop("dir", None)
    return hashlib.sha256(json.dumps(node, sort_keys=True).encode()).hexdigest()[:16]
