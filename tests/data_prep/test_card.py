"""The two descriptions that lie beside shards, and `info` and `stats`: what they say is what the arrays hold."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import contents as contents_module
from data_prep.card import MARK, card, card_texts, write_cards
from data_prep.command import main
from data_prep.contents import contents, extent
from data_prep.plan import PlanOptions
from data_prep.scenes import SceneSource
from data_prep.writer import write
from frontier.data.manifest import load_manifest
from frontier.data.shards import ShardSet
from frontier.errors import EXIT_OK, EXIT_USER
from tests.data_prep.everything import CLASSES, EPOCH, Everything

OPTIONS = PlanOptions(seed=2, samples_per_shard=6)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("card") / "some-folder"
    write(Everything(), path, OPTIONS)
    return path


@pytest.fixture(scope="module")
def document(shards: Path) -> dict[str, Any]:
    return json.loads((shards / "croissant.json").read_text())


def every(read: Any) -> np.ndarray:
    """Sample by sample, over all rows of the source."""
    return np.stack([read(Everything().sample(row)) for row in range(30)])


def record_set(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(found for found in document["recordSet"] if found["@id"] == name)


def field(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(found for found in record_set(document, "samples")["field"] if found["name"] == name)


def test_label_counts_equal_those_of_the_arrays(shards: Path) -> None:
    found = contents(shards, load_manifest(shards))["targets"]
    for split in ("train", "val", "test"):
        samples = ShardSet(shards, split)
        labels, land = samples.column("label"), samples.read("land", 0, len(samples))
        crops, wealth = samples.read("crops", 0, len(samples)), samples.column("wealth")
        assert found["place"][split]["classes"] == [(labels == k).sum() for k in range(3)]
        assert found["place"][split]["missing"] == (labels == -1).sum()
        assert found["land"][split]["classes"] == [(land == k).sum() for k in range(3)]
        assert found["land"][split] | {"classes": None} == {
            "labelled": (land != 255).sum(),
            "missing": (land == 255).sum(),
            "classes": None,
        }
        assert found["crops"][split]["classes"] == (crops == 1).sum(axis=0).tolist()
        assert found["crops"][split]["missing"] == (crops == -1).sum()
        there = wealth[np.isfinite(wealth)].astype(np.float64)
        assert found["wealth"][split]["missing"] == len(wealth) - len(there)
        assert np.isclose(found["wealth"][split]["mean"], there.mean())
        assert (found["wealth"][split]["min"], found["wealth"][split]["max"]) == (there.min(), there.max())


def test_too_large_maps_are_not_counted(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents_module, "COUNTED_BYTES", 30 * 4 * 5 - 1)
    found = contents(shards, load_manifest(shards))["targets"]
    assert found["land"] == {"train": None, "val": None, "test": None}
    assert found["crops"]["train"] is not None
    markdown, _ = card_texts(shards)
    assert "Labels by split: not counted." in markdown


def test_extent_crosses_the_antimeridian(shards: Path) -> None:
    found = contents(shards, load_manifest(shards))["extent"]
    lon = every(lambda sample: sample["lon"])
    assert found["placed"] == np.isfinite(lon).sum() == 24
    # 179.1 to 181.9 degrees east.
    assert found["box"] == {"west": 179.1, "south": -16.99, "east": -178.1, "north": -16.71}
    assert found["dated"] == 24
    assert found["time"] == {"start": "2020-09-14T12:26:40Z", "end": "2020-10-12T13:26:40Z"}
    assert np.datetime64(EPOCH + 86400, "s") == np.datetime64(found["time"]["start"][:-1])
    assert found["crs_epsg"] == {"32760": 24}
    assert found["gsd_m"] == {"min": 10.0, "max": 10.0}


def test_extent_of_a_few_places() -> None:
    around = extent({"lon": np.array([-170.0, -10, 100, 170]), "lat": np.array([-5.0, 0, 1, 60])}, 4)
    assert (around["box"]["west"], around["box"]["east"]) == (-170, 170), "the whole globe does not cross anything"
    assert around["cells"] == {"degrees": 10, "occupied": 4, "largest_share": 0.25}
    none = extent({"lon": np.array([np.nan]), "lat": np.array([np.nan]), "time_start": np.array([0])}, 1)
    assert (none["box"], none["time"], none["placed"], none["dated"]) == (None, None, 0, 0)
    assert extent({}, 3)["box"] is None


def test_card_tells_what_is_there(shards: Path) -> None:
    text = (shards / "README.md").read_text()
    statistics = load_manifest(shards)["images"]["series"]["statistics"]
    for words in (
        "# everything\n",
        "Made up, to try every kind of column.",
        "- Homepage: https://example.org/everything",
        "- Licence: CC-BY-4.0",
        "- Citation: Nobody (2020). Everything, small.",
        "| train | 16 | 53.3% | 3 |",
        "| class (samples) | train | val | test |",
        "field \\| meadow",
        "metric: accuracy",
        "- Sensor: Sentinel-2 L2A",
        "uint16 [time 2, band 3, row 4, column 5], contiguous (uncompressed)",
        "physical value = stored x 0.0001 + -0.1",
        "- No data: `0`; mask: `series_there` (1 = valid)",
        f"| B02 | 492.4 | 66 | blue | {statistics['mean'][0]:.6g} |",
        f"| B02 | {statistics['percentiles']['1'][0]:.6g} |",
        "| ndvi | not recorded | not recorded | not recorded |",
        "| series_there | mask of series | uint8 [time 2] |",
        "- Place: longitude 179.1 to -178.1, latitude -16.99 to -16.71 degrees (centres of 24 samples)",
        "EPSG:32760 (24)",
        "Reader: everything.",
        "| count | 30 |",
        "class by class, val 0.0, test 0.0, seed 2",
        "- inputs left out because they could not be used: 2",
        "- target wealth: 5 of 30 labels are missing",
        "- 6 of 30 samples have no place",
        "- 6 of 30 samples have no time",
    ):
        assert words in text, words
    rows = re.findall(r"^\| town \| (\d+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    labels = Everything().listing().labels
    assert sum(map(int, rows[0])) == (labels == 2).sum()


def test_the_snippet_of_the_card_runs(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards)
    code = (shards / "README.md").read_text().split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["series"].shape == (8, 2, 3, 4, 5)
    assert found["label"].shape == (8,)
    assert np.allclose(found["mean"], ShardSet(shards).statistics("series")[0])


def test_what_is_unknown_is_said_to_be(tmp_path: Path) -> None:
    write(SceneSource(8, size=16), tmp_path / "shards", PlanOptions())
    text = (tmp_path / "shards/README.md").read_text()
    assert "- Homepage: not recorded" in text
    assert "- Citation: not recorded" in text
    document = json.loads((tmp_path / "shards/croissant.json").read_text())
    assert not {"url", "citeAs", "datePublished", "creator", "version"} & document.keys()
    assert document["license"] == "https://spdx.org/licenses/CC0-1.0"
    manifest = load_manifest(tmp_path / "shards")
    bare = {key: value for key, value in manifest.items() if key not in ("split_check", "options", "source", "notes")}
    text = card(bare, contents(tmp_path / "shards", manifest) | {"options": None})
    for words in ("Reader: not recorded.", "Splits: not recorded.", "leaks between splits: not recorded."):
        assert words in text
    assert "## Known gaps\n\n- not recorded\n" in text


def test_split_check_is_shown(shards: Path, tmp_path: Path) -> None:
    check = {"by": "place", "block_km": 20.0, "distances": {"test-train": {"nearest_km": 31.5}}}
    copy = tmp_path / "copy"
    write(Everything(), copy, OPTIONS)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest |= {"split_check": check, "options": {"seed": 9, "split_by": "place", "test_fraction": 0.5}}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    text, document = card_texts(copy)
    assert "Check for leaks between splits:\n\n- by: place\n- block km: 20.0\n- test-train: nearest km 31.5\n" in text
    assert "by whole blocks of ground, val null, test 0.5, seed 9" in text
    assert "by whole blocks of ground" in json.loads(document)["geocr:samplingStrategy"]


def test_same_bytes_wherever_they_lie(shards: Path, tmp_path: Path) -> None:
    write(Everything(), tmp_path / "elsewhere/deep", OPTIONS)
    for name in ("README.md", "croissant.json"):
        text = (shards / name).read_text()
        assert (tmp_path / "elsewhere/deep" / name).read_text() == text
        for secret in (str(shards.parent), os.uname().nodename, "some-folder"):
            assert secret not in text


def test_written_again_only_where_they_differ(tmp_path: Path) -> None:
    out = tmp_path / "shards"
    write(Everything(12), out, OPTIONS)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert write_cards(out) == []
    fresh = (out / "README.md").read_text()
    (out / "README.md").write_text(fresh + "changed")
    (out / "croissant.json").unlink()
    assert write(Everything(12), out, OPTIONS).shards_written == 0
    assert (out / "README.md").read_text() == fresh
    after = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"README.md", "croissant.json"}


def test_texts_of_somebody_else_stay(tmp_path: Path) -> None:
    """A README of one's own is no foreign file, and is not written over; nor is a card without its mark."""
    out = tmp_path / "shards"
    out.mkdir()
    (out / "README.md").write_text("mine")
    (out / "croissant.json").write_text('{"name": "mine"}')
    write(Everything(12), out, OPTIONS)
    assert (out / "README.md").read_text() == "mine"
    assert (out / "croissant.json").read_text() == '{"name": "mine"}'
    (out / "README.md").unlink()
    write_cards(out)
    assert MARK in (out / "README.md").read_text()


def test_geocroissant_says_what_the_manifest_says(shards: Path, document: dict[str, Any]) -> None:
    manifest = load_manifest(shards)
    assert document["conformsTo"] == ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/geo/1.0"]
    assert document["license"] == "https://spdx.org/licenses/CC-BY-4.0"
    assert document["url"] == manifest["homepage"]
    assert document["spatialCoverage"]["geo"]["box"] == "-16.99 179.1 -16.71 -178.1", "south west north east"
    assert document["temporalCoverage"] == "2020-09-14T12:26:40Z/2020-10-12T13:26:40Z"
    assert document["geocr:coordinateReferenceSystem"] == "EPSG:32760"
    assert document["geocr:spatialResolution"] == "series: 10 m"
    files = {file["@id"]: file for file in document["distribution"] if file["@type"] == "cr:FileObject"}
    for shard in manifest["shards"]:
        path = shards / files[shard["file"]]["contentUrl"]
        assert files[shard["file"]]["contentSize"] == f"{path.stat().st_size} B"
        assert files[shard["file"]]["sha256"] == shard["sha256"]
    assert len(files) == len(manifest["shards"])
    fields = {found["name"] for found in record_set(document, "samples")["field"]}
    assert fields == {"split", *manifest["columns"], *manifest["images"], *manifest["arrays"]}
    splits = {row["splits/name"]: row["splits/samples"] for row in record_set(document, "splits")["data"]}
    assert splits == {"train": 16, "val": 7, "test": 7}
    assert [row["classes_land/name"] for row in record_set(document, "classes_land")["data"]] == list(CLASSES)
    series = field(document, "series")
    assert series["arrayShape"] == "2,3,4,5"
    assert series["dataType"] == ["cr:UInt16", "sc:ImageObject"]
    assert series["geocr:bandConfiguration"]["geocr:bandNameList"] == ["B02", "B08", "ndvi"]
    assert [band["name"] for band in series["geocr:spectralBandMetadata"]] == ["B02", "B08"]
    mean = next(found for found in series["annotation"] if found["name"] == "mean")
    assert json.loads(mean["value"]) == manifest["images"]["series"]["statistics"]["mean"]
    pattern = field(document, "split")["source"]["transform"]["regex"]
    for shard in manifest["shards"]:
        match = re.match(pattern, Path(shard["file"]).name)
        assert match is not None
        assert match[1] == shard["split"]


@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated")
@pytest.mark.parametrize("kind", ["everything", "one input", "in folders"])
def test_mlcroissant_accepts_it(kind: str, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The validator of Croissant, offline: no errors, and its reading of the document is ours."""
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
    path = shards
    if kind != "everything":
        path = tmp_path / "shards"
        write(SceneSource(24, size=16, sensors=("s2",)), path, PlanOptions(test_fraction=0.5, samples_per_shard=6))
    if kind == "in folders":
        manifest = json.loads((path / "manifest.json").read_text())
        text = re.sub(r"\b(train|test)(-\d{5}\.h5)", r"\1-0000/\1\2", json.dumps(manifest))
        for split in manifest["splits"]:
            (path / f"{split}-0000").mkdir()
            for file in path.glob(f"{split}-*.h5"):
                file.rename(path / f"{split}-0000" / file.name)
        (path / "manifest.json").write_text(text)
        write_cards(path)
    document = json.loads((path / "croissant.json").read_text())
    found = mlcroissant.Dataset(jsonld=document)
    assert not found.metadata.ctx.issues.errors
    known = ("citeAs", "datePublished", "version")
    assert all(any(word in warning for word in known) for warning in found.metadata.ctx.issues.warnings)
    assert "context` is not standard" not in caplog.text
    manifest = load_manifest(path)
    fields = {f.name: f for record in found.metadata.record_sets if record.name == "samples" for f in record.fields}
    for name, spec in (manifest["images"] | manifest["arrays"]).items():
        assert fields[name].array_shape_tuple == tuple(spec["shape"])
        assert np.dtype(spec["dtype"]) in [
            np.dtype(kind.rpartition("/")[2].lower())
            for kind in map(str, fields[name].data_types)
            if "croissant/" in kind and kind[-1].isdigit()
        ]
    bands = fields[next(iter(manifest["images"]))].extra_properties["geocr:bandConfiguration"]["geocr:bandNameList"]
    assert bands == {"@list": [band["name"] for band in next(iter(manifest["images"].values()))["bands"]]}
    assert {file.sha256 for file in found.metadata.file_objects} == {shard["sha256"] for shard in manifest["shards"]}
    for pattern in found.metadata.file_sets[0].includes:
        assert list(path.glob(pattern))
    listed = {file.as_posix() for p in found.metadata.file_sets[0].includes for file in path.glob(p)}
    assert listed == {(path / shard["file"]).as_posix() for shard in manifest["shards"]}


@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated")
def test_a_broken_document_is_refused(document: dict[str, Any]) -> None:
    """The check above can fail."""
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
    broken = json.loads(json.dumps(document))
    del field(broken, "series")["isArray"]
    with pytest.raises(mlcroissant.ValidationError, match="array_shape"):
        mlcroissant.Dataset(jsonld=broken)


def test_card_command(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for style, name in (("markdown", "README.md"), ("croissant", "croissant.json")):
        expected = (shards / name).read_text()
        assert main(["card", str(shards), "--format", style]) == EXIT_OK
        assert capsys.readouterr().out == expected
        assert main(["card", str(shards), "--format", style, "--output", str(tmp_path / name)]) == EXIT_OK
        assert (tmp_path / name).read_text() == expected
        capsys.readouterr()
    assert main(["card", str(shards), "--json"]) == EXIT_OK
    assert json.loads(capsys.readouterr().out) == {"card": (shards / "README.md").read_text()}
    with contextlib.chdir(tmp_path):
        from frontier.cli import main as frontier

        assert frontier(["shards", "card", str(shards), "--output", "nowhere/card.md"]) == EXIT_USER
    assert "nowhere/card.md: cannot be written" in capsys.readouterr().err


def test_info_shows_arrays_targets_and_extent(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(shards), "--json"]) == EXIT_OK
    found = json.loads(capsys.readouterr().out)
    before = "name path schema fingerprint samples bytes splits images columns classes license created_by"
    assert set(before.split()) <= found.keys()
    assert found["arrays"]["series_there"]["role"] == "mask"
    assert found["images"]["series"]["mask"] == "series_there"
    assert found["targets"]["land"]["kind"] == "segmentation"
    assert sum(found["targets"]["land"]["splits"]["test"]["classes"]) == 7 * 3 * 5
    assert found["extent"]["box"]["west"] == 179.1
    assert sum(found["splits"]["train"]["labels"].values()) == found["targets"]["place"]["splits"]["train"]["labelled"]
    assert main(["info", str(shards)]) == EXIT_OK
    text = capsys.readouterr().out
    assert re.search(r"^series +2x3x4x5 +TCHW +uint16 +10 m", text, re.MULTILINE)
    assert re.search(r"^series_there +2 +T +uint8 +mask of series", text, re.MULTILINE)
    assert re.search(r"^wealth +regression +wealth +- +USD +25$", text, re.MULTILINE)
    assert "place: longitude 179.1 to -178.1" in text
    assert "EPSG:32760" in text
    assert "time: 2020-09-14T12:26:40Z to" in text


def test_stats_shows_percentiles(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", str(shards)]) == EXIT_OK
    text = capsys.readouterr().out
    found = load_manifest(shards)["images"]["weather"]["statistics"]["percentiles"]
    assert re.search(r"^percentile +1 +2 +5 +25 +50 +75 +95 +98 +99$", text, re.MULTILINE)
    numbers = " +".join(re.escape(f"{values[1]:.6g}") for values in found.values())
    assert re.search(rf"^heat +{numbers}$", text, re.MULTILINE)
