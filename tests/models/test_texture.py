"""Texture targets against closed values, and the loss of `TextureMAE` against its definition in plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from frontier.models.init import initialise
from frontier.models.mae import MAE, MAEConfig
from frontier.models.texture import TextureMAE, laplacian, oriented_gradients, texture_size, texture_targets


@pytest.mark.parametrize("orientations", [4, 8])
def test_gradient_of_a_ramp_falls_into_its_orientation(orientations: int) -> None:
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    for expected in range(orientations):
        angle = math.pi * expected / orientations
        ramp = 3 * (math.cos(angle) * x + math.sin(angle) * y)
        cells = oriented_gradients(ramp[None, None], orientations, 2)[0].view(4, 4, orientations)
        inside = cells[1:-1, 1:-1]  # the border's differences are one-sided
        assert inside[..., expected].flatten().tolist() == pytest.approx([3.0] * 4, rel=1e-4)
        assert inside.sum(-1).flatten().tolist() == pytest.approx([3.0] * 4, rel=1e-4)


def test_between_two_orientations_the_magnitude_is_shared() -> None:
    angle = math.radians(22.5)
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    inside = oriented_gradients((math.cos(angle) * x + math.sin(angle) * y)[None, None], 4, 2)[0, 5]
    assert inside.tolist() == pytest.approx([0.5, 0.5, 0, 0], abs=1e-5)


def test_laplacian_of_a_parabola() -> None:
    x = torch.arange(8.0).square().expand(1, 1, 8, 8)
    assert laplacian(x)[0, 0, :, 1:-1].flatten().tolist() == pytest.approx([2.0] * 48)


def test_targets_of_a_constant_image() -> None:
    image = torch.tensor([0.5, -1.0]).view(1, 2, 1, 1).expand(1, 2, 16, 16)
    targets = texture_targets(image, 8)
    assert targets.shape == (1, 4, texture_size(2, 8)) == (1, 4, 2 * 2 + 8 + 1 + 4 + 1)
    flat, quiet = (math.log(0.03) + 1.5) / 0.9, math.log(0.01)
    expected = [
        0.5,
        -1.0,
        flat,
        flat,
        *[(quiet + 3.7) / 0.7] * 8,
        (quiet + 1.4) / 0.85,
        *[(quiet + 3.2) / 0.9] * 4,
        -2.5,
    ]
    for row in targets[0].tolist():
        assert row == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("channels", "patch", "count"), [(1, 4, 15), (2, 4, 18), (3, 8, 22), (12, 8, 49), (3, 5, 18)])
def test_sizes(channels: int, patch: int, count: int) -> None:
    assert texture_size(channels, patch) == count
    assert texture_targets(torch.randn(2, channels, 2 * patch, 2 * patch), patch).shape == (2, 4, count)


def test_correlations_against_numpy() -> None:
    images = torch.randn(2, 3, 16, 16)
    told = texture_targets(images, 8)[1, 3, -3:] * 0.3 + 0.75
    block = images[1, :, 8:, 8:].reshape(3, -1).numpy()
    matrix = np.cov(block, bias=True) + 1e-3 * np.eye(3)
    for value, (i, j) in zip(told.tolist(), [(0, 1), (1, 2), (2, 0)], strict=True):
        assert value == pytest.approx(matrix[i, j] / math.sqrt(matrix[i, i] * matrix[j, j]), rel=1e-4)


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
