"""Repacking: other bytes on disk, the same samples; and damage in the input is named, never copied."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_prep.command import main
from data_prep.plan import PlanOptions
from data_prep.repack import ShardSource
from data_prep.verify import verify
from data_prep.writer import write
from frontier.cli import main as frontier
from frontier.data.manifest import load_manifest, stored_arrays
from frontier.data.shards import ShardSet
from frontier.errors import EXIT_OK, EXIT_USER, UserError
from tests.conftest import SHARED_DATA
from tests.data_prep.everything import Everything
from tests.data_prep.test_command import mpiexec

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("repack") / "shards"
    write(Everything(), path, PlanOptions(seed=2, samples_per_shard=6))
    return path


def repack(*arguments: str | Path) -> None:
    assert main(["repack", *map(str, arguments)]) == EXIT_OK


def everything_in(path: Path, split: str) -> dict[str, np.ndarray]:
    samples = ShardSet(path, split)
    out = {name: samples.read(name, 0, len(samples)) for name in stored_arrays(samples.manifest)}
    return out | {name: samples.column(name) for name in samples.manifest["columns"]}


def assert_same(one: Path, other: Path, by_id: bool = False) -> None:
    """The same samples, to the byte, split for split; in the same order, or whichever order."""
    for split in SPLITS:
        found, expected = everything_in(other, split), everything_in(one, split)
        assert found.keys() == expected.keys()
        rows = [np.argsort(s["sample_id"]) if by_id else slice(None) for s in (found, expected)]
        for name, values in expected.items():
            assert found[name].dtype == values.dtype
            assert found[name][rows[0]].tobytes() == values[rows[1]].tobytes(), (split, name)


def test_to_gzip_and_back(shards: Path, tmp_path: Path) -> None:
    repack(shards, tmp_path / "small", "--compression", "gzip", "--samples-per-shard", "4")
    repack(tmp_path / "small", tmp_path / "back", "--samples-per-shard", "6")
    for path in (tmp_path / "small", tmp_path / "back"):
        assert_same(shards, path)
        assert verify(path, deep=True)[0] == []
    manifest = load_manifest(tmp_path / "small")
    assert "gzip" in manifest["images"]["series"]["filters"]
    assert len(manifest["shards"]) == 8
    # Back in the first layout, all but the record of the plan in each file is as it was.
    for shard in load_manifest(shards)["shards"]:
        first, last = (h5py.File(path / shard["file"]) for path in (shards, tmp_path / "back"))
        with first, last:
            assert list(first) == list(last)
            assert all(first[name][:].tobytes() == last[name][:].tobytes() for name in first)


def test_what_belongs_to_the_data_is_carried_over(shards: Path, tmp_path: Path) -> None:
    repack(shards, tmp_path / "out", "--samples-per-shard", "4")
    before, after = load_manifest(shards), load_manifest(tmp_path / "out")
    for key in [
        "name",
        "license",
        "citation",
        "homepage",
        "description",
        "notes",
        "targets",
        "classes",
        "columns",
        "arrays",
        "samples",
    ]:
        assert after[key] == before[key], key
    for name, spec in before["images"].items():
        found, expected = after["images"][name].pop("statistics"), spec.pop("statistics")
        assert after["images"][name] == spec
        assert found["count"] == expected["count"]
        assert found["percentiles"] == expected["percentiles"]
        for key in ("mean", "std", "min", "max"):
            assert np.allclose(found[key], expected[key], rtol=1e-12, atol=0)
    made_from = after["source"]["input"]
    assert after["source"]["kind"] == "shards"
    assert after["source"]["fingerprint"] == before["fingerprint"]
    assert made_from["source"] == before["source"]
    text = (tmp_path / "out/README.md").read_text()
    assert f"Repacked from shards everything, fingerprint `{before['fingerprint']}`" in text
    assert "Reader: everything." in text
    assert "| samples_per_shard | 4 |" in text
    assert "| val_fraction |" not in text, "the splits were kept: it had no effect"
    document = json.loads((tmp_path / "out/croissant.json").read_text())
    assert document["isBasedOn"]["identifier"]["value"] == before["fingerprint"]


def test_a_new_order(shards: Path, tmp_path: Path) -> None:
    repack(shards, tmp_path / "out", "--seed", "11", "--workers", "2", "--samples-per-shard", "9")
    assert_same(shards, tmp_path / "out", by_id=True)
    ids = [ShardSet(path).column("sample_id").tolist() for path in (shards, tmp_path / "out")]
    assert ids[0] != ids[1]
    repack(shards, tmp_path / "other", "--seed", "12", "--samples-per-shard", "9")
    assert ShardSet(tmp_path / "other").column("sample_id").tolist() != ids[1]
    # The seed of the first writing brings its order back.
    repack(tmp_path / "out", tmp_path / "again", "--seed", "2", "--samples-per-shard", "6")
    assert_same(shards, tmp_path / "again")


def test_some_of_the_columns(shards: Path, tmp_path: Path) -> None:
    repack(shards, tmp_path / "out", "--columns", "series,land", "--name", "less")
    manifest = load_manifest(tmp_path / "out")
    assert manifest["name"] == "less"
    assert set(manifest["images"]) == {"series"}
    assert set(manifest["arrays"]) == {"land", "series_there"}, "a mask goes with its input"
    assert set(manifest["targets"]) == {"place", "land", "wealth"}
    assert verify(tmp_path / "out", deep=True)[0] == []
    for split in SPLITS:
        found, expected = everything_in(tmp_path / "out", split), everything_in(shards, split)
        for name in found.keys() - {"crc32"}:
            assert found[name].tobytes() == expected[name].tobytes()


def test_new_splits(shards: Path, tmp_path: Path) -> None:
    repack(shards, tmp_path / "out", "--splits", "new", "--test-fraction", "0.5")
    manifest = load_manifest(tmp_path / "out")
    counts = {name: split["samples"] for name, split in manifest["splits"].items()}
    labels = Everything().listing().labels
    halves = sum(int((labels == label).sum() * 0.5 + 0.5) for label in (-1, 0, 1, 2))
    assert counts == {"train": 30 - halves, "test": halves}
    ids = [i for split in counts for i in ShardSet(tmp_path / "out", split).column("sample_id").tolist()]
    assert sorted(ids) == sorted(Everything().listing().ids)


class Copies(Everything):
    """Each sample twice, under two names."""

    def sample(self, row: int) -> dict[str, Any]:
        return super().sample(row // 2)


def test_copies_stay_together_in_new_splits(tmp_path: Path) -> None:
    write(Copies(), tmp_path / "shards", PlanOptions())
    repack(tmp_path / "shards", tmp_path / "out", "--splits", "new", "--test-fraction", "0.4")
    home: dict[int, str] = {}
    for split in ("train", "test"):
        for crc in ShardSet(tmp_path / "out", split).column("crc32").tolist():
            assert home.setdefault(crc, split) == split
    assert len(home) == 15
    assert set(home.values()) == {"train", "test"}


def test_second_call_writes_what_is_missing(shards: Path, tmp_path: Path) -> None:
    repack(shards, tmp_path / "out", "--samples-per-shard", "4", "--compression", "lzf")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out/val-00001.h5").unlink()
    (tmp_path / "out/manifest.json").unlink()
    source = ShardSource(shards)
    done = write(source, tmp_path / "out", PlanOptions(samples_per_shard=4, compression="lzf"))
    assert (done.shards_written, done.shards_kept) == (1, 7)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def damaged_copy(shards: Path, path: Path, compression: str) -> tuple[Path, str]:
    """Shards of which sample 2 of train-00001.h5 is damaged, though file sizes agree; and the sample's id."""
    repack(shards, path, "--compression", compression, "--samples-per-shard", "6")
    file = path / "train-00001.h5"
    with h5py.File(file, "r+") as opened:
        name = opened["sample_id"][2].decode()
        if compression == "none":
            opened["weather"][2, 3, 1] += 1
            return file, name
        place = opened["series"].id.get_chunk_info(2).byte_offset
    raw = bytearray(file.read_bytes())
    raw[place + 20] ^= 255
    file.write_bytes(raw)
    return file, name


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("columns", [(), ("--columns", "series")])
@pytest.mark.parametrize("order", [(), ("--seed", "3")])
def test_damage_is_named(
    shards: Path,
    tmp_path: Path,
    compression: str,
    columns: tuple[str, ...],
    order: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where the damaged column is one that is left out, or samples are read one by one."""
    file, name = damaged_copy(shards, tmp_path / "shards", compression)
    capsys.readouterr()
    arguments = ["repack", str(file.parent), str(tmp_path / "out"), *columns, *order]
    assert frontier(["shards", *arguments]) == EXIT_USER
    printed = capsys.readouterr().err
    assert f"shard {file}: sample 2 ({name}) is damaged" in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out/manifest.json").exists()


def test_truncated_or_missing_shards_are_named(shards: Path, tmp_path: Path) -> None:
    write(Everything(), tmp_path / "shards", PlanOptions())
    file = tmp_path / "shards/test-00000.h5"
    raw = file.read_bytes()
    file.write_bytes(raw[:-1])
    with pytest.raises(UserError, match=r"test-00000\.h5: truncated"):
        ShardSource(tmp_path / "shards")
    file.unlink()
    with pytest.raises(UserError, match=r"test-00000\.h5: missing"):
        ShardSource(tmp_path / "shards")
    manifest = load_manifest(shards)
    del manifest["columns"]["crc32"]
    (tmp_path / "shards/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="no column 'crc32', so damage would go unseen"):
        ShardSource(tmp_path / "shards")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["SHARDS", "SHARDS", "--overwrite"], "is what is read"),
        (["SHARDS", "out", "--columns", "serie"], "no input or array 'serie': did you mean series?"),
        (["SHARDS", "out", "--columns", "lon"], "the values a sample are always kept"),
        (["SHARDS", "out", "--columns", "land"], "keeps no input"),
        (["SHARDS", "out", "--test-fraction", "0.5"], "--test-fraction: has no effect without --splits new"),
        (["nowhere", "out"], "nowhere: does not exist"),
    ],
)
def test_mistakes_are_one_line(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(shards) if argument == "SHARDS" else argument for argument in arguments]
    assert frontier(["shards", "repack", *arguments]) == EXIT_USER
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert load_manifest(shards)["samples"] == 30


def test_a_source_travels_to_workers_without_open_files(shards: Path) -> None:
    source = ShardSource(shards)
    first = source.load([0, 29, 7, 8])
    again = pickle.loads(pickle.dumps(source)).load([0, 29, 7, 8])
    assert all(np.array_equal(first[name], again[name], equal_nan=first[name].dtype.kind == "f") for name in first)
    assert len(pickle.dumps(source)) < 50_000


def test_under_mpi(shards: Path, tmp_path: Path) -> None:
    repack(shards, tmp_path / "alone", "--samples-per-shard", "4", "--compression", "gzip")
    command = [*mpiexec(), "-n", "2", sys.executable, "-m", "frontier", "shards", "repack", str(shards)]
    command += [str(tmp_path / "two"), "--samples-per-shard", "4", "--compression", "gzip"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    alone, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("alone", "two"))
    assert alone == two


@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated")
def test_satellite_images(tmp_path: Path) -> None:
    """EuroSAT, some of it: to gzip and back, and described so that the validator of Croissant accepts it."""
    if not (SHARED_DATA / "eurosat_rgb").is_dir():
        pytest.skip(f"the shared EuroSAT images are not at {SHARED_DATA / 'eurosat_rgb'}")
    for name in ("Forest", "River"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for image in sorted((SHARED_DATA / "eurosat_rgb" / name).iterdir())[:12]:
            shutil.copy(image, tmp_path / "images" / name)
    assert main(["write", "--from", str(tmp_path / "images"), str(tmp_path / "shards")]) == EXIT_OK
    repack(tmp_path / "shards", tmp_path / "small", "--compression", "gzip", "--samples-per-shard", "5")
    repack(tmp_path / "small", tmp_path / "back")
    for split in ("train", "test"):
        found, expected = everything_in(tmp_path / "back", split), everything_in(tmp_path / "shards", split)
        assert all(found[name].tobytes() == values.tobytes() for name, values in expected.items())
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
    described = mlcroissant.Dataset(jsonld=str(tmp_path / "back/croissant.json"))
    assert not described.metadata.ctx.issues.errors
