"""Pairs of images of one cluster, and the publishers' label tables."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.readers import sustainbench_lsms as lsms
from data_prep.splits import assign_splits
from frontier.errors import UserError
from tests.conftest import SHARED_DATA
from tests.data_prep.readers.sustainbench_folders import number, open_source, read_all, write_shards, write_table

REAL = SHARED_DATA / "sustainbench_labels"
PAIRS = [("et", "010", 2011, 2015), ("ug", "7", 2005, 2009), ("ug", "7", 2009, 2013), ("ug", "0", 2009, 2013)]


def over_time() -> list[dict[str, Any]]:
    return [
        {"country": c, "ea_id": e, "year.x": a, "year.y": b}
        | {"asset_index": k, "asset_index_diff": -k - 0.5, "infrastructure_index": 10 + k}
        | {"infrastructure_index_diff": 20 + k, "n": 8 + k}
        for k, (c, e, a, b) in enumerate(PAIRS)
    ]


def places() -> list[dict[str, Any]]:
    known = {("et", "010"): (14.0, 38.0), ("ug", "7"): (0.5, 33.0), ("ug", "0"): (1.0, 32.0)}
    out = [
        {"country": c, "year": year, "ea_id": e, "lat": known[c, e][0], "lon": known[c, e][1], "n": 9}
        for c, e, a, b in PAIRS
        for year in (a, b)
    ]
    return [*out, out[-1] | {"lat": 2.0}]


def image(country: str, cluster: str, year: int) -> np.ndarray:
    return number(hash_free(country, cluster, year), 8, 255, 255)


def hash_free(*words: Any) -> int:
    return sum(ord(letter) * (k + 1) for k, letter in enumerate("".join(map(str, words))))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    write_table(root / lsms.OVER_TIME, over_time())
    write_table(root / "final_labels" / lsms.PLACES, places())
    for country, cluster, *years in PAIRS:
        for year in years:
            path = root / "lsms_npzs" / f"{country}_{year}" / f"{cluster}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, x=image(country, cluster, year))
    return root


def test_pairs(folder: Path, tmp_path: Path) -> None:
    manifest = write_shards("lsms", folder, tmp_path / "out", "partial=yes")
    samples = read_all(tmp_path / "out")
    assert manifest["images"]["image"]["axes"] == "TCHW"
    assert manifest["images"]["image"]["shape"] == [2, 9, 255, 255]
    assert list(manifest["targets"]) == list(lsms.LABELS)
    for k, (country, cluster, *years) in enumerate(PAIRS):
        sample = samples[f"{country}-{cluster}-{years[0]}-{years[1]}"]
        for time, year in enumerate(years):
            raw = image(country, cluster, year)[:, ::-1]
            assert np.array_equal(sample["image"][time, :7], raw[:7])
            lights = 7 if year <= 2011 else 8
            assert np.array_equal(sample["image"][time, lights], raw[7])
            assert sample["image_valid"][time].tolist() == [1] * 7 + [int(lights == 7), int(lights == 8)]
        assert (sample["difference_of_index"], sample["index_of_difference"]) == (k, -k - 0.5)
        assert sample["infrastructure_difference_of_index"] == 10 + k
        assert sample["infrastructure_index_of_difference"] == 20 + k
        assert sample["households"] == 8 + k
        starts = np.datetime64(0, "s") + sample["image_time_start"].astype("timedelta64[s]")
        assert starts.astype("datetime64[Y]").astype(int).tolist() == [year - 1 - 1970 for year in years]
    assert (samples["et-010-2011-2015"]["lon"], samples["et-010-2011-2015"]["lat"]) == (38.0, 14.0)
    assert math.isnan(samples["ug-0-2009-2013"]["lon"]), "two places: none is taken"
    assert manifest["notes"]["without_place"] == 1
    assert manifest["notes"]["pairs"]["published"] == {"et": 327, "mw": 102, "ng": 480, "tz": 300, "ug": 288}


@pytest.mark.parametrize("group", ["cluster", "country"])
def test_no_group_is_divided(folder: Path, group: str) -> None:
    listing = open_source("lsms", folder, "partial=yes", f"group={group}").listing()
    seen = set()
    for seed in range(8):
        splits: dict[str, set[str]] = {}
        for name, split in zip(listing.ids, assign_splits(listing, seed, (0.0, 0.4))[0], strict=True):
            words = name.decode().split("-")
            splits.setdefault(words[0] if group == "country" else words[0] + words[1], set()).add(split)
        assert all(len(found) == 1 for found in splits.values())
        seen |= set.union(*splits.values())
    assert seen == {"train", "test"}


def test_one_image_absent_or_bad(folder: Path) -> None:
    with pytest.raises(UserError, match=r"1 pairs of 'et', 327 were published.*partial=yes"):
        open_source("lsms", folder)
    (folder / "lsms_npzs" / "ug_2009" / "7.npz").unlink()
    listing = open_source("lsms", folder, "partial=yes", "target=index_of_difference").listing()
    assert listing.ids == [b"et-010-2011-2015", b"ug-0-2009-2013"]
    assert listing.notes["pairs_without_both_images"] == 2
    assert listing.notes["absent"] == 1
    np.savez(folder / "lsms_npzs" / "et_2011" / "010.npz", x=np.zeros((7, 255, 255), np.float32))
    with pytest.raises(UserError, match=r"lsms_npzs/et_2011/010.npz \(x has shape \(7, 255, 255\)"):
        open_source("lsms", folder, "partial=yes")


def test_the_names_of_the_images_are_a_setting(folder: Path) -> None:
    (folder / "lsms_npzs").rename(folder / "elsewhere")
    with pytest.raises(UserError, match=r"none of the 7 images is below .* \(such as lsms_npzs/et_2011/010.npz\)"):
        open_source("lsms", folder, "partial=yes")
    images = "images=elsewhere/{country}_{year}/{ea_id}.npz"
    assert len(open_source("lsms", folder, "partial=yes", images).listing().ids) == 4
    for wrong, expected in (
        ("images={year}.npz", "has no {ea_id}"),
        ("images=../{year}/{ea_id}.npz", "leads out of --from"),
    ):
        with pytest.raises(UserError, match=expected):
            open_source("lsms", folder, "partial=yes", wrong)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"year.y": 2011}, "line 2: year.x 2011 is not before year.y 2011"),
        ({"ea_id": "../../secret"}, "line 2: ea_id is '../../secret'"),
        ({"asset_index_diff": "x"}, "line 2: asset_index_diff is 'x', not a number"),
    ],
)
def test_bad_lines_are_named(folder: Path, change: dict, expected: str) -> None:
    write_table(folder / lsms.OVER_TIME, [over_time()[0] | change, *over_time()[1:]])
    with pytest.raises(UserError, match=expected):
        open_source("lsms", folder, "partial=yes")


@pytest.fixture
def real_tables() -> Path:
    if not (REAL / lsms.OVER_TIME).is_file():
        pytest.skip("the shared label tables are not here")
    return REAL


@pytest.mark.realdata
def test_the_published_tables(real_tables: Path, tmp_path: Path) -> None:
    """All 1,497 pairs are understood; the images of the first Malawian clusters are generated."""
    for name in (lsms.OVER_TIME, lsms.PLACES):
        (tmp_path / name).symlink_to(real_tables / name)
    with open(real_tables / lsms.OVER_TIME, newline="") as file:
        table = list(csv.DictReader(file))
    chosen = [row for row in table if row["country"] == "mw"][:2] + [row for row in table if row["ea_id"] == "0"]
    for row in chosen:
        for year in (row["year.x"], row["year.y"]):
            path = tmp_path / "lsms_npzs" / f"{row['country']}_{year}" / f"{row['ea_id']}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, x=image(row["country"], row["ea_id"], int(year)))
    with pytest.raises(UserError, match=r"2\d{3} of 2\d{3} images are absent \(such as lsms_npzs/et_2011/0"):
        open_source("lsms", tmp_path)
    manifest = write_shards("lsms", tmp_path, tmp_path / "out", "partial=yes")
    samples = read_all(tmp_path / "out")
    assert manifest["notes"]["pairs"]["found"] == manifest["notes"]["pairs"]["published"]
    assert sum(manifest["notes"]["pairs"]["found"].values()) == len(table) == 1497
    assert manifest["notes"]["without_place"] == 2, "Uganda's ea_id 0 stands for 42 places"
    assert len(samples) == len(chosen) == 4
    for row in chosen:
        sample = samples[f"{row['country']}-{row['ea_id']}-{row['year.x']}-{row['year.y']}"]
        assert sample["index_of_difference"] == float(row["asset_index_diff"])
        assert sample["difference_of_index"] == float(row["asset_index"])
        assert math.isnan(sample["lon"]) == (row["ea_id"] == "0")


@pytest.mark.realdata
def test_which_column_is_the_difference_of_the_index(real_tables: Path) -> None:
    """For clusters with the same households in both years, index(second) - index(first) is `asset_index`."""
    with open(real_tables / lsms.PLACES, newline="") as file:
        index = {
            (row["country"], row["ea_id"], row["year"]): (float(row["asset_index"]), row["n"])
            for row in csv.DictReader(file)
            if row["ea_id"] != "0"
        }
    with open(real_tables / lsms.OVER_TIME, newline="") as file:
        table = [row for row in csv.DictReader(file) if row["ea_id"] != "0"]
    pairs = [
        (index[row["country"], row["ea_id"], row["year.x"]], index[row["country"], row["ea_id"], row["year.y"]], row)
        for row in table
    ]
    same = [(b[0] - a[0], row) for a, b, row in pairs if a[1] == b[1] == row["n"]]
    assert len(same) > 1000
    differences = np.array([difference for difference, _ in same])
    ours = np.array([float(row[lsms.LABELS["difference_of_index"]]) for _, row in same])
    other = np.array([float(row[lsms.LABELS["index_of_difference"]]) for _, row in same])
    assert np.allclose(differences, ours, rtol=0, atol=1e-9)
    assert np.abs(differences - other).max() > 0.5
