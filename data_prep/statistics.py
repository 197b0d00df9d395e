"""Per-band statistics that merge in a fixed order, a sketch of percentiles that merges exactly, checksums of samples.

Moments merge by Chan, Golub and LeVeque; percentiles come from counts in buckets of fixed edges (as in DDSketch, Masson
et al. 2019), so that any merging order gives the same counts. Integers of up to 16 bits are counted value by value, from
which all the rest follows without rounding each pixel.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

PERCENTILES = (1, 2, 5, 25, 50, 75, 95, 98, 99)
SKETCH_ACCURACY = 0.005
"""A percentile is within this share of its value (never off by more for integers up to 100)."""
_SMALL = 1e-9
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_LOG_GAMMA = float(np.log((1 + SKETCH_ACCURACY) / (1 - SKETCH_ACCURACY)))


def block_samples(sample_bytes: int) -> int:
    """Samples of one block: about 8 MiB, at most 256. Blocks shape the rounding, so only the data decides."""
    return max(1, min(256, (8 << 20) // max(1, sample_bytes)))


def block_statistics(
    images: np.ndarray, nodata: float | None = None, valid: np.ndarray | None = None
) -> dict[str, Any]:
    """Statistics of one block of samples [n, C, …] of any real type, in stored units.

    A value that equals `nodata`, is not finite in float32 (in which models compute), or that `valid` (shape of
    `images`) marks 0 is left out of its band.
    Returns, by band: {"count": [C] values, "mean": [C], "m2": [C] (sum of squared deviations), "min": [C],
    "max": [C], "sketch": [C] {bucket: count}}.
    """
    out: dict[str, Any] = {key: [] for key in ("count", "mean", "m2", "min", "max", "sketch")}
    for band in range(images.shape[1]):
        values = images[:, band].reshape(-1)
        keep = None if valid is None else valid[:, band].reshape(-1) != 0
        if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
            found = _of_integers(values if keep is None else values[keep], nodata)
        else:
            if values.dtype.kind == "f":
                # As in training, numbers that float32 cannot hold are no values.
                finite = np.isfinite(values) if values.itemsize < 8 else np.abs(values) <= _FLOAT32_MAX
                if not finite.all():
                    keep = finite if keep is None else keep & finite
            if nodata is not None and not np.isnan(nodata):
                there = values != nodata
                keep = there if keep is None else keep & there
            found = _of_numbers(values if keep is None or keep.all() else values[keep])
        for key, value in found.items():
            out[key].append(value)
    return out


def _of_integers(values: np.ndarray, nodata: float | None) -> dict[str, Any]:
    """By counting every value: exact sums, whatever the number of pixels."""
    low = int(np.iinfo(values.dtype).min)
    counts = _count_bytes(values) if values.dtype.itemsize == 1 else _count_pairs(values)
    if low < 0:
        # Two's complement: the upper half of the unsigned range is the negative numbers.
        counts = np.roll(counts, len(counts) // 2)
    if nodata is not None and float(nodata).is_integer() and 0 <= int(nodata) - low < len(counts):
        counts[int(nodata) - low] = 0
    there = np.flatnonzero(counts)
    if len(there) == 0:
        return _nothing()
    numbers, weights = there + low, counts[there]
    total = int(weights.sum())
    # 64 bits hold the sum of 2^31 squares of 16-bit numbers, and a block is a few million.
    first, second = int(numbers @ weights), int((numbers * numbers) @ weights)
    buckets = _integer_buckets(low, len(counts))[there]
    edges = np.flatnonzero(np.diff(buckets, prepend=buckets[0] - 1))
    return {
        "count": total,
        "mean": first / total,
        # In whole numbers up to the last division: nothing cancels.
        "m2": (second * total - first * first) / total,
        "min": float(numbers[0]),
        "max": float(numbers[-1]),
        "sketch": dict(zip(buckets[edges].tolist(), np.add.reduceat(weights, edges).tolist(), strict=True)),
    }


def _count_pairs(values: np.ndarray) -> np.ndarray:
    """How often each of the 65,536 patterns of two bytes occurs: [65536]."""
    return np.bincount(values.view(np.uint16), minlength=1 << 16)


def _count_bytes(values: np.ndarray) -> np.ndarray:
    """How often each byte occurs: [256]. Two at a time, which halves the work: their joint counts, summed over either."""
    even = len(values) // 2 * 2
    pairs = _count_pairs(np.ascontiguousarray(values[:even])).reshape(256, 256)
    counts = pairs.sum(axis=0) + pairs.sum(axis=1)
    if even < len(values):
        counts[values[even:].view(np.uint8)] += 1
    return counts


def _of_numbers(values: np.ndarray) -> dict[str, Any]:
    if len(values) == 0:
        return _nothing()
    wide = values.astype(np.float64)
    mean = float(wide.mean())
    low, high = float(wide.min()), float(wide.max())
    buckets = _buckets(wide)
    first = int(buckets.min())
    counts = np.bincount(buckets - first)
    there = np.flatnonzero(counts)
    wide -= mean
    return {
        "count": len(values),
        "mean": mean,
        "m2": float(wide @ wide),
        "min": low,
        "max": high,
        "sketch": dict(zip((there + first).tolist(), counts[there].tolist(), strict=True)),
    }


def _nothing() -> dict[str, Any]:
    return {"count": 0, "mean": 0.0, "m2": 0.0, "min": 0.0, "max": 0.0, "sketch": {}}


def _buckets(values: np.ndarray) -> np.ndarray:
    """Bucket of each number, int64, rising with it: sign · ⌈ln(1 + |v| / 1e-9) / ln γ⌉."""
    size = np.ceil(np.log1p(np.abs(values) / _SMALL) / _LOG_GAMMA)
    return np.copysign(size, values).astype(np.int64)


@lru_cache(maxsize=4)
def _integer_buckets(low: int, count: int) -> np.ndarray:
    """The buckets of `low`, `low` + 1, …: [count]."""
    return _buckets(np.arange(low, low + count, dtype=np.float64))


def _middle(bucket: int) -> float:
    """The number that stands for a bucket: half-way between its edges in the logarithm."""
    return float(np.copysign(np.expm1((abs(bucket) - 0.5) * _LOG_GAMMA) * _SMALL, bucket)) if bucket else 0.0


def column_statistics(
    name: str, images: dict[str, Any], arrays: dict[str, Any], block: dict[str, np.ndarray]
) -> dict[str, Any]:
    """`block_statistics` of the input `name` of a block of samples; `images`, `arrays` as in the manifest.

    What its mask column marks 0 is left out.
    """
    spec = images[name]
    axes = "N" + spec["axes"]
    values = np.moveaxis(block[name], axes.index("C"), 1)
    valid = None
    if spec["mask"] is not None:
        there = "N" + arrays[spec["mask"]]["axes"]
        # The mask's axes are among the input's, in the same order: it is spread over the others.
        shape = [n if axis in there else 1 for axis, n in zip(axes, block[name].shape, strict=True)]
        spread = np.broadcast_to(block[spec["mask"]].reshape(shape), block[name].shape)
        valid = np.moveaxis(spread, axes.index("C"), 1)
    return block_statistics(values, spec["nodata"], valid)


def empty_statistics(bands: int) -> dict[str, Any]:
    """The neutral element of `merge_statistics`."""
    one = _nothing()
    return {key: [dict(value) if key == "sketch" else value for _ in range(bands)] for key, value in one.items()}


def merge_statistics(parts: Iterable[dict[str, Any]], bands: int) -> dict[str, Any]:
    """Merge in the order given, pairwise by Chan, Golub and LeVeque (1979), eq. 2.1.

    mean = mean_a + d n_b / n and M2 = M2_a + M2_b + d² n_a n_b / n, with d = mean_b - mean_a and n = n_a + n_b.
    """
    out = empty_statistics(bands)
    for part in parts:
        for band in range(bands):
            fresh = part["count"][band]
            if fresh == 0:
                continue
            count = out["count"][band]
            both = count + fresh
            delta = part["mean"][band] - out["mean"][band]
            out["mean"][band] += delta * (fresh / both)
            out["m2"][band] += part["m2"][band] + delta * delta * (count * fresh / both)
            low, high = part["min"][band], part["max"][band]
            out["min"][band] = min(out["min"][band], low) if count else low
            out["max"][band] = max(out["max"][band], high) if count else high
            sketch = out["sketch"][band]
            for bucket, found in part["sketch"][band].items():
                # JSON has made text of the keys of what was read back.
                sketch[int(bucket)] = sketch.get(int(bucket), 0) + found
            out["count"][band] = both
    return out


def published_statistics(merged: dict[str, Any], dtype: str = "float64") -> dict[str, Any] | None:
    """What the manifest holds: population standard deviation and percentiles; None where nothing was counted.

    Percentiles of a `dtype` of integers are whole numbers.

    {"count": [C], "mean": [C], "std": [C], "min": [C], "max": [C], "percentiles": {"1": [C], …}}; a band without any
    value has mean 0 and std 0 over a count of 0.
    """
    if not any(merged["count"]):
        return None
    counts = merged["count"]
    std = [float(np.sqrt(m2 / count)) if count else 0.0 for m2, count in zip(merged["m2"], counts, strict=True)]
    found = [_percentiles(merged, band) for band in range(len(counts))]
    if np.dtype(dtype).kind in "iu":
        found = [[float(round(value)) for value in band] for band in found]
    return {
        "count": counts,
        "mean": merged["mean"],
        "std": std,
        "min": merged["min"],
        "max": merged["max"],
        "percentiles": {str(p): [band[k] for band in found] for k, p in enumerate(PERCENTILES)},
    }


def _percentiles(merged: dict[str, Any], band: int) -> list[float]:
    """Nearest-rank percentiles: of n values, the ⌈p n / 100⌉-th."""
    sketch = sorted(merged["sketch"][band].items())
    if not sketch:
        return [0.0] * len(PERCENTILES)
    reached = np.cumsum([count for _, count in sketch])
    out = []
    for percent in PERCENTILES:
        rank = max(1, -(-percent * merged["count"][band] // 100))
        value = _middle(sketch[int(np.searchsorted(reached, rank))][0])
        out.append(min(max(value, merged["min"][band]), merged["max"][band]))
    return out


def sample_checksums(images: dict[str, np.ndarray]) -> np.ndarray:
    """CRC-32 of each sample's bytes over all inputs and arrays in name order: uint32 [n]."""
    columns = [np.ascontiguousarray(images[name]) for name in sorted(images)]
    count = len(columns[0])
    # One flat run of bytes a column: slices of it cost less than rows of an array.
    flat = [(column.reshape(-1).view(np.uint8).data, column[:1].nbytes) for column in columns]
    out = np.zeros(count, np.uint32)
    for row in range(count):
        value = 0
        for data, size in flat:
            value = zlib.crc32(data[row * size : (row + 1) * size], value)
        out[row] = value
    return out
