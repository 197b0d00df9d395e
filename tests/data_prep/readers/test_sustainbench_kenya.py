"""Crop types of Kenya: pickled masked arrays read without running them, folds, masks."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.readers import sustainbench_kenya as kenya
from data_prep.readers._array_pickle import read_array_pickle
from frontier.errors import UserError
from tests.data_prep.readers.sustainbench_folders import open_source, read_all, write_shards, write_table

FIELDS = [
    # cropType, region, fold_random, fold_busia_test, fold_bungoma_test, fold_siaya_test
    ("Maize", "pilot", "test", "train", "train", "train"),
    ("Sugar Cane", "Bungoma", "train", "train", "test", "train"),
    ("Sweet Potatoes", "Busia", "train", "test", "train", "train"),
    ("", "Siaya", "train", "train", "train", "test"),
]
FOLDS = ("random", "busia_test", "bungoma_test", "siaya_test")


def series(k: int) -> np.ma.MaskedArray:
    """[14, 365]; what is masked holds NaN."""
    random = np.random.default_rng(k)
    known = random.random((14, 365)) < 0.2
    values = random.integers(500, 4000, (14, 365)).astype(np.float64)
    return np.ma.MaskedArray(np.where(known, values, np.nan), mask=~known)


def rows() -> list[dict[str, Any]]:
    return [
        {"fileName": f"kenya_2017_sentinel2_timeseries_{k}.npy", "cropType": crop, "fieldID": k + 1, "region": region}
        | {f"fold_{name}": fold for name, fold in zip(FOLDS, folds, strict=True)}
        for k, (crop, region, *folds) in enumerate(FIELDS)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    write_table(root / "crop_type_kenya_2017_metadata.csv", rows())
    (root / "timeseries").mkdir()
    for k, row in enumerate(rows()):
        path = root / "timeseries" / row["fileName"]
        if k == 2:  # converted: a plain array, NaN where nothing is known
            np.save(path, series(k).filled(np.nan))
        else:
            series(k).dump(str(path))
    return root


def test_fields(folder: Path, tmp_path: Path) -> None:
    manifest = write_shards("kenya", folder, tmp_path / "out", "partial=yes")
    samples = read_all(tmp_path / "out")
    spec = manifest["images"]["image"]
    assert (spec["axes"], spec["shape"], spec["mask"]) == ("TC", [365, 14], "image_valid")
    assert [band["name"] for band in spec["bands"]][-3:] == ["B11", "B12", "GCVI"]
    assert manifest["classes"] == list(kenya.CROPS)
    assert manifest["notes"]["without_label"] == 1
    assert manifest["notes"]["fields"]["published"] == {"Bungoma": 2098, "Busia": 1957, "Siaya": 1638}
    for k, (row, (crop, region, fold, *_)) in enumerate(zip(rows(), FIELDS, strict=True)):
        sample = samples[row["fileName"]]
        known = ~series(k).mask
        assert np.array_equal(sample["image_valid"], known.T)
        assert np.array_equal(sample["image"], np.where(known, series(k).data, 0).T.astype(np.float32))
        assert sample["valid_fraction"] == pytest.approx(known.mean())
        assert sample["split"] == fold
        assert sample["region"] == region.encode()
        assert sample["field"] == k + 1
        assert sample["label"] == {"Maize": 4, "Sugar Cane": 7, "Sweet Potatoes": 8, "": -1}[crop]
        days = np.datetime64(0, "s") + sample["image_time"].astype("timedelta64[s]")
        assert np.array_equal(days, np.arange("2017-01-01", "2018-01-01", dtype="datetime64[D]").astype("M8[s]"))
    train = [k for k in range(4) if FIELDS[k][2] == "train"]
    values = np.ma.concatenate([series(k)[0] for k in train]).compressed()
    assert spec["statistics"]["count"][0] == len(values)
    assert spec["statistics"]["mean"][0] == pytest.approx(values.mean())


@pytest.mark.parametrize("fold", FOLDS)
def test_folds(folder: Path, fold: str) -> None:
    listing = open_source("kenya", folder, "partial=yes", f"fold={fold}").listing()
    assert listing.splits == [field[2 + FOLDS.index(fold)] for field in FIELDS]


def test_incomplete_copies_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"1 fields of 'Bungoma', 2,098 were published"):
        open_source("kenya", folder)
    monkeypatch.setattr(kenya, "PUBLISHED", {"Bungoma": 1})
    assert len(open_source("kenya", folder).listing().ids) == 4
    (folder / "timeseries" / rows()[1]["fileName"]).unlink()
    with pytest.raises(UserError, match="1 of 4 series are absent"):
        open_source("kenya", folder)
    assert len(open_source("kenya", folder, "partial=yes").listing().ids) == 3


class Attack:
    """A pickle that would make a directory while it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_nothing_in_a_pickle_is_run(folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    path = folder / "timeseries" / rows()[0]["fileName"]
    for protocol in (2, 4, 5):
        path.write_bytes(pickle.dumps(Attack(str(trap)), protocol=protocol))
        with pytest.raises(UserError, match=r"not a pickled array \(names posix.mkdir, which is not part of an array"):
            open_source("kenya", folder, "partial=yes")
    objects = np.empty(1, object)
    objects[0] = Attack(str(trap))
    objects.dump(str(path))
    with pytest.raises(UserError, match="not a pickled array"):
        open_source("kenya", folder, "partial=yes")
    np.save(path, objects, allow_pickle=True)
    with pytest.raises(UserError, match="not a readable .npy array"):
        open_source("kenya", folder, "partial=yes")
    assert not trap.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<i2", "|u1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickled_arrays_equal_what_numpy_unpickles(tmp_path: Path, protocol: int, dtype: str, order: str) -> None:
    random = np.random.default_rng(1)
    values = np.array(random.integers(0, 100, (3, 5)), dtype=dtype, order=order)
    path = tmp_path / "array.npy"
    for array in (values, np.ma.array(values, mask=random.random((3, 5)) < 0.4, order=order), np.ma.array(values)):
        if protocol == 5 and type(array) is np.ndarray:
            continue  # another reconstruction, which no archive uses
        path.write_bytes(pickle.dumps(array, protocol=protocol))
        found, valid = read_array_pickle(path)
        assert np.array_equal(found, np.ma.getdata(array))
        assert np.array_equal(valid, ~np.ma.getmaskarray(array))


def test_damaged_pickles_end_in_one_line(tmp_path: Path) -> None:
    whole = series(0).dumps()
    path = tmp_path / "x.npy"
    random = np.random.default_rng(2)
    messages = []
    for _ in range(200):
        data = bytearray(whole)
        for place in random.integers(0, 600, 3):
            data[place] = random.integers(0, 256)
        path.write_bytes(data[: random.integers(3, len(data))] if random.random() < 0.5 else data)
        try:
            values, valid = read_array_pickle(path)
            assert values.shape == valid.shape
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.ma.array(np.zeros((13, 365)), mask=False), r"the series is float64 \(13, 365\), \(14, 365\)"),
        (
            np.ma.array(np.full((14, 365), np.inf), mask=False),
            "the series holds 5110 NaN or infinite values that are not",
        ),
        (np.ma.array(np.full((14, 365), "a"), mask=False), "its type is 'U1', plain numbers are expected"),
    ],
)
def test_bad_series_are_named(folder: Path, array: Any, expected: str) -> None:
    name = rows()[0]["fileName"]
    array.dump(str(folder / "timeseries" / name))
    with pytest.raises(UserError, match=rf"1 of 4 series cannot be used: timeseries/{name} \(.*{expected}"):
        open_source("kenya", folder, "partial=yes")
    assert len(open_source("kenya", folder, "partial=yes", on_error="skip").listing().ids) == 3


def test_bad_lines_are_named(folder: Path) -> None:
    for change, expected in (
        ({"cropType": "Tulips"}, "line 2: cropType is 'Tulips', none of banana"),
        ({"fileName": "/etc/passwd"}, "line 2: fileName is '/etc/passwd'"),
        ({"fold_random": "third"}, "line 2: fold_random is 'third', no split"),
    ):
        write_table(folder / "crop_type_kenya_2017_metadata.csv", [rows()[0] | change, *rows()[1:]])
        with pytest.raises(UserError, match=expected):
            open_source("kenya", folder, "partial=yes")


def test_a_pickle_that_asks_for_memory_or_steps_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for data in (b"\x80\x02Nr\xff\xff\xff\x0f.", b"\x80\x02N" + b"N0" * 1000 + b"."):
        path.write_bytes(data)
        with pytest.raises(UserError, match="more than 1000 steps or places"):
            read_array_pickle(path)
