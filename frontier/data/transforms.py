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
    units, so that the column's scale and offset cancel. Missing is what equals `nodata`, is not finite, or is marked 0 by
    `mask` [B, *mask_axes], whose axes are among `axes` in the same order. These are also left out of the statistics.
    """
    if values.dtype in (torch.uint16, torch.uint32):  # few operators know these
        values = values.to(torch.int32 if values.dtype == torch.uint16 else torch.int64)
    by_band = [-1 if axis == "C" else 1 for axis in axes]
    out = (values.to(torch.float32) - mean.view(by_band)) / std.view(by_band)
    there = which_there(values, axes, nodata=nodata, mask=mask, mask_axes=mask_axes)
    return out if there is None else torch.where(there, out, 0.0)


def which_there(
    values: torch.Tensor,
    axes: str = "CHW",
    *,
    nodata: float | None = None,
    mask: torch.Tensor | None = None,
    mask_axes: str = "",
) -> torch.Tensor | None:
    """Bool that broadcasts to `values`: False where `normalise` takes one as missing; None where none can be."""
    if values.dtype in (torch.uint16, torch.uint32):
        values = values.to(torch.int32 if values.dtype == torch.uint16 else torch.int64)
    there = torch.isfinite(values) if values.dtype.is_floating_point else None
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
    """How one input column becomes numbers for a model: `normalise` with what the manifest says of the column."""

    column: str
    mean: torch.Tensor
    std: torch.Tensor
    axes: str
    nodata: float | None
    mask: str | None
    mask_axes: str

    @classmethod
    def of(
        cls,
        shards: ShardSet | SyntheticSet,
        column: str,
        device: torch.device | str = "cpu",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Normaliser:
        """For an input of `shards`, by the statistics of its manifest where `mean` or `std` is not given.

        Raises `UserError` where there is no such input or it has no statistics.
        """
        if mean is None or std is None:
            found = shards.statistics(column)
            mean, std = (
                given if given is not None else own.tolist() for given, own in zip((mean, std), found, strict=True)
            )
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
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """What a batch must hold for this input: itself and its mask."""
        return (self.column,) if self.mask is None else (self.column, self.mask)

    def there(self, columns: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """[B, *axes] bool, where the columns are: which values of this input are there; None where none can be missing."""
        values, mask = columns[self.column], None if self.mask is None else columns[self.mask]
        found = which_there(values, self.axes, nodata=self.nodata, mask=mask, mask_axes=self.mask_axes)
        return None if found is None else found.expand(values.shape)

    def __call__(self, columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[B, *axes] float32, on the device of the statistics, from the stored columns of a batch."""
        device = self.mean.device
        values = columns[self.column].to(device, non_blocking=True)
        mask = None if self.mask is None else columns[self.mask].to(device, non_blocking=True)
        return normalise(
            values, self.mean, self.std, self.axes, nodata=self.nodata, mask=mask, mask_axes=self.mask_axes
        )


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


def random_resized_crop(images: torch.Tensor, draws: torch.Tensor, scale: tuple[float, float]) -> torch.Tensor:
    """A crop of a random share of the area (`scale`) and aspect ratio 3/4..4/3, resampled to the old size.

    images [B, C, H, W]; draws [B, 4] uniform: area, log-ratio, place in x, place in y.
    """
    area = scale[0] + draws[:, 0] * (scale[1] - scale[0])
    ratio = torch.exp((draws[:, 1] * 2 - 1) * math.log(4 / 3))
    width = (area * ratio).sqrt().clamp(max=1.0)
    height = (area / ratio).sqrt().clamp(max=1.0)
    left = (draws[:, 2] * 2 - 1) * (1 - width)
    top = (draws[:, 3] * 2 - 1) * (1 - height)
    zero = torch.zeros_like(width)
    theta = torch.stack([torch.stack([width, zero, left], -1), torch.stack([zero, height, top], -1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def augment(images: torch.Tensor, members: torch.Tensor, config: AugmentConfig, seed: int) -> torch.Tensor:
    """The configured augmentations, in the order crop, symmetry. members [B, 2] = (epoch, sample)."""
    if config.crop_scale is not None:
        keys = stream_keys(seed, CROP_STREAM, members)
        images = random_resized_crop(images, uniform(keys, 4), config.crop_scale)
    if config.symmetries:
        draw = uniform(stream_keys(seed, SYMMETRY_STREAM, members), 1).squeeze(1)
        images = apply_symmetry(images, (draw * 8).to(torch.int64))
    return images


def mask_noise(members: torch.Tensor, tokens: int, seed: int) -> torch.Tensor:
    """[B, tokens] uniform noise that orders the patches: the lowest are kept."""
    return uniform(stream_keys(seed, MASK_STREAM, members), tokens)
