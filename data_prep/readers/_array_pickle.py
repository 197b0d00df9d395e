"""Reading one numeric array out of a pickle without building anything that the pickle names.

Some archives hold arrays that `numpy.ma.MaskedArray.dump` wrote: a pickle, whatever the file is called. A pickle may
name any function of the machine and call it. Here the few names that numpy's arrays need are answered with inert
stand-ins that only keep what they are given, every other name is refused, and the array is put together from the raw
bytes after its type and shape were checked.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from frontier.errors import UserError

LIMIT = 1 << 30
"""Largest file that is looked at, bytes."""
MAX_STEPS = 1000
"""Opcodes of a pickle; a masked array takes fewer than a hundred."""


class _Inert:
    """Keeps the arguments that it is made with and the state that it is given."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Masked(_Inert):
    """A masked array under reconstruction; its state is (version, shape, dtype, in Fortran order, data, mask, fill)."""


class _Plain(_Inert):
    """A plain array under reconstruction; its state is (version, shape, dtype, in Fortran order, data)."""


class _Type(_Inert):
    """A dtype: arguments (code, …), state (version, byte order, …)."""


class _Name(_Inert):
    """A class that is only named."""


def _latin(text: Any, encoding: Any = "latin1") -> bytes:
    """What protocol 2 asks of `_codecs.encode` to make bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("encodes something else than bytes")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """What protocol 2 asks of `builtins.bytes` to make b""."""
    return b""


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Name,
    ("numpy.ma.core", "MaskedArray"): _Name,
    ("numpy.ma.core", "_mareconstruct"): _Masked,
    ("numpy.ma", "MaskedArray"): _Name,
    ("_codecs", "encode"): _latin,
    ("builtins", "bytes"): _no_bytes,
    ("__builtin__", "bytes"): _no_bytes,
} | {(f"numpy.{core}.multiarray", "_reconstruct"): _Plain for core in ("core", "_core")}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"names {module}.{name}, which is not part of an array")
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("refers to objects outside the file")


def is_pickle(path: str | Path) -> bool:
    """Whether a file begins as a pickle of protocol 2 or later does, and not as an .npy array."""
    with open(path, "rb") as file:
        begins = file.read(2)
    return len(begins) == 2 and begins[0] == 0x80 and 2 <= begins[1] <= 5


def read_array_pickle(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """(values, valid: bool, True where not masked) of a pickled numeric array. Raises `UserError`."""
    data = Path(path).read_bytes() if Path(path).stat().st_size <= LIMIT else b""
    if not data:
        raise UserError(f"{path}: is empty, or larger than {LIMIT >> 20} MiB")
    try:
        _check_steps(data)
        found = _Reader(io.BytesIO(data)).load()
        return _build(found)
    # A damaged pickle fails in every way that Python knows, of which none may end the program.
    except (Exception, RecursionError) as error:
        text = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a pickled array ({text})") from None


def _check_steps(data: bytes) -> None:
    """Raise `ValueError` where there are more steps than an array needs, or a far memo, which takes memory up to it."""
    for steps, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if steps > MAX_STEPS or (opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > MAX_STEPS):
            raise ValueError(f"takes more than {MAX_STEPS} steps or places")


def _build(found: Any) -> tuple[np.ndarray, np.ndarray]:
    if type(found) not in (_Masked, _Plain) or not isinstance(found.state, tuple):
        raise ValueError("holds no array")
    size = 7 if type(found) is _Masked else 5
    if len(found.state) != size:
        raise ValueError("the array's state is of another version")
    _, shape, kind, fortran, data = found.state[:5]
    if not (isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)):
        raise ValueError("the shape is none")
    dtype = _dtype(kind)
    order = "F" if fortran else "C"
    values = _shaped(data, dtype, shape, order)
    if type(found) is _Plain:
        return values, np.ones(shape, bool)
    return values, _shaped(found.state[5], np.dtype(np.uint8), shape, order) == 0


def _dtype(kind: Any) -> np.dtype:
    if type(kind) is not _Type or not kind.arguments or not isinstance(kind.arguments[0], str):
        raise ValueError("the type of the numbers is none")
    code, state = kind.arguments[0], kind.state
    if code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"):
        raise ValueError(f"its type is {code[:20]!r}, plain numbers are expected")
    swapped = isinstance(state, tuple) and len(state) > 1 and state[1] == ">"
    return np.dtype((">" if swapped else "<") + code)


def _shaped(data: Any, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    count = 1
    for n in shape:
        count *= n
    if not isinstance(data, bytes) or len(data) != count * dtype.itemsize:
        raise ValueError(f"its bytes are not those of {shape} numbers of type {dtype}")
    return np.frombuffer(data, dtype).reshape(shape, order=order)
