"""The writer: the same bytes however it is run, statistics that equal numpy's, and finishing after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_prep import writer
from data_prep.plan import PlanOptions, content_fingerprint, make_plan, shard_count
from data_prep.scenes import SceneSource
from data_prep.verify import verify
from data_prep.writer import write
from frontier.data.shards import ShardSet
from frontier.errors import TransientError, UserError

OPTIONS = PlanOptions(seed=1, test_fraction=0.25, samples_per_shard=6)


def source(count: int = 40, **options: Any) -> SceneSource:
    return SceneSource(count, seed=5, size=16, sensors=("rgb", "s2", "s1"), **options)


def digest(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("once") / "shards"
    write(source(), path, OPTIONS)
    return path


def test_bytes_do_not_depend_on_workers_or_time(once: Path, tmp_path: Path) -> None:
    time.sleep(1.1)  # Formats that store times store whole seconds.
    for workers in (2, 3):
        write(source(), tmp_path / str(workers), OPTIONS, workers=workers)
        assert digest(tmp_path / str(workers)) == digest(once)


def test_second_call_keeps_everything(once: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in once.iterdir()}
    done = write(source(), once, OPTIONS)
    assert (done.shards_written, done.shards_kept) == (0, 8)
    assert {path: path.stat().st_mtime_ns for path in once.iterdir()} == before


def test_statistics_equal_numpy(once: Path) -> None:
    shards = ShardSet(once)
    for column in shards.image_columns:
        values = shards.read(column, 0, len(shards)).astype(np.float64)
        found = shards.manifest["images"][column]["statistics"]
        nodata = shards.manifest["images"][column]["nodata"]
        for band in range(values.shape[1]):
            kept = values[:, band][values[:, band] != nodata]
            assert found["count"][band] == kept.size
            for key, expected in (("mean", kept.mean()), ("std", kept.std()), ("min", kept.min()), ("max", kept.max())):
                assert np.isclose(found[key][band], expected, rtol=1e-12, atol=0), (column, key)


def test_split_is_exact_in_every_class_and_nothing_leaks(once: Path) -> None:
    train, test = ShardSet(once, "train"), ShardSet(once, "test")
    assert (len(train), len(test)) == (32, 8), "5 scenes a class: a quarter is 1 (1.25 rounded)"
    assert np.bincount(test.column("label")).tolist() == [1] * 8
    assert np.bincount(train.column("label")).tolist() == [4] * 8
    ids = np.concatenate([train.column("sample_id"), test.column("sample_id")])
    assert len(set(ids.tolist())) == 40


def test_every_sample_is_its_sources(once: Path) -> None:
    made = source()
    for split in ("train", "test"):
        shards = ShardSet(once, split)
        rows = shards.column("scene_index")
        loaded = made.load(rows.tolist())
        for column in shards.image_columns:
            assert np.array_equal(shards.read(column, 0, len(shards)), loaded[column])
        assert np.array_equal(shards.column("lat"), loaded["lat"])
        assert np.array_equal(made.listing().labels[rows], shards.column("label"))


def test_the_seed_changes_order_and_split() -> None:
    plans = [make_plan(source(), PlanOptions(seed=s, test_fraction=0.25)) for s in (0, 1)]
    assert plans[0].shards[0].rows != plans[1].shards[0].rows
    assert set(plans[0].shards[-1].rows) != set(plans[1].shards[-1].rows)
    assert plans[0].fingerprint != plans[1].fingerprint


def test_file_format(once: Path) -> None:
    raw = (once / "train-00000.h5").read_bytes()
    assert raw[8] == 3, "superblock of libver v110"
    with h5py.File(once / "train-00000.h5", "r") as file:
        for column in ("image", "s2", "s1"):
            dataset = file[column]
            assert dataset.chunks is None
            assert dataset.compression is None
            assert dataset.id.get_offset() % 4096 == 0
        for name in file:
            assert isinstance(file.get(name, getlink=True), h5py.HardLink)
            assert not file[name].dtype.hasobject


def test_shard_count() -> None:
    assert shard_count(10, 100, PlanOptions()) == 1
    assert shard_count(6000, 12288, PlanOptions()) == 8, "small data is still shared out"
    assert shard_count(100_000, 1 << 20, PlanOptions()) == 98
    assert shard_count(100, 2 << 30, PlanOptions()) == 100, "a sample above the limit gets a shard of its own"
    assert shard_count(10, 1, PlanOptions(samples_per_shard=3)) == 4


def test_many_files_go_to_sub_directories() -> None:
    plan = make_plan(SceneSource(1005), PlanOptions(samples_per_shard=1))
    files = [shard.file for shard in plan.shards]
    assert files[0] == "train-0000/train-00000.h5"
    assert files[-1] == "train-0002/train-01004.h5"


@pytest.mark.parametrize("damage", ["missing", "truncated", "changed", "no record", "torn record"])
def test_only_damaged_shards_are_written_again(once: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "shards"
    write(source(), out, OPTIONS)
    file, record = out / "train-00002.h5", out / "train-00002.h5.done"
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "changed":
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
        assert any("sha256" in problem for problem in verify(out)[0])
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text(record.read_text()[:40])
    done = write(source(), out, OPTIONS)
    assert (done.shards_written, done.shards_kept) == (1, 7)
    assert digest(out) == digest(once)


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_in_the_middle_then_finished(tmp_path: Path, workers: int) -> None:
    """kill -9 of the real command; the second call writes only what is missing, to the same bytes."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "frontier", "shards", "write", "--scenes", "96", "--size", "48"]
    command += ["--samples-per-shard", "8", "--workers", str(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, str(out)], env=environment)
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.done"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = len(list(out.glob("*.done")))
    assert finished >= 3
    assert not (out / "manifest.json").exists()
    with pytest.raises(UserError, match="did not finish"):
        ShardSet(out)
    # Workers leave by themselves once their parent is gone.
    time.sleep(1.5 if workers > 1 else 0)
    found = len(list(out.glob("*.done")))
    answer = subprocess.run([*command, str(out), "--json"], env=environment, capture_output=True, text=True, check=True)
    summary = json.loads(answer.stdout)
    assert summary["files_kept"] == found
    assert summary["files_kept"] + summary["files_written"] == 12
    assert not list(out.glob(".*.tmp-*"))
    reference = tmp_path / "reference"
    write(SceneSource(96, size=48), reference, PlanOptions(test_fraction=0.2, samples_per_shard=8))
    assert digest(out) == digest(reference)


def test_killed_while_a_shard_is_half_written(tmp_path: Path, once: Path) -> None:
    """What a killed writer leaves under a temporary name is removed, that of a live process is not."""
    out = tmp_path / "out"
    write(source(), out, OPTIONS)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = os.uname().nodename
    (out / f".train-00000.h5.tmp-{host}-{dead.pid}").write_bytes(b"half")
    (out / f".train-00000.h5.tmp-{host}-{os.getppid()}").write_bytes(b"live")
    (out / "train-00000.h5").unlink()
    write(source(), out, OPTIONS)
    assert [path.name for path in out.glob(".*")] == [f".train-00000.h5.tmp-{host}-{os.getppid()}"]


class Dying(SceneSource):
    """A source whose workers are killed, as by the kernel for want of memory."""

    def load(self, rows: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_named(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match="worker process died.*run the same command again"):
        write(Dying(16, size=16), tmp_path / "out", PlanOptions(samples_per_shard=4), workers=2)


def test_a_folder_in_a_shards_place_is_no_passing_failure(tmp_path: Path) -> None:
    """Running the same command again would meet it again."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/plan.json").write_text(json.dumps(make_plan(source(8), OPTIONS).record))
    (tmp_path / "out/train-00000.h5").mkdir()
    with pytest.raises(UserError, match="train-00000.h5: is a folder, where a file belongs: remove it") as told:
        write(source(8), tmp_path / "out", OPTIONS)
    assert not isinstance(told.value, TransientError)


def test_another_plan_is_not_mixed_in(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(source(8), out, OPTIONS)
    before = digest(out)
    with pytest.raises(UserError, match="another plan.*count: 8 there, 16 now.*--overwrite"):
        write(source(16), out, OPTIONS)
    with pytest.raises(UserError, match="samples_per_shard: 6 there, 7 now"):
        write(source(8), out, PlanOptions(seed=1, test_fraction=0.25, samples_per_shard=7))
    assert digest(out) == before
    write(source(16), out, OPTIONS, overwrite=True)
    assert ShardSet(out).manifest["samples"] == 16
    assert verify(out, deep=True) == ([], len(ShardSet(out).manifest["shards"]))


def test_overwrite_leaves_other_files(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(source(8), out, OPTIONS)
    (out / "notes.txt").write_text("mine")
    write(source(16), out, OPTIONS, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"


def test_foreign_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds other files"):
            write(source(8), tmp_path, OPTIONS, overwrite=overwrite)
    with pytest.raises(UserError, match="is a file"):
        write(source(8), tmp_path / "thesis.tex", OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_full_disk_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"MiB needed, 1\.0 MiB free"):
        write(SceneSource(200), tmp_path / "out", PlanOptions())
    assert not list((tmp_path / "out").glob("*.h5"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (PlanOptions(test_fraction=1.0), "--test-fraction"),
        (PlanOptions(val_fraction=-0.1), "--val-fraction"),
        (PlanOptions(test_fraction=0.5, val_fraction=0.5), "leave some samples"),
        (PlanOptions(samples_per_shard=0), "--samples-per-shard"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, options: PlanOptions, words: str) -> None:
    with pytest.raises(UserError, match=words):
        write(source(8), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_verify_finds_what_is_wrong(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(source(), out, OPTIONS)
    assert verify(out, deep=True) == ([], 8)
    file = out / "train-00001.h5"
    with h5py.File(file, "r+") as opened:
        opened["s2"][3, 0, 0, 0] += 1
    manifest = json.loads((out / "manifest.json").read_text())
    entry = next(shard for shard in manifest["shards"] if shard["file"] == file.name)
    assert any("sha256" in p for p in verify(out)[0])
    # Even where someone made sizes and hashes agree, the sample's own checksum tells.
    entry |= {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert "fingerprint" in verify(out)[0][0]
    manifest["fingerprint"] = content_fingerprint(manifest["plan"], manifest["shards"])
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert verify(out) == ([], 8)
    problems, _ = verify(out, deep=True)
    assert len(problems) == 1
    assert "train-00001.h5" in problems[0]
    assert "number 3" in problems[0]


def test_verify_holds_the_manifest_against_the_plan(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(source(16), out, OPTIONS)
    path = out / "manifest.json"
    whole = path.read_text()

    def found(change: Callable[[dict[str, Any]], Any], deep: bool = False) -> list[str]:
        manifest = json.loads(whole)
        change(manifest)
        path.write_text(json.dumps(manifest))
        return verify(out, deep=deep)[0]

    for change in (lambda s2: s2["bands"].reverse(), lambda s2: s2.update(scale=3.0)):
        (said,) = found(lambda m, change=change: change(m["images"]["s2"]))  # type: ignore[misc]
        assert "images in the manifest are not those of plan.json" in said
    (said,) = found(lambda m: m["classes"].reverse())
    assert "classes in the manifest" in said
    (said,) = found(lambda m: m.update(fingerprint="0" * 64))
    assert "fingerprint" in said
    (said,) = found(lambda m: m["images"]["s2"]["statistics"]["percentiles"]["50"].reverse(), deep=True)
    assert "percentile 50 of 's2'" in said
    plan = out / "plan.json"
    record = json.loads(plan.read_text())
    record["shards"][0]["ids_sha256"] = "0" * 64
    plan.write_text(json.dumps(record))
    (said,) = found(lambda m: None, deep=True)
    assert f"{record['shards'][0]['file']}: does not hold the samples" in said
    plan.write_text("{")
    (said,) = found(lambda m: None)
    assert "plan.json is damaged" in said
    plan.unlink()
    assert found(lambda m: None, deep=True) == [], "a copy of shards and manifest alone is whole"


def test_verify_recomputes_the_statistics(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(source(16), out, OPTIONS)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["images"]["s1"]["statistics"]["mean"][1] += 0.5
    (out / "manifest.json").write_text(json.dumps(manifest))
    problems, _ = verify(out, deep=True)
    assert len(problems) == 1
    assert "mean of 's1'" in problems[0]
