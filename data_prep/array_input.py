"""Arrays of any order of axes as inputs: what their user says of them, their canonical order, and their labels."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from data_prep.readers.registry import Setting
from data_prep.scenes_spectra import S2_BANDS
from data_prep.source import Band, ImageColumn
from frontier.errors import UserError

ORDER = "TCHW"
"""Axes of a stored sample, those that it has, in this order: time, band, row, column."""
SETTINGS = {
    "bands": Setting("names of the bands, comma-separated (default: band_1, band_2, …)"),
    "wavelengths": Setting("centre wavelengths of the bands in nm, comma-separated"),
    "widths": Setting("widths of the bands in nm, comma-separated"),
    "sensor": Setting("free text; with Sentinel-2 in it, bands called B01 … B12, B8A get their wavelengths and widths"),
    "units": Setting("physical units after scale and offset"),
    "scale": Setting("physical = stored * scale + offset", "1"),
    "offset": Setting("see scale", "0"),
    "nodata": Setting("stored value that means there is nothing"),
}
_MOST_CLASSES = 1 << 16
_NUMBER = re.compile(r"[+-]?[0-9]+")
_S2 = {band.name: band for band in (*S2_BANDS, Band("B10", 1373.5, 31))}


def parse_axes(text: str, stacked: bool) -> str:
    """`text` in capitals; letters of N (samples, where `stacked`), T, C, H, W, each once. Raises `UserError`."""
    axes = text.upper()
    known = ("N" if stacked else "") + ORDER
    if not axes or len(set(axes)) != len(axes) or not set(axes) <= set(known) or axes == "N":
        raise UserError(f"--set axes={text}: give the letters of {', '.join(known)} that the arrays have, such as HWC")
    return axes


def to_sample(array: np.ndarray, axes: str) -> np.ndarray:
    """A sample with `axes` (no N) in the order T, C, H, W; bools as uint8; without a C, one of 1. Native byte order."""
    wanted = [axes.index(axis) for axis in ORDER if axis in axes]
    out = np.asarray(array).transpose(wanted)
    if "C" not in axes:
        out = np.expand_dims(out, 1 if "T" in axes else 0)
    return np.ascontiguousarray(out, native(out.dtype))


def sample_axes(axes: str) -> str:
    """The axes of what `to_sample` gives."""
    return "".join(axis for axis in ORDER if axis in axes or axis == "C")


def sample_shape(shape: Sequence[int], axes: str) -> tuple[int, ...]:
    """The shape of what `to_sample` gives of a sample of `shape` along `axes`, N left out."""
    sizes = dict(zip(axes, shape, strict=True)) | ({} if "C" in axes else {"C": 1})
    return tuple(sizes[axis] for axis in ORDER if axis in sizes)


def native(dtype: np.dtype) -> np.dtype:
    """The type that is stored: the machine's byte order, bools as uint8."""
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")


def unusable(shape: Sequence[int], dtype: np.dtype, axes: str, bands: int | None) -> str:
    """Why an array cannot be an input, or "". `bands`: how many are named, None where any number will do."""
    if dtype.hasobject:
        return "holds Python objects, which are never unpickled: save it as an array of numbers"
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        return f"holds {dtype}, which is no integer or real number of up to 64 bits"
    if len(shape) != len(axes):
        return f"shape {tuple(shape)} has {len(shape)} axes, {axes} has {len(axes)}"
    if 0 in shape:
        return f"shape {tuple(shape)} is empty"
    count = shape[axes.index("C")] if "C" in axes else 1
    if bands is not None and count != bands:
        return f"shape {tuple(shape)} along {axes} has {count} bands, {bands} are named"
    return ""


def named_bands(settings: Mapping[str, str]) -> tuple[Band, ...] | None:
    """The bands that the settings name, None where they name none. Raises `UserError` for lists that do not fit."""
    names = _list(settings["bands"])
    for key in ("wavelengths", "widths"):
        if settings[key] and len(_list(settings[key])) != len(names):
            raise UserError(f"--set {key}: {len(_list(settings[key]))} numbers for {len(names)} names in --set bands")
    if not names:
        return None
    if len(set(names)) != len(names):
        raise UserError(f"--set bands={settings['bands']}: a name occurs twice")
    known = _S2 if "sentinel-2" in settings["sensor"].lower() else {}
    centres: list[float | None] = [number(settings, "wavelengths", text) for text in _list(settings["wavelengths"])]
    widths: list[float | None] = [number(settings, "widths", text) for text in _list(settings["widths"])]
    plain = Band("")
    centres = centres or [known.get(name, plain).centre_nm for name in names]
    widths = widths or [known.get(name, plain).width_nm for name in names]
    return tuple(Band(name, centre, width) for name, centre, width in zip(names, centres, widths, strict=True))


def input_column(
    settings: Mapping[str, str], shape: Sequence[int], axes: str, dtype: np.dtype, gsd_m: float | None
) -> ImageColumn:
    """The column that holds samples of `shape` along `axes` (as they are read) and type `dtype`."""
    stored = sample_shape(shape, axes)
    count = stored[sample_axes(axes).index("C")]
    bands = named_bands(settings) or tuple(Band(f"band_{place}") for place in range(1, count + 1))
    return ImageColumn(
        stored,
        native(dtype).name,
        bands,
        gsd_m=gsd_m,
        nodata=number(settings, "nodata") if settings["nodata"] else None,
        units=settings["units"] or None,
        scale=number(settings, "scale"),
        offset=number(settings, "offset"),
        axes=sample_axes(axes),
        sensor=settings["sensor"] or None,
    )


def number(settings: Mapping[str, str], key: str, text: str | None = None) -> float:
    """The setting `key`, or `text` of it, as a finite number. Raises `UserError`."""
    text = settings[key] if text is None else text
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"--set {key}={text}: not a number")
    return value


def class_numbers(found: Sequence[int | str | None], names: str) -> tuple[list[int | str], tuple[str, ...]]:
    """Labels as class numbers, and the class names. `names`: the setting `classes`, comma-separated in their order.

    `found` holds numbers (negative: no label) or names, None for no label. Without `names`, numbers are named after
    themselves and names are sorted. A label that is not among the classes stands in the answer as words that say so.
    """
    given = _list(names)
    if len(set(given)) != len(given):
        raise UserError(f"--set classes={names}: a name occurs twice")
    numeric = all(_is_number(label) for label in found if label is not None)
    if numeric:
        labels = [-1 if label is None else max(-1, _whole(label)) for label in found]
        top = max((label for label in labels if label < _MOST_CLASSES), default=-1)
        classes = tuple(given) or tuple(str(label) for label in range(top + 1))
        beyond = f", but {len(classes)} classes are named" if given else " is too large for a class number"
        return [
            label if label < len(classes) else f"label {str(said)[:24]}{beyond}"
            for label, said in zip(labels, found, strict=True)
        ], classes
    texts = [None if label is None else str(label) for label in found]
    classes = tuple(given) or tuple(sorted({text for text in texts if text is not None}))
    place = {name: index for index, name in enumerate(classes)}
    return [
        -1 if text is None else place.get(text, f"label {text!r} is not among the classes") for text in texts
    ], classes


def _is_number(label: int | str) -> bool:
    return isinstance(label, int) or _NUMBER.fullmatch(label.strip()) is not None


def _whole(label: int | str) -> int:
    """Its value; beyond all classes where it has more digits than Python reads."""
    return int(label) if len(str(label)) < 20 else (-1 if str(label).startswith("-") else 1 << 62)


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
