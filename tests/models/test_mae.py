"""Properties of the masked autoencoder that need no reference implementation."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from frontier.errors import UserError
from frontier.models.counting import encoder_parameter_count, flops_per_image, parameter_count
from frontier.models.init import initialise
from frontier.models.mae import MAE, MAEConfig
from frontier.models.presets import PRESETS, PUBLISHED_MILLIONS, DecoderShape, ViTShape, get_shape
from frontier.models.vit import patchify, unpatchify

SMALL = MAEConfig(ViTShape(32, 2, 2, 64, patch=4), DecoderShape(16, 2, 2), image_size=16, channels=5)
GATED = SMALL.replace(encoder=ViTShape(32, 2, 2, 48, mlp="gated", patch=4), norm_pix_loss=False)


def build(config: MAEConfig) -> MAE:
    model = MAE(config)
    initialise(model, seed=0)
    return model


def inputs(config: MAEConfig, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    shape = (batch, config.channels, config.image_size, config.image_size)
    return torch.randn(shape, generator=generator), torch.rand(batch, config.patches, generator=generator)


@pytest.mark.parametrize("name", PRESETS)
def test_counts_of_presets(name: str) -> None:
    config = MAEConfig.preset(name)
    with torch.device("meta"):
        model = MAE(config)
    assert parameter_count(config) == sum(p.numel() for p in model.parameters())
    trained = encoder_parameter_count(config.encoder)
    assert trained == sum(p.numel() for p in model.encoder.parameters())
    if name in PUBLISHED_MILLIONS:
        count = encoder_parameter_count(config.encoder, position_image_size=224) / 1e6
        assert abs(count / PUBLISHED_MILLIONS[name] - 1) < 0.015


def test_plain_vit_e_misses_the_published_count_of_vit_5b() -> None:
    gated, plain = (encoder_parameter_count(PRESETS[name]) for name in ("vit_5b", "vit_e"))
    assert abs(gated / 5349e6 - 1) < 0.001
    assert plain / 5349e6 < 0.72


@pytest.mark.parametrize("config", [SMALL, GATED, MAEConfig.preset("vit_base")], ids=["small", "gated", "base"])
def test_flops_against_the_counter(config: MAEConfig) -> None:
    with torch.device("meta"):
        model = MAE(config)
        images = torch.empty(2, config.channels, config.image_size, config.image_size)
        noise = torch.empty(2, config.patches)
    counter = FlopCounterMode(display=False)
    with counter:
        loss = model(images, noise)["loss"]
    flops = flops_per_image(config, executed=True)
    assert counter.get_total_flops() == 2 * flops.forward
    backward = FlopCounterMode(display=False)
    with backward:
        loss.backward()
    # Twice the forward pass, but for the patches, which need no gradient.
    assert backward.get_total_flops() == 2 * (2 * flops.forward - flops.embedding)
    assert flops_per_image(config).forward >= flops.forward
    assert flops_per_image(config).step == 3 * flops_per_image(config).forward


def test_loss_looks_at_masked_patches_only() -> None:
    model = build(SMALL)
    images, noise = inputs(SMALL)
    filled, mask = model.reconstruct(images, noise)
    assert mask.sum(1).tolist() == [SMALL.patches - SMALL.kept] * 3
    patches, prediction = patchify(images, 4), patchify(filled, 4)
    error = ((prediction - patches) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()).square().mean(-1)
    expected = (error * mask).sum() / mask.sum()
    torch.testing.assert_close(model(images, noise)["loss"], expected)
    assert torch.equal(prediction[mask == 0], patches[mask == 0])


def test_pixels_of_masked_patches_do_not_reach_the_prediction() -> None:
    model = build(SMALL.replace(norm_pix_loss=False))
    images, noise = inputs(SMALL)
    filled, mask = model.reconstruct(images, noise)
    patches = patchify(images, 4)
    patches[mask == 1] = 7.0
    other, _ = model.reconstruct(unpatchify(patches, 4, SMALL.channels), noise)
    torch.testing.assert_close(patchify(filled, 4)[mask == 1], patchify(other, 4)[mask == 1])


def test_kept_patches_have_the_lowest_noise_and_ties_keep_order() -> None:
    model = build(SMALL)
    images, noise = inputs(SMALL)
    _, mask = model.reconstruct(images, noise)
    for row, masked in zip(noise, mask, strict=True):
        assert row[masked == 0].max() < row[masked == 1].min()
    _, mask = model.reconstruct(images, torch.zeros_like(noise))
    assert mask[0].tolist() == [0] * SMALL.kept + [1] * (SMALL.patches - SMALL.kept)


def test_result_does_not_depend_on_the_rest_of_the_batch() -> None:
    model = build(SMALL)
    images, noise = inputs(SMALL, batch=4)
    losses = [model(images[i : i + 1], noise[i : i + 1])["loss"] for i in range(4)]
    torch.testing.assert_close(model(images, noise)["loss"], torch.stack(losses).mean())
    order = [2, 0, 3, 1]
    torch.testing.assert_close(model(images[order], noise[order])["loss"], model(images, noise)["loss"])
    assert torch.equal(model(images, noise)["loss"], model(images, noise)["loss"])


def test_every_parameter_gets_a_gradient() -> None:
    for config in (SMALL, GATED, SMALL.replace(decoder=DecoderShape(16, 1, 2))):
        model = build(config)
        model(*inputs(config))["loss"].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_encode_and_its_layers() -> None:
    model = build(SMALL).eval()
    images, _ = inputs(SMALL)
    with torch.no_grad():
        tokens = model.encode(images)
        first, last = model.encode_layers(images, [0, -1])
        raw = model.encode_layers(images, [1], norm=False)[0]
    assert tokens.shape == (3, 1 + SMALL.patches, 32)
    assert torch.equal(last, tokens)
    assert torch.equal(model.encoder.norm(raw), tokens)
    assert not torch.equal(first, last)
    with pytest.raises(UserError, match="layer 2 of 2 blocks"):
        model.encode_layers(images, [2])


def test_shard_units_are_the_blocks_in_order() -> None:
    model = build(SMALL)
    assert model.shard_units() == [*model.encoder.blocks, *model.decoder.blocks]


def test_patchify_round_trip() -> None:
    images = torch.randn(2, 5, 12, 12)
    assert torch.equal(unpatchify(patchify(images, 4), 4, 5), images)


def test_bf16_is_close_to_float32() -> None:
    model = build(SMALL)
    images, noise = inputs(SMALL)
    exact = model(images, noise)["loss"]
    loss = model.to(torch.bfloat16)(images, noise)["loss"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ViTShape(48, 1, 5, 96), "heads 5 does not divide width 48: use one of"),
        (lambda: MAEConfig(get_shape("vit_huge"), image_size=225), "multiple of patch 14: the nearest is 224 or 238"),
        (lambda: MAEConfig(get_shape("vit_base"), image_size=9), "the nearest is 16"),
        (lambda: get_shape("vit_hug"), 'did you mean "vit_huge"'),
        (lambda: SMALL.replace(mask_ratio=1.0), "mask_ratio 1.0"),
        (lambda: SMALL.replace(mask_ratio=0.99), "keeps 0"),
        (lambda: SMALL.replace(channels=0), "channels 0"),
        (lambda: SMALL.replace(decoder=DecoderShape(32, 2, 3)), "decoder heads 3 does not divide width 32"),
        (lambda: ViTShape(30, 1, 2, 64), "multiple of 4"),
        (lambda: ViTShape(32, 1, 2, 64, mlp="wide"), '"plain" or "gated"'),  # type: ignore[arg-type]
        (lambda: build(SMALL)(torch.zeros(1, 3, 16, 16), torch.zeros(1, 16)), "the model was built for"),
        (lambda: build(SMALL)(torch.zeros(1, 5, 16, 16), torch.zeros(1, 9)), "noise of shape"),
    ],
)
def test_mistakes_are_told_with_the_mend(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
