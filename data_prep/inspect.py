"""Answers about a shard directory: is it whole, and what does it hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data_prep.contents import contents
from frontier.data.manifest import full_statistics, load_manifest
from frontier.data.shards import ShardSet
from frontier.table import table


def info(directory: str | Path) -> dict[str, Any]:
    """What `frontier shards info --json` prints: the manifest in short, with label counts of every split
    and the samples' extent."""
    manifest = load_manifest(directory)
    found_there = contents(directory, manifest)
    splits: dict[str, Any] = {}
    for name, entry in manifest["splits"].items():
        found: dict[str, Any] = {"samples": entry["samples"], "shards": len(entry["shards"])}
        if manifest["classes"] and "label" in manifest["columns"]:
            labels = ShardSet(directory, name).column("label")
            inside = labels[(labels >= 0) & (labels < len(manifest["classes"]))]
            counts = np.bincount(inside, minlength=len(manifest["classes"]))
            found["labels"] = dict(zip(manifest["classes"], counts.tolist(), strict=True))
        splits[name] = found
    return {
        "name": manifest["name"],
        "path": str(directory),
        "schema": manifest["schema"],
        "fingerprint": manifest["fingerprint"],
        "samples": manifest["samples"],
        "bytes": sum(shard["bytes"] for shard in manifest["shards"]),
        "splits": splits,
        "images": {
            name: {key: spec.get(key) for key in ("shape", "dtype", "layout", "gsd_m", "units", "nodata")}
            | {key: spec.get(key) for key in ("axes", "mask", "sensor", "scale", "offset", "filters")}
            | {"bands": [band["name"] for band in spec["bands"]]}
            for name, spec in manifest["images"].items()
        },
        "arrays": {
            name: {key: spec.get(key) for key in ("shape", "axes", "dtype", "layout", "role", "names", "units")}
            for name, spec in manifest["arrays"].items()
        },
        "columns": manifest["columns"],
        "classes": manifest["classes"],
        "targets": {
            name: target | {"splits": found_there["targets"][name]} for name, target in manifest["targets"].items()
        },
        "extent": found_there["extent"],
        "license": manifest.get("license"),
        "citation": manifest.get("citation"),
        "homepage": manifest.get("homepage"),
        "created_by": manifest.get("created_by"),
    }


def info_text(found: dict[str, Any]) -> str:
    """`info` for a person."""
    lines = [
        f"{found['name']}: {found['samples']:,} samples, {found['bytes'] / (1 << 20):,.1f} MiB, {found['path']}",
        "",
        table(
            [("split", "samples", "shards")]
            + [(name, f"{s['samples']:,}", str(s["shards"])) for name, s in found["splits"].items()]
        ),
        "",
        table(
            [("images", "shape", "axes", "type", "gsd", "bands")]
            + [
                (
                    name,
                    "x".join(map(str, spec["shape"])),
                    spec["axes"],
                    spec["dtype"],
                    f"{spec['gsd_m']:g} m" if spec["gsd_m"] else "unknown",
                    " ".join(spec["bands"]),
                )
                for name, spec in found["images"].items()
            ]
        ),
        *_arrays_text(found),
        "",
        "columns: " + ", ".join(f"{name} {dtype}" for name, dtype in found["columns"].items()),
    ]
    lines += ["", *_extent_text(found["extent"])]
    others = {name: target for name, target in found["targets"].items() if target["column"] != "label"}
    if others:
        lines += [
            "",
            table([("target", "kind", "column", "classes", "units", "labelled"), *map(_target_row, others.items())]),
        ]
    if found["classes"] and "label" in found["columns"]:
        names = list(found["splits"])
        lines += [
            "",
            table(
                [("class", *names)]
                + [(c, *(f"{found['splits'][s]['labels'][c]:,}" for s in names)) for c in found["classes"]]
            ),
        ]
    return "\n".join(lines)


def _arrays_text(found: dict[str, Any]) -> list[str]:
    if not found["arrays"]:
        return []
    rows = [("arrays", "shape", "axes", "type", "role", "entries")]
    masks = {spec["mask"]: name for name, spec in found["images"].items() if spec["mask"]}
    for name, spec in found["arrays"].items():
        role = f"{spec['role']} of {masks[name]}" if name in masks else spec["role"]
        shape = "x".join(map(str, spec["shape"]))
        rows.append((name, shape, spec["axes"], spec["dtype"], role, " ".join(spec["names"] or []) or "-"))
    return ["", table(rows)]


def _target_row(item: tuple[str, dict[str, Any]]) -> tuple[str, ...]:
    name, target = item
    counts = [split for split in target["splits"].values() if split is not None]
    labelled = f"{sum(split['labelled'] for split in counts):,}" if counts else "not counted"
    classes = str(len(target["classes"])) if target["classes"] else "-"
    return name, target["kind"], target["column"], classes, target["units"] or "-", labelled


def _extent_text(where: dict[str, Any]) -> list[str]:
    """Place and time in a line each."""
    box, time, codes = where["box"], where["time"], where["crs_epsg"]
    place = "place: not recorded"
    if box is not None:
        place = (
            f"place: longitude {box['west']:g} to {box['east']:g}, latitude {box['south']:g} to {box['north']:g} "
            f"(centres of {where['placed']:,} samples)"
        )
        place += f", {len(codes)} reference systems" if codes and len(codes) > 1 else ""
        place += f", EPSG:{next(iter(codes))}" if codes and len(codes) == 1 else ""
    if time is None:
        return [place, "time: not recorded"]
    return [place, f"time: {time['start']} to {time['end']} ({where['dated']:,} samples)"]


def statistics_table(manifest: dict[str, Any]) -> str:
    """Per-band statistics of the train split, in stored units."""
    parts = []
    for name, spec in manifest["images"].items():
        found = full_statistics(spec)
        if not found:
            parts.append(f"{name}: no statistics, for want of a train split")
            continue
        rows = [("band", "mean", "std", "min", "max")]
        for k, band in enumerate(spec["bands"]):
            rows.append((band["name"], *(f"{found[key][k]:.4f}" for key in ("mean", "std", "min", "max"))))
        parts.append(f"{name} ({spec['dtype']}, {max(found['count']):,} values a band)\n{table(rows)}")
        percentiles = found.get("percentiles")
        if percentiles:
            rows = [("percentile", *percentiles)]
            for k, band in enumerate(spec["bands"]):
                rows.append((band["name"], *(f"{values[k]:.6g}" for values in percentiles.values())))
            parts.append(table(rows))
    return "\n\n".join(parts)
