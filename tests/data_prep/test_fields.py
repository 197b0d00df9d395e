"""Generated fields: reproducible one by one, boundaries where the image has them and at every angle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.command import main
from data_prep.fields import FieldSource, make_fields
from data_prep.verify import verify
from frontier.data.manifest import load_manifest
from frontier.data.shards import ShardSet
from frontier.errors import UserError


@pytest.fixture(scope="module")
def fields() -> list[dict[str, Any]]:
    return [make_fields(3, index, 96) for index in range(24)]


def test_an_image_depends_on_seed_and_index_alone(fields: list[dict[str, Any]]) -> None:
    loaded = FieldSource(24, seed=3, size=96).load([9, 2])
    for name in ("image", "boundary", "area", "field_fraction"):
        assert np.array_equal(loaded[name][0], np.asarray(fields[9][name], loaded[name].dtype))
        assert np.array_equal(loaded[name][1], np.asarray(fields[2][name], loaded[name].dtype))
    assert not np.array_equal(make_fields(4, 2, 96)["image"], fields[2]["image"])
    assert len({sample["image"].tobytes() for sample in fields}) == 24


def test_masks_are_of_both_kinds_and_boundaries_lie_at_fields(fields: list[dict[str, Any]]) -> None:
    area, boundary = (np.stack([sample[name] for sample in fields]) for name in ("area", "boundary"))
    assert area.dtype == boundary.dtype == np.uint8
    assert set(np.unique(area)) == set(np.unique(boundary)) == {0, 1}
    assert 0.4 < area.mean() < 0.9
    assert 0.03 < boundary.mean() < 0.25
    near = np.pad(area, ((0, 0), (1, 1), (1, 1)))
    grown = np.max([near[:, 1 + y : 97 + y, 1 + x : 97 + x] for y in (-1, 0, 1) for x in (-1, 0, 1)], axis=0)
    assert grown[boundary == 1].mean() > 0.99
    for sample in fields:
        assert sample["field_fraction"] == pytest.approx(sample["area"].mean())


def steepness(sample: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    return np.gradient(sample["image"].astype(float).mean(0))  # type: ignore[return-value]


def test_the_image_changes_at_boundaries(fields: list[dict[str, Any]]) -> None:
    ratios = []
    for sample in fields:
        inner = sample["boundary"] == 1
        if 0 < inner.mean() < 1:
            slope = np.hypot(*steepness(sample))
            ratios.append(slope[inner].mean() / slope[~inner].mean())
    assert np.median(ratios) > 2


def test_boundaries_run_at_every_angle(fields: list[dict[str, Any]]) -> None:
    """No eighth of the half circle holds less than a third of its share of the boundaries' directions."""
    counts = np.zeros(8)
    for index in range(24, 88):
        boundary = make_fields(3, index, 64)["boundary"].astype(float)
        padded = np.pad(boundary, 1, mode="edge")
        smooth = sum(padded[y : y + 64, x : x + 64] for y in range(3) for x in range(3)) / 9
        down, right = np.gradient(smooth)
        strong = np.hypot(down, right) > 0.1
        angle = np.arctan2(down, right)[strong] % np.pi
        # Eighths are centred on the axes and diagonals, where pixels put directions.
        counts += np.bincount(((angle + np.pi / 16) // (np.pi / 8)).astype(int) % 8, minlength=8)
    assert counts.min() > counts.sum() / 8 / 3, counts


def test_the_command_writes_them(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["write", "--fields", "10", "--size", "32", "--test-fraction", "0.2", "--seed", "5", str(out)]) == 0
    assert verify(out, deep=True)[0] == []
    manifest = load_manifest(out)
    assert {name: target["kind"] for name, target in manifest["targets"].items()} == dict.fromkeys(
        ("boundary", "area"), "segmentation"
    )
    assert {name: split["samples"] for name, split in manifest["splits"].items()} == {"train": 8, "test": 2}
    shards = ShardSet(out, "test")
    index = int(shards.column("field_index")[1])
    assert np.array_equal(shards.read("boundary", 1, 2)[0], make_fields(5, index, 32)["boundary"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--fields", "0"], "--fields 0"),
        (["--fields", "2", "--size", "8"], "--size 8"),
        (["--fields", "2", "--seed", "-1"], "--seed -1"),
        (["--fields", "2", "--sensors", "s2"], "--sensors: has no effect without --scenes"),
        (["--fields", "2", "--targets"], "--targets: has no effect without --scenes"),
        (["--fields", "2", "--reader", "folder"], "--reader: has no effect without --from"),
        (["--from", "in", "--size", "32"], "--size: has no effect without --scenes or --fields"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, words: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        main(["write", *words, str(tmp_path / "out")])
