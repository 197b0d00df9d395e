"""Studies whose points are `fake_run.py`, driven in a process of their own so that they can be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT

DRIVER = """
import sys
import frontier.config.load as load
load.validate = lambda values: None  # it imports torch: seconds in every call; test_grid.py and the real runs go through it
from frontier_profiling.sweep import execute
execute.command = lambda study, point, where, env: [sys.executable, "-m", "tests.profiling.sweep.fake_run", str(where.config)]
from frontier.cli import main
sys.exit(main(["sweep", *sys.argv[1:]]))
"""


def study(path: Path, **changes: Any) -> Path:
    """Three strategies on two ranks."""
    node = {
        "name": "toy",
        "title": "A toy",
        "question": "Does it work?",
        "mode": "measured",
        "scaling": "weak",
        "grid": {
            "model": "vit_debug",
            "strategy": ["ddp", "full_shard", "hybrid_1"],
            "ranks": 2,
            "micro_batch": 8,
            "data": "shards",
        },
        "config": {"data": {"shards": str(shards(path.parent)), "image_size": 32}},
        "steps": 8,
        "time_limit_s": 60,
        **changes,
    }
    path.write_text(yaml.safe_dump(node))
    return path


def shards(folder: Path) -> Path:
    """What looks like shards to the sweep."""
    out = folder / "shards"
    out.mkdir(exist_ok=True)
    (out / "manifest.json").write_text("{}")
    return out


def environment(behaviour: dict[str, str] | None = None, **more: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    paths = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    return {**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "FAKE_RUNS": json.dumps(behaviour or {}), **more}


def begin(*args: str | Path, behaviour: dict[str, str] | None = None, **more: str) -> subprocess.Popen[str]:
    """`frontier sweep …` with fake runs."""
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *map(str, args), "--no-report"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(behaviour, **more),
        cwd=ROOT,
    )


def sweep(*args: str | Path, behaviour: dict[str, str] | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    process = begin(*args, behaviour=behaviour, **more)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def status(out: Path, point: str) -> dict[str, Any]:
    return json.loads((out / "points" / point / "status.json").read_text())


def attempts(out: Path, point: str) -> list[int]:
    """Process ids of the attempts at a point, first to last."""
    path = out / "points" / point / "attempts.txt"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def statuses(out: Path) -> dict[str, str]:
    rows = json.loads((out / "rows.json").read_text())["rows"]
    return {row["strategy"]: row["status"] for row in rows}
