"""Attention kernels, the oneDNN linear layer, initialisation and positions, each against plain maths."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from frontier.models.attention import ProductAttention, attention_padding, padded_attention, self_attention
from frontier.models.init import clean_name, initial_buffer, initial_value, initialise, parameter_generator
from frontier.models.linear import HAS_ONEDNN, Linear, LinearFunction
from frontier.models.mae import MAE, MAEConfig
from frontier.models.posembed import sincos_2d


def plain_attention(qkv: Tensor, first_query: int = 0) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in qkv.unbind(-2))
    weights = torch.softmax(q[:, :, first_query:] @ k.transpose(-1, -2) / math.sqrt(qkv.shape[-1]), -1)
    return (weights @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("head_dim", [105, 88, 7])
@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_padding_changes_nothing(head_dim: int, backend: SDPBackend) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, head_dim, dtype=torch.float64).requires_grad_() for _ in range(3))
    expected = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(head_dim), -1) @ v
    wanted = torch.autograd.grad(expected.square().sum(), (q, k, v))
    with sdpa_kernel(backend):
        out = padded_attention(q, k, v, padding=attention_padding(head_dim, "cuda"))
        grads = torch.autograd.grad(out.square().sum(), (q, k, v))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(grads, wanted)


def test_when_padding_is_wanted() -> None:
    assert [attention_padding(d, "cuda") for d in (64, 88, 105, 112)] == [0, 0, 7, 0]
    assert attention_padding(105, "cpu") == 0


@pytest.mark.parametrize("first_query", [0, 4])
@pytest.mark.parametrize("kernel", [ProductAttention.apply, self_attention])
def test_attention_against_plain_maths(kernel, first_query: int) -> None:
    torch.manual_seed(1)
    qkv = torch.randn(2, 9, 3, 3, 5, dtype=torch.float64).requires_grad_()
    expected, out = plain_attention(qkv, first_query), kernel(qkv, first_query)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad((out * weight).sum(), qkv), torch.autograd.grad((expected * weight).sum(), qkv)
    )


def test_bf16_attention_is_as_exact_as_the_fused_kernel() -> None:
    torch.manual_seed(2)
    exact = torch.randn(2, 17, 3, 3, 16)
    low = exact.bfloat16().requires_grad_()
    reference = low.detach().float().requires_grad_()
    weight = torch.randn(2, 17, 48)
    (plain_attention(reference) * weight).sum().backward()
    (self_attention(low).float() * weight).sum().backward()
    assert low.grad is not None
    assert reference.grad is not None
    error = (low.grad.float() - reference.grad).norm() / reference.grad.norm()
    assert error < 0.01


@pytest.mark.skipif(not HAS_ONEDNN, reason="needs a processor with AVX-512")
@pytest.mark.parametrize("sizes", [(12, 20), (20, 12)])
def test_onednn_linear_against_float64(sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontier.models.linear.ONEDNN_TYPES", (torch.float32,))
    torch.manual_seed(3)
    layer, x = Linear(*sizes), torch.randn(4, 7, sizes[0], requires_grad=True)
    weight = torch.randn(4, 7, sizes[1])
    layer(x).backward(weight)
    exact = [t.detach().double().requires_grad_() for t in (x, layer.weight, layer.bias)]
    F.linear(*exact).backward(weight.double())
    for mine, theirs in zip((x, layer.weight, layer.bias), exact, strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad.double(), theirs.grad, atol=1e-5, rtol=1e-5)
    assert isinstance(layer(x).grad_fn, torch.autograd.function.BackwardCFunction)
    assert LinearFunction.__name__ in type(layer(x).grad_fn).__name__


@pytest.mark.skipif(not HAS_ONEDNN, reason="needs a processor with AVX-512")
def test_products_of_a_type_that_is_not_onednns(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Linear(12, 20), torch.randn(4, 12)
    monkeypatch.setattr("frontier.models.linear.ONEDNN_TYPES", (torch.bfloat16,))
    assert LinearFunction.__name__ not in type(layer(x).grad_fn).__name__
    assert LinearFunction.__name__ in type(layer.bfloat16()(x.bfloat16()).grad_fn).__name__


def test_linear_layer_of_no_rows() -> None:
    """A rank without a sample of some task: forward and backward run, with gradients of zero."""
    layer, x = Linear(12, 20), torch.randn(0, 7, 12, requires_grad=True)
    y = layer(x)
    assert y.shape == (0, 7, 20)
    y.sum().backward()
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    assert not layer.weight.grad.any()
    assert not layer.bias.grad.any()


def test_initial_values_follow_the_recipe() -> None:
    config = MAEConfig.preset("vit_tiny", image_size=32)
    model = MAE(config)
    initialise(model, seed=7)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / sum(module.weight.shape))
            assert 0.95 * bound < module.weight.abs().max() <= bound
            assert not module.bias.any()
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert not module.bias.any()
    assert 0.015 < model.encoder.cls_token.std() < 0.025
    assert 0.014 < model.decoder.mask_token.std() < 0.026
    assert not any("pos_embed" in name for name in model.state_dict())
    torch.testing.assert_close(model.encoder.pos_embed, sincos_2d(192, 4))


def test_each_parameter_has_its_own_stream() -> None:
    config = MAEConfig.preset("vit_debug", image_size=32)
    model, again = MAE(config), MAE(config)
    initialise(model, seed=7)
    initialise(again, seed=7)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
        path, _, leaf = name.rpartition(".")
        alone = initial_value(model.get_submodule(path), leaf, parameter_generator(7, name))
        assert torch.equal(parameter, alone)
    initialise(again, seed=8)
    assert not torch.equal(model.encoder.patch_embed.weight, again.encoder.patch_embed.weight)
    deeper = MAE(config.replace(encoder=PRESET_DEEPER))
    initialise(deeper, seed=7)  # a parameter's value depends on its name only, not on what comes before it
    assert torch.equal(deeper.decoder.embed.weight, model.decoder.embed.weight)


PRESET_DEEPER = MAEConfig.preset("vit_debug", image_size=32).encoder.__class__(32, 3, 2, 128, patch=8)


def test_names_of_wrappers_do_not_matter() -> None:
    name = "encoder.blocks.3.mlp.fc1.weight"
    assert clean_name("_orig_mod.encoder.blocks.3._checkpoint_wrapped_module.mlp.fc1.weight") == name
    assert clean_name("module." + name) == name
    with pytest.raises(TypeError, match="no initial value"):
        initial_value(nn.Conv2d(1, 1, 1), "weight", parameter_generator(0, "x"))
    with pytest.raises(TypeError, match="no initial value"):
        initial_buffer(nn.BatchNorm1d(3), "running_mean")


def test_positions() -> None:
    table = sincos_2d(16, 3)
    assert table.shape == (10, 16)
    assert not table[0].any()
    row, column = 2, 1
    frequencies = [10000 ** (-i / 4) for i in range(4)]
    expected = [f(x * w) for x in (column, row) for f in (math.sin, math.cos) for w in frequencies]
    torch.testing.assert_close(table[1 + 3 * row + column], torch.tensor(expected))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_blocks_give_the_same_gradients(dtype: torch.dtype) -> None:
    config = MAEConfig.preset("vit_debug", image_size=32)
    plain, compiled = MAE(config), MAE(config)
    for model in (plain, compiled):
        initialise(model, seed=0)
        model.to(dtype)
    for unit in compiled.shard_units():
        unit.compile(dynamic=False)
    images, noise = torch.randn(4, 3, 32, 32), torch.rand(4, config.patches)
    for model in (plain, compiled):
        model(images, noise)["loss"].backward()
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for (name, mine), theirs in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=tolerance, rtol=tolerance, msg=name)
