"""`bash jobs/pretrain_3b.sh` outside Slurm: the same path on this machine's ranks, and it says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.conftest import ROOT, curve, read_jsonl


def test_outside_slurm(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    done = subprocess.run(
        ["bash", ROOT / "jobs/pretrain_3b.sh"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **env,
            "CUDA_VISIBLE_DEVICES": "",
            "FRONTIER_VENV": sys.prefix,
            "FRONTIER_SHARDS": str(shards),
            "FRONTIER_RUN": str(run),
            "FRONTIER_OVERRIDES": "train.steps=3",
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    assert "no scheduler and no GPU: the same path with preset vit_debug on 2 CPU ranks" in done.stdout
    assert len(curve(run)) == 3
    start = read_jsonl(run / "starts.jsonl")[0]
    assert (start["world_size"], start["strategy"]) == (2, "hybrid_2")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["parallel"]["activation_checkpointing"] == "full"
    assert config["train"]["micro_batch"] == 16
