"""What a shard directory holds beyond its manifest: labels by split, and the extent of its samples in place and time.

Read from the per-sample columns of every shard; class maps are counted pixel by pixel up to `COUNTED_BYTES`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.shard_file import stored_block
from frontier.data.hdf5 import OpenShard, check_size
from frontier.data.manifest import stored_arrays

COUNTED_BYTES = 1 << 30
"""Label arrays of more bytes than this, over all splits, are not counted."""
CELL_DEGREES = 10
_PLACED = ("lon", "lat", "time_start", "time_end", "crs_epsg", "gsd_m")


def contents(directory: str | Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """{"targets": {target: {split: counts}}, "extent": see `extent`, "options": the plan's, or None}.

    Counts: {"labelled", "missing", "classes": [n a class]} or for numbers {…, "mean", "min", "max"}; None where there
    were too many bytes to count. Raises `UserError` where a shard is missing or malformed.
    """
    directory = Path(directory)
    stored = stored_arrays(manifest)
    counted = _countable(manifest)
    tallies: dict[str, dict[str, Any]] = {name: {} for name in manifest["targets"]}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in _PLACED if name in manifest["columns"]}
    for entry in manifest["shards"] if counted or parts else []:
        check_size(directory / entry["file"], entry["bytes"])
        shard = OpenShard(directory / entry["file"], entry["samples"], stored, manifest["columns"])
        try:
            for name, values in parts.items():
                values.append(np.array(shard.arrays[name]))
            for name, target in counted.items():
                column = shard.arrays[target["column"]]
                size = stored_block({"": stored[target["column"]]}) if target["column"] in stored else len(column)
                for start in range(0, len(column), size):
                    fresh = _count(np.asarray(column[start : start + size]), target)
                    tallies[name][entry["split"]] = _add(tallies[name].get(entry["split"]), fresh)
        finally:
            shard.close()
    targets = {
        name: {
            split: _finish(tallies[name].get(split), manifest["targets"][name]) if name in counted else None
            for split in manifest["splits"]
        }
        for name in manifest["targets"]
    }
    found = {name: np.concatenate(values) for name, values in parts.items() if values}
    return {"targets": targets, "extent": extent(found, manifest["samples"]), "options": _options(directory, manifest)}


def _countable(manifest: dict[str, Any]) -> dict[str, Any]:
    """The targets whose columns are small enough to be read through."""
    out = {}
    for name, target in manifest["targets"].items():
        spec = stored_arrays(manifest).get(target["column"])
        if spec is None and target["column"] not in manifest["columns"]:
            continue
        places = 1 if spec is None else int(np.prod(spec["shape"]))
        if target["kind"] == "multilabel" and places != len(target["classes"]):
            continue
        one = 0 if spec is None else places * np.dtype(spec["dtype"]).itemsize
        if one * manifest["samples"] <= COUNTED_BYTES:
            out[name] = target
    return out


def _count(values: np.ndarray, target: dict[str, Any]) -> dict[str, Any]:
    """Labels of some samples: counts that `_add` joins."""
    absent = np.zeros(values.shape, bool)
    if values.dtype.kind == "f":
        absent |= ~np.isfinite(values)
    if isinstance(target["missing"], int | float):
        absent |= values == target["missing"]
    out: dict[str, Any] = {"labelled": int(values.size - absent.sum()), "missing": int(absent.sum())}
    if target["kind"] == "regression":
        there = values[~absent].astype(np.float64)
        low, high = (float(there.min()), float(there.max())) if there.size else (np.inf, -np.inf)
        return out | {"sum": float(there.sum()), "min": low, "max": high}
    classes = len(target["classes"])
    if target["kind"] == "multilabel":
        # One column a class: how many samples have it.
        have = ((values != 0) & ~absent).reshape(len(values), -1).sum(axis=0)
        return out | {"counts": have.astype(np.int64)}
    there = values[~absent].astype(np.int64)
    inside = there[(there >= 0) & (there < classes)]
    return out | {"counts": np.bincount(inside, minlength=classes)}


def _add(old: dict[str, Any] | None, fresh: dict[str, Any]) -> dict[str, Any]:
    if old is None:
        return fresh
    join = {"min": min, "max": max}
    return {key: join.get(key, lambda a, b: a + b)(old[key], value) for key, value in fresh.items()}


def _finish(tally: dict[str, Any] | None, target: dict[str, Any]) -> dict[str, Any] | None:
    if tally is None:
        return None
    out = {"labelled": tally["labelled"], "missing": tally["missing"]}
    if target["kind"] != "regression":
        return out | {"classes": tally["counts"].tolist()}
    if not tally["labelled"]:
        return out | {"mean": None, "min": None, "max": None}
    return out | {"mean": tally["sum"] / tally["labelled"], "min": tally["min"], "max": tally["max"]}


def extent(columns: dict[str, np.ndarray], samples: int) -> dict[str, Any]:
    """Where and when the samples are, from the columns lon, lat, time_start, time_end, crs_epsg and gsd_m.

    {"samples", "placed", "box": {"west", "south", "east", "north"} of the centres in degrees (east < west where it
    crosses the antimeridian), "cells": {"degrees", "occupied", "largest_share"}, "dated", "time": {"start", "end"} in
    UTC, "crs_epsg": {code: samples}, "gsd_m": {"min", "max"}}; what no column tells is None, with 0 samples.
    """
    out: dict[str, Any] = {"samples": samples, "placed": 0, "box": None, "cells": None, "dated": 0, "time": None}
    out |= {"crs_epsg": None, "gsd_m": None}
    if {"lon", "lat"} <= columns.keys():
        lon, lat = columns["lon"].astype(np.float64), columns["lat"].astype(np.float64)
        there = np.isfinite(lon) & np.isfinite(lat) & (np.abs(lat) <= 90)
        lon, lat = (lon[there] + 180) % 360 - 180, lat[there]
        out["placed"] = int(there.sum())
        if len(lon):
            west, east = _longitudes(lon)
            south, north = float(lat.min()), float(lat.max())
            box = {"west": west, "south": south, "east": east, "north": north}
            out["box"] = {key: round(value, 6) for key, value in box.items()}
            cells = np.stack([lon, lat], 1) // CELL_DEGREES
            _, counts = np.unique(cells, axis=0, return_counts=True)
            share = round(float(counts.max()) / len(lon), 4)
            out["cells"] = {"degrees": CELL_DEGREES, "occupied": len(counts), "largest_share": share}
    if "time_start" in columns or "time_end" in columns:
        start = columns.get("time_start", columns.get("time_end"))
        end = columns.get("time_end", start)
        assert start is not None and end is not None
        known = start != 0  # 0 marks a time that is not known
        out["dated"] = int(known.sum())
        if known.any():
            last = max(int(end[known].max()), int(start[known].max()))
            out["time"] = {"start": _utc(int(start[known].min())), "end": _utc(last)}
    if "crs_epsg" in columns:
        codes, counts = np.unique(columns["crs_epsg"], return_counts=True)
        known_codes = {str(code): n for code, n in zip(codes.tolist(), counts.tolist(), strict=True) if code > 0}
        out["crs_epsg"] = known_codes or None
    if "gsd_m" in columns:
        sizes = columns["gsd_m"][np.isfinite(columns["gsd_m"]) & (columns["gsd_m"] > 0)]
        if len(sizes):
            out["gsd_m"] = {"min": round(float(sizes.min()), 6), "max": round(float(sizes.max()), 6)}
    return out


def spread(cells: dict[str, Any]) -> str:
    """How evenly the samples lie over the Earth, in words; `cells` as in `extent`."""
    return (
        f"{cells['occupied']} cells of {cells['degrees']} x {cells['degrees']} degrees hold samples, the fullest of them "
        f"{cells['largest_share']:.1%}"
    )


def _longitudes(lon: np.ndarray) -> tuple[float, float]:
    """(west, east) of longitudes in [-180, 180): across the antimeridian where only that way is under half the globe."""
    around = np.unique(lon)
    west, east = float(around[0]), float(around[-1])
    if east - west > 180:
        gaps = np.diff(around)
        widest = int(gaps.argmax())
        if 360 - float(gaps[widest]) < 180:
            return float(around[widest + 1]), float(around[widest])
    return west, east


def _utc(seconds: int) -> str:
    return f"{np.datetime64(seconds, 's')}Z"


def _options(directory: Path, manifest: dict[str, Any]) -> dict[str, Any] | None:
    """The options of the plan: from the manifest, or from the plan that lies beside it."""
    if isinstance(manifest.get("options"), dict):
        return dict(manifest["options"])
    try:
        plan = json.loads((directory / "plan.json").read_bytes())
        if plan["fingerprint"] == manifest["plan"]:
            return dict(plan["options"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None
