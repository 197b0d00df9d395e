"""`frontier probe CHECKPOINT --data SHARDS`: a frozen encoder's features against two baselines."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontier.errors import EXIT_OK, UserError

if TYPE_CHECKING:
    from .features import FeatureFunction
    from .subject import Subject

SCHEMA = 1
METHODS = ("linear", "logistic", "knn")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="frontier probe",
        description="Evaluate a frozen encoder on labelled shards, beside a randomly initialised one of the "
        "same shape and statistics of the inputs (of colour and texture for images), with 95 % intervals.",
        epilog="The random encoder is the model of the run's config with the seed run.seed + 1 + SEED.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="RUN/checkpoints/step_<n>, or RUN: its newest complete one")
    add("--data", metavar="SHARDS", required=True, help="labelled shards (`frontier shards write`)")
    add("--column", help="image column of the shards, for models of one image (default: the one of the run)")
    add("--source", metavar="NAME", help="whose inputs the shards have, for runs on several sources")
    add("--method", default="all", help=f"all, or some of {','.join(METHODS)} (default: all)")
    add("--split-train", default="train", metavar="SPLIT", help="fits the probe (default: train)")
    add("--split-test", default="test", metavar="SPLIT", help="measures it (default: test)")
    add(
        "--pooling",
        choices=("mean", "cls", "mean_std"),
        default="mean",
        help="of the tokens of a sample (patch tokens of an image, latents of a gpna model): their mean, their mean and "
        "standard deviation, or the [cls] token where there is one (default: mean)",
    )
    add(
        "--layers",
        default="last",
        help="last, or the numbers of encoder blocks whose features are concatenated, such as 3,7,11 (0 is "
        "the first block; default: last)",
    )
    add("--resize", action="store_true", help="resize images to the encoder's size where it differs")
    add("--batch", type=int, default=64, metavar="N", help="samples encoded at a time (default: 64)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:<n> (default: auto: a GPU if any)")
    add("--seed", type=int, default=0, help="of every random choice of the probe (default: 0)")
    add("--out", metavar="FILE", help="the rows as JSON (default: RUN/probe.json, replaced)")
    add("--json", action="store_true", help="print the rows as JSON instead of a table")
    return parser


def _methods(text: str) -> list[str]:
    if text == "all":
        return list(METHODS)
    named = [name.strip() for name in text.split(",")]
    unknown = [name for name in named if name not in METHODS]
    if unknown:
        choices = ",".join(METHODS)
        raise UserError(f"method '{unknown[0]}' is unknown, --method: choose all or some of {choices}")
    return [name for name in METHODS if name in named]


def _layers(text: str) -> list[int] | None:
    if text == "last":
        return None
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        raise UserError(f"'{text}' is no list of blocks, --layers: give last or 3,7,11 and the like") from None
    if len(set(numbers)) < len(numbers):
        raise UserError(f"'{text}' names a block twice, --layers: name each once")
    return numbers


def _device(text: str) -> str:
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


def _output(out: str | None, checkpoint: Path) -> Path:
    """Where the rows go: `out`, or probe.json of the run that the checkpoint belongs to."""
    around = checkpoint.resolve().parent
    run = around.parent if around.name == "checkpoints" else checkpoint
    path = Path(out) if out else run / "probe.json"
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{path} cannot be written: give a file in an existing, writable folder by --out")
    return path


def _encoder(build: Callable[[], Any], subject: Subject, device: str) -> Callable[[], FeatureFunction]:
    """Factory of the feature function of the model that `build` makes, on `device`."""
    return lambda: subject.encode(build().eval().to(device))


def main(argv: Sequence[str]) -> int:
    """Probe, write the rows and print them; returns the exit code. Raises UserError."""
    args = _parser().parse_args(argv)
    methods, layers = _methods(args.method), _layers(args.layers)
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: give a positive number")
    if not 0 <= args.seed < 2**31:
        raise UserError(f"--seed {args.seed}: give a number from 0 to 2147483647")
    if args.split_train == args.split_test:
        raise UserError(f"split '{args.split_train}' both fits and tests the probe: give two splits")
    import torch

    from frontier.models.registry import family
    from frontier.train.checkpoint import build_model, find_checkpoint, load_model
    from frontier.train.storage import write_json

    from .evaluate import SUBJECT, evaluate
    from .images import image_subject
    from .subject import Ask
    from .table import table

    device = _device(args.device)
    checkpoint = find_checkpoint(args.checkpoint)
    out = _output(args.out, checkpoint)
    splits = args.split_train, args.split_test
    ask = Ask(args.data, splits, args.column, args.source, args.pooling, layers, args.resize, device)
    module, config, step = load_model(checkpoint)
    subject = (family(config["model"]["family"]).features or image_subject)(config, ask)

    # Another seed than the run's: its own initial weights could be those that training started from.
    random_seed = (config["run"]["seed"] + 1 + args.seed) % 2**31
    random_config = {**config, "run": {**config["run"], "seed": random_seed}}
    pretrained = [module]
    del module  # so that the list holds the only reference, given up when the encoder's turn is over
    views = {"pooling": args.pooling, "layers": "last" if layers is None else layers}
    baseline, statistics = subject.baseline
    encoders: dict[str, Callable[[], FeatureFunction]] = {
        SUBJECT: _encoder(pretrained.pop, subject, device),
        "random": _encoder(lambda: build_model(random_config), subject, device),
        baseline: lambda: statistics,
    }
    try:
        rows = evaluate(
            encoders,
            subject.train,
            subject.test,
            methods=methods,
            seed=args.seed,
            batch=args.batch,
            device=device,
            where=str(args.data),
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except torch.OutOfMemoryError:
        raise UserError(f"--batch {args.batch} does not fit the memory of {device}: give a smaller one") from None
    own = {
        SUBJECT: {**views, "encoder_seed": config["run"]["seed"]},
        "random": {**views, "encoder_seed": random_seed},
    }
    origin = {
        "step": step,
        "checkpoint": checkpoint.name,
        "data": subject.shards.manifest["name"],
        "fingerprint": subject.shards.fingerprint,
        **subject.origin,
        "splits": list(splits),
    }
    rows = [{"schema": SCHEMA, **row, **own.get(row["encoder"], {}), **origin} for row in rows]
    write_json(out, rows)
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        first = rows[0]
        print(
            f"{checkpoint}: {first['n_train']} training and {first['n_test']} test samples of "
            f"{first['classes']} classes ({subject.shards.manifest['name']})\n\n{table(rows)}\n\nrows in {out}"
        )
    return EXIT_OK
