"""Is a shard directory whole: sizes and hashes, and on request every sample and the statistics, read again."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.plan import content_fingerprint, ids_sha256
from data_prep.shard_file import file_sha256, stored_block, wrong_samples
from data_prep.statistics import column_statistics, merge_statistics, published_statistics
from data_prep.team import Team
from frontier.data.hdf5 import OpenShard, check_size
from frontier.data.manifest import full_statistics, load_manifest, stored_arrays
from frontier.errors import UserError

PLAN = "plan.json"
_AGAIN = "run the same `frontier shards write` again"


@dataclass
class _Found:
    """What looking at one shard gave: problems, and deep: the ids of its samples and its statistics by input."""

    problems: list[str] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)


def verify(
    directory: str | Path, *, deep: bool = False, workers: int = 1, team: Team | None = None
) -> tuple[list[str], int]:
    """Check every shard: size, sha256 and structure, and the manifest against its fingerprint and the plan beside it;
    `deep` also every sample's checksum, that each shard holds the samples planned and none is in two splits, and the
    statistics, computed again. Shards are shared over the ranks of `team` and their workers.

    Returns (problems, one line each; number of shards looked at). A damaged manifest raises `UserError`.
    """
    directory = Path(directory)
    manifest = load_manifest(directory)
    look = partial(_look, directory=directory, manifest=manifest, deep=deep)
    found = (team or Team()).map(look, manifest["shards"], workers, costly=True)
    problems = [problem for one in found for problem in one.problems]
    planned, wrong = _compare_plan(directory, manifest)
    problems += wrong
    home: dict[bytes, str] = {}
    for one, entry in zip(found, manifest["shards"], strict=True):
        if one.ids and planned and planned.get(entry["file"]) not in (None, ids_sha256(one.ids)):
            problems.append(
                f"shard {directory / entry['file']}: does not hold the samples that the plan gives it: {_AGAIN}"
            )
        for name in one.ids:
            if home.setdefault(name, entry["split"]) != entry["split"]:
                problems.append(
                    f"shard {directory / entry['file']}: sample {name.decode(errors='replace')} is also in split "
                    f"{home[name]}"
                )
    if deep and not problems:
        problems += _compare_statistics(directory, manifest, [one.statistics for one in found if one.statistics])
    return problems, len(manifest["shards"])


def _compare_plan(directory: Path, manifest: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """({shard: what the plan keeps of its samples}, problems): the manifest held against what it was made from.

    Without the plan, which training does not need, only its fingerprint tells. Manifests of other programs have neither.
    """
    if not isinstance(manifest.get("plan"), str):
        return {}, []
    where, problems = f"shards {directory}", []
    if content_fingerprint(manifest["plan"], manifest["shards"]) != manifest["fingerprint"]:
        problems.append(f"{where}: the manifest's fingerprint is not that of its plan and shards: {_AGAIN}")
    try:
        plan = json.loads((directory / PLAN).read_bytes())
        if plan["fingerprint"] != manifest["plan"]:
            return {}, [*problems, f"{where}: {PLAN} is of another plan than the manifest: {_AGAIN}"]
        bare = {name: {**spec, "statistics": None} for name, spec in manifest["images"].items()}
        plan["images"] = {name: {**bare.get(name, {}), **spec} for name, spec in plan["images"].items()}
        for key in ("images", "arrays", "columns", "targets", "classes"):
            if ({**manifest, "images": bare})[key] != plan.get(key, manifest[key]):
                problems.append(f"{where}: {key} in the manifest are not those of {PLAN}: {_AGAIN}")
        return {shard["file"]: shard["ids_sha256"] for shard in plan["shards"]}, problems
    except FileNotFoundError:
        return {}, problems
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, [*problems, f"{where}: {PLAN} is damaged: write the shards again, with --overwrite"]


def _look(entry: dict[str, Any], directory: Path, manifest: dict[str, Any], deep: bool) -> _Found:
    path, out = directory / entry["file"], _Found()
    try:
        check_size(path, entry["bytes"])
        if file_sha256(path) != entry["sha256"]:
            out.problems.append(f"shard {path}: its sha256 is not the manifest's: {_AGAIN}")
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
            found, listed = ({**one, **_named(one.get("percentiles"))} for one in (found, listed))
            for key in found:
                if (
                    key in listed
                    and key != "percentiles"
                    and not np.allclose(found[key], listed[key], rtol=1e-9, atol=1e-9)
                ):
                    problems.append(
                        f"shards {directory}: {key} of {name!r} is {listed[key]} in the manifest, {found[key]} in "
                        f"the data: {_AGAIN}"
                    )
    return problems


def _named(percentiles: dict[str, Any] | None) -> dict[str, Any]:
    return {f"percentile {name}": values for name, values in (percentiles or {}).items()}
