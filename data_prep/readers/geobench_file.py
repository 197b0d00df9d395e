"""One sample of GEO-Bench v1.0: an HDF5 file with a dataset a band, and a pickle in the attribute "pickle".

The pickle is read by `data_prep.safe_pickle`. Links, groups, data kept in other files, types that are not plain numbers
and filters that HDF5 does not bring along are refused.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_prep.records import need_regular
from data_prep.safe_pickle import Array, Stub, load_text
from frontier.data.chunks import overfull
from frontier.errors import UserError

MAX_DATASETS = 4096
MAX_DATASET_BYTES = 256 << 20
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}
_DATED = re.compile(r"(.+)_(\d{4}-\d{2}-\d{2})")


@dataclass(frozen=True)
class Stored:
    """A dataset: the band's name without date, the date "YYYY-MM-DD" or "", its shape [H, W] or [H, W, planes], type."""

    band: str
    date: str
    shape: tuple[int, ...]
    dtype: np.dtype


def dataset_name(band: str, date: str) -> str:
    """The name in the file of a band of a date ("" for undated)."""
    return f"{band}_{date}" if date else band


def label_of(datasets: Mapping[str, h5py.Dataset]) -> h5py.Dataset | None:
    """The segmentation label, dated or not."""
    return next((datasets[name] for name in sorted(datasets) if _is_label(name)), None)


def _is_label(name: str) -> bool:
    return name == "label" or name.startswith("label_")


@contextmanager
def open_sample(path: Path) -> Iterator[tuple[h5py.File, dict[str, h5py.Dataset]]]:
    """The file, read-only, and its datasets, once all of them are known to be plain. Raises `UserError` that names it."""
    try:
        need_regular(path)
        file = h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise UserError(f"{path}: not there: fetch it again") from None
    except OSError as error:
        detail = str(error).splitlines()[0]
        raise UserError(f"{path}: not a readable HDF5 file ({detail}): fetch it again") from None
    with file:
        try:
            yield file, _datasets(file, path)
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            # What h5py says of a damaged file.
            detail = (str(error).splitlines() or [""])[0]
            raise UserError(f"{path}: damaged ({type(error).__name__}: {detail}): fetch it again") from None


def _datasets(file: h5py.File, path: Path) -> dict[str, h5py.Dataset]:
    if len(file) > MAX_DATASETS:
        raise UserError(f"{path}: holds {len(file):,} datasets, more than {MAX_DATASETS:,}: not a GEO-Bench sample")
    out = {}
    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise UserError(f"{path}: {name!r} is a soft or external link, which is never followed: fetch it again")
        dataset = out[name] = file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise UserError(f"{path}: {name!r} is not a dataset: not a GEO-Bench sample")
        dtype, shape = dataset.dtype, dataset.shape
        if dtype.hasobject or dtype.kind not in "biuf":
            raise UserError(f"{path}: {name!r} is of type {dtype}, not of plain numbers, which is refused")
        properties = dataset.id.get_create_plist()
        if properties.get_layout() == h5py.h5d.VIRTUAL or properties.get_external_count():
            raise UserError(f"{path}: {name!r} keeps its data in other files, which is refused")
        if shape is None or len(shape) not in (2, 3) or 0 in shape:
            raise UserError(f"{path}: {name!r} has shape {shape}, not rows, columns and perhaps planes")
        size = math.prod(shape) * dtype.itemsize
        if size > MAX_DATASET_BYTES:
            raise UserError(f"{path}: {name!r} has {size:,} bytes, more than {MAX_DATASET_BYTES:,}")
        for index in range(properties.get_nfilters()):
            code = properties.get_filter(index)[0]
            if code not in _FILTERS:
                raise UserError(f"{path}: {name!r} is compressed with filter {code}, which is refused")
        if wrong := overfull(dataset):
            raise UserError(f"{path}: {name!r} {wrong}")
    return out


def stored_bands(datasets: Mapping[str, h5py.Dataset]) -> dict[str, Stored]:
    """Every dataset that is not the label, by its name."""
    out = {}
    for name, dataset in datasets.items():
        if not _is_label(name):
            match = _DATED.fullmatch(name)
            band, date = match.groups() if match else (name, "")
            out[name] = Stored(band, date, dataset.shape, dataset.dtype)
    return out


def read_metadata(file: h5py.File, path: Path) -> dict[str, Any]:
    """The dictionary that the attribute "pickle" holds. Raises `UserError`."""
    if "pickle" not in file.attrs:
        raise UserError(f"{path}: no attribute 'pickle': not a GEO-Bench v1.0 sample")
    attribute = file.attrs.get_id("pickle")
    if attribute.shape != () or h5py.check_string_dtype(attribute.dtype) is None:
        raise UserError(f"{path}: its attribute 'pickle' is not one text, which is refused")
    text = file.attrs["pickle"]
    if isinstance(text, bytes):
        text = text.decode("ascii", "replace")
    found = load_text(str(text), f"{path}, attribute 'pickle'")
    if not isinstance(found, dict):
        raise UserError(f"{path}: its metadata is a {type(found).__name__}, not a dictionary: fetch it again")
    return found


def class_label(value: Any) -> int | tuple[int, ...] | None:
    """A label as a number or a tuple of numbers; None where it is neither."""
    if isinstance(value, Array):
        value = value.values.tolist()
    if isinstance(value, (list, tuple)):
        numbers = [class_label(item) for item in value]
        return tuple(n for n in numbers if isinstance(n, int)) if all(isinstance(n, int) for n in numbers) else None
    if isinstance(value, (int, float)) and math.isfinite(value) and value == int(value):
        return int(value)
    return None


def affine_of(value: Any) -> tuple[float, ...] | None:
    """a … f of x = a column + b row + c, y = d column + e row + f, of a stored transform; None where there is none."""
    if not isinstance(value, Stub) or value.kind != "affine.Affine" or len(value.args) not in (6, 9):
        return None
    numbers = value.args[:6]
    if any(not isinstance(n, (int, float)) or isinstance(n, bool) or not math.isfinite(n) for n in numbers):
        return None
    return tuple(float(n) for n in numbers)


def epsg_of(value: Any) -> int:
    """EPSG code of a stored coordinate system: "EPSG:n" or well-known text; 0 where it has none."""
    if isinstance(value, Stub) and value.kind == "rasterio.CRS":
        state = value.state
        if isinstance(state, dict):
            state = state.get("init", state.get("wkt", state.get("_wkt")))
        value = state
    if not isinstance(value, str):
        return 0
    # The code of the whole stands last; those of its datum and units are further inside.
    match = re.fullmatch(r"epsg:(\d{1,9})", value.strip(), re.IGNORECASE) or re.search(
        r"""(?:AUTHORITY|ID)\["EPSG",\s*"?(\d{1,9})"?\]\s*\]\s*$""", value[-200:]
    )
    return int(match.group(1)) if match else 0


def seconds(date: datetime.date) -> int:
    """Unix seconds of a date's first instant, or of a time; without a zone it is taken as UTC."""
    if not isinstance(date, datetime.datetime):
        date = datetime.datetime(date.year, date.month, date.day)
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.UTC)
    return int(date.timestamp())
