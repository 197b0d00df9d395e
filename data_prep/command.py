"""`frontier shards write|repack|readers|verify|stats|info|bench|card`: the command line of data preparation."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from data_prep.write_command import add_repack, add_write
from frontier.arguments import Parser
from frontier.errors import EXIT_OK, EXIT_USER, UserError


def main(argv: list[str]) -> int:
    """Run one sub-command; returns the exit code. `UserError` is left to the caller, which prints it."""
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="frontier shards",
        description="Imagery, or generated scenes, into HDF5 shards; and what they hold.",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    add_write(verbs)
    add_repack(verbs)

    def verb(name: str, text: str, run: Any) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.add_argument("shards", metavar="SHARDS", type=Path, help="directory that `frontier shards write` made")
        sub.add_argument("--json", action="store_true", help="print the answer as JSON")
        sub.set_defaults(run=run)
        return sub

    sub = verb("verify", "check every shard's size and sha256 against the manifest", _verify)
    sub.add_argument(
        "--deep", action="store_true", help="also check every sample's checksum and recompute the statistics"
    )
    sub.add_argument("--workers", type=int, default=1, help="processes; under mpiexec on every rank")
    verb("stats", "per-band statistics of the train split", _stats)
    verb("info", "splits, columns, classes and sizes", _info)
    sub = verb("bench", "samples/s of reading in order: this reader, h5py, and the same bytes plainly", _bench)
    sub.add_argument("--split", default="train", help="split to read (default: %(default)s)")
    sub.add_argument("--column", help="image column to read (default: the first)")
    sub.add_argument("--block", type=int, default=64, help="samples a read (default: %(default)s)")
    sub.add_argument("--need", type=float, help="samples/s that the model eats: the data supply ratio is printed too")
    sub.add_argument("--seconds", type=float, default=1.0, help="time for each reader (default: %(default)s)")
    sub = verbs.add_parser("readers", help="the kinds of archive that `write --from` reads", description="Readers.")
    sub.add_argument("name", nargs="?", metavar="NAME", help="one reader: its layout, settings, licence and citation")
    sub.add_argument("--json", action="store_true", help="print the answer as JSON")
    sub.set_defaults(run=_readers)
    sub = verb("card", "the dataset card; `write` leaves it in SHARDS as README.md and croissant.json", _card)
    sub.add_argument("--output", metavar="FILE", type=Path, help="file to write (default: the terminal)")
    sub.add_argument(
        "--format",
        choices=("markdown", "croissant"),
        default="markdown",
        help="croissant: GeoCroissant 1.0 metadata, JSON-LD (default: %(default)s)",
    )
    return parser


def _readers(arguments: argparse.Namespace) -> int:
    from data_prep.readers.registry import COMMON, all_readers, find_reader

    if arguments.name is None:
        found = all_readers()
        width = max(len(reader.name) for reader in found)
        _print(
            arguments,
            [reader.as_dict() for reader in found],
            "\n".join(f"{reader.name:<{width}}  {reader.summary}" for reader in found),
        )
        return EXIT_OK
    reader = find_reader(arguments.name)
    lines = [f"{reader.name}: {reader.summary}", f"expects: {reader.expects}"]
    lines += [
        f"{what}: {text}"
        for what, text in (
            ("homepage", reader.homepage),
            ("licence", reader.license),
            ("citation", reader.citation),
            ("options", ", ".join(sorted(COMMON[name] for name in reader.uses))),
        )
        if text
    ]
    for name, setting in reader.settings.items():
        default = "must be given" if setting.default is None else f"default: {setting.default or 'none'}"
        choices = f", one of {', '.join(setting.choices)}" if setting.choices else ""
        lines.append(f"--set {name}=…: {setting.help} ({default}{choices})")
    _print(arguments, reader.as_dict(), "\n".join(lines))
    return EXIT_OK


def _print(arguments: argparse.Namespace, answer: Any, text: str) -> None:
    print(json.dumps(answer, indent=1) if arguments.json else text)


def _verify(arguments: argparse.Namespace) -> int:
    from data_prep.team import assemble
    from data_prep.verify import verify

    if arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers}: give 1 or more")
    team = assemble()
    try:
        problems, checked = team.lead(
            lambda: verify(arguments.shards, deep=arguments.deep, workers=arguments.workers, team=team)
        )
    except UserError as error:
        if team.rank == 0:
            raise
        return error.exit_code  # rank 0 says it
    if team.rank:
        return EXIT_USER if problems else EXIT_OK
    lines = problems or [f"{arguments.shards}: {checked} shards are whole" + (", deep" if arguments.deep else "")]
    _print(arguments, {"ok": not problems, "shards": checked, "problems": problems}, "\n".join(lines))
    return EXIT_USER if problems else EXIT_OK


def _stats(arguments: argparse.Namespace) -> int:
    from data_prep.inspect import statistics_table
    from frontier.data.manifest import load_manifest

    manifest = load_manifest(arguments.shards)
    answer = {name: spec.get("statistics") for name, spec in manifest["images"].items()}
    _print(arguments, answer, statistics_table(manifest))
    return EXIT_OK


def _info(arguments: argparse.Namespace) -> int:
    from data_prep.inspect import info, info_text

    answer = info(arguments.shards)
    _print(arguments, answer, info_text(answer))
    return EXIT_OK


def _bench(arguments: argparse.Namespace) -> int:
    from data_prep.bench import bench, bench_text

    if arguments.need is not None and arguments.need <= 0:
        raise UserError(f"--need {arguments.need:g}: give samples/s above 0")
    answer = bench(arguments.shards, arguments.split, arguments.column, arguments.block, arguments.seconds)
    answer["need_samples_per_s"] = arguments.need
    supply = answer["readers"]["shards"]["samples_per_s"]
    answer["data_supply_ratio"] = supply / arguments.need if arguments.need else None
    _print(arguments, answer, bench_text(answer))
    return EXIT_OK


def _card(arguments: argparse.Namespace) -> int:
    from data_prep.card import card_texts, write_text

    markdown, document = card_texts(arguments.shards)
    text = markdown if arguments.format == "markdown" else document
    if arguments.output is not None:
        try:
            write_text(arguments.output, text)
        except OSError as error:
            raise UserError(f"--output {arguments.output}: cannot be written ({error.strerror})") from None
        print(f"{arguments.output}: written")
    elif arguments.json and arguments.format == "markdown":
        print(json.dumps({"card": text}, indent=1))
    else:
        print(text, end="")
    return EXIT_OK
