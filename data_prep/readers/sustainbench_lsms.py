"""SustainBench's change of poverty over time: two images of one cluster, labelled with how its assets changed.

```
FOLDER/asset_infrstructure_indicies_lsms_over_time.csv      the labels (the file names are the publishers')
FOLDER/asset_infrstructure_indicies_lsms.csv                latitude and longitude of every cluster and year
FOLDER/lsms_npzs/{country}_{year}/{ea_id}.npz               the images, see --set images
```
Two labels are in use. The difference of the index is the mean over the cluster's households of index(second year) -
index(first year), the column `asset_index` of the table over time; the index of the difference is the first principal
component of the differences of the assets themselves, its column `asset_index_diff`, and is the benchmark's label.
The publishers describe neither the split nor the names of the image files. Here no split is given: pairs of one
cluster (or of one country, by `--set group=country`) stay together when the plan draws one; and `--set images` says
how the files are named. Clusters whose place the table does not give uniquely (Uganda's ea_id 0) have none.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from data_prep.readers._sustainbench import (
    CITATION,
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
    read_table,
    settle,
    table_token,
    tally,
)
from data_prep.readers._sustainbench_landsat import COLUMNS, check, columns_of, image_columns, read_image
from data_prep.readers.registry import Request, Setting
from data_prep.records import Record
from data_prep.source import ArrayColumn, Target
from frontier.errors import UserError

OVER_TIME = "asset_infrstructure_indicies_lsms_over_time.csv"
PLACES = "asset_infrstructure_indicies_lsms.csv"
LABELS = {
    "index_of_difference": "asset_index_diff",
    "difference_of_index": "asset_index",
    "infrastructure_index_of_difference": "infrastructure_index_diff",
    "infrastructure_difference_of_index": "infrastructure_index",
}
"""Our name of a label -> its column in the table over time."""
PUBLISHED = {"et": 327, "mw": 102, "ng": 480, "tz": 300, "ug": 288}
"""Pairs by country in the published table (commit 4b3cdb9 of the publishers' repository)."""
_FOLDERS = ("", "final_labels/", "lsms_utils/final_labels/")
_IMAGES = "lsms_npzs/{country}_{year}/{ea_id}.npz"


def open_lsms(request: Request) -> TaskSource:
    """The pairs of the table over time. Raises `UserError`."""
    template = request.settings["images"]
    for name in ("{year}", "{ea_id}"):
        if name not in template:
            raise UserError(f"--set images={template}: has no {name}: give a path such as {_IMAGES}")
    if template.startswith("/") or ".." in template.split("/"):
        raise UserError(f"--set images={template}: leads out of --from: give a path below it")
    chosen = list(LABELS) if request.settings["target"] == "all" else [request.settings["target"]]
    tables = [first_of(request, [folder + name for folder in _FOLDERS]) for name in (OVER_TIME, PLACES)]
    names = ["country", "ea_id", "year.x", "year.y"]
    rows = read_table(tables[0], [*names, "n", *LABELS.values()], unique=names)
    places = _places(read_table(tables[1], ["country", "year", "ea_id", "lat", "lon"]))
    samples = [_sample(row, chosen, places, template, request.settings["group"]) for row in rows]
    notes: dict[str, Any] = {
        "pairs": counts(request, tally(row["country"] for row in rows), PUBLISHED, "pairs"),
        "without_place": sum(math.isnan(record.lon) for record in samples),
    }
    files = sorted({path for record in samples for path in record.payload[0]})
    found = request.map(partial(_look, str(request.path)), files)
    usable, settled = settle(request, files, found, "images")
    there = {files[k] for k in usable}
    records = [record for record in samples if set(record.payload[0]) <= there]
    used = {path for record in records for path in record.payload[0]}
    notes |= settled | {"pairs_without_both_images": len(samples) - len(records)}
    image, mask = image_columns(times=2)
    layout = Layout(
        {"image": image},
        {
            "image_valid": mask,
            "image_time_start": ArrayColumn((2,), "int64", "T", "other", units="Unix seconds UTC"),
            "image_time_end": ArrayColumn((2,), "int64", "T", "other", units="Unix seconds UTC"),
        },
        COLUMNS
        | {"year_first": "int32", "year_second": "int32", "households": "int32", "country": "S2"}
        | dict.fromkeys(chosen, "float64"),
        {
            name: Target("regression", name, units="principal component", missing="nan", metric="pearson_r2")
            for name in chosen
        },
    )
    return TaskSource(
        request,
        records,
        layout,
        partial(_load, str(request.path)),
        tokens=[*map(table_token, tables), *((files[k], found[k].token) for k in usable if files[k] in used)],
        notes=notes,
        description="Two images of one cluster; the first row is the northernmost.",
    )


def _places(rows: list[Row]) -> dict[tuple[str, str], tuple[float, float]]:
    """Longitude and latitude by country and ea_id; (NaN, NaN) where the table has more than one place."""
    found: dict[tuple[str, str], set[tuple[float, float]]] = {}
    for row in rows:
        found.setdefault((row["country"], row["ea_id"]), set()).add(row.place())
    return {key: next(iter(some)) if len(some) == 1 else (math.nan, math.nan) for key, some in found.items()}


def _sample(
    row: Row, chosen: list[str], places: dict[tuple[str, str], tuple[float, float]], template: str, group: str
) -> Record:
    country, cluster = row["country"].strip(), row.file("ea_id")
    if len(country) != 2 or not country.isascii() or not country.isalpha() or "/" in cluster:
        raise row.fail(f"country {country[:20]!r} or ea_id {cluster[:40]!r} is not one of this table")
    first, second = row.integer("year.x", 1990, 2100), row.integer("year.y", 1990, 2100)
    if first >= second:
        raise row.fail(f"year.x {first} is not before year.y {second}")
    lon, lat = places.get((country, cluster), (math.nan, math.nan))
    values: dict[str, Any] = columns_of(lat, first, second)
    values |= {
        "lon": lon,
        "lat": lat,
        "year_first": first,
        "year_second": second,
        "households": row.integer("n"),
        "country": country.encode(),
    }
    values |= {name: row.number(LABELS[name]) for name in chosen}
    paths = tuple(
        template.replace("{country}", country).replace("{year}", str(year)).replace("{ea_id}", cluster)
        for year in (first, second)
    )
    together = country if group == "country" else f"{country}-{cluster}"
    return Record(
        f"{country}-{cluster}-{first}-{second}".encode(), (paths, values), -1, together.encode(), "", lon, lat
    )


def _look(root: str, name: str) -> Checked:
    return look(root, [name], check)


def _load(root: str, payload: tuple[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    paths, values = payload
    years = values["year_first"], values["year_second"]
    images = [read_image(f"{root}/{path}", year) for path, year in zip(paths, years, strict=True)]
    spans = [columns_of(0.0, year, year) for year in years]
    return {
        "image": np.stack([image for image, _ in images]),
        "image_valid": np.stack([there for _, there in images]),
        "image_time_start": [span["time_start"] for span in spans],
        "image_time_end": [span["time_end"] for span in spans],
        **values,
    }


READERS = (
    make_reader(
        "lsms",
        summary="SustainBench: change of poverty over time of LSMS clusters, pairs of Landsat and night lights images",
        expects=f"put {OVER_TIME} and {PLACES} (in the publishers' repository under dataset_preprocessing/dhs_lsms/"
        f"lsms_utils/final_labels) beside the extracted images of the Google Drive folder named on "
        f"{SITE}sdg1/change_in_poverty.html; --set images=… says how those are named",
        open=open_lsms,
        settings={
            "target": Setting("the label: one of them, or all", "all", ("all", *LABELS)),
            "group": Setting("what stays together when a split is drawn", "cluster", ("cluster", "country")),
            "images": Setting("path of an image below --from, with {country}, {year} and {ea_id}", _IMAGES),
        },
        license=f"{LICENSE} (processed data); labels under the terms of the World Bank's LSMS; imagery public domain",
        citation=f"{CITATION}; Yeh, Perez, Driscoll et al., Using publicly available satellite imagery and deep "
        "learning to understand economic well-being in Africa, Nature Communications 11, 2020, "
        "doi:10.1038/s41467-020-16185-w",
        homepage=f"{SITE}sdg1/change_in_poverty.html",
    ),
)
