"""Scale-ALiBi's attention on a GPU: every backend against the float64 formula, forward and backward."""

from __future__ import annotations

import pytest
import torch

from scale_alibi.attention import attend, check_backend
from scale_alibi.geometry import patch_centres, slopes
from tests.scale_alibi.test_attention import close, exact, problem, results

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]
GPU_BACKENDS = [("eager", 1), ("sdpa", 1), ("flex", 1), ("sdpa", 2), ("flex", 2), ("augmented", 2), ("auto", 1)]


@pytest.mark.parametrize(("backend", "power"), GPU_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backends(backend: str, power: int, dtype: torch.dtype) -> None:
    """Self- and cross-attention of lengths that fit no block, places of each sample and one for all, two head dims."""
    allowed = 1e-3 if dtype == torch.float32 else 2e-2
    for queries, keys, dim, places in ((300, 300, 48, 2), (150, 611, 48, 1), (150, 611, 44, 2)):
        qkv, rest = problem(2, 5, queries, keys, dim, dtype, places)
        right = exact(qkv, rest, power)
        found = results([t.cuda() for t in qkv], [t.cuda() for t in rest], power=power, backend=backend)
        close([t.cpu() for t in found], right, allowed)


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_masked_tokens_are_rows_of_the_whole(backend: str) -> None:
    at = patch_centres(32, 8, torch.tensor([[10.0, 10.0], [7.0, 9.0]]), 80.0)
    (q, k, v), _ = problem(2, 4, 1024, 1024, 48, torch.bfloat16)
    kept = torch.stack([torch.randperm(1024, generator=torch.Generator().manual_seed(s))[:614] for s in range(2)])
    q, k, v = (t.gather(2, kept[:, None, :, None].expand(-1, 4, -1, 48)) for t in (q, k, v))
    rest = [*[at.gather(1, kept[..., None].expand(-1, -1, 2))] * 2, slopes(4)]
    found = results([t.cuda() for t in (q, k, v)], [t.cuda() for t in rest], backend=backend)
    close([t.cpu() for t in found], exact([q, k, v], rest, 1), 2e-2)


def test_sizes_that_change_compile_twice_at_most() -> None:
    """The second batch size or length makes the kernel's sizes variables; the third compiles nothing."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    for number, (batch, tokens) in enumerate(((2, 300), (3, 411), (4, 523), (5, 600))):
        qkv, rest = problem(batch, 4, tokens, tokens, 48, torch.bfloat16)
        before = counters["stats"]["unique_graphs"]
        results([t.cuda() for t in qkv], [t.cuda() for t in rest], backend="flex")
        assert number < 2 or counters["stats"]["unique_graphs"] == before


def test_flex_holds_no_table() -> None:
    qkv, rest = problem(1, 16, 4096, 4096, 48, torch.bfloat16)
    qkv, rest = [t.cuda() for t in qkv], [t.cuda() for t in rest]
    results(qkv, rest, backend="flex")
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results(qkv, rest, backend="flex")
    assert torch.cuda.max_memory_allocated() - held < 4096**2 * 4


def test_flex_in_a_compiled_unit() -> None:
    qkv, rest = problem(2, 4, 256, 256, 48, torch.bfloat16)
    qkv, rest = [t.cuda() for t in qkv], [t.cuda() for t in rest]
    compiled = torch.compile(lambda q, k, v: attend(q, k, v, *rest, backend="flex") * 2, dynamic=False)
    close([compiled(*qkv) / 2], [attend(*qkv, *rest, backend="eager")], 2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("power", [1, 2])
def test_self_check(dtype: torch.dtype, power: int) -> None:
    check_backend(torch.device("cuda"), dtype, "auto", power)
