"""The gpna configs: the production ones against the predictor and `frontier submit`, the laptop's by its own commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from frontier.cli import main as frontier
from frontier.submit.site import shipped
from frontier_profiling.predict.command import main as plan
from tests.conftest import ROOT, curve, run_frontier
from tests.jobs.stubs import production

CONFIGS = ROOT / "jobs" / "configs"
PRODUCTION = {"gpna_pretrain_1b": "gpna_pretrain.sh", "gpna_tasks": "gpna_tasks.sh"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With stand-ins for the shards of both configs."""
    out = tmp_path_factory.mktemp("production")
    production(out)
    return out


@pytest.mark.parametrize("name", PRODUCTION)
def test_what_the_predictor_takes(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On its script's nodes it is refused nowhere, fits with room, no other strategy is quicker, and its comment says what is predicted."""
    monkeypatch.chdir(folder)
    path = CONFIGS / f"{name}.yaml"
    if name == "gpna_pretrain_1b":  # as many clusters as a share of the batch has
        chosen = yaml.safe_load(path.read_text())
        path = folder / "pretrain.yaml"
        chosen["data"]["sources"]["places"]["shards"] = "shards/places"
        path.write_text(yaml.safe_dump(chosen))
        _many(folder / "shards" / "dhs", folder / "shards" / "places")
    (nodes,) = re.findall(r"^#SBATCH -N (\d+)", (ROOT / "jobs" / PRODUCTION[name]).read_text(), re.M)
    assert plan(["--config", str(path), "--nodes", nodes, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["fits"] and row["memory_gib"]["peak"] < 0.75 * row["memory_limit_gib"]
    assert row["accumulation"] == 1 and not any("refused" in note for note in row["notes"])
    assert plan(["--config", str(path), "--nodes", nodes, "--strategy", "auto", "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)["auto"]
    assert said["free"][0]["images_per_s"] < 1.03 * row["images_per_s"]
    comment = (CONFIGS / f"{name}.yaml").read_text()
    assert (
        f"{row['memory_gib']['peak']:.0f} of 64 GiB" in comment and f"{row['images_per_s']:,.0f} samples/s" in comment
    )


def _many(small: Path, large: Path, samples: int = 4096) -> None:
    manifest = json.loads((small / "manifest.json").read_text())
    manifest["splits"]["train"]["samples"] = manifest["shards"][0]["samples"] = manifest["samples"] = samples
    large.mkdir(exist_ok=True)
    (large / "manifest.json").write_text(json.dumps(manifest))
    (large / "train-00000.h5").write_bytes((small / "train-00000.h5").read_bytes())


@pytest.mark.parametrize("site", shipped())
def test_submitted_to_every_site(
    site: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in os.environ:
        if name.startswith(("FRONTIER_", "SBATCH_", "SLURM_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FRONTIER_VENV", sys.prefix)
    monkeypatch.chdir(folder)
    words = ["--site", site, "--nodes", "1", "--time", "30", "--account", "abc123", "--dry-run"]
    ranks = {"aurora": 12}.get(site, 8)
    # Shares of 6, 3 and 3 ranks' worth: of 4 ranks a node likewise.
    small = [
        "train.start_from=null",
        f"data.granule={ranks}",
        f"train.global_batch={12 * ranks}",
        "train.micro_batch=null",
    ]
    code = frontier(["submit", str(CONFIGS / "gpna_tasks.yaml"), *words, *small])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "\nFRONTIER_SHARDS=\n" in said.out and "GiB a rank (predicted)" in said.err
    script = tmp_path / "job.sh"
    script.write_text(said.out)
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    if site == "local":
        for more, line in (
            (["data.sources.kilns.shards=gone"], "shards gone: does not exist"),
            (["data.sources.kilns.shards=null"], "data.sources.kilns.shards"),
        ):
            assert frontier(["submit", str(CONFIGS / "gpna_tasks.yaml"), *words, *small, *more]) == 2
            assert line in capsys.readouterr().err
        monkeypatch.setenv("FRONTIER_SHARDS", "shards/dhs")
        assert frontier(["submit", str(CONFIGS / "gpna_tasks.yaml"), *words, *small]) == 2
        assert "data.sources (several)" in capsys.readouterr().err


def test_a_job_of_several_sources_refuses_one_folder(tmp_path: Path) -> None:
    """FRONTIER_SHARDS has no meaning there: one line before anything starts."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "FRONTIER"))}
    env |= {"FRONTIER_VENV": sys.prefix, "FRONTIER_SHARDS": str(tmp_path), "FRONTIER_RUN": str(tmp_path / "run")}
    done = subprocess.run(["bash", ROOT / "jobs" / "gpna_pretrain.sh"], capture_output=True, text=True, env=env)
    assert done.returncode == 2 and "has several sources: name their folders by FRONTIER_OVERRIDES" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_laptop_config_by_its_own_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of its header, on a few samples and steps."""
    config = CONFIGS / "gpna_debug.yaml"
    commands = [shlex.split(line) for line in re.findall(r"^#   frontier (.*)$", config.read_text(), re.M)]
    assert [words[0] for words in commands] == ["shards", "shards", "pretrain"]
    monkeypatch.chdir(tmp_path)
    for words in commands[:2]:
        few = ["16" if word == "640" else "1" if word == "2" else word for word in words]
        few += ["--size", "32"] if "--size" not in few else []
        assert frontier(few) == 0
    words = [str(config) if word.endswith(".yaml") else word for word in commands[2][:2]]
    done = run_frontier(*words, "train.epochs=null", "train.steps=3", "train.global_batch=8", f"run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert len(curve(tmp_path / "run")) == 3
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"loss_scene", "loss_land", "loss_field", "loss_masked"} <= set(first)
