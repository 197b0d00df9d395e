"""Building blocks of generated ground: fractal fields, turned coordinates, parcels, and the calendar.

All lengths are metres. The fine grid has four cells of 2.5 m to a 10 m pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

FINE = 4
PIXEL_M = 10.0
CELL_M = PIXEL_M / FINE


@dataclass(frozen=True)
class Season:
    """Day of year shifted to the northern hemisphere, and how strong seasons are (0 tropics … 1)."""

    day: float
    strength: float

    def pulse(self, peak: float, width: float, low: float, high: float) -> float:
        """A bell of the year around day `peak`, between `low` and `high`; shallow where seasons are weak."""
        return float(self.pulses(np.zeros(1), peak, width, low, high)[0])

    def pulses(self, shifts: np.ndarray, peak: float, width: float, low: float, high: float) -> np.ndarray:
        """`pulse` for several calendars, each ahead by `shifts` days."""
        away = (self.day + shifts - peak + 182.5) % 365.0 - 182.5
        value = low + (high - low) * np.exp(-((away / width) ** 2))
        return self.strength * value + (1 - self.strength) * (0.35 * low + 0.65 * high)


def smooth_fields(rng: np.random.Generator, betas: tuple[float, ...], n: int) -> np.ndarray:
    """Fractal fields [len(betas), n, n] with power spectrum 1/f^beta, zero mean and unit variance each."""
    padded, amplitude = _spectrum(betas, n)
    shape = (len(betas), padded, padded // 2 + 1)
    spectrum = rng.standard_normal((2, *shape), np.float32)
    fields = np.fft.irfft2((spectrum[0] + 1j * spectrum[1]) * amplitude, s=(padded, padded))[:, :n, :n]
    fields = fields - fields.mean((1, 2), keepdims=True)
    fields /= fields.std((1, 2), keepdims=True) + 1e-12
    return fields.astype(np.float32)


@lru_cache(maxsize=16)
def _spectrum(betas: tuple[float, ...], n: int) -> tuple[int, np.ndarray]:
    # A quarter more than is used, so that the field does not meet itself at the edges.
    padded = -(-(n + n // 4) // 16) * 16
    fy = np.fft.fftfreq(padded)[:, None]
    fx = np.fft.rfftfreq(padded)[None, :]
    frequency = np.sqrt(fx * fx + fy * fy)
    frequency[0, 0] = np.inf
    return padded, np.stack([frequency ** (-beta / 2) for beta in betas]).astype(np.float32)


@lru_cache(maxsize=8)
def _up_matrix(n: int) -> np.ndarray:
    """[4 n, n]: Catmull-Rom interpolation of n cell centres to the fine grid."""
    matrix = np.zeros((FINE * n, n), np.float32)
    for row in range(FINE * n):
        position = (row + 0.5) / FINE - 0.5
        base = int(np.floor(position))
        t = position - base
        weights = (
            (-t + 2 * t * t - t**3) / 2,
            (2 - 5 * t * t + 3 * t**3) / 2,
            (t + 4 * t * t - 3 * t**3) / 2,
            (-t * t + t**3) / 2,
        )
        for k, weight in enumerate(weights):
            matrix[row, min(max(base + k - 1, 0), n - 1)] += weight
    return matrix


def upsample(fields: np.ndarray) -> np.ndarray:
    """[..., n, n] to [..., 4 n, 4 n]."""
    up = _up_matrix(fields.shape[-1])
    return up @ fields @ up.T


@lru_cache(maxsize=8)
def _axis(n: int) -> np.ndarray:
    return ((np.arange(FINE * n, dtype=np.float32) + 0.5) - FINE * n / 2) * CELL_M


def rotated(n: int, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (u, v) in metres from the centre, turned by `angle`: two grids [F, F]."""
    axis = _axis(n)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * axis[None, :] + s * axis[:, None], c * axis[:, None] - s * axis[None, :]


def _cuts(rng: np.random.Generator, reach: float, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """Random intervals along a line of +-`reach`: for every metre, the interval's number and the distance to its end."""
    count = int(3 * reach / mean) + 4
    edges = np.cumsum(mean * np.exp(0.35 * rng.standard_normal(count))) - reach
    metre = np.arange(-reach, reach + 1)
    number = np.minimum(np.searchsorted(edges, metre), count - 1)
    left = np.where(number > 0, edges[number - 1], -np.inf)
    distance = np.minimum(edges[number] - metre, metre - left)
    return number, distance.astype(np.float32)


def parcels(
    rng: np.random.Generator, u: np.ndarray, v: np.ndarray, across: float, along: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Strips `across` wide, cut at about every `along`: parcel number, then distances in metres to the strip's edge
    and to the cut. Grids like `u`; numbers are below 4096."""
    reach = float(np.ceil(np.abs(u).max() + 2))
    strip_of, strip_edge = _cuts(rng, reach, across)
    cut_of, cut_edge = _cuts(rng, 2 * reach, along)
    at = (u + np.float32(reach)).astype(np.intp)
    shift = np.float32(2 * reach) + rng.uniform(-reach, reach, 64).astype(np.float32)
    at_v = (v + shift[strip_of & 63].take(at)).astype(np.intp)
    number = ((strip_of & 63) * 64).take(at) + (cut_of & 63).take(at_v)
    return number, strip_edge.take(at), cut_edge.take(at_v)
