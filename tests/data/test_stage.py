"""Node-local copies: right or not there, never half a file under its own name."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from frontier.data import stage as staging
from frontier.data.shards import ShardSet
from frontier.data.stage import Hung, bounded, stage, stage_folder, stage_root
from frontier.errors import UserError
from frontier.launch.process_group import process_group
from frontier.launch.ranks import Ranks
from frontier.train.staging import stage_on_every_node
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


@pytest.mark.slow
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


def test_a_source_that_hangs_is_given_up(origin: ShardSet, tmp_path: Path) -> None:
    """A FIFO that nobody writes to in the place of a shard: given up in time, and not begun again."""
    entry = origin.entries[1]
    hanging = origin.path / entry["file"]
    content = hanging.read_bytes()
    hanging.unlink()
    os.mkfifo(hanging)
    began = time.monotonic()
    staged = stage(origin, tmp_path / "local", patience_s=0.5)
    assert time.monotonic() - began < 10
    assert staged.failed and entry["file"] not in staged.paths and "train-00000.h5" in staged.paths
    line = staged.line(4)
    assert line.startswith(f"{socket.gethostname()}: staged 3 of 4") and f"copying {hanging}" in line
    assert "no progress" in line and "MiB/s" in line
    with open(hanging, "wb") as late:  # the copier that was left behind wakes, and must not finish
        late.write(content[:10])
        with contextlib.suppress(BrokenPipeError):
            late.flush()
    time.sleep(0.3)
    assert names(tmp_path / "local") == sorted(staged.paths)


def test_a_disk_that_hangs_is_given_up(origin: ShardSet, tmp_path: Path) -> None:
    """FIFOs where the copies would be written: all copiers hang there; what is left is not tried."""
    folder = stage_folder(tmp_path / "local", origin)
    folder.mkdir(parents=True)
    for entry in origin.entries:
        os.mkfifo(folder / f".{entry['file']}.tmp-{socket.gethostname()}-{os.getpid()}")
    staged = stage(origin, tmp_path / "local", patience_s=0.3)
    assert staged.failed and not staged.paths and "0 of 4 shards" in staged.line(4) and "no progress" in staged.line(4)


def test_training_goes_on_beside_a_hung_copy(origin: ShardSet, tmp_path: Path) -> None:
    """Through the ranks' own way: bounded by a quarter of parallel.timeout_s, told, the other shards read from their copies."""
    hanging = origin.path / "train-00002.h5"
    aside = hanging.rename(tmp_path / "aside")
    os.mkfifo(hanging)
    said: list[str] = []
    ranks, cpu = Ranks(0, 1, 0, 1, "alone"), torch.device("cpu")
    with process_group(ranks, cpu, 60):
        began = time.monotonic()
        stage_on_every_node(origin, tmp_path / "local", None, ranks, cpu, 4.0, said.append)
        assert time.monotonic() - began < 20
    assert len(said) == 1 and "read from the origin (no progress for 1 s copying" in said[0]
    aside.replace(hanging)
    for other in (0, 1, 3):
        (origin.path / f"train-0000{other}.h5").unlink()
    assert np.array_equal(origin.read("image", 0, 20), VALUES)


def test_slow_is_not_hung() -> None:
    def slow(beat: Callable[[], None]) -> str:
        for _ in range(6):
            time.sleep(0.1)
            beat()
        return "done"

    assert bounded(slow, 0.4, "") == "done"
    with pytest.raises(Hung, match="no progress for 0 s at x"):
        bounded(lambda _: time.sleep(1), 0.2, "at x")
    with pytest.raises(OSError, match="full"):
        bounded(lambda _: (_ for _ in ()).throw(OSError("full")), 1, "")
