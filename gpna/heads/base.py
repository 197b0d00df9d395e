"""What all task heads share."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from frontier.errors import UserError


class Head(nn.Module):
    """Latents -> outputs, a loss for each sample, predictions. Parameters are used in `forward` alone.

    `forward(latents [n, M, D], ...)` takes the samples of its task, of which there may be none; all parameters take part in each
    forward pass, so that each gets a gradient (0 where no label is known). `loss(outputs, target, ...)` is [n] float32, exactly 0 where
    a sample has no label. `predict(outputs, ...)` is what the task's user wants, in the user's units.
    """

    gathered_once: ClassVar[bool] = True
    """Sharding: its parameters are whole throughout a step (they are not cut into units of their own)."""

    def loss(self, outputs: Any, target: Any) -> Tensor:
        raise NotImplementedError

    def predict(self, outputs: Any) -> Any:
        raise NotImplementedError


class LearnedQuery(nn.Module):
    """One learned vector [1, D]: the query of classification and regression (7.1.2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(1, width))

    def initial_value(self, local_name: str, generator: torch.Generator) -> Tensor:
        """N(0, 0.02**2), as Perceiver IO's learned arrays."""
        return torch.empty(self.value.shape, device="cpu").normal_(0.0, 0.02, generator=generator)

    def forward(self) -> Tensor:
        return self.value


def settled(task: Any, name: str) -> int:
    """A size that the task's labels tell. Raises UserError where it is not known yet."""
    value = getattr(task, name)
    if value is None:
        raise UserError(f"task on {task.target}: {name} is not known: give it, or let the run's data tell")
    return value


def constant(values: list[float]) -> Tensor:
    """float32 [K] on the CPU."""
    return torch.tensor(values, dtype=torch.float32, device="cpu")


def known_mean(values: Tensor, known: Tensor) -> Tensor:
    """Mean of values [n, ...] where known [n, ...], one number a sample [n]; 0 without any."""
    values, known = values.flatten(1), known.flatten(1)
    return torch.where(known, values, 0.0).sum(1) / known.sum(1).clamp(min=1)
