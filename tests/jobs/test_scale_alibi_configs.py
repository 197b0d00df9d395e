"""The Scale-ALiBi configs: the production ones against the predictor and `frontier submit`, the laptop's and the job scripts by their own commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from frontier.cli import main as frontier
from frontier.errors import UserError
from frontier_profiling.predict.command import main as plan
from tests.conftest import ROOT, curve, read_jsonl, run_frontier
from tests.jobs.stubs import S2_12, triplets

CONFIGS = ROOT / "jobs" / "configs"
PRODUCTION = ["base", "large", "1b", "3b", "croma"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With stand-ins for the shards of all configs."""
    out = tmp_path_factory.mktemp("production")
    triplets(out / "shards" / "triplets_full")
    triplets(out / "shards" / "s1s2_120", S2_12)
    return out


@pytest.mark.parametrize("name", PRODUCTION)
def test_what_the_comment_says_is_predicted(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the nodes that it names the run fits with room, in one micro-batch, at the memory and rate that it names."""
    monkeypatch.chdir(folder)
    path = CONFIGS / f"scale_alibi_{name}.yaml"
    words = " ".join(line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# "))
    (said,) = re.findall(
        r"on (\d+) nodes of Frontier \(predicted\): (\d+) of 64 GiB a GCD, ([\d,]+) samples/s \(range ([\d,]+) to ([\d,]+)\)",
        words,
    )
    assert plan(["--config", str(path), "--nodes", said[0], "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["fits"] and row["memory_gib"]["peak"] < 0.75 * row["memory_limit_gib"] and row["accumulation"] == 1
    found = [row["memory_gib"]["peak"], row["images_per_s"]]
    found += [row["global_batch"] / row[f"step_s_{end}"] for end in ("high", "low")]
    assert [f"{value:,.0f}" for value in found] == list(said[1:])


@pytest.mark.parametrize("name", ["base", "croma"])
def test_planned_before_there_are_shards(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with the shards, and what was assumed of them is told; a sensor of which nothing is known is refused."""
    path, rows = CONFIGS / f"scale_alibi_{name}.yaml", []
    for where in (folder, tmp_path):
        monkeypatch.chdir(where)
        assert plan(["--config", str(path), "--nodes", "16", "--json"]) == 0
        rows += json.loads(capsys.readouterr().out)["rows"]
    for key in ("memory_gib", "images_per_s", "global_batch"):
        assert rows[1][key] == rows[0][key], key
    first = "radar of 2 bands and 256 px" if name == "base" else "radar of 2 bands and 120 px"
    assert f"assumed: {first}" in " ".join(rows[1]["notes"]) and "is not here" not in " ".join(rows[0]["notes"])
    (tmp_path / "bare.yaml").write_text(f"extends: {path}\nmodel: {{sensors: {{radar: {{bands: null}}}}}}\n")
    with pytest.raises(
        UserError, match="is not here, and model.sensors.radar does not say .*: give its size and bands"
    ):
        plan(["--config", "bare.yaml", "--nodes", "16"])


def test_the_script_asks_for_the_nodes_that_are_planned() -> None:
    script = (ROOT / "jobs" / "scale_alibi_pretrain.sh").read_text()
    (nodes,) = re.findall(r"^#SBATCH -N (\d+)", script, re.M)
    assert f"on {nodes} nodes of Frontier" in (CONFIGS / "scale_alibi_base.yaml").read_text()


@pytest.mark.parametrize("site", ["frontier", "local"])
def test_submitted(
    site: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in os.environ:
        if name.startswith(("FRONTIER_", "SBATCH_", "SLURM_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FRONTIER_VENV", sys.prefix)
    monkeypatch.chdir(folder)
    words = ["--site", site, "--nodes", "16", "--time", "120", "--account", "abc123", "--dry-run"]
    code = frontier(["submit", str(CONFIGS / "scale_alibi_base.yaml"), *words])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "GiB a rank (predicted)" in said.err
    script = tmp_path / "job.sh"
    script.write_text(said.out)
    assert subprocess.run(["bash", "-n", script]).returncode == 0


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """(folder with shards by the first line of the header, the lines) on fewer samples."""
    text = (CONFIGS / "scale_alibi_debug.yaml").read_text()
    commands = [shlex.split(line) for line in re.findall(r"^#   frontier (.*)$", text, re.M)]
    assert [words[0] for words in commands] == ["shards", "pretrain"]
    out = tmp_path_factory.mktemp("laptop")
    assert frontier([*("40" if word == "400" else word for word in commands[0][:-1]), str(out / commands[0][-1])]) == 0
    return out, commands


def test_the_laptop_config_by_its_own_commands(laptop: tuple[Path, list[list[str]]], tmp_path: Path) -> None:
    out, (_, words) = laptop
    more = ["train.epochs=null", "train.steps=3", "train.global_batch=8", f"run.dir={tmp_path}/run"]
    done = run_frontier(words[0], ROOT / words[1], f"data.shards={out}/shards/triplets", *more)
    assert done.returncode == 0, done.stderr
    assert len(curve(tmp_path / "run")) == 3
    first = read_jsonl(tmp_path / "run" / "metrics.jsonl")[0]
    assert {"loss_contrastive", "loss_radar", "loss_lores", "loss_hires", "matched", "temperature"} <= set(first)


@pytest.mark.slow
def test_the_scripts_outside_slurm(laptop: tuple[Path, list[list[str]]], tmp_path: Path) -> None:
    """Pretraining on this machine's ranks, then what it is worth."""
    out, _ = laptop
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "FRONTIER"))}
    env |= {
        "CUDA_VISIBLE_DEVICES": "",
        "FRONTIER_VENV": sys.prefix,
        "FRONTIER_RUN": str(tmp_path / "run"),
        "OMP_NUM_THREADS": "1",
    }
    env |= {"FRONTIER_SHARDS": f"{out}/shards/triplets", "FRONTIER_OVERRIDES": "train.steps=2 train.global_batch=8"}
    for name in ("pretrain", "evaluate"):
        script = ROOT / "jobs" / f"scale_alibi_{name}.sh"
        done = subprocess.run(["bash", script], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=env)
        assert done.returncode == 0, done.stderr
    assert len(curve(tmp_path / "run")) == 2
    assert read_jsonl(tmp_path / "run" / "starts.jsonl")[0]["world_size"] == 2
    rows = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert {row["encoder"] for row in rows} == {"pretrained", "random"}
