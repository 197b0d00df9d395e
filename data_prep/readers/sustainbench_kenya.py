"""SustainBench's crop types of Kenya: one year of Sentinel-2 of every field, a value a day.

```
FOLDER/crop_type_kenya_2017_metadata.csv     fileName, cropType, fieldID, region, fold_random, fold_busia_test, …
FOLDER/timeseries/{fileName}                 or beside the table; kenya_2017_sentinel2_timeseries_{k}.npy
```
A file holds a masked array [14, 365]: thirteen bands and the green chlorophyll vegetation index, and the days of 2017.
The published files were written by `numpy.ma.MaskedArray.dump`, so they are pickles: they are read by
`_array_pickle`, which runs nothing. Plain .npy files, in which a missing value is NaN, are read too. A fold is a column
of the table: in fold_siaya_test, the fields of Siaya are the test set. No fold has a val split.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from data_prep.readers._array_pickle import is_pickle, read_array_pickle
from data_prep.readers._sustainbench import (
    CITATION,
    S2_13,
    SITE,
    Checked,
    Layout,
    Row,
    TaskSource,
    counts,
    first_of,
    look,
    make_reader,
    missing,
    read_npy,
    read_table,
    s2_bands,
    seconds,
    settle,
    table_token,
    tally,
)
from data_prep.readers.registry import Request, Setting
from data_prep.records import Record
from data_prep.source import ArrayColumn, Band, ImageColumn, Target
from frontier.errors import UserError

DAYS = 365
BANDS = (*s2_bands(S2_13), Band("GCVI"))
CROPS = ("banana", "beans", "cassava", "groundnut", "maize", "non-crop", "other", "sugarcane", "sweet potatoes")
PUBLISHED = {"Bungoma": 2_098, "Busia": 1_957, "Siaya": 1_638}
_FOLDERS = ("timeseries/", "", "crop_type_kenya/timeseries/", "crop_type_kenya/")
_TABLE = "crop_type_kenya_2017_metadata.csv"


def open_kenya(request: Request) -> TaskSource:
    """The fields of the table. Raises `UserError`."""
    fold = f"fold_{request.settings['fold']}"
    table = first_of(request, [_TABLE, f"crop_type_kenya/{_TABLE}"])
    rows = read_table(table, ["fileName", "cropType", "fieldID", "region", fold], unique=["fileName"])
    labels = [_label(row) for row in rows]
    splits = [row.split(fold) for row in rows]
    notes = {
        "fields": counts(request, tally(row["region"].strip() for row in rows), PUBLISHED, "fields"),
        "splits": tally(splits),
        "without_label": labels.count(-1),
    }
    files = [row.file("fileName") for row in rows]
    found = request.map(partial(_look, str(request.path)), files)
    keep, settled = settle(request, files, found, "series")
    records = [_record(rows[k], files[k], found[k], labels[k], splits[k]) for k in keep]
    layout = Layout(
        {
            "image": ImageColumn(
                (DAYS, len(BANDS)),
                "float32",
                BANDS,
                10.0,
                units="digital number; GCVI: ratio",
                axes="TC",
                mask="image_valid",
                sensor="Sentinel-2 (13 bands, with cirrus)",
            )
        },
        {
            "image_valid": ArrayColumn((DAYS, len(BANDS)), "uint8", "TC", "mask"),
            "image_time": ArrayColumn((DAYS,), "int64", "T", "other", units="Unix seconds UTC"),
        },
        {
            "field": "int32",
            "region": "S16",
            "time_start": "int64",
            "time_end": "int64",
            "valid_fraction": "float32",
        },
        {"crop_type": Target("classification", "label", CROPS, missing=-1, metric="macro_f1, accuracy")},
    )
    return TaskSource(
        request,
        records,
        layout,
        partial(_load, str(request.path)),
        tokens=[table_token(table), *((found[k].path, found[k].token) for k in keep)],
        notes=notes | settled,
        classes=CROPS,
    )


_NUMBER = {"".join(filter(str.isalpha, crop)): k for k, crop in enumerate(CROPS)}


def _label(row: Row) -> int:
    """Index of the crop ("Sugar Cane" is "sugarcane"), -1 where none is known."""
    text = row["cropType"]
    if missing(text):
        return -1
    name = "".join(filter(str.isalpha, text.lower()))
    if name not in _NUMBER:
        raise row.fail(f"cropType is {text[:40]!r}, none of {', '.join(CROPS)}")
    return _NUMBER[name]


def read_series(path: str) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [365, 14] with 0 where nothing is known, bool [365, 14] where something is). Raises `UserError`."""
    if is_pickle(path):
        values, valid = read_array_pickle(path)
    else:
        values = read_npy(path)
        valid = ~np.isnan(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
    if values.shape != (len(BANDS), DAYS) or values.dtype.kind not in "fiu":
        raise UserError(f"{path}: the series is {values.dtype} {values.shape}, {(len(BANDS), DAYS)} is expected")
    known = np.where(valid, values, 0).astype(np.float32)
    wrong = known.size - int(np.isfinite(known).sum())
    if wrong:
        raise UserError(f"{path}: the series holds {wrong} NaN or infinite values that are not masked")
    return known.T, valid.T


def _check(path: str) -> float:
    return float(read_series(path)[1].mean())


def _look(root: str, name: str) -> Checked:
    return look(root, [folder + name for folder in _FOLDERS], _check)


def _record(row: Row, name: str, found: Checked, label: int, split: str) -> Record:
    region = row["region"].strip().encode()
    if len(region) > 16:
        raise row.fail(f"region is {region[:40]!r}, longer than 16 bytes")
    values = {
        "field": row.integer("fieldID"),
        "region": region,
        "time_start": seconds(2017),
        "time_end": seconds(2018) - 1,
        "valid_fraction": found.found,
    }
    return Record(name.encode(), (found.path, values), label, b"", split)


def _load(root: str, payload: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    path, values = payload
    image, valid = read_series(f"{root}/{path}")
    return {"image": image, "image_valid": valid, "image_time": seconds(2017) + 86_400 * np.arange(DAYS), **values}


READERS = (
    make_reader(
        "kenya",
        summary="SustainBench: crop types of fields in Kenya, daily Sentinel-2 series of 2017",
        expects=f"download and extract crop_type_kenya.zip from the Google Drive folder named on {SITE}sdg2/"
        f"crop_type_mapping_kenya.html: {_TABLE} and timeseries/*.npy in one folder",
        open=open_kenya,
        settings={
            "fold": Setting("the published split", "random", ("random", "bungoma_test", "busia_test", "siaya_test"))
        },
        citation=f"{CITATION}; Kluger, Wang and Lobell, Two shifts for crop mapping, Remote Sensing of Environment 262, "
        "2021",
        homepage=f"{SITE}sdg2/crop_type_mapping_kenya.html",
    ),
)
