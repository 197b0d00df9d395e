"""`python -m gpna.baselines_command SHARDS --target NAME`: the baselines of one target of a shard directory, as a table."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frontier.data.manifest import nearest
from frontier.data.shards import ShardSet
from frontier.errors import EXIT_OK, UserError
from frontier.table import table
from gpna.baselines import Row, baselines, read_split


def main(words: Sequence[str] | None = None) -> int:
    """Print the table, and with --out write the rows as JSON, null for NaN. Raises `UserError`."""
    parser = argparse.ArgumentParser(prog="gpna.baselines_command", description=__doc__)
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="directory that `frontier shards write` made")
    parser.add_argument("--target", required=True, help="a target of the manifest")
    parser.add_argument("--inputs", help="comma-separated (default: all)")
    parser.add_argument(
        "--groups", metavar="COLUMN", help="resample and hold out whole groups of this column, such as sites"
    )
    parser.add_argument("--values-only", action="store_true", help="without place and time as inputs")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="of the U-Net (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the rows as JSON")
    given = parser.parse_args(words)
    inputs = None if given.inputs is None else [name.strip() for name in given.inputs.split(",") if name.strip()]
    first = ShardSet(given.shards, "train")
    targets = first.manifest["targets"]
    if given.target not in targets:
        raise UserError(f"shards {given.shards}: no target '{given.target}': {nearest(given.target, targets)}")
    splits = {
        split: read_split(
            ShardSet(given.shards, split),
            given.target,
            inputs=inputs,
            groups=given.groups,
            place_and_time=not given.values_only,
        )
        for split in ("train", "val", "test")
        if split in first.manifest["splits"]
    }
    if "test" not in splits:
        raise UserError(
            f"shards {given.shards}: no split 'test': {nearest('test', splits)}: write with --test-fraction"
        )
    rows = baselines(
        targets[given.target]["kind"],
        splits["train"],
        splits["test"],
        splits.get("val"),
        given.seed,
        task=given.target,
        device=given.device,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(as_table(rows))
    if given.out is not None:
        given.out.write_text(json.dumps(_finite(rows), indent=1, allow_nan=False) + "\n")
    return EXIT_OK


def as_table(rows: Sequence[Row]) -> str:
    """Models by metrics, each with its interval; below it, what was left out and why."""
    names = list(dict.fromkeys(name.removesuffix("_ci95") for row in rows for name in row if name.endswith("_ci95")))
    lines = [("task", "model", *names, "n_test")]
    notes = []
    for row in rows:
        if "left_out" in row:
            notes.append(f"{row['task']}: {row['model']} left out: {row['left_out']}")
            continue
        cells = [
            f"{row[name]:.3f} [{row[name + '_ci95'][0]:.3f}, {row[name + '_ci95'][1]:.3f}]" if name in row else ""
            for name in names
        ]
        lines.append((row["task"], row["model"], *cells, str(row["n_test"])))
    return "\n".join([table(lines), *notes])


def _finite(value: Any) -> Any:
    """`value` with null for NaN, which JSON has not."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"gpna.baselines_command: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
