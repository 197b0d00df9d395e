"""Writing a SustainBench folder as its user does, and reading every sample back."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.command import main
from data_prep.readers.registry import Request, find_reader, parse_settings
from data_prep.source import Source
from data_prep.verify import verify
from frontier.data.manifest import load_manifest
from frontier.data.shards import ShardSet


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def write_shards(reader: str, folder: Path, out: Path, *settings: str, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """`frontier shards write --reader sustainbench_…`; the manifest. `UserError` where it is refused."""
    given = [word for setting in settings for word in ("--set", setting)]
    assert main(["write", "--reader", f"sustainbench_{reader}", "--from", str(folder), *given, *more, str(out)]) == 0
    assert verify(out, deep=True)[0] == []
    return load_manifest(out)


def open_source(reader: str, folder: Path, *settings: str, on_error: str = "stop") -> Source:
    """What the reader makes of the folder, nothing written. `UserError` where it is refused."""
    found = find_reader(f"sustainbench_{reader}")
    source = found.open(Request(folder, found, on_error=on_error, settings=parse_settings(found, settings)))
    # As it reaches the other ranks and the worker processes.
    return pickle.loads(pickle.dumps(source))


def read_all(out: Path) -> dict[str, dict[str, Any]]:
    """Every sample by its id: inputs, arrays, scalars, and `split`."""
    manifest = load_manifest(out)
    found: dict[str, dict[str, Any]] = {}
    for split in manifest["splits"]:
        shards = ShardSet(out, split)
        stored = {name: shards.read(name, 0, len(shards)) for name in (*manifest["images"], *manifest["arrays"])}
        stored |= {name: shards.column(name) for name in manifest["columns"]}
        for row in range(len(shards)):
            sample = {name: values[row] for name, values in stored.items()} | {"split": split}
            found[sample["sample_id"].decode()] = sample
    return found


def number(seed: int, *shape: int) -> np.ndarray:
    """Random numbers in [0, 1), float32."""
    return np.random.default_rng(seed).random(shape, np.float32)
