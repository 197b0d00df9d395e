"""AdamW as in MAE, and its learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from frontier.config.schema import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a half cosine to `min_lr` (MAE, util/lr_sched).

    lr(s) = peak (s + 1) / warmup                                              for s < warmup
    lr(s) = min_lr + (peak - min_lr) (1 + cos(pi (s - warmup) / (steps - warmup))) / 2   afterwards
    """

    peak: float
    min_lr: float
    warmup: int
    steps: int

    @classmethod
    def of(cls, config: TrainConfig, steps: int) -> Schedule:
        warmup = config.warmup_steps if config.warmup_steps is not None else round(0.05 * steps)
        return cls(config.base_lr * config.global_batch / 256, config.min_lr, min(warmup, steps), steps)

    def lr(self, step: int) -> float:
        """Of the step counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.min_lr + (self.peak - self.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class AdamW:
    """AdamW (arXiv 1711.05101) on the local parts of parameters, with weight decay on matrices only.

    The fused kernel of torch.optim, called on plain tensors: nothing of it depends on how parameters are sharded, and clipping
    and skipping happen inside the kernel, on the device. Moments exist from the start, at zero.
    """

    EPS = 1e-8

    def __init__(self, named: dict[str, nn.Parameter], config: TrainConfig) -> None:
        self.named, self.betas = named, config.betas
        decay = {name: config.weight_decay if p.ndim > 1 else 0.0 for name, p in named.items()}
        self.groups = {d: [n for n in named if decay[n] == d] for d in sorted(set(decay.values()))}
        with torch.no_grad():
            self.exp_avg = {name: torch.zeros_like(local(p)) for name, p in named.items()}
            self.exp_avg_sq = {name: torch.zeros_like(local(p)) for name, p in named.items()}
            self.updates = {name: torch.zeros((), device=local(p).device) for name, p in named.items()}

    @torch.no_grad()
    def step(self, lr: float, divide: Tensor, skip: Tensor) -> None:
        """One update with gradients divided by `divide`; none at all where `skip` is 1. Both are float32 scalars."""
        for decay, group in self.groups.items():
            names = [n for n in group if self.named[n].grad is not None]
            adamw(
                [local(self.named[n]) for n in names],
                [local(g) for n in names if (g := self.named[n].grad) is not None],
                [self.exp_avg[n] for n in names],
                [self.exp_avg_sq[n] for n in names],
                [],
                [self.updates[n] for n in names],
                fused=True,
                grad_scale=divide,
                found_inf=skip,
                amsgrad=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=lr,
                weight_decay=decay,
                eps=self.EPS,
                maximize=False,
            )

    def zero_grad(self) -> None:
        for p in self.named.values():
            p.grad = None

    def set_updates(self, updates: int) -> None:
        """Restore the count of updates made so far (bias correction)."""
        for count in self.updates.values():
            count.fill_(updates)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; a plain tensor as it is. Call it without gradients."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
