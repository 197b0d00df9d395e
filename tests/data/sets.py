"""Shard directories made with plain h5py, in any layout, so that every stored number is known."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np


def write_set(
    path: Path,
    images: dict[str, tuple[np.ndarray, str]],
    *,
    arrays: dict[str, tuple[np.ndarray, str]] | None = None,
    columns: dict[str, np.ndarray] | None = None,
    masks: dict[str, str] | None = None,
    nodata: dict[str, float] | None = None,
    per_shard: int = 7,
    statistics: dict[str, dict[str, list[float]]] | None = None,
    gsd: dict[str, float] | None = None,
    **layout: Any,
) -> Path:
    """`images` and `arrays`: name -> ([n, *shape], axes). `layout` goes to h5py's create_dataset; chunks as samples a chunk."""
    arrays, columns = arrays or {}, columns or {}
    path.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(images.values()))[0])
    shards = []
    for index, start in enumerate(range(0, count, per_shard)):
        file, part = path / f"train-{index:05d}.h5", slice(start, min(start + per_shard, count))
        with h5py.File(file, "w", libver=("v110", "v110")) as opened:
            for name, (values, _) in (images | arrays).items():
                how = dict(layout)
                if "chunks" in how:
                    how["chunks"] = (min(how["chunks"], part.stop - part.start), *values.shape[1:])
                opened.create_dataset(name, data=values[part], **how)
            for name, column in columns.items():
                opened.create_dataset(name, data=column[part])
        shards.append(
            {
                "file": file.name,
                "split": "train",
                "samples": part.stop - part.start,
                "bytes": file.stat().st_size,
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            }
        )

    def described(values: np.ndarray, axes: str) -> dict[str, Any]:
        return {"shape": list(values.shape[1:]), "axes": axes, "dtype": values.dtype.name}

    manifest = {
        "schema": "frontier-shards/1",
        "name": "set",
        "samples": count,
        "fingerprint": hashlib.sha256("".join(s["sha256"] for s in shards).encode()).hexdigest(),
        "splits": {"train": {"samples": count, "shards": [s["file"] for s in shards]}},
        "shards": shards,
        "images": {
            name: described(values, axes)
            | {
                "bands": [{"name": f"b{i}"} for i in range(values.shape[1 + axes.index("C")])],
                "mask": (masks or {}).get(name),
                "nodata": (nodata or {}).get(name),
                "statistics": (statistics or {}).get(name),
                "gsd_m": (gsd or {}).get(name),
            }
            for name, (values, axes) in images.items()
        },
        "arrays": {name: described(values, axes) | {"role": "mask"} for name, (values, axes) in arrays.items()},
        "columns": {name: column.dtype.str for name, column in columns.items()},
        "classes": [],
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path
