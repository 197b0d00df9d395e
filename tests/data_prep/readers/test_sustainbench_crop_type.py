"""Crop types of Ghana and South Sudan: series of three sensors padded to one length, dates, labels of four crops."""

from __future__ import annotations

import calendar
import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.readers.sustainbench_crop_type import chosen_dates
from frontier.errors import UserError
from tests.data_prep.readers.sustainbench_folders import open_source, read_all, write_shards, write_table

BANDS = {"s1": 3, "s2": 10, "planet": 4}
DATES = {
    # tile -> dates by sensor, as the files list them: not in order
    7: {"s1": ["2016-07-02", "2016-05-01"], "s2": ["2016-05-05", "2016-06-05", "2016-08-05"], "planet": ["2016-05-09"]},
    12: {"s1": ["2016-09-01"], "s2": ["2016-12-31", "2016-01-01"], "planet": ["2016-04-01", "2016-03-01"]},
}
PARTITION = {7: 0, 12: 2}


def series(tile: int, sensor: str) -> np.ndarray:
    side, odd = (213, 214) if sensor == "planet" else (64, 64)
    random = np.random.default_rng(tile + len(sensor))
    shape = (BANDS[sensor], side, odd, len(DATES[tile][sensor]))
    if sensor == "s1":
        return random.normal(-12, 3, shape).astype(np.float32)
    return random.integers(1, 9000, shape, np.uint16)


def truth() -> np.ndarray:
    """0 = no label, 1 to 4 = the crops, 9 = another crop."""
    return np.array([0, 1, 2, 3, 4, 9])[np.arange(64 * 64) % 6].reshape(64, 64).astype(np.float64)


def unix(text: str) -> int:
    return calendar.timegm(date.fromisoformat(text).timetuple())


def save(root: Path, tile: int, **changes: Any) -> None:
    name = f"southsudan_{tile:06d}"
    for folder in ("npy", "truth", *BANDS):
        (root / folder).mkdir(parents=True, exist_ok=True)
    images = {sensor: series(tile, sensor) for sensor in BANDS}
    np.savez_compressed(root / "npy" / f"{name}.npz", **images | changes)
    np.savez_compressed(root / "truth" / f"{name}.npz", truth=truth())
    for sensor in BANDS:
        (root / sensor / f"{sensor}_{name}.json").write_text(json.dumps({"dates": DATES[tile][sensor]}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in" / "southsudan"
    for tile in DATES:
        save(root, tile)
    write_table(root / "list_eval_partition.csv", [{"id": k, "partition": v} for k, v in PARTITION.items()])
    return tmp_path / "in"


COUNTRY = "country=south_sudan"


def test_series(folder: Path, tmp_path: Path) -> None:
    manifest = write_shards("crop_type", folder, tmp_path / "out", COUNTRY)
    samples = read_all(tmp_path / "out")
    shapes = {name: spec["shape"] for name, spec in manifest["images"].items()}
    assert shapes == {"s1": [2, 3, 64, 64], "s2": [3, 10, 64, 64], "planet": [2, 4, 212, 212]}
    assert {spec["axes"] for spec in manifest["images"].values()} == {"TCHW"}
    assert manifest["targets"]["crop_type"]["classes"] == ["sorghum", "maize", "rice", "groundnut"]
    assert manifest["notes"]["longest_series"] == {"s1": 2, "s2": 3, "planet": 2}
    assert manifest["notes"]["tiles"]["published"] == {"train": 554, "val": 66, "test": 67}
    for tile, listed in DATES.items():
        sample = samples[f"south_sudan-{tile:06d}"]
        assert sample["split"] == ("train", "val", "test")[PARTITION[tile]]
        for sensor, dates in listed.items():
            published = series(tile, sensor)
            if sensor == "planet":
                published = published[:, :212, 1:213]  # the centre of 213 x 214, halves rounded to even
            for step, text in enumerate(sorted(dates)):
                assert np.array_equal(sample[sensor][step], published[..., dates.index(text)])
                assert sample[f"{sensor}_time"][step] == unix(text)
            length = shapes[sensor][0]
            assert sample[f"{sensor}_valid"].tolist() == [1] * len(dates) + [0] * (length - len(dates))
            assert (sample[sensor][len(dates) :] == 0).all()
            assert (sample[f"{sensor}_time"][len(dates) :] == 0).all()
        days = [text for dates in listed.values() for text in dates]
        assert sample["time_start"] == unix(min(days))
        assert sample["time_end"] == unix(max(days)) + 86399
        wanted = np.array([255, 0, 1, 2, 3, 255])[np.arange(64 * 64) % 6].reshape(64, 64)
        assert np.array_equal(sample["crop_type"], wanted)
        assert sample["labelled_fraction"] == pytest.approx((wanted != 255).mean())


def test_statistics_leave_the_padding_out(folder: Path, tmp_path: Path) -> None:
    spec = write_shards("crop_type", folder, tmp_path / "out", COUNTRY, "sensors=s2")["images"]["s2"]
    assert spec["statistics"]["count"] == [3 * 64 * 64] * 10, "the train tile has three dates"
    assert spec["statistics"]["min"][0] >= 1
    longer = write_shards("crop_type", folder, tmp_path / "out5", COUNTRY, "sensors=s2", "max_dates=5")["images"]["s2"]
    assert longer["shape"][0] == 5
    assert longer["statistics"] == spec["statistics"]


def test_settings(folder: Path) -> None:
    source = open_source("crop_type", folder, COUNTRY, "sensors=planet, s1", "max_dates=1")
    assert list(source.images) == ["s1", "planet"]
    assert [spec.shape[0] for spec in source.images.values()] == [1, 1]
    assert source.listing().notes["series_cut"] == {"s1": 1, "planet": 1}
    assert source.load([0])["s1_time"].tolist() == [[unix("2016-05-01")]]
    for wrong, expected in (
        ("sensors=s3", "no sensor 's3': did you mean s2?|no sensor 's3'"),
        ("sensors=", "name one or more of s1, s2, planet"),
        ("sensors=s1,s1", "each once"),
        ("max_dates=0", "give a number from 1"),
        ("max_dates=many", "give a number from 1"),
    ):
        with pytest.raises(UserError, match=expected):
            open_source("crop_type", folder, COUNTRY, wrong)
    with pytest.raises(UserError, match=r"ghana/list_eval_partition.csv not found: download and extract africa_crop"):
        open_source("crop_type", folder)


def test_dates_are_spread_evenly() -> None:
    assert chosen_dates([5, 1, 3], 5).tolist() == [1, 2, 0]
    assert chosen_dates(list(range(101, 0, -1)), 3).tolist() == [100, 50, 0]
    assert chosen_dates(list(range(9)), 9).tolist() == list(range(9))
    for steps in range(1, 12):
        kept = chosen_dates(list(range(11)), steps)
        assert len(set(kept.tolist())) == min(steps, 11)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"s2": np.zeros((10, 64, 64, 2), np.uint16)}, r"s2 has shape \(10, 64, 64, 2\), \(10, 64, 64, 3\)"),
        ({"s1": np.full((3, 64, 64, 2), np.nan, np.float32)}, "s1 holds 24576 NaN"),
        ({"s2": np.full((10, 64, 64, 3), 0.5)}, "s2 holds fractions"),
        ({"planet": np.zeros((4, 200, 220, 1), np.uint16)}, "planet is 200x220, 212 or more"),
    ],
)
def test_bad_series_are_named(folder: Path, changes: dict, expected: str) -> None:
    save(folder / "southsudan", 7, **changes)
    with pytest.raises(
        UserError, match=rf"1 of 2 tiles cannot be used: southsudan/npy/southsudan_000007.npz \(.*{expected}"
    ):
        open_source("crop_type", folder, COUNTRY)
    assert open_source("crop_type", folder, COUNTRY, on_error="skip").listing().ids == [b"south_sudan-000012"]


def test_other_bad_files(folder: Path) -> None:
    root = folder / "southsudan"
    dates = root / "s2" / "s2_southsudan_000007.json"
    for content in (b'{"dates": ["tomorrow"]}', b'{"days": []}', b"[", b'{"dates": ["2016-02-31"]}', b"[" * 100000):
        dates.write_bytes(content)
        with pytest.raises(UserError, match=r"s2_southsudan_000007.json: not a list of dates"):
            open_source("crop_type", folder, COUNTRY)
    save(root, 7)
    (root / "npy" / "southsudan_000007.npz").write_bytes(b"PK torn")
    with pytest.raises(UserError, match="southsudan_000007.npz: not a readable .npz archive"):
        open_source("crop_type", folder, COUNTRY)
    (root / "npy" / "southsudan_000007.npz").unlink()
    with pytest.raises(UserError, match=r"1 of 2 tiles are absent \(such as southsudan_000007\)"):
        open_source("crop_type", folder, COUNTRY)
    assert len(open_source("crop_type", folder, COUNTRY, "partial=yes").listing().ids) == 1
    write_table(root / "list_eval_partition.csv", [{"id": 7, "partition": "x"}])
    with pytest.raises(UserError, match="line 2: partition is 'x', no split"):
        open_source("crop_type", folder, COUNTRY)
