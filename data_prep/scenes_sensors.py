"""Rendering one ground as Sentinel-2-like, Sentinel-1-like and aerial images.

Mixing is linear: an image cell holds the mean over its fine cells of what their materials reflect or scatter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data_prep.scenes_fields import FINE, smooth_fields, upsample
from data_prep.scenes_ground import Ground
from data_prep.scenes_spectra import (
    BACKSCATTER,
    MATERIALS,
    NAIP_FROM_S2,
    REFLECTANCE,
    S2_RESOLUTION_M,
)

S1_LOOKS = 4.4
"""Equivalent number of looks of Sentinel-1 IW GRD high resolution (ESA product specification)."""


@dataclass(frozen=True)
class View:
    """Sun and air of one pass: elevation and azimuth of the sun in degrees, haze as added blue reflectance."""

    sun_elevation: float
    sun_azimuth: float
    haze: float


def abundances(ground: Ground) -> np.ndarray:
    """[2, cells, materials]: share of each material and state in every 10 m pixel, times brightness."""
    size = ground.material.shape[0]
    n = size // FINE
    kinds = len(MATERIALS)
    key = (_pixel_index(n) + ground.material).ravel()
    lush = (ground.bright * ground.green).ravel()
    total = np.bincount(key, ground.bright.ravel(), n * n * kinds)
    full = np.bincount(key, lush, n * n * kinds)
    out = np.empty((2, n * n * kinds), np.float32)
    np.multiply(total - full, 1 / FINE**2, out=out[0], casting="same_kind")
    np.multiply(full, 1 / FINE**2, out=out[1], casting="same_kind")
    return out.reshape(2, n * n, kinds)


@lru_cache(maxsize=8)
def _pixel_index(n: int) -> np.ndarray:
    pixel = np.arange(FINE * n) // FINE
    return ((pixel[:, None] * n + pixel[None, :]) * len(MATERIALS)).astype(np.int64)


def surface_spectra(rng: np.random.Generator) -> np.ndarray:
    """[2, materials, 12]: the materials' spectra as they are at this place: tone and slope vary by some per cent."""
    kinds = len(MATERIALS)
    tone = 1 + 0.09 * rng.standard_normal((1, kinds, 1))
    slope = 0.05 * rng.standard_normal((1, kinds, 1)) * np.linspace(-1, 1, 12)
    return (REFLECTANCE * np.clip(tone + slope, 0.7, 1.35)).astype(np.float32)


def hillshade(ground: Ground, view: View, relief: float) -> np.ndarray:
    """[n, n]: factor on direct light by the slope towards the sun, mean about 1."""
    dy, dx = np.gradient(ground.height)
    azimuth = np.deg2rad(view.sun_azimuth)
    towards = dx * np.sin(azimuth) - dy * np.cos(azimuth)
    return np.clip(1 - relief * towards / np.tan(np.deg2rad(view.sun_elevation)), 0.6, 1.4).astype(np.float32)


@lru_cache(maxsize=8)
def _psf(n: int, resolution: int) -> np.ndarray:
    """[n, n]: one axis of what a band of `resolution` metres sees, resampled linearly to 10 m."""
    if resolution == 10:
        matrix = np.eye(n) * 0.84 + np.eye(n, k=1) * 0.08 + np.eye(n, k=-1) * 0.08
        return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)
    step = resolution // 10
    coarse = -(-n // step)
    down = np.zeros((coarse, n))
    for row in range(coarse):
        down[row, row * step : (row + 1) * step] = 1
    down /= down.sum(1, keepdims=True)
    position = np.clip((np.arange(n) + 0.5) / step - 0.5, 0, coarse - 1)
    left = np.minimum(position.astype(int), max(coarse - 2, 0))
    up = np.zeros((n, coarse))
    up[np.arange(n), left] = 1 - (position - left)
    if coarse > 1:
        up[np.arange(n), left + 1] += position - left
    return (up @ down).astype(np.float32)


def cloud_layer(rng: np.random.Generator, n: int, view: View) -> tuple[np.ndarray, np.ndarray]:
    """(opacity, shadow), each [n, n] in 0 … 1. Three scenes in four are clear; the rest lose up to about a third."""
    clear = np.zeros((n, n), np.float32)
    if rng.random() < 0.75:
        return clear, clear
    field = smooth_fields(rng, (3.3,), n)[0]
    cover = rng.uniform(0.02, 0.3)
    edge = np.quantile(field, 1 - cover)
    opacity = rng.uniform(0.5, 1.0) * np.clip((field - edge) * rng.uniform(0.5, 1.2), 0, 1) ** 2
    azimuth = np.deg2rad(view.sun_azimuth)
    length = rng.uniform(60, 160) / np.tan(np.deg2rad(view.sun_elevation)) / 10
    # The shadow falls away from the sun; azimuth runs clockwise from north, rows run south.
    length = min(length, 0.7 * n)
    shift = (round(length * np.cos(azimuth)), round(-length * np.sin(azimuth)))
    shadow = np.zeros_like(opacity)
    source = opacity[max(0, -shift[0]) : n - max(0, shift[0]), max(0, -shift[1]) : n - max(0, shift[1])]
    shadow[max(0, shift[0]) : n + min(0, shift[0]), max(0, shift[1]) : n + min(0, shift[1])] = source
    return opacity.astype(np.float32), (shadow * (1 - opacity)).astype(np.float32)


_CLOUD = np.array([0.74, 0.74, 0.73, 0.73, 0.73, 0.72, 0.72, 0.71, 0.70, 0.55, 0.48, 0.38], np.float32)
_HAZE = np.array([1.25, 1.0, 0.62, 0.4, 0.34, 0.3, 0.25, 0.2, 0.19, 0.1, 0.02, 0.01], np.float32)
_NOISE = np.array([9, 10, 10, 11, 12, 13, 14, 16, 14, 20, 10, 10], np.float32) * np.float32(1e-4)


def render_s2(
    rng: np.random.Generator,
    ground: Ground,
    mixed: np.ndarray,
    spectra: np.ndarray,
    view: View,
    relief: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(uint16 [12, n, n] of 1e4 x reflectance, cloud opacity [n, n], cloud shadow [n, n]); 0 stays free for nodata."""
    n = ground.height.shape[0]
    light = hillshade(ground, view, relief)
    surface = (mixed[0] @ spectra[0] + mixed[1] @ spectra[1]).T.reshape(12, n, n) * light
    opacity, shadow = cloud_layer(rng, n, view)
    if opacity.any():
        surface *= 1 - np.float32(0.62) * shadow
        surface = surface * (1 - opacity) + _CLOUD[:, None, None] * opacity
    for resolution in (10, 20, 60):
        bands = np.flatnonzero(resolution == S2_RESOLUTION_M)
        psf = _psf(n, resolution)
        surface[bands] = psf @ surface[bands] @ psf.T
    surface += np.float32(view.haze) * _HAZE[:, None, None]
    noise = rng.standard_normal(surface.shape, np.float32)
    surface += noise * (_NOISE[:, None, None] + np.float32(0.004) * surface)
    return np.clip(np.rint(surface * 1e4), 1, 16000).astype(np.uint16), opacity, shadow


def render_s1(rng: np.random.Generator, ground: Ground, mixed: np.ndarray, relief: float) -> np.ndarray:
    """int16 [2, n, n]: VV and VH in 0.01 dB, with gamma speckle of `S1_LOOKS` looks."""
    n = ground.height.shape[0]
    offset = 10 ** (rng.normal(0, 0.6, (2, len(MATERIALS), 1)) / 10)
    power = (mixed[0] @ (BACKSCATTER[0] * offset[0]) + mixed[1] @ (BACKSCATTER[1] * offset[1])).T
    image = power.reshape(2, n, n).astype(np.float32)
    # The radar looks from one side: slopes that face it are brighter.
    slope = np.gradient(ground.height, axis=1) * (1 if rng.random() < 0.5 else -1)
    image *= np.clip(1 + 2.0 * relief * slope, 0.4, 2.5).astype(np.float32)
    blur = _psf(n, 10)
    image = blur @ blur @ image @ (blur @ blur).T
    image *= rng.standard_gamma(S1_LOOKS, image.shape, np.float32) / np.float32(S1_LOOKS)
    # Thermal noise keeps calm water from falling without end.
    image += np.array([10**-2.5, 10**-3.0], np.float32)[:, None, None]
    return np.clip(np.rint(1000 * np.log10(image)), -5000, 2000).astype(np.int16)


def render_naip(rng: np.random.Generator, ground: Ground, spectra: np.ndarray, view: View, relief: float) -> np.ndarray:
    """uint8 [4, 4 n, 4 n]: red, green, blue and near infrared at 2.5 m, as a stretched aerial image."""
    table = spectra[:, :, NAIP_FROM_S2]
    light = upsample(hillshade(ground, view, relief)) * ground.bright
    lush = light * ground.green
    rest = light - lush
    kinds = ground.material.astype(np.intp)
    noise = rng.standard_normal((4, *light.shape), np.float32)
    exposure = np.float32(rng.uniform(0.85, 1.15))
    out = np.empty((4, *light.shape), np.uint8)
    for band in range(4):
        value = rest * table[0, :, band].take(kinds) + lush * table[1, :, band].take(kinds)
        value += noise[band] * np.float32(0.004)
        # The square root spreads dark tones, as the tone curves of delivered aerial images do.
        full = 0.36 if band < 3 else 0.62
        np.clip(value * (exposure / np.float32(full)), 0, 1, out=value)
        out[band] = np.sqrt(value) * np.float32(255) + np.float32(0.5)
    return out


def true_colour(s2: np.ndarray) -> np.ndarray:
    """uint8 [3, n, n]: bands B04, B03, B02 of `render_s2`, reflectance 0 … 0.28 with gamma 1.4."""
    value = np.clip(s2[[3, 2, 1]].astype(np.float32) * np.float32(1 / 2800), 0, 1)
    return (value ** np.float32(1 / 1.4) * 255 + 0.5).astype(np.uint8)
