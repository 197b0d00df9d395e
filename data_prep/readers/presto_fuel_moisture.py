"""Live fuel moisture of plants at sites of the western United States: Presto's published evaluation files.

```
FOLDER/npy/s1_s2_era5_srtm.npy   [n, 3 steps, 18 bands] float64, see `BANDS`
FOLDER/npy/dynamic_world.npy     [n, 3] Dynamic World's class of the step
FOLDER/npy/month.npy             [n, 3] month in which the step begins, 0 = January
FOLDER/npy/latlon.npy, target.npy, is_test.npy, site.npy
FOLDER/single_file_labels.geojson        percent(t), site, date of every measurement
```
The stacks hold months without a year. They were made from the labels' list in its order, less those without images, so
the order, the site, the place, the value and the months together say which label, and thus which date, a row belongs to;
a row for which they do not is refused. From the date: a sample covers the 90 days before the measurement. Sentinel-1
and Sentinel-2 come as composites of 30 days; ERA5 as the calendar month in which the step begins (which is why two
steps may hold the same); Dynamic World as the commonest class up to the month's end, then of the two months after.
Those intervals are `{input}_time` to `{input}_time_end`; `month` is as published, 1 = January.

Of the order of the bands, which the files do not name, Presto's code says: VV, VH; B2 to B12 without B10; ERA5;
elevation, slope; NDVI. The last, though called so, is (B7 - B3) / (B7 + B3), by an index that counts B1, which was
removed later: as that is so to the last digit, it confirms the order, is checked, and is left out. Class 0 of
Dynamic World (water) lies at steps at which green and near infrared show dry land: there it means that there was no
image, and is missing by default. Sentinel-2 is top of atmosphere. S1 values near -50 dB, of which there are a few, stay.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.readers._sustainbench import Layout, TaskSource, expect, read_npy, reason, s2_bands, tally
from data_prep.readers.registry import Reader, Request, Setting
from data_prep.records import Record
from data_prep.scenes_spectra import S1_BANDS
from data_prep.source import ArrayColumn, Band, ImageColumn, Target
from frontier.errors import UserError

STEPS, STEP_DAYS = 3, 30
BANDS = (
    *("VV", "VH"),
    *("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"),
    *("temperature_2m", "total_precipitation", "elevation", "slope", "NDVI"),
)
PARTS = {"s1": slice(0, 2), "s2": slice(2, 13), "era5": slice(13, 15), "srtm": slice(15, 17)}
COVER = ("water", "trees", "grass", "flooded_vegetation", "crops", "shrub_and_scrub", "built", "bare", "snow_and_ice")
NO_CLASS = len(COVER)
STACKS = ("s1_s2_era5_srtm", "dynamic_world", "month", "latlon", "target", "is_test", "site")
LABELS = "single_file_labels.geojson"
SITE = "S64"
_NEAR = 1e-3
"""Degrees: a row's place is the centre of the pixel that holds the label's."""


@dataclass(frozen=True)
class Label:
    """One measurement of the list: percent of dry weight (NaN = none), site, day, and place in degrees."""

    percent: float
    site: str
    day: date
    lon: float
    lat: float

    @property
    def begins(self) -> date:
        """The first day of the first step."""
        return self.day - timedelta(days=STEPS * STEP_DAYS)

    def months(self) -> list[int]:
        """The months in which the steps begin, 0 = January."""
        return [(self.begins + timedelta(days=STEP_DAYS * step)).month - 1 for step in range(STEPS)]


def read_labels(path: Path) -> list[Label]:
    """The measurements in the file's order. Raises `UserError`."""
    try:
        found = json.loads(path.read_bytes())["features"]
        return [
            Label(
                float("nan") if one["properties"]["percent(t)"] is None else float(one["properties"]["percent(t)"]),
                str(one["properties"]["site"]),
                datetime.fromisoformat(one["properties"]["date"]).date(),
                *(float(number) for number in one["geometry"]["coordinates"][:2]),
            )
            for one in found
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the published list of labels ({reason(error)}): download it again") from None


def match_labels(stacks: dict[str, np.ndarray], labels: Sequence[Label], where: str) -> list[Label]:
    """The label of every row: the only way in which the rows, in order, are some of the labels, in order.

    Raises `UserError` where there is none, or where a row could be of more than one.
    """
    rows = range(len(stacks["target"]))
    first = _matched(stacks, labels, rows)
    last = _matched(stacks, labels[::-1], rows[::-1])[::-1]
    if len(first) < len(rows):
        raise UserError(
            f"{where}: row {len(first)} of the stacks ({stacks['site'][len(first)]}) is of no label: download both again"
        )
    for row, one, other in zip(rows, first, last, strict=True):
        if one.day != other.day:
            raise UserError(
                f"{where}: row {row} of the stacks may be of {one.day} or of {other.day}: download both again"
            )
    return first


def _matched(stacks: dict[str, np.ndarray], labels: Sequence[Label], rows: Iterable[int]) -> list[Label]:
    """The earliest label after the one before for every row, as far as there is one."""
    left = iter(labels)
    out: list[Label] = []
    for row in rows:
        found = next((label for label in left if _is_of(stacks, row, label)), None)
        if found is None:
            break
        out.append(found)
    return out


def _is_of(stacks: dict[str, np.ndarray], row: int, label: Label) -> bool:
    lat, lon = stacks["latlon"][row]
    percent = stacks["target"][row]
    return (
        label.site == stacks["site"][row]
        and (label.percent == percent or bool(np.isnan(label.percent) and np.isnan(percent)))
        and label.months() == stacks["month"][row].tolist()
        and max(abs(label.lat - lat), abs(label.lon - lon)) < _NEAR
    )


@lru_cache(maxsize=2)
def read_stacks(folder: str) -> dict[str, np.ndarray]:
    """The published stacks, checked one by one and against each other. Raises `UserError`."""
    paths = {name: f"{folder}/{name}.npy" for name in STACKS}
    out = {name: read_npy(path) for name, path in paths.items()}
    for name, shape in (
        ("s1_s2_era5_srtm", (None, STEPS, len(BANDS))),
        ("dynamic_world", (None, STEPS)),
        ("month", (None, STEPS)),
        ("latlon", (None, 2)),
        ("is_test", (None,)),
    ):
        expect(out[name], paths[name], name, shape)
    if out["target"].dtype.kind != "f" or out["target"].ndim != 1 or np.isinf(out["target"]).any():
        raise UserError(f"{paths['target']}: is {out['target'].dtype} {out['target'].shape}, numbers are expected")
    if out["site"].dtype.kind != "U" or out["site"].ndim != 1:
        raise UserError(f"{paths['site']}: is {out['site'].dtype} {out['site'].shape}, a list of names is expected")
    lengths = {name: len(values) for name, values in out.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{folder}: the stacks have {lengths} rows, which should be equal: download them again")
    for name, low, high in (("dynamic_world", 0, NO_CLASS), ("month", 0, 11), ("is_test", 0, 1)):
        values = out[name]
        if values.size and not (values.min() >= low and values.max() <= high and (values == np.floor(values)).all()):
            raise UserError(f"{paths[name]}: holds others than whole numbers from {low} to {high}")
    _check_bands(out["s1_s2_era5_srtm"], paths["s1_s2_era5_srtm"])
    return out


def _check_bands(bands: np.ndarray, path: str) -> None:
    """Raise `UserError` unless the last band is the index of two others that it is in the published order."""
    low, high = (bands[..., BANDS.index(name)] for name in ("B03", "B07"))
    total = high + low
    index = np.divide(high - low, total, out=np.zeros_like(total), where=total > 0)
    if np.abs(index - bands[..., -1]).max(initial=0) > 1e-6:
        raise UserError(f"{path}: band 18 is no index of bands 8 and 4: the bands are in another order than expected")
    optical = bands[..., PARTS["s2"]]
    if optical.size and not (optical.min() >= 0 and optical.max() < 1 << 16 and (optical == np.floor(optical)).all()):
        raise UserError(f"{path}: bands 3 to 13 hold others than whole numbers from 0 to 65,535")
    if np.ptp(bands[..., PARTS["srtm"]], axis=1).any():
        raise UserError(f"{path}: bands 16 and 17, elevation and slope, change from step to step")


def intervals(label: Label) -> dict[str, np.ndarray]:
    """First and last second of every step, int64 [3], of each input that has steps: `{input}_time`, `…_time_end`."""
    windows = [label.begins + timedelta(days=STEP_DAYS * step) for step in range(STEPS + 1)]
    composite = list(pairwise(windows))
    month = [(start.replace(day=1), _next_month(start)) for start in windows[:-1]]
    cover = [(label.begins, _next_month(label.begins))]
    while len(cover) < STEPS:
        cover.append((cover[-1][1], _next_month(cover[-1][1])))
    out: dict[str, np.ndarray] = {}
    for name, steps in (("s1", composite), ("s2", composite), ("era5", month), ("dynamic_world", cover)):
        out[f"{name}_time"] = np.array([_seconds(start) for start, _ in steps], np.int64)
        out[f"{name}_time_end"] = np.array([_seconds(end) - 1 for _, end in steps], np.int64)
    return out


def _next_month(day: date) -> date:
    return (day.replace(day=1) + timedelta(days=32)).replace(day=1)


def _seconds(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def open_fuel_moisture(request: Request) -> TaskSource:
    """The measurements with their series. Raises `UserError`."""
    listed = request.need(LABELS, kind="file")
    paths = [request.need("npy", f"{name}.npy", kind="file") for name in STACKS]
    folder = str(paths[0].parent)
    stacks = read_stacks(folder)
    sites, held = stacks["site"].tolist(), stacks["is_test"].tolist()
    both = {site for site, test in zip(sites, held, strict=True) if test} & {
        site for site, test in zip(sites, held, strict=True) if not test
    }
    if both:
        raise UserError(f"{folder}: site {min(both)!r} is in train and in test: download the files again")
    matched = match_labels(stacks, read_labels(listed), str(request.path))
    records = []
    for row, label in enumerate(matched):
        site = label.site.encode()
        if len(site) > np.dtype(SITE).itemsize:
            raise UserError(f"{paths[-1]}: the name {label.site[:40]!r} is longer than {np.dtype(SITE).itemsize} bytes")
        lat, lon = (float(value) for value in stacks["latlon"][row])
        if not (-180 <= lon <= 180 and -90 <= lat <= 90):
            raise UserError(f"{folder}/latlon.npy: row {row}: longitude {lon}, latitude {lat} is no place on Earth")
        name = f"fuel_moisture-{row:05d}".encode()
        # Whatever the publishers do not hold out is the plan's to divide into train and val, by site.
        records.append(Record(name, (row, label), -1, site, "test" if held[row] else "", lon, lat))
    missing = _missing_cover(stacks["dynamic_world"], request.settings["water"])
    return TaskSource(
        request,
        records,
        _layout(),
        partial(_load, folder, request.settings["water"]),
        tokens=[(path.name, _digest(path)) for path in (*paths, listed)],
        notes={
            "published_splits": tally("test" if test else "train" for test in held),
            "sites": len(set(sites)),
            "cover_missing": int(missing.sum()),
        },
        description="Columns *_time and *_time_end: first and last second of each step. time_end: the measurement.",
    )


def _layout() -> Layout:
    s2 = s2_bands(BANDS[PARTS["s2"]])
    era5, srtm, cover = (tuple(map(Band, names)) for names in (BANDS[PARTS["era5"]], BANDS[PARTS["srtm"]], COVER))
    arrays = {"dynamic_world_valid": ArrayColumn((STEPS,), "uint8", "T", "mask")}
    for name in ("s1", "s2", "era5", "dynamic_world"):
        for column in (f"{name}_time", f"{name}_time_end"):
            arrays[column] = ArrayColumn((STEPS,), "int64", "T", "other", units="Unix seconds UTC")
    arrays["month"] = ArrayColumn((STEPS,), "uint8", "T", "other", units="month of the year in which the step begins")
    return Layout(
        {
            "s1": ImageColumn(
                (STEPS, 2), "float32", S1_BANDS, 10.0, units="dB", axes="TC", sensor="Sentinel-1 GRD, one pixel"
            ),
            "s2": ImageColumn(
                (STEPS, len(s2)),
                "uint16",
                s2,
                10.0,
                units="reflectance, top of atmosphere",
                scale=1e-4,
                axes="TC",
                sensor="Sentinel-2 L1C, one pixel",
            ),
            "era5": ImageColumn(
                (STEPS, 2),
                "float32",
                era5,
                units="K; m of water, mean of a day",
                axes="TC",
                sensor="ERA5-Land, monthly",
            ),
            "srtm": ImageColumn((2,), "float32", srtm, 30.0, units="m; degree", axes="C", sensor="SRTM"),
            "dynamic_world": ImageColumn(
                (STEPS, len(COVER)),
                "uint8",
                cover,
                10.0,
                units="1 where it is the step's commonest class",
                axes="TC",
                mask="dynamic_world_valid",
                sensor="Dynamic World V1, one pixel",
            ),
        },
        arrays,
        {
            "lon": "float64",
            "lat": "float64",
            "time_start": "int64",
            "time_end": "int64",
            "site": SITE,
            "fuel_moisture": "float32",
        },
        {
            "fuel_moisture": Target(
                "regression", "fuel_moisture", units="% of dry weight", missing="nan", metric="rmse, r2"
            )
        },
    )


def _missing_cover(classes: np.ndarray, water: str) -> np.ndarray:
    return (classes == NO_CLASS) | ((classes == COVER.index("water")) & (water == "missing"))


def _digest(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _load(folder: str, water: str, payload: tuple[int, Label]) -> dict[str, Any]:
    row, label = payload
    stacks = read_stacks(folder)
    bands, classes = stacks["s1_s2_era5_srtm"][row], stacks["dynamic_world"][row]
    valid = ~_missing_cover(classes, water)
    lat, lon = stacks["latlon"][row]
    return {
        **{name: bands[0, part] if name == "srtm" else bands[:, part] for name, part in PARTS.items()},
        "dynamic_world": (classes[:, None] == np.arange(len(COVER))) & valid[:, None],
        "dynamic_world_valid": valid,
        "month": stacks["month"][row] + 1,
        **intervals(label),
        "lon": lon,
        "lat": lat,
        "time_start": _seconds(label.begins),
        "time_end": _seconds(label.day) - 1,
        "site": label.site.encode(),
        "fuel_moisture": stacks["target"][row],
    }


READERS = (
    Reader(
        name="presto_fuel_moisture",
        summary="Presto's evaluation on live fuel moisture: S1, S2, ERA5, SRTM and land cover of a pixel, three steps",
        expects=f"the folder data/fuel_moisture of https://github.com/nasaharvest/presto, with npy and {LABELS} in it",
        open=open_fuel_moisture,
        uses=frozenset({"license", "citation"}),
        settings={
            "water": Setting(
                "what class 0 of Dynamic World stands for: missing (no image, which it mostly is here), or class (water)",
                "missing",
                ("missing", "class"),
            )
        },
        citation="Tseng, Cartuyvels, Zvonkov, Purohit, Rolnick and Kerner, Lightweight, Pre-trained Transformers for "
        "Remote Sensing Timeseries, arXiv:2304.14065; Rao, Williams, Flefil and Konings, SAR-enhanced mapping of live "
        "fuel moisture content, Remote Sensing of Environment 245, 2020",
        homepage="https://github.com/nasaharvest/presto",
    ),
)
