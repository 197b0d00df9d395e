"""The CPU operators against float64 formulas, their ways out, and their library."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frontier.models import linear
from frontier.models.attention import KernelAttention, ProductAttention, fused_on_meta, self_attention
from frontier.models.cpu import build
from frontier.models.cpu.operators import multiplies, suits
from frontier.models.layers import MLP, Block
from frontier.models.linear import Linear, column_sums, parameter_gradients, times
from frontier.models.pointwise import GELU, LayerNorm, SumNorm, gelu

needs_library = pytest.mark.skipif(bool(build.unavailable()), reason=f"no CPU operators: {build.unavailable()}")
TYPES = [torch.float32, torch.bfloat16]
ROUNDING = {torch.float32: 2**-21, torch.bfloat16: 2**-8}
"""Eight units in the last place of float32, one of bfloat16."""


def drawn(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0, seed: int = 0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def gradients(run: Callable[..., Tensor | tuple[Tensor, ...]], *inputs: Tensor, seed: int = 9) -> list[Tensor]:
    """Results of `run`, then the gradients of a fixed random functional of them."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    results = run(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    weights = [drawn(*r.shape, dtype=r.dtype, seed=seed + i) for i, r in enumerate(results)]
    loss = sum((r.double() * w.double()).sum() for r, w in zip(results, weights, strict=True))
    return [r.detach() for r in results] + list(torch.autograd.grad(loss, leaves))


def close(ours: list[Tensor], exact: list[Tensor], dtype: torch.dtype) -> None:
    """Each within the rounding of its type, in units of its largest value."""
    for place, (a, b) in enumerate(zip(ours, exact, strict=True)):
        assert a.dtype == dtype and a.shape == b.shape
        error = (a.double() - b).abs().max() / b.abs().max()
        assert error <= 4 * ROUNDING[dtype], f"result {place}: {error:.2e} of its largest value"


def exact_attention(qkv: Tensor, first_query: int) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in qkv.unbind(-2))
    p = torch.softmax(q[:, :, first_query:] @ k.transpose(-1, -2) * qkv.shape[-1] ** -0.5, -1)
    return (p @ v).transpose(1, 2).flatten(2)


@needs_library
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(3, 17, 192), (1, 1, 16), (7, 96), (2, 5, 1280)])
@pytest.mark.parametrize("branch", [False, True])
def test_norm(dtype: torch.dtype, shape: tuple[int, ...], branch: bool) -> None:
    width = shape[-1]
    x, more = drawn(*shape, dtype=dtype, scale=3.0), drawn(*shape, dtype=dtype, seed=1)
    weight, bias = drawn(width, dtype=dtype, seed=2), drawn(width, dtype=dtype, seed=3)
    inputs = [x, more, weight, bias] if branch else [x, weight, bias]

    def ours(x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        return SumNorm.apply(x, rest[0] if branch else None, *rest[-2:], 1e-6)

    def exact(x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        # The sum is rounded to its type before it is normalised, as it is what flows on.
        total = (x + rest[0]) if branch else x
        rounded = total + (total.detach().to(dtype).double() - total.detach())
        return rounded, F.layer_norm(rounded, (width,), *rest[-2:], 1e-6)

    close(gradients(ours, *inputs), gradients(exact, *(t.double() for t in inputs)), dtype)


@needs_library
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("count", [1, 16, 4097])
def test_gelu(dtype: torch.dtype, count: int) -> None:
    x = drawn(count, dtype=dtype, scale=3.0)
    close(gradients(GELU.apply, x), gradients(F.gelu, x.double()), dtype)


@needs_library
@pytest.mark.parametrize("dtype", TYPES)
def test_gelu_over_its_range(dtype: torch.dtype) -> None:
    """In bfloat16 within a unit in the last place everywhere, tails too; in float32 beside PyTorch's own."""
    x = torch.linspace(-12.0, 12.0, 200001).to(dtype)
    exact = x.double() * torch.special.erfc(-x.double() / 2**0.5) / 2  # F.gelu's own is 0 below -8.4
    error = (gelu(x).double() - exact).abs()
    if dtype == torch.float32:
        assert error.max() <= min(5e-7, float((F.gelu(x).double() - exact).abs().max()))
    else:
        assert bool((error <= 2**-8 * exact.abs() + 1e-30).all())
    odd = torch.tensor([0.0, float("inf"), float("nan")] + [0.0] * 13, dtype=dtype)
    made = gelu(odd)
    assert made[0] == 0 and made[1] == float("inf") and bool(made[2].isnan())


@needs_library
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 16), (1000, 96), (65, 784)])
def test_column_sums(dtype: torch.dtype, rows: int, width: int) -> None:
    x = drawn(rows, width, dtype=dtype)
    close([column_sums(x)], [x.double().sum(0)], dtype)


def needs_products(dtype: torch.dtype) -> None:
    """Skip where PyTorch's products are the faster ones (AMX, Intel in float32) or the processor lacks bfloat16's."""
    if dtype not in linear.ONEDNN_TYPES or not multiplies("cpu", 64, 64, torch.ones(1, 64, dtype=dtype)):
        pytest.skip("PyTorch's own products are used here")


@needs_library
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("rows", "k", "m"), [(1, 32, 32), (7, 96, 192), (385, 192, 96), (1030, 64, 160), (16, 800, 32), (130, 288, 96)]
)
def test_products(dtype: torch.dtype, rows: int, k: int, m: int) -> None:
    """All three products of a linear layer and the sums of a bias, blocks and tiles filled and not."""
    needs_products(dtype)
    x, w, b = drawn(rows, k, dtype=dtype), drawn(m, k, dtype=dtype, seed=1), drawn(m, dtype=dtype, seed=2)
    more, grad = drawn(rows, m, dtype=dtype, seed=3), drawn(rows, m, dtype=dtype, seed=4)
    ops, exact = torch.ops.frontier, F.linear(x.double(), w.double())
    made = ops.cpu_by_weights(x, w, False, b, None)
    close([ops.cpu_by_weights(x, w, False, None, None), made], [exact, exact + b.double()], dtype)
    assert torch.equal(ops.cpu_by_weights(x, w, False, b, more), made + more), "added to what was rounded"
    close([ops.cpu_by_weights(grad, w, True, None, None)], [grad.double() @ w.double()], dtype)
    gradients = ops.cpu_weight_gradient(grad, x, True)
    close(list(gradients), [grad.double().t() @ x.double(), grad.double().sum(0)], dtype)
    assert torch.equal(ops.cpu_weight_gradient(grad, x, False)[0], gradients[0])


@needs_library
@pytest.mark.parametrize("dtype", TYPES)
def test_what_follows_a_product(dtype: torch.dtype) -> None:
    """GELU, its derivative and a multiplication within the product give the bits of the operators one after the other."""
    needs_products(dtype)
    ops, x, w, b = torch.ops.frontier, drawn(77, 96, dtype=dtype), drawn(160, 96, dtype=dtype), drawn(160, dtype=dtype)
    y, slopes = ops.cpu_gelu(ops.cpu_by_weights(x, w, False, b, None), True)
    assert all(torch.equal(a, c) for a, c in zip(ops.cpu_linear_gelu(x, w, b), (y, slopes), strict=True))
    again = ops.cpu_by_weights(x, w, False, b, None)
    assert torch.equal(ops.cpu_gelu_(again), y) and torch.equal(again, slopes)
    grad = drawn(77, 32, dtype=dtype)
    by = drawn(32, 160, dtype=dtype, seed=5)
    wanted, other = ops.cpu_multiply(times(grad, by), slopes), slopes.clone()
    ops.cpu_scale_by_weights_(grad, by, other)
    ops.cpu_multiply_(times(grad, by), slopes)
    assert torch.equal(other, wanted) and torch.equal(slopes, wanted)


@needs_library
@pytest.mark.parametrize("dtype", TYPES)
def test_products_of_any_number_of_threads(dtype: torch.dtype) -> None:
    needs_products(dtype)
    x, grad, w = drawn(501, 96, dtype=dtype), drawn(501, 224, dtype=dtype), drawn(224, 96, dtype=dtype)
    threads, made = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 4, 7):
            torch.set_num_threads(count)
            both = parameter_gradients(grad, x, True, True)
            made.append([*both, times(grad, w), torch.ops.frontier.cpu_by_weights(x, w, False, None, None)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in made[1:] for a, b in zip(made[0], other, strict=True))


@needs_library
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("hidden", [128, 112])
def test_blocks_as_one_function(dtype: torch.dtype, hidden: int) -> None:
    """To the bits of their modules: a hook, another forward or the switch bring these back; frozen weights have no gradients."""

    def run(change: Callable[[Block], object], first_query: int) -> tuple[str, list[Tensor]]:
        torch.manual_seed(0)
        block = Block(64, 2, hidden).to(dtype)
        change(block)
        x = drawn(3, 17, 64, dtype=dtype, seed=4).requires_grad_()
        out = block(x, first_query)
        (out.float() * drawn(*out.shape, seed=5)).sum().backward()
        assert [p.grad is None for p in block.parameters()] == [not p.requires_grad for p in block.parameters()]
        return type(out.grad_fn).__name__, [out, x.grad, *(p.grad for p in block.parameters() if p.grad is not None)]

    def no_change(block: Block) -> None:
        pass

    def as_modules(block: Block) -> None:
        block.mlp.as_one = False

    ways: list[Callable[[Block], object]] = [
        as_modules,
        lambda block: block.attn.proj.register_forward_hook(lambda *_: None),
        lambda block: block.norm2.register_full_backward_hook(lambda *_: None),
        lambda block: setattr(block.mlp.fc1, "forward", block.mlp.fc1.forward),
    ]
    for first_query in (0, 5):
        name, wanted = run(no_change, first_query)
        assert name == "BlockFunctionBackward"
        for change in ways:
            other, made = run(change, first_query)
            assert other != "BlockFunctionBackward" and len(made) == 14
            assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))

        def freeze(block: Block) -> None:
            for place, p in enumerate(block.parameters()):
                p.requires_grad_(place % 3 == 0)

        some = run(freeze, first_query)[1]
        close(some, [t.double() for t in wanted[:2] + wanted[2::3]], dtype)  # sums of columns alone go another way


@needs_library
def test_a_graph_of_one_function_is_walked_once() -> None:
    for module in (Block(64, 2, 128), MLP(64, 128)):
        out = module(drawn(2, 17, 64).requires_grad_()).sum()
        out.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.backward()


@needs_library
def test_mlp_as_one_function() -> None:
    mlp, x = MLP(96, 160), drawn(5, 3, 96).requires_grad_()
    made = gradients(lambda x: mlp(x), x)
    assert type(mlp(x).grad_fn).__name__ == "ViewBackward0" and type(mlp.fc1) is Linear
    exact = F.linear(F.gelu(F.linear(x.double(), *(p.double() for p in (mlp.fc1.weight, mlp.fc1.bias)))), *(p.double() for p in (mlp.fc2.weight, mlp.fc2.bias)))  # fmt: skip
    close(made[:1], [exact.detach()], torch.float32)
    with torch.no_grad():
        assert torch.allclose(mlp(x), exact.float(), atol=1e-6)


@needs_library
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "dim", "first_query"),
    [
        (5, 17, 3, 64, 0),
        (2, 65, 3, 32, 17),
        (1, 1, 1, 16, 0),
        (2, 16, 2, 80, 15),
        (1, 197, 2, 64, 0),
        (3, 33, 1, 48, 1),
    ],
)
def test_attention(dtype: torch.dtype, batch: int, tokens: int, heads: int, dim: int, first_query: int) -> None:
    qkv = drawn(batch, tokens, heads, 3, dim, dtype=dtype)
    ours = gradients(lambda x: KernelAttention.apply(x, first_query), qkv)
    exact = gradients(lambda x: exact_attention(x, first_query), qkv.double())
    close(ours, exact, dtype)
    assert bool((ours[1][:, :first_query, :, 0] == 0).all()), "tokens that do not ask have no gradient of a query"


@needs_library
def test_attention_of_extreme_scores() -> None:
    """One key takes it all; scores beyond float32's exponentials; what is not a number is passed on, and only in its sample."""
    qkv = drawn(2, 20, 2, 3, 32, scale=40.0)
    assert torch.allclose(self_attention(qkv), exact_attention(qkv.double(), 0).float(), rtol=1e-4, atol=1e-3)
    qkv[0, 3, 0, 1, 5] = float("nan")
    out = self_attention(qkv)
    assert (
        bool(out[0, :, :32].isnan().all()) and bool(out[1].isfinite().all()) and bool(out[0, :, 32:].isfinite().all())
    )


@needs_library
def test_no_chance_in_the_results() -> None:
    """Equal inputs give equal bits, on any number of threads where rows do not meet."""
    x, qkv = drawn(1000, 192, dtype=torch.bfloat16), drawn(9, 17, 3, 3, 64)
    weight = torch.ones(192, dtype=torch.bfloat16)

    def once() -> list[Tensor]:
        made = gradients(lambda x, w: SumNorm.apply(x, None, w, w, 1e-6), x, weight)
        return made + gradients(lambda x: KernelAttention.apply(x, 0), qkv) + [column_sums(x)]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first, second = once(), once()
        torch.set_num_threads(1)
        single = once()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    by_row = [
        place for place in range(len(first)) if place not in (3, 6)
    ]  # gradients of weights and sums of columns meet
    assert all(torch.equal(first[place], single[place]) for place in by_row)


@needs_library
def test_strided_inputs() -> None:
    x = drawn(40, 6, 64).transpose(0, 1)
    norm = LayerNorm(64)
    assert torch.allclose(norm(x), F.layer_norm(x, (64,), norm.weight, norm.bias), atol=1e-6)
    assert torch.allclose(gelu(x), F.gelu(x), atol=1e-6)
    qkv = drawn(4, 3, 17, 2, 32).permute(0, 2, 3, 1, 4)
    assert torch.allclose(self_attention(qkv), exact_attention(qkv, 0), atol=1e-5)


@needs_library
def test_what_they_do_not_take() -> None:
    """Other devices, types, widths, sharded tensors, autocast and compilers: PyTorch's operators, silently."""
    x = drawn(4, 32)
    assert suits("cpu", 32, x)
    assert not suits("cuda", 32, x) and not suits("", 32, x)
    assert not suits("cpu", 24, drawn(4, 24)) and not suits("cpu", 32, x.double())
    assert gelu(drawn(7, 5)).shape == (7, 5), "GELU has no rows"
    assert not suits("cpu", 32, x, x.bfloat16()) and not suits("cpu", 32, x[:0])
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits("cpu", 32, x)
    norm = LayerNorm(24)
    assert torch.equal(norm(drawn(4, 24)), F.layer_norm(drawn(4, 24), (24,), norm.weight, norm.bias))
    assert torch.equal(gelu(x.double()), F.gelu(x.double()))


@needs_library
@pytest.mark.parametrize("dtype", TYPES)
def test_a_block_with_and_without(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and all gradients of a block, its operators against PyTorch's, selectively checkpointed too."""
    from frontier.parallel.apply import checkpoint_activations

    def run(first_query: int, checkpointed: bool) -> list[Tensor]:
        torch.manual_seed(0)
        block = Block(64, 2, 128).to(dtype)
        if checkpointed:
            checkpoint_activations([block], "selective")
        x = drawn(3, 17, 64, dtype=dtype, seed=4).requires_grad_()
        out = block(x, first_query)
        (out.float() * drawn(*out.shape, seed=5)).sum().backward()
        return [out.detach(), *(p.grad for p in (x, *block.parameters()) if p.grad is not None)]

    ours = [run(q, c) for q in (0, 5) for c in (False, True)]
    for module in ("pointwise", "attention", "linear"):
        monkeypatch.setattr(f"frontier.models.{module}.suits", lambda *_: False)
    theirs = [run(q, c) for q in (0, 5) for c in (False, True)]
    tolerance = 2e-6 if dtype == torch.float32 else 2e-2
    for a, b in zip(ours, theirs, strict=True):
        assert len(a) == len(b) == 14
        assert all((x - y).abs().max() <= tolerance * y.abs().max() for x, y in zip(a, b, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(ours[0], ours[1], strict=True)), "recomputed, so the same"


@needs_library
def test_shapes_on_meta_are_those_of_the_cpu() -> None:
    block = Block(64, 2, 128)
    x = drawn(3, 17, 64).requires_grad_()
    on_meta = Block(64, 2, 128).to("meta")
    with fused_on_meta("cpu"):
        counted = on_meta(torch.empty(3, 17, 64, device="meta", requires_grad=True), 5)
        counted.sum().backward()
    made = block(x, 5)
    made.sum().backward()
    assert counted.shape == made.shape and counted.grad_fn is not None
    assert [p.grad.shape for p in on_meta.parameters() if p.grad is not None] == [p.shape for p in block.parameters()]


def test_long_sequences_go_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(ProductAttention, "apply", lambda *_: called.append("product"))
    monkeypatch.setattr(KernelAttention, "apply", lambda *_: called.append("kernel"))
    self_attention(drawn(1, 300, 1, 3, 16, dtype=torch.bfloat16).requires_grad_())
    assert called == ["product"]


PROGRAM = """
import sklearn.neighbors  # brings an OpenMP of its own
import torch
from frontier.models.cpu import build
from frontier.models.layers import Block
torch.manual_seed(0)
out = Block(64, 2, 128)(torch.randn(2, 17, 64))
maps = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp.so.1" in line}
print(repr(build.unavailable()), len(maps), float(out.abs().sum()))
"""


def run(**env: str) -> tuple[str, int, float]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    why, copies, total = done.stdout.rsplit(maxsplit=2)
    return why, int(copies), float(total)


@needs_library
def test_ways_out(tmp_path: Path) -> None:
    """Switched off, without a compiler, without a place to write: the reason is said and the result is PyTorch's."""
    file = tmp_path / "file"
    file.write_text("")
    empty = tmp_path / "empty"
    empty.mkdir()
    usual = run()
    assert usual[0] == "''" and usual[1] == 1, "the library runs on PyTorch's own OpenMP"
    off = run(FRONTIER_CPU_KERNELS="0")
    assert "FRONTIER_CPU_KERNELS=0" in off[0]
    no_compiler = run(PATH=str(empty), XDG_CACHE_HOME=str(tmp_path / "a"))
    assert "g++ was not found" in no_compiler[0]
    nowhere = run(XDG_CACHE_HOME=str(file))
    assert "was not compiled" in nowhere[0]
    for other in (off, no_compiler, nowhere):
        assert abs(other[2] / usual[2] - 1) < 1e-5


@needs_library
def test_compiled_once_by_processes_at_the_same_time(tmp_path: Path) -> None:
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    both = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [p.communicate(timeout=120)[0].split()[0] for p in both] == ["''", "''"]
    made = list((tmp_path / "frontier").iterdir())
    assert [p.suffix for p in made] == [".so"], "no folder is left behind"
    before = made[0].stat().st_mtime_ns
    assert run(XDG_CACHE_HOME=str(tmp_path))[0] == "''"
    assert made[0].stat().st_mtime_ns == before


def test_norms_keep_their_place_among_modules() -> None:
    assert isinstance(LayerNorm(8), nn.LayerNorm), "initial values are known by type"
