"""NumPy arrays as a source: one sample a file, or stacks of many; .npy is mapped, never unpickled.

```
FOLDER/a.npy FOLDER/b/c.npy      --set axes=HWC: each a sample (CHW, TCHW, THWC, TC, HW, …)
FOLDER/x.npy or x.npz            --set axes=NHWC: stacks of samples
```
Samples are stored in the order T, C, H, W. Each is read once before anything is written: it is hashed, so that copies
stay in one split, and what is not a number is counted (and kept). A compressed .npz cannot be mapped: it is unpacked whole for every block of
samples, so rewrite large ones as .npy.
"""

from __future__ import annotations

import hashlib
import math
import os
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from data_prep import array_input
from data_prep.array_input import class_numbers, input_column, named_bands, parse_axes, to_sample, unusable
from data_prep.listing import files_below
from data_prep.readers.registry import Reader, Request, Setting
from data_prep.records import Record, RecordSource, inputs_digest, need_regular
from data_prep.source import Source, Target
from frontier.errors import UserError

_SCAN_BYTES = 32 << 20
_PIECE = 1 << 20
_BROKEN = (
    *(OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError),
    *(
        OverflowError,
        TypeError,
        SyntaxError,
        tokenize.TokenError,
        MemoryError,
    ),  # what a damaged header of a .npy ends in
)


@dataclass(frozen=True)
class File:
    """What the header of an array file shows: shape along the axes asked for, type, its labels; or why it is no use."""

    shape: tuple[int, ...] = ()
    dtype: str = ""
    key: str = ""
    labels: np.ndarray | None = None
    error: str = ""


@dataclass(frozen=True)
class Piece:
    """Some samples of a file, read at listing: digests; how many values are NaN or infinite, and in how many samples."""

    digests: tuple[bytes, ...] = ()
    nan: int = 0
    nan_samples: int = 0
    infinite: int = 0
    error: str = ""


def inspect(task: tuple[str, str, int | None, str, str]) -> File:
    """Look at one file's header. `task` = (path, axes, number of bands named or None, key, labels' key)."""
    path, axes, bands, key, labels_key = task
    try:
        need_regular(path)
        if not path.endswith(".npz"):
            array = _mapped(path)
            error = unusable(array.shape, array.dtype, axes, bands)
            return File(array.shape, array.dtype.str, error=error)
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            for wanted in filter(None, (key, labels_key)):
                if wanted not in names:
                    return File(error=f"holds no array {wanted!r}, only {', '.join(names) or 'none'}")
            inputs = [name for name in names if name != labels_key]
            if not key and len(inputs) != 1:
                return File(error=f"holds {', '.join(inputs) or 'no arrays'}: choose the input with --set key=NAME")
            key = key or inputs[0]
            shape, dtype = _header(path, key)
            if labels_key:
                _header(path, labels_key)
            labels = np.asarray(archive[labels_key]) if labels_key else None
    except _BROKEN as error:
        return File(error=_reason(error))
    return File(shape, dtype.str, key, labels, unusable(shape, dtype, axes, bands))


def _reason(error: BaseException) -> str:
    text = (getattr(error, "strerror", None) or str(error) or "damaged").splitlines()[0]
    if "allow_pickle" in text or "Python objects" in text:
        return "holds Python objects, which are never unpickled: save it as an array of numbers"
    return f"cannot be read: {text}"


def _mapped(path: str) -> np.ndarray:
    with open(path, "rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise ValueError("not a .npy file")
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f".npy version {version[0]}.{version[1]}, which holds no plain numbers")


def _header(path: str, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array of a .npz. Raises `ValueError` for one that cannot be unpacked, or is damaged."""
    with zipfile.ZipFile(path) as archive, archive.open(_member(archive, key)) as file:
        shape, _, dtype = _read_header(file)
        info = archive.getinfo(_member(archive, key))
        size = math.prod(shape) * dtype.itemsize
        if not dtype.hasobject and size > info.file_size:
            raise ValueError(f"shape {shape} of {dtype} is {size:,} bytes, but the archive holds {info.file_size:,}")
        if info.compress_type == zipfile.ZIP_STORED:
            # It will be mapped, past the archive's checksum, which reading to the end compares.
            while file.read(_PIECE):
                pass
        elif info.file_size > (free := psutil.virtual_memory().available):
            raise ValueError(
                f"{info.file_size / (1 << 30):.1f} GiB once unpacked, {free / (1 << 30):.1f} GiB of memory are free: "
                "save it as .npy, which is mapped"
            )
    return shape, dtype


def _member(archive: zipfile.ZipFile, key: str) -> str:
    return f"{key}.npy" if f"{key}.npy" in archive.namelist() else key


@lru_cache(maxsize=16)
def _opened(path: str, key: str) -> np.ndarray | None:
    """The array, mapped; None for a compressed one, which cannot be."""
    if not path.endswith(".npz"):
        return _mapped(path)
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        info = archive.getinfo(_member(archive, key))
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            return None
        # The local header may differ from the directory's in the length of its extra field.
        file.seek(info.header_offset + 26)
        name, extra = np.frombuffer(file.read(4), "<u2").tolist()
        file.seek(info.header_offset + 30 + name + extra)
        shape, fortran, dtype = _read_header(file)
        if dtype.hasobject:
            raise ValueError("Python objects")
        order = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", offset=file.tell(), shape=shape, order=order)  # type: ignore[call-overload]


@lru_cache(maxsize=1)
def _unpacked(path: str, key: str) -> np.ndarray:
    """A compressed array, whole: as many at a time as one."""
    with np.load(path, allow_pickle=False) as archive:
        return np.asarray(archive[key])


def _array(path: str, key: str) -> np.ndarray:
    opened = _opened(path, key)
    return _unpacked(path, key) if opened is None else opened


def _sample(array: np.ndarray, axes: str, index: int) -> np.ndarray:
    if "N" not in axes:
        return to_sample(array, axes)
    return to_sample(array[(slice(None),) * axes.index("N") + (index,)], axes.replace("N", ""))


def scan(task: tuple[str, str, str, int, int]) -> Piece:
    """Read samples start … stop-1 of a file. `task` = (path, key, axes, start, stop)."""
    path, key, axes, start, stop = task
    digests, nan, nan_samples, infinite = [], 0, 0, 0
    try:
        array = _array(path, key)
        for index in range(start, stop):
            sample = _sample(array, axes, index)
            digests.append(hashlib.sha256(sample.data).digest())
            if sample.dtype.kind == "f":
                missing = int(np.isnan(sample).sum())
                nan, nan_samples = nan + missing, nan_samples + (missing > 0)
                infinite += int(np.isinf(sample).sum())
    except _BROKEN as error:
        return Piece(error=_reason(error))
    return Piece(tuple(digests), nan, nan_samples, infinite)


class NpySource(RecordSource):
    """Records of arrays; the payload is (file, key, index, digest)."""

    def __init__(
        self, request: Request, root: Path, axes: str, first: File, records: list[Record], **more: Any
    ) -> None:
        super().__init__(records, **more)
        self.root, self._axes = root, axes
        self.name = request.name or request.path.resolve().name
        self.license, self.citation = request.license, request.citation
        shape = [size for axis, size in zip(axes, first.shape, strict=True) if axis != "N"]
        plain = axes.replace("N", "")
        self.images = {"image": input_column(request.settings, shape, plain, np.dtype(first.dtype), request.gsd_m)}

    def load(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        # By file, so that a compressed one is unpacked once a block.
        order = sorted(range(len(rows)), key=lambda place: self.records[rows[place]].payload[:3])
        back = np.argsort(order)
        return {name: values[back] for name, values in super().load([rows[place] for place in order]).items()}

    def load_one(self, record: Record) -> dict[str, Any]:
        name, key, index, digest, *target = record.payload
        path = self.root / name
        try:
            sample = _sample(_array(str(path), key), self._axes, index)
        except (*_BROKEN, IndexError) as error:
            raise UserError(f"{path}: {_reason(error)}: restore it") from None
        if hashlib.sha256(sample.data).digest() != digest:
            raise UserError(f"{path}: changed while it was read: run the same command again")
        return {"image": sample, **({"target": target[0]} if target else {})}


def open_npy(request: Request) -> Source:
    """List, look at and read every array. Raises `UserError`."""
    request.need()
    settings = request.settings
    axes = parse_axes(settings["axes"], stacked=True)
    bands = named_bands(settings)
    root, names = _files(request)
    labels_file, labels_key = "", ""
    if settings["labels"].endswith(".npy"):
        labels_file = settings["labels"]
        names = [name for name in names if name != labels_file]
    elif settings["labels"] != "folder":
        labels_key = settings["labels"]
        if labels_key and any(name.endswith(".npy") for name in names):
            raise UserError(
                f"--set labels={labels_key}: a .npy file holds one array: give a file of labels such as labels.npy"
            )
    if settings["key"] and any(name.endswith(".npy") for name in names):
        raise UserError(f"--set key={settings['key']}: a .npy file holds one array: leave it out")
    if not names:
        raise UserError(
            f"reader {request.reader.name}: {request.path}: no .npy or .npz files: {request.reader.expects}"
        )
    count = len(bands) if bands is not None else None
    files = request.map(inspect, [(str(root / name), axes, count, settings["key"], labels_key) for name in names])
    kinds = Counter(_kind(file, axes) for file in files if not file.error)
    kind = kinds.most_common(1)[0][0] if kinds else None
    bad = {
        name: file.error or f"{_words(_kind(file, axes))}, the others are {_words(kind)}"
        for name, file in zip(names, files, strict=True)
        if file.error or (kind is not None and _kind(file, axes) != kind)
    }
    counts = [_samples(file, axes) for file in files]
    pieces = _read(request, root, axes, names, files, bad)
    targets, classes, label_errors = _labels(request, root, names, counts, files, labels_file, bad)
    bad |= label_errors
    notes = request.settle(list(bad.items()), len(names))
    records: list[Record] = []
    numbers = targets is not None and targets.dtype.kind == "f"
    starts = np.cumsum([0, *counts[:-1]])
    for name, file, start in zip(names, files, starts.tolist(), strict=True):
        if name in bad:
            continue
        digests = [digest for piece in pieces[name] for digest in piece.digests]
        for index, digest in enumerate(digests):
            label = -1 if targets is None or numbers else int(targets[start + index])
            more = (float(targets[start + index]),) if targets is not None and numbers else ()
            where = os.fsencode(f"{name}#{index}" if "N" in axes else name)
            records.append(Record(where, (name, file.key, index, digest, *more), label, digest))
    kept = [piece for name, found in pieces.items() if name not in bad for piece in found]
    copies = Counter(record.group for record in records)
    notes |= {
        "files": len(names) - len(bad),
        "duplicates": copies.total() - len(copies),
        "nan_values": sum(piece.nan for piece in kept),
        "nan_samples": sum(piece.nan_samples for piece in kept),
        "infinite_values": sum(piece.infinite for piece in kept),
    }
    source = NpySource(
        request,
        root,
        axes,
        next(file for name, file in zip(names, files, strict=True) if name not in bad),
        records,
        settings={
            "kind": request.reader.name,
            "axes": axes,
            "labels_sha256": None if targets is None else hashlib.sha256(targets.data).hexdigest(),
        },
        inputs=inputs_digest((os.fsdecode(record.id), record.group) for record in records),
        classes=classes,
        notes=notes,
    )
    if numbers:
        source.columns = {"target": "float64"}
        source.targets = {"target": Target("regression", "target", missing="nan")}
    return source


def _files(request: Request) -> tuple[Path, list[str]]:
    """The folder, and the array files in it by name; of a single file, its folder and itself."""
    if request.path.is_file():
        if request.path.suffix not in (".npy", ".npz"):
            raise UserError(f"reader {request.reader.name}: {request.path}: not .npy or .npz: {request.reader.expects}")
        return request.path.parent, [request.path.name]
    kinds = (".npy", ".npz")
    return request.path, [name for name in files_below(request.path, kinds) if name.endswith(kinds)]


def _kind(file: File, axes: str) -> tuple[tuple[int, ...], str]:
    """Shape without N, and type."""
    if file.error:
        return (), ""
    return tuple(n for axis, n in zip(axes, file.shape, strict=True) if axis != "N"), file.dtype


def _words(kind: tuple[tuple[int, ...], str] | None) -> str:
    return "" if kind is None else f"{kind[0]} {np.dtype(kind[1])}"


def _samples(file: File, axes: str) -> int:
    """Samples in a file, as far as its header tells: a file of one sample is one, whatever its state."""
    if "N" not in axes:
        return 1
    return file.shape[axes.index("N")] if len(file.shape) == len(axes) else 0


def _read(
    request: Request, root: Path, axes: str, names: Sequence[str], files: Sequence[File], bad: dict[str, str]
) -> dict[str, list[Piece]]:
    """Every sample of every file that is good so far; those that break join `bad`."""
    tasks, owners = [], []
    for name, file in zip(names, files, strict=True):
        if name in bad:
            continue
        count = _samples(file, axes)
        size = max(1, int(np.prod(file.shape)) * np.dtype(file.dtype).itemsize // count)
        step = max(1, _SCAN_BYTES // size)
        for start in range(0, count, step):
            tasks.append((str(root / name), file.key, axes, start, min(start + step, count)))
            owners.append(name)
    out: dict[str, list[Piece]] = {}
    for name, piece in zip(owners, request.map(scan, tasks), strict=True):
        out.setdefault(name, []).append(piece)
        if piece.error:
            bad[name] = piece.error
    return out


def _labels(
    request: Request,
    root: Path,
    names: Sequence[str],
    counts: Sequence[int],
    files: Sequence[File],
    labels_file: str,
    bad: dict[str, str],
) -> tuple[np.ndarray | None, tuple[str, ...], dict[str, str]]:
    """One label for every place of every file (class numbers, or real numbers), class names, and files in error."""
    setting = request.settings["labels"]
    if not setting:
        if request.settings["classes"]:
            raise UserError("--set classes: has no effect without --set labels")
        if any(Path(name).name == "labels.npy" for name in names):
            raise UserError(
                f"{root}: labels.npy lies among the arrays: pass --set labels=labels.npy, or move it elsewhere"
            )
        return None, (), {}
    errors: dict[str, str] = {}
    parts: list[np.ndarray] = []
    if labels_file:
        found = _label_file(root / labels_file)
        broken = [name for name, count in zip(names, counts, strict=True) if count == 0]
        if broken:
            raise UserError(f"{root / broken[0]}: {bad[broken[0]]}: without it {labels_file} cannot be told apart")
        if len(found) != sum(counts):
            raise UserError(f"{root / labels_file}: {len(found)} labels for {sum(counts)} samples: give one a sample")
        parts = [found]
    elif setting == "folder":
        parents = [name.split("/")[0] if "/" in name else None for name in names]
        if None in parents:
            raise UserError(f"--set labels=folder: {root / names[parents.index(None)]} lies in no class folder")
        parts = [np.repeat(np.array(parents), counts)]
    else:
        for name, file, count in zip(names, files, counts, strict=True):
            here = file.labels if name not in bad else None
            here = here.reshape(1) if here is not None and here.ndim == 0 and count == 1 else here
            if here is not None and (here.shape != (count,) or here.dtype.kind not in "biufU"):
                errors[name] = (
                    f"labels {setting!r} are {here.dtype} of shape {here.shape}, one a sample ({count}) is expected"
                )
                here = None
            parts.append(here if here is not None else np.full(count, -1))
        kinds = {
            part.dtype.kind for name, part in zip(names, parts, strict=True) if name not in bad and name not in errors
        }
        if "U" in kinds and len(kinds) > 1:
            raise UserError(f"{root}: {setting!r} holds names in some files and numbers in others: make them alike")
        if "U" in kinds:
            parts = [part if part.dtype.kind == "U" else np.full(len(part), "") for part in parts]
    labels = np.concatenate(parts)
    if labels.dtype.kind == "f":
        if request.settings["classes"]:
            raise UserError("--set classes: has no effect on labels that are real numbers")
        return labels.astype(np.float64), (), errors
    # Places of files that are left out have no say in which classes there are.
    good = np.repeat([name not in bad and name not in errors for name in names], counts)
    numbers, classes = class_numbers(
        [value if keep else None for value, keep in zip(labels.tolist(), good, strict=True)],
        request.settings["classes"],
    )
    owners = np.repeat(np.array(names), counts)
    for name, value in zip(owners.tolist(), numbers, strict=True):
        if isinstance(value, str):
            errors.setdefault(name, value)
    return np.array([-1 if isinstance(value, str) else value for value in numbers]), classes, errors


def _label_file(path: Path) -> np.ndarray:
    try:
        labels = np.asarray(_mapped(str(path)))
    except _BROKEN as error:
        raise UserError(f"{path}: {_reason(error)}") from None
    if labels.ndim != 1 or labels.dtype.kind not in "biufU":
        raise UserError(f"{path}: {labels.dtype} of shape {labels.shape}: one number or name a sample is expected")
    return labels


READERS = (
    Reader(
        name="npy",
        summary="NumPy arrays: one sample a .npy, or stacks in .npy or .npz, with or without labels",
        expects="a folder of .npy or .npz files, or one such file; say with --set axes=… how a file's axes are laid out",
        open=open_npy,
        uses=frozenset({"gsd_m", "on_error", "license", "citation"}),
        settings={
            "axes": Setting(
                "a letter an axis: N samples (stacks), T time, C band, H row, W column: HWC, NTCHW, …", None
            ),
            "labels": Setting(
                "where one label a sample is: the key in the .npz, a file such as labels.npy (in the order of the files' "
                "names), or folder (the first sub-folder is the class); integers and names are classes, real numbers a "
                "regression target"
            ),
            "classes": Setting("names of the classes in the order of their numbers, comma-separated"),
            "key": Setting("which array of a .npz is the input (default: the only one besides the labels)"),
            **array_input.SETTINGS,
        },
    ),
)
