"""SustainBench's six tasks on Demographic and Health Surveys: one image and up to six labels a cluster of households.

```
FOLDER/dhs_final_labels.csv                          DHSID_EA, cname, year, lat, lon, urban, the six labels, counts
FOLDER/dhs_npzs/{survey}/{DHSID_EA}.npz              or FOLDER/{survey}/…: dhs_*.tar.gz, extracted
```
A DHSID_EA is [country]-[year]-[round]-[cluster], and the survey's folder is its first ten characters, or all before
the last "-": both are looked for. Coordinates were moved by the publishers by up to 2 km (urban) or 10 km (rural).
The split is the published one, by country. A label that a survey lacks is NaN.
"""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

from data_prep.readers._sustainbench import (
    LICENSE,
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
    read_table,
    settle,
    table_token,
    tally,
)
from data_prep.readers._sustainbench_landsat import (
    COLUMNS,
    LAST_DMSP_YEAR,
    check,
    columns_of,
    image_columns,
    read_image,
)
from data_prep.readers.registry import Request, Setting
from data_prep.records import Record
from data_prep.source import Target
from frontier.errors import UserError

COUNTRIES = {
    "train": "AL BD CD CM GH GU HN IA ID JO KE KM LB LS MA MB MD MM MW MZ NG NI PE PH SN TG TJ UG ZM ZW",
    "val": "BF BJ BO CO DR GA GN GY HT NM SL TD TZ",
    "test": "AM AO BU CI EG ET KH KY ML NP PK RW SZ",
}
SPLIT_OF = {country: split for split, countries in COUNTRIES.items() for country in countries.split()}
UNITS = {
    "asset_index": "first principal component of household assets",
    "under5_mort": "deaths per 1,000 children",
    "women_bmi": "kg/m2",
    "women_edu": "years",
    "water_index": "1 (lowest) to 5",
    "sanitation_index": "1 (lowest) to 5",
}
PUBLISHED = {
    "asset_index": (59_617, 16_776, 10_543),
    "under5_mort": (69_052, 17_062, 19_468),
    "women_bmi": (61_950, 15_675, 17_241),
    "women_edu": (75_818, 20_589, 20_655),
    "water_index": (59_620, 17_773, 10_545),
    "sanitation_index": (60_184, 16_776, 12_311),
}
"""Labelled clusters in train, val and test (docs/datasets/dhs.md)."""
_COUNT_COLUMN = {name: f"n_{name.removesuffix('_index')}" for name in UNITS}
_ID = re.compile(r"[A-Z]{2}-\d{4}-[^/\\\0]+-[^/\\\0]+")
_URBAN = {"u": 1, "urban": 1, "1": 1, "1.0": 1, "true": 1, "r": 0, "rural": 0, "0": 0, "0.0": 0, "false": 0}


def open_dhs(request: Request) -> TaskSource:
    """The clusters of the label table. Raises `UserError`."""
    chosen = list(UNITS) if request.settings["target"] == "all" else [request.settings["target"]]
    table = first_of(request, ["dhs_final_labels.csv", "output_labels/dhs_final_labels.csv"])
    rows = read_table(table, ["DHSID_EA", "year", "lat", "lon", *chosen], unique=["DHSID_EA"])
    samples = [_sample(row, chosen) for row in rows]
    labelled = {
        name: tally(record.split for record in samples if not math.isnan(record.payload[1][name])) for name in chosen
    }
    notes: dict[str, Any] = {}
    for name in chosen:
        published = dict(zip(("train", "val", "test"), PUBLISHED[name], strict=True))
        notes[f"labelled_{name}"] = counts(request, labelled[name], published, f"clusters labelled with {name}")
    if request.settings["unlabelled"] == "drop":
        samples = [r for r in samples if any(not math.isnan(r.payload[1][name]) for name in chosen)]
        if not samples:
            raise UserError(f"{table}: no cluster is labelled with {', '.join(chosen)}: choose another --set target")
    found = request.map(partial(_look, str(request.path)), [record.id.decode() for record in samples])
    keep, settled = settle(request, [record.id.decode() + ".npz" for record in samples], found, "images")
    records = [_with_path(samples[k], str(request.path / found[k].path)) for k in keep]
    image, mask = image_columns()
    values = samples[0].payload[1]
    scalars = {name: "int32" if name.startswith("n_") else "float64" for name in values if name in _scalars(chosen)}
    layout = Layout(
        {"image": image},
        {"image_valid": mask},
        COLUMNS | {"year": "int32", "nightlights": "int8", "urban": "int8", "country": "S2"} | scalars,
        {name: Target("regression", name, units=UNITS[name], missing="nan", metric="pearson_r2") for name in chosen},
    )
    return TaskSource(
        request,
        records,
        layout,
        _load,
        tokens=[table_token(table), *((found[k].path, found[k].token) for k in keep)],
        notes=notes | settled,
        description="Column nightlights: 0 = DMSP, 1 = VIIRS. Column urban: 1, 0 = rural, -1 = unknown. First row north.",
    )


def _scalars(chosen: list[str]) -> set[str]:
    return {*chosen, *(_COUNT_COLUMN[name] for name in chosen)}


def _sample(row: Row, chosen: list[str]) -> Record:
    name = row["DHSID_EA"].strip()
    if not _ID.fullmatch(name) or ".." in name:
        raise row.fail(f"DHSID_EA is {name[:60]!r}, not [country]-[year]-[round]-[cluster]")
    country = name[:2]
    if country not in SPLIT_OF:
        raise row.fail(f"country {country!r} is in none of the published splits")
    stated = row.values.get("cname", country).strip()
    if not missing(stated) and stated != country:
        raise row.fail(f"cname is {stated[:40]!r}, but {name} is of {country}")
    year = row.integer("year", 1990, 2100)
    lon, lat = row.place()
    values: dict[str, Any] = columns_of(lat, year, year)
    values |= {
        "lon": lon,
        "lat": lat,
        "year": year,
        "nightlights": 0 if year <= LAST_DMSP_YEAR else 1,
        "urban": _URBAN.get(row.values.get("urban", "").strip().lower(), -1),
        "country": country.encode(),
    }
    for label in chosen:
        values[label] = row.number(label)
        count = _COUNT_COLUMN[label]
        if count in row.values:
            values[count] = -1 if missing(row[count]) else row.integer(count)
    return Record(name.encode(), ("", values), -1, country.encode(), SPLIT_OF[country], lon, lat)


def _with_path(record: Record, path: str) -> Record:
    return Record(
        record.id, (path, record.payload[1]), record.label, record.group, record.split, record.lon, record.lat
    )


def _look(root: str, name: str) -> Checked:
    surveys = dict.fromkeys((name[:10], name.rpartition("-")[0]))
    below = [f"{folder}{survey}/{name}.npz" for folder in ("dhs_npzs/", "") for survey in surveys]
    return look(root, below, check)


def _load(payload: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    path, values = payload
    image, there = read_image(path, values["year"])
    return {"image": image, "image_valid": there, **values}


READERS = (
    make_reader(
        "dhs",
        summary="SustainBench: poverty, health, education, water and sanitation of DHS clusters (Landsat, night lights)",
        expects="download dhs_final_labels.csv and extract dhs_*.tar.gz from the Google Drive folder named on "
        f"{SITE}dhs.html: dhs_final_labels.csv and dhs_npzs/SURVEY/DHSID_EA.npz (or SURVEY/…) in one folder",
        open=open_dhs,
        settings={
            "target": Setting("the label: one of them, or all six", "all", ("all", *UNITS)),
            "unlabelled": Setting(
                "clusters without any of the chosen labels: keep them with NaN, or drop them", "keep", ("keep", "drop")
            ),
        },
        license=f"{LICENSE} (processed data); labels under the terms of the DHS Program; imagery public domain",
        homepage=f"{SITE}dhs.html",
    ),
)
