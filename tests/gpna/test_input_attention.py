"""The input attention against attention written out, and the equality of loops, padded batches and clusters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from frontier.errors import UserError
from frontier.models.attention import fused_on_meta
from frontier.models.init import initialise
from gpna.batching import cluster, pack
from gpna.input_attention import InputAttention

LENGTHS = np.array([0, 5, 5, 40, 0, 43, 90, 5, 41])
C, M, D, H = 24, 6, 32, 4


def model(checkpoint: bool = False) -> InputAttention:
    found = InputAttention(C, M, D, H, 64, checkpoint)
    initialise(found, 7)
    with torch.no_grad():  # norms and biases that do something, queries that tell tokens apart
        for k, (name, parameter) in enumerate(found.named_parameters()):
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k)), alpha=0.3)
        found.q.weight.mul_(3)
    return found


def layout(mixed: bool) -> list[np.ndarray]:
    """Rows of each sample's tokens: sample after sample, or every row anywhere, with rows that are nobody's."""
    rows = np.arange(LENGTHS.sum() + 9)
    if mixed:
        rows = np.random.default_rng(1).permutation(rows)
    return np.split(rows[: LENGTHS.sum()], np.cumsum(LENGTHS)[:-1])


def tokens(mixed: bool) -> Tensor:
    """The same token for the same sample and position in both layouts."""
    index = np.concatenate(layout(mixed))
    values = torch.randn(len(index), C, generator=torch.Generator().manual_seed(3))
    flat = torch.full((len(index) + 9, C), math.nan)  # a row that is nobody's must not be read
    flat[index] = values
    flat[0] = torch.nan_to_num(flat[0])  # row 0 stands for padding, so it is a number
    return flat


def run(module: InputAttention, index: list[np.ndarray], flat: Tensor, **options) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients, those of the tokens sample after sample."""
    flat = flat.clone().requires_grad_()
    module.zero_grad()
    found = module(flat, pack(index, cluster(LENGTHS, **options)).plain())
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(5)).to(found.dtype)
    (found * weights).sum().backward()
    grads = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    rows = np.concatenate(index)
    nobody = np.setdiff1d(np.arange(len(flat)), rows)
    assert (flat.grad[nobody] == 0).all()
    return found.detach(), grads | {"tokens": flat.grad[rows]}


def written_out(m: InputAttention, samples: list[Tensor]) -> Tensor:
    """The equations, one sample, head and latent at a time, in float64."""
    out = []
    for sample in samples:
        x = m.latents.double()
        q = m.latent_norm(m.latents).double() @ m.q.weight.double().T + m.q.bias.double()
        kv = (m.token_norm(sample).double() @ m.kv.weight.double().T).view(-1, H, 2, D // H)
        read = torch.zeros(M, D, dtype=torch.float64)
        for head in range(H):
            cut = slice(head * D // H, (head + 1) * D // H)
            for latent in range(M):
                if len(sample):
                    p = torch.softmax(kv[:, head, 0] @ q[latent, cut] / math.sqrt(D // H), 0)
                    read[latent, cut] = p @ kv[:, head, 1]
        x = x + read @ m.proj.weight.double().T
        x = (x + m.mlp(m.mlp_norm(x.float())).double()).float()
        out.append(x)
    return torch.stack(out)


def close(found: dict[str, Tensor], wanted: dict[str, Tensor], bound: float = 1e-6) -> None:
    for name, value in wanted.items():
        scale = value.abs().max()
        assert (found[name] - value).abs().max() <= bound * scale + 1e-3 * bound, name


def close_in_norm(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """For other orders of summation in float32, where one element in thousands rounds by ten times what the others do."""
    for name, value in wanted.items():
        assert (found[name] - value).norm() <= 1e-6 * value.norm() + 1e-9, name


def test_the_equations() -> None:
    m, index, flat = model(), layout(mixed=True), tokens(mixed=True)
    with torch.no_grad():
        found = m(flat, pack(index, cluster(LENGTHS, 3)).plain())
        wanted = written_out(m, [flat[torch.from_numpy(rows)] for rows in index])
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-6)
    assert (wanted[1] - wanted[2]).abs().max() > 0.1, "samples differ"


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"method": "one"},
        {"max_padding": 3},
        {"max_padding": 0},
        {"max_padding": 50, "method": "greedy"},
        {"max_padding": 50, "max_tokens": 90, "method": "greedy"},
    ],
)
def test_loop_padded_batch_and_clusters_are_equal(mixed: bool, options) -> None:
    """Outputs and gradients, whatever the clusters and wherever the tokens lie: to 1e-6, and to 1e-13 in float64."""
    m = model()
    wanted, grads = run(m, layout(False), tokens(False), method="each")
    found, theirs = run(m, layout(mixed), tokens(mixed), **options)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    close_in_norm(theirs, grads)
    m = m.double()
    wanted, grads = run(m, layout(False), tokens(False).double(), method="each")
    found, theirs = run(m, layout(mixed), tokens(mixed).double(), **options)
    torch.testing.assert_close(found, wanted, atol=1e-13, rtol=1e-13)
    close(theirs, grads, 1e-13)


def test_recomputed_keys_change_nothing_and_save_memory() -> None:
    def kept(module: InputAttention) -> int:
        bytes_of: dict[int, int] = {}

        def keep(t: Tensor) -> Tensor:
            bytes_of[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            out = module(flat, clusters)
        flat_bytes = bytes_of.pop(flat.untyped_storage().data_ptr(), 0)
        assert out.requires_grad and flat_bytes in (0, flat.untyped_storage().nbytes())
        return sum(bytes_of.values())

    plain, again = run(model(), layout(True), tokens(True)), run(model(True), layout(True), tokens(True))
    assert torch.equal(plain[0], again[0])
    close(again[1], plain[1])
    flat, clusters = torch.randn(4000, C, requires_grad=True), pack([np.arange(4000)], [np.array([0])]).plain()
    assert kept(model()) - kept(model(True)) >= 4000 * (C + 2 * D) * 4


def test_a_sample_without_tokens_keeps_the_latents() -> None:
    m = model()
    with torch.no_grad():
        found = m(tokens(False), pack(layout(False), cluster(LENGTHS)).plain())
        wanted = m.latents + m.mlp(m.mlp_norm(m.latents))
    assert torch.equal(found[0], found[4])
    torch.testing.assert_close(found[0], wanted, atol=1e-6, rtol=0)
    flat = torch.randn(3, C, requires_grad=True)
    m(flat, pack([np.empty(0, int)] * 2, cluster(np.zeros(2, int))).plain()).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())
    assert (flat.grad == 0).all() and (m.kv.weight.grad == 0).all() and (m.q.weight.grad == 0).all()


def test_bfloat16() -> None:
    wanted, _ = run(model(), layout(False), tokens(False))
    m = model().bfloat16()
    found, grads = run(m, layout(False), tokens(False).bfloat16())
    assert found.dtype == torch.bfloat16 and all(g.isfinite().all() for g in grads.values())
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()


@pytest.mark.parametrize("device", ["", "cuda", "cpu"])
def test_meta(device: str) -> None:
    with torch.device("meta"):
        m = InputAttention(C, M, D, H, 64)
    flat = torch.empty(int(LENGTHS.sum()), C, device="meta", requires_grad=True)
    packing = pack(layout(False), cluster(LENGTHS, 50, method="greedy"))
    with fused_on_meta(device):
        out = m(flat, packing.to("meta").plain())
        out.sum().backward()
    assert out.shape == (len(LENGTHS), M, D) and flat.grad is not None and m.kv.weight.grad.shape == (2 * D, C)


def test_padded_heads_are_the_same_under_a_mask(monkeypatch) -> None:
    """Accelerators get head dims that are multiples of 8; here the same columns are appended on the CPU."""
    wanted, grads = run(model(), layout(False), tokens(False), max_padding=50, method="greedy")
    monkeypatch.setattr("gpna.input_attention.attention_padding", lambda dim, device: 5)
    found, theirs = run(model(), layout(False), tokens(False), max_padding=50, method="greedy")
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    close(theirs, grads)


def test_latents_are_drawn_small_and_heads_must_fit() -> None:
    m = InputAttention(C, 512, 256, H, 64)
    drawn = m.initial_value("latents", torch.Generator().manual_seed(0))
    assert drawn.shape == (512, 256) and abs(drawn.std() - 0.02) < 2e-4 and abs(drawn.mean()) < 2e-4
    with pytest.raises(UserError, match="3 heads do not divide"):
        InputAttention(C, M, D, 3, 64)
