"""One writer a directory, codecs, a full disk, and what a dry run leaves alone."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_prep.codec import filters, measure
from data_prep.command import main
from data_prep.names import CODECS
from data_prep.plan import PlanOptions
from data_prep.scenes import SceneSource
from data_prep.verify import verify
from data_prep.writer import write
from frontier.claim import CLAIM, claimed
from frontier.data.shards import ShardSet
from frontier.errors import EXIT_OK, UserError
from tests.conftest import run_frontier


def source(count: int = 24) -> SceneSource:
    return SceneSource(count, seed=5, size=16, sensors=("rgb", "s2"))


def test_two_writers_on_one_target(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with claimed(out):
        done = run_frontier("shards", "write", "--scenes", "8", "--size", "16", out)
        assert done.returncode == 2
        assert f"another `frontier shards write` (pid {os.getpid()} on" in done.stderr
        assert done.stderr.count("\n") == 1
    assert not list(out.iterdir())
    assert run_frontier("shards", "write", "--scenes", "8", "--size", "16", out).returncode == 0
    assert not (out / CLAIM).exists()


def test_a_claim_dies_with_its_holder(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from frontier.claim import claimed\n"
    code += "with claimed(Path(sys.argv[1])):\n print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(UserError, match=f"pid {holder.pid}"), claimed(tmp_path):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with claimed(tmp_path):
        assert json.loads((tmp_path / CLAIM).read_text())["pid"] == os.getpid()


def test_a_holder_on_another_host_is_believed_while_it_is_fresh(tmp_path: Path) -> None:
    path = tmp_path / CLAIM
    path.write_text(json.dumps({"host": "node-7", "pid": 1}))
    with pytest.raises(UserError, match="pid 1 on node-7"), claimed(tmp_path):
        pass
    old = time.time() - 1000
    os.utime(path, (old, old))
    with claimed(tmp_path):
        pass


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_gives_the_samples_back(tmp_path: Path, codec: str) -> None:
    if codec not in ("none", "gzip", "lzf"):
        pytest.importorskip("hdf5plugin")
    write(source(), tmp_path / "plain", PlanOptions())
    write(source(), tmp_path / "packed", PlanOptions(compression=codec))
    plain, packed = ShardSet(tmp_path / "plain"), ShardSet(tmp_path / "packed")
    for column in ("image", "s2"):
        assert packed.manifest["images"][column]["filters"] == filters(codec)
        assert np.array_equal(plain.read(column, 0, 24), packed.read(column, 0, 24))
        assert plain.manifest["images"][column]["statistics"] == packed.manifest["images"][column]["statistics"]
    assert verify(tmp_path / "packed", deep=True) == ([], 1)
    if codec != "none":
        with h5py.File(tmp_path / "packed" / "train-00000.h5", locking=False) as file:
            assert file["s2"].chunks == (1, 12, 16, 16)
            assert file["s2"].fletcher32


def test_auto_measures_and_keeps_its_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # So slow a disk that any compression pays: what the data does not allow, no codec promises.
    table = measure(source(), tmp_path, disk_mib_s=0.01)
    assert {row["codec"] for row in table} >= {"none", "gzip", "lzf"}
    ratios = {row["codec"]: row["ratio"] for row in table}
    assert table[0]["codec"] == max(ratios, key=lambda codec: ratios[codec]) != "none"
    assert ratios["gzip"] > 1 and ratios["none"] == 1
    # So fast a disk that decoding is what counts: inflating cannot keep up with copying.
    larger = SceneSource(32, seed=5, size=64, sensors=("s2",))
    place = [row["codec"] for row in measure(larger, tmp_path, disk_mib_s=1e9)]
    assert place.index("none") < place.index("gzip")
    command = ["write", "--scenes", "24", "--size", "16", "--compression", "auto", "--json"]
    assert main([*command, "--disk-mib-s", "0.01", str(tmp_path / "out")]) == EXIT_OK
    first = json.loads(capsys.readouterr().out)
    chosen = json.loads((tmp_path / "out" / "plan.json").read_text())["options"]["compression"]
    assert chosen != "none"
    # Other timings, the same plan.
    assert main([*command, "--disk-mib-s", "1e9", str(tmp_path / "out")]) == EXIT_OK
    again = json.loads(capsys.readouterr().out)
    assert (again["files_written"], again["fingerprint"]) == (0, first["fingerprint"])


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--scenes", "60", "--size", "16", "--split-by", "place", "--block-km", "2000", "--json"]
    assert main(["write", "--dry-run", *options, str(out)]) == EXIT_OK
    answer = json.loads(capsys.readouterr().out)
    assert not out.exists()
    assert answer["samples"] == 60 and answer["bytes_uncompressed"] == 60 * 3 * 256
    assert main(["write", *options, str(out)]) == EXIT_OK
    written = json.loads((out / "manifest.json").read_text())
    assert written["plan"] == answer["fingerprint"]
    assert written["split_check"] == answer["split_check"]
    assert written["split_check"]["distances"]["test-train"]["nearest_km"] > 0


def small_disk(folder: Path, kib: int) -> Path:
    """A file system of `kib` KiB; skips the test where this process may not mount one."""
    folder.mkdir()
    asked = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder], capture_output=True)
    if asked.returncode:
        pytest.skip("may not mount a file system here")
    return folder


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_disk_that_fills_up_while_writing(tmp_path: Path, compression: str) -> None:
    disk = small_disk(tmp_path / "disk", 600)
    try:
        # The space check would refuse at once: it is passed by what others write meanwhile.
        code = (
            "import sys; import data_prep.writer as w; w._check_space = lambda *a: None\n"
            "from frontier.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        command: list[Any] = [sys.executable, "-c", code, "shards", "write", "--scenes", "400", "--size", "32"]
        command += ["--samples-per-shard", "40", "--compression", compression, disk / "out"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
        assert done.returncode == 2, done.stderr
        assert "the disk is full while" in done.stderr and "Traceback" not in done.stderr
        assert done.stderr.count("\n") == 1
        assert not list((disk / "out").glob(".*.tmp-*")) and not (disk / "out" / "manifest.json").exists()
        finished = len(list((disk / "out").glob("*.done")))
        assert finished > 0
        subprocess.run(["mount", "-o", "remount,size=40m", disk], check=True)
        again = subprocess.run([*map(str, command), "--json"], capture_output=True, text=True, timeout=120)
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout)["files_kept"] == finished
        assert verify(disk / "out", deep=True)[0] == []
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


@pytest.mark.parametrize("name", [CLAIM, "plan.json", "manifest.json", "README.md"])
def test_a_disk_that_refuses_the_small_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not a shard (claim, plan, manifest, card) ends with one line as well, and a second call finishes."""
    out, sync, place = tmp_path / "out", os.fsync, os.pwrite

    def full(descriptor: int, *more: Any) -> Any:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.lstrip(".").startswith(name.lstrip(".")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return place(descriptor, *more) if more else sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        patch.setattr(os, "pwrite", full)
        with pytest.raises(UserError, match="disk is full|No space left") as caught:
            write(source(), out, PlanOptions())
        assert str(out) in str(caught.value)
    assert not [path for path in out.iterdir() if path.name == CLAIM or ".tmp-" in path.name]
    write(source(), out, PlanOptions())
    assert verify(out, deep=True)[0] == []
