"""Every backend of Scale-ALiBi's attention against the formula, written as a loop, and against each other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from frontier.errors import UserError
from scale_alibi import attention_products, attention_table
from scale_alibi.attention import BACKENDS, attend, check_backend, check_possible, choose
from scale_alibi.attention_flex import uncompiled
from scale_alibi.geometry import patch_centres, slopes

CPU_BACKENDS = [
    ("eager", 1),
    ("sdpa", 1),
    ("products", 1),
    ("eager", 2),
    ("sdpa", 2),
    ("products", 2),
    ("augmented", 2),
]


def problem(
    batch: int = 2,
    heads: int = 5,
    queries: int = 37,
    keys: int = 50,
    dim: int = 12,
    dtype: torch.dtype = torch.float32,
    places: int | None = None,
    size: float = 1.0,
    spread: float = 12.0,
) -> tuple[list[Tensor], list[Tensor]]:
    """([q, k, v], [q_at, k_at, slopes]); q, k and v with tokens outside and heads inside, as a linear layer gives them."""
    random = torch.Generator().manual_seed(batch + heads + queries + keys)
    q, k, v = (
        (size * torch.randn(batch, n, heads, dim, generator=random)).to(dtype).transpose(1, 2)
        for n in (queries, keys, keys)
    )
    at = [spread * torch.rand(places or batch, n, 2, generator=random) for n in (queries, keys)]
    return [q, k, v], [*at, slopes(heads)]


def results(qkv: list[Tensor], rest: list[Tensor], **options: Any) -> list[Tensor]:
    """Output and gradients of q, k and v for a fixed random gradient of the output."""
    qkv = [t.detach().clone().requires_grad_() for t in qkv]
    out = attend(*qkv, *rest, **options)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, qkv, upstream)]


def exact(qkv: list[Tensor], rest: list[Tensor], power: int) -> list[Tensor]:
    return results([t.double() for t in qkv], [t.double() for t in rest], power=power, backend="eager")


def close(found: list[Tensor], right: list[Tensor], allowed: float) -> None:
    """Each within so much of its norm."""
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, right, strict=False):
        off = float((a.double() - b.double()).norm() / b.double().norm())
        assert off <= allowed, f"{name} off by {off:.2e}"


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that end inside the heads and sequences of `problem`."""
    monkeypatch.setattr(attention_products, "SCORES_A_THREAD", 500)
    monkeypatch.setattr(attention_table, "MASK_BYTES", 2 * 5 * 8 * 50 * 4)


@pytest.mark.parametrize("power", [1, 2])
def test_eager_is_the_formula(power: int) -> None:
    (q, k, v), (q_at, k_at, m) = problem(1, 3, 4, 6, 5)
    out = attend(*(t.double() for t in (q, k, v, q_at, k_at, m)), power=power, backend="eager")
    for h in range(3):
        for i in range(4):
            weights = []
            for j in range(6):
                product = sum(float(q[0, h, i, c]) * float(k[0, h, j, c]) for c in range(5))
                distance = math.dist(q_at[0, i].tolist(), k_at[0, j].tolist())
                weights.append(math.exp(product / math.sqrt(5) - float(m[h]) * distance**power))
            for c in range(5):
                right = sum(w * float(v[0, h, j, c]) for j, w in enumerate(weights)) / sum(weights)
                assert float(out[0, h, i, c]) == pytest.approx(right, rel=1e-12)


@pytest.mark.parametrize(("backend", "power"), CPU_BACKENDS)
@pytest.mark.parametrize("places", [1, 2])
def test_backends_in_float32(backend: str, power: int, places: int) -> None:
    qkv, rest = problem(places=places)
    close(results(qkv, rest, power=power, backend=backend), exact(qkv, rest, power), 5e-6)


@pytest.mark.parametrize(("backend", "power"), [(b, p) for b, p in CPU_BACKENDS if b in ("sdpa", "products")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("small_chunks")
def test_chunks(backend: str, power: int, dtype: torch.dtype) -> None:
    qkv, rest = problem(dtype=dtype)
    allowed = 5e-6 if dtype == torch.float32 else 6e-3
    close(results(qkv, rest, power=power, backend=backend), exact(qkv, rest, power), allowed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scores", [50, 500, 2000, 9250, 10**6])
def test_chunks_cover_everything_once(scores: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_products, "SCORES_A_THREAD", scores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    (q, k, _), _ = problem(dtype=dtype)
    chunks = attention_products._Chunks.of(q, k)
    times, largest = torch.zeros(2, 5, 37), 0
    for block in chunks.blocks(q):
        part = times[block]
        for heads in attention_products._cut(part.shape[1], chunks.heads):
            for rows in attention_products._cut(37, chunks.rows):
                part[:, heads, rows] += 1
                largest = max(largest, part[:, heads, rows].numel() * 50)
    assert bool((times == 1).all())
    assert largest <= chunks.scores <= max(scores, 50)


@pytest.mark.parametrize(("backend", "power"), CPU_BACKENDS)
def test_backends_in_bf16(backend: str, power: int) -> None:
    """bf16 numbers are exact to 2^-9; sums of many such roundings in the gradients stay below 3 of them."""
    qkv, rest = problem(queries=70, keys=90, dim=48, dtype=torch.bfloat16)
    close(results(qkv, rest, power=power, backend=backend), exact(qkv, rest, power), 6e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_scores(dtype: torch.dtype) -> None:
    """Scores in the hundreds: exp of them overflows, so the maximum has to be taken off."""
    qkv, rest = problem(size=12.0, dtype=dtype, dim=48)
    assert float((qkv[0].float() @ qkv[1].float().transpose(-1, -2)).amax()) / 48**0.5 > 200
    right = exact(qkv, rest, 1)
    close(results(qkv, rest, backend="products"), right, 1e-4 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("power", [1, 2])
def test_places_far_apart(power: int) -> None:
    """Where every key is far from every query all biases are large: differences of them count alone."""
    qkv, (q_at, k_at, m) = problem()
    rest = [q_at + 500.0, k_at, m]
    close(results(qkv, rest, power=power, backend="products"), exact(qkv, rest, power), 1e-4 if power == 1 else 2e-2)


def test_masked_tokens_are_rows_of_the_whole() -> None:
    """Tokens gathered with their places, each sample its own: the biases are those entries of the table of all tokens."""
    gsd = torch.tensor([[10.0, 10.0], [7.0, 9.0]])
    at = patch_centres(6, 8, gsd, reference_m=80.0)
    (q, k, v), _ = problem(2, 4, 36, 36)
    m = slopes(4)
    kept = torch.stack([torch.randperm(36, generator=torch.Generator().manual_seed(s))[:14] for s in range(2)])
    table = attention_table.biases(at, at, m, 1)
    rows = kept[:, None, :, None].expand(-1, 4, -1, 36)
    bias = table.gather(2, rows).gather(3, kept[:, None, None, :].expand(-1, 4, 14, -1))
    tokens = kept[:, None, :, None].expand(-1, 4, -1, 12)
    q, k, v = (t.gather(2, tokens) for t in (q, k, v))
    at = at.gather(1, kept[..., None].expand(-1, -1, 2))
    right = torch.softmax(q @ k.transpose(-1, -2) / 12**0.5 + bias, -1) @ v
    for backend in ("eager", "sdpa", "products"):
        close([attend(q, k, v, at, at, m, backend=backend)], [right], 1e-6)


def test_one_place_for_all_samples() -> None:
    qkv, (q_at, k_at, m) = problem(3, places=1)
    for backend, power in CPU_BACKENDS:
        one = results(qkv, [q_at, k_at, m], power=power, backend=backend)
        each = results(qkv, [q_at.expand(3, -1, -1), k_at.expand(3, -1, -1), m], power=power, backend=backend)
        close(one, each, 1e-6)


@pytest.mark.parametrize("power", [1, 2])
def test_only_distances_and_slopes_matter(power: int) -> None:
    """Moved, turned and mirrored ground changes nothing; nor do places scaled by a and slopes by 1 / a^power."""
    qkv, (q_at, k_at, m) = problem()
    for backend in ("sdpa", "products", *(("augmented",) if power == 2 else ())):
        right = results(qkv, [q_at, k_at, m], power=power, backend=backend)
        moved = [torch.tensor([3.0, -2.0]) - at.flip(-1) for at in (q_at, k_at)]
        close(results(qkv, [*moved, m], power=power, backend=backend), right, 1e-5)
        scaled = [4 * q_at, 4 * k_at, m / 4**power]
        close(results(qkv, scaled, power=power, backend=backend), right, 1e-5)


def test_squared_distance_in_bf16_is_as_near_as_a_mask() -> None:
    """On 64 x 64 patches squares reach 8,000, where bf16 has steps of 32; the split dims keep the bias of the nearest keys."""
    at = patch_centres(64, 8, torch.tensor([[10.0, 10.0]]), 80.0)
    (q, k, v), _ = problem(1, 4, 4096, 64, 48, torch.bfloat16)
    q, q_at, k_at = q[:, :, ::41], at[:, ::41], at[:, ::64]
    right = exact([q, k, v], [q_at, k_at, slopes(4)], 2)
    close(results([q, k, v], [q_at, k_at, slopes(4)], power=2, backend="augmented"), right, 8e-3)


def test_flex_forward() -> None:
    """Its own maths on a CPU, where it has a forward pass alone."""
    qkv, rest = problem(queries=33, keys=40, dim=16)
    for power in (1, 2):
        with torch.no_grad():
            out = uncompiled(*qkv, *rest, power)
        close([out], exact(qkv, rest, power)[:1], 2e-6)


def test_autocast() -> None:
    """q, k and v in bf16, places in float32: as bf16 without autocast."""
    qkv, rest = problem(dim=48)
    low = [t.bfloat16() for t in qkv]
    for backend, power in (("products", 1), ("sdpa", 1), ("eager", 1), ("augmented", 2)):
        right = attend(*low, *rest, power=power, backend=backend)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for given in (low, qkv):
                out = attend(*given, *rest, power=power, backend=backend)
                assert out.dtype == torch.bfloat16 and torch.equal(out, right)


def test_what_auto_chooses() -> None:
    def of(tokens: int, dtype: torch.dtype, device_type: str, power: int = 1) -> str:
        q = torch.empty(1, 16, tokens, 48, dtype=dtype, device="meta")
        return choose(q, q, power, device_type)

    assert of(64, torch.float32, "cpu") == "sdpa"
    assert (
        of(1024, torch.float32, "cpu") == of(64, torch.bfloat16, "cpu") == of(64, torch.float32, "cpu", 2) == "products"
    )
    assert of(256, torch.bfloat16, "cuda") == "sdpa"
    assert of(4096, torch.bfloat16, "cuda") == "flex"
    assert of(4096, torch.bfloat16, "cuda", 2) == "augmented"


def test_what_is_refused() -> None:
    qkv, rest = problem()
    for backend, words in (
        ("flax", "no such backend"),
        ("flex", "no backward pass on a CPU"),
        ("augmented", "gaussian"),
    ):
        with pytest.raises(UserError, match=words) as told:
            attend(*qkv, *rest, backend=backend)
        assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="made for CPUs"):
        check_possible("products", 1, "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_self_check(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    check_backend.cache_clear()
    check_backend(cpu, dtype, "auto")
    check_backend(cpu, dtype, "auto", 2)
    calls = check_backend.cache_info().misses
    check_backend(cpu, dtype, "auto")
    assert check_backend.cache_info().misses == calls

    def wrong(q: Tensor, k: Tensor, v: Tensor, q_at: Tensor, k_at: Tensor, m: Tensor, power: int) -> Tensor:
        return attention_table.sdpa(q, k, v, q_at, k_at, m.flip(0), power)

    def broken(*_args: Any) -> Tensor:
        raise RuntimeError("no kernel image\nis available")

    for backend, words in ((wrong, "wrong results"), (broken, "no kernel image")):
        check_backend.cache_clear()
        monkeypatch.setitem(BACKENDS, "products", backend)
        with pytest.raises(UserError, match=words) as told:
            check_backend(cpu, dtype, "products")
        assert "\n" not in str(told.value) and "set model.attention=sdpa" in str(told.value)
    check_backend.cache_clear()
