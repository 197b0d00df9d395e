"""`frontier probe CHECKPOINT --data SHARDS`: a frozen encoder's features against two baselines."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from frontier.arguments import Parser, device_named, output_file
from frontier.errors import EXIT_OK, UserError

from .methods import METHODS, NORMALISATIONS, chosen, named

if TYPE_CHECKING:
    from .features import LabelledSamples
    from .subject import Ask, Subject

SCHEMA = 1


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="frontier probe",
        description="Evaluate a frozen encoder on labelled shards, beside a randomly initialised one of the "
        "same shape and statistics of the inputs (of colour and texture for images), with 95 % intervals, and beside "
        "published figures where the shards are a GEO-Bench task.",
        epilog="Of one class a sample: linear (MAE's recipe), logistic (L-BFGS), mlp (2,048 hidden units), knn (weighted), "
        "knn20_cosine, knn20_l2 (majority), kmeans, pca_kmeans, umap_kmeans. Of several labels a sample: linear, mlp, knn, "
        "knn20_cosine, knn20_l2. Of one class a pixel: segment (linear), segment_knn. "
        "The random encoder is the model of the run's config with the seed run.seed + 1 + SEED.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="RUN/checkpoints/step_<n>, or RUN: its newest complete one")
    add("--data", metavar="SHARDS", required=True, help="labelled shards (`frontier shards write`)")
    add("--column", help="image column of the shards, for models of one image (default: the one of the run)")
    add("--source", metavar="NAME", help="whose inputs the shards have, for runs on several sources")
    add(
        "--target", metavar="NAME", help="labels to predict (default: column label, else the only target of the shards)"
    )
    add("--method", default="all", help=f"all that take the labels, or some of {','.join(METHODS)} (default: all)")
    add("--split-train", default="train", metavar="SPLIT", help="fits the probe (default: train)")
    add("--split-test", default="test", metavar="SPLIT", help="measures it (default: test)")
    add(
        "--split-val",
        metavar="SPLIT",
        help="ends the training of mlp and segment (default: val, else a fifth of the training samples)",
    )
    add(
        "--pooling",
        choices=("mean", "cls", "mean_std"),
        help="of the tokens of a sample (patch tokens of an image, latents of a gpna model): their mean, their mean and "
        "standard deviation, or the [cls] token where there is one (default: mean; labels of pixels: none)",
    )
    add(
        "--layers",
        default="last",
        help="last, or the numbers of encoder blocks whose features are concatenated, such as 3,7,11 (0 is "
        "the first block; default: last)",
    )
    add(
        "--gsd-m",
        type=float,
        metavar="M",
        help="metres a pixel of the images as stored, for models that know it (default: what the shards say)",
    )
    add("--resize", action="store_true", help="resize images to the encoder's size where it differs")
    add(
        "--normalise",
        choices=NORMALISATIONS,
        default="run",
        help="bands by the run's mean and deviation, by those of these shards' training split, which suits images in other units, or to 0 and 1 at "
        "their mean -+ 2 deviations, as CROMA's weights want them (default: run)",
    )
    add("--batch", type=int, default=64, metavar="N", help="samples encoded at a time (default: 64)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:<n> (default: auto: a GPU if any)")
    add("--seed", type=int, default=0, help="of every random choice of the probe (default: 0)")
    add("--out", metavar="FILE", help="the rows as JSON (default: RUN/probe.json, replaced)")
    add("--json", action="store_true", help="print the rows as JSON instead of a table")
    return parser


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


def _validation(
    open_subject: Callable[[Ask], Subject], ask: Ask, subject: Subject, wanted: str | None, methods: Sequence[str]
) -> tuple[str | None, LabelledSamples | None]:
    """(name, samples) of the validation split, or None where there is none or no method has a use for it."""
    if not any(METHODS[name].validates for name in methods):
        if wanted is not None:
            raise UserError(f"--split-val {wanted}: none of {','.join(methods)} needs a validation split: leave it out")
        return None, None
    if wanted is not None and wanted in ask.splits:
        raise UserError(f"--split-val {wanted}: it also fits or tests the probe: give a split of its own")
    name = wanted or "val"
    if wanted is None and (name not in subject.shards.manifest["splits"] or name in ask.splits):
        return None, None
    # The same question about other splits, so that families need not know of a third one.
    samples = open_subject(replace(ask, splits=(name, name))).train
    if not samples.known.any():
        if wanted is not None:
            raise UserError(f"--split-val {wanted}: no sample of it has a label: name another split, or leave it out")
        return None, None
    return name, samples


def main(argv: Sequence[str]) -> int:
    """Probe, write the rows and print them; returns the exit code. Raises UserError."""
    args = _parser().parse_args(argv)
    wanted, layers = named(args.method), _layers(args.layers)
    if args.gsd_m is not None and not 0 < args.gsd_m < math.inf:
        raise UserError(f"--gsd-m {args.gsd_m}: give a positive number of metres")
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: give a positive number")
    if not 0 <= args.seed < 2**31:
        raise UserError(f"--seed {args.seed}: give a number from 0 to 2147483647")
    if args.split_train == args.split_test:
        raise UserError(f"split '{args.split_train}' both fits and tests the probe: give two splits")
    import torch

    from frontier.models.registry import family
    from frontier.train.checkpoint import find_checkpoint, load_model
    from frontier.train.storage import write_json

    from .compare import compare
    from .images import image_subject
    from .published import published
    from .subject import Ask
    from .table import grouped, table
    from .targets import find_target

    device = device_named(args.device)
    checkpoint = find_checkpoint(args.checkpoint)
    out = output_file(args.out, checkpoint, "probe.json")
    splits = args.split_train, args.split_test
    pooling = args.pooling or "mean"
    ask = Ask(
        args.data, splits, args.column, args.source, pooling, layers, args.resize, device, args.target, args.gsd_m,
        args.normalise,
    )  # fmt: skip
    module, config, step = load_model(checkpoint)
    answers = family(config["model"]["family"]).features or image_subject
    subject = answers(config, ask)
    for note in subject.notes:
        _say(note)
    target = find_target(subject.shards, args.target)
    if target.kind == "segmentation" and args.pooling is not None:
        raise UserError(
            f"--pooling {args.pooling}: '{target.name}' is labels of pixels, and nothing is pooled: leave it out"
        )
    methods, left_out = chosen(wanted, target.kind, target.name)
    for name in left_out:
        _say(f"{name} left out: its package is not installed (pip install 'frontier-geofm[probe]')")
    split_val, validation = _validation(partial(answers, config), ask, subject, args.split_val, methods)

    held = [module]
    del module  # so that the list holds the only reference, given up when the encoder's turn is over
    try:
        rows = compare(
            held.pop, config, ask, subject, target, validation, methods, seed=args.seed, batch=args.batch, progress=_say
        )
    except torch.OutOfMemoryError:
        raise UserError(f"--batch {args.batch} does not fit the memory of {device}: give a smaller one") from None
    data = subject.shards.manifest["name"]
    origin = {
        "step": step,
        "checkpoint": checkpoint.name,
        "data": data,
        "fingerprint": subject.shards.fingerprint,
        "target": target.name,
        **subject.origin,
        "splits": [*splits, *([split_val] if split_val else [])],
    }
    rows = [{"schema": SCHEMA, **row, **origin} for row in rows]
    known = [{"schema": SCHEMA, **row, "data": data} for row in published(data, methods, target.kind)]
    rows = grouped([*rows, *known])
    write_json(out, rows)
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        first = rows[0]
        print(
            f"{checkpoint}: {first['n_train']} training and {first['n_test']} test samples of "
            f"{first['classes']} {'labels' if target.kind == 'multilabel' else 'classes'} ({data})\n\n{table(rows)}\n"
        )
        if known and (known[0]["n_train"], known[0]["n_test"]) != (first["n_train"], first["n_test"]):
            print(
                f"published: on the official split of {known[0]['n_train']} training and {known[0]['n_test']} test samples, "
                "which is not this one"
            )
        for note in dict.fromkeys(f"published: {row['source']}: {row['note']}" for row in known):
            print(note)
        print(f"rows in {out}")
    return EXIT_OK


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
