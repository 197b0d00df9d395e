"""Reading the pickles of GEO-Bench's metadata without running anything that is in them.

A pickle is a program. `pickle.Unpickler` imports what it names and calls it; a filter in `find_class` still leaves the
calls, `__setstate__` and numpy's own unpickling inside. Here a small machine of its own goes through the opcodes
(`pickletools.genops` cuts them apart) and never imports or calls anything that a pickle names: a global is looked up in
the tables below and becomes a `Stub`, a container of plain values, or goes to one function written here (dates, numpy
numbers). Everything else is refused with the name of the file and of the global. Opcodes, depth and the size of what
comes out, shared parts counted as often as they appear, are bounded, so that no pickle can exhaust memory or the stack.

The types are those that GEO-Bench v1.0 writes (ServiceNow/geo-bench: geobench/dataset.py, label.py, task.py), under the
module names of all its releases.
"""

from __future__ import annotations

import ast
import datetime
import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from frontier.errors import UserError

MAX_BYTES = 1 << 20
"""Longest pickle in bytes; the longest published one (m-forestnet, with an outline as text) has 169,322."""
MAX_OPCODES = 50_000
MAX_NODES = 50_000
"""Most values in the result, each counted as often as it can be reached."""
MAX_DEPTH = 32
MAX_ENCODED = 4096


class Refused(Exception):
    """What a pickle asks for is not among what is read here."""


@dataclass
class Stub:
    """An object of a known class: no code, only what its pickle says. `kind` is "module.Class" without geobench's path."""

    kind: str
    args: tuple[Any, ...] = ()
    state: Any = None

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute that the pickle sets."""
        return self.state.get(name, default) if isinstance(self.state, dict) else default


@dataclass(frozen=True)
class Name:
    """A known class or function that stands in a pickle by name."""

    kind: str


@dataclass
class _Dtype:
    code: str
    order: Literal["<", ">", "|", "="] = "<"

    def numpy(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.order)


@dataclass
class Array:
    """A numpy array of numbers, read-only: a view of the pickle's bytes."""

    values: np.ndarray = field(default_factory=lambda: np.zeros(0))


def _module_names() -> dict[tuple[str, str], str]:
    parts = {
        "dataset": (
            "BandInfo SpectralBand Sentinel1 Sentinel2 Landsat8 Mask ElevationBand MultiBand HyperSpectralBands "
            "CloudProbability SegmentationClasses"
        ),
        "label": "LabelType Classification SemanticSegmentation MultiLabelClassification Detection Regression PointAnnotation",
        "task": "TaskSpecifications SegmentationAccuracy Accuracy MultilabelAccuracy",
    }
    out = {}
    for part, classes in parts.items():
        for name in classes.split():
            for module in (f"geobench.{part}", f"geobench.io.{part}", f"ccb.io.{part}", "geobench.io", "ccb.io"):
                out[module, name] = f"{part}.{name}"
            out["geobench", name] = f"{part}.{name}"
    return out


CLASSES = _module_names() | {("affine", "Affine"): "affine.Affine", ("rasterio.crs", "CRS"): "rasterio.CRS"}
"""(module, name) -> kind of the classes that become a `Stub`."""


def _date(raw: bytes) -> datetime.date:
    (high, low, month, day) = _bytes(raw, 4)
    return datetime.date(high * 256 + low, month, day)


def _datetime(raw: bytes, zone: Any = None) -> datetime.datetime:
    high, low, month, day, hour, minute, second, a, b, c = _bytes(raw, 10)
    if zone is not None and not isinstance(zone, datetime.timezone):
        raise Refused("a time zone of another type")
    return datetime.datetime(
        high * 256 + low, month & 0x7F, day, hour, minute, second, a << 16 | b << 8 | c, zone, fold=month >> 7
    )


def _timedelta(days: int = 0, seconds: int = 0, microseconds: int = 0) -> datetime.timedelta:
    return datetime.timedelta(_int(days), _int(seconds), _int(microseconds))


def _timezone(offset: Any) -> datetime.timezone:
    if not isinstance(offset, datetime.timedelta):
        raise Refused("a time zone of another type")
    return datetime.timezone(offset)


def _ordered(*items: Any) -> dict[Any, Any]:
    if items:
        raise Refused("an OrderedDict with arguments")
    return {}


def _latin1(text: Any, coding: Any) -> bytes:
    # How Python 3 writes bytes in the protocols before 3.
    # It copies, so a long text called for again and again would fill the memory: it is for numbers and dates.
    if not isinstance(text, str) or coding not in ("latin1", "latin-1") or len(text) > MAX_ENCODED:
        raise Refused("_codecs.encode with other arguments")
    return text.encode("latin-1")


def _no_bytes(*arguments: Any) -> bytes:
    # How the same protocols write b"".
    if arguments:
        raise Refused("bytes with arguments")
    return b""


def _dtype(code: Any, align: Any = False, copy: Any = True) -> _Dtype:
    if not isinstance(code, str) or not re.fullmatch("b1|[iu][1248]|f[248]", code):
        raise Refused(f"numpy type {code!r}: only plain numbers are read")
    return _Dtype(code)


def _scalar(dtype: Any, raw: Any) -> Any:
    if not isinstance(dtype, _Dtype):
        raise Refused("a numpy scalar without a type")
    return np.frombuffer(_bytes(raw, dtype.numpy().itemsize), dtype.numpy())[0].item()


def _reconstruct(kind: Any, shape: Any, code: Any) -> Array:
    if kind != Name("numpy.ndarray"):
        raise Refused("an array of another class than numpy.ndarray")
    return Array()


FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("datetime", "date"): _date,
    ("datetime", "datetime"): _datetime,
    ("datetime", "timedelta"): _timedelta,
    ("datetime", "timezone"): _timezone,
    ("collections", "OrderedDict"): _ordered,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "dtype"): _dtype,
}
for _core in ("numpy.core.multiarray", "numpy._core.multiarray"):
    FUNCTIONS[_core, "scalar"] = _scalar
    FUNCTIONS[_core, "_reconstruct"] = _reconstruct
_BY_KIND = {".".join(key): function for key, function in FUNCTIONS.items()}


def _bytes(raw: Any, size: int) -> bytes:
    if not isinstance(raw, bytes) or len(raw) != size:
        raise Refused(f"other than {size} bytes where a number or date is stored")
    return raw


def _int(value: Any) -> int:
    if not isinstance(value, int):
        raise Refused("another value where a whole number is stored")
    return value


def look_up(module: str, name: str) -> Name:
    """The known global of that name. Raises `Refused` for every other; nothing is imported."""
    if (module, name) in CLASSES:
        return Name(CLASSES[module, name])
    if (module, name) in FUNCTIONS:
        return Name(f"{module}.{name}")
    if (module, name) == ("numpy", "ndarray"):
        return Name("numpy.ndarray")
    shown = f"{module}.{name}"[:120]
    raise Refused(f"it names {shown!r}, which is not part of GEO-Bench's metadata")


def load_text(text: str, where: str) -> Any:
    """What is pickled in `text`, the repr of a bytes object, as GEO-Bench stores it in HDF5. Raises `UserError`."""
    if len(text) > 4 * MAX_BYTES + 3:
        raise _error(where, f"it has {len(text):,} characters, more than {4 * MAX_BYTES + 3:,}")
    # One literal with the escapes that repr writes: nothing for a parser to nest, evaluate or warn of.
    if not re.fullmatch(
        r"""b(?:'(?:[ -&(-\[\]-~]|\\[\\'"nrt]|\\x[0-9a-f]{2})*+'|"(?:[ !#-\[\]-~]|\\[\\'"nrt]|\\x[0-9a-f]{2})*+")""",
        text,
    ):
        raise _error(where, "it is not the text of a bytes object, as b'…'")
    return load(ast.literal_eval(text), where)


def load(data: bytes, where: str) -> Any:
    """What is pickled in `data`: plain values, dates, `Stub`, `Array` and `Name`. Raises `UserError` that names `where`.

    Containers are new: nothing in the result has code of its own.
    """
    try:
        if len(data) > MAX_BYTES:
            raise Refused(f"it has {len(data):,} bytes, more than {MAX_BYTES:,}")
        value = _Machine().run(data)
        _check_size(value)
        return value
    except Refused as refusal:
        raise _error(where, str(refusal)) from None
    # Torn and made-up pickles: what genops, int(), struct, decoding and the stack say of them.
    except (ValueError, IndexError, TypeError, KeyError, OverflowError, AttributeError, EOFError) as error:
        raise _error(where, f"it is damaged ({type(error).__name__}: {str(error)[:120]})") from None


def _error(where: str, reason: str) -> UserError:
    return UserError(f"{where}: its pickled metadata is refused, and nothing of it was run: {reason}: fetch it again")


def _check_size(value: Any) -> None:
    """Raise `Refused` where the result is too deep (or holds itself) or too large once written out."""
    nodes = 0
    left = [(value, 0)]
    while left:
        item, depth = left.pop()
        nodes += 1
        if depth > MAX_DEPTH:
            raise Refused(f"it is nested more than {MAX_DEPTH} deep")
        if nodes > MAX_NODES:
            raise Refused(f"it unfolds to more than {MAX_NODES:,} values")
        if isinstance(item, dict):
            left.extend((inner, depth + 1) for pair in item.items() for inner in pair)
        elif isinstance(item, (list, tuple)):
            left.extend((inner, depth + 1) for inner in item)
        elif isinstance(item, Stub):
            left.append((item.args, depth + 1))
            left.append((item.state, depth + 1))


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}
_LITERALS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_LITERALS |= {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}


class _Machine:
    """The stack and memo of one pickle. Errors of Python on a torn pickle are left to `load`."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for steps, (opcode, argument, position) in enumerate(pickletools.genops(data)):
            if steps >= MAX_OPCODES:
                raise Refused(f"it has more than {MAX_OPCODES:,} opcodes")
            name = opcode.name
            if name == "STOP":
                if position != len(data) - 1 or len(self.stack) != 1 or self.stack[0] is _MARK:
                    raise Refused("something follows its end, or is left over")
                return self.stack[0]
            self._step(name, argument)
        raise Refused("it has no end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _PUTS:
            self.memo[argument] = self._top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self._top()
        elif name in _GETS:
            stack.append(self.memo[argument])
        elif name in _TUPLES:
            stack.append(tuple(self._pop(_TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(self._marked()))
        elif name == "LIST":
            stack.append(self._marked())
        elif name == "DICT":
            stack.append(self._fill({}, self._marked()))
        elif name == "APPEND":
            (item,) = self._pop(1)
            self._list().append(item)
        elif name == "APPENDS":
            items = self._marked()
            self._list().extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._marked() if name == "SETITEMS" else self._pop(2)
            target = self._top()
            if not isinstance(target, dict):
                raise Refused("items for something that is not a dictionary")
            self._fill(target, items)
        elif name == "GLOBAL":
            module, _, what = argument.partition(" ")
            stack.append(look_up(module, what))
        elif name == "STACK_GLOBAL":
            module, what = self._pop(2)
            if not isinstance(module, str) or not isinstance(what, str):
                raise Refused("a global that is not named by text")
            stack.append(look_up(module, what))
        elif name == "REDUCE":
            self._reduce()
        elif name == "NEWOBJ":
            self._new_object()
        elif name == "BUILD":
            self._build()
        elif name == "POP":
            self._pop(1)
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"it uses the opcode {name}, which GEO-Bench's metadata does not need")

    def _top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise Refused("a value is missing")
        return self.stack[-1]

    def _pop(self, count: int) -> list[Any]:
        taken = self.stack[len(self.stack) - count :] if len(self.stack) >= count else []
        if len(taken) != count or any(item is _MARK for item in taken):
            raise Refused("a value is missing")
        del self.stack[-count:]
        return taken

    def _marked(self) -> list[Any]:
        for start in range(len(self.stack) - 1, -1, -1):
            if self.stack[start] is _MARK:
                items = self.stack[start + 1 :]
                del self.stack[start:]
                return items
        raise Refused("a mark is missing")

    def _list(self) -> list[Any]:
        target = self._top()
        if type(target) is not list:
            raise Refused("items for something that is not a list")
        return target

    def _fill(self, target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
        if len(items) % 2:
            raise Refused("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Keys of other types could be deep, and hashing them would go through all of it.
            if key is not None and type(key) not in (str, int, float, bool, bytes):
                raise Refused(f"a key of type {type(key).__name__}")
            target[key] = value
        return target

    def _reduce(self) -> None:
        called, arguments = self._pop(2)
        function = _BY_KIND.get(called.kind) if isinstance(called, Name) else None
        if function is None or type(arguments) is not tuple:
            shown = called.kind if isinstance(called, Name) else type(called).__name__
            raise Refused(f"it calls {shown!r}")
        self.stack.append(function(*arguments))

    def _new_object(self) -> None:
        made, arguments = self._pop(2)
        if not isinstance(made, Name) or made.kind in _BY_KIND or type(arguments) is not tuple:
            raise Refused("it makes an object of something that is not a known class")
        if made.kind == "numpy.ndarray":
            raise Refused("it makes a numpy array in an unknown way")
        self.stack.append(Stub(made.kind, arguments))

    def _build(self) -> None:
        (state,) = self._pop(1)
        target = self._top()
        if isinstance(target, _Dtype):
            self._build_dtype(target, state)
        elif isinstance(target, Array):
            self._build_array(target, state)
        elif isinstance(target, Stub):
            plain = isinstance(state, dict) and all(isinstance(key, str) for key in state)
            if not plain and not (target.kind == "rasterio.CRS" and isinstance(state, str)):
                raise Refused(f"a state of type {type(state).__name__} for {target.kind}")
            target.state = state
        else:
            raise Refused(f"a state for {type(target).__name__}")

    def _build_dtype(self, target: _Dtype, state: Any) -> None:
        # (version, byte order, subtype, names, fields, size, alignment, flags): plain numbers have none of the middle.
        if type(state) is not tuple or len(state) != 8 or state[2:5] != (None, None, None):
            raise Refused("a numpy type with fields")
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise Refused("a numpy type of unknown byte order")
        target.order = order

    def _build_array(self, target: Array, state: Any) -> None:
        if type(state) is not tuple or len(state) != 5:
            raise Refused("an array in an unknown form")
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or type(shape) is not tuple or len(shape) > 4:
            raise Refused("an array in an unknown form")
        if any(type(size) is not int or size < 0 for size in shape):
            raise Refused("an array of an impossible shape")
        kind = dtype.numpy()
        values = np.frombuffer(_bytes(raw, math.prod(shape) * kind.itemsize), kind)
        target.values = values.reshape(shape, order="F" if fortran is True else "C")
