"""Land cover tiles: the label's channel never reaches the input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.readers.sustainbench_landcover import CROPLAND_DATA_LAYER, read_tile
from frontier.errors import UserError
from tests.data_prep.readers.sustainbench_folders import open_source, read_all, write_shards, write_table

TILES = [
    # fileName, landCover, splitStr
    ("0anchor.npy", 75, "train"),
    ("0neighbor.npy", 75, "train"),
    ("0distant.npy", 69, "val"),
    ("1anchor.npy", 250, "test"),
    ("other.npy", "", "train"),
]


def tile(seed: int, code: int) -> np.ndarray:
    """[5, 100, 100] uint8; the fifth channel is the code, of which the image knows nothing."""
    pixels = np.random.default_rng(seed).integers(0, 60, (4, 100, 100), np.uint8)
    return np.concatenate([pixels, np.full((1, 100, 100), code, np.uint8)])


def rows() -> list[dict[str, Any]]:
    number = {"train": 0, "val": 1, "test": 2}
    return [{"fileName": n, "landCover": c, "split": number[s], "splitStr": s} for n, c, s in TILES]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    write_table(root / "metadata.csv", rows())
    (root / "tile_triplets").mkdir()
    for seed, (name, code, _) in enumerate(TILES):
        pixels = tile(seed, code or 7)
        # Both orders of the axes, and numbers of a wider type, are understood.
        pixels = pixels.transpose(1, 2, 0) if seed % 2 else pixels
        np.save(root / "tile_triplets" / name, pixels.astype(np.float64) if seed == 2 else pixels)
    return root


def test_tiles_without_the_label_channel(folder: Path, tmp_path: Path) -> None:
    manifest = write_shards("landcover", folder, tmp_path / "out")
    samples = read_all(tmp_path / "out")
    assert manifest["images"]["image"]["shape"] == [4, 100, 100]
    assert [band["name"] for band in manifest["images"]["image"]["bands"]] == ["red", "green", "blue", "nir"]
    assert manifest["images"]["image"]["gsd_m"] == 0.6
    assert manifest["classes"] == ["Grapes", "Almonds", "CDL 250"]
    assert manifest["targets"]["land_cover"]["metric"] == "accuracy, macro_f1"
    for seed, (name, code, split) in enumerate(TILES):
        sample = samples[name]
        assert np.array_equal(sample["image"], tile(seed, code or 7)[:4])
        assert sample["split"] == split
        assert sample["cdl_code"] == (code or -1)
        assert sample["label"] == ([69, 75, 250].index(code) if code else -1)
        assert sample["image"].max() < 60, "no code of the fifth channel is anywhere in the input"
    assert [samples[name]["triplet"] for name, *_ in TILES] == [0, 0, 0, 1, -1]
    assert [samples[name]["triplet_role"] for name, *_ in TILES] == [0, 1, 2, 0, -1]


def test_the_input_does_not_depend_on_the_label_channel(tmp_path: Path) -> None:
    for code in (3, 200):
        np.save(tmp_path / f"{code}.npy", tile(1, code))
    np.save(tmp_path / "four.npy", tile(1, 0)[:4])
    first = read_tile(str(tmp_path / "3.npy"))
    assert np.array_equal(first, read_tile(str(tmp_path / "200.npy")))
    assert np.array_equal(first, read_tile(str(tmp_path / "four.npy")))


def test_anchor_and_neighbor_are_one_group(folder: Path) -> None:
    listing = open_source("landcover", folder).listing()
    groups = dict(zip(listing.ids, listing.groups, strict=True))
    assert groups[b"0anchor.npy"] == groups[b"0neighbor.npy"] != groups[b"0distant.npy"]


def test_names_of_the_codes() -> None:
    assert len(CROPLAND_DATA_LAYER) == len(set(CROPLAND_DATA_LAYER.values())) == 61


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((5, 99, 100), np.uint8), r"the tile has shape \(5, 99, 100\)"),
        (np.full((5, 100, 100), 300, np.int32), "the image reaches from 300 to 300"),
        (np.full((5, 100, 100), 0.5), "the image holds fractions"),
        (np.full((5, 100, 100), np.inf), "the tile holds 50000 NaN or infinite"),
        (np.array([print]), "not a readable .npy array"),
    ],
)
def test_bad_tiles_are_named(folder: Path, array: np.ndarray, expected: str) -> None:
    np.save(folder / "tile_triplets" / "0distant.npy", array)
    with pytest.raises(UserError, match=rf"tile_triplets/0distant.npy \({expected}"):
        open_source("landcover", folder)
    assert len(open_source("landcover", folder, on_error="skip").listing().ids) == 4


def test_absent_tiles_and_bad_lines(folder: Path) -> None:
    (folder / "tile_triplets" / "1anchor.npy").unlink()
    with pytest.raises(UserError, match=r"1 of 5 tiles are absent \(such as 1anchor.npy\)"):
        open_source("landcover", folder)
    partial = open_source("landcover", folder, "partial=yes").listing()
    assert partial.notes["absent"] == 1
    assert len(partial.classes) == 3, "the classes are those of the whole table"
    for change, expected in (
        ({"fileName": "../1.npy"}, "line 2: fileName is '../1.npy'"),
        ({"landCover": 300}, "line 2: landCover is '300'"),
        ({"splitStr": "dress rehearsal"}, "line 2: splitStr is 'dress rehearsal', no split"),
    ):
        write_table(folder / "metadata.csv", [rows()[0] | change, *rows()[1:]])
        with pytest.raises(UserError, match=expected):
            open_source("landcover", folder, "partial=yes")
    with pytest.raises(UserError, match=r"metadata.csv not found: download metadata.csv and tile_triplets"):
        open_source("landcover", folder / "tile_triplets")
