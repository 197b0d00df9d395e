"""Per-band statistics that merge exactly in a fixed order, and checksums of samples."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np


def block_samples(sample_bytes: int) -> int:
    """Samples of one block: about 8 MiB, at most 256. Blocks shape the rounding, so only the data decides."""
    return max(1, min(256, (8 << 20) // max(1, sample_bytes)))


def block_statistics(images: np.ndarray, nodata: float | None = None) -> dict[str, Any]:
    """Statistics of one block of samples [n, C, H, W] of any real type, in stored units.

    A pixel of which any band equals `nodata` is left out of every band. Returns {"count": pixels, "mean": [C],
    "m2": [C] (sum of squared deviations), "min": [C], "max": [C]}, all float64 but the count.
    """
    values = np.moveaxis(images, 1, 0).reshape(images.shape[1], -1)
    if nodata is not None:
        invalid = (values == nodata).any(axis=0)
        if invalid.any():
            values = values[:, ~invalid]
    count = values.shape[1]
    if count == 0:
        return empty_statistics(images.shape[1])
    low, high = values.min(axis=1), values.max(axis=1)
    wide = values.astype(np.float64)
    mean = wide.mean(axis=1)
    wide -= mean[:, None]
    m2 = np.einsum("cp,cp->c", wide, wide)
    return {
        "count": count,
        "mean": mean.tolist(),
        "m2": m2.tolist(),
        "min": low.astype(np.float64).tolist(),
        "max": high.astype(np.float64).tolist(),
    }


def empty_statistics(bands: int) -> dict[str, Any]:
    """The neutral element of `merge_statistics`."""
    return {"count": 0} | {key: [0.0] * bands for key in ("mean", "m2", "min", "max")}


def merge_statistics(parts: Iterable[dict[str, Any]], bands: int) -> dict[str, Any]:
    """Merge in the order given, pairwise by Chan, Golub and LeVeque (1979), eq. 2.1.

    mean = mean_a + d n_b / n and M2 = M2_a + M2_b + d² n_a n_b / n, with d = mean_b - mean_a and n = n_a + n_b.
    """
    mean, m2 = np.zeros(bands), np.zeros(bands)
    low, high = np.full(bands, np.inf), np.full(bands, -np.inf)
    count = 0
    for part in parts:
        if part["count"] == 0:
            continue
        both = count + part["count"]
        delta = np.array(part["mean"]) - mean
        mean = mean + delta * (part["count"] / both)
        m2 = m2 + np.array(part["m2"]) + delta * delta * (count * part["count"] / both)
        low, high = np.minimum(low, part["min"]), np.maximum(high, part["max"])
        count = both
    if count == 0:
        return empty_statistics(bands)
    return {
        "count": count,
        "mean": mean.tolist(),
        "m2": m2.tolist(),
        "min": low.tolist(),
        "max": high.tolist(),
    }


def published_statistics(merged: dict[str, Any]) -> dict[str, Any] | None:
    """What the manifest holds: population standard deviation in place of M2; None where nothing was counted."""
    if merged["count"] == 0:
        return None
    std = np.sqrt(np.array(merged["m2"]) / merged["count"])
    return {
        "count": merged["count"],
        "mean": merged["mean"],
        "std": std.tolist(),
        "min": merged["min"],
        "max": merged["max"],
    }


def sample_checksums(images: dict[str, np.ndarray]) -> np.ndarray:
    """CRC-32 of each sample's bytes over all image columns in name order: uint32 [n]."""
    columns = [np.ascontiguousarray(images[name]) for name in sorted(images)]
    count = len(columns[0])
    out = np.zeros(count, np.uint32)
    for row in range(count):
        value = 0
        for column in columns:
            value = zlib.crc32(column[row], value)
        out[row] = value
    return out
