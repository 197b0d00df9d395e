"""`frontier export RUN|CHECKPOINT --format FORMAT --out FOLDER`: weights that others can load."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frontier.arguments import Parser
from frontier.errors import EXIT_OK, UserError

FORMATS = {
    "safetensors": "frontier.export.native",
    "hf": "frontier.export.hf",
    "timm": "frontier.export.timm",
    "croma": "scale_alibi.croma_export",
}
"""format -> module with `check(config)` and `layout(source, part)`; those of a family's own are known as strings alone"""


def _parser() -> Parser:
    parser = Parser(
        prog="frontier export",
        description="Write a checkpoint's weights for others: one file (float32), its config and a model card. "
        "The folder appears whole or not at all; the same checkpoint gives the same weights file, byte for byte.",
        epilog="formats: safetensors, for every family: names of the module, loaded by frontier.export.load_exported · "
        "hf: transformers' ViTMAEForPreTraining, for plain runs of the family mae · timm: the encoder for timm's "
        "VisionTransformer, for the family mae · croma: CROMA_like.pt in the layout of CROMA's released weights, for the first two "
        "sensors of the family scale_alibi. docs/export.md",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="RUN/checkpoints/step_<n>, or RUN: its newest complete one")
    add("--format", required=True, metavar="FORMAT", help=", ".join(FORMATS))
    add("--out", required=True, metavar="FOLDER", help="made, with its parents")
    add("--part", metavar="PART", help="encoder or all; for --format safetensors alone (default: encoder)")
    add("--force", action="store_true", help="replace FOLDER where it holds an earlier export and nothing else")
    return parser


def _format(name: str) -> Any:
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"format '{name}' does not exist, --format: {hint}there are {', '.join(FORMATS)}")
    return importlib.import_module(FORMATS[name])


def _part(given: str | None, format: str) -> str:
    from frontier.export.parts import PARTS

    if given is None:
        return "encoder"
    if given not in PARTS:
        raise UserError(f"part '{given}' does not exist, --part: there are {' and '.join(PARTS)}")
    if format != "safetensors":
        raise UserError(f"--part has no effect with --format {format}: leave it out, or use --format safetensors")
    return given


def main(argv: Sequence[str]) -> int:
    """Export, and print where to and the sha256 of the weights; returns the exit code. Raises UserError."""
    args = _parser().parse_args(argv)
    format = _format(args.format)
    part = _part(args.part, args.format)
    out = Path(args.out)
    from frontier.export.card import model_card
    from frontier.export.folder import check_target, safetensors_library, write_folder
    from frontier.export.layout import Layout, Source
    from frontier.train.checkpoint import find_checkpoint, load_model, read_record
    from frontier.train.storage import CorruptCheckpoint

    safetensors_library()
    check_target(out, args.force)
    checkpoint = find_checkpoint(args.checkpoint)
    try:
        record = read_record(checkpoint)
    except CorruptCheckpoint as error:
        raise UserError(f"{error}: use another checkpoint of the run") from None
    format.check(record["config"])
    source = Source(checkpoint, record, load_model(checkpoint)[0])
    layout: Layout = format.layout(source, part)
    digest = write_folder(
        out, layout, lambda digest: model_card(source, layout, out.resolve().name, digest), args.force
    )
    count = sum(tensor.numel() for tensor in layout.tensors.values())
    print(f"{out}: {checkpoint} as {args.format}, {layout.part}, {count:,} values in {len(layout.tensors)} tensors")
    print(f"{digest}  {out / layout.weights}")
    return EXIT_OK
