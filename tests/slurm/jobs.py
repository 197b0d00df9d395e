"""How the tests call the shipped job scripts: `sbatch`, unedited, with settings in the environment alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT, read_jsonl, run_frontier
from tests.slurm.cluster import Cluster, until

SMALL = (
    "model.preset=vit_debug data.image_size=32 data.workers=1 parallel.strategy=full_shard parallel.precision=fp32 "
    "parallel.activation_checkpointing=none parallel.timeout_s=120 train.epochs=null train.global_batch=16 "
    "train.micro_batch=null checkpoint.every_steps=1000 log.every_steps=50"
)
"""The 3 B configuration at a size for two cores."""


NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
"""Before a command: as a user without rights."""


def sbatch(cluster: Cluster, script: str, out: Path, *words: str, user: Sequence[str] = (), **env: str) -> str:
    """Submit jobs/SCRIPT from the repository's root; the job's output goes to OUT/slurm-JOB.out. Returns the job's id."""
    out.mkdir(parents=True, exist_ok=True)
    settings = {"FRONTIER_SITE": "local", "FRONTIER_VENV": str(ROOT / ".venv"), "OMP_NUM_THREADS": "1", **env}
    given = [f"--output={out}/slurm-%j.out", f"--chdir={ROOT}", *words]
    done = cluster.run(*user, "sbatch", "--parsable", *given, ROOT / "jobs" / script, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def log(out: Path) -> str:
    """What the jobs of this folder said."""
    return "\n".join(path.read_text(errors="replace") for path in sorted(out.glob("slurm-*.out")))


def step(run: Path) -> int:
    """The last one in metrics.jsonl."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return 0
    steps = re.findall(rb'"step": (\d+), "epoch"', path.read_bytes())
    return int(steps[-1]) if steps else 0


def await_step(run: Path, count: int, out: Path, seconds: float = 90) -> None:
    until(lambda: step(run) >= count, seconds, lambda: f"{run} is at step {step(run)}, not {count}\n{log(out)}")


def starts(run: Path) -> list[dict]:
    path = run / "starts.jsonl"
    return read_jsonl(path) if path.exists() else []


def undisturbed(folder: Path, shards: Path, steps: int, words: Sequence[str] = ()) -> Path:
    """The same run on one rank, without Slurm; its run folder."""
    run = folder / "undisturbed"
    settings = [*SMALL.split(), f"train.steps={steps}", f"data.shards={shards}", f"run.dir={run}", *words]
    done = run_frontier("pretrain", ROOT / "jobs" / "configs" / "mae_vit_3b.yaml", *settings)
    assert done.returncode == 0, done.stderr
    return run


def assert_same_curve(run: Path, other: Path, curve: Callable[[Path], list[float]]) -> None:
    """Every step once and in order (`curve` checks it), losses to 1e-5."""
    assert curve(run) == pytest.approx(curve(other), rel=1e-5)
