"""Scenes out of a folder or a STAC list: which files belong together, and which band is where.

Folders are searched to the bottom; names that begin with a dot are left out. A scene is one file with all bands, or
several files whose names differ by a band's name alone: VV, VH; B01 … B12, B8A, TCI, SCL (products as ESA and the
cloud archives hand them out; of several resolutions of one band the finest is taken). Dates come from the file's tags
or from its name (YYYYMMDD or YYYYMMDDTHHMMSS), cloud cover and processing baseline from STAC items only, the latter
also from a SAFE name (_N0400_).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from data_prep.tiles.scene import DRIVERS, Raster, read_header
from frontier.errors import UserError

SENSORS = ("s1", "s2", "naip")
S2_NAMES = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
_S2_LEVEL_1C = (*S2_NAMES[:10], "B10", *S2_NAMES[10:])
_ASSETS = {
    "s1": {"vv": "VV", "vh": "VH"},
    "s2": {
        "visual": "TCI",
        "scl": "SCL",
        "coastal": "B01",
        "blue": "B02",
        "green": "B03",
        "red": "B04",
        "rededge1": "B05",
        "rededge2": "B06",
        "rededge3": "B07",
        "nir": "B08",
        "nir08": "B8A",
        "nir09": "B09",
        "swir16": "B11",
        "swir22": "B12",
        "tci": "TCI",
        **{name.lower(): name for name in S2_NAMES},
    },
    "naip": {},
}
_WHOLE = ("image", "data")
"""Keys of an asset that holds all bands."""
_BESIDE = re.compile(r"AOT|WVP|PVI|MSK|CLDPRB|SNWPRB|DETFOO|QUALIT|CLASSI")
"""Parts of names of what lies in a Sentinel-2 product besides its bands."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One acquisition. `bands`: (name, number of the raster, band in it from 1). Time 0 and cloud NaN: unknown."""

    sensor: str
    name: str
    rasters: tuple[Raster, ...]
    bands: tuple[tuple[str, int, int], ...]
    time: int
    cloud: float
    offset: float

    def where(self, band: str) -> tuple[int, int] | None:
        """(raster, band in it) of a band by name."""
        return next(((raster, index) for name, raster, index in self.bands if name == band), None)


@dataclass(frozen=True, slots=True)
class Draft:
    """A scene before its files are opened. `files`: (path, band's name or "" for all bands)."""

    sensor: str
    name: str
    files: tuple[tuple[str, str], ...]
    time: int = 0
    cloud: float = math.nan
    offset: float | None = None


def folder_drafts(sensor: str, root: Path, base: Path) -> list[Draft]:
    """The scenes of a folder, by name. `base`: what names are relative to."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for file in sorted(files):
            path = Path(folder) / file
            if file.startswith(".") or path.suffix.lower() not in DRIVERS:
                continue
            if sensor == "s2" and any(_BESIDE.fullmatch(part) for part in re.split(r"[^A-Za-z0-9]+", path.stem)):
                continue
            key, band = _scene_and_band(sensor, path.relative_to(base))
            groups.setdefault(key, []).append((str(path), band))
    return [
        Draft(sensor, key, tuple(files), offset=_offset_by_name(key) if sensor == "s2" else 0.0)
        for key, files in sorted(groups.items())
    ]


_BAND = {
    "s1": re.compile(r"(?i)(vv|vh)"),
    "s2": re.compile(r"(?i)(b0?[1-9]|b1[0-2]|b8a|tci|visual|scl)"),
    "naip": re.compile(r"(?!)"),
}


def band_name(sensor: str, text: str) -> str:
    """A band's name as used here ("b4", "B4" -> "B04"), or "" where `text` is none."""
    if not _BAND[sensor].fullmatch(text):
        return ""
    name = text.upper()
    if re.fullmatch(r"B[1-9]", name):
        name = f"B0{name[1]}"
    return "TCI" if name == "VISUAL" else name


def _scene_and_band(sensor: str, path: Path) -> tuple[str, str]:
    """The name of the scene that a file belongs to, and its band ("": all)."""
    parts = re.split(r"([^A-Za-z0-9]+)", path.stem)
    found = [k for k in range(0, len(parts), 2) if band_name(sensor, parts[k])]
    if len(found) != 1:
        return path.with_suffix("").as_posix(), ""
    band = band_name(sensor, parts[found[0]])
    tokens = [part for k, part in enumerate(parts) if k % 2 == 0 and k != found[0]]
    tokens = [token for token in tokens if token and not re.fullmatch(r"\d\dm", token)]
    if sensor == "s1" and tokens and re.fullmatch(r"00\d", tokens[-1]):
        tokens.pop()  # SAFE numbers its measurements
    folders = [part for part in path.parent.parts if not re.fullmatch(r"R\d\dm", part)]
    return "/".join([*folders, "-".join(tokens)]).rstrip("/") or band, band


def _offset_by_name(name: str) -> float:
    """What a SAFE name tells of the offset since processing baseline 04.00."""
    found = re.search(r"_N(\d{4})_", name)
    return -1000.0 if found and int(found[1]) >= 400 else 0.0


def item_drafts(path: Path, sensors: Iterable[str]) -> tuple[list[Draft], list[tuple[str, str]]]:
    """Scenes of a STAC ItemCollection, Item or list of them, and what cannot be used as (id, reason).

    Assets must be local: paths, absolute or relative to the list, or file:// addresses. Items of other sensors are
    passed over. Raises `UserError` where the list itself is wrong.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"items {path}: cannot be read ({error.strerror}): give a STAC ItemCollection") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"items {path}: not valid JSON ({error}): give a STAC ItemCollection") from None
    items = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(items, list) or not all(isinstance(i, dict) and isinstance(i.get("assets"), dict) for i in items):
        raise UserError(f"items {path}: not a list of STAC items with assets: give a STAC ItemCollection")
    drafts, bad = [], []
    for item in items:
        name = str(item.get("id", "?"))
        try:
            sensor = item_sensor(item)
            if sensor in sensors:
                drafts.append(_item_draft(item, sensor, path.parent))
        except UserError as error:
            bad.append((name, str(error)))
    return sorted(drafts, key=lambda draft: (draft.sensor, draft.name)), bad


def item_sensor(item: dict[str, Any]) -> str:
    """s1, s2 or naip: by the item's collection, platform or assets. Raises `UserError` where it is none of them."""
    properties = item.get("properties") or {}
    words = [item.get("collection"), properties.get("constellation"), properties.get("platform")]
    for word in (str(word).lower() for word in words if word):
        for start, sensor in (("sentinel-1", "s1"), ("sentinel-2", "s2"), ("sentinel-s2", "s2"), ("naip", "naip")):
            if word.startswith(start):
                return sensor
    keys = {key.lower() for key in item.get("assets", {})}
    for sensor in ("s1", "s2"):
        if keys & set(_ASSETS[sensor]):
            return sensor
    raise UserError("neither its collection nor its assets tell Sentinel-1, Sentinel-2 or NAIP")


def wanted_assets(item: dict[str, Any], sensor: str) -> dict[str, str]:
    """Keys of the assets that hold bands -> band ("": all bands)."""
    assets = {key.lower(): key for key in item["assets"]}
    found = {assets[key]: band for key, band in _ASSETS[sensor].items() if key in assets}
    if not found:
        found = {assets[key]: "" for key in _WHOLE if key in assets}
    return found


def _item_draft(item: dict[str, Any], sensor: str, folder: Path) -> Draft:
    files = []
    for key, band in wanted_assets(item, sensor).items():
        asset = item["assets"][key]
        href = asset.get("href") if isinstance(asset, dict) else None
        if not isinstance(href, str) or not href:
            raise UserError(f"asset {key} has no href")
        address = urlsplit(href)
        if address.scheme not in ("", "file"):
            raise UserError(f"asset {key} is remote ({address.scheme}): run python -m data_prep.tiles.download first")
        local = folder / (unquote(address.path) if address.scheme else href)
        if not local.is_file():
            raise UserError(f"asset {key}: {local} not found")
        files.append((str(local), band))
    if not files:
        raise UserError(f"has no asset of {sensor} bands, only {', '.join(sorted(item['assets'])) or 'none'}")
    properties = item.get("properties") or {}
    cloud = properties.get("eo:cloud_cover")
    offset = 0.0
    if sensor == "s2":
        baseline = re.fullmatch(r"0?(\d+)\.(\d+)", str(properties.get("s2:processing_baseline", "")))
        late = baseline is not None and int(baseline[1]) >= 4
        offset = -1000.0 if late and not properties.get("earthsearch:boa_offset_applied") else 0.0
    when = properties.get("datetime") or properties.get("start_datetime")
    return Draft(
        sensor,
        str(item.get("id", "?")),
        tuple(files),
        time=parse_time(when) if isinstance(when, str) else 0,
        cloud=float(cloud) if isinstance(cloud, int | float) else math.nan,
        offset=offset,
    )


def parse_time(text: str) -> int:
    """Unix seconds of an ISO or TIFF date and time, UTC where no zone is given; 0 where it is none."""
    for form in ("%Y:%m:%d %H:%M:%S", "%Y:%m:%d"):
        try:
            return int(datetime.strptime(text, form).replace(tzinfo=UTC).timestamp())
        except ValueError:
            pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return 0
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())


def time_of_name(name: str) -> int:
    """Unix seconds of the first date with a time in a name, else of the first date alone; 0 where there is none.

    The first, because names that hold more go on with the end of the pass or the date of processing.
    """
    stamps = re.findall(r"(?<!\d)((?:19|20)\d{6})[Tt](\d{6})(?!\d)", name)
    stamps += [(day, "000000") for day in re.findall(r"(?<!\d)((?:19|20)\d{6})(?!\d)", name)]
    for day, clock in stamps:
        try:
            return int(datetime.strptime(day + clock, "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp())
        except ValueError:
            continue
    return 0


def open_draft(draft: Draft, naip_nir: bool = False) -> Scene | tuple[str, str]:
    """The scene, or (path, reason). Picklable work for `Request.map`.

    `naip_nir`: an aerial image's fourth band is near infrared even where the file calls it alpha.
    """
    rasters: list[Raster] = []
    bands: dict[str, tuple[int, int]] = {}
    path = draft.name
    try:
        for path, band in draft.files:
            raster = read_header(Path(path), alpha=not (naip_nir and draft.sensor == "naip"))
            for name, index in _bands_of(draft.sensor, band, raster).items():
                other = bands.get(name)
                if other is not None and rasters[other[0]].width >= raster.width:
                    continue  # a coarser copy
                bands[name] = (len(rasters), index)
            rasters.append(raster)
    except UserError as error:
        return path, str(error)
    used = sorted({number for number, _ in bands.values()})
    place = {number: k for k, number in enumerate(used)}
    # Tags tell when the file was taken only where they are an aerial image's; others may tell when it was processed.
    tagged = parse_time(rasters[0].date) if draft.sensor == "naip" else 0
    return Scene(
        draft.sensor,
        draft.name,
        tuple(rasters[number] for number in used),
        tuple((name, place[number], index) for name, (number, index) in bands.items()),
        draft.time or time_of_name(draft.name) or tagged,
        draft.cloud,
        draft.offset or 0.0,
    )


def _bands_of(sensor: str, band: str, raster: Raster) -> dict[str, int]:
    """Band name -> number in the file. Raises `UserError` with the reason alone."""
    count = len(raster.names)
    if band == "TCI" or (sensor == "s2" and not band and count == 3 and raster.dtype == "uint8"):
        if count != 3:
            raise UserError(f"has {count} bands, a true-colour image has 3")
        return {"TCI_R": 1, "TCI_G": 2, "TCI_B": 3}
    if band:
        if count != 1:
            raise UserError(f"has {count} bands, but its name tells of {band} alone")
        return {band: 1}
    if sensor == "naip":
        if count not in (3, 4):
            raise UserError(f"has {count} bands, an aerial image has 3 (RGB) or 4 (RGB and near infrared)")
        return dict(zip(("R", "G", "B", "N"), range(1, count + 1), strict=False))
    described = {band_name(sensor, text.strip()): k for k, text in reversed(list(enumerate(raster.names, 1)))}
    described.pop("", None)
    if described:
        return described
    if sensor == "s1":
        if count != 2:
            raise UserError(f"has {count} bands without names, Sentinel-1 has 2 (VV, VH)")
        return {"VV": 1, "VH": 2}
    if count not in (12, 13):
        raise UserError(
            f"has {count} bands without names, Sentinel-2 has 12 (L2A), 13 (with B10) or 3 of 8 bits (true colour)"
        )
    return {name: k for k, name in enumerate(S2_NAMES if count == 12 else _S2_LEVEL_1C, 1)}
