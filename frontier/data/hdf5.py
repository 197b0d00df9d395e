"""Opening one HDF5 shard: every structural promise is checked here, and contiguous data is read without HDF5.

A contiguous, uncompressed dataset is one run of bytes in the file. HDF5 gives its offset, so samples are read from
a memory map of the file, or for long runs by one positioned read, and h5py, its global lock and its per-call cost
are out of the way. Chunked or filtered datasets are read chunk by chunk (`frontier.data.chunks`) or, where that cannot be,
through h5py.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from frontier.data.chunks import Chunks, damaged, find_chunks, overfull, read_chunk, read_fully
from frontier.errors import UserError

REWRITE = "delete it and run the same `frontier shards write` again"


LONG_RUN = 1 << 20
"""Bytes from which a run is read with `preadv` rather than copied from the map. A first pass over pages of the file
cache costs a page fault per 4 KiB in a map (measured: 6 against 9.5 GiB/s in 6 MiB runs), and a parallel file system
is asked for the whole run at once instead of by read-ahead; short runs save the system call."""

LONG_SAMPLE = 64 << 10
"""Bytes of a sample from which a run that is strewn over a batch is read by `preadv`, a buffer a sample, even where it is in
the cache. Below, the map is faster there (measured, 64 samples of 12 KiB: 115 us, 163 at the first touch, against 200) but not
where the disk is waited for, page by page."""


def open_file(path: Path) -> h5py.File:
    """Open read-only, without file locks (an HDF5_USE_FILE_LOCKING in the environment still has its say)."""
    try:
        return h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise UserError(f"shard {path}: missing: {REWRITE}") from None
    except PermissionError:
        raise UserError(f"shard {path}: may not be read: mend the access rights") from None
    except OSError as error:
        detail = str(error).splitlines()[0]
        raise UserError(f"shard {path}: not a readable HDF5 file ({detail}): {REWRITE}") from None


def check_size(path: Path, size: int) -> None:
    """Raise `UserError` unless the file exists with exactly `size` bytes."""
    try:
        state = os.stat(path)
    except FileNotFoundError:
        raise UserError(f"shard {path}: missing: {REWRITE}, or copy the directory again") from None
    except OSError as error:
        raise UserError(f"shard {path}: cannot be reached ({error.strerror}): mend the access rights") from None
    if not stat.S_ISREG(state.st_mode):
        raise UserError(f"shard {path}: is no regular file: {REWRITE}")
    found = state.st_size
    if found != size:
        what = "truncated" if found < size else "longer than written"
        raise UserError(f"shard {path}: {what} ({found} bytes, the manifest says {size}): {REWRITE}")


class OpenShard:
    """One open shard: a memory map and a descriptor, or an h5py file where a column needs it.

    `arrays`: by column, the whole column as a read-only array over the map, or as an h5py dataset.
    """

    def __init__(self, path: Path, samples: int, stored: dict[str, Any], columns: dict[str, str]) -> None:
        """`stored` (inputs and arrays) and `columns` as in the manifest. Raises `UserError` where the file breaks a promise."""
        self.path = path
        self.arrays: dict[str, Any] = {}
        self._file: h5py.File | None = None
        self._descriptor: int | None = None
        self._size = 0
        self._byte = bytearray(1)
        self._asks = hasattr(os, "RWF_NOWAIT")
        self._offsets: dict[str, int] = {}
        self._chunks: dict[str, Chunks | None] = {}
        file = open_file(path)
        try:
            _refuse_foreign(file, path)
            wanted = {name: (samples, *spec["shape"]) for name, spec in stored.items()}
            wanted |= dict.fromkeys(columns, (samples,))
            dtypes = {name: spec["dtype"] for name, spec in stored.items()} | columns
            offsets = {name: _check_dataset(file, name, shape, dtypes[name], path) for name, shape in wanted.items()}
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._size = os.fstat(self._descriptor).st_size
            if any(offset is not None for offset in offsets.values()):
                view = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
            for name, offset in offsets.items():
                if offset is None:
                    self.arrays[name] = file[name]
                    self._file = file
                    continue
                shape, dtype = wanted[name], np.dtype(dtypes[name])
                count = int(np.prod(shape))
                if offset + count * dtype.itemsize > len(view):
                    raise UserError(f"shard {path}: dataset {name!r} runs past the file's end: {REWRITE}")
                self.arrays[name] = np.frombuffer(view, dtype, count, offset).reshape(shape)
                self._offsets[name] = offset
        except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:  # what h5py makes of torn metadata
            file.close()
            self.close()
            detail = str(error).splitlines()[0].strip("'\"")
            raise UserError(f"shard {path}: not a readable HDF5 file ({detail}): {REWRITE}") from None
        except BaseException:
            file.close()
            self.close()
            raise
        if self._file is None:
            file.close()

    def read_into(self, name: str, start: int, stop: int, out: np.ndarray, places: np.ndarray | None = None) -> None:
        """Copy samples `start` to `stop - 1` of a column into `out`, of the same dtype.

        They go to rows 0, 1, … of `out`, or to the rows `places` [stop - start]: one copy, from the file's cache to
        where a shuffled batch wants them.
        """
        if stop <= start:
            return
        array = self.arrays[name]
        if not isinstance(array, np.ndarray):
            try:
                self._read_chunked(name, start, stop, out, places)
            except (OSError, RuntimeError) as error:  # what h5py raises for bytes that it cannot decode
                self.check_whole()
                raise damaged(self.path, f"{name!r} cannot be read ({str(error).splitlines()[0]})") from None
            return
        size = array.strides[0]
        wanted, position = (stop - start) * size, self._offsets[name] + start * size
        assert self._descriptor is not None
        if not out.flags.c_contiguous or (
            wanted < LONG_RUN if places is None else self._from_map(position, wanted, size)
        ):
            self.check_whole()
            if places is None:
                np.copyto(out, array[start:stop])
            else:
                out[places] = array[start:stop]
            return
        raw = out.reshape(-1).view(np.uint8).data
        if places is None:
            rows = [raw[:wanted]]
        else:
            rows = [raw[place : place + size] for place in (places * size).tolist()]
        if read_fully(self._descriptor, rows, position) < wanted:
            raise UserError(f"shard {self.path}: truncated while it was in use: {REWRITE}")

    def _from_map(self, position: int, wanted: int, size: int) -> bool:
        """Whether to strew a run of samples of `size` bytes from the map: they are small and in the file system's cache."""
        return size < LONG_SAMPLE and self._cached(position) and self._cached(position + wanted - 1)

    def advise(self, name: str, start: int, stop: int) -> None:
        """Have the system begin to read samples `start` to `stop - 1` of a column that lies in the file as it is."""
        array = self.arrays[name]
        if isinstance(array, np.ndarray) and hasattr(os, "posix_fadvise") and self._descriptor is not None:
            size = array.strides[0]
            with contextlib.suppress(OSError):  # a hint
                os.posix_fadvise(
                    self._descriptor, self._offsets[name] + start * size, (stop - start) * size, os.POSIX_FADV_WILLNEED
                )

    def in_cache(self, name: str, row: int) -> bool:
        """Whether a column lies in the file as it is, and the first byte of sample `row` in the file system's cache."""
        array = self.arrays[name]
        return isinstance(array, np.ndarray) and self._cached(self._offsets[name] + row * array.strides[0])

    def _cached(self, position: int) -> bool:
        """Whether a byte of the file is in the cache; False where the file system does not say."""
        if not self._asks:
            return False
        assert self._descriptor is not None
        try:
            return os.preadv(self._descriptor, [self._byte], position, os.RWF_NOWAIT) == 1
        except BlockingIOError:
            return False
        except OSError:  # this file system does not say
            self._asks = False
            return False

    def _read_chunked(self, name: str, start: int, stop: int, out: np.ndarray, places: np.ndarray | None) -> None:
        if name not in self._chunks:  # two threads may both ask HDF5; the answers are the same
            found = self._chunks[name] = find_chunks(self.arrays[name])
            if found is None and (wrong := overfull(self.arrays[name])):
                raise damaged(self.path, f"{name!r} {wrong}")
        chunks = self._chunks[name]
        if chunks is None or not out.flags.c_contiguous:
            if places is None:
                self.arrays[name].read_direct(out, np.s_[start:stop])
            else:
                out[places] = self.arrays[name][start:stop]
            return
        assert self._descriptor is not None
        size = chunks.nbytes // chunks.samples
        rows = out.reshape(-1).view(np.uint8).reshape(len(out), size)
        whole = np.empty(chunks.nbytes, np.uint8) if chunks.samples > 1 else None
        for index in range(start // chunks.samples, (stop - 1) // chunks.samples + 1):
            first = index * chunks.samples
            low, high = max(start, first), min(stop, first + chunks.samples)
            if whole is None:
                row = low - start if places is None else int(places[low - start])
                read_chunk(self._descriptor, chunks, index, rows[row], self.path)
                continue
            read_chunk(self._descriptor, chunks, index, whole, self.path)
            wanted = whole.reshape(chunks.samples, size)[low - first : high - first]
            if places is None:
                rows[low - start : high - start] = wanted
            else:
                rows[places[low - start : high - start]] = wanted

    def check_whole(self) -> None:
        """Raise `UserError` where the file has shrunk since it was opened: touching the map there would end the
        process with SIGBUS and no word of why. One system call, to be made before each run that is copied."""
        if self._descriptor is not None and os.lseek(self._descriptor, 0, os.SEEK_END) < self._size:
            raise UserError(f"shard {self.path}: truncated while it was in use: {REWRITE}")

    def __del__(self) -> None:
        if os is not None:  # at the end of the interpreter, when modules are gone, files close by themselves
            self.close()

    def close(self) -> None:
        """Let go of the file; arrays already copied out stay valid."""
        self.arrays = {}
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._file is not None:
            self._file.close()
            self._file = None


def _refuse_foreign(file: h5py.File, path: Path) -> None:
    """Refuse links that lead elsewhere: a shard is flat and complete in itself."""
    for name in file:
        link = file.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise UserError(
                f"shard {path}: {name!r} is a soft or external link, which is never followed: write the "
                "shards again with `frontier shards write`"
            )


def _plugin_filter(code: int) -> bool:
    """Whether hdf5plugin, where it is installed, brings the filter. Importing it registers its filters with HDF5."""
    try:
        import hdf5plugin  # noqa: F401
    except ImportError:
        return False
    return bool(h5py.h5z.filter_avail(code))


def _check_dataset(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str, path: Path) -> int | None:
    """The dataset's byte offset, or None where it must be read through h5py."""
    if name not in file:
        raise UserError(f"shard {path}: no dataset {name!r}, which the manifest names: {REWRITE}")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise UserError(f"shard {path}: {name!r} is a group, not a dataset: {REWRITE}")
    if dataset.dtype.hasobject:
        raise UserError(
            f"shard {path}: dataset {name!r} has a variable-length or reference type, which is refused: "
            "store it with a fixed width"
        )
    if dataset.shape != shape:
        raise UserError(
            f"shard {path}: dataset {name!r} has shape {list(dataset.shape)}, the manifest says "
            f"{list(shape)}: {REWRITE}"
        )
    if dataset.dtype != np.dtype(dtype):
        raise UserError(
            f"shard {path}: dataset {name!r} has type {dataset.dtype}, the manifest says {dtype}: {REWRITE}"
        )
    if dataset.is_virtual or dataset.external:
        raise UserError(f"shard {path}: dataset {name!r} keeps its data in other files, which is refused")
    properties = dataset.id.get_create_plist()
    for index in range(properties.get_nfilters()):
        code, _, _, label = properties.get_filter(index)
        if not h5py.h5z.filter_avail(code) and not _plugin_filter(code):
            raise UserError(
                f"shard {path}: dataset {name!r} is compressed with filter {code} "
                f"({label.decode(errors='replace')}), which this HDF5 lacks: install hdf5plugin (the extra `hdf5`), "
                "or write uncompressed shards"
            )
    if dataset.chunks is not None:
        return None
    return dataset.id.get_offset()
