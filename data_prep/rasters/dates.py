"""When an image was taken: from metadata items, from file names where they are unambiguous, and from CF time axes.

Times are whole Unix seconds UTC. A date is an interval from its first to its last second: 2020-06-01 is
[00:00:00, 23:59:59] of that day, 2020 the whole year. UNKNOWN marks what is not known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import numpy as np

Interval = tuple[int, int]
UNKNOWN: Interval = (0, 0)
"""No time known. 1970-01-01T00:00:00 itself predates every civil Earth-observation archive."""

# Products whose names hold several dates of which one is the acquisition.
_PRODUCTS = (
    re.compile(r"S2[A-D]_MSI\w{3}_(\d{8}T\d{6})(?!\d)"),  # Sentinel-2: sensing start, later dates are processing
    re.compile(r"S1[A-D]_\w{2}_\w{4}_\w{4}_(\d{8}T\d{6})_(\d{8}T\d{6})"),  # Sentinel-1: start and stop
    re.compile(r"L[COTEM]0\d_L\w{3}_\d{6}_(\d{8})_\d{8}_"),  # Landsat collections: acquisition, then processing
)
_DAY = re.compile(r"(?<!\d)(\d{4})([-_.]?)(\d{2})\2(\d{2})(?:[T_ -](\d{2})[:-]?(\d{2})[:-]?(\d{2})Z?)?(?!\d)")
_MONTH = re.compile(r"(?<!\d)((?:19|20)\d{2})-(\d{2})(?![-\d])")
_YEAR = re.compile(r"(?<![0-9A-Za-z])((?:19[5-9]|20\d)\d)(?![0-9A-Za-z])")
_ACQUIRED = ("ACQUISITIONDATETIME", "DATE_ACQUIRED", "acquisition_date", "acquired", "datetime", "DATETIME")


def seconds(moment: datetime) -> int:
    """Unix seconds of `moment`, taken as UTC where it names no zone."""
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def interval(
    year: int,
    month: int | None = None,
    day: int | None = None,
    clock: tuple[int, int, int] | None = None,
) -> Interval:
    """First and last second of a year, month or day, or an instant. `ValueError` for no such date."""
    if clock is not None:
        start = seconds(datetime(year, month or 1, day or 1, *clock))
        return start, start
    first = datetime(year, month or 1, day or 1)
    if day is not None:
        after = first + timedelta(days=1)
    elif month is not None:
        after = datetime(year + month // 12, month % 12 + 1, 1)
    else:
        after = datetime(year + 1, 1, 1)
    return seconds(first), seconds(after) - 1


def from_pattern(name: str, pattern: str) -> Interval:
    """The interval that the named groups year, month, day, hour, minute, second of `pattern` find in `name`.

    Raises `ValueError` with the reason.
    """
    found = re.search(pattern, name)
    if found is None or not found.groupdict().get("year"):
        raise ValueError(f"no date that the pattern {pattern!r} finds")
    parts = {key: int(value) for key, value in found.groupdict().items() if value and value.isdigit()}
    clock = None
    if "hour" in parts:
        clock = (parts["hour"], parts.get("minute", 0), parts.get("second", 0))
    try:
        return interval(parts["year"], parts.get("month"), parts.get("day"), clock)
    except (KeyError, ValueError):
        raise ValueError(f"{found.group()!r} is no date") from None


def from_name(name: str) -> Interval:
    """The one date that a file name (without its extension) holds; UNKNOWN where it holds none.

    Raises `ValueError` naming the dates where there are several and the product is not one that is known.
    """
    for product in _PRODUCTS:
        found = product.search(name)
        if found:
            moments = [_compact(text) for text in found.groups()]
            return moments[0][0], moments[-1][1]
    dates: dict[Interval, str] = {}
    for match in _DAY.finditer(name):
        year, _, month, day, *clock = match.groups()
        if not 1900 <= int(year) <= 2099:
            continue
        try:
            when = (int(clock[0]), int(clock[1]), int(clock[2])) if clock[0] else None
            dates[interval(int(year), int(month), int(day), when)] = match.group()
        except ValueError:
            continue
    if not dates:
        for match in _MONTH.finditer(name):
            if 1 <= int(match[2]) <= 12:
                dates[interval(int(match[1]), int(match[2]))] = match.group()
    if not dates:
        dates = {interval(int(match[1])): match.group() for match in _YEAR.finditer(name)}
    if len(dates) > 1:
        raise ValueError(f"several dates in its name: {', '.join(dates.values())}")
    return next(iter(dates), UNKNOWN)


def _compact(text: str) -> Interval:
    if "T" in text:
        moment = seconds(datetime.strptime(text, "%Y%m%dT%H%M%S"))
        return moment, moment
    return interval(int(text[:4]), int(text[4:6]), int(text[6:8]))


def from_tags(tags: Mapping[str, str]) -> Interval:
    """The acquisition that metadata items state; UNKNOWN where they do not.

    Heeded: ACQUISITIONDATETIME (GDAL's IMAGERY domain), DATE_ACQUIRED (Landsat), datetime (STAC), system:time_start
    (Earth Engine, milliseconds). TIFFTAG_DATETIME is not: it is when the file was made.
    """
    start = tags.get("system:time_start", "")
    if re.fullmatch(r"-?\d{10,14}(\.0*)?", start):
        first = int(float(start)) // 1000
        end = tags.get("system:time_end", "")
        last = int(float(end)) // 1000 if re.fullmatch(r"-?\d{10,14}(\.0*)?", end) else first
        return first, max(first, last)
    for key in _ACQUIRED:
        text = tags.get(key, "").strip()
        if not text:
            continue
        try:
            moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        except ValueError:
            continue
        if re.fullmatch(r"\d{4}-?\d{2}-?\d{2}", text):
            return interval(moment.year, moment.month, moment.day)
        return seconds(moment), seconds(moment)
    return UNKNOWN


_LONGEST = 1e12
"""Seconds between a time and the origin of its units, some 30,000 years."""
_UNITS = {"day": 86400.0, "d": 86400.0, "hour": 3600.0, "h": 3600.0, "hr": 3600.0, "minute": 60.0, "min": 60.0}
_UNITS |= {"second": 1.0, "sec": 1.0, "s": 1.0, "millisecond": 1e-3, "msec": 1e-3, "ms": 1e-3, "microsecond": 1e-6}
_SINCE = re.compile(
    r"\s*([A-Za-z]+)\s+since\s+(\d{1,4})-(\d{1,2})-(\d{1,2})(?:[T ]\s*(\d{1,2}):(\d{1,2})(?::(\d{1,2})(?:\.\d*)?)?)?"
    r"\s*(Z|UTC|GMT|[+-]\d{1,2}:?\d{2}|[+-]?0+)?\s*"
)
_REAL = ("standard", "gregorian", "proleptic_gregorian", "")


def from_cf(values: np.ndarray, units: str, calendar: str = "") -> np.ndarray:
    """Unix seconds (int64, rounded) of a CF time coordinate "UNIT since DATE". Raises `ValueError` with the reason.

    Calendars of real dates only (standard from 1582-10-15 on); months and years have no fixed length and are refused.
    """
    calendar = calendar.strip().lower()
    if calendar not in _REAL:
        raise ValueError(f"calendar {calendar!r} has no real dates")
    match = _SINCE.fullmatch(units)
    if match is None:
        raise ValueError(f"time units {units!r} are not of the form 'days since 1990-01-01'")
    word = match[1].lower()
    step = _UNITS.get(word, _UNITS.get(word.removesuffix("s")))
    if step is None:
        raise ValueError(f"time unit {match[1]!r}: days, hours, minutes or seconds are expected")
    try:
        year, month, day, hour, minute, second = (int(match[k] or 0) for k in range(2, 8))
        origin = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        raise ValueError(f"time units {units!r} begin at no real date") from None
    if calendar != "proleptic_gregorian" and origin < datetime(1582, 10, 15, tzinfo=UTC):
        raise ValueError(f"time units {units!r} count from before the Gregorian calendar")
    zone = match[8] or ""
    shift = 0
    if zone[:1] in "+-" and zone.strip("+-0:"):
        digits = zone[1:].replace(":", "").zfill(4)
        shift = (int(digits[:-2]) * 3600 + int(digits[-2:]) * 60) * (-1 if zone[0] == "-" else 1)
    numbers = np.asarray(values, np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("time coordinate holds values that are not numbers")
    if (np.abs(numbers * step) > _LONGEST).any():
        raise ValueError(f"time coordinate lies more than {_LONGEST:g} seconds from its origin")
    base = int((origin - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) - shift
    return np.rint(numbers * step).astype(np.int64) + base
