"""`frontier evaluate RUN`: a run measured on samples that it has not seen, by what its family has for that.

The verb finds the run among the arguments and hands all of them to `Family.evaluate`, which parses them. What every family's parser
has in common is here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontier.arguments import Parser
from frontier.errors import UserError

if TYPE_CHECKING:
    import argparse


def main(argv: Sequence[str]) -> int:
    """Measure; returns the exit code. Raises UserError."""
    checkpoint = _named(argv)
    if checkpoint is None:  # help that is not of a family, or a mistake
        parser = run_parser(
            "Measure a run on a split that it has not seen, with 95 % intervals: each family by what it learns.",
            "More options belong to the run's family: `frontier evaluate RUN --help` lists them.",
        )
        common_options(parser)
        given, _ = parser.parse_known_args(list(argv))
        checkpoint = _checkpoint(given.checkpoint)
    from frontier.models.registry import family
    from frontier.train.checkpoint import read_record
    from frontier.train.storage import CorruptCheckpoint

    try:
        name = read_record(checkpoint)["config"]["model"]["family"]
    except CorruptCheckpoint as error:
        raise UserError(f"{error}: use another checkpoint of the run") from None
    evaluate = family(name).evaluate
    if evaluate is None:
        raise UserError(f"{checkpoint} is of the family {name}, which has no tasks to measure: use frontier probe")
    return evaluate(list(argv))


def _named(argv: Sequence[str]) -> Path | None:
    """The first argument that is a run or a checkpoint: whichever words before it are values of a family's options."""
    for argument in argv:
        if not argument.startswith("-") and Path(argument).is_dir():
            try:
                return _checkpoint(argument)
            except UserError:
                continue
    return None


def _checkpoint(path: str) -> Path:
    from frontier.train.checkpoint import find_checkpoint

    return find_checkpoint(path)


def run_parser(description: str, epilog: str) -> Parser:
    """A parser of `frontier evaluate` that takes a checkpoint."""
    parser = Parser(prog="frontier evaluate", description=description, epilog=epilog)
    text = "RUN/checkpoints/step_<n>, or RUN: its newest complete one"
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=text)
    return parser


def common_options(parser: Parser, seed_of: str = "every random choice") -> None:
    """Those that every family has."""
    add = parser.add_argument
    add("--batch", type=int, default=32, metavar="N", help="samples encoded at a time (default: 32)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:<n> (default: auto: a GPU if any)")
    add("--seed", type=int, default=0, help=f"of {seed_of} (default: 0)")
    add("--out", metavar="FILE", help="the rows as JSON (default: in RUN, replaced)")
    add("--json", action="store_true", help="print JSON instead of tables")


def check_common(args: argparse.Namespace) -> None:
    """Raises UserError."""
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: give a positive number")
    if not 0 <= args.seed < 2**31:
        raise UserError(f"--seed {args.seed}: give a number from 0 to 2147483647")


@contextmanager
def fitting(batch: int) -> Iterator[None]:
    """A UserError that names --batch where the device runs out of memory."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(f"--batch {batch} does not fit the memory of the device: give a smaller one") from None


def finite(value: Any) -> Any:
    """`value` with None for NaN and infinity, which JSON has not."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
