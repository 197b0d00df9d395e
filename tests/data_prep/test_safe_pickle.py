"""The restricted reader of pickles: what GEO-Bench writes comes out, and nothing else comes in."""

from __future__ import annotations

import datetime
import io
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import safe_pickle
from data_prep.safe_pickle import Array, Name, Stub, load, load_text
from frontier.errors import UserError

HERE = "a.hdf5"


@contextmanager
def modules(**classes: dict[str, type]) -> Iterator[None]:
    """Classes under module names of others, so that pickle writes them as those do (dots spelt __)."""
    made = {}
    for name, members in classes.items():
        module = types.ModuleType(name.replace("__", "."))
        for key, member in members.items():
            member.__module__, member.__qualname__ = module.__name__, key
            setattr(module, key, member)
        made[module.__name__] = module
        for parent in (module.__name__.rsplit(".", count)[0] for count in range(1, module.__name__.count(".") + 1)):
            made.setdefault(parent, types.ModuleType(parent))
    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def plain(name: str) -> type:
    return type(name, (), {})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_and_numbers(protocol: int) -> None:
    shared = [1, "zwölf"]
    value = {
        "label": 3,
        "list": [1, -2, 2**40, 2.5, None, True, False, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "bytes": b"\x00\xff",
        "shared": [shared, shared],
        "numbers": [np.int64(-7), np.float32(0.25), np.bool_(True), np.uint8(200)],
        "date": datetime.date(2020, 2, 29),
        "time": datetime.datetime(
            2019, 11, 5, 10, 30, 1, 250000, tzinfo=datetime.timezone(datetime.timedelta(hours=2))
        ),
        "ordered": OrderedDict([("b", 1), ("a", 2)]),
    }
    data = pickle.dumps(value, protocol)
    found = load(data, HERE)
    assert found == value
    assert [type(n) for n in found["numbers"]] == [int, float, bool, int]
    assert type(found["ordered"]) is dict
    assert load_text(str(data), HERE) == value


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=300)
KEYS = st.text() | st.integers() | st.booleans() | st.none()


@settings(max_examples=100, deadline=None, database=None)
@given(
    st.recursive(
        SCALARS,
        lambda inner: (
            st.lists(inner) | st.dictionaries(KEYS, inner) | st.tuples(inner, inner, inner, inner) | st.tuples(inner)
        ),
        max_leaves=30,
    ),
    st.integers(2, 5),
)
def test_as_pickle_reads_plain_values(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    assert load_text(str(data), HERE) == pickle.loads(data) == value


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays(protocol: int) -> None:
    for values in (
        np.arange(43) % 2,
        np.asfortranarray(np.arange(6.0, dtype=">f4").reshape(2, 3)),
        np.zeros((0, 4), np.int16),
        np.array(5),
    ):
        found = load(pickle.dumps(values, protocol), HERE)
        assert isinstance(found, Array)
        assert np.array_equal(found.values, values) and found.values.shape == values.shape


def test_objects_are_data() -> None:
    sentinel, specs, accuracy = plain("Sentinel2"), plain("TaskSpecifications"), plain("Accuracy")
    with modules(
        geobench__dataset={"Sentinel2": sentinel}, ccb__io__task={"TaskSpecifications": specs, "Accuracy": accuracy}
    ):
        band, task = sentinel(), specs()
        band.__dict__.update(name="02 - Blue", alt_names=("2", "blue"), wavelength=0.49)
        task.__dict__.update(bands_info=[band, band], eval_loss=accuracy, spatial_resolution=np.float64(10))
        data = pickle.dumps(task)
    found = load(data, HERE)
    assert isinstance(found, Stub) and found.kind == "task.TaskSpecifications"
    assert found.get("eval_loss") == Name("task.Accuracy")
    assert found.get("spatial_resolution") == 10
    assert [b.get("name") for b in found.get("bands_info")] == ["02 - Blue"] * 2
    assert found.get("bands_info")[0].kind == "dataset.Sentinel2"
    assert "geobench.dataset" not in sys.modules


def test_rasterio_and_affine_as_installed() -> None:
    crs, affine = pytest.importorskip("rasterio.crs"), pytest.importorskip("affine")
    transform = affine.Affine(10, 0, 331040, 0, -10, -3714560)
    found = load(pickle.dumps({"crs": crs.CRS.from_epsg(32634), "transform": transform}), HERE)
    assert found["crs"].kind == "rasterio.CRS" and 'AUTHORITY["EPSG","32634"]]' in found["crs"].state
    assert found["transform"].kind == "affine.Affine" and found["transform"].args[:6] == tuple(transform)[:6]


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


@pytest.fixture
def command(tmp_path: Path) -> str:
    """A command that leaves a trace, which the tests look for."""
    return f"touch {tmp_path / 'ran'}"


def by_hand(*pieces: bytes | str) -> bytes:
    """Protocol 2 from opcodes; a str piece is a unicode value."""
    out = b"\x80\x02"
    for piece in pieces:
        out += piece if isinstance(piece, bytes) else b"X" + struct.pack("<I", len(piece.encode())) + piece.encode()
    return out + b"."


def test_no_code_runs(tmp_path: Path, command: str) -> None:
    stub = b"cgeobench.dataset\nSentinel2\n"
    hostile = {
        "os.system": Call(os.system, command),
        "eval": Call(eval, f"__import__('os').system({command!r})"),
        "exec": Call(exec, f"import os; os.system({command!r})"),
        "subprocess.Popen": Call(subprocess.Popen, command.split()),
        "builtins.getattr": Call(getattr, Call(__import__, "os"), "system"),
        "__import__": Call(__import__, "os"),
        "pickle.loads": Call(pickle.loads, pickle.dumps(Call(os.system, command))),
        "pathlib": Call(Path, "x"),
        "io.open": Call(io.open, str(tmp_path / "ran"), "w"),
        "object array": np.array([Call(os.system, command)], dtype=object),
        "object scalar": Call(np._core.multiarray.scalar, np.dtype("O"), pickle.dumps(Call(os.system, command))),
        "masked array": np.ma.MaskedArray([1, 2]),
        "record dtype": np.zeros(2, [("a", "i4")]),
        "text dtype": np.array(["abc"]),
    }
    for name, value in hostile.items():
        for protocol in (0, 2, 3, 4):
            with pytest.raises(UserError, match=f"{HERE}: its pickled metadata is refused, and nothing of it was run"):
                load(pickle.dumps(value, protocol), HERE)
            assert not (tmp_path / "ran").exists(), name
    crafted = {
        "dotted name": by_hand(b"cgeobench.dataset\nSentinel2.__init__.__globals__\n"),
        "chain by stack": b"\x80\x04\x8c\x10geobench.dataset\x8c\x0aos.systemXX\x93.",
        "stack global of a number": b"\x80\x04K\x01K\x02\x93.",
        "module of a module": by_hand(b"cgeobench.dataset\npickle\n", command, b"\x85R"),
        "reduce on a stub": by_hand(stub, b")R"),
        "reduce on an instance": by_hand(stub, b")\x81", command, b"\x85R"),
        "reduce on text": by_hand("os.system", command, b"\x85R"),
        "reduce with a list": by_hand(b"cdatetime\ndate\n", b"]R"),
        "new object of a function": by_hand(b"cdatetime\ndate\n", b")\x81"),
        "new object of text": by_hand("Sentinel2", b")\x81"),
        "new array": by_hand(b"cnumpy\nndarray\n", b")\x81"),
        "state on a class": by_hand(stub, b"}b"),
        "state on a dictionary": by_hand(b"}}b"),
        "state on a list": by_hand(b"]}b"),
        "state with slots": by_hand(stub, b")\x81N}\x86b"),
        "state with other keys": by_hand(stub, b")\x81}K\x01K\x02sb"),
        "state of text": by_hand(stub, b")\x81", "x", b"b"),
        "set state by call": by_hand(stub, b")\x81", b"cbuiltins\nsetattr\n", b")R"),
        "items for a stub": by_hand(stub, b")\x81", "a", b"K\x01s"),
        "appending to a stub": by_hand(stub, b")\x81K\x01a"),
        "persistent id": b"\x80\x02Pos.system\n.",
        "extension": b"\x80\x02\x82\x01.",
        "INST": b"(S'touch x'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'touch x'\no.",
        "dtype of objects": by_hand(b"cnumpy\ndtype\n", "O8", b"\x89\x88\x87R"),
        "dtype with fields": by_hand(b"cnumpy\ndtype\n", "i4", b"\x89\x88\x87R(K\x03", "<", b"N}}K\x04K\x04K\x00tb"),
        "codec": by_hand(b"c_codecs\nencode\n", "x", "rot13", b"\x86R"),
    }
    for name, data in crafted.items():
        with pytest.raises(UserError, match="refused, and nothing of it was run"):
            load(data, HERE)
        assert not (tmp_path / "ran").exists(), name
    pickle.loads(pickle.dumps(hostile["os.system"]))
    assert (tmp_path / "ran").exists(), "the trace that is looked for does appear where pickle itself reads this"


def test_the_message_names_file_and_global() -> None:
    with pytest.raises(UserError, match=r"a.hdf5: .*it names 'posix.system', which is not part of GEO-Bench"):
        load(pickle.dumps(Call(os.system, "true")), HERE)


def test_a_state_sets_nothing_but_the_state() -> None:
    state = {"__class__": "x", "kind": "os.system", "get": 1, "__dict__": {}}
    stub = b"cgeobench.dataset\nSentinel2\n)\x81"
    found = load(by_hand(stub, pickle.dumps(state, 2)[2:-1], b"b"), HERE)
    assert type(found) is Stub and found.kind == "dataset.Sentinel2" and found.state == state
    assert found.get("kind") == "os.system" and callable(found.get)


def nested(depth: int, opening: bytes, closing: bytes) -> bytes:
    return b"\x80\x02" + opening * depth + closing * depth + b"."


def laughs(levels: int, width: int) -> bytes:
    """Lists of one shared list, `levels` deep: width ** levels values, if they are written out."""
    data = b"\x80\x02]q\x000"
    for level in range(levels):
        data += b"]q" + bytes([level + 1]) + b"(" + (b"h" + bytes([level])) * width + b"e0"
    return data + b"h" + bytes([levels]) + b"."


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(nested(45_000, b"", b"\x85") + b"", "damaged|missing", id="tuples of nothing"),
        pytest.param(b"\x80\x02)" + b"\x85" * 45_000 + b".", "nested more than 32", id="deep tuple"),
        pytest.param(b"\x80\x02" + b"]" * 24_000 + b"a" * 23_999 + b".", "nested more than 32", id="deep list"),
        pytest.param(b"\x80\x02})" + b"\x85" * 45_000 + b"K\x01s.", "a key of type tuple", id="deep key"),
        pytest.param(b"\x80\x02]q\x00h\x00a.", "nested more than 32", id="list in itself"),
        pytest.param(laughs(12, 10), "unfolds to more than", id="billion laughs"),
        pytest.param(b"\x80\x02" + b"K\x010" * 30_000 + b"N.", "opcodes", id="long program"),
        pytest.param(b"\x80\x02Nr\xff\xff\xff\x7f.", "", id="far memo"),
        pytest.param(b"\x80\x04B\xff\xff\xff\x7fabc.", "damaged", id="huge bytes"),
        pytest.param(b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.", "damaged", id="huger bytes"),
        pytest.param(b"\x80\x02\x8b\xff\xff\xff\x7f1.", "damaged", id="huge number"),
        pytest.param(b"L" + b"9" * 100_000 + b"L\n.", "damaged", id="long decimal"),
        pytest.param(b"N" * (1 << 21), "more than 1,048,576", id="too long"),
        pytest.param(b"", "damaged", id="empty"),
        pytest.param(b"\x80\x04N", "damaged", id="no end"),
        pytest.param(b"\x80\x04.", "left over", id="nothing"),
        pytest.param(b"\x80\x04NN.", "left over", id="too much"),
        pytest.param(b"\x80\x04N.x", "follows its end", id="appendix"),
        pytest.param(b"\x80\x04(.", "left over", id="mark"),
        pytest.param(b"\x80\x04h\x05.", "damaged", id="no such memo"),
        pytest.param(b"\x80\x04}(K\x01u.", "without a value", id="odd items"),
        pytest.param(b"\x80\x04e.", "mark is missing", id="no mark"),
        pytest.param(b"\x80\x04R.", "missing", id="reduce of nothing"),
        pytest.param(b"\x80\x04\xff\xfe.", "damaged", id="no opcode"),
        pytest.param(by_hand(b"cdatetime\ndate\n", b"C\x04\x07\xe4\x0d\x01\x85R"), "damaged", id="month 13"),
    ],
)
def test_bombs_and_torn_pickles(data: bytes, reason: str) -> None:
    small = len(data) < 2000  # tracing is slow, and what asks for much memory in few bytes is what matters
    if small:
        tracemalloc.start()
    try:
        if reason:
            with pytest.raises(UserError, match=f"refused.*({reason})"):
                load(data, HERE)
        else:
            assert load(data, HERE) is None
        assert not small or tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_copies_of_bytes_are_bounded() -> None:
    text = "x" * (safe_pickle.MAX_ENCODED + 1)
    with pytest.raises(UserError, match="_codecs.encode"):
        load(pickle.dumps(text.encode(), 2), HERE)
    assert load(pickle.dumps(text.encode(), 3), HERE) == text.encode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "b'",
        "'abc'",
        "b'a' b'b'",
        "b'a'+b'b'",
        "(" * 100_000 + ")" * 100_000,
        "-" * 100_000 + "1",
        "[" * 3000,
        "b'\\q'",
        "b'\\N{DIGIT ONE}'",
        "b'\\u0041'",
        "b'ä'",
        "b'a\nb'",
        "b'a\x00b'",
        "rb'a'",
        "b'''a'''",
        "b'a' * 10**9",
        "__import__('os').system('true')",
        "b'it's'",
        "x" * (4 * safe_pickle.MAX_BYTES + 4),
    ],
)
def test_text_that_is_not_one_literal(text: str) -> None:
    with pytest.raises(UserError, match=r"a.hdf5: .*refused.*(not the text of a bytes object|characters)"):
        load_text(text, HERE)


def test_every_byte_and_quote_survives_the_text() -> None:
    for raw in (bytes(range(256)), b"'", b'"', b"'\"", b"\\", b"it's"):
        assert load_text(str(pickle.dumps(raw)), HERE) == raw


def test_random_pickles_end_in_one_line() -> None:
    random = np.random.default_rng(0)
    sentinel = plain("Sentinel2")
    with modules(geobench__dataset={"Sentinel2": sentinel}):
        whole = pickle.dumps({"a": [sentinel(), np.int64(3)], "d": datetime.date(2020, 1, 1), "b": np.arange(3)})
    lines = []
    for _ in range(1000):
        torn = bytearray(whole)
        for place in random.integers(0, len(torn), random.integers(1, 6)):
            torn[place] = random.integers(0, 256)
        try:
            load(bytes(torn[: random.integers(1, len(torn) + 1)]), HERE)
        except UserError as error:
            lines.append(str(error))
    assert len(lines) > 500
    assert not any("\n" in line for line in lines)
