"""Surveys: the country split, missing labels, the night lights' sensor, both names of a survey's folder."""

from __future__ import annotations

import calendar
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.readers import sustainbench_dhs as dhs
from frontier.errors import UserError
from tests.data_prep.readers.sustainbench_folders import number, open_source, read_all, write_shards, write_table

NAN = float("nan")
CLUSTERS = {
    # id: (year, lat, lon, urban, asset_index, women_bmi)
    "AL-2008-5#-00000001": (2008, 41.0, 19.5, "U", 1.5, NAN),
    "ZW-2015-7#-00000002": (2015, -17.5, 31.0, "R", -0.25, 22.5),
    "TZ-2011-6#-00000003": (2011, -6.0, 35.0, "R", NAN, 21.0),
    "ET-2012-6#-00000004": (2012, 9.0, 40.0, "", NAN, NAN),
}


def rows() -> list[dict[str, Any]]:
    out = []
    for name, (year, lat, lon, urban, asset, bmi) in CLUSTERS.items():
        row = {"DHSID_EA": name, "cname": name[:2], "year": year, "lat": lat, "lon": lon, "urban": urban}
        row |= dict.fromkeys(dhs.UNITS, "")
        row |= {"asset_index": asset, "women_bmi": bmi, "n_asset": "" if math.isnan(asset) else 9}
        out.append({key: "NA" if value != value else value for key, value in row.items()})
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dhs")
    write_table(path / "dhs_final_labels.csv", rows())
    for seed, name in enumerate(CLUSTERS):
        # One survey extracted into dhs_npzs, the others beside the table.
        survey = path / ("dhs_npzs" if seed % 2 else "") / name[:10]
        survey.mkdir(parents=True)
        np.savez_compressed(survey / f"{name}.npz", x=image(seed))
    return path


def image(seed: int) -> np.ndarray:
    """[8, 255, 255], float32: a band's number, and a gradient from the first row on."""
    bands = np.arange(8, dtype=np.float32)[:, None, None] + seed * 100
    return bands + np.linspace(0, 0.5, 255, dtype=np.float32)[None, :, None] + np.zeros((1, 1, 255), np.float32)


@pytest.fixture(scope="module")
def written(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    out = tmp_path_factory.mktemp("dhs_out") / "shards"
    return write_shards("dhs", folder, out, "partial=yes"), read_all(out)


def test_splits_are_the_published_countries(written: tuple[dict, dict]) -> None:
    assert {name: sample["split"] for name, sample in written[1].items()} == {
        "AL-2008-5#-00000001": "train",
        "ZW-2015-7#-00000002": "train",
        "TZ-2011-6#-00000003": "val",
        "ET-2012-6#-00000004": "test",
    }
    assert [len(codes.split()) for codes in dhs.COUNTRIES.values()] == [30, 13, 13]
    assert len(dhs.SPLIT_OF) == 56


def test_images_bands_and_orientation(written: tuple[dict, dict]) -> None:
    manifest, samples = written
    names = [band["name"] for band in manifest["images"]["image"]["bands"]]
    assert names == ["BLUE", "GREEN", "RED", "SWIR1", "SWIR2", "TEMP1", "NIR", "DMSP", "VIIRS"]
    for seed, name in enumerate(CLUSTERS):
        stored, published = samples[name]["image"], image(seed)
        assert np.array_equal(stored[:7], published[:7, ::-1]), "the first row is the northernmost"
        lights = 7 if CLUSTERS[name][0] <= 2011 else 8
        assert np.array_equal(stored[lights], published[7, ::-1])
        assert (stored[15 - lights] == 0).all()
        assert samples[name]["image_valid"].tolist() == [1] * 7 + [int(lights == 7), int(lights == 8)]
        assert samples[name]["nightlights"] == lights - 7


def test_statistics_keep_the_sensors_of_the_night_lights_apart(written: tuple[dict, dict]) -> None:
    found = written[0]["images"]["image"]["statistics"]
    assert found["count"] == [2 * 255 * 255] * 7 + [255 * 255] * 2
    assert found["mean"][7] == pytest.approx(image(0)[7].mean(dtype=np.float64), rel=1e-6)
    assert found["mean"][8] == pytest.approx(image(1)[7].mean(dtype=np.float64), rel=1e-6)


def test_labels_and_places(written: tuple[dict, dict]) -> None:
    manifest, samples = written
    assert list(manifest["targets"]) == list(dhs.UNITS)
    assert {target["metric"] for target in manifest["targets"].values()} == {"pearson_r2"}
    assert {target["missing"] for target in manifest["targets"].values()} == {"nan"}
    for name, (year, lat, lon, urban, asset, bmi) in CLUSTERS.items():
        sample = samples[name]
        assert (sample["lon"], sample["lat"], sample["year"]) == (lon, lat, year)
        assert np.array_equal([sample["asset_index"], sample["women_bmi"]], [asset, bmi], equal_nan=True)
        assert math.isnan(sample["women_edu"])
        assert sample["n_asset"] == (-1 if math.isnan(asset) else 9)
        assert sample["urban"] == {"U": 1, "R": 0, "": -1}[urban]
        assert sample["country"] == name[:2].encode()
        assert sample["gsd_m"] == pytest.approx(30 * np.cos(np.radians(lat)))
        assert sample["time_start"] == calendar.timegm((year - 1, 1, 1, 0, 0, 0))
        assert sample["time_end"] == calendar.timegm((year + 1, 12, 31, 23, 59, 59))
    assert manifest["notes"]["labelled_asset_index"] == {
        "published": {"train": 59617, "val": 16776, "test": 10543},
        "found": {"train": 2},
    }
    assert "CC BY-SA 4.0" in manifest["license"]


def test_one_target_with_or_without_the_unlabelled(folder: Path) -> None:
    kept = open_source("dhs", folder, "partial=yes", "target=women_bmi")
    assert list(kept.targets) == ["women_bmi"]
    assert "asset_index" not in kept.columns
    assert len(kept.listing().ids) == 4
    dropped = open_source("dhs", folder, "partial=yes", "target=women_bmi", "unlabelled=drop")
    assert dropped.listing().ids == [b"ZW-2015-7#-00000002", b"TZ-2011-6#-00000003"]
    assert dropped.describe() != kept.describe()
    with pytest.raises(UserError, match="no cluster is labelled with women_edu"):
        open_source("dhs", folder, "partial=yes", "target=women_edu", "unlabelled=drop")


def test_incomplete_copies_are_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = r"2 clusters labelled with asset_index of 'train', 59,617 were published.*partial"
    with pytest.raises(UserError, match=expected):
        open_source("dhs", folder)
    monkeypatch.setattr(dhs, "PUBLISHED", dict.fromkeys(dhs.UNITS, (0, 0, 0)) | {"asset_index": (2, 0, 0)})
    assert len(open_source("dhs", folder).listing().ids) == 4
    table = [*rows(), rows()[0] | {"DHSID_EA": "AL-2008-5#-00000009"}]
    write_table(tmp_path / "short" / "dhs_final_labels.csv", table)
    (tmp_path / "short" / "dhs_npzs").symlink_to(folder / "dhs_npzs")
    with pytest.raises(UserError, match=r"3 of 5 images are absent \(such as AL-2008-5#-00000001.npz\).*partial=yes"):
        open_source("dhs", tmp_path / "short")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"y": number(0, 8, 255, 255)}, "no array 'x': there are: y"),
        ({"x": number(0, 8, 224, 224)}, r"x has shape \(8, 224, 224\), \(8, 255, 255\) is expected"),
        ({"x": np.full((8, 255, 255), np.nan, np.float32)}, "x holds 520200 NaN or infinite values"),
        ({"x": np.full((8, 255, 255), "a")}, "x has type <U1"),
        ({"x": np.array([{}])}, "not a readable .npz archive"),
        (b"PK\x03\x04 torn", "not a readable .npz archive"),
    ],
)
def test_bad_images_are_named(tmp_path: Path, content: Any, expected: str) -> None:
    name, other = "AL-2008-5#-00000001", "ZW-2015-7#-00000002"
    write_table(tmp_path / "in" / "dhs_final_labels.csv", rows()[:2])
    for survey in (name[:10], other[:10]):
        (tmp_path / "in" / "dhs_npzs" / survey).mkdir(parents=True)
    path = tmp_path / "in" / "dhs_npzs" / name[:10] / f"{name}.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez_compressed(path, **content)
    np.savez_compressed(tmp_path / "in" / "dhs_npzs" / other[:10] / f"{other}.npz", x=image(1))
    with pytest.raises(UserError, match=rf"1 of 2 images cannot be used: dhs_npzs/{name[:10]}/{name}.npz \({expected}"):
        open_source("dhs", tmp_path / "in", "partial=yes")
    listing = open_source("dhs", tmp_path / "in", "partial=yes", on_error="skip").listing()
    assert listing.ids == [other.encode()]
    assert listing.notes["skipped"] == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"DHSID_EA": "QQ-2008-5#-00000001", "cname": "QQ"}, "line 2: country 'QQ' is in none"),
        ({"DHSID_EA": "AL-2008-5#-../../x"}, "line 2: DHSID_EA is"),
        ({"cname": "ZW"}, "line 2: cname is 'ZW', but AL-2008-5#-00000001 is of AL"),
        ({"asset_index": "rich"}, "line 2: asset_index is 'rich', not a number"),
        ({"asset_index": "inf"}, "line 2: asset_index is infinite"),
        ({"lat": "95"}, "is no place on Earth"),
        ({"year": "2008.5"}, "line 2: year is '2008.5', not a whole number"),
        ({"DHSID_EA": "ZW-2015-7#-00000002", "cname": "ZW"}, "line 3: the same DHSID_EA as line 2"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, change: dict, expected: str) -> None:
    first, second = rows()[:2]
    write_table(tmp_path / "in" / "dhs_final_labels.csv", [first | change, second])
    with pytest.raises(UserError, match=expected):
        open_source("dhs", tmp_path / "in", "partial=yes")


def test_absent_and_wrong_tables(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dhs_final_labels.csv not found: download dhs_final_labels.csv and extract"):
        open_source("dhs", tmp_path)
    write_table(tmp_path / "dhs_final_labels.csv", [{"DHSID": "AL", "year": 2000}])
    with pytest.raises(UserError, match="no column 'DHSID_EA': did you mean DHSID"):
        open_source("dhs", tmp_path)
    (tmp_path / "dhs_final_labels.csv").write_bytes(b"DHSID_EA,year\n\xff\xfe,1\n")
    with pytest.raises(UserError, match="not a UTF-8 CSV table"):
        open_source("dhs", tmp_path)
    write_table(tmp_path / "dhs_final_labels.csv", rows())
    with pytest.raises(UserError, match="none of the 4 images is below"):
        open_source("dhs", tmp_path, "partial=yes")
