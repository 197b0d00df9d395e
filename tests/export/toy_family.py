"""A family that is no MAE: an encoder under another name, a weight used twice, and a head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from frontier.config.schema import Section
from frontier.models.linear import Linear
from frontier.models.registry import Family


class ToySection(Section):
    family: str = "toy"
    width: int = 8


class Toy(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(4, width))
        self.first = Linear(3, width)
        self.again = self.first
        self.head = Linear(width, 2)

    def initial_value(self, local_name: str, generator: torch.Generator) -> Tensor:
        return torch.empty(getattr(self, local_name).shape, device="cpu").normal_(generator=generator)

    def encoder_names(self) -> list[str]:
        return ["first.weight", "first.bias", "latents"]


class WithoutWord(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Linear(2, 2)


def _none(*args: Any) -> Any:
    raise NotImplementedError


FAMILY = Family(
    name="toy",
    config=ToySection,
    build=lambda section, images: Toy(section.width),
    feed=_none,
    shape=lambda config: None,
    flops=_none,
    encoder_parameters=_none,
    meta_inputs=_none,
)
