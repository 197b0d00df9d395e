"""`frontier export --format hf`, read back by transformers: the same loss, features and normalisation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from frontier.cli import main as frontier
from frontier.errors import UserError
from frontier.export import hf, timm
from frontier.export.command import main
from frontier.train.checkpoint import load_model
from tests.conftest import run_frontier

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hf") / "model"
    done = run_frontier("export", run, "--format", "hf", "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def test_loss_with_the_same_noise(run: Path, folder: Path) -> None:
    ours = load_model(run)[0]
    theirs, told = transformers.ViTMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    images, noise = torch.randn(4, 3, 32, 32), torch.rand(4, 16)
    with torch.no_grad():
        expected, found = ours(images, noise)["loss"], theirs(pixel_values=images, noise=noise).loss
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert expected > 0.1


def test_the_lines_of_the_card_give_our_features(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace("model(pixel_values=…).loss", "")
    monkeypatch.chdir(folder.parent)
    images = torch.randn(2, 3, 32, 32)
    space = {"images": images}
    with torch.no_grad():
        exec(code, space)
        expected = load_model(run)[0].encode(images)
    torch.testing.assert_close(space["tokens"], expected, atol=1e-5, rtol=1e-5)


def test_processor_takes_stored_units(run: Path, folder: Path) -> None:
    from frontier.data.transforms import normalise

    data = load_model(run)[1]["data"]
    stored = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    found = processor(list(stored), return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    expected = normalise(torch.from_numpy(stored), torch.tensor(data["mean"]), torch.tensor(data["std"]))
    torch.testing.assert_close(found.float(), expected, atol=1e-5, rtol=1e-5)


def test_no_name_is_left_of_the_newer_module(folder: Path) -> None:
    """The names of published files, which transformers 4 reads as well."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        assert file.metadata()["format"] == "pt"
    assert "vit.encoder.layer.1.attention.attention.query.weight" in names
    assert "decoder.decoder_layers.0.attention.attention.value.bias" in names
    assert not [name for name in names if "_proj" in name.replace("projection", "") or ".mlp." in name]
    assert len(names) == len({hf.on_file(name) for name in names})


@pytest.mark.parametrize(
    ("model", "formats", "words"),
    [
        ({"mlp": "gated"}, (hf, timm), "gated MLP"),
        ({"texture": {"weight": 1.0}}, (hf,), "texture targets"),
        ({"family": "gpna"}, (hf, timm), "family gpna does not fit"),
    ],
)
def test_what_a_format_cannot_express(run: Path, model: dict, formats: tuple, words: str) -> None:
    config = json.loads(json.dumps(load_model(run)[1]))
    for format in (hf, timm):
        format.check(config)
    config["model"] |= model
    for format in formats:
        with pytest.raises(UserError, match=words):
            format.check(config)


def test_refused_before_anything_is_written(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    from tests.conftest import toy_config

    config = toy_config(tmp_path / "run", shards)
    config["model"]["texture"] = {"weight": 1.0}
    config["train"]["steps"], config["train"]["warmup_steps"] = 2, 1
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(config))
    assert run_frontier("pretrain", tmp_path / "toy.yaml").returncode == 0
    assert frontier(["export", str(tmp_path / "run"), "--format", "hf", "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1 and "model.texture" in told
    assert not (tmp_path / "out").exists()
    assert main([str(tmp_path / "run"), "--format", "timm", "--out", str(tmp_path / "encoder")]) == 0
