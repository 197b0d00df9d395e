"""Chunks of a dataset read straight from the file: outside HDF5 and its lock, so that threads decompress side by side.

Only what is simple and common: chunks of whole samples, stored plainly or through shuffle, deflate (gzip) and fletcher32 in
any order. All else (lzf, plug-in filters, chunks that cut samples) is read through h5py. The place of every chunk is asked
of HDF5 once. Byte layouts: HDF5 File Format Specification 3.0, section IV.A.2.l (filter pipeline); Fletcher (1982).
"""

from __future__ import annotations

import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from frontier.errors import UserError

DEFLATE, SHUFFLE, FLETCHER32 = 1, 2, 3
_MOST_INFLATED, _HARMLESS = 1032, 256 << 20
"""Bytes that deflate can make of one; bytes that never hurt."""
IOV_MAX = 1024
"""Buffers of one `preadv` on Linux."""


@dataclass(frozen=True)
class Chunks:
    """Where the chunks of one dataset lie and how they were stored.

    Attributes:
        samples: of one chunk; the last chunk is stored whole even where the dataset ends inside it.
        nbytes: of one chunk, decoded.
        itemsize: bytes of a number.
        filters: codes in the order in which they were applied when writing.
        offsets, sizes, skipped: [chunks] place in the file, stored bytes, bit mask of filters left out for that chunk.
    """

    samples: int
    nbytes: int
    itemsize: int
    filters: tuple[int, ...]
    offsets: np.ndarray
    sizes: np.ndarray
    skipped: np.ndarray


def overfull(dataset: h5py.Dataset) -> str:
    """What is wrong with a compressed dataset that stores more than it holds, or "". HDF5 inflates whatever a chunk stores, up to 1,032
    times its bytes, before it looks at the chunk's size: what stores no more than it holds cannot be blown up far beyond it.
    """
    if dataset.chunks is None or not dataset.id.get_create_plist().get_nfilters():
        return ""
    counts = [-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True)]
    count = math.prod(counts)
    held = count * math.prod(dataset.chunks) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    if stored <= held + held // 64 + 256 * count:  # what filters add to numbers that do not compress
        return ""
    return f"stores {stored:,} bytes, more than the {held:,} that it holds, which is refused: it could fill the memory"


def find_chunks(dataset: h5py.Dataset) -> Chunks | None:
    """The chunks of `dataset`, or None where it has to be read through h5py. Raises RuntimeError, OSError where HDF5 cannot
    tell."""
    shape, chunks = dataset.shape, dataset.chunks
    if chunks is None or chunks[1:] != shape[1:] or not shape[0]:
        return None
    properties = dataset.id.get_create_plist()
    filters = tuple(properties.get_filter(index)[0] for index in range(properties.get_nfilters()))
    if not set(filters) <= {DEFLATE, SHUFFLE, FLETCHER32} or len(set(filters)) < len(filters):
        return None
    count = -(-shape[0] // chunks[0])
    offsets, sizes, skipped = np.full(count, -1, np.int64), np.zeros(count, np.int64), np.zeros(count, np.int64)

    def note(chunk: h5py.h5d.StoreInfo) -> None:
        index = chunk.chunk_offset[0] // chunks[0]
        offsets[index], sizes[index], skipped[index] = chunk.byte_offset, chunk.size, chunk.filter_mask

    dataset.id.chunk_iter(note)
    if (offsets < 0).any():  # never written: HDF5 fills them in
        return None
    itemsize = dataset.dtype.itemsize
    nbytes = int(np.prod(chunks)) * itemsize
    if not filters and (sizes != nbytes).any():
        return None
    return Chunks(chunks[0], nbytes, itemsize, filters, offsets, sizes, skipped)


def read_chunk(descriptor: int, chunks: Chunks, index: int, out: np.ndarray, path: Path) -> None:
    """Read and decode chunk `index` into `out`, uint8 [nbytes], contiguous. Raises `UserError` where it is damaged."""
    position, size = int(chunks.offsets[index]), int(chunks.sizes[index])
    if not chunks.filters:
        if read_fully(descriptor, [out.data], position) < chunks.nbytes:
            raise damaged(path, f"chunk {index} ends early")
        return
    raw: bytes | memoryview = os.pread(descriptor, size, position)
    if len(raw) < size:
        raise damaged(path, f"chunk {index} ends early")
    for place in range(len(chunks.filters) - 1, -1, -1):
        if chunks.skipped[index] >> place & 1:
            continue
        code = chunks.filters[place]
        if code == FLETCHER32:
            raw, told = memoryview(raw)[:-4], bytes(raw[-4:])
            if fletcher32(raw) != int.from_bytes(told, "little"):
                raise damaged(path, f"the checksum of chunk {index} is wrong")
        elif code == DEFLATE:
            try:
                raw = _inflate(raw, chunks.nbytes)
            except zlib.error as error:
                raise damaged(path, f"chunk {index} cannot be decompressed ({error})") from None
        elif place == 0 and len(raw) == chunks.nbytes:
            unshuffle(raw, chunks.itemsize, out)
            return
        else:
            whole = np.empty(len(raw), np.uint8)
            unshuffle(raw, chunks.itemsize, whole)
            raw = whole.data
    if len(raw) != chunks.nbytes:
        raise damaged(path, f"chunk {index} decodes to {len(raw)} bytes instead of {chunks.nbytes}")
    out[:] = np.frombuffer(raw, np.uint8)


def _inflate(raw: bytes | memoryview, nbytes: int) -> bytes:
    """What zlib makes of a chunk of `nbytes`; no more than a little over that of one which could fill the memory."""
    if len(raw) * _MOST_INFLATED <= max(nbytes, _HARMLESS):
        return zlib.decompress(raw, bufsize=nbytes)
    inflater = zlib.decompressobj()
    out = inflater.decompress(raw, nbytes + 8)  # a checksum may be inside
    if len(out) < nbytes + 8 and not inflater.eof:
        raise zlib.error("incomplete stream")
    return out


def unshuffle(raw: bytes | memoryview, itemsize: int, out: np.ndarray) -> None:
    """Undo HDF5's shuffle: all first bytes, then all second bytes, … -> numbers; bytes over at the end stay in place."""
    source = np.frombuffer(raw, np.uint8)
    count = len(source) // itemsize
    for byte in range(itemsize):
        out[byte : count * itemsize : itemsize] = source[byte * count : (byte + 1) * count]
    out[count * itemsize :] = source[count * itemsize :]


def fletcher32(raw: bytes | memoryview) -> int:
    """HDF5's checksum: Fletcher's sums modulo 65535 over big-endian 16-bit words, an odd last byte as a high byte."""
    words = np.frombuffer(raw, ">u2", len(raw) // 2).astype(np.uint64)
    if len(raw) % 2:
        words = np.append(words, np.uint64(raw[-1] << 8))
    first = int(words.sum())
    second = int(np.dot(words, np.arange(len(words), 0, -1, dtype=np.uint64)))
    return _folded(second) << 16 | _folded(first)


def _folded(total: int) -> int:
    """Modulo 65535, with 65535 rather than 0 unless all is 0: what adding with end-around carry leaves."""
    return 0 if total == 0 else (total - 1) % 65535 + 1


def read_fully(descriptor: int, buffers: list[memoryview], position: int) -> int:
    """Fill `buffers` (of bytes) one after the other from `position` on; returns the bytes read, fewer only at the
    file's end."""
    done, first = 0, 0
    while first < len(buffers):
        got = os.preadv(descriptor, buffers[first : first + IOV_MAX], position + done)
        if got == 0:
            break
        done += got
        while first < len(buffers) and got >= len(buffers[first]):
            got -= len(buffers[first])
            first += 1
        if got:
            buffers = [buffers[first][got:], *buffers[first + 1 :]]
            first = 0
    return done


def damaged(path: Path, what: str) -> UserError:
    """The error for a shard whose bytes are not what was written."""
    return UserError(f"shard {path}: {what}: delete it and run the same `frontier shards write` again")
