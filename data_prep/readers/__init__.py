"""Readers of archives as their publishers hand them out, by name: `frontier shards readers` lists them.

A module of this package that defines `READERS`, a tuple of `Reader`, adds them to the list. It imports what it needs
for reading (rasterio, h5py) inside its functions, so that an optional dependency is only needed by those who use it.
"""

from __future__ import annotations

from data_prep.readers.registry import Reader, Request, Setting, all_readers, find_reader

__all__ = ["Reader", "Request", "Setting", "all_readers", "find_reader"]
