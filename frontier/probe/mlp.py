"""One hidden layer of 2,048 units on frozen features, as Scale-ALiBi's Table 2 has it, fitted with care.

The paper tells the width alone, and its figures lie below its own nearest neighbours', so that its features were hardly
standardised or its layer hardly trained. Here: features standardised by the training split, GELU, AdamW, and early stopping
by the loss on a validation split (`heads.fit`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .heads import HELD_OUT, fit, hold_out, loss_of, outputs_of
from .standardise import Features, standardise

HIDDEN = 2048


def probe(
    train: Features,
    targets: NDArray[Any],
    test: Features,
    seed: int,
    device: str | torch.device = "cpu",
    validation: tuple[Features, NDArray[Any]] | None = None,
) -> tuple[NDArray[Any], dict[str, Any]]:
    """The `mlp` method of the table, and how it was fitted.

    Targets: classes [n_train], 0..K-1 -> predicted classes [n_test]; labels [n_train, K] of 0 and 1 -> probabilities [n_test, K].
    `validation`: features and targets that stop the training; without, a fifth of the training split (`heads.hold_out`).
    """
    several = targets.ndim == 2
    if several:
        targets = targets.astype(np.float32)
    if validation is None:
        away = hold_out(np.zeros(len(targets), np.int64) if several else targets, seed)
        if not away.any():
            away[-1] = True
        validation = train[away], targets[away]
        train, targets, source = train[~away], targets[~away], f"{HELD_OUT:g} of training"
    else:
        validation, source = (validation[0], validation[1].astype(targets.dtype)), "split"
    scaled, held, tested = standardise(train, validation[0], test)
    outputs = targets.shape[1] if several else int(targets.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Sequential(nn.Linear(train.shape[1], HIDDEN), nn.GELU(), nn.Linear(HIDDEN, outputs))
    head.to(device)
    done = fit(head, loss_of(targets), (scaled, targets), (held, validation[1]), seed, device)
    found = outputs_of(head, tested, device)
    details = {"hidden": HIDDEN, **done, "validation": source, "n_val": len(held), "scaling": "standardised"}
    return (found.sigmoid() if several else found.argmax(1)).numpy(), details
