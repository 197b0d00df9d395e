"""Scale-ALiBi's attention under compilers, activation checkpointing and the count of memory, and how much memory it takes."""

from __future__ import annotations

import weakref
from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from frontier.models.attention import fused_on_meta
from frontier.parallel.apply import checkpoint_activations
from frontier.train.pass_on_meta import _Alive
from scale_alibi import attention_products, attention_table
from scale_alibi.attention import attend
from tests.scale_alibi.test_attention import close, problem, results


class Calls(TorchDispatchMode):
    """How often each operator runs."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[operator._schema.name] += 1
        return operator(*args, **(kwargs or {}))


class Unit(nn.Module):
    """q, k and v of a linear layer, attention, a function whose input is kept."""

    def __init__(self, rest: list[Tensor], backend: str, power: int = 1) -> None:
        super().__init__()
        self.qkv = nn.Linear(60, 180, bias=False)
        self.rest, self.backend, self.power = rest, backend, power

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 5, 12)).permute(2, 0, 3, 1, 4).unbind(0)
        out = attend(q, k, v, *self.rest, backend=self.backend, power=self.power)
        return torch.nn.functional.gelu(out.transpose(1, 2).flatten(2)).square()


@pytest.mark.parametrize("backend", ["products", "sdpa"])
def test_compiled_as_one_graph(backend: str) -> None:
    """The operator is opaque: it is in the graph, once, and the results are those of plain calls."""
    qkv, rest = problem()
    seen: list[str] = []

    def compiler(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    compiled = torch.compile(lambda *t: attend(*t, *rest, backend=backend), backend=compiler, fullgraph=True)
    qkv = [t.requires_grad_() for t in qkv]
    out = compiled(*qkv)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
    close([out.detach(), *torch.autograd.grad(out, qkv, upstream)], results(qkv, rest, backend=backend), 1e-6)
    assert sum("attention_products" in name for name in seen) == (backend == "products")
    compiled = torch.compile(lambda *t: attend(*t, *rest, backend=backend), backend="aot_eager", fullgraph=True)
    close(
        [out.detach(), *torch.autograd.grad(compiled(*qkv), qkv, upstream)], results(qkv, rest, backend=backend), 1e-6
    )


def test_operators_are_well_formed() -> None:
    """Schema, fake results and autograd registration, as PyTorch checks them."""
    for dtype in (torch.float32, torch.bfloat16):
        qkv, rest = problem(dtype=dtype)
        args = [*(t.requires_grad_() for t in qkv), *rest, 1]
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.scale_alibi.attention_products, args, test_utils=checks)
        out, logs = torch.ops.scale_alibi.attention_products(
            *(a.detach() if isinstance(a, Tensor) else a for a in args)
        )
        args = [torch.randn_like(out), *(t.detach() for t in qkv), *rest, out, logs, 1]
        torch.library.opcheck(torch.ops.scale_alibi.attention_products_backward, args, test_utils=checks)


@pytest.mark.parametrize(("kind", "times"), [("none", 1), ("selective", 1), ("full", 2)])
def test_checkpointing(kind: str, times: int) -> None:
    """Selective checkpointing keeps the result of the operator; full checkpointing runs it again; gradients are the same."""
    _, rest = problem(2, 5, 9, 9)
    torch.manual_seed(0)
    units = [Unit(rest, "products"), Unit(rest, "products")]
    units[1].load_state_dict(units[0].state_dict())
    x = torch.randn(2, 9, 60)
    if kind != "none":
        checkpoint_activations([units[1]], kind)
    units[0](x).sum().backward()
    with Calls() as calls:
        units[1](x).sum().backward()
    assert calls.count["scale_alibi::attention_products"] == times
    assert calls.count["scale_alibi::attention_products_backward"] == 1
    torch.testing.assert_close(units[0].qkv.weight.grad, units[1].qkv.weight.grad)


class Largest(TorchDispatchMode):
    """The most elements of any tensor made, and the most bytes alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = self.now = self.peak = 0
        self.alive: dict[int, Any] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.elements = max(self.elements, storage.nbytes() // tensor.itemsize)
                key = storage._cdata
                if key not in self.alive:
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    self.alive[key] = weakref.ref(storage, partial(self.gone, key, storage.nbytes()))
        return result

    def gone(self, key: int, size: int, _reference: Any) -> None:
        self.now -= size
        del self.alive[key]


@pytest.mark.parametrize(("backend", "power"), [("products", 1), ("products", 2), ("sdpa", 1), ("augmented", 2)])
def test_no_table_of_tokens_squared(backend: str, power: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a tensor as large as tokens^2 of one sample is ever made, nor are that many bytes alive; eager makes both."""
    tokens = 1024
    monkeypatch.setattr(attention_products, "SCORES_A_THREAD", 2**16 // torch.get_num_threads())
    monkeypatch.setattr(attention_table, "MASK_BYTES", 2**18)
    qkv, rest = problem(1, 2, tokens, tokens, 8)

    def measure(name: str) -> Largest:
        with Largest() as seen:
            if name == "products":  # not as operators, which are not seen into
                out, logs = attention_products.forward_pass(*qkv, *rest, power)
                attention_products.backward_pass(out, *qkv, *rest, out, logs, power)
            else:
                results(qkv, rest, backend=name, power=power)
        return seen

    table = measure("eager")
    assert table.elements >= 2 * tokens**2
    seen = measure(backend)
    assert seen.elements < tokens**2 / 4
    assert seen.peak < 4 * tokens**2 < table.peak / 4


@pytest.mark.parametrize("backend", ["auto", "eager", "sdpa", "products", "augmented"])
@pytest.mark.parametrize("keys", [9, 14])
def test_memory_on_meta(backend: str, keys: int) -> None:
    """What is alive between the passes, counted on meta as for a CPU, is what is alive after a real forward pass."""
    power = 2 if backend == "augmented" else 1
    kept = []
    for device in ("cpu", "meta"):
        qkv, rest = problem(2, 5, 9, keys)
        qkv = [t.to(device).requires_grad_() for t in qkv]
        rest = [t.to(device) for t in rest]
        with fused_on_meta("cpu"), _Alive([*qkv, *rest]) as alive:
            out = attend(*qkv, *rest, backend=backend, power=power)
            kept.append(alive.now)
            gradients = torch.autograd.grad(out.square().sum(), qkv)
            assert [g.shape for g in gradients] == [t.shape for t in qkv]
            del out, gradients
            assert alive.now == 0
    assert kept[1] == pytest.approx(kept[0], rel=0.1)


@pytest.mark.parametrize(("backend", "power"), [("sdpa", 1), ("flex", 1), ("augmented", 2)])
def test_memory_on_meta_of_a_gpu(backend: str, power: int) -> None:
    """q, k, v and the places are there before; kept are the output, the logarithms, and a mask or copies with further dims."""
    qkv, rest = problem(2, 5, 16, 24, 48, torch.bfloat16)
    qkv = [t.to("meta").requires_grad_() for t in qkv]
    rest = [t.to("meta") for t in rest]
    with fused_on_meta("cuda"), _Alive([*qkv, *rest]) as alive:
        out = attend(*qkv, *rest, backend=backend, power=power)
        kept = alive.now
    del out
    logs = 2 * 5 * 16 * 4
    dims = 2 * 2 * 5 * (48 + 11 + 5)  # bytes of a token: 11 further dims, padded to a multiple of 8
    right = {"sdpa": 2 * 2 * 5 * 16 * (48 + 24) + logs, "flex": 2 * 2 * 5 * 16 * 48 + logs}
    assert kept == right.get(backend, dims * (16 + 16 + 24 + 24) + logs)
