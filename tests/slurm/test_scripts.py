"""The siblings of pretrain_3b.sh on a real Slurm, unedited: a chain from an archive to a probe, writers on two nodes, a study through a requeue."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from frontier.submit.site import load_site
from tests.conftest import ROOT, curve, read_jsonl, run_frontier
from tests.gpna.runs import image_set, series_set
from tests.profiling.sweep.fakes import status, statuses
from tests.slurm.cluster import Cluster, until
from tests.slurm.jobs import SMALL, assert_same_curve, await_step, log, sbatch, starts
from tests.slurm.test_sweep import DDP, FULL, HYBRID, STAND_IN, await_tasks, toy

SCRIPTS = sorted(path.name for path in (ROOT / "jobs").glob("*.sh") if "\n#SBATCH " in path.read_text())
GPNA = (
    "model.preset=gpna_debug data.granule=4 data.workers=1 parallel.strategy=full_shard parallel.precision=fp32 parallel.timeout_s=120 "
    "train.epochs=null train.samples=null train.global_batch=16 train.micro_batch=null checkpoint.every_steps=1000 log.every_steps=50"
)
"""The gpna configurations at a size for two cores."""
ALIBI = (
    "model.preset=scale_alibi_debug model.sensors.radar.size=32 model.sensors.lores.size=32 model.sensors.hires.column=naip "
    "model.sensors.hires.bands=[red,green,blue] model.sensors.hires.size=64 data.workers=1 parallel.strategy=full_shard "
    "parallel.precision=fp32 parallel.activation_checkpointing=none parallel.timeout_s=120 train.epochs=null train.global_batch=8 "
    "train.micro_batch=null checkpoint.every_steps=1000 log.every_steps=50"
)
"""The paper's Scale-ALiBi at a size for two cores."""
SCENES = "--scenes 96 --size 32 --samples-per-shard 8"


def header(script: str) -> dict[str, str]:
    """Option -> value of the #SBATCH lines."""
    lines = [
        line.split()[1:] for line in (ROOT / "jobs" / script).read_text().splitlines() if line.startswith("#SBATCH")
    ]
    return {words[0]: words[1] if not words[0].startswith("--") and len(words) > 1 else "" for words in lines}


def test_slurm_takes_every_script(cluster: Cluster) -> None:
    """And each asks for no more than Frontier's batch partition gives to so many nodes."""
    assert len(SCRIPTS) == 9
    for script in SCRIPTS:
        done = cluster.run("sbatch", "--test-only", "-N2", ROOT / "jobs" / script)
        assert done.returncode == 0, f"{script}: {done.stderr}"
        asked = header(script)
        hours, minutes, seconds = map(int, asked["-t"].split(":"))
        assert hours + minutes / 60 + seconds / 3600 <= (load_site("frontier").longest(int(asked["-N"])) or 0), script


def test_from_scenes_to_a_probe_as_a_chain(tmp_path: Path, cluster: Cluster) -> None:
    """Three jobs submitted at once, each waiting for the one before."""
    run, shards = tmp_path / "run", tmp_path / "shards"
    env = {"FRONTIER_SHARDS": str(shards), "FRONTIER_RUN": str(run), "FRONTIER_RANKS_PER_NODE": "1"}
    writing = {**env, "FRONTIER_RUN": str(tmp_path / "writing"), "FRONTIER_WRITE": SCENES, "FRONTIER_WORKERS": "1"}
    write = sbatch(cluster, "write_shards.sh", tmp_path, **writing)
    words = f"{SMALL} train.steps=10"
    after = f"--dependency=afterok:{write}"
    train = sbatch(cluster, "pretrain_15b.sh", tmp_path, "-N2", after, **env, FRONTIER_OVERRIDES=words)
    after = f"--dependency=afterok:{train}"
    probe = sbatch(cluster, "probe.sh", tmp_path, after, **env, FRONTIER_PROBE="--method knn --batch 8")
    assert cluster.wait(probe) == "COMPLETED", log(tmp_path)
    assert cluster.state(write) == cluster.state(train) == "COMPLETED"
    assert len(curve(run)) == 10 and [start["nodes"] for start in starts(run)] == [2]
    rows = json.loads((run / "probe.json").read_text())
    assert {row["encoder"] for row in rows} == {"pretrained", "random", "colour_texture"} and rows[0]["step"] == 10
    assert f"rows in {run / 'probe.json'}" in log(tmp_path)


@pytest.mark.slow
def test_several_sources_and_then_their_tasks(tmp_path: Path, cluster: Cluster) -> None:
    """jobs/gpna_pretrain.sh on two nodes, and jobs/gpna_tasks.sh that waits for it and begins with its weights."""
    images, series = image_set(tmp_path / "images"), series_set(tmp_path / "series")
    env = {"FRONTIER_RANKS_PER_NODE": "1"}
    folders = {"scenes": images, "pairs": image_set(tmp_path / "pairs", bands=2), "places": series}
    plain = "data.sources.places.symmetries=false"  # series here, where the config has images
    words = " ".join(
        [GPNA, "train.steps=6", plain, *(f"data.sources.{name}.shards={path}" for name, path in folders.items())]
    )
    pretrain = {**env, "FRONTIER_RUN": str(tmp_path / "pretrained"), "FRONTIER_OVERRIDES": words}
    job = sbatch(cluster, "gpna_pretrain.sh", tmp_path, "-N2", **pretrain)
    targets = {"wealth": "dry", "education": "dry", "water": "dry", "kiln": "label", "boundary": "land", "area": "land"}
    folders = {"places": images, "kilns": images, "fields": images}
    words = " ".join(
        [
            GPNA,
            f"train.steps=6 train.start_from={tmp_path / 'pretrained'}",
            *(f"data.sources.{name}.shards={path}" for name, path in folders.items()),
            *(f"model.tasks.{name}.target={column}" for name, column in targets.items()),
            "model.tasks.boundary.train_pixels=8 model.tasks.area.train_pixels=8",
        ]
    )
    tuning = {**env, "FRONTIER_RUN": str(tmp_path / "tasks"), "FRONTIER_OVERRIDES": words}
    then = sbatch(cluster, "gpna_tasks.sh", tmp_path, "-N2", f"--dependency=afterok:{job}", **tuning)
    for each in (job, then):
        assert cluster.wait(each) == "COMPLETED", log(tmp_path)
    for run in ("pretrained", "tasks"):
        assert len(curve(tmp_path / run)) == 6
        assert [(start["nodes"], start["world_size"]) for start in starts(tmp_path / run)] == [(2, 2)]
    assert starts(tmp_path / "tasks")[0]["start_from"].startswith(str(tmp_path / "pretrained"))
    assert set(read_jsonl(tmp_path / "tasks" / "metrics.jsonl")[0]) >= {f"loss_{name}" for name in targets}


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of three sensors with a held-out half."""
    out = tmp_path_factory.mktemp("tiles") / "tiles"
    words = ["--scenes", "40", "--size", "32", "--sensors", "s2,s1,naip", "--test-fraction", "0.5", "--seed", "0"]
    done = run_frontier("shards", "write", *words, out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_three_sensors_and_what_they_are_worth(tmp_path: Path, cluster: Cluster, tiles: Path) -> None:
    """jobs/scale_alibi_pretrain.sh on two nodes, and jobs/scale_alibi_evaluate.sh that waits for it."""
    run = tmp_path / "run"
    env = {"FRONTIER_RANKS_PER_NODE": "1", "FRONTIER_RUN": str(run)}
    pretrain = {**env, "FRONTIER_SHARDS": str(tiles), "FRONTIER_OVERRIDES": f"{ALIBI} train.steps=4"}
    job = sbatch(cluster, "scale_alibi_pretrain.sh", tmp_path, "-N2", **pretrain)
    then = sbatch(cluster, "scale_alibi_evaluate.sh", tmp_path, f"--dependency=afterok:{job}", **env)
    assert cluster.wait(then) == "COMPLETED" and cluster.state(job) == "COMPLETED", log(tmp_path)
    assert len(curve(run)) == 4 and [(start["nodes"], start["world_size"]) for start in starts(run)] == [(2, 2)]
    rows = json.loads((run / "evaluation.json").read_text())
    assert {row["encoder"] for row in rows} == {"pretrained", "random"}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpna", "scale_alibi"])
def test_the_families_through_a_requeue(tmp_path: Path, cluster: Cluster, tiles: Path, family: str) -> None:
    """Two nodes with two ranks each, stopped in the middle by a signal: the same curve as one rank's that nobody stopped."""
    run = tmp_path / "run"
    if family == "gpna":
        config, words = "gpna_pretrain_1b", f"{GPNA} data.sources.places.symmetries=false"
        folders = {"scenes": image_set(tmp_path / "images"), "pairs": image_set(tmp_path / "pairs", bands=2)}
        folders["places"] = series_set(tmp_path / "series")
        words = " ".join([words, *(f"data.sources.{name}.shards={path}" for name, path in folders.items())])
    else:
        config, words = "scale_alibi_base", f"{ALIBI} data.shards={tiles}"
    words += " train.steps=60 train.base_lr=1e-4"
    env = {"FRONTIER_RANKS_PER_NODE": "2", "FRONTIER_RUN": str(run), "FRONTIER_OVERRIDES": words}
    job = sbatch(cluster, f"{family}_pretrain.sh", tmp_path, "-N2", **env)
    await_step(run, 10, tmp_path, seconds=300)
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    assert cluster.wait(job, seconds=400) == "COMPLETED", log(tmp_path)
    (requeue,) = read_jsonl(run / "requeues.jsonl")
    assert requeue["code"] == 85 and 10 <= requeue["step"] < 60
    assert [start["world_size"] for start in starts(run)] == [4, 4] and starts(run)[1]["restarts"] == 1
    alone = tmp_path / "alone"
    done = run_frontier("pretrain", ROOT / f"jobs/configs/{config}.yaml", *words.split(), f"run.dir={alone}")
    assert done.returncode == 0, done.stderr
    assert_same_curve(run, alone, curve)


# MPICH 5 and the PMI-2 server of Slurm 22.05 now and then misread each other's addresses ("invalid client request"), and the job hangs.
TWO = pytest.param(2, {"SLURM_MPI_TYPE": "pmi2"}, marks=pytest.mark.slow)


@pytest.mark.parametrize(("nodes", "mpi"), [(1, {}), TWO])
def test_writers_through_a_requeue(tmp_path: Path, cluster: Cluster, nodes: int, mpi: dict[str, str]) -> None:
    """Each node writes its own shards (of two: mpi4py under srun); stopped in the middle, the job goes on and keeps what was whole."""
    out, alone = tmp_path / "shards", tmp_path / "alone"
    words = SCENES.replace("96", "320")
    env = {"FRONTIER_SHARDS": str(out), "FRONTIER_RUN": str(tmp_path / "run"), "FRONTIER_WRITE": words}
    job = sbatch(cluster, "write_shards.sh", tmp_path, f"-N{nodes}", **env, **mpi, FRONTIER_WORKERS="1")
    until(lambda: len(list(out.glob("*.done"))) >= 4, 60, lambda: log(tmp_path))
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    assert cluster.wait(job) == "COMPLETED", log(tmp_path)
    (requeue,) = read_jsonl(tmp_path / "run" / "requeues.jsonl")
    assert requeue["code"] == 85 and 4 <= requeue["step"] < 40
    assert f"({40 - requeue['step']} written, {requeue['step']} kept)" in log(tmp_path)
    assert run_frontier("shards", "write", *words.split(), alone, "--workers", "2").returncode == 0
    assert _hashes(out) == _hashes(alone) and len(_hashes(out)) == 40


def test_writers_without_mpi_are_refused(tmp_path: Path, cluster: Cluster) -> None:
    """An srun that does not serve their MPI: each rank would write everything. One line, exit 2, no requeue."""
    env = {"FRONTIER_SHARDS": str(tmp_path / "shards"), "FRONTIER_RUN": str(tmp_path / "run"), "FRONTIER_WRITE": SCENES}
    job = sbatch(cluster, "write_shards.sh", tmp_path, "-N2", **env, SLURM_MPI_TYPE="none")
    assert cluster.wait(job) == "FAILED"
    assert "slurm started 2 ranks, but mpi4py sees 1" in log(tmp_path) and "export SLURM_MPI_TYPE" in log(tmp_path)
    assert "ExitCode=2:0" in cluster.run("scontrol", "show", "job", job).stdout


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.h5")}


@pytest.mark.slow
def test_a_study_through_a_requeue_to_its_report(tmp_path: Path, cluster: Cluster) -> None:
    """Stopped while it measures the second of three points: that one runs again in the next start, the first does not."""
    out, path = tmp_path / "out", toy(tmp_path, mode="measured", job={"srun_args": STAND_IN})
    env = {"FRONTIER_STUDY": str(path), "FRONTIER_RUN": str(out), "FRONTIER_RANKS_PER_NODE": "2"}
    job = sbatch(
        cluster, "scaling_study.sh", tmp_path, "-N2", **env, FAKE_RUNS=json.dumps({"full_shard": "sleep once"})
    )
    await_tasks(out, FULL)
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    until(lambda: (out / "report.html").exists(), 60, lambda: log(tmp_path))  # what is measured so far
    assert cluster.wait(job) == "COMPLETED", log(tmp_path)
    assert statuses(out) == {"ddp": "done", "full_shard": "done", "hybrid_1": "done"}
    assert [status(out, point)["attempts"] for point in (DDP, FULL, HYBRID)] == [1, 2, 1]
    (requeue,) = read_jsonl(out / "jobs" / "n2" / "requeues.jsonl")
    assert (requeue["code"], requeue["step"]) == (85, 1)
    assert "3 done" in log(tmp_path) and "hybrid_1" in (out / "report.html").read_text()


def test_the_15b_config_is_what_the_predictor_takes() -> None:
    """Of the strategies at its own batch on the script's own nodes: the quickest, with a quarter of the memory to spare."""
    config, nodes = ROOT / "jobs" / "configs" / "mae_vit_15b.yaml", int(header("pretrain_15b.sh")["-N"])
    done = run_frontier(
        "plan", "--config", config, "--system", "frontier", "--nodes", nodes, "--strategy", "auto", "--json"
    )
    assert done.returncode == 0, done.stderr
    best = json.loads(done.stdout)["auto"][0]["winner"]
    chosen = yaml.safe_load(config.read_text())
    assert best["strategy"] == chosen["parallel"]["strategy"]
    assert (best["global_batch"], best["accumulation"]) == (chosen["train"]["global_batch"], 1)
    assert best["memory_gib"]["peak"] < 0.75 * best["memory_limit_gib"]
