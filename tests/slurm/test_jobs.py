"""`sbatch jobs/pretrain_3b.sh`, the script as shipped: to the end, through its time limit, signals, lost ranks and nodes."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, curve, read_jsonl
from tests.slurm.cluster import Cluster, until
from tests.slurm.jobs import NOBODY, SMALL, assert_same_curve, await_step, log, sbatch, starts, step, undisturbed

SCRIPT = "pretrain_3b.sh"
LMOD = Path("/usr/share/lmod/lmod/init/bash")
MODULES = ("PrgEnv-gnu/8.7.0", "cpe/26.03", "miniforge3/23.11.0-0", "rocm/7.1.1", "rccl-net-plugin/1.0", "craype-accel-amd-gfx90a/1.0")  # fmt: skip
"""Frontier's, as empty modules for a real Lmod."""


@pytest.fixture
def small(tmp_path: Path, shards: Path) -> dict[str, str]:
    """Settings of a job, two ranks a node."""
    return {
        "FRONTIER_RANKS_PER_NODE": "2",
        "FRONTIER_SHARDS": str(shards),
        "FRONTIER_RUN": str(tmp_path / "run"),
        "FRONTIER_OVERRIDES": f"{SMALL} train.steps=20",
    }


def with_steps(small: dict[str, str], steps: int, *more: str) -> dict[str, str]:
    return {**small, "FRONTIER_OVERRIDES": " ".join([SMALL, f"train.steps={steps}", *more])}


def requeues(run: Path) -> list[dict]:
    path = run / "requeues.jsonl"
    return read_jsonl(path) if path.exists() else []


@pytest.fixture
def lmod(tmp_path: Path) -> dict[str, str]:
    """A real `module` command that knows Frontier's modules by name."""
    if not LMOD.exists():
        pytest.skip("no Lmod here: run tools/system_packages.sh (Debian: lmod)")
    for name in MODULES:
        path = tmp_path / "modules" / f"{name}.lua"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'setenv("LOADED_{path.parent.name.replace("-", "_")}", "{path.stem}")\n')
    return {"BASH_ENV": str(LMOD), "MODULEPATH": str(tmp_path / "modules")}


def test_the_frontier_script_runs_two_nodes_to_the_end(
    tmp_path: Path, cluster: Cluster, small: dict[str, str], lmod: dict[str, str]
) -> None:
    """Modules, srun's words and variables of Frontier, unedited; the only stand-ins are empty modules and the device."""
    small["FRONTIER_OVERRIDES"] += " run.device=cpu"
    job = sbatch(cluster, SCRIPT, tmp_path, "-N2", **small, **lmod, FRONTIER_SITE="frontier", SBATCH_ACCOUNT="abc123")
    assert cluster.wait(job) == "COMPLETED", log(tmp_path)
    first = starts(tmp_path / "run")[0]
    assert (first["world_size"], first["nodes"], first["launcher"]) == (4, 2, "slurm")
    assert len(curve(tmp_path / "run")) == 20 and not requeues(tmp_path / "run")
    assert "shards in /mnt/bb/" in log(tmp_path)  # copied to each node's own disk


@pytest.mark.slow  # Slurm's time limits are whole minutes
def test_the_time_limit_twice(tmp_path: Path, cluster: Cluster, small: dict[str, str], shards: Path) -> None:
    """Slurm's own signal before its own limit ends the run in the middle; it goes on by itself, and nothing shows in the curve."""
    steps = 300
    env = with_steps(small, steps)
    job = sbatch(cluster, SCRIPT, tmp_path, "-N2", **env, SBATCH_TIMELIMIT="1", SBATCH_SIGNAL="B:USR1@50")
    assert cluster.wait(job, seconds=400) == "COMPLETED", log(tmp_path)
    run = tmp_path / "run"
    found = requeues(run)
    assert len(found) >= 2 and [line["code"] for line in found] == [85] * len(found), log(tmp_path)
    assert [line["restart"] for line in found] == list(range(len(found)))
    assert len(starts(run)) == len(found) + 1
    assert_same_curve(run, undisturbed(tmp_path, shards, steps), curve)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["short", "whole"])
def test_signals_requeues_and_a_killed_rank(
    tmp_path: Path, cluster: Cluster, small: dict[str, str], shards: Path, whole: bool
) -> None:
    """One run, in one job: `scancel --signal=USR1`, kill -9 of a rank (its node is left out), to the end. Whole: after the signal
    `scontrol requeue`, and after the kill a STOP file, then another job.
    """
    run, env = tmp_path / "run", with_steps(small, 300, "checkpoint.every_steps=20")
    job = sbatch(cluster, SCRIPT, tmp_path, "-N2", **env)
    await_step(run, 25, tmp_path)
    cluster.run("scancel", "--signal=USR1", job)  # to the ranks; the script learns it from their exit code
    until(lambda: len(starts(run)) == 2, 60, lambda: log(tmp_path))
    first = requeues(run)[0]
    assert first["code"] == 85 and first["step"] >= 25 and not first["excluded"]
    await_step(run, first["step"] + 10, tmp_path)
    if whole:
        cluster.run("scontrol", "requeue", job)  # by the user: Slurm's SIGTERM, its requeue
        until(lambda: len(starts(run)) == 3, 60, lambda: log(tmp_path))
        await_step(run, step(run) + 10, tmp_path)
    victim = _rank(cluster, job, 3)
    node = victim.environ()["SLURMD_NODENAME"]
    victim.kill()
    until(lambda: len(starts(run)) == 3 + whole, 120, lambda: log(tmp_path))
    last = requeues(run)[-1]
    assert last["code"] == 137 and last["excluded"] == node, log(tmp_path)
    assert node not in _nodes(cluster, job)
    if whole:
        await_step(run, last["step"] + 10, tmp_path)
        (run / "STOP").touch()
        assert cluster.wait(job) == "FAILED", log(tmp_path)  # exit 85
        assert "not requeued" in log(tmp_path) and len(starts(run)) == 4
        (run / "STOP").unlink(missing_ok=True)
        job = sbatch(cluster, SCRIPT, tmp_path, "-N2", **env)
    assert cluster.wait(job) == "COMPLETED", log(tmp_path)
    assert_same_curve(run, undisturbed(tmp_path, shards, 300), curve)


def _rank(cluster: Cluster, job: str, rank: int) -> psutil.Process:
    """The process of a rank of a job."""

    def is_rank(process: psutil.Process) -> bool:
        env = process.environ()
        mine = env.get("SLURM_JOB_ID") == job and env.get("SLURM_PROCID") == str(rank)
        return mine and "SLURM_STEP_ID" in env and "pretrain" in process.cmdline() and process.name() != "srun"

    found = cluster.processes(is_rank)
    assert found, f"job {job} has no rank {rank}"
    return found[0]


def _nodes(cluster: Cluster, job: str) -> list[str]:
    short = cluster.run("squeue", "--noheader", "--format=%N", f"--jobs={job}").stdout.strip()
    return cluster.run("scontrol", "show", "hostnames", short).stdout.split()


@pytest.mark.slow
def test_an_array_trains_a_seed_a_task(tmp_path: Path, cluster: Cluster, small: dict[str, str]) -> None:
    """Two tasks with a run folder each; one is signalled, and requeues itself alone."""
    env = with_steps(small, 120)
    job = sbatch(cluster, SCRIPT, tmp_path, "-N1", "--array=3-4", **env)
    runs = {index: tmp_path / "run" / f"task_{index}" for index in (3, 4)}
    await_step(runs[4], 10, tmp_path)
    cluster.run("scancel", "--batch", "--signal=USR1", f"{job}_4")
    assert cluster.wait(f"{job}_3") == "COMPLETED" and cluster.wait(f"{job}_4") == "COMPLETED", log(tmp_path)
    assert [len(requeues(runs[index])) for index in (3, 4)] == [0, 1]
    assert requeues(runs[4])[0]["job"] == f"{job}_4"
    three, four = curve(runs[3]), curve(runs[4])
    assert len(three) == len(four) == 120 and three != four


@pytest.mark.slow
def test_cancelled_then_the_next_of_a_chain(
    tmp_path: Path, cluster: Cluster, small: dict[str, str], shards: Path
) -> None:
    """A plain `scancel` saves and does not requeue; a job that waited for its end goes on."""
    run, env = tmp_path / "run", with_steps(small, 60)
    first = sbatch(cluster, SCRIPT, tmp_path, "-N1", **env)
    second = sbatch(cluster, SCRIPT, tmp_path, "-N2", f"--dependency=afterany:{first}", **env)
    await_step(run, 10, tmp_path)
    assert cluster.state(second) == "PENDING"
    cluster.run("scancel", first)
    assert cluster.wait(first) == "CANCELLED" and cluster.wait(second) == "COMPLETED", log(tmp_path)
    assert "asked to stop (SIGTERM)" in log(tmp_path) and not requeues(run)
    assert [start["nodes"] for start in starts(run)] == [1, 2] and starts(run)[1]["resumed_from"] >= 10
    assert_same_curve(run, undisturbed(tmp_path, shards, 60), curve)


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "more"), [("-N3", {"FRONTIER_NODES": "2"}), ("-N2", {})], ids=["spare", "no spare"])
def test_the_doctor_leaves_a_bad_node_out(
    tmp_path: Path, cluster: Cluster, small: dict[str, str], nodes: str, more: dict[str, str]
) -> None:
    """Its disk is full: with a spare the job goes on without it, without one it requeues itself on other nodes."""
    fill = "head -c 299M /dev/zero > /mnt/bb/leftover || true"
    assert cluster.run("srun", "-N1", "-wn2", "sh", "-c", fill).returncode == 0
    env = {**small, **more, "FRONTIER_LOCAL": "/mnt/bb", "FRONTIER_DOCTOR": "1", "FRONTIER_RANKS_PER_NODE": "1"}
    try:
        job = sbatch(cluster, SCRIPT, tmp_path, nodes, **env)
        assert cluster.wait(job, seconds=150) == "COMPLETED", log(tmp_path)
        assert "job: bad nodes: n2 " in log(tmp_path)
        run = tmp_path / "run"
        assert starts(run)[0]["nodes"] == 2 and len(starts(run)) == 1
        assert [line["excluded"] for line in requeues(run)] == ([] if more else ["n2"])
    finally:
        cluster.run("srun", "-N1", "-wn2", "rm", "/mnt/bb/leftover")


WRONG = {
    "no account": ({"FRONTIER_SITE": "frontier"}, "no account: export SBATCH_ACCOUNT"),
    "no modules": ({"FRONTIER_SITE": "frontier", "SBATCH_ACCOUNT": "abc"}, "no 'module' command on"),
    "no such site": ({"FRONTIER_SITE": "frontear"}, "FRONTIER_SITE=frontear: there is no such site"),
    "no environment": ({"FRONTIER_VENV": "/nowhere"}, "FRONTIER_VENV=/nowhere has no bin/python"),
    "no shards": ({"FRONTIER_SHARDS": "/nowhere"}, "FRONTIER_SHARDS=/nowhere has no manifest.json"),
    "too many ranks": ({"FRONTIER_SITE": "perlmutter", "SBATCH_ACCOUNT": "abc", "FRONTIER_RANKS_PER_NODE": "9"}, "9 ranks and 8 GPUs a node"),
    "too many cores": ({"FRONTIER_RANKS_PER_NODE": "65"}, "srun cannot start 65 ranks a node"),
    "spares": ({"FRONTIER_NODES": "3"}, "FRONTIER_NODES=3, and the job has 1"),
    "no nodes": ({"FRONTIER_NODES": "0"}, "FRONTIER_NODES=0: give a whole number"),
    "ranks in words": ({"FRONTIER_RANKS_PER_NODE": "two"}, "FRONTIER_RANKS_PER_NODE=two: give a whole number"),
    "half a word": ({"FRONTIER_DOCTOR": "yes"}, "FRONTIER_DOCTOR=yes: give 1 or 0"),
    "no folder": ({"FRONTIER_RUN": "/proc/run"}, "the run folder /proc/run cannot be written"),
    "unknown key": ({"FRONTIER_OVERRIDES": "train.stepz=3"}, "stepz"),
    "a lost shard": ({"FRONTIER_SHARDS": "TORN"}, "train-00000.h5"),  # rank 0 alone looks at every shard
}  # fmt: skip


def test_mistakes_end_the_job_at_once(tmp_path: Path, cluster: Cluster, small: dict[str, str], shards: Path) -> None:
    """One line that names it, exit 2, no requeue; no rank waits for one that has left."""
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "manifest.json").write_text((shards / "manifest.json").read_text())
    jobs = {}
    for name, (env, _) in WRONG.items():
        given = {**small, **{key: value.replace("TORN", str(torn)) for key, value in env.items()}}
        nodes = "-N2" if name in ("unknown key", "a lost shard") else "-N1"
        jobs[name] = sbatch(cluster, SCRIPT, tmp_path / name.replace(" ", "_"), nodes, **given)
    for name, (_, words) in WRONG.items():
        assert cluster.wait(jobs[name]) == "FAILED"
        text = log(tmp_path / name.replace(" ", "_"))
        lines = [line for line in text.splitlines() if line.startswith(("job: ", "frontier pretrain: "))]
        assert words in lines[-1] and text.count("frontier pretrain: ") <= 1, text
        shown = cluster.run("scontrol", "show", "job", jobs[name]).stdout
        assert "ExitCode=2:0" in shown and "Restarts=0" in shown, text
        # Four jobs share the cores; a rank that waits does so for timeout_s or longer.
        assert _run_time(shown) < 150, text


def _run_time(shown: str) -> int:
    """Seconds, from `scontrol show job`."""
    (hours, minutes, seconds) = re.findall(r"RunTime=(\d+):(\d+):(\d+)", shown)[0]
    return 3600 * int(hours) + 60 * int(minutes) + int(seconds)


ELSEWHERE = {
    "gpna_pretrain.sh": ({"FRONTIER_RUN": "RUN"}, "shards/millionaid"),
    "gpna_tasks.sh": ({"FRONTIER_RUN": "RUN", "FRONTIER_SHARDS": "/nowhere"}, "jobs/configs/gpna_tasks.yaml has several sources"),
    "scale_alibi_pretrain.sh": ({"FRONTIER_RUN": "RUN"}, "shards/triplets_full"),
    "scale_alibi_evaluate.sh": ({"FRONTIER_RUN": "RUN"}, "RUN"),
    "probe.sh": ({"FRONTIER_RUN": "RUN"}, "RUN"),
    "write_shards.sh": ({"FRONTIER_RUN": "RUN", "FRONTIER_SHARDS": "RUN", "FRONTIER_ARCHIVE": "/nowhere"}, "/nowhere"),
    "scaling_study.sh": ({"FRONTIER_RUN": "RUN", "FRONTIER_STUDY": "weak_skaling"}, "weak_skaling"),
}  # fmt: skip
"""Nothing is where a script looks for it."""


@pytest.mark.slow
def test_mistakes_with_the_other_scripts(tmp_path: Path, cluster: Cluster) -> None:
    """One line, exit 2, no requeue."""
    run, jobs = str(tmp_path / "run"), {}
    for name, (env, _) in ELSEWHERE.items():
        given = {"FRONTIER_RANKS_PER_NODE": "1", **{key: word.replace("RUN", run) for key, word in env.items()}}
        nodes = "-N1" if name == "write_shards.sh" else "-N2"  # two would need an MPI
        jobs[name] = sbatch(cluster, name, tmp_path / name, nodes, **given)
    for name, (_, words) in ELSEWHERE.items():
        assert cluster.wait(jobs[name]) == "FAILED", name
        text = log(tmp_path / name)
        said = [line for line in text.splitlines() if line.startswith("frontier ") or line.startswith("job: FRONTIER")]
        assert len(said) == 1 and words.replace("RUN", run) in said[0], text
        shown = cluster.run("scontrol", "show", "job", jobs[name]).stdout
        assert "ExitCode=2:0" in shown and "Restarts=0" in shown and _run_time(shown) < 45, text


def test_a_missing_module(tmp_path: Path, cluster: Cluster, small: dict[str, str], lmod: dict[str, str]) -> None:
    (tmp_path / "modules" / "rocm" / "7.1.1.lua").unlink()
    env = {**small, **lmod, "FRONTIER_SITE": "frontier", "SBATCH_ACCOUNT": "abc123"}
    job = sbatch(cluster, SCRIPT, tmp_path, "-N1", **env)
    assert cluster.wait(job) == "FAILED"
    assert "job: module load rocm/7.1.1 fails on n" in log(tmp_path)


def test_a_full_disk(tmp_path: Path, cluster: Cluster, small: dict[str, str]) -> None:
    """Of one node, where each node is to copy its shards."""
    fill = "head -c 290M /dev/zero > /mnt/bb/leftover || true"
    assert cluster.run("srun", "-N1", "-wn3", "sh", "-c", fill).returncode == 0
    try:
        job = sbatch(cluster, SCRIPT, tmp_path, "-N2", "-wn[2-3]", **small, FRONTIER_LOCAL="/mnt/bb")
        assert cluster.wait(job) == "FAILED"
        assert "job: /mnt/bb is full on n3 (" in log(tmp_path)
        assert "ExitCode=2:0" in cluster.run("scontrol", "show", "job", job).stdout
    finally:
        cluster.run("srun", "-N1", "-wn3", "rm", "/mnt/bb/leftover")


def test_what_sbatch_itself_refuses(tmp_path: Path, cluster: Cluster, small: dict[str, str]) -> None:
    script = ROOT / "jobs" / SCRIPT
    done = cluster.run("sbatch", "-N2", script, SBATCH_PARTITION="nowhere")
    assert done.returncode == 1 and "invalid partition" in done.stderr.lower()
    done = cluster.run("sbatch", "--test-only", "-N2", script)
    assert done.returncode == 0, done.stderr


def stand_in(folder: Path, commands: str) -> dict[str, str]:
    """A "Python" whose ranks run these commands."""
    python = folder / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/bash\nulimit -c 0\n{commands}\n")
    python.chmod(0o755)
    return {"FRONTIER_VENV": str(python.parent.parent), "FRONTIER_RUN": str(folder / "run")}


SAVES = """for word; do [[ $word != run.dir=* ]] || run=${word#run.dir=}; done
trap 'mkdir -p "$run/checkpoints/step_00000005"; exit 85' TERM USR1
echo "$SLURM_NTASKS ranks, HDF5_USE_FILE_LOCKING=$HDF5_USE_FILE_LOCKING"
echo ready >>"$READY"
for i in {1..300}; do sleep 0.1; done"""


def ranks_ready(ready: Path) -> int:
    """How many have their trap."""
    return len(ready.read_text().split()) if ready.exists() else 0


def test_cancelled_stays_cancelled(tmp_path: Path, cluster: Cluster, small: dict[str, str]) -> None:
    """`scontrol requeue` would bring it back. Before that a signal to every process of the job, under sbatch's -n and --export."""
    ready, env = tmp_path / "ready", small | stand_in(tmp_path, SAVES)
    env |= {"FRONTIER_SITE": "local", "READY": str(ready)}
    export = ",".join(f"{key}={value}" for key, value in env.items())
    job = sbatch(cluster, SCRIPT, tmp_path, "-N1", "-n1", f"--export={export}")
    until(lambda: ranks_ready(ready) == 2, 60, lambda: log(tmp_path))
    ready.unlink()
    cluster.run("scancel", "--full", "--signal=USR1", job)
    until(lambda: ranks_ready(ready) == 2, 60, lambda: log(tmp_path))
    (line,) = requeues(tmp_path / "run")
    assert (line["code"], line["step"]) == (85, 5) and "Exited with exit code 85" in log(tmp_path)
    assert "2 ranks, HDF5_USE_FILE_LOCKING=FALSE" in log(tmp_path)  # not one; what the site exports reaches them
    cluster.run("scancel", job)
    assert cluster.wait(job) == "CANCELLED"
    assert "the job was cancelled; not requeued" in log(tmp_path) and len(requeues(tmp_path / "run")) == 1


@pytest.mark.parametrize("words", ["-xn4", "-wn4"])
def test_a_lost_rank_costs_its_node_the_place(
    tmp_path: Path, cluster: Cluster, small: dict[str, str], words: str
) -> None:
    """Beside the nodes of the user's -x; not one of -w, without which the job could not start again. What others left in the folder does no harm."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "excluded_nodes").write_text("n77\n")  # no longer there
    (run / "requeues.jsonl").write_text('{"job": "1", "step": 99999, "stalls": 8}\nhalf a li')
    crash = '[ "$SLURM_PROCID" = 0 ] || kill -SEGV $$; sleep 1; exit 75'
    job = sbatch(cluster, SCRIPT, tmp_path, "-N1", words, **small | stand_in(tmp_path, crash))
    assert cluster.wait(job, seconds=60) == "FAILED", log(tmp_path)
    first, second = (line.rsplit(" ", 1)[1] for line in log(tmp_path).splitlines() if "2 ranks: n" in line)
    assert "not requeued: no newer checkpoint" in log(tmp_path)
    shown = cluster.run("scontrol", "show", "job", job).stdout
    if words == "-xn4":
        assert first != second and f"ExcNodeList={first},n4" in shown, shown
    else:
        assert (first, second) == ("n4", "n4") and "ExcNodeList=(null)" in shown, shown


@pytest.mark.slow
def test_as_an_ordinary_user(cluster: Cluster, small: dict[str, str]) -> None:
    """Nobody's job blames a node, saves on a signal and requeues itself: Slurm lets an owner do all that."""
    crash = '[ "$SLURM_RESTART_COUNT" ] || { [ "$SLURM_PROCID" != 3 ] || kill -SEGV $$; sleep 1; exit 75; }'
    ends = '[ "$SLURM_RESTART_COUNT" = 1 ] || exit 0'
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are for root
        out = Path(folder)
        ready, env = out / "ready", stand_in(out, f"{crash}\n{ends}\n{SAVES}")
        out.chmod(0o777)
        env |= {"HOME": "/nonexistent", "USER": "nobody", "READY": str(ready), "FRONTIER_SHARDS": ""}
        job = sbatch(cluster, SCRIPT, out, "-N2", user=NOBODY, **small | env)
        until(lambda: ranks_ready(ready) == 4, 60, lambda: log(out))
        assert cluster.run(*NOBODY, "scancel", "--signal=USR1", "--batch", job).returncode == 0
        assert cluster.wait(job, seconds=60) == "COMPLETED", log(out)
        shown = cluster.run("scontrol", "show", "job", job).stdout
        assert "UserId=nobody" in shown and "Restarts=2" in shown and "ExcNodeList=n2" in shown, log(out)
        assert [line["code"] for line in requeues(out / "run")] == [139, 85]


def test_no_progress_no_requeue(tmp_path: Path, cluster: Cluster, small: dict[str, str]) -> None:
    """Ranks that leave without a newer checkpoint: 85 never requeues, a passing failure once."""
    for code, times in ((85, 0), (75, 1)):
        out = tmp_path / str(code)
        job = sbatch(cluster, SCRIPT, out, "-N1", **small | stand_in(out, f"exit {code}"))
        assert cluster.wait(job, seconds=60) == "FAILED"
        assert len(requeues(out / "run")) == times, log(out)
        assert "not requeued: no newer checkpoint since this start" in log(out)


def test_one_rank_that_meets_a_mistake_ends_the_job(tmp_path: Path, cluster: Cluster, small: dict[str, str]) -> None:
    """A full disk, say: it leaves with 2, the others with 75 because they lost it. srun's word is the highest."""
    fails = '[ "$SLURM_PROCID" != 0 ] || { echo "frontier pretrain: rank 0: the disk is full" >&2; exit 2; }; sleep 1; exit 75'
    job = sbatch(cluster, SCRIPT, tmp_path, "-N2", **small | stand_in(tmp_path, fails))
    assert cluster.wait(job, seconds=60) == "FAILED", log(tmp_path)
    shown = cluster.run("scontrol", "show", "job", job).stdout
    assert "ExitCode=2:0" in shown and "Restarts=0" in shown and not requeues(tmp_path / "run"), log(tmp_path)


@pytest.mark.slow
def test_preempted(tmp_path: Path, cluster: Cluster, small: dict[str, str], shards: Path) -> None:
    """A partition of higher priority takes the nodes: saved within the grace time, goes on when they are free."""
    run, env = tmp_path / "run", with_steps(small, 150)
    job = sbatch(cluster, SCRIPT, tmp_path, "-N2", **env)
    await_step(run, 10, tmp_path)
    other = cluster.run(
        "sbatch", "--parsable", "-phigh", "-N4", "--output=/dev/null", "--wrap", "sleep 5"
    ).stdout.strip()
    assert cluster.wait(other) == "COMPLETED"
    assert cluster.wait(job, seconds=200) == "COMPLETED", log(tmp_path)
    assert len(starts(run)) == 2 and starts(run)[1]["resumed_from"] >= 10, log(tmp_path)
    assert_same_curve(run, undisturbed(tmp_path, shards, 150), curve)


@pytest.mark.slow  # Slurm takes its time to miss a node
def test_a_lost_node(tmp_path: Path, cluster: Cluster, small: dict[str, str], shards: Path) -> None:
    """kill -9 of a node's slurmd and of all that runs there: Slurm requeues the job, which goes on elsewhere."""
    run, env = tmp_path / "run", with_steps(small, 200, "checkpoint.every_steps=20")
    job = sbatch(cluster, SCRIPT, tmp_path, "-N2", **env)
    await_step(run, 45, tmp_path)
    node = _nodes(cluster, job)[1]
    cluster.lose(node)
    try:
        until(lambda: len(starts(run)) == 2, 180, lambda: log(tmp_path))
        assert node not in _nodes(cluster, job)
        assert cluster.wait(job, seconds=120) == "COMPLETED", log(tmp_path)
    finally:
        cluster.bring_back(node)
    assert_same_curve(run, undisturbed(tmp_path, shards, 200), curve)


@pytest.mark.slow  # srun takes its time to give a node up
def test_a_node_that_starts_no_ranks(tmp_path: Path, cluster: Cluster, small: dict[str, str]) -> None:
    """Its slurmd is gone, which Slurm has not noticed yet: the job goes on with another node."""
    lost = cluster.daemons["n2"]
    lost.kill()
    lost.wait()
    try:
        job = sbatch(cluster, SCRIPT, tmp_path, "-N2", "-xn4", **small | stand_in(tmp_path, "exit 0"))
        assert cluster.wait(job, seconds=90) == "COMPLETED", log(tmp_path)
        assert "srun could not start the ranks on n2 (exit 75, step -1); requeued, without n2" in log(tmp_path)
        shown = cluster.run("scontrol", "show", "job", job).stdout
        assert "ExcNodeList=n2,n4\n" in shown and " NodeList=n[1,3]\n" in shown, shown
        assert len(requeues(tmp_path / "run")) == 1
    finally:
        cluster.bring_back("n2")
    job = cluster.run("sbatch", "--parsable", "-N4", "--wrap=srun hostname", f"--output={tmp_path}/four.txt").stdout
    assert cluster.wait(job.strip(), seconds=30) == "COMPLETED"  # all four nodes are there for those who come next
