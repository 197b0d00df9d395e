"""Signals, the STOP file, torn and damaged checkpoints, other models, full disks: as a user meets them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from frontier.train.checkpoint import read_record, seal
from tests.conftest import curve, read_jsonl, run_frontier


def start(*args: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "frontier", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_lines(path: Path, lines: int, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not (path.exists() and len(path.read_text().splitlines()) >= lines):
        assert time.monotonic() < deadline, f"{path} did not reach {lines} lines"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_sigusr1_to_one_rank_saves_and_asks_for_requeue(toy: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start("pretrain", toy, "--ranks", "2", "train.steps=100000", "checkpoint.every_steps=100000")
    wait_for_lines(run / "metrics.jsonl", 3)
    os.kill(children(process.pid)[1], signal.SIGUSR1)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 85, err
    steps = len(curve(run))
    assert (run / f"checkpoints/step_{steps:08d}/complete.json").exists()
    assert "another rank" in out
    done = run_frontier("pretrain", toy, f"train.steps={steps + 2}")
    assert done.returncode == 0, done.stderr
    assert len(curve(run)) == steps + 2
    starts = read_jsonl(run / "starts.jsonl")
    assert [s["resumed_from"] for s in starts] == [None, steps]


def test_stop_file_stops_and_keeps_it_stopped(toy: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start("pretrain", toy, "train.steps=100000")
    wait_for_lines(run / "metrics.jsonl", 2)
    (run / "STOP").touch()
    process.communicate(timeout=120)
    assert process.returncode == 85
    again = run_frontier("pretrain", toy, "train.steps=100000")
    assert again.returncode == 2
    assert "STOP" in again.stderr and "remove the file to go on" in again.stderr
    assert (run / "STOP").exists()  # until a human removes it: the job script and the next jobs of a chain look for it
    assert len(again.stderr.strip().splitlines()) == 1


def test_killed_rank_ends_the_others_and_the_next_start_goes_on(toy: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(
        "pretrain", toy, "--ranks", "2", "train.steps=100000", "checkpoint.every_steps=5", "parallel.timeout_s=30"
    )
    wait_for_lines(run / "metrics.jsonl", 12)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode not in (0, 85)
    assert "rank 1 ended with signal SIGKILL" in err
    saved = max(int(p.name[5:]) for p in (run / "checkpoints").glob("step_*"))
    done = run_frontier("pretrain", toy, f"train.steps={saved + 3}", f"train.warmup_steps={5}")
    assert done.returncode == 0, done.stderr
    assert len(curve(run)) == saved + 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A config and the run of its 6 steps with checkpoints at 2, 4 and 6."""
    import yaml

    from tests.conftest import toy_config

    folder = tmp_path_factory.mktemp("finished")
    config = toy_config(folder / "run", shards)
    config["train"]["steps"] = 6
    config["checkpoint"] = {"every_steps": 2, "keep": 5}
    (folder / "toy.yaml").write_text(yaml.safe_dump(config))
    done = run_frontier("pretrain", folder / "toy.yaml")
    assert done.returncode == 0, done.stderr
    return folder


def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path / "run"


def one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit 2, one clear line, no traceback."""
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def test_flipped_byte_is_passed_over(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path)
    path = run / "checkpoints/step_00000006/rank_00000.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = run_frontier("pretrain", finished / "toy.yaml", f"run.dir={run}", "train.steps=7")
    assert done.returncode == 0, done.stderr
    assert "passed over" in done.stdout
    assert "resumed from step 4" in done.stdout
    assert curve(run)[:6] == curve(finished / "run")


def test_no_readable_checkpoint_left(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path)
    for record in run.glob("checkpoints/*/complete.json"):
        record.write_text("{")
    one_line(run_frontier("pretrain", finished / "toy.yaml", f"run.dir={run}"), "none of the 3 checkpoints", "move")


def test_checkpoint_of_another_model(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path)
    done = run_frontier("pretrain", finished / "toy.yaml", "--ranks", "2", f"run.dir={run}", "model.width=64")
    one_line(done, "checkpoint of another model", "run.dir")


def test_other_global_batch_is_refused(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path)
    done = run_frontier("pretrain", finished / "toy.yaml", f"run.dir={run}", "train.global_batch=16", "train.steps=9")
    one_line(done, "train.global_batch=32", "now it is 16")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.heads=4", "model.heads=2, now it is 4"),
        ("model.decoder.heads=4", "model.decoder.heads=2, now it is 4"),
        ("model.norm_pix_loss=false", "model.norm_pix_loss=True, now it is False"),
        ("data.mean=[1,2,3]", "now it is [1.0, 2.0, 3.0]"),
    ],
)
def test_the_same_shapes_with_another_meaning_are_refused(
    finished: Path, tmp_path: Path, change: str, words: str
) -> None:
    run = copied(finished, tmp_path)
    more = (f"run.dir={run}", "train.steps=9", change)
    one_line(run_frontier("pretrain", finished / "toy.yaml", *more), change.partition("=")[0], words, "run.dir")


def test_a_checkpoint_of_a_version_that_asked_for_less(finished: Path, tmp_path: Path) -> None:
    """Keys that it did not note as fixed stand in the config that it holds."""
    run = copied(finished, tmp_path)
    checkpoint = run / "checkpoints/step_00000006"
    record = read_record(checkpoint)
    del record["fixed"]["data.mean"], record["fixed"]["data.std"]
    seal(checkpoint, record)
    options = ("pretrain", finished / "toy.yaml", f"run.dir={run}")
    one_line(run_frontier(*options, "train.steps=9", "data.mean=[1,2,3]"), "data.mean=[", "now it is [1.0, 2.0, 3.0]")
    done = run_frontier(*options, "train.steps=7")
    assert done.returncode == 0 and "resumed from step 6" in done.stdout, done.stderr


def test_full_disk_is_said_before_the_write_and_the_old_checkpoint_survives(finished: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this sandbox does not let us mount a small file system")
    try:
        run = disk / "run"
        run.mkdir()
        shutil.copytree(finished / "run/checkpoints/step_00000004", run / "checkpoints/step_00000004")
        filler = disk / "filler"
        free = shutil.disk_usage(disk).free
        filler.write_bytes(b"0" * (free - 200_000))
        done = run_frontier("pretrain", finished / "toy.yaml", f"run.dir={run}")
        one_line(done, "not enough disk for the checkpoint of step 6", "free")
        assert (run / "checkpoints/step_00000004/complete.json").exists()
        assert [p.name for p in (run / "checkpoints").iterdir()] == ["step_00000004"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_keep_and_keep_every(finished: Path, tmp_path: Path) -> None:
    done = run_frontier(
        "pretrain",
        finished / "toy.yaml",
        f"run.dir={tmp_path}",
        "checkpoint.every_steps=1",
        "checkpoint.keep=2",
        "checkpoint.keep_every=3",
        "checkpoint.async_save=false",
    )
    assert done.returncode == 0, done.stderr
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000003", "step_00000005", "step_00000006"]


def test_checkpoint_files_hold_no_pickle(finished: Path) -> None:
    folder = finished / "run/checkpoints/step_00000006"
    assert {p.name for p in folder.iterdir()} == {"rank_00000.bin", "index.json", "complete.json"}
    index = json.loads((folder / "index.json").read_text())
    size = (folder / "rank_00000.bin").stat().st_size
    assert size == sum(p["length"] for t in index["tensors"].values() for p in t["pieces"])


def test_metrics_lines_are_complete(finished: Path) -> None:
    for row in read_jsonl(finished / "run/metrics.jsonl"):
        for key in ("schema", "step", "epoch", "samples", "loss", "lr", "grad_norm", "images_per_s", "step_s", "mfu"):
            assert key in row
        parts = sum(row[k] for k in ("data_s", "forward_s", "backward_s", "optimizer_s", "checkpoint_s", "other_s"))
        assert parts == pytest.approx(row["step_s"], rel=0.05)
        assert row["mfu"] is None  # no peak is known for a CPU


BAD = [
    (("parallel.stratgy=ddp",), ("'parallel.stratgy'", "parallel.strategy")),
    (("train.warmup=3",), ("'train.warmup'", "train.warmup_steps")),
    (("parallel.strategy=hybrid_3", "--ranks", "2"), ("hybrid_3", "2 ranks", "hybrid_1, hybrid_2")),
    (("train.global_batch=33", "--ranks", "2"), ("33", "2 ranks", "32 or 34")),
    (("train.micro_batch=5", "--ranks", "2"), ("micro_batch=5",)),
    (("data.shards=/nonexistent",), ("/nonexistent",)),
    (("model.preset=vit_hug",), ("vit_hug", "vit_huge")),
    (("model.patch=5",), ("patch 5",)),
    (("train.epochs=3",), ("exactly one",)),
    (("train.steps=null", "train.epochs=1e300"), ("train.epochs=1e+300 makes more than 1,000,000,000,000 steps",)),
    (("run.dir=/proc/run",), ("run.dir=/proc/run cannot be made",)),
    (("data.column=imag",), ("imag",)),
    (("train.global_batch=512",), ("512", "160 samples")),
    (("model.family=mea",), ("mea",)),
    (("train.steps",), ("not an override",)),
]


@pytest.mark.parametrize(("overrides", "parts"), BAD, ids=[b[0][0] for b in BAD])
def test_bad_config_is_one_line(toy: Path, overrides: tuple[str, ...], parts: tuple[str, ...]) -> None:
    one_line(run_frontier("pretrain", toy, *overrides), *parts)


def test_missing_config() -> None:
    one_line(run_frontier("pretrain", "nowhere.yaml"), "nowhere.yaml")


def test_truncated_shard(toy: Path, shards: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    victim = next(broken.glob("train-*.h5"))
    with open(victim, "r+b") as file:
        file.truncate(victim.stat().st_size // 2)
    one_line(run_frontier("pretrain", toy, f"data.shards={broken}", "--ranks", "2"), victim.name)


def test_shards_of_another_schema(toy: Path, shards: Path, tmp_path: Path) -> None:
    broken = tmp_path / "other"
    shutil.copytree(shards, broken)
    manifest = json.loads((broken / "manifest.json").read_text())
    manifest["schema"] = "frontier-shards/99"
    (broken / "manifest.json").write_text(json.dumps(manifest))
    one_line(run_frontier("pretrain", toy, f"data.shards={broken}"), "frontier-shards/99")


def test_non_finite_gradients_are_skipped_then_stop_the_run(toy: Path, tmp_path: Path) -> None:
    done = run_frontier("pretrain", toy, "--ranks", "2", "train.max_skipped=3", "data.std=[1e-44,1e-44,1e-44]")
    one_line(done, "4 steps in a row", "train.base_lr")
    rows = read_jsonl(tmp_path / "run/metrics.jsonl")
    assert [row["skipped"] for row in rows] == [1, 2, 3]
    assert rows[0]["loss"] is None or rows[0]["grad_norm"] is None


def test_dry_run_counts(toy: Path, tmp_path: Path) -> None:
    done = run_frontier("pretrain", toy, "--dry-run", "--world-size", "4", "--json", "parallel.strategy=hybrid_2")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["mesh"] == {"strategy": "hybrid_2", "replicate": 2, "shard": 2, "tensor": 1, "world_size": 4}
    assert told["batch"] == {"global": 32, "rank": 8, "micro": 8, "accumulation": 1}
    assert told["memory_gib"]["optimizer"] == pytest.approx(2 * told["memory_gib"]["parameters"])
    assert told["memory_gib"]["activations"] > 0
    assert not (tmp_path / "run").exists()
