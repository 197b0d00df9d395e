"""Texture targets against closed values, and the loss of `TextureMAE` against its definition in plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from frontier.models.init import initialise
from frontier.models.mae import MAE, MAEConfig
from frontier.models.texture import TextureMAE, oriented_gradients, texture_targets


def test_gradient_of_a_ramp_falls_into_its_orientation() -> None:
    for slope_x, slope_y, expected in ((1.0, 0.0, 0), (0.0, 1.0, 2), (1.0, 1.0, 1), (-1.0, 1.0, 3)):
        y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        inside = oriented_gradients((slope_x * x + slope_y * y)[None, None])[0, :, 2:-2, 2:-2]
        magnitude = math.hypot(slope_x, slope_y)
        assert inside[expected].flatten().tolist() == pytest.approx([magnitude] * 16, rel=1e-5)
        assert inside.sum(0).flatten().tolist() == pytest.approx([magnitude] * 16, rel=1e-5)


def test_between_two_orientations_the_magnitude_is_shared() -> None:
    angle = math.radians(22.5)
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    inside = oriented_gradients((math.cos(angle) * x + math.sin(angle) * y)[None, None])[0, :, 4, 4]
    assert inside.tolist() == pytest.approx([0.5, 0.5, 0, 0], abs=1e-5)


def test_targets_of_a_constant_image() -> None:
    image = torch.tensor([0.5, -1.0]).view(1, 2, 1, 1).expand(1, 2, 16, 16)
    targets = texture_targets(image, 8)
    assert targets.shape == (1, 4, 2 * 2 + 4)
    flat = (math.log(0.03) + 1.5) / 0.9
    quiet = (math.log(0.01) + 3.25) / 0.8
    for row in targets[0].tolist():
        assert row == pytest.approx([0.5, -1.0, flat, flat, quiet, quiet, quiet, quiet], abs=1e-3)


@pytest.mark.parametrize("visible", [0.0, 0.5])
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_loss_is_its_definition(visible: float, norm_pix_loss: bool) -> None:
    config = MAEConfig.preset("vit_debug", image_size=32, norm_pix_loss=norm_pix_loss)
    model = TextureMAE(config, weight=0.7, visible=visible)
    initialise(model, 0)
    torch.manual_seed(1)
    images, noise = torch.randn(3, 3, 32, 32), torch.rand(3, config.patches)
    told = model(images, noise)
    patches, ids = model._shuffled(images, noise)
    latent = model.encoder(patches[:, : config.kept], ids[:, : config.kept])
    tokens = model.decoder.tokens(latent, ids, 1)
    statistics = texture_targets(images, 8)
    expected = {"pixels": 0.0, "texture": 0.0}
    for b in range(3):
        for i in range(config.patches):
            weight = 1 / (config.patches - config.kept) if i >= config.kept else visible / config.kept
            weight /= 3 * (1 + visible)
            target = patches[b, i]
            if norm_pix_loss:
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            expected["pixels"] += weight * (model.decoder.pred(tokens[b, i]) - target).square().mean().item()
            difference = model.texture(tokens[b, i]) - statistics[b, ids[b, i]]
            expected["texture"] += weight * difference.square().mean().item()
    for name, value in expected.items():
        assert told[name].item() == pytest.approx(value, rel=1e-5)
    assert told["loss"].item() == pytest.approx(expected["pixels"] + 0.7 * expected["texture"], rel=1e-5)


def test_without_visible_patches_the_pixel_term_is_the_plain_loss() -> None:
    config = MAEConfig.preset("vit_debug", image_size=32)
    plain, model = MAE(config), TextureMAE(config, 1.0, 0.0)
    initialise(plain, 0)
    initialise(model, 0)
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, config.patches)
    torch.testing.assert_close(model(images, noise)["pixels"], plain(images, noise)["loss"])
