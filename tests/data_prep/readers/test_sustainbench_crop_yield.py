"""Soybean yields: axes, keys, splits, counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.readers import sustainbench_crop_yield as crop_yield
from frontier.errors import UserError
from tests.data_prep.readers.sustainbench_folders import open_source, read_all, write_shards

KEYS = {
    "train": ["adair_ia_2005", "adair_ia_2006", "st. clair_mi_2010"],
    "dev": ["adair_ia_2007"],
    "test": ["a_b_c_2016"],
}


def hists(split: str) -> np.ndarray:
    """[n, bin, step, band]: over the bins, shares of 1."""
    random = np.random.default_rng(len(split)).random((len(KEYS[split]), 32, 32, 9))
    return random / random.sum(axis=1, keepdims=True)


def files(split: str) -> dict[str, Any]:
    count = len(KEYS[split])
    return {
        "hists": hists(split),
        "yields": np.arange(count) + 2.5,
        "years": np.array([int(key[-4:]) for key in KEYS[split]], np.float64),
        "keys": np.array(KEYS[split]),
        "ndvi": np.full((count, 32), 0.25),
    }


def save(folder: Path) -> None:
    folder.mkdir(parents=True)
    for split in KEYS:
        for part, data in files(split).items():
            np.savez_compressed(folder / f"{split}_{part}.npz", data=data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "in" / "soybeans" / "usa")
    return tmp_path / "in"


def test_counties(folder: Path, tmp_path: Path) -> None:
    manifest = write_shards("crop_yield", folder, tmp_path / "out", "partial=yes")
    samples = read_all(tmp_path / "out")
    spec = manifest["images"]["histogram"]
    assert (spec["axes"], spec["shape"]) == ("TCK", [32, 9, 32])
    assert spec["bands"][7] == {"name": "LST_Day_1km", "centre_nm": None, "width_nm": None}
    assert manifest["targets"]["yield"]["metric"] == "rmse"
    assert manifest["targets"]["yield"]["units"] == "t/ha"
    assert manifest["notes"]["counties"] == {"published": {"usa": 9049}, "found": {"usa": 5}}
    assert manifest["notes"]["bin_sums"] == pytest.approx([1, 1])
    for split, name in (("train", "train"), ("dev", "val"), ("test", "test")):
        for row, key in enumerate(KEYS[split]):
            sample = samples[key]
            assert sample["split"] == name
            assert sample["yield_t_ha"] == row + 2.5
            assert sample["year"] == int(key[-4:])
            span = [str(np.datetime64(int(sample[name]), "s")) for name in ("time_start", "time_end")]
            assert span == [f"{key[-4:]}-01-01T00:00:00", f"{key[-4:]}-12-31T23:59:59"]
            assert (sample["ndvi"] == 0.25).all()
            for time, band, share in ((0, 0, 0), (5, 8, 31), (31, 3, 7)):
                assert sample["histogram"][time, band, share] == np.float32(hists(split)[row, share, time, band])
    assert (samples["adair_ia_2005"]["region"], samples["adair_ia_2005"]["region_above"]) == (b"adair", b"ia")
    assert (samples["a_b_c_2016"]["region"], samples["a_b_c_2016"]["region_above"]) == (b"a_b", b"c")


def test_a_county_is_one_group_and_ndvi_may_be_absent(folder: Path) -> None:
    (folder / "soybeans" / "usa" / "dev_ndvi.npz").unlink()
    source = open_source("crop_yield", folder, "partial=yes")
    assert dict(source.arrays) == {}
    groups = source.listing().groups
    assert groups[0] == groups[1] == groups[3] == b"ia/adair"
    assert groups[2] != groups[0]
    names = {"histogram", "year", "region", "region_above", "yield_t_ha", "time_start", "time_end"}
    assert set(source.load([4])) == names


def test_countries_and_completeness(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"5 samples of 'usa', 9,049 were published"):
        open_source("crop_yield", folder)
    with pytest.raises(UserError, match=r"brazil not found: download and extract soybeans.zip"):
        open_source("crop_yield", folder, "country=brazil")
    save(folder / "brazil")
    monkeypatch.setattr(crop_yield, "PUBLISHED", {"brazil": 5})
    assert len(open_source("crop_yield", folder, "country=brazil").listing().ids) == 5
    (folder / "brazil" / "test_keys.npz").unlink()
    with pytest.raises(UserError, match=r"1 of 12 files are absent \(such as brazil/test_keys.npz\)"):
        open_source("crop_yield", folder, "country=brazil")
    monkeypatch.undo()
    assert len(open_source("crop_yield", folder, "country=brazil", "partial=yes").listing().ids) == 4


@pytest.mark.parametrize(
    ("part", "content", "expected"),
    [
        ("hists", {"data": np.zeros((1, 9, 32, 32))}, r"dev_hists.npz \(data has shape \(1, 9, 32, 32\)"),
        ("hists", {"data": np.full((1, 32, 32, 9), np.inf)}, r"dev_hists.npz \(data holds 9216 NaN or infinite"),
        ("yields", {"data": np.array([np.nan])}, r"dev_yields.npz \(data holds 1 NaN"),
        ("yields", {"labels": np.array([1.0])}, r"dev_yields.npz \(no array 'data': there are: labels"),
        ("keys", {"data": np.array([1.0])}, r"dev_keys.npz \(data is float64 \(1,\), a list of keys"),
        ("keys", {"data": np.array([{}])}, r"dev_keys.npz \(not a readable .npz archive"),
        ("keys", {"data": np.array(["adair-ia-2007"])}, r"dev_keys.npz: key 0 is 'adair-ia-2007', not region1"),
        ("keys", {"data": np.array(["adair_ia_2006"])}, r"dev_years.npz: year 0 is 2007, but its key is"),
        ("years", {"data": np.array([2007.0, 2008.0])}, r"dev has {.*'years': 2.*} entries, which should be equal"),
        ("years", {"data": np.array(["soon"])}, r"dev_years.npz \(data holds text"),
    ],
)
def test_bad_files_are_named(folder: Path, part: str, content: dict, expected: str) -> None:
    np.savez(folder / "soybeans" / "usa" / f"dev_{part}.npz", **content)
    with pytest.raises(UserError, match=expected):
        open_source("crop_yield", folder, "partial=yes")
