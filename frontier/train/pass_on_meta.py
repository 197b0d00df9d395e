"""Forward and backward pass of one micro-batch on meta tensors, and how much of them is alive when: nothing is computed."""

from __future__ import annotations

import copy
import weakref
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from frontier.models.attention import fused_on_meta
from frontier.parallel.apply import ShardUnits, checkpoint_activations
from frontier.parallel.footprint import ROOT, Phase
from frontier.parallel.tensor import planned_modules


class _Alive(TorchDispatchMode):
    """Bytes of all tensors made under it that are alive, and the most since `mark`."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.known = {t.untyped_storage()._cdata for t in known}
        self.references: dict[int, weakref.ref] = {}
        self.now = self.peak = 0

    def mark(self) -> None:
        self.peak = self.now

    def _gone(self, key: int, _reference: Any) -> None:
        self.now -= self.sizes.pop(key)
        del self.references[key]

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.sizes and key not in self.known:
                    self.sizes[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.references[key] = weakref.ref(storage, partial(self._gone, key))
        self.peak = max(self.peak, self.now)
        return result


class _Exchange(torch.autograd.Function):
    """What enters or leaves a module that a tensor group splits: `times` as many samples; the reverse in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, times: float) -> Tensor:
        ctx.shape = x.shape
        return x.new_empty(round(x.shape[0] * times), *x.shape[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.new_empty(ctx.shape), None


def split_for_one_rank(model: nn.Module, tensor: int, sequence_parallel: bool) -> nn.Module:
    """What a rank of a tensor group of so many holds and does of `model` (on meta, changed in place): see
    `frontier.parallel.tensor`.
    """
    times = tensor if sequence_parallel else 1

    def enter(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_Exchange.apply(a, times) if isinstance(a, Tensor) else a for a in args)

    def leave(_layer: nn.Module, _args: Any, out: Tensor) -> Tensor:
        return cast(Tensor, _Exchange.apply(out, 1 / times))

    for _, part, plan in planned_modules(model) if tensor > 1 else ():
        for name in (*plan.column, *plan.row):
            layer = getattr(part, name)
            if layer is None:
                continue
            rows, columns = layer.weight.shape
            column = name in plan.column
            shape = (rows // tensor, columns) if column else (rows, columns // tensor)
            layer.weight = nn.Parameter(layer.weight.new_empty(shape))
            if column and layer.bias is not None:
                layer.bias = nn.Parameter(layer.bias.new_empty(shape[0]))
            if not column:
                layer.register_forward_hook(leave)
        split = getattr(part, "split", None)
        if split is not None:
            split(0, tensor)
        part.register_forward_pre_hook(enter)
    return model


def trace(
    model: nn.Module,
    inputs: dict[str, Any],
    precision: str,
    checkpointing: str,
    gradients: bool = True,
    device_type: str = "cuda",
) -> list[Phase]:
    """The phases of a forward and a backward pass of `model`, which stays as it is.

    Args:
        inputs: of its forward, on meta; they do not count.
        gradients: those of a unit stay until it is through; else each goes as it is there.
        device_type: whose attention kernels to count.
    """
    model = copy.deepcopy(model)
    if precision == "bf16":
        parameters = dict(model.named_parameters())
        for parameter in parameters.values():
            parameter.data = parameter.data.to(torch.bfloat16)  # buffers stay in float32, as under FSDP
    units = cast(ShardUnits, model).shard_units()
    if checkpointing != "none":
        checkpoint_activations(units, checkpointing)
    alive = _Alive([*model.parameters(), *model.buffers(), *(t for t in tree_leaves(inputs) if isinstance(t, Tensor))])
    phases: list[Phase] = []
    current: list[Any] = ["forward", ROOT, 0]

    def turn(kind: str, unit: int) -> None:
        """The current phase ends, another begins."""
        phases.append(Phase(current[0], current[1], current[2], alive.peak))
        alive.mark()
        current[:] = [kind, unit, alive.now]

    def through(number: int, unit: nn.Module) -> None:
        turn("backward", ROOT)
        phases.append(Phase("reduce", number, alive.now, alive.now))
        for parameter in unit.parameters():
            parameter.grad = None
        alive.mark()
        current[2] = alive.now

    def watch(number: int, unit: nn.Module) -> None:
        def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            turn("forward", number)
            own = args[0].view_as(args[0])  # its hook comes before those of the unit that made it
            own.register_hook(lambda _grad: through(number, unit))
            return own, *args[1:]

        def after(_module: nn.Module, _args: Any, out: Tensor) -> None:
            turn("forward", ROOT)
            out.register_hook(lambda _grad: turn("backward", number))

        unit.register_forward_pre_hook(before)
        unit.register_forward_hook(after)

    for number, unit in enumerate(units):
        watch(number, unit)
    if not gradients:
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with fused_on_meta(device_type), alive:
        loss = model(**inputs)["loss"]
        turn("backward", ROOT)
        loss.backward()
        turn("reduce", ROOT)
        turn("reduce", ROOT)
    return phases
