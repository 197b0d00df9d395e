"""`frontier export --format timm`: against timm where it is installed, else against the maths written out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from frontier.errors import UserError
from frontier.export import timm as format
from frontier.export.command import main
from frontier.models.init import initialise
from frontier.models.mae import MAE, MAEConfig
from frontier.models.presets import DecoderShape, ViTShape
from frontier.train.checkpoint import load_model


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("timm") / "model"
    assert main([str(run), "--format", "timm", "--out", str(out)]) == 0
    return out


def vision_transformer(state: dict[str, Tensor], arguments: dict, images: Tensor) -> Tensor:
    """timm's `VisionTransformer.forward_features` from a state dict, written out: conv, [cls], positions, pre-norm blocks, norm."""
    width, heads = arguments["embed_dim"], arguments["num_heads"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    x = F.conv2d(images, weight, bias, stride=arguments["patch_size"]).flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    for i in range(arguments["depth"]):
        qkv = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").unflatten(-1, (3, heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
        x = x + linear(mixed.transpose(1, 2).flatten(2), f"blocks.{i}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1"))
        x = x + linear(hidden, f"blocks.{i}.mlp.fc2")
    return norm(x, "norm")


def test_features_by_the_maths_of_timm(run: Path, folder: Path) -> None:
    arguments = json.loads((folder / "config.json").read_text())["model_args"]
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        found = vision_transformer(load_file(folder / "model.safetensors"), arguments, images)
        expected = load_model(run)[0].encode(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


SHAPES = {
    "four bands": MAEConfig(ViTShape(48, 3, 4, 96, patch=4), DecoderShape(32, 1, 2), image_size=16, channels=4),
    "odd head dim": MAEConfig(ViTShape(60, 2, 4, 152, patch=4), DecoderShape(24, 2, 2), image_size=20, channels=1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_features_in_timm_itself(name: str) -> None:
    pytest.importorskip("timm", reason="timm is not installed: its maths is written out in the other test")
    from timm.models.vision_transformer import VisionTransformer

    config = SHAPES[name]
    ours = MAE(config)
    initialise(ours, seed=2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # biases and norms away from 0 and 1
        for parameter in ours.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    theirs = VisionTransformer(**format.model_args(config)).eval()
    theirs.load_state_dict(format.timm_state(ours.encoder, config.encoder.heads), strict=True)
    images = torch.randn(2, config.channels, config.image_size, config.image_size, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(theirs.forward_features(images), ours.encode(images), atol=1e-5, rtol=1e-5)


def test_the_lines_of_the_card_in_timm(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(folder.parent)
    images = torch.randn(2, 3, 32, 32)
    space = {"images": images}
    with torch.no_grad():
        exec(code, space)
        torch.testing.assert_close(space["tokens"], load_model(run)[0].encode(images), atol=1e-5, rtol=1e-5)
    found = timm.data.resolve_model_data_config(space["model"])
    data = load_model(run)[1]["data"]
    assert found["input_size"] == (3, 32, 32)
    assert torch.allclose(torch.tensor(found["mean"]) * 255, torch.tensor(data["mean"]))
    assert torch.allclose(torch.tensor(found["std"]) * 255, torch.tensor(data["std"]))


def test_every_hidden_size_that_passes_is_exact(run: Path) -> None:
    """timm multiplies by a ratio and cuts: sizes that would come out one short are refused."""
    config = json.loads(json.dumps(load_model(run)[1]))
    refused = 0
    for width in (32, 48, 60, 196, 1792):
        for hidden in range(width, 4 * width, 37):
            config["model"] |= {"width": width, "heads": 4, "mlp_hidden": hidden}
            try:
                format.check(config)
            except UserError:
                refused += 1
                continue
            assert int(width * (hidden / width)) == hidden
    assert refused < 20
