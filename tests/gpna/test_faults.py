"""Stops and faults in a run of several sources: the rest of the curve is that of a run which nobody disturbed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from frontier.cli import main
from frontier.config.load import load_config
from frontier.data.feed import Loaders
from frontier.train.plan import resolve
from tests.faults.checks import Reference, check_finished, check_folder
from tests.faults.harness import KILL, USR1, Run
from tests.gpna.sets import small_config, write_both

STEPS = 24
BOUND_S = 240


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    settings = small_config(folder / "run", write_both(folder / "data"))
    settings["train"]["steps"] = STEPS
    settings["checkpoint"] = {"every_steps": 3}
    settings["parallel"]["timeout_s"] = 20
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder / "config.yaml"


@pytest.mark.slow  # two minutes on a busy machine
def test_stopped_killed_stopped_again_and_brought_to_its_end(config: Path) -> None:
    """SIGUSR1 to one rank -> 85; kill -9 of a rank; a STOP file -> 85 and stays stopped; then the end, bit by bit the same."""
    undisturbed, run = Run(config, config.parent / "whole", 2), Run(config, config.parent / "broken", 2)
    done = undisturbed.finish(BOUND_S)
    assert done.code == 0, done.err
    with run.start() as attempt:
        attempt.until_step(3)
        attempt.signal(USR1, 1)
        assert attempt.wait(BOUND_S).code == 85
    with run.start() as attempt:
        attempt.until_step(8)
        attempt.signal(KILL, 0)
        done = attempt.wait(BOUND_S)
        assert done.code not in (0, 2, 85, None) and "rank 0 ended with signal SIGKILL" in done.err
    with run.start() as attempt:
        attempt.until_step(11)
        (run.dir / "STOP").touch()
        assert attempt.wait(BOUND_S).code == 85
    again = run.finish(BOUND_S)
    assert again.code == 2 and again.lines[-1].count("remove the file to go on") == 1
    (run.dir / "STOP").unlink()
    assert not check_folder(run)
    done = run.finish(BOUND_S)
    assert done.code == 0, done.err
    problems, difference = check_finished(run, Reference.of(undisturbed))
    assert not problems and difference == 0
    starts = [json.loads(line)["resumed_from"] for line in (run.dir / "starts.jsonl").read_text().splitlines()]
    assert starts[0] is None and starts[1:] == sorted(starts[1:]) and len(starts) == 4


@pytest.mark.parametrize("hurt", ["truncated", "other bytes in front", "gone"])
def test_corrupt_shard_is_one_line(config: Path, tmp_path: Path, hurt: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(config.parent / "data/series", tmp_path / "series")
    victim = tmp_path / "series/train-00001.h5"
    data = victim.read_bytes()
    if hurt == "gone":
        victim.unlink()
    else:
        victim.write_bytes(data[: len(data) // 2] if hurt == "truncated" else bytes(64) + data[64:])
    assert main(["pretrain", str(config), "--dry-run", f"data.sources.series.shards={tmp_path / 'series'}"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "data.sources.series" in lines[0] and victim.name in lines[0], lines


def test_nan_in_an_input_is_a_missing_value(config: Path) -> None:
    """No token of it, 0 where the convolutions look, and no NaN behind the reader."""
    plan = resolve(load_config(config), 1)
    cpu = torch.device("cpu")
    batch = next(Loaders(plan.feed.streams, 0, 1, 0, cpu, 3).batches(0))
    stored = batch["series"].columns["series"]
    assert stored.isnan().any()
    placed = plan.feed.reader(cpu, 3).place(batch)["series"]
    assert np.array_equal(placed.tokens["series"], ~stored.isnan().flatten(1).numpy())
    assert placed.values["series"].isfinite().all()
    assert (placed.values["series"][stored.isnan()] == 0).all()
    with h5py.File(next((config.parent / "data/series").glob("*.h5"))) as file:
        assert np.isnan(file["soil"][()]).any()  # labels may miss as well
