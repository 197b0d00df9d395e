"""Heads with one learned query: classification, multilabel classification, regression (7.1.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gpna.head_sections import ClassificationTask, MultilabelTask, RegressionTask
from gpna.heads.base import Head, LearnedQuery, constant, known_mean, settled
from gpna.query_attention import QueryDecoder


class VectorHead(Head):
    """One learned query -> cross-attention -> MLP -> K outputs of a sample."""

    def __init__(self, width: int, outputs: int, attention_heads: int, hidden: int | None) -> None:
        super().__init__()
        self.query = LearnedQuery(width)
        self.decoder = QueryDecoder(width, attention_heads, outputs, hidden=hidden)

    def forward(self, latents: Tensor) -> Tensor:
        """latents [n, M, D] -> outputs [n, K]."""
        return self.decoder(self.query(), latents).squeeze(1)


class Classification(VectorHead):
    """One of K classes. Target [n] int, negative = missing."""

    class_weights: Tensor | None

    def __init__(self, width: int, task: ClassificationTask) -> None:
        classes = settled(task, "classes")
        super().__init__(width, classes, task.attention_heads, task.hidden)
        self.task = task
        weights = None if task.class_weights is None else torch.empty(classes)
        self.register_buffer("class_weights", weights, persistent=False)

    def initial_buffer(self, local_name: str) -> Tensor:
        return constant(self.task.class_weights or [])

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Cross entropy of logits [n, K], times the weight of the true class: [n], not divided by the sum of the weights."""
        return F.cross_entropy(
            outputs.float(),
            target.long().clamp(min=-1),
            weight=self.class_weights,
            ignore_index=-1,
            reduction="none",
            label_smoothing=self.task.label_smoothing,
        )

    def predict(self, outputs: Tensor) -> Tensor:
        """Probabilities [n, K]."""
        return outputs.float().softmax(-1)


class Multilabel(VectorHead):
    """K yes-or-no labels. Target [n, K], 1 = yes, 0 = no; negative or NaN = missing."""

    class_weights: Tensor | None

    def __init__(self, width: int, task: MultilabelTask) -> None:
        classes = settled(task, "classes")
        super().__init__(width, classes, task.attention_heads, task.hidden)
        self.task = task
        weights = None if task.class_weights is None else torch.empty(classes)
        self.register_buffer("class_weights", weights, persistent=False)

    def initial_buffer(self, local_name: str) -> Tensor:
        return constant(self.task.class_weights or [])

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Binary cross entropy of logits [n, K], times the labels' weights, meaned over the known labels of a sample: [n]."""
        target = target.float()
        known = target >= 0
        smoothing = self.task.label_smoothing
        asked = torch.where(known, target * (1 - smoothing) + smoothing / 2, 0.0)
        error = F.binary_cross_entropy_with_logits(outputs.float(), asked, weight=self.class_weights, reduction="none")
        return known_mean(error, known)

    def predict(self, outputs: Tensor) -> Tensor:
        """Probability of each label [n, K]."""
        return outputs.float().sigmoid()


class Regression(VectorHead):
    """K numbers. Target [n, K] in physical units, NaN or infinite = missing; standardised by the task's mean and std."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, task: RegressionTask) -> None:
        task.require_statistics()
        outputs = task.outputs or len(task.mean or [])
        super().__init__(width, outputs, task.attention_heads, task.hidden)
        self.task = task
        self.register_buffer("mean", torch.empty(outputs), persistent=False)
        self.register_buffer("std", torch.empty(outputs), persistent=False)

    def initial_buffer(self, local_name: str) -> Tensor:
        return constant((self.task.mean if local_name == "mean" else self.task.std) or [])

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Squared or Huber error in standard deviations, meaned over the known outputs of a sample: [n]."""
        target = target.float().reshape(outputs.shape)
        known = target.isfinite()
        asked = (torch.where(known, target, self.mean) - self.mean) / self.std
        return known_mean(regression_error(outputs.float(), asked, self.task.loss, self.task.huber_delta), known)

    def predict(self, outputs: Tensor) -> Tensor:
        """Numbers in the target's units [n, K]."""
        return outputs.float() * self.std + self.mean


def regression_error(found: Tensor, asked: Tensor, kind: str, delta: float) -> Tensor:
    """Squared error (kind "mse") or Huber's of threshold `delta` ("huber"), elementwise."""
    if kind == "mse":
        return (found - asked).square()
    return F.huber_loss(found, asked, reduction="none", delta=delta)
