"""`frontier evaluate RUN` of the family: retrieval across sensors, losses and hidden patches on held-out samples, beside an untrained model."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any, cast

from frontier.arguments import Parser, device_named, output_file
from frontier.errors import EXIT_OK, UserError
from frontier.evaluate import check_common, common_options, finite, fitting, run_parser

SCHEMA = 1


def _parser() -> Parser:
    parser = run_parser(
        "Measure a run of the family scale_alibi on a split that it has not seen: retrieval across sensors in both directions, the losses, and "
        "what it knows of hidden patches, beside the same model with random weights, with 95 % intervals.",
        "Writes RUN/evaluation.json; `frontier report RUN` shows it.",
    )
    add = parser.add_argument
    add("--split", default="test", metavar="SPLIT", help="of the shards (default: test)")
    add("--data", metavar="SHARDS", help="measure on these shards instead of the run's")
    add("--limit", type=int, metavar="N", help="measure on N samples of the split, drawn by --seed (default: all)")
    add("--crop-scale", metavar="LOW,HIGH", help="measure cropped images as well: each sample, with all its sensors, by a window of its own of "
        "this share of its area, at the size of the whole: its GSD varies")  # fmt: skip
    common_options(parser, seed_of="samples, windows, hidden patches, intervals and the untrained model")
    return parser


def main(argv: Sequence[str]) -> int:
    """Measure, write the rows and print them; returns the exit code. Raises UserError."""
    args = _parser().parse_args(list(argv))
    check_common(args)
    if args.limit is not None and args.limit < 2:
        raise UserError(f"--limit {args.limit}: give 2 samples or more")
    crop_scale = None if args.crop_scale is None else _crop_scale(args.crop_scale)
    from frontier.train.checkpoint import build_model, find_checkpoint, load_model
    from frontier.train.storage import write_json
    from scale_alibi.evaluation import measure
    from scale_alibi.held_out import open_held_out

    device = device_named(args.device)
    checkpoint = find_checkpoint(args.checkpoint)
    out = output_file(args.out, checkpoint, "evaluation.json")
    module, config, step = load_model(checkpoint)
    held_out = open_held_out(config, args.split, args.data, args.limit, args.seed)
    if len(held_out.shards) < 2:
        raise UserError(f"split {args.split} of {held_out.shards.path} holds one sample: give a split of two or more")
    # Another seed than the run's: its own initial weights could be those that training started from.
    random_seed = (config["run"]["seed"] + 1 + args.seed) % 2**31
    about = {
        "step": step,
        "checkpoint": checkpoint.name,
        "data": held_out.shards.manifest["name"],
        "fingerprint": held_out.shards.fingerprint,
        "split": args.split,
        "provenance": "measured",
    }
    rows = []
    for encoder in ("pretrained", "random"):
        seed = config["run"]["seed"] if encoder == "pretrained" else random_seed
        if encoder == "random":
            module = build_model({**config, "run": {**config["run"], "seed": seed}}).eval()
        for crop in (None,) if crop_scale is None else (None, crop_scale):
            print(f"{encoder}: {len(held_out.shards)} samples, {_view(crop)}", file=sys.stderr, flush=True)
            with fitting(args.batch):
                found = measure(
                    cast(Any, module),
                    held_out,
                    global_batch=config["train"]["global_batch"],
                    crop_scale=crop,
                    device=device,
                    batch=args.batch,
                    seed=args.seed,
                )
            rows += [{"schema": SCHEMA, "encoder": encoder, **row, "encoder_seed": seed, **about} for row in found]
    rows = finite(rows)
    write_json(out, rows)
    title = f"{checkpoint}: {len(held_out.shards)} samples of split {args.split} of {about['data']}"
    print(json.dumps(rows, indent=1) if args.json else f"{title}\n\n{as_text(rows)}\n\nwrote {out}")
    return EXIT_OK


def _crop_scale(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if not 0 < low <= high <= 1:
        raise UserError(f"--crop-scale {text}: give two shares of the area, such as 0.3,1, the lower one first")
    return low, high


def _view(crop: Sequence[float] | None) -> str:
    return "whole" if crop is None else f"crop {crop[0]:g} to {crop[1]:g}"


def as_text(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each thing that is measured, a column for each model."""
    from frontier.table import table

    encoders = list(dict.fromkeys(row["encoder"] for row in rows))
    lines: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        among = row["gallery"] or row["batch"]
        sensors = (" > " if row["gallery"] else ", ").join(row["sensors"])
        what = row["method"], sensors, str(among or ""), _view(row["crop_scale"])
        lines.setdefault(what, {})[row["encoder"]] = row
    methods = [row["method"] for row in rows]
    body: list[tuple[str, ...]] = [("method", "sensors", "among", "images", *encoders, "by chance", "n")]
    for told, found in sorted(lines.items(), key=lambda line: methods.index(line[0][0])):
        first = next(iter(found.values()))
        by_chance = "" if first["chance"] is None else f"{first['chance']:.3f}"
        body.append((*told, *(_cell(found.get(name)) for name in encoders), by_chance, str(first["n"])))
    return table(body)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return "undefined"
    low, high = row["ci95"]
    return f"{row['value']:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None else "")
