"""SustainBench's crop types of Ghana and South Sudan: series of Sentinel-1, Sentinel-2 and PlanetScope, 64x64 labels.

```
FOLDER/{ghana,southsudan}/list_eval_partition.csv               id, partition (0, 1, 2)
FOLDER/{country}/npy/{country}_{id:06d}.npz                     s1 [3, 64, 64, T], s2 [10, 64, 64, T], planet [4, n, n, T]
FOLDER/{country}/truth/{country}_{id:06d}.npz                   truth [64, 64]: 0 = no label, 1 to 4 = the four crops
FOLDER/{country}/{s1,s2,planet}/{sensor}_{country}_{id:06d}.json     {"dates": ["2016-05-31", …]}
```
Series come in the order of their dates, padded to one length a sensor: the longest of the country, or `--set
max_dates=N`, of which longer series keep N dates evenly spread. Masks and dates say which are there. PlanetScope is cut
to its central 212x212 pixels, as the publishers do. Labels above 4 are other crops, which the task leaves out: 255.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.readers._sustainbench import (
    CITATION,
    SITE,
    Checked,
    Layout,
    Row,
    TaskSource,
    counts,
    date_seconds,
    expect,
    first_of,
    make_reader,
    read_npz,
    read_table,
    reason,
    s2_bands,
    settle,
    table_token,
    tally,
    whole_numbers,
)
from data_prep.readers.registry import Request, Setting
from data_prep.records import Record, file_token
from data_prep.scenes_spectra import S1_BANDS
from data_prep.source import ArrayColumn, Band, ImageColumn, Target
from frontier.data.manifest import nearest
from frontier.errors import UserError

SIDE, PLANET_SIDE = 64, 212
FOLDERS = {"ghana": "ghana", "south_sudan": "southsudan"}
CROPS = {
    "ghana": ("groundnut", "maize", "rice", "soya bean"),
    "south_sudan": ("sorghum", "maize", "rice", "groundnut"),
}
PUBLISHED = {
    "ghana": {"train": 2_260, "val": 298, "test": 323},
    "south_sudan": {"train": 554, "val": 66, "test": 67},
}
"""Tiles in the lists of the data's authors (roserustowicz/crop-type-mapping), which SustainBench says it keeps."""
BANDS = {
    "s1": (*S1_BANDS, Band("RATIO")),
    "s2": s2_bands(("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")),
    "planet": (
        Band("BLUE", 485.0, 60, "blue"),
        Band("GREEN", 545.0, 90, "green"),
        Band("RED", 630.0, 80, "red"),
        Band("NIR", 820.0, 80, "nir"),
    ),
}
_ABOUT = {
    "s1": ("float32", 10.0, "dB; RATIO: VH/VV", "Sentinel-1"),
    "s2": ("uint16", 10.0, "digital number", "Sentinel-2"),
    "planet": ("uint16", 3.0, "digital number", "PlanetScope"),
}


def open_crop_type(request: Request) -> TaskSource:
    """The tiles of one country. Raises `UserError`."""
    country = request.settings["country"]
    folder = FOLDERS[country]
    sensors = _sensors(request.settings["sensors"])
    wanted = _max_dates(request.settings["max_dates"])
    table = first_of(request, [f"{folder}/list_eval_partition.csv"])
    rows = read_table(table, ["id", "partition"], unique=["id"])
    tiles = [row.integer("id", 0, 999_999) for row in rows]
    splits = [row.split("partition") for row in rows]
    notes = {"tiles": counts(request, tally(splits), PUBLISHED[country], "tiles", binding=False)}
    root = str(table.parent)
    found = request.map(partial(_look, root, folder, sensors), tiles, costly=True)
    keep, settled = settle(request, [f"{folder}_{tile:06d}" for tile in tiles], found, "tiles")
    if not keep:
        raise UserError(f"{request.path}: no tile of {country} is left to write")
    longest = {s: max(len(found[k].found["times"][s]) for k in keep) for s in sensors}
    steps = {s: wanted or longest[s] for s in sensors}
    records = [_record(rows[k], tiles[k], splits[k], found[k], country) for k in keep]
    images, arrays = {}, {"crop_type": ArrayColumn((SIDE, SIDE), "uint8", "HW", "target")}
    for sensor in sensors:
        dtype, gsd, units, name = _ABOUT[sensor]
        side = PLANET_SIDE if sensor == "planet" else SIDE
        shape = (steps[sensor], len(BANDS[sensor]), side, side)
        images[sensor] = ImageColumn(
            shape, dtype, BANDS[sensor], gsd, units=units, axes="TCHW", mask=f"{sensor}_valid", sensor=name
        )
        arrays[f"{sensor}_valid"] = ArrayColumn((steps[sensor],), "uint8", "T", "mask")
        arrays[f"{sensor}_time"] = ArrayColumn((steps[sensor],), "int64", "T", "other", units="Unix seconds UTC")
    layout = Layout(
        images,
        arrays,
        {"tile": "int32", "time_start": "int64", "time_end": "int64", "labelled_fraction": "float32"},
        {"crop_type": Target("segmentation", "crop_type", CROPS[country], missing=255, metric="macro_f1, accuracy")},
    )
    cut = {s: sum(len(found[k].found["times"][s]) > steps[s] for k in keep) for s in sensors}
    return TaskSource(
        request,
        records,
        layout,
        partial(_load, root, folder, steps),
        tokens=[(f"{folder}/{table.name}", table_token(table)[1]), *((found[k].path, found[k].token) for k in keep)],
        notes=notes | settled | {"longest_series": longest, "series_cut": cut},
        description="Columns *_time: the day of each step; 0 where the mask says that there is none.",
    )


def _sensors(text: str) -> tuple[str, ...]:
    """The sensors asked for, in the order s1, s2, planet."""
    asked = [word.strip() for word in text.split(",") if word.strip()]
    for word in asked:
        if word not in BANDS:
            raise UserError(f"--set sensors={text}: no sensor {word!r}: {nearest(word, BANDS)}")
    if not asked or len(set(asked)) != len(asked):
        raise UserError(f"--set sensors={text}: name one or more of {', '.join(BANDS)}, each once")
    return tuple(sensor for sensor in BANDS if sensor in asked)


def _max_dates(text: str) -> int:
    """The length of a series, or 0 = as long as the longest."""
    if not text:
        return 0
    if not text.isdigit() or not 1 <= int(text) <= 10_000:
        raise UserError(f"--set max_dates={text}: give a number from 1 to 10000")
    return int(text)


def _look(root: str, folder: str, sensors: tuple[str, ...], tile: int) -> Checked:
    """One tile, after reading all of it."""
    name = f"{folder}_{tile:06d}"
    paths = _paths(root, folder, tile, sensors)
    if not all(path.is_file() for path in paths.values()):
        return Checked()
    shown = f"{folder}/npy/{name}.npz"
    try:
        times = {}
        for sensor in sensors:
            times[sensor] = _times(paths[sensor])
            _series(paths["npy"], sensor, len(times[sensor]))
        labels = _labels(paths["truth"])
        token = b"".join(file_token(path) for path in paths.values())
        return Checked(shown, token, found={"times": times, "labelled": float((labels != 255).mean())})
    except (UserError, OSError) as error:
        return Checked(shown, error=str(error))


def _paths(root: str, folder: str, tile: int, sensors: tuple[str, ...]) -> dict[str, Path]:
    name = f"{folder}_{tile:06d}"
    paths = {"npy": Path(root, "npy", f"{name}.npz"), "truth": Path(root, "truth", f"{name}.npz")}
    return paths | {sensor: Path(root, sensor, f"{sensor}_{name}.json") for sensor in sensors}


def _times(path: Path) -> list[int]:
    """Unix seconds of every date of a series, as the file lists them."""
    try:
        content = json.loads(path.read_bytes())
        return [date_seconds(text) for text in content["dates"]]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a list of dates ({reason(error)})") from None


def _series(path: Path, sensor: str, dates: int) -> np.ndarray:
    """[C, H, W, T] of one sensor, PlanetScope cut to its centre. Raises `UserError`."""
    array = read_npz(path, sensor)
    bands = len(BANDS[sensor])
    if sensor == "planet":
        expect(array, path, sensor, (bands, None, None, dates))
        if min(array.shape[1:3]) < PLANET_SIDE:
            raise UserError(f"{path}: planet is {array.shape[1]}x{array.shape[2]}, {PLANET_SIDE} or more are expected")
        top, left = (round((n - PLANET_SIDE) / 2) for n in array.shape[1:3])
        array = array[:, top : top + PLANET_SIDE, left : left + PLANET_SIDE]
    else:
        expect(array, path, sensor, (bands, SIDE, SIDE, dates))
    if _ABOUT[sensor][0] == "float32":
        return array.astype(np.float32)
    return whole_numbers(array, path, sensor, "uint16")


def _labels(path: Path) -> np.ndarray:
    """uint8 [64, 64]: 0 to 3 for the four crops, 255 elsewhere."""
    truth = whole_numbers(expect(read_npz(path, "truth"), path, "truth", (SIDE, SIDE)), path, "truth", "uint8")
    return np.where((truth >= 1) & (truth <= 4), truth - 1, 255).astype(np.uint8)


def _record(row: Row, tile: int, split: str, found: Checked, country: str) -> Record:
    times = [time for series in found.found["times"].values() for time in series]
    if not times:
        raise row.fail(f"tile {tile} has no image")
    values = {
        "tile": tile,
        "time_start": min(times),
        "time_end": max(times) + 86_399,
        "labelled_fraction": found.found["labelled"],
    }
    return Record(f"{country}-{tile:06d}".encode(), (tile, found.found["times"], values), -1, b"", split)


def chosen_dates(times: list[int], steps: int) -> np.ndarray:
    """Indices of the dates to keep, in the order of their dates: all, or `steps` evenly spread from first to last."""
    order = np.argsort(np.asarray(times, np.int64), kind="stable")
    if len(order) <= steps:
        return order
    return order[np.linspace(0, len(order) - 1, steps).round().astype(int)]


def _load(root: str, folder: str, steps: dict[str, int], payload: tuple[int, dict, dict]) -> dict[str, Any]:
    tile, times, values = payload
    paths = _paths(root, folder, tile, tuple(steps))
    out: dict[str, Any] = {"crop_type": _labels(paths["truth"]), **values}
    for sensor, length in steps.items():
        series = _series(paths["npy"], sensor, len(times[sensor]))
        keep = chosen_dates(times[sensor], length)
        # [C, H, W, T] -> [T, C, H, W]
        image = np.zeros((length, *series.shape[:3]), series.dtype)
        image[: len(keep)] = series[..., keep].transpose(3, 0, 1, 2)
        out[sensor] = image
        out[f"{sensor}_valid"] = np.arange(length) < len(keep)
        when = np.zeros(length, np.int64)
        when[: len(keep)] = np.asarray(times[sensor], np.int64)[keep]
        out[f"{sensor}_time"] = when
    return out


READERS = (
    make_reader(
        "crop_type",
        summary="SustainBench: crop types of Ghana and South Sudan, series of Sentinel-1, Sentinel-2 and PlanetScope",
        expects="download and extract africa_crop_type_mapping_v1.0 from the Google Drive folder named on "
        f"{SITE}sdg2/crop_type_mapping_ghana-ss.html: ghana and southsudan in one folder",
        open=open_crop_type,
        settings={
            "country": Setting("whose fields", "ghana", tuple(FOLDERS)),
            "sensors": Setting("which series, comma-separated", "s1,s2,planet"),
            "max_dates": Setting("length of every series (default: the longest of each sensor)"),
        },
        citation=f"{CITATION}; Rustowicz, Cheong, Wang, Ermon, Burke and Lobell, Semantic Segmentation of Crop Type in "
        "Africa, CVPR Workshops 2019",
        homepage=f"{SITE}sdg2/crop_type_mapping_ghana-ss.html",
    ),
)
