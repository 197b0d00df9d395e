"""The linear probe of the MAE paper (arXiv 2111.06377, appendix A.1): batch norm, linear layer, LARS.

The recipe, written for ImageNet: BatchNorm1d without affine parameters (eps 1e-6), a linear layer with
weights drawn from N(0, 0.01²), LARS with momentum 0.9, base rate 0.1 (rate = base · batch/256), no weight
decay, batch 16,384, 90 epochs of which 10 warm up linearly, then a cosine to zero.

Scaled to small sets (`Recipe.for_samples`): the batch is clipped to the training set and the rate follows it
by the same linear rule. 90 epochs would then be 90 steps at a small rate, and LARS changes a weight matrix by
a *relative* amount of 0.001 · rate / (1 - momentum) a step whatever the gradient, so the layer could not
leave its initial values of size 0.01. The number of epochs is therefore raised until the sum of rates over
steps reaches `RATE_BUDGET` = 500: the weights can then grow by exp(5), 150-fold. Sets of 32,768 images and
more have that in 90 epochs and keep them. Warm-up keeps its share of 1/9. As in MAE, an epoch leaves out the
images that fill no batch.

Without weight decay the budget acts as early stopping. 500 was chosen on EuroSAT images held out of training,
as the one of least worst regret against the `logistic` method over 32, 144 and 384 features and 20, 100 and
400 images a class: 350 leaves 32 features far from fitted (17 points behind), 1,400 lets a separable set of 200
fall apart (17 points), because the step of LARS does not shrink with the gradient. 500 is within 6 points
everywhere and within 1 with many features and images; on small sets trust `logistic`.

Features are computed once, so there is no augmentation (the paper crops and flips); every encoder is treated
alike.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .standardise import Features

BASE_RATE = 0.1
BATCH = 16_384
EPOCHS = 90
WARMUP_SHARE = 10 / 90
MOMENTUM = 0.9
TRUST = 0.001
RATE_BUDGET = 500.0


def lars_step(
    weight: Tensor,
    gradient: Tensor,
    momentum: Tensor,
    lr: float,
    beta: float = MOMENTUM,
    trust: float = TRUST,
    weight_decay: float = 0.0,
) -> None:
    """One step of layer-wise adaptive rate scaling (You et al., arXiv 1708.03888) as MAE uses it.

    For a weight w of two or more dimensions with gradient g: d = g + weight_decay·w, then d ← d · trust·|w|/|d|
    (left as it is where either norm is 0). Vectors (biases) use d = g. In both: m ← beta·m + d; w ← w - lr·m.
    `weight` and `momentum` (zeros at first) are changed in place.
    """
    momentum.mul_(beta)
    if weight.ndim > 1:
        direction = gradient.add(weight, alpha=weight_decay)
        size, slope = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(direction)
        ratio = torch.where((size > 0) & (slope > 0), trust * size / slope, 1.0)
        momentum.addcmul_(direction, ratio)
    else:
        momentum.add_(gradient)
    weight.sub_(momentum, alpha=lr)


@dataclass(frozen=True)
class Recipe:
    """Batch size in samples, peak rate, and whole numbers of epochs and steps of one linear probe."""

    batch: int
    rate: float
    epochs: int
    steps_per_epoch: int

    @classmethod
    def for_samples(cls, samples: int) -> "Recipe":
        """The recipe of this module for a training set of `samples` images."""
        batch = min(BATCH, samples)
        rate = BASE_RATE * batch / 256
        steps_per_epoch = samples // batch
        # A linear warm-up and a cosine both have half their peak as mean.
        epochs = max(EPOCHS, math.ceil(RATE_BUDGET / (0.5 * rate * steps_per_epoch)))
        return cls(batch, rate, epochs, steps_per_epoch)

    def rate_at(self, step: int) -> float:
        """Rate of step 0, 1, …: linear from 0 over the warm-up, then half a cosine down to 0."""
        progress = step / (self.epochs * self.steps_per_epoch)
        if progress < WARMUP_SHARE:
            return self.rate * progress / WARMUP_SHARE
        return self.rate * 0.5 * (1 + math.cos(math.pi * (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE)))


@torch.no_grad()
def probe(
    train: Features,
    targets: NDArray[Any],
    test: Features,
    seed: int,
    device: str | torch.device = "cpu",
    recipe: Recipe | None = None,
) -> tuple[NDArray[Any], dict[str, Any]]:
    """The `linear` method of the table, and the recipe that was used.

    Targets: classes [n_train] -> predicted classes [n_test], by softmax; labels [n_train, K] of 0 and 1 -> probabilities
    [n_test, K], by a sigmoid each (the same gradient of the binary cross-entropy, summed over the labels).
    """
    recipe = recipe or Recipe.for_samples(len(train))
    generator = torch.Generator().manual_seed(seed)
    features, known = torch.from_numpy(train).to(device), torch.from_numpy(targets)
    several = targets.ndim == 2
    answers = torch.sigmoid if several else _softmax
    labels = (known if several else F.one_hot(known)).to(device, torch.float32)
    norm = nn.BatchNorm1d(train.shape[1], affine=False, eps=1e-6).to(device)
    weight = torch.empty(labels.shape[1], train.shape[1]).normal_(0.0, 0.01, generator=generator).to(device)
    bias = torch.zeros(len(weight), device=device)
    weight_momentum, bias_momentum = torch.zeros_like(weight), torch.zeros_like(bias)
    whole = recipe.batch == len(train)
    if whole:
        # Every batch is the training set, so what batch norm makes of it, and its running averages in the
        # limit, are always the same: computed once, which saves most of the time.
        norm.momentum = None
        features = norm(features)
    step = 0
    for _ in range(recipe.epochs):
        order = None if whole else torch.randperm(len(train), generator=generator).to(device)
        for index in range(recipe.steps_per_epoch):
            if order is None:
                inputs, wanted = features, labels
            else:
                chosen = order[index * recipe.batch : (index + 1) * recipe.batch]
                inputs, wanted = norm(features[chosen]), labels[chosen]
            lr = recipe.rate_at(step)
            # Gradient of the mean cross-entropy by the logits, written out: small sets take thousands of
            # steps, in which autograd would take most of the time.
            slope = answers(torch.addmm(bias, inputs, weight.T)).sub_(wanted).div_(len(inputs))
            lars_step(weight, slope.T @ inputs, weight_momentum, lr)
            lars_step(bias, slope.sum(dim=0), bias_momentum, lr)
            step += 1
    norm.eval()
    logits = torch.addmm(bias, norm(torch.from_numpy(test).to(device)), weight.T).cpu()
    details = {"epochs": recipe.epochs, "steps": step, "batch": recipe.batch, "rate": recipe.rate}
    return (logits.sigmoid() if several else logits.argmax(dim=1)).numpy(), details


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=1)
