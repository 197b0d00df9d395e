"""SustainBench's land cover tiles (Tile2Vec): 100x100 aerial images of California's Central Valley and a crop class.

```
FOLDER/metadata.csv                   fileName, landCover, split (0, 1, 2) or splitStr (train, val, test)
FOLDER/tile_triplets/{fileName}       .npy, [5, 100, 100] or [100, 100, 5]: red, green, blue, infrared, and the label
```
The fifth channel of a tile is the land-cover map that its label is the mode of: it is dropped, and never an input.
File names such as 12anchor.npy say which tiles are a triplet: anchor and neighbor lie side by side, distant does not.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np

from data_prep.readers._sustainbench import (
    CITATION,
    SITE,
    Checked,
    Layout,
    Row,
    TaskSource,
    expect,
    first_of,
    look,
    make_reader,
    missing,
    read_npy,
    read_table,
    settle,
    table_token,
    tally,
    whole_numbers,
)
from data_prep.readers.registry import Request
from data_prep.records import Record
from data_prep.scenes_spectra import NAIP_BANDS
from data_prep.source import Band, ImageColumn, Target

SIDE = 100
BANDS = tuple(Band(band.name, band.centre_nm, band.width_nm, band.name) for band in NAIP_BANDS)
ROLES = ("anchor", "neighbor", "distant")
CROPLAND_DATA_LAYER = {
    1: "Corn", 2: "Cotton", 3: "Rice", 4: "Sorghum", 12: "Sweet Corn", 21: "Barley", 22: "Durum Wheat",
    23: "Spring Wheat", 24: "Winter Wheat", 27: "Rye", 28: "Oats", 33: "Safflower", 36: "Alfalfa",
    37: "Other Hay/Non Alfalfa", 42: "Dry Beans", 44: "Other Crops", 48: "Watermelons", 49: "Onions", 53: "Peas",
    54: "Tomatoes", 59: "Sod/Grass Seed", 61: "Fallow/Idle Cropland", 66: "Cherries", 67: "Peaches", 69: "Grapes",
    71: "Other Tree Crops", 72: "Citrus", 74: "Pecans", 75: "Almonds", 76: "Walnuts", 77: "Pears", 111: "Open Water",
    121: "Developed/Open Space", 122: "Developed/Low Intensity", 123: "Developed/Med Intensity",
    124: "Developed/High Intensity", 131: "Barren", 141: "Deciduous Forest", 142: "Evergreen Forest",
    152: "Shrubland", 176: "Grassland/Pasture", 190: "Woody Wetlands", 195: "Herbaceous Wetlands", 204: "Pistachios",
    205: "Triticale", 206: "Carrots", 207: "Asparagus", 208: "Garlic", 209: "Cantaloupes", 211: "Olives",
    212: "Oranges", 213: "Honeydew Melons", 217: "Pomegranates", 218: "Nectarines", 220: "Plums",
    225: "Dbl Crop WinWht/Corn", 226: "Dbl Crop Oats/Corn", 227: "Lettuce", 236: "Dbl Crop WinWht/Sorghum",
    237: "Dbl Crop Barley/Corn", 242: "Blueberries",
}  # fmt: skip
"""Names of the USDA Cropland Data Layer's codes that the area has; another code is called "CDL <code>"."""
_TRIPLET = re.compile(r"(\d+)(anchor|neighbor|distant)\.npy")


def open_landcover(request: Request) -> TaskSource:
    """The tiles of the table. Raises `UserError`."""
    table = first_of(request, ["metadata.csv"])
    rows = read_table(table, ["fileName", "landCover"], unique=["fileName"])
    by = "splitStr" if "splitStr" in rows[0].values else "split"
    if by not in rows[0].values:
        raise rows[0].fail("there is no column split or splitStr")
    labels = [-1 if missing(row["landCover"]) else row.integer("landCover", 0, 255) for row in rows]
    codes = sorted(set(labels) - {-1})
    files = [row.file("fileName") for row in rows]
    splits = [row.split(by) for row in rows]
    found = request.map(partial(_look, str(request.path)), files)
    keep, settled = settle(request, files, found, "tiles")
    number = {code: k for k, code in enumerate(codes)} | {-1: -1}
    records = [_record(rows[k], files[k], found[k], labels[k], number[labels[k]], splits[k]) for k in keep]
    classes = [CROPLAND_DATA_LAYER.get(code, f"CDL {code}") for code in codes]
    layout = Layout(
        {
            "image": ImageColumn(
                (4, SIDE, SIDE), "uint8", BANDS, 0.6, units="digital number", sensor="NAIP aerial imagery"
            )
        },
        columns={"cdl_code": "int16", "triplet": "int32", "triplet_role": "int8"},
        targets={
            "land_cover": Target("classification", "label", tuple(classes), missing=-1, metric="accuracy, macro_f1")
        },
    )
    return TaskSource(
        request,
        records,
        layout,
        partial(_load, str(request.path)),
        tokens=[table_token(table), *((found[k].path, found[k].token) for k in keep)],
        notes=settled | {"classes_published": 66, "classes_found": len(codes), "found": tally(splits)},
        classes=classes,
        description="Column triplet_role: 0 = anchor, 1 = neighbor, 2 = distant, -1 = unknown.",
    )


def read_tile(path: str) -> np.ndarray:
    """The four bands of a tile, uint8 [4, 100, 100], without the label's channel. Raises `UserError`."""
    shapes = [(n, SIDE, SIDE) for n in (5, 4)] + [(SIDE, SIDE, n) for n in (5, 4)]
    tile = expect(read_npy(path), path, "the tile", *shapes)
    if tile.shape[0] == SIDE:
        tile = tile.transpose(2, 0, 1)
    return whole_numbers(tile[:4], path, "the image", "uint8")


def _check(path: str) -> None:
    read_tile(path)


def _look(root: str, name: str) -> Checked:
    return look(root, [f"tile_triplets/{name}"], _check)


def _record(row: Row, name: str, found: Checked, code: int, label: int, split: str) -> Record:
    match = _TRIPLET.fullmatch(name)
    triplet = int(match[1]) if match else -1
    if triplet >= 1 << 31:
        raise row.fail(f"fileName is {name[:40]!r}, whose number is too large")
    scalars = {"cdl_code": code, "triplet": triplet, "triplet_role": ROLES.index(match[2]) if match else -1}
    # Anchor and neighbor overlap; the distant tile is elsewhere.
    group = f"triplet {triplet}" if match and match[2] != "distant" else name
    return Record(name.encode(), (found.path, scalars), label, group.encode(), split)


def _load(root: str, payload: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    path, scalars = payload
    return {"image": read_tile(f"{root}/{path}"), **scalars}


READERS = (
    make_reader(
        "landcover",
        summary="SustainBench: land cover of 100x100 aerial tiles (Tile2Vec), 4 bands at 0.6 m",
        expects=f"download metadata.csv and tile_triplets from the Google Drive folder named on {SITE}sdg15/"
        "land_cover_representation.html: metadata.csv and tile_triplets/*.npy in one folder",
        open=open_landcover,
        license="CC BY-SA 4.0; imagery public domain (USDA NAIP)",
        citation=f"{CITATION}; Jean, Wang, Samar, Azzari, Lobell and Ermon, Tile2Vec, AAAI 2019",
        homepage=f"{SITE}sdg15/land_cover_representation.html",
    ),
)
