"""Generated farmland as a source: true-colour images of fields with their boundaries and areas.

The columns are those of SustainBench's delineation of fields (`readers/sustainbench_delineation.py`), so that what is
trained on one runs on the other. An image is a function of (seed, index) alone. Each holds two to five districts with
straight borders; a district has its own direction, so that boundaries run at every angle, and its own size of fields,
which are strips cut across. Some parcels and districts are woods or pastures and no fields; between fields lies a margin
of grass or earth, or nothing but a change of crop. The images are synthetic: for trying and testing heads, not for mapping.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_prep.scenes import MOST
from data_prep.scenes_fields import FINE, PIXEL_M, parcels, rotated, smooth_fields, upsample
from data_prep.scenes_spectra import RGB_BANDS
from data_prep.source import ArrayColumn, ImageColumn, Listing, Source, Stored, Target
from frontier.errors import UserError

GENERATOR_VERSION = 1
BOUNDARY_M = 7.5
"""A cell is boundary up to here from the edge of a field; a pixel is where half of its cells are."""
_NUMBERS = 4096
_CROPS = np.array(
    [
        *((0.045, 0.075, 0.040), (0.035, 0.060, 0.032), (0.060, 0.085, 0.045)),  # green: cereal, maize, pasture
        *((0.150, 0.125, 0.085), (0.170, 0.145, 0.095)),  # ripe, stubble
        *((0.115, 0.090, 0.065), (0.085, 0.068, 0.052)),  # dry and wet soil
        (0.130, 0.140, 0.050),  # rape in flower
    ],
    np.float32,
)
"""Red, green and blue reflectance."""
_WOOD = np.array((0.024, 0.042, 0.026), np.float32)
_PASTURE = np.array((0.062, 0.082, 0.047), np.float32)
_MARGINS = np.array([(0.055, 0.078, 0.042), (0.140, 0.115, 0.085), (0.030, 0.048, 0.028)], np.float32)
"""Grass, earth, hedge."""


def field_stream(seed: int, index: int) -> np.random.Generator:
    """The random numbers of one image: counter-based, so no image waits for another."""
    return np.random.Generator(np.random.Philox(key=[seed, index]))


def _districts(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(number of the district, metres to its border) of every cell [4 n, 4 n]: two to five Voronoi cells."""
    u, v = rotated(n, 0.0)
    reach = n * PIXEL_M / 2
    centres = rng.uniform(-reach, reach, (int(rng.integers(2, 6)), 2)).astype(np.float32)
    away = np.stack([(u - x) ** 2 + (v - y) ** 2 for x, y in centres])
    number = away.argmin(0)
    border = np.full(u.shape, np.inf, np.float32)
    for one, centre in enumerate(centres):
        gap = np.hypot(*(centres[number] - centre).transpose(2, 0, 1))
        # The border of two cells is the line as far from both centres.
        to_line = (away[one] - away.min(0)) / np.maximum(2 * gap, 1e-6)
        border = np.where(number == one, border, np.minimum(border, to_line))
    return number, border


def make_fields(seed: int, index: int, size: int) -> dict[str, Any]:
    """One image of `size` x `size` pixels of 10 m.

    Returns uint8 "image" [3, n, n]; uint8 "boundary" and "area" [n, n], 1 on boundaries of fields and in fields;
    "field_fraction", "boundary_fraction", "field_index".
    """
    rng = field_stream(seed, index)
    district, border = _districts(rng, size)
    shape = district.shape
    rough, even = upsample(smooth_fields(rng, (2.4, 3.2), size))
    grain = rng.standard_normal(shape, np.float32)
    colour = np.empty((3, *shape), np.float32)
    field, edge = np.zeros(shape, bool), np.full(shape, np.inf, np.float32)
    fallow_share = rng.uniform(0.05, 0.5)
    palette = _CROPS[rng.permutation(len(_CROPS))[: int(rng.integers(2, 6))]]
    for one in range(int(district.max()) + 1):
        here = district == one
        angle = rng.uniform(0, np.pi)
        u, v = rotated(size, angle)
        across = rng.uniform(80, 320)
        number, strip, cut = parcels(rng, u, v, across, across * rng.uniform(1.0, 2.5))
        crop = palette[rng.integers(0, len(palette), _NUMBERS)]
        crop = crop * rng.uniform(0.82, 1.2, (_NUMBERS, 1)).astype(np.float32)
        wild = rng.random(_NUMBERS) < (1.0 if rng.random() < 0.12 else fallow_share)
        wooded = rng.random(_NUMBERS) < 0.5
        crop[wild] = np.where(wooded[wild, None], _WOOD, _PASTURE)
        rows = np.where((rng.random(_NUMBERS) < 0.3).take(number), v, u)
        stripes = 1 + np.float32(0.06) * np.cos(rows * np.float32(2 * np.pi / rng.uniform(12, 26)))
        stripes = np.where(wild.take(number), 1 + np.float32(0.22) * grain * wooded.take(number), stripes)
        nearest = np.minimum(np.minimum(strip, cut), border)
        width = rng.uniform(0.0, 6.0)
        kind = _MARGINS[int(rng.integers(0, len(_MARGINS)))]
        bare = ~wild.take(number) & (nearest < width) & here
        for band in range(3):
            np.copyto(colour[band], crop[:, band].take(number) * stripes, where=here)
            np.copyto(colour[band], kind[band] * (1 + np.float32(0.1) * grain), where=bare)
        field |= here & ~wild.take(number)
        np.copyto(edge, nearest, where=here)
    colour *= 1 + 0.05 * even + 0.05 * rough + 0.04 * grain
    image = _to_pixels(colour)
    image = (image + 2 * _blurred(image)) / 3
    image = image * np.float32(rng.uniform(0.9, 1.1)) + np.float32(rng.uniform(0, 0.012))
    image += np.float32(0.0025) * rng.standard_normal(image.shape, np.float32)
    tone = np.clip(image / np.float32(0.24), 0, 1) ** np.float32(1 / 1.4)
    boundary = _to_pixels((field & (edge < BOUNDARY_M)).astype(np.float32)) >= 0.5
    area = _to_pixels(field.astype(np.float32)) >= 0.5
    return {
        "image": (tone * 255 + 0.5).astype(np.uint8),
        "boundary": boundary.astype(np.uint8),
        "area": area.astype(np.uint8),
        "field_fraction": float(area.mean()),
        "boundary_fraction": float(boundary.mean()),
        "field_index": index,
    }


def _to_pixels(fine: np.ndarray) -> np.ndarray:
    """The mean over the cells of every pixel: [..., 4 n, 4 n] to [..., n, n]."""
    n = fine.shape[-1] // FINE
    return fine.reshape(*fine.shape[:-2], n, FINE, n, FINE).mean((-3, -1), dtype=np.float32)


def _blurred(image: np.ndarray) -> np.ndarray:
    """The mean of a pixel and its four neighbours, the border repeated."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    return (around + image) / 5


class FieldSource(Source):
    """`count` generated images of fields. See the module's text."""

    def __init__(self, count: int, *, seed: int = 0, size: int = 224, name: str | None = None) -> None:
        """Raises `UserError` for a count, size or seed that cannot be."""
        if not 1 <= count <= MOST:
            raise UserError(f"--fields {count}: give 1 to {MOST:,}")
        if not 16 <= size <= 1024:
            raise UserError(f"--size {size}: give 16 to 1024 pixels")
        if not 0 <= seed < 1 << 63:
            raise UserError(f"--seed {seed}: give a number from 0 up to 2**63 - 1")
        self.count, self.seed, self.size = count, seed, size
        self.name = name or "generated-fields"
        self.license: str | None = "CC0-1.0"
        self.images = {"image": ImageColumn((3, size, size), "uint8", RGB_BANDS, PIXEL_M, None, "true colour")}
        self.arrays = {name: ArrayColumn((size, size), "uint8", "HW", "target") for name in ("boundary", "area")}
        self.columns = {"field_fraction": "float32", "boundary_fraction": "float32", "field_index": "int64"}
        self.targets = {
            "boundary": Target("segmentation", "boundary", ("other", "boundary"), missing=255, metric="dice"),
            "area": Target("segmentation", "area", ("other", "field"), missing=255, metric="f1"),
        }

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "fields",
            "generator": GENERATOR_VERSION,
            "count": self.count,
            "seed": self.seed,
            "size": self.size,
        }

    def listing(self) -> Listing:
        ids = [f"fields-{self.seed}-{index:08d}".encode() for index in range(self.count)]
        return Listing(ids, np.full(self.count, -1, np.int32), ids, [""] * self.count)

    def load(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        stored: dict[str, Stored] = {**self.images, **self.arrays}
        out: dict[str, np.ndarray] = {name: np.empty((len(rows), *c.shape), c.dtype) for name, c in stored.items()}
        out |= {name: np.empty(len(rows), dtype) for name, dtype in self.columns.items()}
        for place, row in enumerate(rows):
            sample = make_fields(self.seed, int(row), self.size)
            for name, values in out.items():
                values[place] = sample[name]
        return out
