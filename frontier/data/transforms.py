"""On-device: stored integers -> normalised, augmented float images. Every choice is a function of (seed, epoch, sample)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from frontier.config.schema import AugmentConfig
from frontier.data.random import stream_keys, uniform
from frontier.data.shards import ShardSet

if TYPE_CHECKING:
    from frontier.data.synthetic import SyntheticSet

SYMMETRY_STREAM, CROP_STREAM, MASK_STREAM = 11, 12, 13


def normalise(
    values: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    axes: str = "CHW",
    *,
    nodata: float | None = None,
    mask: torch.Tensor | None = None,
    mask_axes: str = "",
) -> torch.Tensor:
    """(values - mean) / std per band, float32; 0, the mean of what is there, where the value is missing.

    values [B, *axes] in stored units of any real type, axes such as CHW, TCHW or TC with one C; mean, std [C] in stored
    units, so that the column's scale and offset cancel. Missing is what equals `nodata`, is not finite in float32, or is
    marked 0 by `mask` [B, *mask_axes], whose axes are among `axes` in the same order. These are also left out of the
    statistics.
    """
    there = which_there(values, axes, nodata=nodata, mask=mask, mask_axes=mask_axes)
    return _scaled(values, mean, std, axes, there)


def _scaled(
    values: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, axes: str, there: torch.Tensor | None
) -> torch.Tensor:
    by_band = [-1 if axis == "C" else 1 for axis in axes]
    out = (_computable(values).to(torch.float32) - mean.view(by_band)) / std.view(by_band)
    return out if there is None else torch.where(there, out, 0.0)


def _computable(values: torch.Tensor) -> torch.Tensor:
    """The same numbers in a type that operators know: few know unsigned ones of 16 and 32 bits."""
    wider = {torch.uint16: torch.int32, torch.uint32: torch.int64}
    return values.to(wider[values.dtype]) if values.dtype in wider else values


def which_there(
    values: torch.Tensor,
    axes: str = "CHW",
    *,
    nodata: float | None = None,
    mask: torch.Tensor | None = None,
    mask_axes: str = "",
) -> torch.Tensor | None:
    """Bool that broadcasts to `values`: False where `normalise` takes one as missing; None where none can be."""
    values = _computable(values)
    there = torch.isfinite(values.to(torch.float32)) if values.dtype.is_floating_point else None
    if nodata is not None and _representable(nodata, values.dtype):
        marked = values != (nodata if values.dtype.is_floating_point else int(nodata))
        there = marked if there is None else there & marked
    if mask is not None:
        sizes = iter(mask.shape[1:])
        marked = mask.view(len(mask), *(next(sizes) if axis in mask_axes else 1 for axis in axes)) != 0
        there = marked if there is None else there & marked
    return there


def _representable(value: float, dtype: torch.dtype) -> bool:
    """Whether a stored value of `dtype` can equal `value`."""
    if dtype.is_floating_point:
        return not math.isnan(value)
    limits = torch.iinfo(dtype)
    return value == int(value) and limits.min <= value <= limits.max if math.isfinite(value) else False


@dataclass(frozen=True)
class Normaliser:
    """How one input column becomes numbers for a model: `normalise` with what the manifest says of the column.

    Attributes:
        mean, std: of the bands that are kept, in stored units.
        pick: places of the bands that are kept among those stored; None: all, in order.
    """

    column: str
    mean: torch.Tensor
    std: torch.Tensor
    axes: str
    nodata: float | None
    mask: str | None
    mask_axes: str
    pick: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls,
        shards: ShardSet | SyntheticSet,
        column: str,
        device: torch.device | str = "cpu",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pick: Sequence[int] | None = None,
    ) -> Normaliser:
        """For an input of `shards`, by the statistics of its manifest where `mean` or `std` (of the kept bands) is not given.

        Raises `UserError` where there is no such input or it has no statistics.
        """
        chosen = None if pick is None else tuple(pick)
        if mean is None or std is None:
            own = [values if chosen is None else values[list(chosen)] for values in shards.statistics(column)]
            mean, std = (own[0].tolist() if mean is None else mean), (own[1].tolist() if std is None else std)
        spec = shards.manifest["images"][column]
        mask = spec["mask"]
        return cls(
            column,
            torch.tensor(mean, dtype=torch.float32, device=device),
            torch.tensor(std, dtype=torch.float32, device=device),
            spec["axes"],
            spec["nodata"],
            mask,
            "" if mask is None else shards.manifest["arrays"][mask]["axes"],
            chosen,
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """What a batch must hold for this input: itself and its mask."""
        return (self.column,) if self.mask is None else (self.column, self.mask)

    def there(self, columns: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """[B, *axes] bool, where the columns are: which values of this input are there; None where none can be missing."""
        values, mask = self._stored(columns)
        found = self._there(values, mask)
        return None if found is None else found.expand(values.shape)

    def __call__(self, columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[B, *axes] float32, on the device of the statistics, from the stored columns of a batch."""
        return self.with_there(columns)[0]

    def with_there(self, columns: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The normalised values, and bool that broadcasts to them: which are there (None where none can be missing)."""
        device = self.mean.device
        moved = {name: columns[name].to(device, non_blocking=True) for name in self.columns}
        values, mask = self._stored(moved)
        there = self._there(values, mask)
        return _scaled(values, self.mean, self.std, self.axes, there), there

    def _there(self, values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
        return which_there(values, self.axes, nodata=self.nodata, mask=mask, mask_axes=self.mask_axes)

    def _stored(self, columns: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The kept bands of the input, in a type that operators know, and of its mask."""
        values, mask = columns[self.column], None if self.mask is None else columns[self.mask]
        if self.pick is None:
            return _computable(values), mask
        return take_bands(values, self.axes, self.pick), (
            None if mask is None else take_bands(mask, self.mask_axes, self.pick)
        )


def take_bands(values: torch.Tensor, axes: str, pick: Sequence[int]) -> torch.Tensor:
    """Some bands of [B, *axes], of any stored type, in the order of `pick`; unchanged where `axes` has no C.

    Unsigned types that few operators know are made wider.
    """
    if "C" not in axes:
        return values
    axis = 1 + axes.index("C")
    return torch.stack([_computable(values.select(axis, place)) for place in pick], axis)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear, antialiased where it shrinks; unchanged where the size fits."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def apply_symmetry(images: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """One of the 8 symmetries of the square per image: bit 0 mirrors columns, bit 1 rows, bit 2 transposes.

    images [B, C, S, S]; code [B] int64 in 0..7.
    """
    out = images.clone()
    for value in range(1, 8):
        chosen = (code == value).nonzero().squeeze(1)
        if len(chosen) == 0:
            continue
        part = images[chosen]
        if value & 4:
            part = part.transpose(-1, -2)
        flips = [dim for bit, dim in ((1, -1), (2, -2)) if value & bit]
        out[chosen] = part.flip(flips) if flips else part
    return out


def crop_windows(draws: torch.Tensor, scale: tuple[float, float]) -> torch.Tensor:
    """Windows [B, 4] with a random share of the area (`scale`) and aspect ratio 3/4..4/3, anywhere inside the image.

    A window is (y, x, height, width): how far its centre is from the image's, in half sides, and its shares of the sides.
    draws [B, 4] uniform: area, log-ratio, place in x, place in y.
    """
    area = scale[0] + draws[:, 0] * (scale[1] - scale[0])
    ratio = torch.exp((draws[:, 1] * 2 - 1) * math.log(4 / 3))
    width = (area * ratio).sqrt().clamp(max=1.0)
    height = (area / ratio).sqrt().clamp(max=1.0)
    return torch.stack([(draws[:, 3] * 2 - 1) * (1 - height), (draws[:, 2] * 2 - 1) * (1 - width), height, width], -1)


def resample(images: torch.Tensor, windows: torch.Tensor, size: int) -> torch.Tensor:
    """What `windows` [B, 4] (see `crop_windows`) show of images [B, C, S, S], in size x size pixels: [B, C, size, size].

    Bilinear between pixel centres. Where an image has more pixels a side than `size`, a window may hold more pixels than come out
    of it: then each is averaged over what it covers, by `resize`'s filter widened to that sample's window, so that nothing aliases.
    Pixels just outside a window take part; at the border of an image only what is inside does.
    """
    stored = images.shape[-1]
    y, x, height, width = windows.unbind(-1)
    if size >= stored:
        zero = torch.zeros_like(width)
        theta = torch.stack([torch.stack([width, zero, x], -1), torch.stack([zero, height, y], -1)], 1)
        grid = F.affine_grid(theta, [*images.shape[:2], size, size], align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    rows, columns = (_weights(at, share, stored, size)[:, None] for at, share in ((y, height), (x, width)))
    return rows @ images @ columns.transpose(-1, -2)


def _weights(at: torch.Tensor, share: torch.Tensor, stored: int, size: int) -> torch.Tensor:
    """[B, size, stored] the share that each stored pixel has in each pixel of a window's side: a triangle round its centre."""
    steps = (torch.arange(size, device=at.device) + 0.5) / size - 0.5
    centres = ((at[:, None] + 1) / 2 + share[:, None] * steps) * stored
    reach = (share * (stored / size)).clamp(min=1.0)
    away = (torch.arange(stored, device=at.device) + 0.5 - centres[:, :, None]).abs()
    weights = (1 - away / reach[:, None, None]).clamp(min=0.0)
    return weights / weights.sum(-1, keepdim=True)


def draw_windows(members: torch.Tensor, scale: tuple[float, float], seed: int) -> torch.Tensor:
    """The windows [B, 4] of samples, members [B, 2] = (epoch, sample)."""
    return crop_windows(uniform(stream_keys(seed, CROP_STREAM, members), 4), scale)


def draw_symmetries(members: torch.Tensor, seed: int) -> torch.Tensor:
    """[B] int64 in 0..7 for `apply_symmetry`, members [B, 2] = (epoch, sample)."""
    return (uniform(stream_keys(seed, SYMMETRY_STREAM, members), 1).squeeze(1) * 8).to(torch.int64)


def augment(images: torch.Tensor, members: torch.Tensor, config: AugmentConfig, seed: int) -> torch.Tensor:
    """The configured augmentations, in the order crop, symmetry. members [B, 2] = (epoch, sample)."""
    if config.crop_scale is not None:
        images = resample(images, draw_windows(members, config.crop_scale, seed), images.shape[-1])
    return apply_symmetry(images, draw_symmetries(members, seed)) if config.symmetries else images


def mask_noise(members: torch.Tensor, tokens: int, seed: int) -> torch.Tensor:
    """[B, tokens] uniform noise that orders the patches: the lowest are kept."""
    return uniform(stream_keys(seed, MASK_STREAM, members), tokens)
