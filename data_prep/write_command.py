"""`frontier shards write` and `frontier shards repack`: their options, and what they do."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.names import CODECS
from frontier.errors import EXIT_OK, EXIT_REQUEUE, UserError

if TYPE_CHECKING:
    from data_prep.plan import PlanOptions
    from data_prep.source import Source
    from data_prep.team import Team

_FOR_SCENES = {"sensors": "--sensors", "targets": "--targets"}

_FOR_ARCHIVES = {"reader": "--reader", "settings": "--set"} | {
    name: "--" + name.replace("_", "-")
    for name in ("image_size", "fit", "channels", "on_error", "gsd_m", "license", "citation")
}

_FLAGS = _FOR_SCENES | _FOR_ARCHIVES | {"size": "--size"}


def add_write(verbs: Any) -> None:
    sub = verbs.add_parser(
        "write",
        help="write shards, or finish an interrupted write",
        description="Write shards from an archive or from generated images. Run again after an interruption: only "
        "what is missing is written.",
    )
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--from", dest="path", type=Path, metavar="PATH", help="what --reader reads")
    source.add_argument("--scenes", type=int, metavar="N", help="generate N labelled multi-sensor scenes")
    source.add_argument("--fields", type=int, metavar="N", help="generate N images of fields with boundaries and areas")
    sub.add_argument("out", metavar="OUT", type=Path, help="directory to write")
    sub.add_argument("--name", help="name of the data set (default: the folder's)")
    sub.add_argument("--seed", type=int, default=0, help="seed of order, splits and scenes (default: %(default)s)")
    sub.add_argument(
        "--test-fraction", type=float, help="share of every class held out (default: 0.2 with labels, else 0)"
    )
    sub.add_argument("--val-fraction", type=float, default=0.0, help="likewise for val (default: %(default)s)")
    sub.add_argument(
        "--split-by",
        choices=("class", "place"),
        default="class",
        help="class: a share of every class; place: whole blocks of ground, so that test is not next door to train "
        "(default: %(default)s)",
    )
    sub.add_argument("--block-km", type=float, help="side of a block with --split-by place (default: 20)")
    sub.add_argument(
        "--gap-km", type=float, default=0.0, help="leave out training samples nearer than this to one held out"
    )
    sub.add_argument(
        "--order",
        choices=("random", "place"),
        default="random",
        help="of the samples in the shards; place: along a curve over the ground (default: %(default)s)",
    )
    sub.add_argument("--shard-mib", type=float, help="largest shard (default: 1024)")
    sub.add_argument("--samples-per-shard", type=int, help="instead of --shard-mib")
    sub.add_argument(
        "--compression",
        choices=(*CODECS, "auto"),
        default="none",
        help="none: contiguous, memory-mapped; auto: measures all of them on this data and disk, and keeps to its "
        "choice (default: %(default)s)",
    )
    sub.add_argument(
        "--disk-mib-s", type=float, help="with auto: what one rank reads from the disk (default: measured in OUT)"
    )
    sub.add_argument("--dry-run", action="store_true", help="print the plan, write nothing")
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
    scenes = sub.add_argument_group("with --scenes or --fields")
    scenes.add_argument(
        "--sensors",
        help="of scenes, comma-separated: rgb (column image), s2, s1, naip (2.5 m), naip_5m (default: rgb)",
    )
    scenes.add_argument(
        "--targets", action="store_true", help="of scenes: also the land use of every pixel, to segment"
    )
    scenes.add_argument("--size", type=int, help="side in pixels of 10 m (default: scenes 64, fields 224)")
    sub.set_defaults(run=_write, open=_source)


def add_repack(verbs: Any) -> None:
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
    sub.add_argument(
        "--compression", choices=(*CODECS, "auto"), default="none", help="as for write (default: %(default)s)"
    )
    sub.add_argument("--disk-mib-s", type=float, help="with auto, as for write")
    sub.add_argument("--dry-run", action="store_true", help="print the plan, write nothing")
    sub.add_argument("--workers", type=int, default=1, help="processes; the bytes do not depend on it")
    sub.add_argument("--overwrite", action="store_true", help="replace shards of another plan in OUT")
    sub.add_argument("--json", action="store_true", help="print the summary as JSON")
    sub.set_defaults(run=_write, open=_repack)


def _write(arguments: argparse.Namespace) -> int:
    from data_prep.readers.registry import REPORT
    from data_prep.team import assemble
    from data_prep.writer import write

    team = assemble()
    try:
        with _until_asked_to_stop(team):
            source, options = team.lead(lambda: arguments.open(arguments, team))
            if arguments.dry_run:
                return _dry_run(arguments, source, options) if team.rank == 0 else EXIT_OK
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


@contextmanager
def _until_asked_to_stop(team: Team) -> Iterator[None]:
    """SIGUSR1 ends the process at once with 85: what is whole stays, and the same call goes on. MPICH (5.0) swallows the signal."""

    def leave(number: int, frame: object) -> None:
        if team.rank == 0:
            print("stopped by SIGUSR1: the same command goes on", file=sys.stderr, flush=True)
        os._exit(EXIT_REQUEUE)  # no goodbye of MPI: the other ranks are leaving too

    before = signal.signal(signal.SIGUSR1, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def _source(arguments: argparse.Namespace, team: Team) -> tuple[Source, PlanOptions]:
    """The source and the plan's options that the command line asks for."""
    from data_prep.fields import FieldSource
    from data_prep.plan import PlanOptions
    from data_prep.scenes import SceneSource
    from data_prep.writer import check_target

    check_target(arguments.out)
    _check_numbers(arguments)
    for flag, value in (("--block-km", arguments.block_km), ("--gsd-m", arguments.gsd_m)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{flag} {value:g}: give a size above 0")
    if not 0 <= arguments.gap_km < math.inf:
        raise UserError(f"--gap-km {arguments.gap_km:g}: give a distance of 0 or more")
    if arguments.block_km is not None and arguments.split_by != "place":
        raise UserError("--block-km: has no effect without --split-by place")
    other = {} if arguments.path is not None else dict.fromkeys(_FOR_ARCHIVES, "--from")
    other |= {} if arguments.scenes is not None else dict.fromkeys(_FOR_SCENES, "--scenes")
    other |= {} if arguments.path is None else {"size": "--scenes or --fields"}
    for name, needed in other.items():
        if getattr(arguments, name):
            raise UserError(f"{_FLAGS[name]}: has no effect without {needed}")
    source: Source
    if arguments.path is not None:
        source = _archive(arguments, team)
    elif arguments.fields is not None:
        size = 224 if arguments.size is None else arguments.size
        source = FieldSource(arguments.fields, seed=arguments.seed, size=size, name=arguments.name)
    else:
        source = SceneSource(
            arguments.scenes,
            seed=arguments.seed,
            size=64 if arguments.size is None else arguments.size,
            sensors=[sensor.strip() for sensor in (arguments.sensors or "rgb").split(",") if sensor.strip()],
            targets=arguments.targets,
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
        split_by=arguments.split_by,
        block_km=20.0 if arguments.block_km is None else arguments.block_km,
        gap_km=arguments.gap_km,
        order=arguments.order,
        shard_bytes=_shard_bytes(arguments),
        samples_per_shard=arguments.samples_per_shard,
        compression=arguments.compression,
        disk_mib_s=arguments.disk_mib_s,
    )


def _dry_run(arguments: argparse.Namespace, source: Source, options: PlanOptions) -> int:
    """What a write would make, without a byte written to OUT (with `--compression auto`: but for a probe of the disk)."""
    from data_prep.plan import make_plan
    from data_prep.writer import resolve_codec
    from frontier.table import table

    options, measured = resolve_codec(source, arguments.out, options)
    plan = make_plan(source, options)
    splits: dict[str, list[int]] = {}
    for shard in plan.shards:
        splits.setdefault(shard.split, []).append(len(shard.rows))
    answer: dict[str, Any] = {
        "fingerprint": plan.fingerprint,
        "samples": plan.samples,
        "sample_bytes": source.sample_bytes,
        "bytes_uncompressed": plan.samples * source.sample_bytes,
        "splits": {
            name: {"samples": sum(counts), "shards": len(counts), "largest_shard": max(counts)}
            for name, counts in splits.items()
        },
        "split_check": plan.split_check,
        "compression": options.compression,
        "codec_measured": measured,
        "notes": plan.listing.notes,
    }
    rows = [("split", "samples", "shards", "largest shard")]
    rows += [(n, f"{s['samples']:,}", str(s["shards"]), f"{s['largest_shard']:,}") for n, s in answer["splits"].items()]
    text = [
        f"{arguments.out}: would hold {plan.samples:,} samples of {source.sample_bytes:,} bytes, "
        f"{answer['bytes_uncompressed'] / (1 << 20):,.1f} MiB uncompressed; nothing written",
        "",
        table(rows),
    ]
    for pair, found in plan.split_check.get("distances", {}).items():
        text.append(f"{pair}: nearest {found['nearest_km']:g} km, median nearest {found['median_nearest_km']:g} km")
    if measured:
        keys = ("codec", "ratio", "write_mib_s", "decode_mib_s", "loader_mib_s")
        text += ["", table([keys, *(tuple(str(row[key]) for key in keys) for row in measured)])]
    print(json.dumps(answer, indent=1) if arguments.json else "\n".join(text))
    return EXIT_OK


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
            report=None if arguments.dry_run else arguments.out / REPORT,
            team=team,
            **given,
        )
    )


def _repack(arguments: argparse.Namespace, team: Team) -> tuple[Source, PlanOptions]:
    """The shards as a source and the plan's options that `repack` asks for."""
    from data_prep.plan import PlanOptions
    from data_prep.repack import ShardSource
    from data_prep.writer import check_target

    check_target(arguments.out)
    if arguments.out.exists() and arguments.shards.exists() and arguments.out.samefile(arguments.shards):
        raise UserError(f"{arguments.out}: is what is read: give another directory to write to")
    _check_numbers(arguments)
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
    return source, PlanOptions(
        seed=arguments.seed or 0,
        val_fraction=arguments.val_fraction or 0.0,
        test_fraction=arguments.test_fraction or 0.0,
        shard_bytes=_shard_bytes(arguments),
        samples_per_shard=arguments.samples_per_shard,
        compression=arguments.compression,
        disk_mib_s=arguments.disk_mib_s,
    )


def _check_numbers(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for numbers that `write` and `repack` cannot use, or that would have no effect."""
    if arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers}: give 1 or more")
    if arguments.shard_mib is not None:
        if not 0 < arguments.shard_mib < math.inf:
            raise UserError(f"--shard-mib {arguments.shard_mib:g}: give a size above 0")
        if arguments.samples_per_shard is not None:
            raise UserError("--shard-mib: has no effect with --samples-per-shard: give one of them")
    if arguments.disk_mib_s is not None:
        if arguments.compression != "auto":
            raise UserError("--disk-mib-s: has no effect without --compression auto")
        if not 0 < arguments.disk_mib_s < math.inf:
            raise UserError(f"--disk-mib-s {arguments.disk_mib_s:g}: give a rate above 0")


def _shard_bytes(arguments: argparse.Namespace) -> int:
    from data_prep.plan import PlanOptions

    return PlanOptions().shard_bytes if arguments.shard_mib is None else max(1, int(arguments.shard_mib * (1 << 20)))


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
