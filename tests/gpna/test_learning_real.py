"""GPNA learns live fuel moisture at sites that it never saw, from the published files, through the trainer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_prep.command import main as shards_main
from frontier import metrics
from frontier.data.shards import ShardSet
from frontier.train.checkpoint import load_model
from gpna.model import GPNA
from gpna.predict import open_split, predict
from tests.conftest import ROOT, SHARED_DATA, run_frontier

FOLDER = SHARED_DATA / "timeseries" / "presto_eval" / "fuel_moisture"


@pytest.mark.slow
@pytest.mark.realdata
def test_fuel_moisture_is_learnt_from_a_few_passes(tmp_path: Path) -> None:
    if not FOLDER.is_dir():
        pytest.skip(f"no {FOLDER}")
    shards = tmp_path / "shards"
    reader = ["--reader", "presto_fuel_moisture", "--from", str(FOLDER), "--val-fraction", "0.15"]
    assert shards_main(["write", *reader, str(shards)]) == 0
    config = ROOT / "jobs" / "configs" / "gpna_fuel_moisture.yaml"
    given = [
        f"run.dir={tmp_path / 'run'}",
        f"data.sources.series.shards={shards}",
        "train.epochs=6",
        "log.progress=none",
    ]
    done = run_frontier("pretrain", config, *given, timeout=1200)
    assert done.returncode == 0, done.stderr
    module, resolved, _ = load_model(tmp_path / "run")
    assert isinstance(module, GPNA)
    held_out = open_split(resolved, "series", "test")
    found = predict(module, resolved, held_out, size=128)["fuel_moisture"]
    scores = metrics.regression(found.values[:, 0], found.labels[:, 0], groups=held_out.shards.column("site"))
    mean = float(np.nanmean(ShardSet(shards, "train").column("fuel_moisture")))
    spread = float(np.sqrt(np.nanmean((found.labels - mean) ** 2)))
    # The mean of the training labels explains nothing (r2 <= 0). Even the lower end over resampled sites is clearly above.
    assert scores["r2"] > 0.3 and scores["r2_ci95"][0] > 0.1
    assert scores["rmse"] < 0.85 * spread
