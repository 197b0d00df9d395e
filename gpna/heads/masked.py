"""Masked tokens: the values at given places, times and bands (step 3 of the roadmap)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frontier.errors import UserError
from frontier.models.linear import Linear
from gpna.head_sections import SMALLEST, STATISTICS, MaskedTask
from gpna.heads.base import Head
from gpna.query_attention import QueryDecoder

CONTRAST, GRADIENT, LAPLACIAN = (-1.5, 0.9), (-3.2, 0.9), (-1.4, 0.85)
"""(centre, scale) that bring the logarithms to about mean 0 and deviation 1 for images normalised by band: those of `frontier.models.texture`."""


@dataclass(frozen=True)
class Queries:
    """What is asked of some samples of the batch.

    Attributes:
        encodings: [n, Q, C], those of the tokens without their values.
        size: values V of a token: s * s of a footprint, 1 for an input without space.
        samples: [n] int64, which samples of the batch; None: all, in order.
    """

    encodings: Tensor
    size: int = 1
    samples: Tensor | None = None


@dataclass(frozen=True)
class Answers:
    """What was to be found: values and known, [n, Q, V], row by row within a footprint; `samples` as in `Queries`."""

    values: Tensor
    known: Tensor
    samples: Tensor | None = None


class Masked(Head):
    """Queries -> projection -> cross-attention -> MLP -> the V values of a footprint, one output layer for each V."""

    def __init__(self, width: int, task: MaskedTask, query_width: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.task = task
        hidden = task.hidden or width
        self.decoder = QueryDecoder(
            width,
            task.attention_heads,
            None,
            query_width=query_width,
            hidden=hidden,
            layers=task.layers,
            residual=task.query_residual,
        )
        self.sizes = {size + self.extra(size): size for size in sizes}
        self.values = nn.ModuleDict({str(size): Linear(hidden, size + self.extra(size)) for size in sorted(set(sizes))})

    def extra(self, size: int) -> int:
        """Statistics that are predicted beside `size` values."""
        return STATISTICS if self.task.texture and size >= SMALLEST else 0

    def forward(self, latents: Tensor, queries: Sequence[Queries]) -> list[Tensor]:
        """latents [B, M, D] -> for each of `queries` values [n, Q, V], with statistics [n, Q, V + 7]. At least one group, possibly of no samples."""
        keys_values = self.decoder.keys_values(latents)
        found = []
        for group in queries:
            some = keys_values
            if group.samples is not None:
                some = [(k[group.samples], v[group.samples]) for k, v in keys_values]
            found.append(self.output(group.size)(self.decoder.decode(group.encodings, some)))
        asked = {str(group.size) for group in queries}
        rest = [p.sum() * 0.0 for s, layer in self.values.items() if s not in asked for p in layer.parameters()]
        if rest:  # sizes of other samples: a gradient all the same
            found[0] = found[0] + torch.stack(rest).sum()
        return found

    def output(self, size: int) -> nn.Module:
        if str(size) not in self.values:
            known = ", ".join(self.values)
            raise UserError(f"masked head: no output for tokens of {size} values; it was built for {known}")
        return self.values[str(size)]

    def loss(self, outputs: list[Tensor], target: Sequence[Answers], batch: int | None = None) -> Tensor:
        """Squared error meaned over the known pixels of a footprint, then over the queries of a sample that have any: [B].

        `batch`: number of samples where groups name theirs; default: that of the first group.
        """
        batch = outputs[0].shape[0] if batch is None else batch
        total = torch.zeros(batch, device=outputs[0].device)
        count = torch.zeros_like(total)
        for found, answers in zip(outputs, target, strict=True):
            known = answers.known.bool()
            values = torch.where(known, answers.values.float(), 0.0)
            pixels = known.sum(-1)
            size, raw = values.shape[-1], values
            if self.task.norm_pix and size > 1:
                values = normalised(values, known)
            error = torch.where(known, (found[..., :size].float() - values).square(), 0.0).sum(-1) / pixels.clamp(min=1)
            if self.extra(size):
                looks = (found[..., size:].float() - statistics(raw)).square().mean(-1)
                error = error + self.task.texture * torch.where(pixels == size, looks, 0.0)
            samples = answers.samples
            if samples is None:
                samples = torch.arange(batch, device=total.device)
            total = total.index_add(0, samples, error.sum(1))
            count = count.index_add(0, samples, (pixels > 0).sum(1).float())
        return total / count.clamp(min=1)

    def predict(self, outputs: list[Tensor]) -> list[Tensor]:
        """The values as they are, in the units of the loss: normalised inputs, or normalised footprints with `norm_pix`."""
        return [found.float()[..., : self.sizes[found.shape[-1]]] for found in outputs]


def statistics(values: Tensor) -> Tensor:
    """[..., s * s] of square footprints, normalised by band -> [..., 7]: what they look like, each of about mean 0 and deviation 1.

    The mean; log(deviation + 0.03); log(e_o + 0.01) for four orientations, e_o the mean gradient magnitude there, a pixel shared linearly between
    its two nearest orientations; log(l + 0.01), l the mean magnitude of the Laplacian. Gradients are of inner pixels, so nothing but the
    footprint counts. One band's part of the targets of `frontier.models.texture`, for the reasons in docs/small_data.md.
    """
    side = math.isqrt(values.shape[-1])
    x = values.unflatten(-1, (side, side))
    inner = x[..., 1:-1, 1:-1]
    gx = (x[..., 1:-1, 2:] - x[..., 1:-1, :-2]) / 2
    gy = (x[..., 2:, 1:-1] - x[..., :-2, 1:-1]) / 2
    magnitude = (gx.square() + gy.square() + 1e-12).sqrt()
    place = torch.atan2(gy, gx).remainder(math.pi) * (4 / math.pi)
    wave = (4 * inner - x[..., 1:-1, 2:] - x[..., 1:-1, :-2] - x[..., 2:, 1:-1] - x[..., :-2, 1:-1]).abs()
    apart = [2 - (2 - (place - o).remainder(4)).abs() for o in range(4)]
    shares = [(1 - distance).clamp(min=0) * magnitude for distance in apart]
    parts = [((values.std(-1) + 0.03).log(), CONTRAST)]
    parts += [((share.mean((-1, -2)) + 0.01).log(), GRADIENT) for share in shares]
    parts.append(((wave.mean((-1, -2)) + 0.01).log(), LAPLACIAN))
    return torch.stack([values.mean(-1), *((part - centre) / scale for part, (centre, scale) in parts)], -1)


def normalised(values: Tensor, known: Tensor) -> Tensor:
    """(values - mean) / sqrt(variance + 1e-6) over the known pixels of each footprint [..., V] (MAE's norm_pix_loss)."""
    count = known.sum(-1, keepdim=True)
    mean = torch.where(known, values, 0.0).sum(-1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(known, values - mean, 0.0)
    variance = centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    return centred / (variance + 1e-6).sqrt()
