"""SustainBench's brick kilns of Bangladesh: Sentinel-2 crops of 64x64 pixels in which there is a kiln, or none.

```
FOLDER/list_eval_partition.csv     y, partition, hdf5_file, hdf5_idx, lon_top_left, lat_top_left, lon_bottom_right,
                                   lat_bottom_right, indice_offset_num, indice_x, indice_y
FOLDER/examples_{k}.hdf5           images [n, 64, 64, 13] (rows, columns, bands), labels [n], bounds [n, 4], indices
```
The table repeats labels and bounds of the HDF5 files: both are compared. Some files hold no image (n = 0). The site
speaks of 73,613 images, the publishers' table has 86,528 lines; with 6,329 kilns of 73,613, saying "none" throughout
is right in 91.4 per cent.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np

from data_prep.readers._sustainbench import (
    CITATION,
    S2_13,
    SITE,
    Checked,
    Layout,
    Row,
    TaskSource,
    check_shape,
    counts,
    expect,
    first_of,
    look,
    make_reader,
    read_table,
    reason,
    s2_bands,
    seconds,
    settle,
    table_token,
    tally,
    whole_numbers,
)
from data_prep.readers.registry import Request
from data_prep.records import Record
from data_prep.source import ArrayColumn, ImageColumn, Target
from frontier.data.chunks import overfull
from frontier.errors import UserError

SIDE = 64
CLASSES = ("no kiln", "kiln")
CORNERS = ("lon_top_left", "lat_top_left", "lon_bottom_right", "lat_bottom_right")
PUBLISHED = {"no kiln": 67_284, "kiln": 6_329}
LINES = (73_613, 86_528)
"""Images that the site speaks of, and lines of the publishers' table."""


def open_brick_kiln(request: Request) -> TaskSource:
    """The crops of the table. Raises `UserError`."""
    table = first_of(request, ["list_eval_partition.csv"])
    rows = read_table(table, ["y", "partition", "hdf5_file", "hdf5_idx", *CORNERS], unique=["hdf5_file", "hdf5_idx"])
    labels = [row.integer("y", 0, 1) for row in rows]
    notes = {"labels": counts(request, tally(CLASSES[y] for y in labels), PUBLISHED, "crops")}
    lines = next((count for count in LINES if len(rows) <= count), LINES[-1])
    notes["lines"] = counts(
        request, {"list_eval_partition.csv": len(rows)}, {"list_eval_partition.csv": lines}, "lines"
    )
    notes["splits"] = tally(row.split("partition") for row in rows)
    numbers = sorted({row.integer("hdf5_file") for row in rows})
    files = [f"examples_{number}.hdf5" for number in numbers]
    found = request.map(partial(_look, str(request.path)), files)
    keep, settled = settle(request, files, found, "HDF5 files")
    there = {numbers[k]: found[k] for k in keep}
    types = sorted({one.found["dtype"] for one in there.values() if len(one.found["labels"])})
    if len(types) > 1:
        raise UserError(f"{request.path}: the images of some files are {types[0]}, of others {types[1]}")
    records = [
        _record(row, y, there[row.integer("hdf5_file")])
        for row, y in zip(rows, labels, strict=True)
        if row.integer("hdf5_file") in there
    ]
    dtype = types[0] if types else "uint16"
    layout = Layout(
        {
            "image": ImageColumn(
                (13, SIDE, SIDE), dtype, s2_bands(S2_13), 10.0, units="digital number", sensor="Sentinel-2"
            )
        },
        {"transform": ArrayColumn((6,), "float64", "K", "other", tuple("abcdef"))},
        {"lon": "float64", "lat": "float64", "crs_epsg": "int32", "time_start": "int64", "time_end": "int64"},
        {"brick_kiln": Target("classification", "label", CLASSES, missing=-1, metric="accuracy")},
    )
    return TaskSource(
        request,
        records,
        layout,
        partial(_load, str(request.path), dtype),
        tokens=[table_token(table), *((found[k].path, found[k].token) for k in keep)],
        notes=notes | settled,
        classes=CLASSES,
    )


def _look(root: str, name: str) -> Checked:
    return look(root, [name], _survey)


def _survey(path: str) -> dict[str, Any]:
    """What one HDF5 file holds, after reading all of it: type of the images, labels, bounds."""
    with _open(path) as file:
        images = _dataset(file, "images", path)
        labels = expect(np.asarray(_dataset(file, "labels", path)).reshape(-1), path, "labels", (len(images),))
        bounds = expect(np.asarray(_dataset(file, "bounds", path)), path, "bounds", (len(images), 4))
        dtype = "float32" if images.dtype.kind == "f" else "uint16"
        if len(images):
            check_shape(images.shape, path, "images", (None, SIDE, SIDE, 13))
        for start in range(0, len(images), 128):
            _pixels(images[start : start + 128], path, dtype)
        return {"dtype": dtype, "labels": labels.astype(np.int64), "bounds": bounds.astype(np.float64)}


def _open(path: str) -> Any:
    import h5py

    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        raise UserError(f"{path}: not a readable HDF5 file ({reason(error)})") from None


def _dataset(file: Any, name: str, path: str) -> Any:
    """A dataset that lies in this file alone: no link is followed."""
    import h5py

    if name not in file or not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise UserError(f"{path}: no dataset {name!r} (there are: {', '.join(sorted(file)) or 'none'})")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external or dataset.dtype.hasobject:
        raise UserError(f"{path}: {name!r} is not a plain dataset of this file")
    if dataset.ndim == 0:
        raise UserError(f"{path}: {name!r} is a single value, an array is expected")
    if wrong := overfull(dataset):
        raise UserError(f"{path}: {name!r} {wrong}")
    return dataset


def _pixels(values: np.ndarray, path: str, dtype: str) -> np.ndarray:
    values = expect(values, path, "images", (None, SIDE, SIDE, 13))
    return values.astype(np.float32) if dtype == "float32" else whole_numbers(values, path, "images", dtype)


def _record(row: Row, label: int, found: Checked) -> Record:
    index = row.integer("hdf5_idx")
    if index >= len(found.found["labels"]):
        raise row.fail(f"hdf5_idx {index} is not in {found.path}, which holds {len(found.found['labels'])} images")
    if found.found["labels"][index] != label:
        raise row.fail(f"y is {label}, but image {index} of {found.path} is labelled {found.found['labels'][index]}")
    west, north, east, south = (row.number(name) for name in CORNERS)
    if not np.allclose((west, north, east, south), found.found["bounds"][index], rtol=0, atol=1e-5):
        raise row.fail(f"the corners are not those of image {index} of {found.path}")
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise row.fail("the corners are not those of a place on Earth")
    lon, lat = (west + east) / 2, (north + south) / 2
    values = {
        "lon": lon,
        "lat": lat,
        "crs_epsg": 4326,
        "time_start": seconds(2018, 10),
        "time_end": seconds(2019, 6) - 1,
        "transform": ((east - west) / SIDE, 0.0, west, 0.0, (south - north) / SIDE, north),
    }
    name = f"{found.path}:{index}"
    return Record(name.encode(), (found.path, index, values), label, b"", row.split("partition"), lon, lat)


@lru_cache(maxsize=4)
def _kept_open(path: str) -> Any:
    return _open(path)


def _load(root: str, dtype: str, payload: tuple[str, int, dict[str, Any]]) -> dict[str, Any]:
    name, index, values = payload
    path = f"{root}/{name}"
    try:
        crop = _dataset(_kept_open(path), "images", path)[index]
    except (OSError, IndexError) as error:
        raise UserError(f"{path}: image {index} cannot be read any more ({reason(error)}): restore it") from None
    return {"image": _pixels(crop[None], path, dtype)[0].transpose(2, 0, 1), **values}


READERS = (
    make_reader(
        "brick_kiln",
        summary="SustainBench: brick kilns of Bangladesh in Sentinel-2 crops of 64x64 pixels, 13 bands",
        expects=f"download and extract brick_kiln_v1.0.tar.gz from the Google Drive folder named on {SITE}sdg13/"
        "brick_kiln.html: list_eval_partition.csv and examples_*.hdf5 in one folder",
        open=open_brick_kiln,
        citation=f"{CITATION}; Lee, Brooks, Tajwar et al., Scalable deep learning to identify brick kilns and aid "
        "regulatory capacity, PNAS 118(17), 2021, doi:10.1073/pnas.2018863118",
        homepage=f"{SITE}sdg13/brick_kiln.html",
    ),
)
