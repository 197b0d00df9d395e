"""What one sample of GEO-Bench holds besides its pixels: label, dates, place, and the layout of its bands."""

from __future__ import annotations

import datetime
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.readers.geobench_file import (
    Stored,
    affine_of,
    class_label,
    dataset_name,
    epsg_of,
    label_of,
    open_sample,
    read_metadata,
    seconds,
    stored_bands,
)
from data_prep.readers.geobench_tasks import TASKS, Input, TaskFacts
from data_prep.records import file_token
from frontier.errors import UserError

NOT_A_TIME = int(np.iinfo(np.int64).min)
_NOWHERE = (math.nan,) * 6
_DEGREE_M = 111_320.0


@dataclass(frozen=True, slots=True)
class Found:
    """What a sample's file holds, less its pixels. `shapes`: [H, W] by input; `dates`: "" or "YYYY-MM-DD", in order."""

    token: bytes
    label: int
    labels: tuple[int, ...]
    dates: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    dtypes: tuple[str, ...]
    span: tuple[int, int]
    epsg: int
    transform: tuple[float, ...]
    lon: float
    lat: float
    cloud: float
    unread: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """What probing needs besides the id. `exact`: the bands must be stored just as the table says."""

    folder: Path
    task: str
    inputs: dict[str, Input]
    exact: bool
    classes: int


def sample_path(folder: Path, name: str) -> Path:
    """The file of a sample."""
    return folder / f"{name}.hdf5"


def probe_sample(job: Job, name: str) -> Found | str:
    """What a sample's file holds, or why it cannot be used."""
    path = sample_path(job.folder, name)
    try:
        with open_sample(path) as (file, datasets):
            meta = read_metadata(file, path)
            bands = list(stored_bands(datasets).values())
            label = label_of(datasets)
            label_shape = None if label is None else label.shape[:2] if label.shape[2:] in ((), (1,)) else label.shape
        return _describe(job, name, path, meta, bands, label_shape)
    except UserError as error:
        return str(error).removeprefix(f"{path}: ").removeprefix(f"{path}, ")
    except (ValueError, OverflowError, TypeError) as error:
        return f"its metadata cannot be understood ({type(error).__name__}: {error})"


def _describe(
    job: Job, name: str, path: Path, meta: dict[str, Any], bands: list[Stored], label_shape: tuple[int, ...] | None
) -> Found:
    facts = TASKS[job.task]
    if job.exact:
        # A later release may name its bands rightly: what is mended must be exactly what is wrong.
        wrong = [band for given in job.inputs.values() for band, _ in given.bands]
        order = meta.get("bands_order")
        if order != wrong:
            raise UserError(
                f"its bands are not stored as in v1.0, whose names are known to be wrong ({order!r:.200}): pass --set band_fix=no"
            )
    dates = tuple(sorted({stored.date for stored in bands}))
    days = [datetime.date.fromisoformat(date) for date in dates if date]
    if "" in dates and len(dates) > 1:
        raise UserError("holds bands with a date and bands without")
    shapes: list[tuple[int, int]] = []
    dtypes = []
    read: set[str] = set()
    for given in job.inputs.values():
        wanted = {band for band, _ in given.bands}
        mine = [stored for stored in bands if stored.band in wanted]
        lacking = [band for band, _ in given.bands if all(stored.band != band for stored in mine)]
        if lacking:
            raise UserError(f"no band {lacking[0]!r}; there are {sorted({s.band for s in bands})!r:.300}")
        sizes = {(stored.shape[0], stored.shape[1]) for stored in mine}
        planes = {stored.shape[2] if len(stored.shape) == 3 else 1 for stored in mine}
        if len(sizes) > 1 or planes != {given.planes}:
            raise UserError(f"bands of one sensor have different shapes: {sorted({s.shape for s in mine})}")
        shapes.append(sizes.pop())
        dtype = np.result_type(*(stored.dtype.newbyteorder("=") for stored in mine))
        dtypes.append("uint8" if dtype.kind == "b" else dtype.name)
        read |= wanted
    number, labels = _labels(job, facts, meta, label_shape, shapes[0])
    first = meta.get(dataset_name(next(iter(job.inputs.values())).bands[0][0], dates[0]))
    entry = first if isinstance(first, dict) else {}
    extra = entry.get("meta_info")
    extra = extra if isinstance(extra, dict) else {}
    place = _place(facts, name, entry, shapes[0], next(iter(job.inputs.values())).gsd_m)
    return Found(
        file_token(path),
        number,
        labels,
        dates,
        tuple(shapes),
        tuple(dtypes),
        _span(facts, days, meta, extra),
        *place,
        _cloud(extra, shapes[0]),
        tuple(sorted({stored.band for stored in bands} - read)),
    )


def _labels(
    job: Job, facts: TaskFacts, meta: dict[str, Any], label_shape: tuple[int, ...] | None, shape: tuple[int, int]
) -> tuple[int, tuple[int, ...]]:
    """(class, classes of a multi-label sample as 0 and 1); (-1, ()) for what the task has not."""
    if facts.target == "segmentation":
        if label_shape is None:
            raise UserError("no dataset 'label'")
        if label_shape != shape:
            raise UserError(f"its label has shape {list(label_shape)}, its image {list(shape)}")
        return -1, ()
    found = class_label(meta.get("label"))
    if facts.target == "multilabel":
        if not isinstance(found, tuple) or len(found) != job.classes or not set(found) <= {0, 1}:
            raise UserError(f"its label is not {job.classes} numbers of 0 or 1")
        return -1, found
    if isinstance(found, tuple) and len(found) == 1:
        found = found[0]
    if not isinstance(found, int) or not 0 <= found < job.classes:
        raise UserError(f"its label {meta.get('label')!r:.60} is none of {job.classes} classes")
    return found, ()


def _span(facts: TaskFacts, days: list[datetime.date], meta: dict[str, Any], extra: dict[str, Any]) -> tuple[int, int]:
    """First second of acquisition, and the first one after it."""
    stored = [entry.get("date") for entry in meta.values() if isinstance(entry, dict)]
    times = [value for value in stored if isinstance(value, datetime.date)]
    times = times or list(days)
    # A composite of several years is filed under an invented day.
    if not times or extra.get("is_composite") is True:
        return NOT_A_TIME, NOT_A_TIME
    starts = sorted(seconds(time) for time in times)
    if facts.dates == "year":
        years = [datetime.datetime.fromtimestamp(start, datetime.UTC).year for start in (starts[0], starts[-1])]
        return seconds(datetime.date(years[0], 1, 1)), seconds(datetime.date(years[1] + 1, 1, 1))
    return starts[0], starts[-1] + (1 if isinstance(times[0], datetime.datetime) else 86400)


def _cloud(extra: dict[str, Any], shape: tuple[int, int]) -> float:
    pixels = extra.get("n_cloud_pixels")
    if type(pixels) is not int or not 0 <= pixels <= shape[0] * shape[1]:
        return math.nan
    return pixels / (shape[0] * shape[1])


def _place(
    facts: TaskFacts, name: str, entry: dict[str, Any], shape: tuple[int, int], gsd_m: float
) -> tuple[int, tuple[float, ...], float, float]:
    """(EPSG or 0, transform, longitude, latitude of the centre), NaN where not known or not to be trusted."""
    epsg = epsg_of(entry.get("crs"))
    epsg = epsg if 0 < epsg < 1 << 31 else 0
    transform = affine_of(entry.get("transform"))
    trusted = facts.place != "none" and not (facts.sliced and re.fullmatch(facts.sliced, name))
    if transform is None or not trusted or not epsg:
        return epsg, _NOWHERE, math.nan, math.nan
    a, b, c, d, e, f = transform
    column, row = shape[1] / 2, shape[0] / 2
    lon, lat = to_degrees(epsg, a * column + b * row + c, d * column + e * row + f)
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        return epsg, _NOWHERE, math.nan, math.nan
    if facts.place == "centre":
        return epsg, _NOWHERE, lon, lat
    pixel_m = math.sqrt(abs(a * e - b * d))
    if epsg == 4326:
        pixel_m *= _DEGREE_M * math.sqrt(max(0.0, math.cos(math.radians(lat))))
    if not 0.5 <= pixel_m / gsd_m <= 2:
        # Such a transform is not of this image.
        return epsg, _NOWHERE, math.nan, math.nan
    return epsg, transform, lon, lat


def to_degrees(epsg: int, x: float, y: float) -> tuple[float, float]:
    """Longitude and latitude of a point. Raises `UserError` where pyproj is needed and not installed."""
    if epsg == 4326:
        return x, y
    return _projection(epsg)(x, y)


@lru_cache(maxsize=64)
def _projection(epsg: int) -> Any:
    try:
        from pyproj import Transformer
        from pyproj.exceptions import CRSError
    except ImportError:
        raise UserError(f"EPSG:{epsg} needs pyproj to be turned into degrees: install the extra 'geo'") from None
    try:
        return Transformer.from_crs(epsg, 4326, always_xy=True).transform
    except CRSError:
        return lambda x, y: (math.nan, math.nan)
