"""SustainBench's soybean yields of counties, from histograms of MODIS pixels over the season.

```
FOLDER/{usa,argentina,brazil}/{train,dev,test}_hists.npz     or FOLDER/soybeans/…: soybeans.zip, extracted
                              …_yields.npz, …_years.npz, …_keys.npz, and where there, …_ndvi.npz
```
Every .npz holds one array `data`. Histograms lie there as [n, 32 bins, 32 steps, 9 bands] (seven of surface
reflectance, two of surface temperature); here an input has the axes TCK: 32 steps, 9 bands, 32 bins. The dates of the
steps are not published: a sample's time is the calendar year of its key. A key is "region1_region2_year", such as
"adair_ia_2005": the county (department, region) and the state (province, "brasil") that it is in.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.readers._sustainbench import (
    CITATION,
    SITE,
    Layout,
    TaskSource,
    counts,
    expect,
    first_of,
    look,
    make_reader,
    read_npz,
    seconds,
    settle,
)
from data_prep.readers.registry import Request, Setting
from data_prep.records import Record
from data_prep.source import ArrayColumn, Band, ImageColumn, Target
from frontier.errors import UserError

SPLITS = {"train": "train", "dev": "val", "test": "test"}
PUBLISHED = {"usa": 9_049, "argentina": 1_615, "brazil": 384}
STEPS, BINS = 32, 32
BANDS = (
    Band("sur_refl_b01", 645.0, 50, "red"),
    Band("sur_refl_b02", 858.5, 35, "nir"),
    Band("sur_refl_b03", 469.0, 20, "blue"),
    Band("sur_refl_b04", 555.0, 20, "green"),
    Band("sur_refl_b05", 1240.0, 20),
    Band("sur_refl_b06", 1640.0, 24, "swir16"),
    Band("sur_refl_b07", 2130.0, 50, "swir22"),
    Band("LST_Day_1km"),
    Band("LST_Night_1km"),
)
REGION = "S64"


def open_crop_yield(request: Request) -> TaskSource:
    """The counties and years of one country. Raises `UserError`."""
    country = request.settings["country"]
    folder = first_of(request, [country, f"soybeans/{country}"], kind="folder")
    base = folder.relative_to(request.path).as_posix()
    names = [f"{base}/{split}_{part}.npz" for split in SPLITS for part in ("hists", "yields", "years", "keys")]
    found = request.map(partial(_look, str(request.path)), names)
    _, settled = settle(request, names, found, "files")
    read = dict(zip(names, found, strict=True))
    records: list[Record] = []
    sums: list[tuple[float, float]] = []
    whole = [split for split in SPLITS if all(_good(read[f"{base}/{split}_{part}.npz"]) for part in _PARTS)]
    for split in whole:
        hists, yields, years, keys = (read[f"{base}/{split}_{part}.npz"].found for part in _PARTS)
        lengths = {part: read[f"{base}/{split}_{part}.npz"].found[0] for part in _PARTS}
        if len(set(lengths.values())) > 1:
            raise UserError(f"{folder}: {split} has {lengths} entries, which should be equal: download it again")
        sums.append(hists[1])
        path = str(folder / split)
        for row in range(lengths["hists"]):
            values = _values(path, row, str(keys[1][row]), int(years[1][row]), float(yields[1][row]))
            name = keys[1][row].encode()
            records.append(Record(name, (path, row, values), -1, _region(values), SPLITS[split]))
    if len({record.id for record in records}) != len(records):
        raise UserError(f"{folder}: two samples have the same key: download it again")
    ndvi = {folder / f"{split}_ndvi.npz": read[f"{base}/{split}_hists.npz"].found[0] for split in whole}
    tokens = [(name, read[name].token) for name in names if _good(read[name])]
    arrays: dict[str, ArrayColumn] = {}
    if ndvi and all(_has_ndvi(path, count) for path, count in ndvi.items()):
        arrays["ndvi"] = ArrayColumn((STEPS,), "float32", "T", "other")
        tokens += [(f"{base}/{path.name}", _digest(path)) for path in ndvi]
    layout = Layout(
        {
            "histogram": ImageColumn(
                (STEPS, len(BANDS), BINS),
                "float32",
                BANDS,
                axes="TCK",
                units="share of the county's pixels",
                sensor="MODIS MOD09A1 and MYD11A2",
            )
        },
        arrays,
        {"year": "int32", "region": REGION, "region_above": REGION, "yield_t_ha": "float64"}
        | {"time_start": "int64", "time_end": "int64"},
        {"yield": Target("regression", "yield_t_ha", units="t/ha", missing="nan", metric="rmse")},
    )
    notes = settled | {
        "counties": counts(request, {country: len(records)}, {country: PUBLISHED[country]}, "samples"),
        "bin_sums": [min(low for low, _ in sums), max(high for _, high in sums)] if sums else [],
    }
    return TaskSource(
        request,
        records,
        layout,
        partial(_load, bool(arrays)),
        tokens=tokens,
        notes=notes,
        description="bin_sums in the notes: least and largest sum over the bins of a step and band, 1 or 0 each.",
    )


_PARTS = ("hists", "yields", "years", "keys")


def _good(one: Any) -> bool:
    return bool(one.path) and not one.error


def _look(root: str, name: str) -> Any:
    return look(root, [name], partial(_survey, name.rpartition("_")[2]))


def _survey(part: str, path: str) -> tuple[int, Any]:
    """(number of entries, what the listing needs of them) of one file."""
    data = read_npz(path, "data")
    if part == "hists.npz":
        expect(data, path, "data", (None, BINS, STEPS, len(BANDS)))
        sums = data.sum(axis=1, dtype=np.float64)
        return len(data), (float(sums.min()), float(sums.max())) if sums.size else (0.0, 0.0)
    if part == "keys.npz":
        if data.dtype.kind not in "US" or data.ndim != 1:
            raise UserError(f"{path}: data is {data.dtype} {data.shape}, a list of keys is expected")
        return len(data), [text.decode() if isinstance(text, bytes) else str(text) for text in data.tolist()]
    if data.dtype.kind in "US":
        try:
            data = data.astype(np.float64)
        except ValueError:
            raise UserError(f"{path}: data holds text, numbers are expected") from None
    return len(data), expect(data.reshape(-1) if data.shape[1:] == (1,) else data, path, "data", (None,)).tolist()


def _values(path: str, row: int, key: str, year: int, tonnes: float) -> dict[str, Any]:
    region, _, rest = key.rpartition("_")
    region, _, above = region.rpartition("_")
    if not (region and above and rest.isdigit()):
        raise UserError(f"{path}_keys.npz: key {row} is {key[:60]!r}, not region1_region2_year: download it again")
    if int(rest) != year:
        raise UserError(f"{path}_years.npz: year {row} is {year}, but its key is {key[:60]!r}: download it again")
    if max(len(region.encode()), len(above.encode())) > np.dtype(REGION).itemsize:
        raise UserError(f"{path}_keys.npz: key {row} is longer than {np.dtype(REGION).itemsize} bytes a region")
    span = {"time_start": seconds(year), "time_end": seconds(year + 1) - 1}
    return {"year": year, "region": region.encode(), "region_above": above.encode(), "yield_t_ha": tonnes} | span


def _region(values: dict[str, Any]) -> bytes:
    return values["region_above"] + b"/" + values["region"]


def _has_ndvi(path: Path, count: int) -> bool:
    """Whether the NDVI of every step of every sample is there; another layout is left out."""
    if not path.is_file():
        return False
    data = read_npz(path, "data")
    if data.shape != (count, STEPS):
        return False
    expect(data, path, "data", (count, STEPS))
    return True


def _digest(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@lru_cache(maxsize=2)
def _array(path: str) -> np.ndarray:
    """One split's array, float32, kept: a compressed file cannot be read in part."""
    return read_npz(path, "data").astype(np.float32)


def _load(with_ndvi: bool, payload: tuple[str, int, dict[str, Any]]) -> dict[str, Any]:
    path, row, values = payload
    # On disk: bin, step, band.
    out = {"histogram": _array(f"{path}_hists.npz")[row].transpose(1, 2, 0), **values}
    return out | ({"ndvi": _array(f"{path}_ndvi.npz")[row]} if with_ndvi else {})


READERS = (
    make_reader(
        "crop_yield",
        summary="SustainBench: soybean yield of counties from MODIS histograms (steps, bands, bins)",
        expects=f"download and extract soybeans.zip (md5 362bad07b51a1264172b8376b39d1fc9) from the Google Drive folder "
        f"named on {SITE}sdg2/crop_yield.html: usa, argentina and brazil in one folder, or in soybeans below it",
        open=open_crop_yield,
        settings={"country": Setting("whose counties", "usa", tuple(PUBLISHED))},
        license="CC BY-SA 4.0; imagery public domain (MODIS)",
        citation=f"{CITATION}; Wang, Tran, Desai, Lobell and Ermon, Deep Transfer Learning for Crop Yield Prediction "
        "with Remote Sensing Data, COMPASS 2018, doi:10.1145/3209811.3212707",
        homepage=f"{SITE}sdg2/crop_yield.html",
    ),
)
