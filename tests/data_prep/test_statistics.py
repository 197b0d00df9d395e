"""Statistics against numpy: every type, nodata, masks, NaN, large offsets, percentiles, merging."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.statistics import (
    PERCENTILES,
    SKETCH_ACCURACY,
    block_statistics,
    column_statistics,
    merge_statistics,
    published_statistics,
)
from frontier.data.transforms import normalise


def published(images: np.ndarray, *arguments: Any, step: int = 3) -> dict[str, Any]:
    parts = [block_statistics(images[k : k + step], *arguments) for k in range(0, len(images), step)]
    found = published_statistics(merge_statistics(json.loads(json.dumps(parts)), images.shape[1]), images.dtype.name)
    assert found is not None
    return found


def compare(found: dict[str, Any], band: int, kept: np.ndarray) -> None:
    whole = kept.dtype.kind in "iu"
    kept = kept.astype(np.float64)
    assert found["count"][band] == kept.size
    assert np.isclose(found["mean"][band], kept.mean(), rtol=1e-13, atol=1e-13)
    assert np.isclose(found["std"][band], kept.std(), rtol=1e-12)
    assert (found["min"][band], found["max"][band]) == (kept.min(), kept.max())
    for percent in PERCENTILES:
        exact = np.percentile(kept, percent, method="inverted_cdf")
        near = abs(found["percentiles"][str(percent)][band] - exact)
        rounding = 0.5 if whole and abs(exact) > 100 else 0
        assert near <= SKETCH_ACCURACY * 1.01 * abs(exact) * (not whole or abs(exact) > 100) + rounding + 1e-9


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "float16", "float32", "float64"])
@pytest.mark.parametrize("nodata", [None, 0, -9999.0])
def test_every_type(dtype: str, nodata: float | None) -> None:
    random = np.random.default_rng(0)
    values = random.normal(20, 30, (10, 2, 7, 5))
    if dtype.startswith("u"):
        values = np.abs(values)
    images = values.astype(dtype)
    images[3, 1, 2] = 0
    found = published(images, nodata)
    for band in range(2):
        kept = images[:, band].reshape(-1)
        compare(found, band, kept if nodata is None else kept[kept != nodata])


def test_a_band_that_lacks_a_pixel_leaves_the_others_theirs() -> None:
    random = np.random.default_rng(0)
    images = random.integers(1, 60000, (20, 3, 5, 7)).astype(np.uint16)
    images[4, 1, 2, :] = 0
    images[9] = 0
    parts = [block_statistics(images[k : k + 3], 0) for k in range(0, 20, 3)]
    parts.insert(2, block_statistics(np.zeros((2, 3, 5, 7), np.uint16), 0))
    found = published_statistics(merge_statistics(parts, 3), "uint16")
    assert found is not None
    for band in range(3):
        compare(found, band, images[:, band][images[:, band] != 0])
    assert published_statistics(merge_statistics([], 3)) is None


def test_nan_and_infinity_count_nowhere() -> None:
    images = np.random.default_rng(2).standard_normal((6, 2, 8, 8)).astype(np.float32)
    images[0, 0, :3] = np.nan
    images[1, 0, 0, 0] = np.inf
    found = published(images)
    for band in range(2):
        compare(found, band, images[:, band][np.isfinite(images[:, band])])


def test_what_float32_cannot_hold_counts_nowhere_and_is_missing_in_training() -> None:
    """-1.8e308 is what some programs write for missing pixels, declared or not."""
    values = np.arange(24.0).reshape(2, 1, 3, 4)
    values[1, 0, 0, :2] = -np.finfo(np.float64).max, 1e39
    found = published_statistics(block_statistics(values))
    kept = np.delete(np.arange(24.0), [12, 13])
    assert found is not None and found["count"] == [22] and found["std"] == pytest.approx([kept.std()], rel=1e-12)
    mean, std = (torch.tensor(found[key], dtype=torch.float32) for key in ("mean", "std"))
    assert normalise(torch.from_numpy(values), mean, std)[1, 0, 0, :2].tolist() == [0, 0]


def test_masks_of_dates_and_of_bands() -> None:
    random = np.random.default_rng(3)
    series = random.integers(0, 5000, (6, 4, 3, 5, 5)).astype(np.uint16)
    dates = random.integers(0, 2, (6, 4)).astype(np.uint8)
    bands = random.integers(0, 2, (6, 4, 3)).astype(np.uint8)
    for axes, mask in (("T", dates), ("TC", bands)):
        images = {"x": {"axes": "TCHW", "nodata": None, "mask": "there", "bands": [0, 1, 2]}}
        arrays = {"there": {"axes": axes}}
        found = published_statistics(
            merge_statistics([column_statistics("x", images, arrays, {"x": series, "there": mask})], 3),
            "uint16",
        )
        assert found is not None
        for band in range(3):
            kept = mask.astype(bool) if axes == "T" else mask[:, :, band].astype(bool)
            compare(found, band, series[:, :, band][kept])


def test_large_offsets_keep_their_variance() -> None:
    """Sums of squares would lose all digits here; Chan's merge does not."""
    images = (1e8 + np.random.default_rng(1).standard_normal((64, 1, 8, 8))).astype(np.float64)
    assert published(images, step=8)["std"][0] == pytest.approx(images.std(), rel=1e-6)


def test_integers_merge_to_the_same_in_any_order() -> None:
    images = np.random.default_rng(4).integers(0, 65535, (40, 1, 16, 16)).astype(np.uint16)
    forward = published(images, step=1)
    whole = published(images, step=40)
    assert forward["percentiles"] == whole["percentiles"]
    assert forward["mean"][0] == pytest.approx(whole["mean"][0], rel=1e-15)
