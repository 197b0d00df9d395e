"""Presto's fuel moisture: bands, dates found from the labels' list, missing cover, splits by site."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.command import main
from data_prep.verify import verify
from frontier.data.manifest import load_manifest
from tests.conftest import SHARED_DATA
from tests.data_prep.opening import every, open_with, refusal
from tests.data_prep.readers.sustainbench_folders import read_all

NAME = "presto_fuel_moisture"
REAL = SHARED_DATA / "timeseries/presto_eval/fuel_moisture"
LABELS: list[tuple[str, float, date]] = [
    ("Dry Creek", 101.5, date(2017, 3, 31)),
    ("Lost Lake", 80.0, date(2017, 3, 31)),
    ("Lost Lake", 90.0, date(2016, 9, 30)),
    ("No Image", 55.0, date(2018, 1, 31)),
    ("Dry Creek", 101.5, date(2018, 6, 30)),
    ("Ana, WY", 99.0, date(2016, 1, 31)),
]
ROWS = [0, 1, 2, 4, 5]
"""The labels that have a row: all but one."""
PLACES = {
    "Dry Creek": (-120.5, 40.25),
    "Lost Lake": (-110.0, 43.5),
    "No Image": (-100.0, 30.0),
    "Ana, WY": (-108.1, 44.9),
}


def months(day: date) -> list[int]:
    return [(day - timedelta(days=90 - 30 * step)).month - 1 for step in range(3)]


def stacks() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    count = len(ROWS)
    bands = np.empty((count, 3, 18))
    bands[..., 0:2] = random.uniform(-25, -5, (count, 3, 2))
    bands[..., 2:13] = random.integers(100, 6000, (count, 3, 11))
    bands[..., 13] = random.uniform(270, 300, (count, 3))
    bands[..., 14] = random.uniform(0, 0.01, (count, 3))
    bands[..., 15:17] = random.uniform(0, 30, (count, 1, 2))
    bands[..., 17] = (bands[..., 7] - bands[..., 3]) / (bands[..., 7] + bands[..., 3])
    chosen = [LABELS[row] for row in ROWS]
    return {
        "s1_s2_era5_srtm": bands,
        "dynamic_world": np.array([[1, 0, 5], [2, 9, 8], [0, 0, 0], [4, 4, 6], [7, 7, 7]], np.uint8),
        "month": np.array([months(day) for _, _, day in chosen]),
        "latlon": np.array([PLACES[site][::-1] for site, _, _ in chosen]) + 4e-5,
        "target": np.array([percent for _, percent, _ in chosen]),
        "is_test": np.array([0, 1, 1, 0, 0]),
        "site": np.array([site for site, _, _ in chosen]),
    }


def feature(site: str, percent: float | None, day: date) -> dict[str, Any]:
    properties = {"percent(t)": percent, "site": site, "date": f"{day}T00:00:00"}
    return {"type": "Feature", "properties": properties, "geometry": {"type": "Point", "coordinates": PLACES[site]}}


def save(folder: Path, labels: list[tuple[str, float, date]] = LABELS, **changed: np.ndarray) -> Path:
    (folder / "npy").mkdir(parents=True, exist_ok=True)
    for name, values in (stacks() | changed).items():
        np.save(folder / "npy" / f"{name}.npy", values)
    text = {"type": "FeatureCollection", "features": [feature(*label) for label in labels]}
    (folder / "single_file_labels.geojson").write_text(json.dumps(text))
    return folder


def seconds(year: int, month: int, day: int) -> int:
    return int(datetime(year, month, day, tzinfo=UTC).timestamp())


def test_every_value_finds_its_column(tmp_path: Path) -> None:
    folder, out = save(tmp_path / "in"), tmp_path / "out"
    assert main(["write", "--reader", NAME, "--from", str(folder), str(out)]) == 0
    assert verify(out, deep=True)[0] == []
    manifest, samples, given = load_manifest(out), read_all(out), stacks()
    axes = {name: (spec["axes"], spec["shape"]) for name, spec in manifest["images"].items()}
    assert axes == {
        "s1": ("TC", [3, 2]),
        "s2": ("TC", [3, 11]),
        "era5": ("TC", [3, 2]),
        "srtm": ("C", [2]),
        "dynamic_world": ("TC", [3, 9]),
    }
    assert [band["name"] for band in manifest["images"]["s1"]["bands"]] == ["VV", "VH"]
    optical = {band["name"]: band["centre_nm"] for band in manifest["images"]["s2"]["bands"]}
    assert list(optical) == ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
    assert optical["B02"] == 492.4 and optical["B12"] == 2202.4
    assert manifest["images"]["s2"]["scale"] == 1e-4
    assert manifest["targets"]["fuel_moisture"]["missing"] == "nan"
    assert manifest["notes"]["published_splits"] == {"test": 2, "train": 3}
    for row in range(len(ROWS)):
        sample, bands = samples[f"fuel_moisture-{row:05d}"], given["s1_s2_era5_srtm"][row]
        assert np.array_equal(sample["s1"], bands[:, 0:2].astype(np.float32))
        assert np.array_equal(sample["s2"], bands[:, 2:13])
        assert np.array_equal(sample["era5"], bands[:, 13:15].astype(np.float32))
        assert np.array_equal(sample["srtm"], bands[0, 15:17].astype(np.float32))
        assert (sample["lat"], sample["lon"]) == tuple(given["latlon"][row])
        assert sample["fuel_moisture"] == given["target"][row]
        assert sample["split"] == ("test" if given["is_test"][row] else "train")
        assert sample["site"].decode() == given["site"][row]
        assert np.array_equal(sample["month"], given["month"][row] + 1)


def test_dates_come_from_the_list_of_labels(tmp_path: Path) -> None:
    """31 March less 90 days is New Year's Eve: the composites, the months and the cover each have their own steps."""
    source = open_with(NAME, save(tmp_path))
    samples = every(source)
    assert samples["s1_time"][0].tolist() == [seconds(2016, 12, 31), seconds(2017, 1, 30), seconds(2017, 3, 1)]
    assert (samples["s2_time_end"] - samples["s2_time"] == 30 * 86_400 - 1).all()
    assert samples["time_end"][0] == samples["s1_time_end"][0, -1] == seconds(2017, 3, 31) - 1
    assert samples["time_start"][0] == samples["s1_time"][0, 0]
    assert samples["era5_time"][0].tolist() == [seconds(2016, 12, 1), seconds(2017, 1, 1), seconds(2017, 3, 1)]
    assert samples["era5_time_end"][0].tolist() == [
        t - 1 for t in (seconds(2017, 1, 1), seconds(2017, 2, 1), seconds(2017, 4, 1))
    ]
    assert samples["dynamic_world_time"][0].tolist() == [
        seconds(2016, 12, 31),
        seconds(2017, 1, 1),
        seconds(2017, 2, 1),
    ]
    assert samples["dynamic_world_time_end"][0, 0] == seconds(2017, 1, 1) - 1
    # The same site and value again, a year later and in other months.
    assert samples["time_end"][3] == seconds(2018, 6, 30) - 1
    assert samples["month"][0].tolist() == [12, 1, 3]


def test_cover_is_one_of_nine_or_missing(tmp_path: Path) -> None:
    missing = every(open_with(NAME, save(tmp_path)))
    assert missing["dynamic_world_valid"].tolist() == [[1, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [1, 1, 1]]
    assert missing["dynamic_world"].sum((1, 2)).tolist() == [2, 2, 0, 3, 3]
    assert missing["dynamic_world"][0, :, [1, 5]].tolist() == [[1, 0, 0], [0, 0, 1]]
    water = every(open_with(NAME, tmp_path, water="class"))
    assert water["dynamic_world_valid"].tolist() == [[1, 1, 1], [1, 0, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]]
    assert (water["dynamic_world"][2, :, 0] == 1).all()


def test_a_site_stays_whole_and_val_is_carved_from_train(tmp_path: Path) -> None:
    listing = open_with(NAME, save(tmp_path / "in")).listing()
    assert listing.splits == ["", "test", "test", "", ""]
    assert listing.groups[0] == listing.groups[3] != listing.groups[4]
    out = tmp_path / "out"
    assert main(["write", "--reader", NAME, "--from", str(tmp_path / "in"), "--val-fraction", "0.4", str(out)]) == 0
    by_split: dict[str, set[bytes]] = {}
    for sample in read_all(out).values():
        by_split.setdefault(sample["split"], set()).add(sample["site"])
    assert by_split["test"] == {b"Lost Lake"}
    assert by_split["train"] | by_split["val"] == {b"Dry Creek", b"Ana, WY"}
    assert not by_split["train"] & by_split["val"]


def test_a_missing_target_stays_missing(tmp_path: Path) -> None:
    labels = [*LABELS]
    labels[5] = ("Ana, WY", None, LABELS[5][2])  # type: ignore[assignment]
    target = stacks()["target"]
    target[4] = np.nan
    samples = every(open_with(NAME, save(tmp_path, labels, target=target)))
    assert np.isnan(samples["fuel_moisture"]).tolist() == [False, False, False, False, True]


def test_rows_whose_date_cannot_be_told(tmp_path: Path) -> None:
    again = [*LABELS[:1], ("Dry Creek", 101.5, date(2018, 3, 31)), *LABELS[1:]]
    # Between the two that look alike nothing else is matched, so either may be the row's.
    assert "row 0 of the stacks may be of 2017-03-31 or of 2018-03-31" in refusal(NAME, save(tmp_path, again))
    assert "row 1 of the stacks (Lost Lake) is of no label" in refusal(NAME, save(tmp_path, LABELS[2:3] + LABELS[:1]))


def changed(name: str, where: tuple, value: float) -> dict[str, np.ndarray]:
    values = stacks()[name]
    values[where] = value
    return {name: values}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (changed("s1_s2_era5_srtm", (0, 0, 7), 9000), "another order than expected"),
        (changed("s1_s2_era5_srtm", (0, 0, 4), 10.5), "whole numbers from 0 to 65,535"),
        (changed("s1_s2_era5_srtm", (0, 0, 15), 31), "change from step to step"),
        (changed("s1_s2_era5_srtm", (0, 0, 0), np.nan), "1 NaN or infinite"),
        (changed("dynamic_world", (0, 0), 10), "whole numbers from 0 to 9"),
        (changed("month", (0, 0), 12), "whole numbers from 0 to 11"),
        (changed("is_test", (0,), 1), "site 'Dry Creek' is in train and in test"),
        (changed("target", (0,), np.inf), "numbers are expected"),
        (changed("target", (0,), 102), "row 0 of the stacks (Dry Creek) is of no label"),
        ({"site": np.arange(5)}, "a list of names"),
        ({"month": stacks()["month"][:4]}, "should be equal"),
        ({"latlon": stacks()["latlon"][:, ::-1]}, "is of no label"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, change: dict[str, np.ndarray], expected: str) -> None:
    assert expected in refusal(NAME, save(tmp_path, **change))


def test_absent_and_damaged_files(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "single_file_labels.geojson").write_text('{"features": [{"type": "Feature"}]}')
    assert "not the published list of labels" in refusal(NAME, tmp_path)
    (tmp_path / "npy" / "month.npy").unlink()
    assert "month.npy not found" in refusal(NAME, tmp_path)


@pytest.mark.realdata
def test_the_published_files() -> None:
    if not REAL.is_dir():
        pytest.skip("the shared series are not here")
    source = open_with(NAME, REAL)
    listing, samples = source.listing(), every(source)
    assert [listing.splits.count(split) for split in ("", "test")] == [1578, 735]
    assert len(set(listing.groups)) == 150
    assert samples["fuel_moisture"].min() > 30 and samples["fuel_moisture"].max() < 320
    days = samples["time_end"].astype("datetime64[s]").astype("datetime64[D]")
    assert (days.min(), days.max()) == (np.datetime64("2015-10-30"), np.datetime64("2019-01-30"))
    # ERA5 is of calendar months: steps of one month hold the same, steps of two do not.
    same = samples["era5_time"][:, 1] == samples["era5_time"][:, 2]
    equal = (samples["era5"][:, 1] == samples["era5"][:, 2]).all(-1)
    assert 500 < same.sum() < 1500
    assert equal[same].all() and not equal[~same].any()
    # Where there is said to be water, green and near infrared show land.
    wet = np.load(REAL / "npy/dynamic_world.npy") == 0
    green, nir = (samples["s2"][..., band].astype(float) for band in (1, 6))
    assert np.percentile(((green - nir) / (green + nir))[wet], 90) < 0
    assert (samples["dynamic_world_valid"] == ~wet).all()
