"""`frontier plan`: memory, time, energy and cost of a run before it runs. No hardware, no data, no torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from frontier.arguments import Parser
from frontier.errors import EXIT_OK, UserError

if TYPE_CHECKING:
    from frontier.config.load import Config
    from frontier.models.mae_config import MAEConfig
    from frontier.models.workload import Workload
    from frontier_profiling.predict.system import System

EPILOG = """All figures are predicted; the range covers nine of ten published points. The published study is reproduced by --as-published
(FSDP1's memory and reductions); `frontier plan --errors` prints how far the predictor is from every published point, with each model and
strategy left out of the fit in turn."""


def parser() -> argparse.ArgumentParser:
    out = Parser(prog="frontier plan", description=__doc__, epilog=EPILOG)
    out.add_argument("--model", default="vit_3b", help="preset, or several: vit_base,vit_1b (default vit_3b)")
    out.add_argument("--system", default="frontier", help="a shipped system, or a YAML file (default frontier)")
    out.add_argument("--nodes", default="1", help="one number, or several: 1,8,64")
    out.add_argument("--ranks", type=int, metavar="N", help="devices, where not all of one node's are used")
    out.add_argument(
        "--strategy", default="auto", help="one word, several, or auto: all FSDP ones that divide, ranked (default)"
    )
    out.add_argument("--tensor", type=int, help="ranks that compute each block together (default 1; auto searches)")
    out.add_argument("--micro-batch", type=int, default=32, help="images of a device in a forward pass (default 32)")
    out.add_argument(
        "--global-batch",
        type=int,
        help="images of a step: accumulation makes up for the rest (default: no accumulation)",
    )
    out.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    out.add_argument("--activation-checkpointing", choices=("none", "selective", "full"), default="full")
    out.add_argument(
        "--prefetch", type=int, choices=range(9), default=1, metavar="N", help="units gathered ahead (default 1)"
    )
    out.add_argument("--offload", action="store_true", help="states on the host between uses")
    out.add_argument(
        "--workload",
        choices=("vit", "mae"),
        default="vit",
        help="vit: the encoder on all tokens, as in the published study (default); mae: masked pretraining",
    )
    out.add_argument("--image-size", type=int, default=224)
    out.add_argument("--channels", type=int, default=3)
    out.add_argument("--mask-ratio", type=float, default=0.75, help="of --workload mae")
    out.add_argument(
        "--data",
        choices=("synthetic", "shards"),
        default="synthetic",
        help="shards: the step also waits for storage, at the system file's rate (default synthetic; of a --config what it reads)",
    )
    out.add_argument(
        "--read-gb-per-s",
        type=float,
        metavar="N",
        help="of --data shards: what a node reads, instead of the system file's",
    )
    out.add_argument(
        "--config",
        metavar="CONFIG",
        help="take model, inputs, batch and parallel settings from a run's config (of gpna and scale_alibi its data are opened: manifests and labels); flags given beside it win",
    )
    out.add_argument(
        "--as-published", action="store_true", help="the published study's engine, FSDP1, and DDP in float32"
    )
    out.add_argument(
        "--samples", type=int, default=1_000_000, help="images of the whole run, for node-hours (default 1,000,000)"
    )
    out.add_argument("--top", type=int, default=12, metavar="N", help="rows of a table (default 12)")
    out.add_argument(
        "--check-memory",
        action="store_true",
        help="count the memory a second way, by PyTorch's tracker on fake tensors (up to a minute)",
    )
    out.add_argument("--errors", action="store_true", help="score the predictor on the published points and stop")
    out.add_argument("--json", action="store_true")
    return out


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; raises UserError."""
    args = parser().parse_args(list(argv))
    if args.errors:
        return print_errors(args.json)
    args.sample_bytes, args.sizes, args.said = None, None, []  # of a config
    from frontier_profiling.predict import tables
    from frontier_profiling.predict.case import Case
    from frontier_profiling.predict.predict import predict
    from frontier_profiling.predict.search import free_search, search, why
    from frontier_profiling.predict.system import load_system
    from frontier_profiling.rows import Row, to_json

    given = {word.split("=")[0].removeprefix("--").replace("-", "_") for word in argv if word.startswith("--")}
    flags = {name: value for name, value in vars(args).items() if name in given}
    settings, own = from_config(args.config, flags) if args.config else ({}, None)
    for name, value in settings.items():
        setattr(args, name, value)
    if args.samples < 1 or args.top < 1:
        raise UserError("--samples and --top: give positive numbers")
    models, nodes = words(args.model), [number(n, "--nodes") for n in words(str(args.nodes))]
    strategies = words(args.strategy)
    if args.ranks is not None and len(nodes) > 1:
        raise UserError("--ranks goes with one --nodes")
    system = load_system(args.system)
    if args.ranks is not None:
        least, most = (nodes[0] - 1) * system.node.devices, nodes[0] * system.node.devices
        if not least < args.ranks <= most:
            raise UserError(
                f"--ranks {args.ranks}: {nodes[0]} node(s) of {system.name} have {most} devices; give {least + 1} to {most}, or other --nodes"
            )
    refuse_idle(args, given, strategies)
    if args.read_gb_per_s is not None:
        system = with_storage(system, args.read_gb_per_s)
    if own is None:
        refuse_families(models)
    rows: list[Row] = []
    said: list[dict[str, Any]] = []
    for model in models:
        for n in nodes:
            base = Case(
                model, system, n, "no_shard", 1 if args.tensor is None else args.tensor, args.micro_batch, 1, args.precision, args.activation_checkpointing,
                args.prefetch, args.image_size, args.channels, args.mask_ratio, args.workload,
                "fsdp1" if args.as_published else "fsdp2", args.offload, args.samples, data=args.data, ranks=args.ranks,
                sample_bytes=args.sample_bytes, sizes=args.sizes, given=own and own.work,
            )  # fmt: skip
            base = with_global_batch(base, args.global_batch)
            if strategies == ["auto"]:
                tensors = [args.tensor] if args.tensor else [1] if args.as_published else None
                found = search(base, tensors)
                free = free_search(base, tensors)
                rows += found
                said.append(
                    {"model": model, "nodes": n, "why": why(found), "winner": found[0], "free": free[: args.top]}
                )
                continue
            for word in strategies:
                precision = "fp32" if args.as_published and word == "ddp" else base.precision
                rows.append(predict(base.but(strategy=word, precision=precision)))
    for row in rows:
        row.notes += args.said
        if own is not None:
            row.notes += own.shares(row.mesh["replicate"] * row.mesh["shard"], row.accumulation)
    if args.check_memory and args.sizes is not None:
        raise UserError(
            f"--check-memory runs presets as they stand, and {args.config} changes {args.model}: leave it out"
        )
    if args.check_memory:
        from frontier_profiling.predict.second_opinion import check

        check(rows[: args.top])
    if args.json:
        auto = [
            {**entry, "winner": entry["winner"].as_dict(), "free": [row.as_dict() for row in entry["free"]]}
            for entry in said
        ]
        print(to_json(rows, auto=auto))
    else:
        print("\n".join(tables.plan_lines(rows, said, args.top)))
    return EXIT_OK


def refuse_idle(args: argparse.Namespace, given: set[str], strategies: Sequence[str]) -> None:
    """Raises UserError for a flag that would change nothing."""
    from frontier_profiling.predict.case import UNGATHERED

    if "mask_ratio" in given and args.workload != "mae":
        raise UserError("--mask-ratio is of --workload mae: the encoder of --workload vit sees all tokens")
    if args.read_gb_per_s is not None and args.data != "shards":
        raise UserError("--read-gb-per-s goes with --data shards, or a --config that reads some")
    if "prefetch" not in given or args.prefetch == 1:
        return
    for word in strategies:
        if word in UNGATHERED:
            raise UserError(f"--prefetch {args.prefetch} has no effect under strategy {word}: leave it out")


def with_storage(system: System, rate: float) -> System:
    """`system` whose nodes read at `rate` GB/s."""
    from frontier_profiling.predict.system import Storage

    if not 0 < rate < float("inf"):
        raise UserError(f"--read-gb-per-s {rate:g}: give a positive number")
    return system.model_copy(update={"storage": Storage(read_gb_per_s_per_node=rate, name="as given")})


def words(text: str) -> list[str]:
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found:
        raise UserError(f"'{text}': give a word, or several with commas between")
    return found


def number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise UserError(f"{what} {text}: give positive numbers, such as 1,8,64")
    return int(text)


def with_global_batch(case: Any, global_batch: int | None) -> Any:
    """`case` with the accumulation that makes `global_batch`; a micro-batch larger than a device's share is cut to it."""
    if global_batch is None:
        return case
    if global_batch < 1:
        raise UserError(
            f"--global-batch {global_batch}: give a positive number, such as {case.devices * case.micro_batch}"
        )
    from frontier.launch.mesh import BatchPlan

    batch = BatchPlan.divide(global_batch, case.micro_batch, case.devices)
    return case.but(micro_batch=batch.micro_batch, accumulation=batch.accumulation)


@dataclass(frozen=True)
class OwnWork:
    """What a run's family says of its model, and the streams of its data."""

    work: Workload
    streams: Sequence[Any]

    def shares(self, data_ranks: int, turns: int) -> list[str]:
        """A note where the sources' shares of the batch do not fall equally on ranks and micro-batches."""
        from frontier.data.feed import check_turns

        try:
            check_turns(self.streams, data_ranks, turns)
        except UserError as error:
            return [f"refused as it is: {error}"]
        return []


def from_config(path: str, flags: dict[str, Any]) -> tuple[dict[str, Any], OwnWork | None]:
    """(settings of a run's config under the names of the flags, without those of `flags`, given on the command line; what its family says of it, where
    the predictor has no presets of it).

    Raises:
        UserError: a config of a family that the predictor does not know, or whose sizes do not fit together.
    """
    from frontier.config.load import load_config
    from frontier.models.mae_family import MAESection
    from frontier.models.registry import ImageShape

    config = load_config(path)
    if config.model.family != "mae":
        return of_family(path, config, set(flags))
    maths: Any = config.model
    images, said = stored(config)
    images |= {name: value for name, value in flags.items() if name in images}
    shape = ImageShape(images["image_size"], images["channels"])
    sizes, plain = maths.maths(shape), MAESection(preset=maths.preset, mask_ratio=maths.mask_ratio).maths(shape)
    said += [] if maths.texture is None else ["not counted: the further targets of model.texture"]
    if (sizes.encoder, sizes.decoder) == (plain.encoder, plain.decoder) or "model" in flags:
        sizes = None
    else:
        said += [f"sizes: {maths.preset} with {differences(sizes, plain)}"]
    settings = {
        "sizes": sizes,
        "said": said,
        "model": maths.preset,
        "workload": "mae",
        "mask_ratio": maths.mask_ratio,
        **images,
        **run_settings(config),
    }
    return {name: value for name, value in settings.items() if name not in flags}, None


def differences(sizes: MAEConfig, plain: MAEConfig) -> str:
    """What `sizes` has otherwise than `plain`, in the words of a config."""
    found = []
    for part, before in ((sizes.encoder, ""), (sizes.decoder, "decoder.")):
        preset = plain.decoder if before else plain.encoder
        for field in fields(part):
            if getattr(part, field.name) != getattr(preset, field.name):
                found.append(f"{before}{field.name} {getattr(part, field.name)}")
    return ", ".join(found)


def stored(config: Config) -> tuple[dict[str, Any], list[str]]:
    """(flags that tell a run's images, notes): as its shards' manifest says, where there is one here; else RGB, of 224 px unless the config
    says.
    """
    import math

    import numpy as np

    from frontier.data.manifest import load_manifest

    data = config.data
    if data.synthetic is not None:
        return {"image_size": data.image_size, "channels": data.synthetic.channels}, []
    try:
        image = load_manifest(data.shards or "")["images"][data.column]
        channels, *_, side = image["shape"]
        size = math.prod(image["shape"]) * np.dtype(image["dtype"]).itemsize
        return {"image_size": data.image_size or side, "channels": channels, "sample_bytes": size}, []
    except (UserError, KeyError):
        taken = f"3 bands of {data.image_size or 224} px"
        return {"image_size": data.image_size or 224, "channels": 3}, [
            f"assumed: {taken}, for {data.shards} is not here"
        ]


def of_family(path: str, config: Config, given: set[str]) -> tuple[dict[str, Any], OwnWork]:
    """As `from_config`, of a config whose data say what its model looks like: manifests and labels are read, where there are any here."""
    from pathlib import Path

    import torch

    from frontier.models.registry import family

    chosen = family(config.model.family)
    if chosen.workload is None:
        raise UserError(f"{path}: model.family={config.model.family} is not in the predictor")
    for name in ("model", "workload", "image_size", "channels", "mask_ratio", "as_published", "check_memory"):
        if name in given:
            word = name.replace("_", "-")
            raise UserError(f"--{word} says nothing of {path}, a config of model.family={chosen.name}: leave it out")
    known, said = config, []
    shards = config.data.shards
    if chosen.without_shards is not None and shards is not None and not Path(shards).exists():
        known, note = chosen.without_shards(config)
        said = [note]
    feed = chosen.feed(known, False, None)
    resolved = replace(known, data=feed.data, model=feed.model)
    with torch.device("meta"):
        module = chosen.build(resolved.model, chosen.shape(resolved))
    settings = {"model": feed.model.preset, "workload": chosen.name, "said": said, **run_settings(config)}
    samples = sum(stream.sampler.global_batch for stream in feed.streams)
    settings["sample_bytes"] = (
        sum(stream.sampler.global_batch * stream.sample_bytes for stream in feed.streams) // samples
    )
    own = OwnWork(chosen.workload(module), feed.streams)
    return {name: value for name, value in settings.items() if name not in given}, own


def refuse_families(models: Sequence[str]) -> None:
    """Raises UserError for a model of a family without presets of its own cost."""
    from frontier.models.presets import PRESETS

    needed = {"gpna": "inputs and tasks", "scale_alibi": "sensors"}
    for model in models:
        of = next((name for name in needed if model.startswith(name)), None)
        if of and model not in PRESETS:
            raise UserError(
                f"--model {model}: what a {of} model costs depends on its {needed[of]}: give the --config of a run"
            )


def run_settings(config: Config) -> dict[str, Any]:
    """Flags that every family's config tells."""
    settings = {
        "data": "synthetic" if config.data.synthetic else "shards",
        "strategy": config.parallel.strategy, "tensor": config.parallel.tensor, "precision": config.parallel.precision,
        "activation_checkpointing": config.parallel.activation_checkpointing, "prefetch": config.parallel.prefetch,
        "offload": config.parallel.offload, "global_batch": config.train.global_batch,
        "micro_batch": config.train.micro_batch or config.train.global_batch,
    }  # fmt: skip
    if config.train.samples or config.train.steps:
        settings["samples"] = config.train.samples or config.train.steps * config.train.global_batch  # type: ignore[operator]
    return settings


def print_errors(as_json: bool) -> int:
    import dataclasses
    import json

    from frontier_profiling.predict.fit import Score, lines, report

    print(
        "scoring, and fitting without each model and strategy in turn: about half a minute", file=sys.stderr, flush=True
    )
    found = report()
    if as_json:

        def plain(node: Any) -> Any:
            if isinstance(node, Score):
                return dataclasses.asdict(node)
            return [plain(n) for n in node] if isinstance(node, list) else node

        print(json.dumps({name: plain(value) for name, value in found.items()}, indent=1))
    else:
        print("\n".join(lines(found)))
    return EXIT_OK
