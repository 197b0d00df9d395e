"""`frontier evaluate RUN`: every task of a run on a held-out split, baselines beside it, and when each task should have stopped."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontier.arguments import Parser
from frontier.errors import EXIT_OK, UserError

if TYPE_CHECKING:
    import argparse

    import numpy as np

    from gpna.evaluation import Row


def _parser() -> Parser:
    parser = Parser(
        prog="frontier evaluate",
        description="Measure every task of a run of the family gpna on a split that it has not seen, with 95 % intervals.",
        epilog="Writes RUN/evaluation.json, with --checkpoints RUN/early_stopping.json; `frontier report RUN` shows both.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="RUN/checkpoints/step_<n>, or RUN: its newest complete one")
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
    add("--batch", type=int, default=32, metavar="N", help="samples encoded at a time (default: 32)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:<n> (default: auto: a GPU if any)")
    add("--seed", type=int, default=0, help="of intervals and baselines (default: 0)")
    add("--out", metavar="FILE", help="the rows as JSON (default: in RUN, replaced)")
    add("--json", action="store_true", help="print JSON instead of tables")
    return parser


def main(argv: Sequence[str]) -> int:
    """Measure, write the rows and print them; returns the exit code. Raises UserError."""
    args = _parser().parse_args(list(argv))
    _check(args)
    from frontier.train.checkpoint import find_checkpoint
    from frontier.train.storage import write_json

    device = _device(args.device)
    checkpoint = find_checkpoint(args.checkpoint)
    run = checkpoint.resolve().parent.parent if checkpoint.resolve().parent.name == "checkpoints" else checkpoint
    name = "early_stopping.json" if args.checkpoints else "evaluation.json"
    out = Path(args.out) if args.out else run / name
    if out.is_dir() or not os.access(out.resolve().parent, os.W_OK):
        raise UserError(f"{out} cannot be written: give a file in an existing, writable folder by --out")
    measured, text = (
        _all_checkpoints(args, run, device) if args.checkpoints else _one_checkpoint(args, checkpoint, device)
    )
    found = finite(measured)
    write_json(out, found)
    print(json.dumps(found, indent=1) if args.json else f"{text}\n\nwrote {out}")
    return EXIT_OK


def _check(args: argparse.Namespace) -> None:
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: give a positive number")
    if not 0 <= args.seed < 2**31:
        raise UserError(f"--seed {args.seed}: give a number from 0 to 2147483647")
    if args.shards and not args.source:
        raise UserError("--shards: say by --source which source of the run they stand for")
    if args.baseline_samples is not None and (not args.baselines or args.baseline_samples < 1):
        raise UserError("--baseline-samples goes with --baselines and is a positive number")
    if bool(args.texts) != bool(args.text_names):
        raise UserError("--texts and --text-names go together: the file, and which of its texts in which order")
    if args.checkpoints and (args.baselines or args.texts):
        raise UserError("--checkpoints compares the steps of one model: leave --baselines and --texts out")


def _one_checkpoint(args: argparse.Namespace, checkpoint: Path, device: str) -> tuple[list[Row], str]:
    from gpna.evaluation import baseline_rows, measure, open_parts

    module, config, step = _load(checkpoint)
    parts = open_parts(config, args.split or "test", **_chosen(args))
    texts = _texts(args, config, parts)
    with _in_memory(args):
        rows = measure(module, config, parts, texts=texts, device=device, batch=args.batch, seed=args.seed)
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
    from frontier.train.checkpoint import read_record, step_folder, steps_in
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
        module, config, _ = _load(folder)
        parts = parts or open_parts(config, args.split or "val", **_chosen(args))
        _progress(f"step {step}")
        with _in_memory(args):
            by_step[step] = measure(module, config, parts, device=device, batch=args.batch, seed=args.seed)
    if not by_step:
        raise UserError(f"no complete checkpoint in {run}: --checkpoints takes a run, not one checkpoint of it")
    report = early_stopping(by_step)
    return report, f"{run}\n\n{stopping_text(report)}"


def _load(checkpoint: Path) -> tuple[Any, dict[str, Any], int]:
    from frontier.train.checkpoint import load_model

    module, config, step = load_model(checkpoint)
    if config["model"]["family"] != "gpna":
        raise UserError(
            f"{checkpoint} is of the family {config['model']['family']}, which has no tasks: measure it by frontier probe"
        )
    return module, config, step


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    tasks = None if args.tasks is None else [name.strip() for name in args.tasks.split(",") if name.strip()]
    return {"tasks": tasks, "source": args.source, "shards": args.shards, "groups": args.groups}


def _texts(args: argparse.Namespace, config: dict[str, Any], parts: list[Any]) -> dict[str, np.ndarray] | None:
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
        trained = load_text_vectors(tasks[name]["vectors"], tasks[name]["texts"]).vectors.shape[1]
        if vectors.shape[1] != trained:
            raise UserError(
                f"--texts {args.texts}: vectors of {vectors.shape[1]} numbers, task {name} was trained on {trained}"
            )
        if tasks[name]["task"] == "regression" and len(names) != 1:
            raise UserError(f"--text-names: task {name} is a regression of one text, {len(names)} given")
    return dict.fromkeys(asked, vectors)


@contextmanager
def _in_memory(args: argparse.Namespace) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(f"--batch {args.batch} does not fit the memory of the device: give a smaller one") from None


def _device(text: str) -> str:
    import torch

    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    visible = torch.cuda.device_count()
    if (
        device is None
        or device.type not in ("cpu", "cuda")
        or (device.type == "cuda" and (device.index or 0) >= visible)
    ):
        raise UserError(
            f"no device '{text}' here ({visible} GPUs are visible), --device: choose auto, cpu, cuda or cuda:<n>"
        )
    return text


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def finite(value: Any) -> Any:
    """`value` with None for NaN and infinity, which JSON has not."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_text(rows: Sequence[Row]) -> str:
    """A table for each task: models by metrics with their intervals; * is the metric that the task is judged by."""
    from data_prep.inspect import table

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
