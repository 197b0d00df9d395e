"""What a source of samples is: the one seam between an archive (or a generator) and the shard writer."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

AXES = {"T": "time", "C": "band", "H": "row", "W": "column", "K": "entry"}
"""Letters that `axes` is spelt with. Every input has a C; the others as the data has them: CHW, TCHW, TC, C, …"""

Role = Literal["mask", "target", "other"]
Task = Literal["classification", "multilabel", "regression", "segmentation"]


@dataclass(frozen=True)
class Band:
    """One band: its name and, where known, centre wavelength and width in nanometres, and its sensor's common name."""

    name: str
    centre_nm: float | None = None
    width_nm: float | None = None
    common_name: str | None = None

    def as_dict(self) -> dict[str, Any]:
        named = {} if self.common_name is None else {"common_name": self.common_name}
        return {"name": self.name, "centre_nm": self.centre_nm, "width_nm": self.width_nm} | named


@dataclass(frozen=True)
class Stored:
    """A column of arrays of one shape and type, one a sample."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class ImageColumn(Stored):
    """An input: samples of `shape` along `axes` (images CHW, series TCHW or TC); physical = stored * scale + offset.

    `mask` names an array column of uint8, 1 = valid, whose axes are among this one's: what it marks 0 is filled with
    `nodata` or 0 and counts in no statistics. `sensor` is free text such as "Sentinel-2 L2A".
    """

    bands: tuple[Band, ...]
    gsd_m: float | None = None
    nodata: float | None = None
    units: str | None = None
    scale: float = 1.0
    offset: float = 0.0
    axes: str = "CHW"
    mask: str | None = None
    sensor: str | None = None

    def __post_init__(self) -> None:
        check_axes(self.axes, self.shape)
        if "C" not in self.axes or self.shape[self.axes.index("C")] != len(self.bands):
            raise ValueError(f"{len(self.bands)} bands for shape {self.shape} along {self.axes}")

    def as_dict(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "axes": self.axes,
            "dtype": self.dtype,
            "bands": [band.as_dict() for band in self.bands],
            "gsd_m": self.gsd_m,
            "nodata": self.nodata,
            "units": self.units,
            "scale": self.scale,
            "offset": self.offset,
            "mask": self.mask,
            "sensor": self.sensor,
        }


@dataclass(frozen=True)
class ArrayColumn(Stored):
    """A fixed-shape array a sample that is not an input: a validity mask, a segmentation map, a vector of targets.

    `names` has one entry a place along axis K, where there is one.
    """

    axes: str
    role: Role
    names: tuple[str, ...] = ()
    units: str | None = None

    def __post_init__(self) -> None:
        check_axes(self.axes, self.shape)

    def as_dict(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "axes": self.axes,
            "dtype": self.dtype,
            "role": self.role,
            "names": list(self.names),
            "units": self.units,
        }


@dataclass(frozen=True)
class Target:
    """A task that the samples are labelled for. `column` names the scalar or array column that holds the labels.

    `missing` marks a label that is not known: -1 for classes, 255 for pixels, "nan" for numbers. `metric` is the
    one that the data's publishers report, in their words.
    """

    kind: Task
    column: str
    classes: tuple[str, ...] = ()
    units: str | None = None
    missing: int | str | None = None
    metric: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "column": self.column,
            "classes": list(self.classes),
            "units": self.units,
            "missing": self.missing,
            "metric": self.metric,
        }


@dataclass(frozen=True)
class Listing:
    """What planning needs to know of every sample, before any is read. All lists have one entry a sample.

    `groups`: samples of one group never go to different splits (identical content, one place).
    `splits`: a split given by the source, or "" where the plan chooses.
    `places`: [n, 2] longitude and latitude of the centre in degrees, NaN where unknown; None where none is known.
    `ordered`: the samples are to be stored in this order, which the plan else chooses.
    """

    ids: Sequence[bytes]
    labels: np.ndarray
    groups: Sequence[bytes]
    splits: Sequence[str]
    classes: tuple[str, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)
    places: np.ndarray | None = None
    ordered: bool = False


class Source(ABC):
    """Samples 0 … n-1, each a function of its row alone. Pickled to the worker processes and to other ranks."""

    name: str
    images: dict[str, ImageColumn]
    arrays: Mapping[str, ArrayColumn] = {}
    columns: Mapping[str, str] = {}
    """Scalars that `load` returns besides sample_id, label and crc32: name -> numpy dtype."""
    targets: Mapping[str, Target] = {}
    license: str | None = None
    citation: str | None = None
    homepage: str | None = None
    description: str | None = None

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Every setting that the samples depend on, plus a digest of the inputs: JSON, hashed into the plan."""

    @abstractmethod
    def listing(self) -> Listing:
        """Ids, labels and groups of all samples."""

    @abstractmethod
    def load(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Inputs and arrays [n, *shape] and scalars [n] of `rows`. Raises `UserError` that names the file."""

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample's inputs and arrays."""
        stored: list[Stored] = [*self.images.values(), *self.arrays.values()]
        return sum(column.sample_bytes for column in stored)


def check_axes(axes: str, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` unless `axes` spells one known letter, once, for each entry of `shape`."""
    if len(axes) != len(shape) or len(set(axes)) != len(axes) or not set(axes) <= set(AXES):
        raise ValueError(f"axes {axes!r} for shape {shape}: one letter of {''.join(AXES)} each")


def seeded_hash(seed: int, what: str, key: bytes) -> bytes:
    """16 bytes that order `key` at random under (seed, what), the same on every machine."""
    return hashlib.blake2b(key, digest_size=16, key=f"{what}:{seed}".encode()).digest()
