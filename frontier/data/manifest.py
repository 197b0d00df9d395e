"""The manifest of a shard directory: its schema, and reading it with errors that name the mend.

A shard directory holds `manifest.json` and HDF5 files of fixed-shape samples. The manifest is written last,
atomically, so a directory with a manifest is complete. Schema `frontier-shards/1`:

```
schema       "frontier-shards/1"
name         str
samples      int, over all splits
fingerprint  sha256 of the plan and of every shard's sha256: equal fingerprints mean equal bytes
splits       {split: {"samples": int, "shards": [file, ...]}}          global order = this order of files
shards       [{"file", "split", "samples", "bytes", "sha256"}]         file: relative path with "/"
images       {column: {"shape": [C, H, W], "axes": "CHW" (TCHW, TC, …: one letter an axis), "dtype", "layout",
                       "bands": [{"name", "centre_nm", "width_nm"}], "gsd_m", "nodata", "units", "sensor",
                       "scale", "offset",                              physical = stored * scale + offset
                       "mask": array column that marks what is there (1) and what is missing (0), or null,
                       "statistics": {"count", "mean", "std", "min", "max", "percentiles": {"1", …}}}}
                                                                       by band, of the train split, as stored
arrays       {column: {"shape", "axes", "dtype", "layout", "role": mask | target | other, "names", "units"}}
columns      {column: numpy dtype name}                                 one value a sample
targets      {name: {"kind", "column", "classes", "units", "missing", "metric"}}   tasks the samples are labelled for
classes      [name, ...]; the column `label` indexes it, -1 = no label
license, citation, created_by
```
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from frontier.data.manifest_parts import wrong_parts
from frontier.errors import UserError

KIND = "frontier-shards"
VERSION = 1
SCHEMA = f"{KIND}/{VERSION}"
MANIFEST = "manifest.json"

_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "samples": int,
    "fingerprint": str,
    "splits": dict,
    "shards": list,
    "images": dict,
    "columns": dict,
    "classes": list,
}
_SHARD_KEYS: dict[str, type] = {"file": str, "split": str, "samples": int, "bytes": int, "sha256": str}


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names as text, the nearest to `name` first: for the end of an error message."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=len(names) or 1, cutoff=0.5)
    ordered = close + [other for other in names if other not in close]
    if not ordered:
        return "there are none"
    shown = ", ".join(ordered[:12]) + (f" and {len(ordered) - 12} more" if len(ordered) > 12 else "")
    return f"did you mean {close[0]}? there are: {shown}" if close else f"there are: {shown}"


def load_manifest(directory: str | Path) -> dict[str, Any]:
    """Read and check `directory/manifest.json`; no shard is touched.

    Raises `UserError` where it is missing, is not JSON, is of another kind or version, or contradicts itself.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    if not directory.is_dir():
        state = "is a file, not a directory" if directory.exists() else "does not exist"
        raise UserError(f"shards {directory}: {state}: give the directory that `frontier shards write` made")
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        started = (directory / "plan.json").exists()
        mend = (
            "writing did not finish: run the same `frontier shards write` again to complete it"
            if started
            else "make one with `frontier shards write --from FOLDER OUT`"
        )
        raise UserError(f"shards {directory}: no {MANIFEST}: {mend}") from None
    except OSError as error:
        raise UserError(f"shards {path}: cannot be read ({error.strerror}): mend the access rights") from None
    try:
        manifest = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(
            f"shards {path}: not valid JSON ({error}): run `frontier shards write` again to rewrite it"
        ) from None
    _check(manifest, path)
    return manifest


def split_to_show(directory: str | Path) -> str:
    """The split that stands for unseen samples: test, else val, else train. Raises UserError where none holds a sample."""
    splits = load_manifest(directory)["splits"]
    for split in ("test", "val", "train"):
        if splits.get(split, {}).get("samples"):
            return split
    raise UserError(f"shards {directory}: no split holds a sample")


def _complete(manifest: dict[str, Any]) -> None:
    """Fill in what a manifest may leave out: arrays, targets, and for images axes CHW and no mask."""
    for key in ("arrays", "targets"):
        manifest.setdefault(key, {})
    for spec in manifest["images"].values():
        if isinstance(spec, dict):
            for key, value in (("axes", "CHW"), ("mask", None), ("nodata", None)):
                spec.setdefault(key, value)


def _check(manifest: Any, path: Path) -> None:
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), str):
        raise UserError(f"shards {path}: no schema, so not a shard manifest: expected {SCHEMA!r}")
    kind, _, version = manifest["schema"].partition("/")
    if kind != KIND:
        raise UserError(
            f"shards {path}: schema {manifest['schema']!r} is of another kind: expected {SCHEMA!r}; give a "
            "directory that `frontier shards write` made"
        )
    if version != str(VERSION):
        raise UserError(
            f"shards {path}: schema {manifest['schema']!r}, this release reads {SCHEMA!r}: write the shards "
            "again with this release, or use the release that wrote them"
        )
    for key, kinds in _REQUIRED.items():
        if not isinstance(manifest.get(key), kinds) or isinstance(manifest[key], bool):
            raise _broken(path, f"key {key!r} is missing or of the wrong type")
    total = 0
    files: dict[str, dict[str, Any]] = {}
    for shard in manifest["shards"]:
        if not isinstance(shard, dict) or any(
            not isinstance(shard.get(k), t) or isinstance(shard.get(k), bool) for k, t in _SHARD_KEYS.items()
        ):
            raise _broken(path, f"an entry of 'shards' lacks one of {', '.join(_SHARD_KEYS)}")
        name = PurePosixPath(shard["file"])
        if name.is_absolute() or ".." in name.parts or "\\" in shard["file"] or not name.parts:
            raise _broken(path, f"shard {shard['file']!r} lies outside the directory")
        if shard["samples"] < 1 or shard["file"] in files:
            raise _broken(path, f"shard {shard['file']!r} is empty or named twice")
        files[shard["file"]] = shard
        total += shard["samples"]
    if total != manifest["samples"]:
        raise _broken(path, f"'samples' is {manifest['samples']} but the shards hold {total}")
    for split, entry in manifest["splits"].items():
        listed = entry.get("shards") if isinstance(entry, dict) else None
        if not isinstance(listed, list) or any(
            not isinstance(file, str) or file not in files or files[file]["split"] != split for file in listed
        ):
            raise _broken(path, f"split {split!r} names shards that are not its own")
        if sorted(listed) != sorted(file for file, shard in files.items() if shard["split"] == split):
            raise _broken(path, f"split {split!r} does not name each of its shards once")
        count = entry.get("samples")
        if isinstance(count, bool) or count != sum(files[file]["samples"] for file in listed):
            raise _broken(path, f"split {split!r}: 'samples' is not the sum over its shards")
    astray = [file for file, shard in files.items() if shard["split"] not in manifest["splits"]]
    if astray:
        raise _broken(path, f"shard {astray[0]!r} is of no split")
    _complete(manifest)
    problem = wrong_parts(manifest)
    if problem:
        raise _broken(path, problem)


def stored_arrays(manifest: dict[str, Any]) -> dict[str, Any]:
    """Every column of more than one number a sample: inputs, then masks, targets and others."""
    return manifest["images"] | manifest["arrays"]


def band_places(spec: dict[str, Any], bands: Sequence[str], where: str) -> list[int]:
    """Where `bands` stand in an entry of `images`. Raises `UserError`, begun by `where`, for one that it has not."""
    names = [band["name"] for band in spec["bands"]]
    for band in bands:
        if band not in names:
            raise UserError(f"{where}: no band '{band}': {nearest(band, names)}")
    return [names.index(band) for band in bands]


def full_statistics(spec: dict[str, Any]) -> dict[str, Any] | None:
    """An input's statistics where all of them are there. Training needs only mean and std, so the others may lack."""
    found = spec.get("statistics") or {}
    return found if {"count", "mean", "std", "min", "max"} <= found.keys() else None


def _broken(path: Path, what: str) -> UserError:
    return UserError(f"shards {path}: {what}: the manifest was edited or damaged; write the shards again")
