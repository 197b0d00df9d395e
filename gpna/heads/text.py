"""Tasks and classes as texts: the query is a precomputed vector of a description (step 4 of the roadmap, a first version).

The vectors come from any language model; whoever passes those of other texts asks for classes that were never trained.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpna.head_sections import TextTask
from gpna.heads.base import Head, constant, known_mean
from gpna.heads.vectors import regression_error
from gpna.query_attention import QueryDecoder
from gpna.text_vectors import TextVectors, vectors_of


class Text(Head):
    """Each text -> projection -> cross-attention -> MLP -> one score. The K scores of a sample are the logits of K classes, or, of the
    task kind regression, the score of the one text is the standardised number.

    Texts share every parameter and do not see each other, so their number and order are free.
    """

    texts: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, width: int, task: TextTask, vectors: TextVectors | None = None) -> None:
        task.require_statistics()
        super().__init__()
        self.task = task
        found = vectors or vectors_of(task)
        self.names, self.vectors = found.names, scaled(found.vectors)
        self.register_buffer("texts", torch.empty(self.vectors.shape), persistent=False)
        for name in ("mean", "std") if task.task == "regression" else ():
            self.register_buffer(name, torch.empty(1), persistent=False)
        self.decoder = QueryDecoder(
            width,
            task.attention_heads,
            1,
            query_width=self.vectors.shape[1],
            hidden=task.hidden,
            layers=task.layers,
            residual=task.query_residual,
        )

    def initial_buffer(self, local_name: str) -> Tensor:
        if local_name == "texts":
            return torch.from_numpy(self.vectors)
        return constant([getattr(self.task, local_name)])

    def forward(self, latents: Tensor, texts: Tensor | None = None) -> Tensor:
        """latents [n, M, D] -> scores [n, K] of the task's texts, or of `texts` [K, E] (through `scaled`)."""
        return self.decoder(self.texts if texts is None else texts, latents).squeeze(-1)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Cross entropy over the texts (target [n] int, negative = missing), or the squared error (target [n] float, NaN or infinite =
        missing): [n]."""
        if self.task.task == "classification":
            return F.cross_entropy(outputs.float(), target.long().clamp(min=-1), ignore_index=-1, reduction="none")
        target = target.float().reshape(outputs.shape)
        known = target.isfinite()
        asked = (torch.where(known, target, self.mean) - self.mean) / self.std
        return known_mean(regression_error(outputs.float(), asked, "mse", 1.0), known)

    def predict(self, outputs: Tensor) -> Tensor:
        """Probabilities [n, K], or the number in the target's units [n, 1]."""
        if self.task.task == "classification":
            return outputs.float().softmax(-1)
        return outputs.float() * self.std + self.mean


def scaled(vectors: np.ndarray) -> np.ndarray:
    """Vectors [K, E] divided by their lengths and times sqrt(E): numbers of size 1, whatever the language model's."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(length, 1e-12) * np.sqrt(vectors.shape[1])).astype(np.float32)
