"""`frontier import CROMA.pt --data SHARDS --radar COLUMN --lores COLUMN --out FOLDER`: CROMA's weights as a checkpoint of ours."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontier.arguments import Parser
from frontier.errors import EXIT_OK, UserError

if TYPE_CHECKING:
    from scale_alibi.config import ScaleALiBiSection
    from scale_alibi.croma import Weights


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="frontier import",
        description="Make a checkpoint of the family scale_alibi from CROMA's released weights, to probe, to train on from (train.start_from) "
        "and to export. Sizes come from the file; GSD, image size and the mean and deviation of each band from SHARDS. "
        "Nothing in the file is executed.",
        epilog="FOLDER/config.yaml is a run that begins with these weights. docs/scale_alibi_croma.md",
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="CROMA_base.pt, CROMA_large.pt, or one of the same layout")
    add("--data", metavar="SHARDS", required=True, help="shards with both sensors in a row (`frontier shards write`)")
    add("--radar", metavar="COLUMN", required=True, help="Sentinel-1 images of the shards, such as s1: VV, VH")
    add(
        "--lores",
        metavar="COLUMN",
        required=True,
        help="Sentinel-2 images, such as s2: B01 to B12 and B8A, without B10",
    )
    add("--out", metavar="FOLDER", required=True, help="made, with its parents")
    add(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="of the config, such as model.position=grid, model.heads=8, model.sensors.radar.gsd_m=10, "
        "'model.sensors.radar.bands=[vv,vh]'",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Read, convert, write, and print what was made; returns the exit code. Raises UserError."""
    args = _parser().parse_intermixed_args(argv)
    import torch

    from frontier.config.load import validate
    from frontier.train.checkpoint import build_model
    from frontier.train.outside import CONFIG, check_new_folder, write_checkpoint
    from frontier.train.plan import resolve
    from scale_alibi.croma import from_released, read_croma
    from scale_alibi.model import ScaleALiBi

    path, out = Path(args.file), Path(args.out)
    check_new_folder(out)
    weights, left_out = read_croma(path)
    run = imported_run(weights, args)
    plan = resolve(validate(run), world_size=1, check_shards=False)
    module = build_model(plan.config.as_dict())
    assert isinstance(module, ScaleALiBi)
    anew = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in from_released(module.config, weights, path).items():
            anew.pop(name).copy_(value)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    write_checkpoint(out, module, plan, run, {"format": "CROMA", "file": path.name, "sha256 of the file": digest})
    if left_out:
        print(f"left out: {', '.join(left_out)}")
    parts = dict.fromkeys(".".join(name.split(".")[: 2 if name in module.encoder_names() else 1]) for name in anew)
    print(f"begins anew, as no such file has it: {', '.join(parts)}")
    print(f"{out}: weights of {path}, {sum(t.numel() for g in weights.values() for t in g.values()):,} values")
    print(f"{out / CONFIG}: a run that begins with them")
    return EXIT_OK


def imported_run(weights: Weights, args: argparse.Namespace) -> dict[str, Any]:
    """The config of a run on such weights, what normalises both sensors' bands filled in. Raises UserError."""
    from frontier.config.load import overridden, validate
    from frontier.models.registry import family
    from scale_alibi.croma import PATCH, REFERENCE_M, S1_BANDS, S2_BANDS, SAME_DISTANCES, sizes_of

    preset, width, depth = sizes_of(weights, args.file)
    sizes = {} if preset else {"width": width, "depth": depth}
    sensors: dict[str, dict[str, Any]] = {
        "radar": {"column": args.radar, "bands": list(S1_BANDS)},
        "lores": {"column": args.lores, "bands": list(S2_BANDS)},
    }
    model = {
        "family": "scale_alibi",
        "preset": preset or "scale_alibi_base",
        **sizes,
        "patch": PATCH,
        "sensors": sensors,
    }
    train: dict[str, Any] = {"epochs": 1, "global_batch": 2, "start_from": str(Path(args.out).resolve())}
    run: dict[str, Any] = {
        "run": {"dir": f"{args.out}_run"},
        "model": model,
        "data": {"shards": args.data},
        "train": train,
    }
    run = overridden(run, args.overrides, "the imported run")
    section = validate(run).model
    if section.position not in SAME_DISTANCES:
        raise UserError(f"model.position={section.position}: CROMA's weights go with {' or '.join(SAME_DISTANCES)}")
    _check_kept(run["model"], section, model)
    if preset is None and section.heads is None:
        raise UserError(
            f"{args.file}: width {width} with {depth} blocks is no size of CROMA's: say its heads by model.heads=N"
        )
    model, sensors = run["model"], run["model"]["sensors"]
    if section.position == "ground":
        model.setdefault("reference_m", REFERENCE_M)
    config = validate(run)
    feed = family("scale_alibi").feed(config, False, None)
    for name in ("radar", "lores"):
        found, given = feed.model.sensors[name], config.model.sensors[name]
        if (given.mean is None) != (given.std is None):
            one, other = ("std", "mean") if given.mean is None else ("mean", "std")
            raise UserError(f"model.sensors.{name}.{one} without {other}: give both, or neither")
        # CROMA was trained on images whose range of mean +- 2 std had become 0 to 1.
        if given.mean is None:
            sensors[name]["mean"] = [float(f"{m - 2 * s:.7g}") for m, s in zip(found.mean, found.std, strict=True)]
            sensors[name]["std"] = [float(f"{4 * s:.7g}") for s in found.std]
    if "global_batch" not in overridden({}, args.overrides, "the overrides").get("train", {}):
        run["train"]["global_batch"] = min(64, len(feed.streams[0].shards))
    return run


def _check_kept(given: Mapping[str, Any], section: ScaleALiBiSection, own: Mapping[str, Any]) -> None:
    """Raises UserError where overrides change what the file says: sizes and bands of its two encoders, their order, parts of the model."""
    wrong = [
        f"model.{key}={given[key]}" for key in ("preset", "width", "depth", "patch") if given.get(key) != own.get(key)
    ]
    wrong += [f"model.weights.{name}=0" for name, weight in section.weights if not weight]
    if list(section.sensors)[:2] != ["radar", "lores"]:
        wrong.append(f"model.chain={','.join(section.sensors)}")
    for name, bands in (("radar", own["sensors"]["radar"]["bands"]), ("lores", own["sensors"]["lores"]["bands"])):
        sensor = section.sensors[name]
        if sensor.depth is not None:
            wrong.append(f"model.sensors.{name}.depth={sensor.depth}")
        if sensor.bands is None or len(sensor.bands) != len(bands):
            wrong.append(f"model.sensors.{name}.bands (not {len(bands)} of them)")
    if wrong:
        raise UserError(f"{wrong[0]} does not go with CROMA's weights: leave it out")
