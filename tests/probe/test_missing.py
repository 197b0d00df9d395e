"""What is missing in an image is the band's mean to every encoder and baseline, as in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from frontier.data.shards import ShardSet
from frontier.probe.images import labelled_images
from tests.data.sets import write_set


@pytest.mark.parametrize("how", ["nodata", "mask", "nan", "whole"])
def test_missing_is_the_mean(tmp_path: Path, how: str) -> None:
    random = np.random.default_rng(0)
    images = random.integers(1, 5000, (20, 2, 6, 6)).astype(np.float32 if how == "nan" else np.uint16)
    there = random.random((20, 6, 6)) > 0.3
    gone = np.broadcast_to(~there[:, None], images.shape) if how != "whole" else np.zeros(images.shape, bool)
    images[gone] = {"nodata": 0, "nan": np.nan}.get(how, 7)
    path = write_set(
        tmp_path / "set",
        {"x": (images, "CHW")},
        arrays={"there": (there.astype(np.uint8), "HW")} if how == "mask" else {},
        masks={"x": "there"} if how == "mask" else {},
        nodata={"x": 0.0} if how == "nodata" else {},
        columns={"label": np.zeros(20, np.int32)},
    )
    mean = [1000.0, 2500.0]
    expected = np.where(gone, np.array(mean)[:, None, None], images)
    found = labelled_images(ShardSet(path), "x", mean).read(3, 17)
    assert np.array_equal(found, expected[3:17].astype(found.dtype))
    assert found.dtype == (np.uint16 if how == "whole" else np.float32)
