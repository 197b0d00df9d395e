"""Which parameters of a model are the encoder, the part that is kept after pretraining."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from frontier.errors import UserError

PARTS = ("encoder", "all")


def encoder_names(module: nn.Module) -> list[str]:
    """Names of the encoder's parameters, in the order of `named_parameters`.

    A model says so by a method `encoder_names() -> Iterable[str]`; without one they are those of its submodule `encoder`.

    Raises:
        UserError: the model has neither.
        ValueError: it names parameters that it does not have.
    """
    own = [name for name, _ in module.named_parameters()]
    if hasattr(module, "encoder_names"):
        named = set(cast(Any, module).encoder_names())
        unknown = sorted(named - set(own))
        if unknown:
            raise ValueError(f"{type(module).__name__}.encoder_names() gives {unknown[0]}, which is no parameter of it")
        return [name for name in own if name in named]
    if isinstance(getattr(module, "encoder", None), nn.Module):
        return [name for name in own if name.startswith("encoder.")]
    raise UserError(f"{type(module).__name__} models do not say which parameters are their encoder: use --part all")


def parameters(module: nn.Module, part: str) -> dict[str, Tensor]:
    """The parameters of a part, by name: float32, contiguous, without gradients."""
    chosen = set(encoder_names(module)) if part == "encoder" else None
    return {
        name: value.detach().float().contiguous()
        for name, value in module.named_parameters()
        if chosen is None or name in chosen
    }
