"""Brick kilns: the table, the HDF5 files, and that the two agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_prep.readers import sustainbench_brick_kiln as kiln
from frontier.errors import UserError
from tests.data_prep.readers.sustainbench_folders import open_source, read_all, write_shards, write_table

COUNT = {0: 3, 1: 0, 2: 2}


def crops(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 9000, (COUNT[number], 64, 64, 13), np.uint16)


def corners(number: int, index: int) -> tuple[float, float, float, float]:
    west, north = 88.0 + number, 24.0 + index
    return west, north, west + 0.0064, north - 0.0064


def rows() -> list[dict[str, Any]]:
    out = []
    for number, count in COUNT.items():
        for index in range(count):
            row = {"y": (number + index) % 2, "partition": (number + index) % 3, "hdf5_file": number}
            row |= {"hdf5_idx": index} | dict(zip(kiln.CORNERS, corners(number, index), strict=True))
            out.append(row | {"indice_offset_num": 1.0, "indice_x": 2.0, "indice_y": 0.0})
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    write_table(root / "list_eval_partition.csv", rows())
    for number, count in COUNT.items():
        with h5py.File(root / f"examples_{number}.hdf5", "w") as file:
            file["images"] = crops(number)
            file["labels"] = np.array([(number + index) % 2 for index in range(count)], np.float64).reshape(-1, 1)
            file["bounds"] = np.array([corners(number, index) for index in range(count)]).reshape(-1, 4)
    return root


def test_crops(folder: Path, tmp_path: Path) -> None:
    manifest = write_shards("brick_kiln", folder, tmp_path / "out", "partial=yes")
    samples = read_all(tmp_path / "out")
    bands = manifest["images"]["image"]["bands"]
    assert [band["name"] for band in bands] == [*(f"B{n:02d}" for n in range(1, 9)), "B8A", "B09", "B10", "B11", "B12"]
    assert all(band["centre_nm"] and band["width_nm"] for band in bands)
    assert manifest["images"]["image"]["dtype"] == "uint16"
    assert manifest["classes"] == ["no kiln", "kiln"]
    assert manifest["notes"]["labels"]["published"] == {"no kiln": 67284, "kiln": 6329}
    assert len(samples) == 5
    for row in rows():
        number, index = row["hdf5_file"], row["hdf5_idx"]
        sample = samples[f"examples_{number}.hdf5:{index}"]
        assert np.array_equal(sample["image"], crops(number)[index].transpose(2, 0, 1))
        assert sample["label"] == row["y"]
        assert sample["split"] == ("train", "val", "test")[row["partition"]]
        west, north, east, south = corners(number, index)
        a, b, c, d, e, f = sample["transform"]
        assert (b, d) == (0, 0)
        assert np.allclose([c, f, c + 64 * a, f + 64 * e], [west, north, east, south])
        assert np.allclose([sample["lon"], sample["lat"]], [(west + east) / 2, (north + south) / 2])
        assert sample["crs_epsg"] == 4326
        assert np.datetime64(int(sample["time_start"]), "s") == np.datetime64("2018-10-01")
        assert np.datetime64(int(sample["time_end"]), "s") == np.datetime64("2019-05-31T23:59:59")


def test_incomplete_copies_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"3 crops of 'no kiln', 67,284 were published"):
        open_source("brick_kiln", folder)
    monkeypatch.setattr(kiln, "PUBLISHED", {"no kiln": 3, "kiln": 2})
    monkeypatch.setattr(kiln, "LINES", (4, 6))
    with pytest.raises(UserError, match=r"5 lines of 'list_eval_partition.csv', 6 were published"):
        open_source("brick_kiln", folder)
    monkeypatch.setattr(kiln, "LINES", (3, 5))
    assert len(open_source("brick_kiln", folder).listing().ids) == 5
    (folder / "examples_2.hdf5").unlink()
    with pytest.raises(UserError, match=r"1 of 2 HDF5 files are absent \(such as examples_2.hdf5\)"):
        open_source("brick_kiln", folder)
    assert len(open_source("brick_kiln", folder, "partial=yes").listing().ids) == 3


def test_pixels_of_real_numbers(folder: Path) -> None:
    for number, count in COUNT.items():
        with h5py.File(folder / f"examples_{number}.hdf5", "r+") as file:
            del file["images"]
            file["images"] = np.full((count, 64, 64, 13), 0.25, np.float64)
    source = open_source("brick_kiln", folder, "partial=yes")
    assert source.images["image"].dtype == "float32"
    assert (source.load([0])["image"] == 0.25).all()
    with h5py.File(folder / "examples_2.hdf5", "r+") as file:
        del file["images"]
        file["images"] = crops(2)
    with pytest.raises(UserError, match="the images of some files are float32, of others uint16"):
        open_source("brick_kiln", folder, "partial=yes")


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("images", None, r"no dataset 'images' \(there are: bounds, labels\)"),
        (
            "images",
            np.zeros((3, 13, 64, 64), np.uint16),
            r"images has shape \(3, 13, 64, 64\), \(n, 64, 64, 13\) is expected",
        ),
        ("images", np.full((3, 64, 64, 13), np.nan), "images holds 159744 NaN"),
        ("images", np.full((3, 64, 64, 13), -1, np.int16), "images reaches from -1 to -1"),
        ("labels", np.zeros(2), r"labels has shape \(2,\), \(3,\) is expected"),
        ("bounds", np.zeros((3, 2)), r"bounds has shape \(3, 2\)"),
        ("bounds", h5py.ExternalLink("elsewhere.hdf5", "/bounds"), "no dataset 'bounds'"),
    ],
)
def test_bad_files_are_named(folder: Path, name: str, array: Any, expected: str) -> None:
    with h5py.File(folder / "examples_0.hdf5", "r+") as file:
        del file[name]
        if array is not None:
            file[name] = array
    with pytest.raises(UserError, match=rf"1 of 2 HDF5 files cannot be used: examples_0.hdf5 \({expected}"):
        open_source("brick_kiln", folder, "partial=yes")
    listing = open_source("brick_kiln", folder, "partial=yes", on_error="skip").listing()
    assert listing.ids == [b"examples_2.hdf5:0", b"examples_2.hdf5:1"]


def test_a_file_that_is_not_hdf5(folder: Path) -> None:
    (folder / "examples_2.hdf5").write_bytes(b"not this")
    with pytest.raises(UserError, match=r"examples_2.hdf5 \(not a readable HDF5 file"):
        open_source("brick_kiln", folder, "partial=yes")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"y": 1}, "line 2: y is 1, but image 0 of examples_0.hdf5 is labelled 0"),
        ({"hdf5_idx": 3}, "line 2: hdf5_idx 3 is not in examples_0.hdf5, which holds 3 images"),
        ({"lon_top_left": 80.0}, "line 2: the corners are not those of image 0 of examples_0.hdf5"),
        ({"partition": 3}, "line 2: partition is '3', no split"),
        ({"y": 2}, "line 2: y is '2', not a whole number from 0 to 1"),
        ({"hdf5_idx": 1}, "line 3: the same hdf5_file and hdf5_idx as line 2"),
    ],
)
def test_table_and_files_must_agree(folder: Path, change: dict, expected: str) -> None:
    write_table(folder / "list_eval_partition.csv", [rows()[0] | change, *rows()[1:]])
    with pytest.raises(UserError, match=expected):
        open_source("brick_kiln", folder, "partial=yes")
