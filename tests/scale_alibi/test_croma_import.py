"""`frontier import`: CROMA's weights as a checkpoint, with what normalises the images of the given shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from frontier.cli import main as frontier
from frontier.config.load import load_config
from frontier.data.shards import ShardSet
from frontier.train.checkpoint import build_model, load_model
from frontier.train.plan import resolve
from scale_alibi.croma import S2_BANDS, load_croma
from tests.scale_alibi.plain_croma import random_weights


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "scenes"
    assert frontier(["shards", "write", "--scenes", "12", "--sensors", "s2,s1", "--seed", "0", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def croma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("croma") / "CROMA_small.pt"
    torch.save(random_weights(32, 2), path)
    return path


def words(croma: Path, scenes: Path, out: Path, *more: str) -> list[str]:
    return ["import", str(croma), "--data", str(scenes), "--radar", "s1", "--lores", "s2", "--out", str(out), *more]


def test_an_imported_checkpoint(croma: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made/croma"
    assert frontier(words(croma, scenes, out)) == 0
    assert "begins anew, as no such file has it: decoder, projections\n" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["croma"], "nothing temporary is left"

    module, config, step = load_model(out)
    initial, read = dict(build_model(config).named_parameters()), dict(load_croma(croma).named_parameters())
    assert step == 0
    for name, value in module.named_parameters():
        assert torch.equal(value, read.get(name, initial[name])), name
    manifest = json.loads((scenes / "manifest.json").read_text())["images"]["s2"]
    lores, statistics = config["model"]["sensors"]["lores"], manifest["statistics"]
    assert lores["bands"] == list(S2_BANDS) == [band["name"] for band in manifest["bands"]]
    for place in range(12):
        mean, std = statistics["mean"][place], statistics["std"][place]
        low, high = lores["mean"][place], lores["mean"][place] + lores["std"][place]
        assert (low, high) == pytest.approx((mean - 2 * std, mean + 2 * std), rel=1e-5)
    assert (config["model"]["position"], config["model"]["reference_m"]) == ("ground", 80.0)

    begun = load_config(out / "config.yaml")
    assert begun.train.start_from == str(out)
    assert begun.train.global_batch == len(ShardSet(scenes)) < 64
    plan = resolve(begun, world_size=1)
    assert plan.parameter_shapes == {name: list(p.shape) for name, p in module.named_parameters()}
    assert plan.config.model.sensors["lores"].mean == lores["mean"]


def test_exported_again_it_is_the_same_file(
    croma: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, exported = tmp_path / "croma", tmp_path / "exported"
    assert frontier(words(croma, scenes, out, "model.position=grid")) == 0
    (out / "config.yaml").write_text("edited: true")
    assert frontier(["export", str(out), "--format", "croma", "--out", str(exported)]) == 0
    assert str(exported / "CROMA_like.pt") in capsys.readouterr().out
    before, after = (torch.load(p, weights_only=True) for p in (croma, exported / "CROMA_like.pt"))
    for group, tensors in before.items():
        assert tensors.keys() == after[group].keys()
        assert all(torch.equal(tensor, after[group][name]) for name, tensor in tensors.items())
    card = (exported / "README.md").read_text()
    assert "CROMA_small.pt" in card and "Not trained here" in card and "samples seen" not in card
    assert 'position="grid"' in card
    assert frontier(["export", str(out), "--format", "croma", "--out", str(exported), "--force"]) == 0


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["model.position=sincos"], "go with ground or grid"),
        (["model.width=64"], "model.width=64 does not go with CROMA's weights: leave it out"),
        (["model.patch=4"], "model.patch=4 does not go"),
        (["model.weights.contrastive=0"], "model.weights.contrastive=0 does not go"),
        (["model.chain=[lores,radar]"], "model.chain=lores,radar does not go"),
        (["model.sensors.radar.depth=2"], "model.sensors.radar.depth=2 does not go"),
        (["model.sensors.radar.mean=[-20,-25]"], "model.sensors.radar.mean without std: give both, or neither"),
        (["model.sensors.radar.std=[5,5]"], "model.sensors.radar.std without mean: give both, or neither"),
        (["model.sensors.lores.bands=[B02]"], "model.sensors.lores.bands (not 12 of them) does not go"),
        (["train.global_batch=1"], "take 2 or more"),
        (["train=3"], "config train is no section"),
        (["model.heds=4"], "did you mean 'model.heads'"),
        (["model=3"], "config section 'model' is missing"),
        (["--radar", "s3"], "s3"),
        (["--lores", "s1"], "B01"),
    ],
)
def test_wrong_words_are_one_line(
    croma: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], told: str
) -> None:
    assert frontier(words(croma, scenes, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert told in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_nothing(
    croma: Path,
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("frontier.train.storage.DirectFile.write", full)
    assert frontier(words(croma, scenes, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_places_and_sizes_that_are_refused(
    croma: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(arguments: list[Any], told: str) -> None:
        assert frontier([str(a) for a in arguments]) == 2
        assert told in capsys.readouterr().err

    (tmp_path / "there").mkdir()
    refused(words(croma, scenes, tmp_path / "there"), "is there already")
    (tmp_path / "file").write_text("x")
    refused(words(croma, scenes, tmp_path / "file/below"), "cannot be written")
    torch.save(random_weights(48, 2), tmp_path / "odd.pt")
    refused(words(tmp_path / "odd.pt", scenes, tmp_path / "odd"), "say its heads by model.heads=N")
    assert frontier(words(tmp_path / "odd.pt", scenes, tmp_path / "odd", "model.heads=6")) == 0
    config = yaml.safe_load((tmp_path / "odd/config.yaml").read_text())
    assert (config["model"]["width"], config["model"]["depth"], config["model"]["heads"]) == (48, 2, 6)
