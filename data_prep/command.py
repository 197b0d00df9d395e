"""`frontier shards write|repack|readers|verify|stats|info|bench|card`: the command line of data preparation."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_prep.plan import PlanOptions
    from data_prep.source import Source
    from data_prep.team import Team

from frontier.errors import EXIT_OK, EXIT_USER, UserError

_FOR_SCENES = {"sensors": "--sensors", "size": "--size"}
_FOR_ARCHIVES = {"reader": "--reader", "settings": "--set"} | {
    name: "--" + name.replace("_", "-")
    for name in ("image_size", "fit", "channels", "on_error", "gsd_m", "license", "citation")
}


def main(argv: list[str]) -> int:
    """Run one sub-command; returns the exit code. `UserError` is left to the caller, which prints it."""
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="frontier shards",
        description="Imagery, or generated scenes, into HDF5 shards; and what they hold.",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    _add_write(verbs)
    _add_repack(verbs)

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
    verb("stats", "per-band statistics of the train split", _stats)
    verb("info", "splits, columns, classes and sizes", _info)
    sub = verb("bench", "samples/s of reading in order: this reader, h5py, and the same bytes plainly", _bench)
    sub.add_argument("--split", default="train", help="split to read (default: %(default)s)")
    sub.add_argument("--column", help="image column to read (default: the first)")
    sub.add_argument("--block", type=int, default=64, help="samples a read (default: %(default)s)")
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


def _add_write(verbs: Any) -> None:
    sub = verbs.add_parser(
        "write",
        help="write shards, or finish an interrupted write",
        description="Write shards from an archive or from generated scenes. Run again after an interruption: only "
        "what is missing is written.",
    )
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--from", dest="path", type=Path, metavar="PATH", help="what --reader reads")
    source.add_argument("--scenes", type=int, metavar="N", help="generate N labelled multi-sensor scenes")
    sub.add_argument("out", metavar="OUT", type=Path, help="directory to write")
    sub.add_argument("--name", help="name of the data set (default: the folder's)")
    sub.add_argument("--seed", type=int, default=0, help="seed of order, splits and scenes (default: %(default)s)")
    sub.add_argument(
        "--test-fraction", type=float, help="share of every class held out (default: 0.2 with labels, else 0)"
    )
    sub.add_argument("--val-fraction", type=float, default=0.0, help="likewise for val (default: %(default)s)")
    sub.add_argument("--shard-mib", type=float, default=256, help="largest shard (default: %(default)s)")
    sub.add_argument("--samples-per-shard", type=int, help="instead of --shard-mib")
    sub.add_argument(
        "--compression",
        choices=("none", "gzip", "lzf"),
        default="none",
        help="none is fastest: memory-mapped (default: %(default)s)",
    )
    sub.add_argument("--workers", type=int, default=1, help="processes; the bytes do not depend on it")
    sub.add_argument("--overwrite", action="store_true", help="replace shards of another plan in OUT")
    sub.add_argument("--json", action="store_true", help="print the summary as JSON")
    reader = sub.add_argument_group("with --from")
    reader.add_argument(
        "--reader", metavar="NAME", help="kind of archive, see `frontier shards readers` (default: folder, of images)"
    )
    reader.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="NAME=VALUE", help="a setting of the reader"
    )
    reader.add_argument("--image-size", type=int, metavar="N", help="side in pixels (default: the images' own)")
    reader.add_argument(
        "--fit",
        choices=("resize", "crop", "resize_crop"),
        help="resize: scale both sides to N; crop: the centre at native resolution; resize_crop: scale the "
        "shorter side to N, crop the centre (default)",
    )
    reader.add_argument(
        "--channels",
        choices=("auto", "rgb", "grey"),
        help="auto (default): one band if every image is grey, else three (grey is repeated); alpha is dropped",
    )
    reader.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        help="inputs that cannot be used are listed in OUT/unreadable.tsv; stop before writing (default), or leave "
        "them out",
    )
    reader.add_argument("--gsd-m", type=float, help="ground sampling distance in metres, recorded")
    reader.add_argument("--license", help="licence of the images, recorded")
    reader.add_argument("--citation", help="how to cite the images, recorded")
    scenes = sub.add_argument_group("with --scenes")
    scenes.add_argument(
        "--sensors",
        help="comma-separated: rgb (column image), s2, s1, naip (default: rgb)",
    )
    scenes.add_argument("--size", type=int, help="side in pixels of 10 m (default: 64)")
    sub.set_defaults(run=_write, open=_source)


def _add_repack(verbs: Any) -> None:
    sub = verbs.add_parser(
        "repack",
        help="write shards again from shards, with other options",
        description="Write the samples of SHARDS to OUT with another compression, shard size, order or choice of "
        "columns. Every sample's checksum is checked; its bytes stay. Run again after an interruption.",
    )
    sub.add_argument("shards", metavar="SHARDS", type=Path, help="directory that `frontier shards write` made")
    sub.add_argument("out", metavar="OUT", type=Path, help="directory to write")
    sub.add_argument("--name", help="name of the data set (default: that of SHARDS)")
    sub.add_argument(
        "--columns", metavar="NAMES", help="comma-separated inputs and arrays to keep, masks follow (default: all)"
    )
    sub.add_argument("--seed", type=int, help="shuffle anew with this seed (default: the order stays)")
    sub.add_argument(
        "--splits",
        choices=("keep", "new"),
        default="keep",
        help="new: drawn again, copies of a sample together; what else was kept together is not known any more "
        "(default: %(default)s)",
    )
    sub.add_argument("--val-fraction", type=float, help="with --splits new (default: 0)")
    sub.add_argument("--test-fraction", type=float, help="with --splits new (default: 0)")
    sub.add_argument("--shard-mib", type=float, help="largest shard (default: that of `write`)")
    sub.add_argument("--samples-per-shard", type=int, help="instead of --shard-mib")
    sub.add_argument("--compression", choices=("none", "gzip", "lzf"), default="none", help="(default: %(default)s)")
    sub.add_argument("--workers", type=int, default=1, help="processes; the bytes do not depend on it")
    sub.add_argument("--overwrite", action="store_true", help="replace shards of another plan in OUT")
    sub.add_argument("--json", action="store_true", help="print the summary as JSON")
    sub.set_defaults(run=_write, open=_repack, dry_run=False)


def _write(arguments: argparse.Namespace) -> int:
    from data_prep.readers.registry import REPORT
    from data_prep.team import assemble
    from data_prep.writer import write

    team = assemble()
    try:
        source, options = team.lead(lambda: arguments.open(arguments, team))
        done = write(
            source,
            arguments.out,
            options,
            workers=arguments.workers,
            overwrite=arguments.overwrite,
            progress=_progress() if team.rank == 0 else None,
            team=team,
        )
    except UserError as error:
        if team.rank == 0:
            raise
        return error.exit_code  # rank 0 says it
    if team.rank:
        return EXIT_OK
    manifest = done.manifest
    size = sum(shard["bytes"] for shard in manifest["shards"])
    summary = {
        "shards": str(arguments.out),
        "samples": manifest["samples"],
        "splits": {name: split["samples"] for name, split in manifest["splits"].items()},
        "classes": len(manifest["classes"]),
        "files_written": done.shards_written,
        "files_kept": done.shards_kept,
        "bytes": size,
        "seconds": round(done.seconds, 2),
        "fingerprint": manifest["fingerprint"],
        "notes": manifest["notes"],
    }
    if arguments.json:
        print(json.dumps(summary, indent=1))
        return EXIT_OK
    splits = ", ".join(f"{name} {count:,}" for name, count in summary["splits"].items())
    skipped = manifest["notes"].get("skipped", 0) if arguments.open is _source else 0
    print(
        f"{arguments.out}: {manifest['samples']:,} samples ({splits}), {len(manifest['classes'])} classes, "
        f"{len(manifest['shards'])} shards ({done.shards_written} written, {done.shards_kept} kept), "
        f"{size / (1 << 20):,.1f} MiB in {done.seconds:.1f} s"
        + (f"; {skipped} images skipped, named in {arguments.out / REPORT}" if skipped else "")
    )
    return EXIT_OK


def _source(arguments: argparse.Namespace, team: Team) -> tuple[Source, PlanOptions]:
    """The source and the plan's options that the command line asks for."""
    from data_prep.plan import PlanOptions
    from data_prep.scenes import SceneSource
    from data_prep.writer import check_target

    check_target(arguments.out)
    other = _FOR_SCENES if arguments.path is not None else _FOR_ARCHIVES
    for name, flag in other.items():
        if getattr(arguments, name):
            raise UserError(f"{flag}: has no effect without {'--scenes' if arguments.path is not None else '--from'}")
    source: Source
    if arguments.path is not None:
        source = _archive(arguments, team)
    else:
        source = SceneSource(
            arguments.scenes,
            seed=arguments.seed,
            size=64 if arguments.size is None else arguments.size,
            sensors=[sensor.strip() for sensor in (arguments.sensors or "rgb").split(",") if sensor.strip()],
            name=arguments.name,
        )
    listing = source.listing()
    test = arguments.test_fraction
    if test is None:
        test = 0.2 if listing.classes and not any(listing.splits) else 0.0
    return source, PlanOptions(
        seed=arguments.seed,
        val_fraction=arguments.val_fraction,
        test_fraction=test,
        shard_bytes=int(arguments.shard_mib * (1 << 20)),
        samples_per_shard=arguments.samples_per_shard,
        compression=arguments.compression,
    )


def _archive(arguments: argparse.Namespace, team: Team) -> Source:
    """The source that `--from` and the options beside it ask for."""
    from data_prep.readers.registry import COMMON, REPORT, Request, find_reader, parse_settings

    reader = find_reader(arguments.reader or "folder")
    given = {name: getattr(arguments, name) for name in COMMON if getattr(arguments, name) is not None}
    for name in given:
        if name not in reader.uses:
            raise UserError(f"{COMMON[name]}: has no effect with reader {reader.name}: leave it out")
    return reader.open(
        Request(
            path=arguments.path,
            reader=reader,
            name=arguments.name,
            settings=parse_settings(reader, arguments.settings),
            seed=arguments.seed,
            workers=arguments.workers,
            report=arguments.out / REPORT,
            team=team,
            **given,
        )
    )


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


def _progress() -> Any:
    if not sys.stderr.isatty():
        return None
    begun = time.monotonic()

    def show(done: int, total: int, left: int) -> None:
        rate = done / max(time.monotonic() - begun, 1e-9)
        end = "\n" if left == 0 else ""
        print(
            f"\r{done:,}/{total:,} samples, {rate:,.0f}/s, {left} shards left ",
            end=end,
            file=sys.stderr,
            flush=True,
        )

    return show


def _print(arguments: argparse.Namespace, answer: Any, text: str) -> None:
    print(json.dumps(answer, indent=1) if arguments.json else text)


def _verify(arguments: argparse.Namespace) -> int:
    from data_prep.inspect import verify

    problems, checked = verify(arguments.shards, deep=arguments.deep)
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

    answer = bench(arguments.shards, arguments.split, arguments.column, arguments.block, arguments.seconds)
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


def _repack(arguments: argparse.Namespace, team: Team) -> tuple[Source, PlanOptions]:
    """The shards as a source and the plan's options that `repack` asks for."""
    from data_prep.plan import PlanOptions
    from data_prep.repack import ShardSource
    from data_prep.writer import check_target

    check_target(arguments.out)
    if arguments.out.exists() and arguments.shards.exists() and arguments.out.samefile(arguments.shards):
        raise UserError(f"{arguments.out}: is what is read: give another directory to write to")
    for flag in ("val_fraction", "test_fraction"):
        if getattr(arguments, flag) is not None and arguments.splits == "keep":
            raise UserError(f"--{flag.replace('_', '-')}: has no effect without --splits new")
    columns = None
    if arguments.columns is not None:
        columns = [name.strip() for name in arguments.columns.split(",") if name.strip()]
    source = ShardSource(
        arguments.shards,
        columns=columns,
        splits=arguments.splits,
        order="keep" if arguments.seed is None else "new",
        name=arguments.name,
    )
    default = PlanOptions()
    return source, PlanOptions(
        seed=arguments.seed or 0,
        val_fraction=arguments.val_fraction or 0.0,
        test_fraction=arguments.test_fraction or 0.0,
        shard_bytes=default.shard_bytes if arguments.shard_mib is None else int(arguments.shard_mib * (1 << 20)),
        samples_per_shard=arguments.samples_per_shard,
        compression=arguments.compression,
    )
