"""One set of weights on several sources and tasks (step 2 of the roadmap): both are learned, shares and weights do what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from frontier.cli import main as frontier
from frontier.config.load import validate
from frontier.data.feed import Loaders
from frontier.models.init import initialise
from frontier.train.plan import resolve
from gpna.predict import open_split
from gpna.reader import undated
from tests.gpna.toys import split_set, toy_values, write_scenes, write_series

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("multitask")
    parts = {"train": 18, "test": 6}
    return (
        split_set(write_scenes(folder / "scenes", 168), parts),
        split_set(write_series(folder / "series", 168), parts),
    )


def values(shards: tuple[Path, Path], run: Path, **tasks: Any) -> dict[str, Any]:
    found = toy_values(*shards, run)
    del found["model"]["masked"], found["model"]["tasks"]["area"]
    for name, changes in tasks.items():
        found["model"]["tasks"][name] |= changes
    return found


def test_two_sources_of_different_tokens_are_both_learned(shards: tuple[Path, Path], tmp_path: Path) -> None:
    given = values(shards, tmp_path / "run")
    given["train"] |= {"steps": 80, "base_lr": 0.08, "warmup_steps": 5}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(given))
    assert frontier(["pretrain", str(tmp_path / "run.yaml")]) == 0
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    tokens = {
        name: sum(spec.tokens for spec in open_split(config, name, "train").inputs.values())
        for name in config["data"]["sources"]
    }
    assert tokens == {"scenes": 64, "series": 13}
    assert frontier(["evaluate", str(tmp_path / "run")]) == 0
    rows = {row["task"]: row for row in json.loads((tmp_path / "run/evaluation.json").read_text())}
    kind, amount = rows["kind"], rows["amount"]
    assert kind["ci95"]["accuracy"][0] > kind["ci95"]["majority_rate"][1], "above always saying the commonest class"
    assert amount["ci95"]["r2"][0] > 0.2, "above always saying the mean"


@pytest.mark.parametrize(("weights", "share"), [((3, 1), (12, 4)), ((1, 1), (8, 8)), ((None, None), (8, 8))])
def test_every_batch_has_the_shares_asked_for(
    shards: tuple[Path, Path], tmp_path: Path, weights: tuple[Any, Any], share: tuple[int, int]
) -> None:
    given = values(shards, tmp_path / "run")
    for source, weight in zip(given["data"]["sources"].values(), weights, strict=True):
        source |= {} if weight is None else {"weight": weight}
    plan = resolve(validate(given), 1)
    batches = Loaders(plan.feed.streams, 0, 1, 0, CPU, 3).batches(0)
    for _ in range(3):
        batch = next(batches)
        assert tuple(len(batch[name].members) for name in ("scenes", "series")) == share


def losses(shards: tuple[Path, Path], run: Path, **tasks: Any) -> tuple[dict[str, float], torch.Tensor]:
    """The loss terms of the first batch of the untrained model, and the gradient of a weight that all tasks share."""
    plan = resolve(validate(values(shards, run, **tasks)), 1)
    with torch.device("meta"):
        module = plan.family.build(plan.config.model, plan.family.shape(plan.config))
    module.to_empty(device="cpu")
    initialise(module, 0)
    reader = plan.feed.reader(CPU, 3)
    placed = reader.place(next(Loaders(plan.feed.streams, 0, 1, 0, CPU, 3).batches(0)))
    found = module(**reader.inputs(module, placed, 0, 1))
    found["loss"].backward()
    shared = next(parameter for name, parameter in module.named_parameters() if name.startswith("blocks.0."))
    assert shared.grad is not None
    return {name: float(value.detach()) for name, value in found.items()}, shared.grad


def test_a_tasks_weight_scales_its_part_of_the_loss_and_of_the_gradient(
    shards: tuple[Path, Path], tmp_path: Path
) -> None:
    (both, g), (more, g_more), (most, g_most) = (
        losses(shards, tmp_path, kind={"weight": 1.0}, amount={"weight": weight}) for weight in (1.0, 2.0, 4.0)
    )
    assert both["loss_amount"] == more["loss_amount"] == most["loss_amount"], "reported without its weight"
    part = more["loss"] - both["loss"]
    assert part > 0 and most["loss"] - more["loss"] == pytest.approx(2 * part, rel=1e-4)
    # Half of the batch is of its source.
    assert part == pytest.approx(both["loss_amount"] / 2, rel=1e-4)
    torch.testing.assert_close(g_most - g_more, 2 * (g_more - g), rtol=1e-3, atol=1e-7)
    assert (g_more - g).abs().max() > 0


def test_dates_that_are_not_known_keep_their_order() -> None:
    start = torch.tensor([1.5e9, 1.5e9, torch.nan], dtype=torch.float64)
    end = torch.tensor([1.6e9, 1.5e9, torch.nan], dtype=torch.float64)
    found = undated(start, end, 4, 8)
    assert found.shape == (3, 4, 8)
    for sample in found:
        assert len(np.unique(sample.numpy().round(6), axis=0)) == 4
    assert (found[1:, :, 4:] == 0).all() and (found[0, :, 4:] != 0).all(), "the trend of an unknown year is unknown"
    assert torch.equal(found[1], found[2])
    assert undated(start, end, 1, 8).shape == (3, 1, 8) and (undated(start, end, 1, 8)[2] == 0).all()
