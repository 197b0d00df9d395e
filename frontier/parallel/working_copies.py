"""bf16 training on one rank, where there is nothing to gather or to reduce: FSDP's mixed precision without FSDP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def _together(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Copies of tensors as views of one block of memory."""
    sizes = [t.numel() for t in tensors]
    block = torch.empty(sum(sizes), dtype=dtype, device=tensors[0].device)
    copies = [part.view(t.shape) for part, t in zip(block.split(sizes), tensors, strict=True)]
    torch._foreach_copy_(copies, list(tensors))
    return copies


class _Copies(torch.autograd.Function):
    """Copies of tensors in another type; their gradients arrive in the type of the originals."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *originals: Tensor) -> tuple[Tensor, ...]:
        copies = _together(originals, dtype)
        ctx.dtype = originals[0].dtype
        ctx.set_materialize_grads(False)
        return tuple(copies)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        some = [g for g in grads if g is not None]
        made = iter(_together(some, ctx.dtype) if some else ())
        return None, *(None if g is None else next(made) for g in grads)


class WorkingCopies:
    """Copies of a module's parameters that stand in their places from a forward pass until the update.

    The parameters themselves stay as they are and get the gradients: the working copies are made of them anew for each forward
    pass, so gradients of several micro-batches add up in the parameters' own type.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
        for owner in module.modules():
            for name, parameter in owner._parameters.items():
                if parameter is not None:
                    places.setdefault(parameter, []).append((owner, name))
        self.parameters, self.places = list(places), list(places.values())

    def install(self) -> None:
        self._place(_Copies.apply(self.dtype, *self.parameters))

    def remove(self) -> None:
        self._place(self.parameters)

    def _place(self, tensors: Any) -> None:
        for tensor, places in zip(tensors, self.places, strict=True):
            for owner, name in places:
                owner._parameters[name] = tensor
