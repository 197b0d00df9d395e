"""SustainBench's fields of France: Sentinel-2 images of 224x224 pixels, the fields' boundaries, and their areas.

```
FOLDER/clean_data.csv                ids, indices, split, max_lat, max_lon, min_lat, min_lon
FOLDER/imgs/{indices}.jpeg           224x224, red, green, blue
FOLDER/masks/{indices}.png           the boundaries
FOLDER/masks_filled/{indices}.png    the fields
```
A mask is grey: a pixel is 1 where it is 128 or more, or where it is 1 in a mask of zeros and ones.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.images import decode
from data_prep.readers._sustainbench import (
    CITATION,
    SITE,
    Checked,
    Layout,
    Row,
    TaskSource,
    counts,
    first_of,
    make_reader,
    read_table,
    reason,
    s2_bands,
    seconds,
    settle,
    table_token,
    tally,
)
from data_prep.readers.registry import Request
from data_prep.records import Record, file_token
from data_prep.source import ArrayColumn, ImageColumn, Target
from frontier.errors import UserError

SIDE = 224
PUBLISHED = {"train": 1_572, "val": 198, "test": 196}
_KINDS = {"image": "imgs/{}.jpeg", "boundary": "masks/{}.png", "area": "masks_filled/{}.png"}


def open_delineation(request: Request) -> TaskSource:
    """The images of the table. Raises `UserError`."""
    table = first_of(request, ["clean_data.csv"])
    corners = ["max_lat", "max_lon", "min_lat", "min_lon"]
    rows = read_table(table, ["indices", "split", *corners], unique=["indices"])
    names = [str(row.integer("indices")) for row in rows]
    splits = [row.split("split") for row in rows]
    notes = {"splits": counts(request, tally(splits), PUBLISHED, "images")}
    found = request.map(partial(_look, str(request.path)), names)
    keep, settled = settle(request, [f"{_KINDS['image']}".format(name) for name in names], found, "images")
    records = [_record(rows[k], names[k], splits[k]) for k in keep]
    masks = {name: ArrayColumn((SIDE, SIDE), "uint8", "HW", "target") for name in ("boundary", "area")}
    layout = Layout(
        {
            "image": ImageColumn(
                (3, SIDE, SIDE),
                "uint8",
                s2_bands(("B04", "B03", "B02")),
                10.0,
                units="digital number",
                sensor="Sentinel-2, stretched to 8 bits, JPEG",
            )
        },
        masks,
        {"lon": "float64", "lat": "float64", "time_start": "int64", "time_end": "int64"},
        {
            "boundary": Target("segmentation", "boundary", ("other", "boundary"), missing=255, metric="dice"),
            "area": Target("segmentation", "area", ("other", "field"), missing=255, metric="f1"),
        },
    )
    return TaskSource(
        request,
        records,
        layout,
        partial(_load, str(request.path)),
        tokens=[table_token(table), *((f"imgs/{names[k]}", found[k].token) for k in keep)],
        notes=notes | settled,
    )


def read_image(path: str) -> np.ndarray:
    """The image, uint8 [3, 224, 224]. Raises `UserError`."""
    image = _decoded(path)
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def read_mask(path: str) -> np.ndarray:
    """The mask, uint8 [224, 224] of 0 and 1. Raises `UserError`."""
    grey = np.asarray(_decoded(path).convert("L"))
    return (grey >= (1 if grey.max() <= 1 else 128)).astype(np.uint8)


def _decoded(path: str) -> Any:
    try:
        image = decode(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if image.size != (SIDE, SIDE):
        raise UserError(f"{path}: is {image.width}x{image.height}, {SIDE}x{SIDE} is expected")
    return image


def _sample(root: str, name: str) -> dict[str, np.ndarray]:
    paths = {kind: f"{root}/{pattern.format(name)}" for kind, pattern in _KINDS.items()}
    return {kind: read_image(path) if kind == "image" else read_mask(path) for kind, path in paths.items()}


def _look(root: str, name: str) -> Checked:
    """One image and its masks: absent if any of the three is."""
    paths = [Path(root, pattern.format(name)) for pattern in _KINDS.values()]
    if not all(path.is_file() for path in paths):
        return Checked()
    try:
        _sample(root, name)
        return Checked(f"imgs/{name}.jpeg", b"".join(map(file_token, paths)))
    except UserError as error:
        return Checked(f"imgs/{name}.jpeg", error=str(error))


def _record(row: Row, name: str, split: str) -> Record:
    east, north = row.place("max_lon", "max_lat")
    west, south = row.place("min_lon", "min_lat")
    if west > east or south > north:
        raise row.fail("min_lat or min_lon is above max_lat or max_lon")
    lon, lat = (west + east) / 2, (south + north) / 2
    values = {"lon": lon, "lat": lat, "time_start": seconds(2017), "time_end": seconds(2018) - 1}
    return Record(name.encode(), (name, values), -1, b"", split, lon, lat)


def _load(root: str, payload: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    name, values = payload
    return _sample(root, name) | values


READERS = (
    make_reader(
        "delineation",
        summary="SustainBench: field boundaries and areas of France in Sentinel-2 images of 224x224 pixels",
        expects=f"download the Google Drive folder named on {SITE}sdg2/field_delineation.html: clean_data.csv, imgs, "
        "masks and masks_filled in one folder",
        open=open_delineation,
        citation=f"{CITATION}; Aung, Uzkent, Burke, Lobell and Ermon, Farm Parcel Delineation Using Spatio-temporal "
        "Convolutional Networks, CVPR Workshops 2020",
        homepage=f"{SITE}sdg2/field_delineation.html",
    ),
)
