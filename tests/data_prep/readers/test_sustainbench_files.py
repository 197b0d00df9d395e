"""Tables and compressed arrays as they arrive: whole, cut off, damaged."""

from __future__ import annotations

import calendar
from pathlib import Path

import numpy as np
import pytest

from data_prep.readers._sustainbench import date_seconds, read_npy, read_npz, read_table, whole_numbers
from data_prep.readers.registry import all_readers
from frontier.errors import UserError


def test_tables(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes('\ufeffname,value\r\n"a, b",1.5\r\nç,NA\r\n\r\n'.encode())
    first, second = read_table(path, ["name", "value"], unique=["name"])
    assert (first["name"], first.number("value"), first.line) == ("a, b", 1.5, 2)
    assert (second["name"], np.isnan(second.number("value")), second.line) == ("ç", True, 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b\n1\n", "line 2: 1 cells under 2 columns"),
        ("a,b\n", "no line below the header"),
        ("", "no column 'a': there are none"),
        ("a,b,b\n1,2,3\n", "a column is named twice"),
        ('a,b\n"1,2\n', "not a UTF-8 CSV table"),
        ("a,b\n1,2\n1,3\n", "line 3: the same a as line 2"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=f"^{path}: {expected}"):
        read_table(path, ["a", "b"], unique=["a"])


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_damaged_arrays_end_in_one_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"array{suffix}"
    values = np.arange(300.0)
    if suffix == ".npz":
        np.savez(path, x=values)
    else:
        np.save(path, values)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    messages = []
    for _ in range(400):
        data = bytearray(whole)
        for place in random.integers(0, 200 if random.random() < 0.7 else len(data), 4):
            data[place] = random.integers(0, 256)
        path.write_bytes(data if random.random() < 0.7 else data[: random.integers(0, len(data))])
        try:
            read_npz(path, "x") if suffix == ".npz" else read_npy(path)
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 200
    assert all(message.startswith(f"{path}: ") and "\n" not in message for message in messages)


def test_whole_numbers_lose_nothing() -> None:
    assert whole_numbers(np.array([0.0, 65535.0]), "f", "x", "uint16").tolist() == [0, 65535]
    for values in ([-1], [65536], [0.5], [1e30]):
        with pytest.raises(UserError, match="f: x "):
            whole_numbers(np.array(values), "f", "x", "uint16")


def test_dates() -> None:
    assert date_seconds("2016-02-29") == date_seconds("20160229") == calendar.timegm((2016, 2, 29, 0, 0, 0))
    for text in ("2015-02-29", "29.2.2016", "", "2016-2-9"):
        with pytest.raises(ValueError):
            date_seconds(text)


def test_every_reader_says_what_to_download_and_under_which_licence() -> None:
    found = [reader for reader in all_readers() if reader.name.startswith("sustainbench_")]
    assert len(found) == 8
    for reader in found:
        assert reader.license.startswith("CC BY-SA 4.0")
        assert "SustainBench" in reader.citation
        assert reader.homepage in reader.expects
        assert "\n" not in reader.expects
        assert reader.settings["partial"].default == "no"
