"""Heads that ask for pixels: segmentation and density (7.1.2).

The query of a pixel is the Fourier encoding of the square that it covers, in units of the image's sides: position of its centre,
half-width half a pixel. Any size of output can be asked for, whole or in part.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from frontier.data.random import stream_keys, uniform
from gpna.fourier import Region, position_features
from gpna.head_sections import DensityTask, PixelTask, SegmentationTask
from gpna.heads.base import Head, constant, known_mean, settled
from gpna.query_attention import QueryDecoder, in_chunks

PIXEL_STREAM = 31
"""Stream number of `draw_pixels` for `frontier.data.random`."""

UNKNOWN = 255
"""Class of a pixel without a label."""


@lru_cache(maxsize=4)
def pixel_features(rows: int, columns: int, size: int, region: Region, highest: float) -> Tensor:
    """Encodings float32 [rows * columns, size] of all pixels, row by row; `highest` in cycles a side."""
    return position_features(rows, columns, size, region, highest).flatten(0, 1)


def draw_pixels(n: int, pixels: int, seed: int, members: Tensor) -> Tensor:
    """`n` of `pixels` pixels for each sample, [B, n] int64 ascending, from members [B, 2] = (epoch, sample).

    One pixel is drawn from each of n equal stretches of the image's rows put end to end: every pixel is as likely as any other, and
    those of one sample spread over its image. A function of (seed, epoch, sample) alone.
    """
    draw = uniform(stream_keys(seed, PIXEL_STREAM, members), n).double()
    stretch = torch.arange(n, dtype=torch.float64, device=draw.device)
    return ((stretch + draw) * (pixels / n)).long().clamp_(max=pixels - 1)


def gather_pixels(target: Tensor, pixels: Tensor) -> Tensor:
    """target [B, rows, columns], pixels [B, n] -> the target of those pixels [B, n]."""
    return target.flatten(1).gather(1, pixels)


class PixelHead(Head):
    """Encoded pixels -> cross-attention -> MLP of two layers -> K outputs a pixel, in chunks of bounded memory.

    Memory: what is held between forward and backward pass is the outputs, [n, pixels, K]. A chunk of at most `task.chunk` rows (pixels x
    samples) adds, while it is computed, about 4 D + 2 hidden numbers a row, or 6 D + 2 hidden + features where each sample has pixels of its
    own (measured, one cross-attention): 187 MiB in float32 for 32,768 rows at D = hidden = 256.
    """

    table: Tensor

    def __init__(self, width: int, task: PixelTask, outputs: int) -> None:
        super().__init__()
        self.rows, self.columns = task.side()
        self.features, self.region, self.highest = task.features, task.region, task.top_frequency()
        self.chunk = task.chunk
        self.register_buffer("table", torch.empty(self.rows * self.columns, task.features), persistent=False)
        self.decoder = QueryDecoder(
            width,
            task.attention_heads,
            outputs,
            query_width=task.features,
            hidden=task.hidden,
            layers=task.layers,
            residual=task.query_residual,
        )

    def initial_buffer(self, local_name: str) -> Tensor:
        return self.encodings(self.rows, self.columns)

    def encodings(self, rows: int, columns: int) -> Tensor:
        return pixel_features(rows, columns, self.features, self.region, self.highest)

    def forward(self, latents: Tensor, pixels: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """latents [n, M, D] -> outputs [n, rows * columns, K] row by row.

        Args:
            latents: of n samples.
            pixels: [n, m] int64, for each sample the row-major indices of the pixels that are asked for (`draw_pixels`): the
                result is [n, m, K].
            size: (rows, columns) of the image; default: the task's.
        """
        whole = size is None or size == (self.rows, self.columns)
        table = self.table if whole or size is None else self.encodings(*size).to(latents.device)
        keys_values = self.decoder.keys_values(latents)

        def step(first: int, last: int) -> Tensor:
            if pixels is None:
                return self.decoder.decode(table[first:last], keys_values)
            return self.decoder.decode(table, keys_values, pixels[:, first:last])

        count = table.shape[0] if pixels is None else pixels.shape[1]
        return in_chunks(step, count, max(1, self.chunk // max(1, latents.shape[0])))


class Segmentation(PixelHead):
    """One of K classes a pixel. Target [n, rows, columns] or [n, m] int, 255 = unknown."""

    class_weights: Tensor | None

    def __init__(self, width: int, task: SegmentationTask) -> None:
        classes = settled(task, "classes")
        super().__init__(width, task, classes)
        self.task = task
        weights = None if task.class_weights is None else torch.empty(classes)
        self.register_buffer("class_weights", weights, persistent=False)

    def initial_buffer(self, local_name: str) -> Tensor:
        if local_name == "class_weights":
            return constant(self.task.class_weights or [])
        return super().initial_buffer(local_name)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Cross entropy meaned over the known pixels, dice loss, or their sum: [n]."""
        logits, target = outputs.float(), target.flatten(1).long()
        total = logits.new_zeros(())
        if self.task.loss in ("cross_entropy", "both"):
            error = F.cross_entropy(
                logits.transpose(1, 2), target, weight=self.class_weights, ignore_index=UNKNOWN, reduction="none"
            )
            total = total + known_mean(error, target != UNKNOWN)
        if self.task.loss in ("dice", "both"):
            total = total + dice_loss(logits.softmax(-1), target, self.class_weights)
        return total

    def predict(self, outputs: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Probabilities [n, K, rows, columns] of a whole image; its argmax over K is the class map."""
        return outputs.float().softmax(-1).transpose(1, 2).unflatten(2, size or (self.rows, self.columns))


def dice_loss(probabilities: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """1 - 2 sum(p t) / (sum(p) + sum(t)) over the known pixels, (weighted) mean over the classes that a sample has: [n].

    probabilities [n, m, K], target [n, m] with 255 = unknown. A class that the sample lacks needs no term: the probability that it
    takes is missing from the others.
    """
    known = target != UNKNOWN
    classes = probabilities.shape[-1]
    truth = F.one_hot(torch.where(known, target, 0), classes).float() * known[..., None]
    p = probabilities * known[..., None]
    there = truth.sum(1)
    loss = 1 - 2 * (p * truth).sum(1) / (p.sum(1) + there).clamp(min=1e-6)
    weights = (there > 0).float() * (1.0 if class_weights is None else class_weights)
    return (loss * weights).sum(1) / weights.sum(1).clamp(min=1e-6)


class Density(PixelHead):
    """Counts a pixel, at least 0. Target [n, rows, columns] or [n, m] float; negative, NaN or infinite = unknown."""

    def __init__(self, width: int, task: DensityTask) -> None:
        super().__init__(width, task, 1)
        self.task = task

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Poisson negative log likelihood r - t log r of rate r = softplus(output) (without log t!), or (r - t)^2; mean: [n]."""
        rate, target = F.softplus(outputs.squeeze(-1).float()), target.flatten(1).float()
        known = (target >= 0) & target.isfinite()
        asked = torch.where(known, target, 0.0)
        if self.task.loss == "poisson":
            error = rate - asked * rate.clamp(min=1e-12).log()
        else:
            error = (rate - asked).square()
        return known_mean(error, known)

    def predict(self, outputs: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Counts [n, rows, columns] of a whole image, per pixel of `size`: their sum is the count of the image at any size."""
        rows, columns = size or (self.rows, self.columns)
        share = self.rows * self.columns / (rows * columns)
        return F.softplus(outputs.squeeze(-1).float()).unflatten(1, (rows, columns)) * share
