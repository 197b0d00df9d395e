"""AdamW as in MAE, its learning-rate schedule, and its state as plain named tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frontier.config.schema import TrainConfig

_MOMENTS = ("exp_avg", "exp_avg_sq")


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


def build_adamw(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (fused) with weight decay on matrices only; its moments exist from the start, at zero."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=config.betas, fused=True)
    for p in parameters:
        optimizer.state[p] = {
            "step": torch.zeros((), dtype=torch.float32, device=p.device),
            **{name: torch.zeros_like(p) for name in _MOMENTS},
        }
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def named_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that a checkpoint holds, by name: `model.<name>`, `optimizer.exp_avg.<name>`, …

    The tensors are the live ones (sharded where the strategy shards them), so loading into them restores the run.
    """
    state: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        state[f"model.{name}"] = parameter.detach()
        for moment in _MOMENTS:
            state[f"optimizer.{moment}.{name}"] = optimizer.state[parameter][moment]
    return state


def set_updates(optimizer: torch.optim.Optimizer, updates: int) -> None:
    """Restore AdamW's own step count (bias correction): updates made so far."""
    for state in optimizer.state.values():
        state["step"].fill_(updates)
