"""Colour and texture statistics: what a probe reaches without any encoder.

`colour_texture` describes an image of any number of bands, in stored units (uint8, uint16, any real type), by

per band
  * mean, standard deviation, skewness (0 where the band is constant), and the percentiles 2, 10, 25, 50, 75,
    90 and 98 of the pixel values;
  * of the gradient magnitude sqrt(gx² + gy²), central differences one-sided at the edges, in stored units per
    pixel: mean, standard deviation, and the percentiles 50, 90 and 99;
  * at full resolution and after 2 x 2 and 4 x 4 averaging (as far as at least 3 pixels remain a side): the
    histogram of rotation-invariant uniform local binary patterns of the 8 nearest pixels (Ojala et al., PAMI
    24:971, 2002, with the square ring instead of the interpolated circle), 10 bins as shares of the inner
    pixels: bin b = 0…8 counts patterns with at most two changes around the ring and b neighbours >= the
    centre, bin 9 all others;
  * the standard deviation after that 2 x 2 and 4 x 4 averaging, relative to the full one (1 where the band is
    constant): how much of the contrast lies in coarse structure;
per pair of bands
  * their correlation over the pixels (0 where one is constant).

`band_statistics` describes any other input by the distribution of each band's values, wherever and whenever they are.

`cell_statistics` describes the cells of a grid over an image, for probes of every place of it.

The probes standardise features by the training split, so the mixture of units is no matter.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from frontier.errors import UserError

PERCENTILES = (2, 10, 25, 50, 75, 90, 98)
GRADIENT_PERCENTILES = (50, 90, 99)
AVERAGING = (1, 2, 4)
PATTERNS = 10
_RING = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))


def local_binary_patterns(band: NDArray[np.float32]) -> NDArray[np.float32]:
    """Histogram [N, 10] of the patterns of `band` [N, H, W] (H, W >= 3), as shares that sum to 1."""
    height, width = band.shape[1] - 2, band.shape[2] - 2
    centre = band[:, 1:-1, 1:-1]
    bits = [band[:, y : y + height, x : x + width] >= centre for y, x in _RING]
    ones = sum(bit.astype(np.uint8) for bit in bits)
    changes = sum((bit ^ bits[index - 1]).astype(np.uint8) for index, bit in enumerate(bits))
    code = np.where(np.asarray(changes) <= 2, ones, PATTERNS - 1)
    return np.stack([(code == b).mean(axis=(1, 2)) for b in range(PATTERNS)], axis=1).astype(np.float32)


def _average(band: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """`band` [N, H, W] averaged over factor x factor blocks; rows and columns that fill no block are left
    out.
    """
    n, height, width = band.shape
    rows, columns = height // factor, width // factor
    blocks = band[:, : rows * factor, : columns * factor].reshape(n, rows, factor, columns, factor)
    return blocks.mean(axis=(2, 4), dtype=np.float32)


def _moments(values: NDArray[np.float32]) -> tuple[NDArray, NDArray, NDArray]:
    """Mean, standard deviation and skewness [N] of `values` [N, pixels]."""
    mean = values.mean(axis=1, dtype=np.float64)
    centred = values - mean[:, None]
    deviation = np.sqrt((centred**2).mean(axis=1))
    cubes = (centred**3).mean(axis=1)
    skewness = np.divide(cubes, deviation**3, out=np.zeros_like(cubes), where=deviation > 0)
    return mean, deviation, skewness


def _band_features(band: NDArray[np.float32]) -> list[NDArray]:
    pixels = band.reshape(len(band), -1)
    mean, deviation, skewness = _moments(pixels)
    columns = [mean, deviation, skewness, *np.percentile(pixels, PERCENTILES, axis=1)]

    vertical, horizontal = np.gradient(band, axis=(1, 2))
    magnitude = np.hypot(vertical, horizontal).reshape(len(band), -1)
    columns += [magnitude.mean(axis=1), magnitude.std(axis=1)]
    columns += list(np.percentile(magnitude, GRADIENT_PERCENTILES, axis=1))

    for factor in AVERAGING:
        if min(band.shape[1:]) // factor < 3:
            break
        coarse = band if factor == 1 else _average(band, factor)
        columns += list(local_binary_patterns(coarse).T)
        if factor > 1:
            spread = coarse.reshape(len(band), -1).std(axis=1, dtype=np.float64)
            columns.append(np.divide(spread, deviation, out=np.ones_like(spread), where=deviation > 0))
    return columns


def _correlations(images: NDArray[np.float32]) -> list[NDArray]:
    n, bands = images.shape[:2]
    centred = images.reshape(n, bands, -1).astype(np.float64)
    centred -= centred.mean(axis=2, keepdims=True)
    covariance = centred @ centred.transpose(0, 2, 1)
    deviation = np.sqrt(np.einsum("nbb->nb", covariance))
    scale = deviation[:, :, None] * deviation[:, None, :]
    correlation = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
    first, second = np.triu_indices(bands, k=1)
    return list(correlation[:, first, second].T)


def colour_texture(images: NDArray) -> NDArray[np.float32]:
    """The statistics of this module: [N, F] float32 of `images` [N, C, H, W] (H, W >= 3), computed in
    float32/64.

    F = C·(15 + 10·s + (s - 1)) + C·(C - 1)/2 with s = 1, 2 or 3 the number of resolutions that the size
    allows. Raises UserError for smaller images.
    """
    if images.ndim != 4 or min(images.shape[2:]) < 3:
        raise UserError(f"images of shape {images.shape[1:]}, colour_texture: 3 x 3 pixels at least are needed")
    values = images.astype(np.float32)
    columns = [column for band in range(values.shape[1]) for column in _band_features(values[:, band])]
    return np.stack(columns + _correlations(values), axis=1).astype(np.float32)


def band_statistics(values: NDArray, there: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """[N, F] float32 of values [N, bands, n]; `there`, of the same shape: which are known (None: all).

    Of each band mean, standard deviation and the percentiles of `PERCENTILES` over its known values (0 where there is none), and,
    given `there`, the known share. One value a band (n = 1) is itself instead.
    """
    values = values.astype(np.float64)
    known = np.ones(values.shape, bool) if there is None else there
    if values.shape[2] == 1:
        columns = [np.where(known, values, 0.0)[..., 0]]
    else:
        gaps = np.where(known, values, np.nan)
        gaps[~known.any(2)] = 0.0
        quantiles = np.nanpercentile(gaps, PERCENTILES, axis=2)
        columns = [np.nanmean(gaps, 2), np.nanstd(gaps, 2), *quantiles]
    if there is not None:
        columns.append(known.mean(2))
    return np.concatenate(columns, axis=1).astype(np.float32)


def cell_statistics(images: NDArray, grid: tuple[int, int]) -> torch.Tensor:
    """[N, rows, columns, 5 C] float32: statistics of the cells of `grid` that images [N, C, H, W] are divided into.

    Of each band, in stored units: mean and standard deviation of the cell, its mean gradient magnitude a pixel, mean and standard deviation of the 3 x 3 cells around. Cells are
    those of `torch.nn.functional.adaptive_avg_pool2d`, which overlap by a pixel where H or W is no multiple.
    """
    values = torch.from_numpy(images.astype(np.float32))
    # About each band's own mean, squares lose no digits.
    centre = values.mean((2, 3), keepdim=True)
    values = values - centre
    slope = (
        torch.stack(torch.gradient(values, dim=(2, 3))).square().sum(0).sqrt()
        if min(values.shape[2:]) > 1
        else 0 * values
    )
    mean, square, steep = (F.adaptive_avg_pool2d(part, grid) for part in (values, values.square(), slope))
    wide, wide_square = (F.avg_pool2d(part, 3, stride=1, padding=1, count_include_pad=False) for part in (mean, square))
    spread = [(b - a.square()).clamp(min=0).sqrt() for a, b in ((mean, square), (wide, wide_square))]
    return torch.cat([mean + centre, spread[0], steep, wide + centre, spread[1]], dim=1).permute(0, 2, 3, 1)
