"""`frontier export --format safetensors` of a gpna run: what comes back is what was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from frontier.export import load_exported
from frontier.export.command import main as export
from frontier.train.checkpoint import load_model
from frontier.train.command import main as pretrain
from gpna.predict import open_split, predict
from tests.gpna.runs import image_set, run_config, series_set


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpna")
    images, series = image_set(folder / "images"), series_set(folder / "series")
    assert pretrain([str(run_config(folder, images, series))]) == 0
    return folder / "run"


def test_the_whole_model_predicts_the_same(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "whole"
    assert export([str(trained), "--format", "safetensors", "--part", "all", "--out", str(out)]) == 0
    module, config, _ = load_model(trained)
    loaded = load_exported(out)
    expected, found = dict(module.named_parameters()), dict(loaded.named_parameters())
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    source = open_split(config, "scenes", "test")
    ours, theirs = (predict(m, config, source)["scene"].values for m in (module.eval(), loaded))
    assert (ours == theirs).all()


def test_the_encoder_has_all_but_the_heads(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "encoder"
    assert export([str(trained), "--format", "safetensors", "--out", str(out)]) == 0
    weights = load_file(out / "model.safetensors")
    module, _, _ = load_model(trained)
    assert set(weights) == set(module.encoder_names()) and not any(n.startswith(("heads.", "masked.")) for n in weights)
    parameters = dict(module.named_parameters())
    assert all(torch.equal(weights[name], parameters[name]) for name in weights)
    card = (out / "README.md").read_text()
    assert (
        "gpna" in card
        and "| set | b0 |" in card
        and str(json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])["step"]) in card
    )


def test_the_lines_of_the_card_run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "encoder"
    assert export([str(trained), "--format", "safetensors", "--out", str(out)]) == 0
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    exec(code, space)
    assert space["found"].shape == (42, 32)
