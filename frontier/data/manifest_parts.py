"""The parts of a manifest, one by one: is each of the type that its readers count on.

A manifest may have been edited, or written by another program. What is wrong is said in words; nothing is mended.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Check = Callable[[Any], str]
"""What is wrong with a value, as " is …" or ".key is …"; "" where it is right."""
_LARGEST = 1 << 40
"""Elements of a sample: far beyond any, and products of sizes stay in 64 bits."""


def wrong_parts(manifest: dict[str, Any]) -> str:
    """The first thing that is wrong in `manifest`, whose required keys are there, or ""."""
    problem = _keys({key: check for key, check in _TOP.items() if key in manifest})(manifest).removeprefix(".")
    if not manifest["images"]:
        return "images is empty"
    return problem or _wrong_names(manifest) or _wrong_masks(manifest)


def _wrong_names(manifest: dict[str, Any]) -> str:
    twice = sorted(
        (manifest["images"].keys() & manifest["arrays"].keys())
        | (manifest["columns"].keys() & (manifest["images"].keys() | manifest["arrays"].keys()))
    )
    return f"column {twice[0]!r} is named twice" if twice else ""


def _wrong_masks(manifest: dict[str, Any]) -> str:
    for name, spec in manifest["images"].items():
        mask = manifest["arrays"].get(spec["mask"])
        if spec["mask"] is not None and mask is None:
            return f"image column {name!r}: its mask {spec['mask']!r} is not among the arrays"
        sizes = dict(zip(spec["axes"], spec["shape"], strict=True))
        places = [spec["axes"].find(axis) for axis in mask["axes"]] if mask else []
        if mask and (
            places != sorted(places) or mask["shape"] != [sizes.get(axis) for axis in mask["axes"]]
        ):  # an axis that is not there has no size
            return f"image column {name!r}: its mask {spec['mask']!r} is of another shape"
    return ""


def _column(spec: Any) -> str:
    """What inputs and arrays have in common."""
    if not isinstance(spec, dict):
        return f" is {_short(spec)}, an object is expected"
    problem = _keys({"shape": _some(_list(_size)), "axes": _text, "dtype": _dtype("biuf")})(spec)
    if problem:
        return problem
    if len(spec["axes"]) != len(spec["shape"]) or len(set(spec["axes"])) != len(spec["axes"]):
        return f".axes is {_short(spec['axes'])}, which does not spell its shape {spec['shape']}"
    if math.prod(spec["shape"]) > _LARGEST:
        return f".shape is {spec['shape']}, which no file holds"
    return _known(_COLUMN)(spec)


def _image(spec: Any) -> str:
    problem = _column(spec) or _known(_IMAGE)(spec)
    if problem:
        return problem
    place = spec["axes"].find("C")
    count = spec["shape"][place] if place >= 0 else -1
    if len(spec.get("bands") or ()) != count:
        return ".bands does not name each of its bands"
    found = spec.get("statistics")
    for key, values in ({**found, **(found.get("percentiles") or {})} if found else {}).items():
        if isinstance(values, list) and len(values) != count:
            return f".statistics: {key} holds {len(values)} numbers for {count} bands"
    return ""


def _target(target: Any) -> str:
    return _keys(_TARGET)(target) if isinstance(target, dict) else f" is {_short(target)}, an object is expected"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _is(what: str, right: Callable[[Any], bool]) -> Check:
    return lambda value: "" if right(value) else f" is {_short(value)}, {what} is expected"


def _number_like(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 1 << 63


_text = _is("text", lambda value: isinstance(value, str))
_number = _is("a number", _number_like)
_size = _is("a size", lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST)
_object = _is("an object", lambda value: isinstance(value, dict))


def _dtype(kinds: str) -> Check:
    def right(value: Any) -> bool:
        try:
            return isinstance(value, str) and np.dtype(value).kind in kinds and np.dtype(value).subdtype is None
        except (TypeError, ValueError, SyntaxError, OverflowError):
            return False

    return _is("a fixed numpy type", right)


def _or_null(check: Check) -> Check:
    return lambda value: "" if value is None else check(value)


def _list(check: Check) -> Check:
    def look(value: Any) -> str:
        if not isinstance(value, list):
            return f" is {_short(value)}, a list is expected"
        return next((f"[{place}]{problem}" for place, one in enumerate(value) if (problem := check(one))), "")

    return look


def _some(check: Check) -> Check:
    return lambda value: " is empty" if value == [] else check(value)


def _every(check: Check) -> Check:
    """An object with any keys."""

    def look(value: Any) -> str:
        if not isinstance(value, dict):
            return f" is {_short(value)}, an object is expected"
        return next((f".{key}{problem}" for key, one in value.items() if (problem := check(one))), "")

    return look


def _keys(checks: dict[str, Check]) -> Check:
    """An object with all of these keys, and any others."""

    def look(value: Any) -> str:
        if not isinstance(value, dict):
            return f" is {_short(value)}, an object is expected"
        for key, check in checks.items():
            if key not in value:
                return f" has no {key!r}"
            problem = check(value[key])
            if problem:
                return f".{key}{problem}"
        return ""

    return look


def _known(checks: dict[str, Check]) -> Check:
    """An object, in which those of these keys that are there are right."""
    return lambda value: _keys({key: check for key, check in checks.items() if key in value})(value)


_numbers = _list(_number)
_COLUMN: dict[str, Check] = {
    "layout": _or_null(_text),
    "filters": _or_null(_list(_text)),
    "role": _text,
    "names": _or_null(_list(_text)),
    "units": _or_null(_text),
}
_IMAGE: dict[str, Check] = {
    "bands": _list(lambda band: _keys({"name": _text})(band) or _known(_BAND)(band)),
    "gsd_m": _or_null(_number),
    "nodata": _or_null(_number),
    "scale": _number,
    "offset": _number,
    "mask": _or_null(_text),
    "sensor": _or_null(_text),
    "statistics": _or_null(lambda found: _keys({"mean": _numbers, "std": _numbers})(found) or _known(_FOUND)(found)),
}
_BAND: dict[str, Check] = {
    "centre_nm": _or_null(_number),
    "width_nm": _or_null(_number),
    "common_name": _or_null(_text),
}
_FOUND: dict[str, Check] = {
    "count": _numbers,
    "min": _numbers,
    "max": _numbers,
    "percentiles": _or_null(_every(_numbers)),
}
_TARGET: dict[str, Check] = {
    "kind": _text,
    "column": _text,
    "classes": _list(_text),
    "units": _or_null(_text),
    "missing": _or_null(_is("a number or text", lambda value: isinstance(value, str) or _number_like(value))),
    "metric": _or_null(_text),
}
_TOP: dict[str, Check] = {
    "images": _every(_image),
    "arrays": _every(_column),
    "columns": _every(_dtype("biufS")),
    "targets": _every(_target),
    "classes": _list(_text),
    "license": _or_null(_text),
    "citation": _or_null(_text),
    "homepage": _or_null(_text),
    "description": _or_null(_text),
    "created_by": _or_null(_text),
    "source": _or_null(_object),
    "options": _or_null(_object),
    "split_check": _or_null(_object),
    "notes": _or_null(_object),
}
