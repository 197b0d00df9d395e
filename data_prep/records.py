"""A source of separately listed samples: what most readers of archives are."""

from __future__ import annotations

import errno
import math
import os
import stat
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.source import Listing, Source, Stored


@dataclass(frozen=True, slots=True)
class Record:
    """One sample before it is read.

    `payload` is what `load_one` needs (picklable, small). `group` b"" is a group of its own; `split` "" leaves the
    choice to the plan. `lon`, `lat`: centre in degrees, NaN where unknown.
    """

    id: bytes
    payload: Any
    label: int = -1
    group: bytes = b""
    split: str = ""
    lon: float = math.nan
    lat: float = math.nan


class RecordSource(Source):
    """Records, and how to load one. A subclass sets the columns and defines `load_one`."""

    def __init__(
        self,
        records: Sequence[Record],
        *,
        settings: Mapping[str, Any],
        inputs: str,
        classes: Sequence[str] = (),
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """`settings`: every choice that the samples depend on (JSON); `inputs`: digest of the files that are read."""
        self.records = list(records)
        self.classes = tuple(classes)
        self._settings, self._inputs, self._notes = dict(settings), inputs, dict(notes or {})

    def describe(self) -> dict[str, Any]:
        return {**self._settings, "samples": len(self.records), "inputs_sha256": self._inputs}

    def listing(self) -> Listing:
        places = np.array([(record.lon, record.lat) for record in self.records], np.float64).reshape(-1, 2)
        return Listing(
            ids=[record.id for record in self.records],
            labels=np.array([record.label for record in self.records], np.int32),
            groups=[record.group or record.id for record in self.records],
            splits=[record.split for record in self.records],
            classes=self.classes,
            notes=self._notes,
            places=places if np.isfinite(places).all(axis=1).any() else None,
        )

    @abstractmethod
    def load_one(self, record: Record) -> dict[str, Any]:
        """Inputs and arrays of their shapes and scalars of one sample, by column. Raises `UserError`."""

    def load(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        stored: dict[str, Stored] = {**self.images, **self.arrays}
        out: dict[str, np.ndarray] = {
            name: np.empty((len(rows), *column.shape), column.dtype) for name, column in stored.items()
        }
        out |= {name: np.empty(len(rows), dtype) for name, dtype in self.columns.items()}
        for place, row in enumerate(rows):
            sample = self.load_one(self.records[row])
            for name, values in out.items():
                found = np.asarray(sample[name])
                if found.shape != values.shape[1:]:
                    raise ValueError(f"{name}: the reader gave {found.shape}, planned {values.shape[1:]}")
                values[place] = found
        return out


_PIECE = 4096


def need_regular(path: str | Path) -> None:
    """Raise `OSError` for what is no regular file: a pipe, under whatever name, would be waited for without end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file")


def file_token(path: Path) -> bytes:
    """What tells one version of a file from another without reading it whole: size, first, middle and last 4 KiB.

    An edit elsewhere that keeps the size goes unseen; a replaced, truncated or re-encoded file does not.
    """
    size = path.stat().st_size
    digest = sha256(str(size).encode())
    with open(path, "rb", buffering=0) as file:
        for start in sorted({0, max(0, size // 2 - _PIECE // 2), max(0, size - _PIECE)}):
            file.seek(start)
            digest.update(file.read(_PIECE))
    return digest.digest()


def inputs_digest(tokens: Iterable[tuple[str, bytes]]) -> str:
    """One digest of (relative path, token) pairs, in the order of the paths' bytes."""
    digest = sha256()
    for path, token in sorted(tokens):
        digest.update(path.encode("utf-8", "surrogateescape") + b"\0" + token)
    return digest.hexdigest()
