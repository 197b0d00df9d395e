"""What a source of samples is: the one seam between an archive (or a generator) and the shard writer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Band:
    """One band: its name and, where known, centre wavelength and width in nanometres."""

    name: str
    centre_nm: float | None = None
    width_nm: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "centre_nm": self.centre_nm, "width_nm": self.width_nm}


@dataclass(frozen=True)
class ImageColumn:
    """An image column: samples of `shape` (C, H, W); physical value = stored * scale + offset, in `units`."""

    shape: tuple[int, int, int]
    dtype: str
    bands: tuple[Band, ...]
    gsd_m: float | None = None
    nodata: float | None = None
    units: str | None = None
    scale: float = 1.0
    offset: float = 0.0

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def as_dict(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "dtype": self.dtype,
            "bands": [band.as_dict() for band in self.bands],
            "gsd_m": self.gsd_m,
            "nodata": self.nodata,
            "units": self.units,
            "scale": self.scale,
            "offset": self.offset,
        }


@dataclass(frozen=True)
class Listing:
    """What planning needs to know of every sample, before any is read. All lists have one entry a sample.

    `groups`: samples of one group never go to different splits (identical content, one place).
    `splits`: a split given by the source, or "" where the plan chooses.
    """

    ids: Sequence[bytes]
    labels: np.ndarray
    groups: Sequence[bytes]
    splits: Sequence[str]
    classes: tuple[str, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Samples 0 … n-1, each a function of its row alone. Pickled to the worker processes."""

    name: str
    images: dict[str, ImageColumn]
    columns: dict[str, str]
    """Per-sample columns that `load` returns besides sample_id, label and crc32: name -> numpy dtype."""
    license: str | None
    citation: str | None

    def describe(self) -> dict[str, Any]:
        """Every setting that the samples depend on, plus a digest of the inputs: JSON, hashed into the plan."""

    def listing(self) -> Listing:
        """Ids, labels and groups of all samples."""

    def load(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """The image columns [n, C, H, W] and per-sample columns [n] of `rows`."""


def seeded_hash(seed: int, what: str, key: bytes) -> bytes:
    """16 bytes that order `key` at random under (seed, what), the same on every machine."""
    return hashlib.blake2b(key, digest_size=16, key=f"{what}:{seed}".encode()).digest()
