"""What the trainer does with its nodes and its job, on a real Slurm: two nodes with two ranks each, started by srun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, curve, read_jsonl, run_frontier, toy_config
from tests.slurm.cluster import Cluster


@pytest.fixture
def toy(tmp_path: Path, shards: Path) -> Path:
    """A config of six steps."""
    config = toy_config(tmp_path / "alone", shards)
    config["train"]["steps"] = 6
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def alone(toy: Path) -> list[float]:
    """The curve of one rank."""
    done = run_frontier("pretrain", toy)
    assert done.returncode == 0, done.stderr
    return curve(toy.parent / "alone")


def srun(cluster: Cluster, *words: object, **env: str) -> subprocess.CompletedProcess[str]:
    layout = ["--nodelist=n1,n2", "-N2", "--ntasks-per-node=2", "--kill-on-bad-exit=0", "--wait=60", f"--chdir={ROOT}"]
    python = [sys.executable, "-m", "frontier", "pretrain"]
    return cluster.run("srun", *layout, *python, *map(str, words), timeout=180, OMP_NUM_THREADS="1", **env)


def disk(cluster: Cluster, node: str) -> Path:
    """The node's own /mnt/bb, seen from here."""
    return Path(f"/proc/{cluster.daemons[node].pid}/root/mnt/bb")


def fill(folder: Path, leave: int) -> Path:
    filler = folder / "filler"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - leave)
    return filler


def copies(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_staging_with_one_full_disk(tmp_path: Path, cluster: Cluster, toy: Path) -> None:
    """n1 copies, n2 has no room, says so and reads from the origin; the same curve."""
    run = tmp_path / "run"
    filler = fill(disk(cluster, "n2"), leave=8 << 20)
    try:
        done = srun(cluster, toy, f"run.dir={run}", "data.stage=/mnt/bb/x", FRONTIER_RESTARTS="7")
        assert done.returncode == 0, done.stderr
        assert "n1: staged 1 of 1 shards in /mnt/bb/x/" in done.stdout and "MiB/s), 0 there already" in done.stdout
        assert "n2: staged 0 of 1 shards" in done.stderr and "(the free space is used up)" in done.stderr
        assert copies(disk(cluster, "n1") / "x") == ["train-00000.h5"] and not copies(disk(cluster, "n2") / "x")
    finally:
        filler.unlink()
    assert curve(run) == pytest.approx(alone(toy), rel=1e-5)
    start = read_jsonl(run / "starts.jsonl")[0]
    assert (start["scheduler"], start["restarts"], start["nodelist"]) == ("slurm", 7, "n[1-2]") and start["job_id"]
    assert start["startup_s"]["imports"]["max_host"] in ("n1", "n2") and start["nodes"] == 2


@pytest.mark.slow
def test_staging_on_both_nodes(tmp_path: Path, cluster: Cluster, toy: Path) -> None:
    runs = [tmp_path / "first", tmp_path / "second"]
    done = [srun(cluster, toy, f"run.dir={run}", "data.stage=/mnt/bb/y") for run in runs]
    assert [d.returncode for d in done] == [0, 0], done[0].stderr + done[1].stderr
    assert "1 copied" in done[0].stdout and "staging, slowest of 2 nodes" in done[0].stdout
    assert "read from the origin" not in done[0].stderr + done[0].stdout
    assert "0 copied" in done[1].stdout and "1 there already" in done[1].stdout
    for node in ("n1", "n2"):
        assert copies(disk(cluster, node) / "y") == ["train-00000.h5"]
    assert curve(runs[0]) == curve(runs[1]) == pytest.approx(alone(toy), rel=1e-5)


def test_ranks_without_their_device(tmp_path: Path, cluster: Cluster, toy: Path) -> None:
    """One line of rank 0 for all, exit 2 of the step, nothing left waiting for the others."""
    done = srun(cluster, toy, f"run.dir={tmp_path / 'run'}", "run.device=cuda", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("srun:")]
    assert len(said) == 1 and "rank 0 on n1: run.device=cuda" in said[0] and "and 3 more ranks" in said[0]
    assert not (tmp_path / "run").exists()
