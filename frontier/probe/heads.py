"""Training a small head on frozen features until a validation split says stop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .standardise import Features

RATE = 3e-4
WEIGHT_DECAY = 0.05
BATCH = 256
EPOCHS = 100
PATIENCE = 5
HELD_OUT = 0.2
"""Share of the training split that validates where there is no split for that."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs [B, K], targets) -> mean over the rows."""


def share_loss(outputs: Tensor, shares: Tensor) -> Tensor:
    """Cross-entropy against shares [B, K] of the classes; rows that sum to less than 1 count for less."""
    return -(outputs.log_softmax(1) * shares).sum(1).mean()


def loss_of(targets: NDArray[Any]) -> Loss:
    """Cross-entropy of classes [n], or the sum over the labels [n, K] of 0 and 1 of the binary cross-entropy."""
    if targets.ndim == 1:
        return F.cross_entropy
    return lambda outputs, truth: F.binary_cross_entropy_with_logits(outputs, truth, reduction="sum") / len(truth)


def hold_out(strata: NDArray[np.int64], seed: int, share: float = HELD_OUT) -> NDArray[np.bool_]:
    """Which of the samples [n] validate: about `share` of every stratum (class), at random by `seed`.

    A class of one sample stays in training.
    """
    order = np.random.default_rng(seed).permutation(len(strata))
    away = np.zeros(len(strata), bool)
    for stratum in np.unique(strata):
        members = order[strata[order] == stratum]
        away[members[: round(share * len(members))]] = len(members) > 1
    return away


def fit(
    head: nn.Module,
    loss: Loss,
    train: tuple[Features, NDArray[Any]],
    validation: tuple[Features, NDArray[Any]],
    seed: int,
    device: str | torch.device,
    rate: float = RATE,
) -> dict[str, Any]:
    """Train `head` in place on (features [n, F], targets) and leave it in its best state on `validation`; says how it went.

    AdamW at the constant `rate` in batches of min(256, n / 8); after each epoch the loss on `validation` is taken, and five epochs
    without a new least one, or a hundred in all, end it. The order of samples depends on `seed` alone.
    """
    inputs, targets = (torch.from_numpy(part).to(device) for part in train)
    held, truth = (torch.from_numpy(part).to(device) for part in validation)
    batch = max(1, min(BATCH, len(inputs) // 8))
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(seed)
    least, best, state, epoch = float("inf"), 0, copy.deepcopy(head.state_dict()), 0
    while epoch < EPOCHS and epoch - best < PATIENCE:
        head.train()
        for chosen in torch.randperm(len(inputs), generator=generator).to(device).split(batch):
            optimizer.zero_grad()
            loss(head(inputs[chosen]), targets[chosen]).backward()
            optimizer.step()
        epoch += 1
        found = _mean_loss(head, loss, held, truth)
        if found < least:
            least, best, state = found, epoch, copy.deepcopy(head.state_dict())
    head.load_state_dict(state)
    head.eval()
    return {"epochs": epoch, "best_epoch": best, "batch": batch, "rate": rate, "weight_decay": WEIGHT_DECAY}


@torch.no_grad()
def _mean_loss(head: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, batch: int = 4096) -> float:
    head.eval()
    parts = zip(inputs.split(batch), targets.split(batch), strict=True)
    return sum(float(loss(head(x), t)) * len(x) for x, t in parts) / len(inputs)


@torch.no_grad()
def outputs_of(head: nn.Module, inputs: Features, device: str | torch.device, batch: int = 4096) -> Tensor:
    """[n, K] on the CPU of features [n, F]."""
    return torch.cat([head(part.to(device)).cpu() for part in torch.from_numpy(inputs).split(batch)])
