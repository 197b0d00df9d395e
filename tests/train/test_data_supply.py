"""What the data give over what the model takes, and inputs with missing values on their way into a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from frontier.config.load import load_config
from frontier.data.feed import Loaders
from frontier.data.loader import Supply
from frontier.errors import UserError
from frontier.train.plan import resolve
from frontier.train.trainer import supply_ratio
from tests.conftest import read_jsonl, run_frontier, toy_config
from tests.data.sets import write_set


def test_the_ratio_is_that_of_the_rates() -> None:
    """100 samples in 2 s of work of 2 threads, side by side: 100 a second; 32 in 0.5 s of computing: 64 a second."""
    row = {"step_s": 1.0, "data_s": 0.3, "checkpoint_s": 0.2}
    assert supply_ratio(Supply(100, 0, 2.0, 2), 32, row) == pytest.approx(100 / 64)
    assert supply_ratio(Supply(0, 0, 0.0, 2), 32, row) is None
    assert supply_ratio(Supply(100, 0, 2.0, 2), 32, row | {"data_s": 0.9}) is None


def test_a_run_writes_it_down(toy: Path, tmp_path: Path) -> None:
    done = run_frontier("pretrain", toy, "train.steps=4")
    assert done.returncode == 0, done.stderr
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert all(row["data_supply_ratio"] > 0 for row in rows)


def masked_set(path: Path, axes: str = "CHW") -> Path:
    random = np.random.default_rng(0)
    images = random.integers(1, 50, (40, 2, 32, 32), dtype=np.uint16)
    there = random.integers(0, 2, (40, 32, 32), dtype=np.uint8)
    images[:, 1, :4] = 9999
    statistics = {"image": {"mean": [20.0, 30.0], "std": [5.0, 6.0]}}
    return write_set(
        path,
        {"image": (images, axes)},
        arrays={"there": (there, axes[1:])},
        masks={"image": "there"},
        nodata={"image": 9999},
        statistics=statistics,
    )


def test_missing_values_reach_the_model_as_zeros(tmp_path: Path) -> None:
    config = toy_config(tmp_path / "run", masked_set(tmp_path / "set"))
    del config["data"]["augment"]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    plan = resolve(load_config(tmp_path / "c.yaml", ["train.global_batch=8"]), 1)
    cpu = torch.device("cpu")
    loader = Loaders(plan.feed.streams, 0, 1, 0, cpu, 0)
    batch = next(loader.batches(0))
    images, members = plan.feed.reader(cpu, 0).place(batch)
    stored = plan.shards.take("image", members[:, 1]).astype(float)
    there = plan.shards.take("there", members[:, 1])[:, None] & (stored != 9999)
    expected = np.where(there, (stored - [[[20]], [[30]]]) / np.array([[[5]], [[6]]]), 0)
    np.testing.assert_allclose(images.numpy(), expected, atol=1e-5)
    assert 0.4 < (images == 0).float().mean() < 0.7


def test_an_input_of_other_axes_is_refused(tmp_path: Path) -> None:
    config = toy_config(tmp_path / "run", masked_set(tmp_path / "set", "CTH"))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="has axes CTH, model.family=mae takes CHW"):
        resolve(load_config(tmp_path / "c.yaml", []), 1)
