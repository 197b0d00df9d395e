"""What the SustainBench readers share: the tables, the compressed arrays, what is absent, and the counts.

SustainBench (Yeh et al. 2021) is handed out as Google Drive folders, to be downloaded by hand. Its own package reads
another layout than the released one, so these readers read the files. Tables are UTF-8 CSV with a header.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.readers.registry import Reader, Request, Setting
from data_prep.records import Record, RecordSource, file_token, inputs_digest
from data_prep.scenes_spectra import S2_BANDS
from data_prep.source import ArrayColumn, Band, ImageColumn, Target
from frontier.data.manifest import nearest
from frontier.errors import UserError

SITE = "https://sustainlab-group.github.io/sustainbench/docs/datasets/"
LICENSE = "CC BY-SA 4.0"
CITATION = (
    "Yeh, Meng, Wang, Driscoll, Rozi, Liu, Lee, Burke, Lobell and Ermon, SustainBench: Benchmarks for Monitoring the "
    "Sustainable Development Goals with Machine Learning, NeurIPS Datasets and Benchmarks 2021"
)
USES = frozenset({"on_error", "license", "citation"})
PARTIAL = Setting(
    "no refuses a copy that lacks what its tables name or what was published; yes writes what is there",
    "no",
    ("no", "yes"),
)

_S2 = {band.name: band for band in S2_BANDS} | {"B10": Band("B10", 1373.5, 31)}
S2_COMMON = {
    "B01": "coastal",
    "B02": "blue",
    "B03": "green",
    "B04": "red",
    "B05": "rededge",
    "B06": "rededge",
    "B07": "rededge",
    "B08": "nir",
    "B8A": "nir08",
    "B09": "nir09",
    "B10": "cirrus",
    "B11": "swir16",
    "B12": "swir22",
}
S2_13 = tuple(S2_COMMON)


def s2_bands(names: Iterable[str]) -> tuple[Band, ...]:
    """Sentinel-2 bands by name ("B02"), with Sentinel-2A's centres and widths."""
    return tuple(Band(name, _S2[name].centre_nm, _S2[name].width_nm, S2_COMMON[name]) for name in names)


@dataclass(frozen=True)
class Checked:
    """What looking at one sample's files showed: path "" = absent; `error` = there, but not usable."""

    path: str = ""
    token: bytes = b""
    error: str = ""
    found: Any = None


@dataclass(frozen=True)
class Layout:
    """The columns of a source, as `Source` has them."""

    images: dict[str, ImageColumn]
    arrays: dict[str, ArrayColumn] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)


class TaskSource(RecordSource):
    """Records, and a picklable function of a record's payload that gives every column of one sample."""

    def __init__(
        self,
        request: Request,
        records: Sequence[Record],
        layout: Layout,
        load: Callable[[Any], dict[str, Any]],
        *,
        tokens: Iterable[tuple[str, bytes]],
        notes: Mapping[str, Any],
        classes: Sequence[str] = (),
        description: str | None = None,
    ) -> None:
        if not records:
            raise UserError(f"{request.path}: no sample is left to write: choose other settings, or a fuller copy")
        settings = {name: value for name, value in request.settings.items() if name != "partial"}
        super().__init__(
            records,
            settings={"kind": request.reader.name, **settings},
            inputs=inputs_digest(tokens),
            classes=classes,
            notes=notes,
        )
        self.name = request.name or request.reader.name
        self.license = request.license or request.reader.license
        self.citation = request.citation or request.reader.citation
        self.homepage = request.reader.homepage
        self.description = description
        self.images, self.arrays = layout.images, layout.arrays
        self.columns, self.targets = layout.columns, layout.targets
        self._load = load

    def load_one(self, record: Record) -> dict[str, Any]:
        return self._load(record.payload)


# Tables


@dataclass(frozen=True)
class Row:
    """One line of a table: its values by column name, and where it stands, for messages."""

    path: Path
    line: int
    values: dict[str, str]

    def __getitem__(self, name: str) -> str:
        return self.values[name]

    def fail(self, what: str) -> UserError:
        """The error that says `what` is wrong with this line."""
        return UserError(f"{self.path}: line {self.line}: {what}: download the table again")

    def number(self, name: str) -> float:
        """A finite number, or NaN where the cell is empty, NA or NaN."""
        text = self.values[name].strip()
        if missing(text):
            return math.nan
        try:
            value = float(text)
        except ValueError:
            raise self.fail(f"{name} is {text[:40]!r}, not a number") from None
        if math.isinf(value):
            raise self.fail(f"{name} is infinite")
        return value

    def integer(self, name: str, low: int = 0, high: int = (1 << 31) - 1) -> int:
        """A whole number in [low, high]; "3.0" will do."""
        value = self.number(name)
        if not (value.is_integer() and low <= value <= high):
            raise self.fail(f"{name} is {self.values[name][:40]!r}, not a whole number from {low} to {high}")
        return int(value)

    def place(self, lon: str = "lon", lat: str = "lat") -> tuple[float, float]:
        """Longitude and latitude in degrees, (NaN, NaN) where one is missing."""
        found = self.number(lon), self.number(lat)
        if math.isnan(found[0]) or math.isnan(found[1]):
            return math.nan, math.nan
        if not (-180 <= found[0] <= 180 and -90 <= found[1] <= 90):
            raise self.fail(f"longitude {found[0]}, latitude {found[1]} is no place on Earth")
        return found

    def split(self, name: str) -> str:
        """train, val or test, from a word or from SustainBench's 0, 1, 2."""
        text = self.values[name].strip().lower()
        if text not in SPLIT_WORDS:
            raise self.fail(f"{name} is {self.values[name][:40]!r}, no split: one of {', '.join(SPLIT_WORDS)}")
        return SPLIT_WORDS[text]

    def file(self, name: str) -> str:
        """A relative path that stays below its folder."""
        text = self.values[name].strip()
        if not text or text.startswith("/") or "\\" in text or "\0" in text or ".." in text.split("/"):
            raise self.fail(f"{name} is {text[:60]!r}, which is not the name of a file of this data set")
        return text


SPLIT_WORDS = {"0": "train", "1": "val", "2": "test"} | {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}


def missing(text: str) -> bool:
    """Whether a cell means that nothing is known."""
    return text.strip().lower() in ("", "na", "nan", "none", "null")


def read_table(path: Path, columns: Iterable[str], unique: Sequence[str] = ()) -> list[Row]:
    """The lines of a CSV table, which has at least `columns`. `unique`: columns that together name a line.

    Raises `UserError` with the path and the line where it is not such a table.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = [name.strip() for name in next(lines, [])]
        for name in columns:
            if name not in header:
                raise UserError(f"{path}: no column {name!r}: {nearest(name, header)}: give the published table")
        if len(set(header)) != len(header):
            raise UserError(f"{path}: a column is named twice: give the published table")
        rows: list[Row] = []
        for cells in lines:
            if not cells:
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{path}: line {lines.line_num}: {len(cells)} cells under {len(header)} columns: "
                    "download the table again"
                )
            rows.append(Row(path, lines.line_num, dict(zip(header, cells, strict=True))))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): mend the access rights") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a UTF-8 CSV table ({error}): download it again") from None
    if not rows:
        raise UserError(f"{path}: no line below the header: download the table again")
    if unique:
        seen: dict[tuple[str, ...], int] = {}
        for row in rows:
            first = seen.setdefault(tuple(row[name] for name in unique), row.line)
            if first != row.line:
                raise row.fail(f"the same {' and '.join(unique)} as line {first}")
    return rows


def first_of(request: Request, names: Sequence[str], kind: str = "file") -> Path:
    """The first of `names` that is there below the given folder; the error of `Request.need` where none is."""
    for name in names:
        path = request.path / name
        if path.is_file() if kind == "file" else path.is_dir():
            return path
    return request.need(names[0], kind=kind)


# Arrays


def check_shape(shape: tuple[int, ...], path: str | Path, what: str, *shapes: tuple[int | None, ...]) -> None:
    """Raise `UserError` unless `shape` is one of `shapes` (None = any size)."""
    if not any(_fits(shape, wanted) for wanted in shapes):
        shown = " or ".join(str(tuple("n" if n is None else n for n in wanted)).replace("'", "") for wanted in shapes)
        raise UserError(f"{path}: {what} has shape {shape}, {shown} is expected")


def expect(array: np.ndarray, path: str | Path, what: str, *shapes: tuple[int | None, ...]) -> np.ndarray:
    """`array`, if it has one of `shapes` (None = any size) and only finite numbers. Raises `UserError`."""
    check_shape(array.shape, path, what, *shapes)
    if array.dtype.kind == "f":
        wrong = array.size - int(np.isfinite(array).sum())
        if wrong:
            raise UserError(f"{path}: {what} holds {wrong} NaN or infinite values")
    elif array.dtype.kind not in "iub":
        raise UserError(f"{path}: {what} has type {array.dtype}, numbers are expected")
    return array


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(w is None or n == w for n, w in zip(shape, wanted, strict=True))


def whole_numbers(array: np.ndarray, path: str | Path, what: str, dtype: str) -> np.ndarray:
    """`array` as the unsigned integer `dtype`, if every value is one. Raises `UserError`."""
    high = int(np.iinfo(dtype).max)
    if array.size and (array.min() < 0 or array.max() > high):
        raise UserError(
            f"{path}: {what} reaches from {array.min()} to {array.max()}, whole numbers from 0 to {high} are expected"
        )
    out = array.astype(dtype)
    if array.dtype.kind == "f" and not np.array_equal(out, array):
        raise UserError(f"{path}: {what} holds fractions, whole numbers from 0 to {high} are expected")
    return out


def read_npz(path: str | Path, key: str) -> np.ndarray:
    """One array of an .npz file, never unpickling. Raises `UserError` with the path and the reason."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files) if isinstance(archive, np.lib.npyio.NpzFile) else []
            found = archive[key] if key in names else None
    # Of a damaged file numpy, zipfile and zlib raise nearly everything, down to TokenError and MemoryError.
    except Exception as error:
        raise UserError(f"{path}: not a readable .npz archive ({reason(error)})") from None
    if not isinstance(found, np.ndarray):
        raise UserError(f"{path}: no array {key!r}: {nearest(key, names)}")
    return found


def read_npy(path: str | Path) -> np.ndarray:
    """The array of an .npy file, never unpickling. Raises `UserError` with the path and the reason."""
    try:
        found = np.load(path, allow_pickle=False)
    except Exception as error:
        raise UserError(f"{path}: not a readable .npy array ({reason(error)})") from None
    if not isinstance(found, np.ndarray):
        found.close()
        raise UserError(f"{path}: is an archive, not one .npy array")
    return found


def reason(error: BaseException) -> str:
    """The first line of an error's text, or its kind."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.splitlines()[0][:120] if text else type(error).__name__


def look(root: str, candidates: Sequence[str], read: Callable[[str], Any]) -> Checked:
    """Find the first of `candidates` below `root`, and read it wholly once. `read` raises `UserError`."""
    for name in candidates:
        path = os.path.join(root, name)
        if not os.path.isfile(path):
            continue
        try:
            return Checked(name, file_token(Path(path)), found=read(path))
        except UserError as error:
            return Checked(name, error=str(error).removeprefix(f"{path}: "))
        except OSError as error:
            return Checked(name, error=f"cannot be read ({reason(error)})")
    return Checked()


def settle(request: Request, names: Sequence[str], found: Sequence[Checked], what: str) -> tuple[list[int], dict]:
    """Rows that can be used, and notes. `names` are the tables' words for what was looked for.

    Absent files are refused unless partial=yes; unusable ones go through `Request.settle`.
    """
    absent = [name for name, one in zip(names, found, strict=True) if not one.path]
    if len(absent) == len(names):
        raise UserError(
            f"reader {request.reader.name}: none of the {len(names)} {what} is below {request.path} (such as "
            f"{absent[0]}): {request.reader.expects}"
        )
    if absent and request.settings["partial"] == "no":
        raise UserError(
            f"{request.path}: {len(absent)} of {len(names)} {what} are absent (such as {absent[0]}): download the "
            f"rest from {request.reader.homepage}, or pass --set partial=yes to write what is there"
        )
    bad = [(one.path, one.error) for one in found if one.error]
    notes = request.settle(bad, len(names), what)
    keep = [row for row, one in enumerate(found) if one.path and not one.error]
    return keep, notes | {"absent": len(absent)}


def counts(
    request: Request, found: Mapping[str, int], published: Mapping[str, int], what: str, *, binding: bool = True
) -> dict[str, Any]:
    """Notes {"published", "found"} of counts by name; with `binding`, fewer than published need partial=yes."""
    short = [name for name, count in published.items() if found.get(name, 0) < count]
    if short and binding and request.settings["partial"] == "no":
        name = short[0]
        raise UserError(
            f"{request.path}: {found.get(name, 0):,} {what} of {name!r}, {published[name]:,} were published: download "
            f"the rest from {request.reader.homepage}, or pass --set partial=yes to write what is there"
        )
    return {"published": dict(published), "found": dict(found)}


def tally(words: Iterable[str]) -> dict[str, int]:
    """How often each word occurs, in the order of the words."""
    out: dict[str, int] = {}
    for word in words:
        out[word] = out.get(word, 0) + 1
    return dict(sorted(out.items()))


def seconds(year: int, month: int = 1, day: int = 1) -> int:
    """Unix seconds of the beginning of a day, UTC."""
    return int(datetime(year, month, day, tzinfo=UTC).timestamp())


_DATE = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})")


def date_seconds(text: str) -> int:
    """Unix seconds of "2016-05-31" or "20160531". Raises `ValueError`."""
    match = _DATE.fullmatch(str(text).strip())
    if not match:
        raise ValueError(f"{str(text)[:40]!r} is no date")
    return seconds(*map(int, match.groups()))


def table_token(path: Path) -> tuple[str, bytes]:
    """The name and token of a table, for the digest of the inputs."""
    return path.name, file_token(path)


def make_reader(name: str, **options: Any) -> Reader:
    """A `Reader` with what all SustainBench readers have in common; `settings` are added to `partial`."""
    settings = {**options.pop("settings", {}), "partial": PARTIAL}
    common: dict[str, Any] = {"uses": USES, "license": LICENSE, "citation": CITATION}
    return Reader(name=f"sustainbench_{name}", **(common | options), settings=settings)
