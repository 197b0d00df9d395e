"""`frontier evaluate RUN`: every task of a run on a held-out split, baselines beside it, and when each task should have stopped."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from frontier.arguments import Parser, device_named, output_file, run_folder
from frontier.errors import EXIT_OK, UserError
from frontier.evaluate import check_common, common_options, finite, fitting, run_parser

if TYPE_CHECKING:
    import argparse

    import numpy as np

    from gpna.evaluation import Row
    from gpna.model import GPNA


def _parser() -> Parser:
    parser = run_parser(
        "Measure every task of a run of the family gpna on a split that it has not seen, with 95 % intervals.",
        "Writes RUN/evaluation.json, with --checkpoints RUN/early_stopping.json; `frontier report RUN` shows both.",
    )
    add = parser.add_argument
    add("--split", metavar="SPLIT", help="of each task's source (default: test; with --checkpoints: val)")
    add("--source", metavar="NAME", help="only the tasks of this source")
    add("--shards", metavar="FOLDER", help="measure --source on these shards instead of its own")
    add("--tasks", metavar="A,B", help="only these tasks (default: all)")
    add("--groups", metavar="COLUMN", help="intervals resample whole groups of this column, such as sites; none: samples "
        "(default: site, field, region or country, the first that the shards have, if of ten groups or more)")  # fmt: skip
    add("--baselines", action="store_true", help="add models of scikit-learn and MONAI on the same inputs and labels")
    add("--baseline-samples", type=int, metavar="N", help="fit baselines to N training samples, drawn at random: "
        "they are held in memory (default: all)")  # fmt: skip
    add("--checkpoints", action="store_true", help="all complete checkpoints of RUN instead of one: the best step of each "
        "task, and the one step that loses least over all tasks")  # fmt: skip
    add("--texts", metavar="FILE", help="ask tasks of the head text with the vectors of this file: zero-shot")
    add(
        "--text-names",
        metavar="A,B",
        help="with --texts: the classes in the order of the labels, or the one text of a regression",
    )
    common_options(parser, seed_of="intervals and baselines")
    return parser


def main(argv: Sequence[str]) -> int:
    """Measure, write the rows and print them; returns the exit code. Raises UserError."""
    args = _parser().parse_args(list(argv))
    _check(args)
    from frontier.train.checkpoint import find_checkpoint
    from frontier.train.storage import write_json

    device = device_named(args.device)
    checkpoint = find_checkpoint(args.checkpoint)
    out = output_file(args.out, checkpoint, "early_stopping.json" if args.checkpoints else "evaluation.json")
    measured, text = (
        _all_checkpoints(args, run_folder(checkpoint), device)
        if args.checkpoints
        else _one_checkpoint(args, checkpoint, device)
    )
    found = finite(measured)
    write_json(out, found)
    print(json.dumps(found, indent=1) if args.json else f"{text}\n\nwrote {out}")
    return EXIT_OK


def _check(args: argparse.Namespace) -> None:
    check_common(args)
    if args.shards and not args.source:
        raise UserError("--shards: say by --source which source of the run they stand for")
    if args.baseline_samples is not None and (not args.baselines or args.baseline_samples < 1):
        raise UserError("--baseline-samples goes with --baselines and is a positive number")
    if bool(args.texts) != bool(args.text_names):
        raise UserError("--texts and --text-names go together: the file, and which of its texts in which order")
    if args.checkpoints and (args.baselines or args.texts):
        raise UserError("--checkpoints compares the steps of one model: leave --baselines and --texts out")


def _one_checkpoint(args: argparse.Namespace, checkpoint: Path, device: str) -> tuple[list[Row], str]:
    from frontier.train.checkpoint import load_model
    from gpna.evaluation import baseline_rows, measure, open_parts

    module, config, step = load_model(checkpoint)
    parts = open_parts(config, args.split or "test", **_chosen(args))
    texts = _texts(args, config, parts, cast(Any, module))
    with fitting(args.batch):
        rows = measure(cast(Any, module), config, parts, texts=texts, device=device, batch=args.batch, seed=args.seed)
    about = {"step": step, "checkpoint": checkpoint.name, "run_seed": config["run"]["seed"]}
    rows = [row | about | ({"texts": args.text_names} if texts and row["task"] in texts else {}) for row in rows]
    if args.baselines:
        rows += baseline_rows(
            config, parts, device=device, seed=args.seed, samples=args.baseline_samples, progress=_progress
        )
    order = list(dict.fromkeys(row["task"] for row in rows))
    rows.sort(key=lambda row: order.index(row["task"]))
    gone = [part.source.name for part in parts if part.train is None]
    notes = [f"The training labels of {', '.join(gone)} are not there any more: no majority_rate."] if gone else []
    return rows, "\n\n".join([f"{checkpoint} (step {step})", as_text(rows), *notes])


def _all_checkpoints(args: argparse.Namespace, run: Path, device: str) -> tuple[dict[str, Any], str]:
    from frontier.train.checkpoint import load_model, read_record, step_folder, steps_in
    from frontier.train.storage import CorruptCheckpoint
    from gpna.early_stopping import as_text as stopping_text
    from gpna.early_stopping import early_stopping
    from gpna.evaluation import measure, open_parts

    by_step: dict[int, list[Row]] = {}
    parts = None
    for step in sorted(steps_in(run / "checkpoints")):
        folder = step_folder(run / "checkpoints", step)
        try:
            read_record(folder)
        except CorruptCheckpoint as error:
            _progress(f"passed over: {error}")
            continue
        module, config, _ = load_model(folder)
        parts = parts or open_parts(config, args.split or "val", **_chosen(args))
        _progress(f"step {step}")
        with fitting(args.batch):
            by_step[step] = measure(cast(Any, module), config, parts, device=device, batch=args.batch, seed=args.seed)
    if not by_step:
        raise UserError(f"no complete checkpoint in {run}: --checkpoints takes a run, not one checkpoint of it")
    report = early_stopping(by_step)
    return report, f"{run}\n\n{stopping_text(report)}"


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    tasks = None if args.tasks is None else [name.strip() for name in args.tasks.split(",") if name.strip()]
    return {"tasks": tasks, "source": args.source, "shards": args.shards, "groups": args.groups}


def _texts(
    args: argparse.Namespace, config: dict[str, Any], parts: list[Any], module: GPNA
) -> dict[str, np.ndarray] | None:
    """The vectors to ask every text task with. Raises UserError where they do not suit one."""
    if not args.texts:
        return None
    from gpna.heads.text import scaled
    from gpna.text_vectors import load_text_vectors

    names = [name.strip() for name in args.text_names.split(",") if name.strip()]
    vectors = scaled(load_text_vectors(args.texts, names).vectors)
    tasks = {name: task for name, task in config["model"]["tasks"].items() if task["head"] == "text"}
    asked = [name for part in parts for name in part.source.targets if name in tasks]
    if not asked:
        raise UserError("--texts: none of the tasks to measure has the head text: leave it out")
    for name in asked:
        trained = cast(Any, module.heads[name]).vectors.shape[1]
        if vectors.shape[1] != trained:
            raise UserError(
                f"--texts {args.texts}: vectors of {vectors.shape[1]} numbers, task {name} was trained on {trained}"
            )
        if tasks[name]["task"] == "regression" and len(names) != 1:
            raise UserError(f"--text-names: task {name} is a regression of one text, {len(names)} given")
    return dict.fromkeys(asked, vectors)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def as_text(rows: Sequence[Row]) -> str:
    """A table for each task: models by metrics with their intervals; * is the metric that the task is judged by."""
    from frontier.table import table

    out = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        first = own[0]
        units = f", {first['units']}" if first["units"] else ""
        by = f"intervals resample by {first['groups']}" if first["groups"] else "intervals resample samples"
        title = f"{task}: {first['head']} of {first['target']}{units} ({first['data']}, split {first['split']}, {by})"
        names = list(dict.fromkeys(name for row in own for name in row["metrics"]))
        names.sort(key=lambda name: name != first["metric"])
        lines = [("model", "n", "missing", *(name + "*" * (name == first["metric"]) for name in names))]
        for row in own:
            cells = [_cell(row, name) for name in names]
            lines.append((row["model"], str(row["n"]), str(row["missing"]), *cells))
        left = [f"{row['model']} left out: {row['left_out']}" for row in own if "left_out" in row]
        out.append("\n".join([title, table(lines), *left]))
    return "\n\n".join(out)


def _cell(row: Row, name: str) -> str:
    value = row["metrics"].get(name)
    if value is None:
        return ""
    if not math.isfinite(value):
        return "undefined"
    low, high = row["ci95"][name]
    return f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if math.isfinite(low) else "")
