"""The tokenizer's convolutions: three layers a band that mix neither bands nor dates (arXiv 2211.02348, 7.1.1).

Every stem key has weights of its own; at call time those of an input's bands are put side by side into one grouped convolution a
layer. `Generated` makes the weights of a band from a vector that describes it, so that bands without weights can be tokenised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frontier.models.linear import Linear
from frontier.models.pointwise import LayerNorm, gelu

KERNELS = {"image": (3, 3), "line": (1, 3), "point": (1, 1)}
STRIDES = {8: (2, 2, 2), 4: (2, 2, 1), 2: (2, 1, 1), 1: (1, 1, 1)}
"""Of the three layers, by footprint."""
LAYERS = (1, 2, 3)
ONE_BY_ONE = 2**16
"""Values of a band in a batch from which bands are convolved one by one on a CPU."""
GELU_POWER = 0.425
"""Mean square of gelu(x) for x ~ N(0, 1)."""


def shapes(form: str, hidden: tuple[int, int]) -> list[tuple[int, ...]]:
    """Shapes of a band's weight1, bias1, weight2, bias2, weight3, bias3; channels 1 -> hidden[0] -> hidden[1] -> hidden[1]."""
    first, last = hidden
    kernel = KERNELS[form]
    return [(first, 1, *kernel), (first,), (last, first, *kernel), (last,), (last, last, *kernel), (last,)]


def scales(form: str, hidden: tuple[int, int]) -> list[float]:
    """Standard deviations of what `shapes` lists: values of variance 1 give features of variance about 1."""
    found = []
    for layer, shape in enumerate(shapes(form, hidden)[::2]):
        fan_in = math.prod(shape[1:])
        power = 1.0 if layer == 0 else GELU_POWER
        found += [1 / math.sqrt(power * fan_in), 1 / math.sqrt(3 * fan_in)]
    return found


def names() -> list[str]:
    """Local names of a stem's parameters, in the order of `shapes`."""
    return [f"{part}{layer}" for layer in LAYERS for part in ("weight", "bias")]


class Stem(nn.Module):
    """The weights of one stem key for one form (image, line, point). Other modules read them; it is never called."""

    def __init__(self, form: str, hidden: tuple[int, int]) -> None:
        super().__init__()
        self.form, self.hidden = form, hidden
        for name, shape in zip(names(), shapes(form, hidden), strict=True):
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    def initial_value(self, local_name: str, generator: torch.Generator) -> Tensor:
        place = names().index(local_name)
        shape = shapes(self.form, self.hidden)[place]
        return torch.randn(shape, generator=generator, device="cpu") * scales(self.form, self.hidden)[place]


def side_by_side(stems: Sequence[Stem]) -> list[Tensor]:
    """Weights of the bands' stems, one behind the other: [L*c1, 1, ...], [L*c1], [L*c2, c1, ...], …"""
    return [torch.cat([getattr(stem, name) for stem in stems]) for name in names()]


class Generated(nn.Module):
    """A small network that makes the weights of a stem from a descriptor of its band; one for each form.

    weights = (shared + network(descriptor)) / sqrt(2), both of the scale of a plain stem's at the start: all bands share what they
    have in common, and a band that was never seen gets what its descriptor says.
    """

    def __init__(self, form: str, hidden: tuple[int, int], descriptor: int, width: int) -> None:
        super().__init__()
        self.form, self.hidden = form, hidden
        self.count = sum(math.prod(shape) for shape in shapes(form, hidden))
        self.norm = LayerNorm(descriptor)
        self.first = Linear(descriptor, width)
        self.last = nn.Parameter(torch.empty(self.count, width))
        self.shared = nn.Parameter(torch.empty(self.count))

    def initial_value(self, local_name: str, generator: torch.Generator) -> Tensor:
        if local_name == "shared":
            return torch.randn(self.count, generator=generator, device="cpu")
        # `first` is xavier: from inputs of mean square 1 its outputs have 2 in / (in + out).
        width, descriptor = self.first.out_features, self.first.in_features
        outgoing = GELU_POWER * 2 * descriptor / (descriptor + width)
        return torch.randn(self.count, width, generator=generator, device="cpu") / math.sqrt(width * outgoing)

    def forward(self, descriptors: Tensor) -> list[Tensor]:
        """descriptors [L, d] -> the weights as `side_by_side` gives them."""
        made = self.shared + gelu(self.first(self.norm(descriptors))) @ self.last.t()
        found = []
        listed = shapes(self.form, self.hidden)
        parts = made.split([math.prod(shape) for shape in listed], dim=1)
        for part, shape, scale in zip(parts, listed, scales(self.form, self.hidden), strict=True):
            found.append((part * (scale / math.sqrt(2))).reshape(-1, *shape[1:]))
        return found


def convolve(values: Tensor, weights: Sequence[Tensor], form: str, footprint: int) -> Tensor:
    """values [N, L, rows, columns], weights as `side_by_side` gives them -> features [N, H', W', L, c2].

    Where there is no space, three batched matrix products, ten times as fast as convolutions there. On a CPU, bands of many values go one by one,
    channels last: measured up to three times as fast as the grouped convolutions that do the others.
    """
    bands = values.shape[1]
    if form == "point":
        return _products(values, weights)
    if values.device.type == "cpu" and values[:, 0].numel() >= ONE_BY_ONE:
        parts = [weight.chunk(bands) for weight in weights]
        found = []
        for place in range(bands):
            one = values[:, place : place + 1].contiguous(memory_format=torch.channels_last)
            found.append(_layers(one, [part[place] for part in parts], footprint, 1).permute(0, 2, 3, 1))
        return torch.stack(found, 3)
    return _layers(values, weights, footprint, bands).unflatten(1, (bands, -1)).permute(0, 3, 4, 1, 2)


def _layers(x: Tensor, weights: Sequence[Tensor], footprint: int, bands: int) -> Tensor:
    """[N, bands, rows, columns] -> [N, bands * c2, H', W']: grouped convolutions, exact GELU between them.

    The last strided layer is padded behind only, which centres the field of view of a token on its footprint (within half a pixel) and
    not on the footprint's first pixel. What lies outside counts as 0, that is, missing.
    """
    strides = STRIDES[footprint]
    turn = strides.count(2) - 1
    for layer, stride in enumerate(strides):
        weight, bias = weights[2 * layer], weights[2 * layer + 1]
        kernel = weight.shape[2:]
        padding = tuple(size // 2 for size in kernel)
        if layer == turn:
            rows, columns = (1 + side % 2 if size > 1 else 0 for side, size in zip(x.shape[2:], kernel, strict=True))
            x, padding = F.pad(x, (0, columns, 0, rows)), (0, 0)
        step = tuple(stride if size > 1 else 1 for size in kernel)
        x = F.conv2d(x, weight, bias, step, padding, groups=bands)
        x = gelu(x) if layer < 2 else x
    return x


def _products(values: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """`_layers` of values without space, [N, L, 1, 1] -> [N, 1, 1, L, c2]."""
    bands = values.shape[1]
    x = values[:, :, 0, 0].t().unsqueeze(-1)
    for layer in range(3):
        weight = weights[2 * layer].flatten(1).unflatten(0, (bands, -1))
        bias = weights[2 * layer + 1].view(bands, 1, -1)
        x = torch.baddbmm(bias, x, weight.transpose(1, 2))
        x = gelu(x) if layer < 2 else x
    return x.transpose(0, 1)[:, None, None]
