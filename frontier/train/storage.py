"""Checkpoint files for torch.distributed.checkpoint without pickles: raw bytes a rank, one JSON index.

    step_00000020/
      rank_00000.bin …   raw little-endian tensor pieces, back to back
      index.json         for every tensor: dtype, global shape, pieces (offsets, sizes, file, byte range, crc32)
      complete.json      written last; a folder without it is torn

The folder is written under a temporary name and renamed once everything is in it, so a name without the prefix
is always complete. Every piece's crc32 is checked when it is read. Loading executes nothing from the files.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch.distributed.checkpoint import StorageReader, StorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from frontier.train.direct import DirectFile

INDEX, COMPLETE, SCHEMA = "index.json", "complete.json", 1
_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int64": torch.int64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class CorruptCheckpoint(Exception):
    """A checkpoint file that does not hold what its index says; the message names the file."""


@dataclass(frozen=True)
class Piece:
    """Where one chunk of a tensor lies."""

    file: str
    offset: int
    length: int
    crc32: int


def fsync_folder(path: Path) -> None:
    """Make renames and new names in a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write through to the disk, under a temporary name first."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The raw bytes of a tensor, copied only where it is not contiguous on the host."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")


class Writer(StorageWriter):
    """Writes into `folder` (a temporary name); `commit` runs on rank 0 once every rank's data is on disk."""

    def __init__(self, folder: Path, rank: int, commit: Callable[[], None]) -> None:
        self.folder, self.rank, self.commit = folder, rank, commit

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        name = f"rank_{self.rank:05d}.bin"
        results, offset = [], 0
        if plan.items:
            with DirectFile(self.folder / name) as file:
                for item in plan.items:
                    if item.type == WriteItemType.BYTE_IO:
                        raise TypeError(f"{item.index.fqn} is no tensor: a checkpoint holds tensors only")
                    data = as_bytes(planner.resolve_data(item))  # type: ignore[arg-type]
                    file.write(data)
                    piece = Piece(name, offset, len(data), zlib.crc32(data))
                    results.append(WriteResult(index=item.index, size_in_bytes=len(data), storage_data=piece))
                    offset += len(data)
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        pieces = {result.index: result.storage_data for rank in results for result in rank}
        tensors: dict[str, Any] = {}
        for fqn, entry in metadata.state_dict_metadata.items():
            assert isinstance(entry, TensorStorageMetadata)
            chunks = []
            for number, chunk in enumerate(entry.chunks):
                piece = (
                    pieces.get(MetadataIndex(fqn, chunk.offsets, number)) or pieces[MetadataIndex(fqn, chunk.offsets)]
                )
                chunks.append({"offsets": list(chunk.offsets), "sizes": list(chunk.sizes), **vars(piece)})
            tensors[fqn] = {"dtype": _NAMES[entry.properties.dtype], "shape": list(entry.size), "pieces": chunks}
        write_json(self.folder / INDEX, {"schema": SCHEMA, "tensors": tensors})
        fsync_folder(self.folder)
        self.commit()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return True


class Reader(StorageReader):
    """Reads a complete folder written by `Writer`. Raises CorruptCheckpoint."""

    def __init__(self, folder: Path, tensors: dict[str, Any]) -> None:
        """`tensors`: what `read_index` gives, which one rank reads for all."""
        self.folder, self.tensors = folder, tensors
        self.pieces: dict[tuple[str, tuple[int, ...]], Piece] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.sizes: dict[tuple[str, tuple[int, ...]], tuple[int, ...]] = {}

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        pass

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        entries: dict[str, Any] = {}
        for fqn, entry in self.tensors.items():
            dtype = _DTYPES[entry["dtype"]]
            chunks = []
            for piece in entry["pieces"]:
                key = (fqn, tuple(piece["offsets"]))
                self.pieces[key] = Piece(piece["file"], piece["offset"], piece["length"], piece["crc32"])
                self.sizes[key] = tuple(piece["sizes"])
                chunks.append(ChunkStorageMetadata(torch.Size(piece["offsets"]), torch.Size(piece["sizes"])))
            self.dtypes[fqn] = dtype
            entries[fqn] = TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(entry["shape"]), chunks)
        return Metadata(state_dict_metadata=entries)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        def key_of(item: ReadItem) -> tuple[str, tuple[int, ...]]:
            return item.storage_index.fqn, tuple(item.storage_index.offset or ())

        def place_of(item: ReadItem) -> tuple[str, int]:
            piece = self.pieces[key_of(item)]
            return piece.file, piece.offset

        last: tuple[Any, torch.Tensor | None] = None, None
        with PieceFiles(self.folder) as files:
            for item in sorted(plan.items, key=place_of):
                key = key_of(item)
                if last[0] != key:
                    last = key, files.read(self.pieces[key], self.dtypes[key[0]], self.sizes[key])
                part = last[1]
                assert part is not None
                for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                    part = part.narrow(dim, start, length)
                target = planner.resolve_tensor(item).detach()
                target.copy_(part)
                planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return True


def read_index(folder: Path) -> dict[str, Any]:
    """name -> {dtype, shape, pieces} of a checkpoint folder. Raises CorruptCheckpoint."""
    try:
        index = json.loads((folder / INDEX).read_text())
        tensors = index["tensors"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpoint(f"{folder / INDEX} is missing or unreadable ({type(error).__name__})") from None
    return tensors


class PieceFiles:
    """Reads pieces of a checkpoint folder. The last file stays open: whoever asks in the order of files opens each once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._name: str | None = None
        self._file: BinaryIO | None = None

    def read(self, piece: Piece, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """One chunk, its crc32 checked. Raises CorruptCheckpoint."""
        path = self.folder / piece.file
        if path.parent != self.folder:
            raise CorruptCheckpoint(f"{self.folder / INDEX} points outside its folder ({piece.file})")
        try:
            file = self._opened(piece.file)
            file.seek(piece.offset)
            data = file.read(piece.length)
        except OSError as error:
            raise CorruptCheckpoint(f"{path} cannot be read ({error.strerror})") from None
        if len(data) != piece.length or zlib.crc32(data) != piece.crc32:
            raise CorruptCheckpoint(f"{path} is damaged at byte {piece.offset} (crc32 or length differs)")
        if not data:
            return torch.empty(shape, dtype=dtype)
        return torch.from_numpy(np.frombuffer(bytearray(data), dtype=np.uint8)).view(dtype).reshape(shape)

    def _opened(self, name: str) -> BinaryIO:
        if self._file is None or self._name != name:
            self.close()
            self._file, self._name = open(self.folder / name, "rb"), name
        return self._file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> PieceFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_tensors(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    """All whole tensors whose name begins with `prefix` (dropped from the keys), on the host, without a process group."""
    result, pieces = {}, []
    for fqn, entry in read_index(folder).items():
        if not fqn.startswith(prefix):
            continue
        whole = torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]])
        result[fqn.removeprefix(prefix)] = whole
        pieces += [(whole, p) for p in entry["pieces"]]
    pieces.sort(key=lambda found: (found[1]["file"], found[1]["offset"]))
    with PieceFiles(folder) as files:
        for whole, p in pieces:
            piece = Piece(p["file"], p["offset"], p["length"], p["crc32"])
            region = tuple(slice(o, o + s) for o, s in zip(p["offsets"], p["sizes"], strict=True))
            whole[region] = files.read(piece, whole.dtype, tuple(p["sizes"]))
    return result
