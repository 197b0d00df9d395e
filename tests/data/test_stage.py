"""Node-local copies: right or not there, never half a file under its own name."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import yaml

from frontier.data import stage as staging
from frontier.data.shards import ShardSet
from frontier.data.stage import stage, stage_folder, stage_root
from frontier.errors import UserError
from tests.conftest import curve, run_frontier, toy_config
from tests.data.sets import write_set

VALUES = np.arange(20 * 3 * 4 * 4, dtype=np.uint16).reshape(20, 3, 4, 4)


@pytest.fixture
def origin(tmp_path: Path) -> ShardSet:
    return ShardSet(write_set(tmp_path / "origin", {"image": (VALUES, "CHW")}, per_shard=5))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_copies_are_right_and_are_read(origin: ShardSet, tmp_path: Path) -> None:
    staged = stage(origin, tmp_path / "local")
    files = [e["file"] for e in origin.entries]
    assert (staged.copied, staged.kept, staged.left, staged.failed) == (4, 0, [], False)
    assert names(tmp_path / "local") == files
    assert all(staged.paths[f].read_bytes() == (origin.path / f).read_bytes() for f in files)
    origin.use_copies(staged.paths)
    for f in files:
        os.rename(origin.path / f, origin.path / (f + ".away"))
    assert np.array_equal(origin.read("image", 0, 20), VALUES)
    assert "4 of 4 shards" in staged.line(4)


def test_a_second_call_keeps_what_is_right_and_mends_the_rest(origin: ShardSet, tmp_path: Path) -> None:
    stage(origin, tmp_path / "local")
    folder = stage_folder(tmp_path / "local", origin)
    damaged = folder / "train-00001.h5"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    (folder / "train-00002.h5").write_bytes(b"short")
    (folder / f".train-00003.h5.tmp-{socket.gethostname()}-999999999").write_bytes(b"of a killed copier")
    staged = stage(origin, tmp_path / "local")
    assert (staged.copied, staged.kept) == (2, 2)
    assert names(folder) == [e["file"] for e in origin.entries]
    assert damaged.read_bytes() == (origin.path / damaged.name).read_bytes()


def test_only_the_first_that_fit(origin: ShardSet, tmp_path: Path) -> None:
    size = origin.entries[0]["bytes"]
    staged = stage(origin, tmp_path / "local", limit=2 * size + 1)
    assert sorted(staged.paths) == ["train-00000.h5", "train-00001.h5"]
    assert "stage_gib" in staged.line(4) and not staged.failed
    again = stage(origin, tmp_path / "local", limit=2 * size + 1)
    assert (again.copied, again.kept) == (0, 2)


def test_a_full_disk_leaves_nothing_half(origin: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage
    size = origin.entries[0]["bytes"]
    monkeypatch.setattr(shutil, "disk_usage", lambda p: real(p)._replace(free=staging.SPARE + size + 1))
    staged = stage(origin, tmp_path / "local")
    assert list(staged.paths) == ["train-00000.h5"] and "free space" in staged.left[0]


def test_a_write_that_fails_falls_back(origin: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up after the check: the third shard's copy fails in the middle."""
    import builtins

    real = builtins.open

    def full(path: object, mode: str = "r", *args: object, **more: object) -> object:
        if "train-00002" in str(path) and "w" in mode:
            return real("/dev/full", "wb", buffering=0)
        return real(path, mode, *args, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(builtins, "open", full)
    staged = stage(origin, tmp_path / "local")
    assert staged.failed and len(staged.paths) == 3 and "No space left" in staged.line(4)
    assert names(tmp_path / "local") == ["train-00000.h5", "train-00001.h5", "train-00003.h5"]


def test_an_origin_that_changed_is_not_copied(origin: ShardSet, tmp_path: Path) -> None:
    file = origin.path / "train-00001.h5"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    staged = stage(origin, tmp_path / "local")
    assert staged.failed and "train-00001.h5" not in staged.paths and "frontier shards verify" in staged.line(4)


def test_a_copy_that_vanishes_is_read_from_the_origin(origin: ShardSet, tmp_path: Path) -> None:
    origin.use_copies(stage(origin, tmp_path / "local").paths)
    shutil.rmtree(tmp_path / "local")
    assert np.array_equal(origin.read("image", 0, 20), VALUES)


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_DISK", "/mnt/bb/me")
    monkeypatch.delenv("NOT_SET", raising=False)
    assert stage_root("$NODE_DISK/x") == stage_root("${NODE_DISK}/x") == Path("/mnt/bb/me/x")
    with pytest.raises(UserError, match=r"data.stage=/a/\$NOT_SET: \$NOT_SET is not set"):
        stage_root("/a/$NOT_SET")


def test_a_run_reads_its_copies(tmp_path: Path, shards: Path) -> None:
    """Two ranks: one copies, both read; the curve is that of a run without a stage, to the last digit."""
    config = toy_config(tmp_path / "plain", shards)
    config["train"]["steps"] = 4
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(config))
    assert run_frontier("pretrain", file, "--ranks", "2").returncode == 0
    done = run_frontier(
        "pretrain", file, "--ranks", "2", f"run.dir={tmp_path / 'staged'}", "data.stage=$TEST_STAGE/x",
        TEST_STAGE=str(tmp_path / "node"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "staged 1 of 1 shards" in done.stdout
    assert names(tmp_path / "node") == ["train-00000.h5"]
    assert curve(tmp_path / "staged") == curve(tmp_path / "plain")
    refused = run_frontier("pretrain", file, "data.stage_gib=1")
    assert refused.returncode == 2 and "no effect without data.stage" in refused.stderr
