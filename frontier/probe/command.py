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
    from frontier.data.shards import ShardSet

    from .features import FeatureFunction, LabelledImages

SCHEMA = 1
METHODS = ("linear", "logistic", "knn")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="frontier probe",
        description="Evaluate a frozen encoder on labelled shards, beside a randomly initialised one of the "
        "same shape and colour and texture statistics, with 95 % intervals.",
        epilog="The random encoder is the model of the run's config with the seed run.seed + 1 + SEED.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="RUN/checkpoints/step_<n>, or RUN: its newest complete one")
    add("--data", metavar="SHARDS", required=True, help="labelled shards (`frontier shards write`)")
    add("--column", help="image column of the shards (default: the one of the run)")
    add("--method", default="all", help=f"all, or some of {','.join(METHODS)} (default: all)")
    add("--split-train", default="train", metavar="SPLIT", help="fits the probe (default: train)")
    add("--split-test", default="test", metavar="SPLIT", help="measures it (default: test)")
    add(
        "--pooling",
        choices=("mean", "cls", "mean_std"),
        default="mean",
        help="of the tokens of an image: mean of the patch tokens, the [cls] token, or mean and standard "
        "deviation of the patch tokens (default: mean)",
    )
    add(
        "--layers",
        default="last",
        help="last, or the numbers of encoder blocks whose features are concatenated, such as 3,7,11 (0 is "
        "the first block; default: last)",
    )
    add("--resize", action="store_true", help="resize images to the encoder's size where it differs")
    add("--batch", type=int, default=64, metavar="N", help="images encoded at a time (default: 64)")
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


def _check_images(shards: ShardSet, column: str, data: dict[str, Any], resize: bool) -> None:
    """Raises UserError where the images do not suit the encoder."""
    if column not in shards.image_columns:
        known = " or ".join(shards.image_columns)
        raise UserError(f"no image column '{column}' in {shards.path}: choose --column {known}")
    if shards.manifest["images"][column]["axes"] != "CHW":
        raise UserError(
            f"column '{column}' of {shards.path} is no image of bands, rows and columns: choose another --column"
        )
    channels, height, width = shards.manifest["images"][column]["shape"]
    bands, size = len(data["mean"]), data["image_size"]
    if channels != bands:
        raise UserError(
            f"{channels} bands in column '{column}' of {shards.path}, the encoder was trained on {bands}: "
            "choose another --column or shards with the same bands"
        )
    images = f"images of {height} x {width} in {shards.path}"
    if height != width:
        raise UserError(f"{images} are not square: write the shards with --fit")
    if height != size and not resize:
        raise UserError(
            f"{images}, the encoder was trained on {size} x {size}: add --resize, or write them in that size"
        )


def _labelled(shards: ShardSet, column: str, mean: Sequence[float]) -> LabelledImages:
    """The samples with their labels; what is missing in an image is `mean`, as in training, for every encoder alike."""
    import numpy as np
    import torch

    from frontier.data.transforms import Normaliser

    from .features import LabelledImages

    centred = Normaliser.of(shards, column, mean=mean, std=[1.0] * len(mean))
    whole = centred.mask is None and centred.nodata is None and shards.describe(column)[1].kind in "iu"

    def read(start: int, stop: int) -> np.ndarray:
        if whole:
            return shards.read(column, start, stop)
        stored = {name: torch.from_numpy(shards.read(name, start, stop)) for name in centred.columns}
        return (centred(stored) + centred.mean.view(-1, 1, 1)).numpy()

    if "label" not in shards.manifest["columns"]:
        raise UserError(f"no labels in {shards.path}: write the shards from a folder with a sub-folder a class")
    return LabelledImages(
        read=read,
        labels=shards.column("label").astype(np.int64),
    )


def _encoder(
    build: Callable[[], Any], data: dict[str, Any], pooling: str, layers: list[int] | None, device: str
) -> Callable[[], FeatureFunction]:
    """Factory of the feature function of the model that `build` makes, on `device`."""

    def factory() -> FeatureFunction:
        from .features import encoder_features

        module = build().eval().to(device)
        if not hasattr(module, "encode") or not (layers is None or hasattr(module, "encode_layers")):
            raise UserError(f"{type(module).__name__} models give no tokens of an image: they cannot be probed")
        size = data["image_size"]
        return encoder_features(module, data["mean"], data["std"], size, pooling, layers, device)

    return factory


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

    from frontier.data.shards import ShardSet
    from frontier.train.checkpoint import build_model, find_checkpoint, load_model
    from frontier.train.storage import write_json

    from .baselines import colour_texture
    from .evaluate import SUBJECT, evaluate
    from .table import table

    device = _device(args.device)
    checkpoint = find_checkpoint(args.checkpoint)
    out = _output(args.out, checkpoint)
    train, test = (ShardSet(args.data, split=split) for split in (args.split_train, args.split_test))
    module, config, step = load_model(checkpoint)
    data = config["data"]
    column = args.column or data["column"]
    _check_images(train, column, data, args.resize)
    labelled = _labelled(train, column, data["mean"]), _labelled(test, column, data["mean"])

    # Another seed than the run's: its own initial weights could be those that training started from.
    random_seed = (config["run"]["seed"] + 1 + args.seed) % 2**31
    random_config = {**config, "run": {**config["run"], "seed": random_seed}}
    pretrained = [module]
    del module  # so that the list holds the only reference, given up when the encoder's turn is over
    views = {"pooling": args.pooling, "layers": "last" if layers is None else layers}
    encoders: dict[str, Callable[[], FeatureFunction]] = {
        SUBJECT: _encoder(pretrained.pop, data, args.pooling, layers, device),
        "random": _encoder(lambda: build_model(random_config), data, args.pooling, layers, device),
        "colour_texture": lambda: colour_texture,
    }
    try:
        rows = evaluate(
            encoders,
            *labelled,
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
        "data": train.manifest["name"],
        "fingerprint": train.fingerprint,
        "column": column,
        "splits": [args.split_train, args.split_test],
    }
    rows = [{"schema": SCHEMA, **row, **own.get(row["encoder"], {}), **origin} for row in rows]
    write_json(out, rows)
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        first = rows[0]
        print(
            f"{checkpoint}: {first['n_train']} training and {first['n_test']} test images of "
            f"{first['classes']} classes ({train.manifest['name']})\n\n{table(rows)}\n\nrows in {out}"
        )
    return EXIT_OK
