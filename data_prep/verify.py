"""Is a shard directory whole: sizes and hashes, and on request every sample and the statistics, read again."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.shard_file import file_sha256, stored_block, wrong_samples
from data_prep.statistics import column_statistics, merge_statistics, published_statistics
from data_prep.team import Team
from frontier.data.hdf5 import OpenShard, check_size
from frontier.data.manifest import full_statistics, load_manifest, stored_arrays
from frontier.errors import UserError


@dataclass
class _Found:
    """What looking at one shard gave: problems, and deep: the ids of its samples and its statistics by input."""

    problems: list[str] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)


def verify(
    directory: str | Path, *, deep: bool = False, workers: int = 1, team: Team | None = None
) -> tuple[list[str], int]:
    """Check every shard: size, sha256 and structure; `deep` also every sample's checksum, that no sample is in two
    splits, and the statistics, computed again. Shards are shared over the ranks of `team` and their workers.

    Returns (problems, one line each; number of shards looked at). A damaged manifest raises `UserError`.
    """
    directory = Path(directory)
    manifest = load_manifest(directory)
    look = partial(_look, directory=directory, manifest=manifest, deep=deep)
    found = (team or Team()).map(look, manifest["shards"], workers, costly=True)
    problems = [problem for one in found for problem in one.problems]
    home: dict[bytes, str] = {}
    for one, entry in zip(found, manifest["shards"], strict=True):
        for name in one.ids:
            if home.setdefault(name, entry["split"]) != entry["split"]:
                problems.append(
                    f"shard {directory / entry['file']}: sample {name.decode(errors='replace')} is also in split "
                    f"{home[name]}"
                )
    if deep and not problems:
        problems += _compare_statistics(directory, manifest, [one.statistics for one in found if one.statistics])
    return problems, len(manifest["shards"])


def _look(entry: dict[str, Any], directory: Path, manifest: dict[str, Any], deep: bool) -> _Found:
    path, out = directory / entry["file"], _Found()
    try:
        check_size(path, entry["bytes"])
        if file_sha256(path) != entry["sha256"]:
            out.problems.append(
                f"shard {path}: its sha256 is not the manifest's: run the same `frontier shards write` again"
            )
        shard = OpenShard(path, entry["samples"], stored_arrays(manifest), manifest["columns"])
    except UserError as error:
        out.problems.append(str(error))
        return out
    try:
        if deep:
            _look_deep(shard, entry, manifest, out)
    except OSError as error:
        # A filter or checksum of HDF5 refused the stored bytes.
        out.problems.append(f"shard {path}: cannot be decoded ({str(error).splitlines()[0]})")
    finally:
        shard.close()
    return out


def _look_deep(shard: OpenShard, entry: dict[str, Any], manifest: dict[str, Any], out: _Found) -> None:
    images, stored = manifest["images"], stored_arrays(manifest)
    if "crc32" in manifest["columns"]:
        wrong = wrong_samples(shard, stored)
        if len(wrong):
            out.problems.append(f"shard {shard.path}: {len(wrong)} samples are damaged, the first is number {wrong[0]}")
    if "sample_id" in manifest["columns"]:
        out.ids = shard.arrays["sample_id"][:].tolist()
    if entry["split"] != "train":
        return
    size = stored_block(stored)
    parts: dict[str, list[dict[str, Any]]] = {name: [] for name in images}
    for start in range(0, entry["samples"], size):
        block = {name: np.asarray(shard.arrays[name][start : start + size]) for name in stored}
        for name in images:
            parts[name].append(column_statistics(name, images, manifest["arrays"], block))
    out.statistics = {name: merge_statistics(parts[name], len(spec["bands"])) for name, spec in images.items()}


def _compare_statistics(directory: Path, manifest: dict[str, Any], parts: list[dict[str, dict[str, Any]]]) -> list[str]:
    problems = []
    for name, spec in manifest["images"].items():
        merged = merge_statistics([part[name] for part in parts], len(spec["bands"]))
        found, listed = published_statistics(merged, spec["dtype"]), full_statistics(spec)
        if (found is None) != (listed is None):
            problems.append(f"shards {directory}: statistics of {name!r} are missing or out of place")
        elif found is not None and listed is not None:
            for key in ("count", "mean", "std", "min", "max"):
                if not np.allclose(found[key], listed[key], rtol=1e-9, atol=1e-9):
                    problems.append(
                        f"shards {directory}: {key} of {name!r} is {listed[key]} in the manifest, {found[key]} in "
                        "the data: run the same `frontier shards write` again"
                    )
    return problems
