"""Our MAE against transformers' ViTMAEForPreTraining: same weights, pixels and mask -> same loss, same gradients."""

import pytest
import torch

from frontier.models.init import initialise
from frontier.models.mae import MAE, MAEConfig
from frontier.models.presets import DecoderShape, ViTShape
from frontier.models.vit import patchify

pytest.importorskip("transformers")

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from hf import build_hf, same_inputs

from frontier.export.hf import to_hf

CASES = {
    "one decoder block": MAEConfig(
        ViTShape(48, 3, 4, 96, patch=4), DecoderShape(32, 1, 2), image_size=16, channels=4, norm_pix_loss=True
    ),
    "three decoder blocks": MAEConfig(
        ViTShape(48, 2, 3, 192, patch=8), DecoderShape(32, 3, 4), image_size=48, channels=3, norm_pix_loss=False
    ),
    "odd head dim": MAEConfig(
        ViTShape(60, 2, 4, 120, patch=4), DecoderShape(24, 2, 2), image_size=20, channels=1, mask_ratio=0.6
    ),
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_every_gradient(name: str, attention: str) -> None:
    config = CASES[name]
    ours = MAE(config)
    initialise(ours, seed=3)
    with torch.no_grad():  # biases and norms away from 0 and 1, so that each of them matters
        generator = torch.Generator().manual_seed(1)
        for parameter in ours.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    theirs = build_hf(ours, attention)
    images, noise = same_inputs(config, batch=5)
    loss = ours(images, noise)["loss"]
    loss.backward()
    reference = theirs(pixel_values=images, noise=noise)
    reference.loss.backward()
    torch.testing.assert_close(loss, reference.loss, atol=1e-6, rtol=1e-5)
    gradients = to_hf({n: p.grad for n, p in ours.named_parameters() if p.grad is not None}, config)
    expected = {n: p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    assert gradients.keys() == expected.keys()
    for key, value in expected.items():
        assert value is not None, key
        torch.testing.assert_close(gradients[key], value, atol=1e-5, rtol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
        assert value.abs().max() > 1e-7 or "k_proj.bias" in key, f"{key} was not exercised"


def test_prediction_in_image_space() -> None:
    config = CASES["three decoder blocks"]
    ours = MAE(config)
    initialise(ours, seed=0)
    theirs = build_hf(ours)
    images, noise = same_inputs(config, batch=2)
    with torch.no_grad():
        filled, mask = ours.reconstruct(images, noise)
        reference = theirs(pixel_values=images, noise=noise)
        predicted = theirs.unpatchify(reference.logits)
    torch.testing.assert_close(mask, reference.mask)
    patch = config.encoder.patch
    mine, hf, original = (patchify(t, patch) for t in (filled, predicted, images))
    torch.testing.assert_close(mine[mask == 1], hf[mask == 1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine[mask == 0], original[mask == 0])
