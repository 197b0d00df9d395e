"""Aligned tiles of Sentinel-1, Sentinel-2 and NAIP as a source, after Kage and Andreadis (Scale-ALiBi), "Dataset curation".

What the paper does, and what is done here. Sentinel-1 and Sentinel-2 are cut into XYZ tiles of level Y, 256 x 256
pixels; NAIP of the same tiles of level Y gives a 256 x 256 image (column `naip`), and its four tiles of level Y + 1,
put together (top left, top right, bottom left, bottom right), one of 512 x 512 (column `naip_2x`). A sample is a tile
that all sensors have; of the high-resolution image all four children must be there. `small` and `full` have Y = 15,
`micro` 17. Deviations:

- The paper keeps 8-bit PNG: amplitude x 256/1000 of Sentinel-1 with VV as green, VH as blue, which wraps at 1000. Here:
  VV and VH in dB (int16), not clipped. `python -m data_prep.tiles.export` writes the PNG form.
- The paper calls its Sentinel-1 product L2A; there is none, its code takes ground-range detected (GRD) amplitude
  without calibration. Here the input's units are a setting, and are recorded.
- Its XYZ tiles of NAIP come ready-made from a tile server; here both levels are warped from the scenes, so the 256
  pixel image is an area average of what the 512 pixel image shows.
- It drops tiles with more than 5 % transparent pixels; here `min_valid` (0.95) asks the same of every sensor and of each
  of the four children, and what is missing is in a mask a column.
- It chooses images by date from the day of the search backwards; here scenes are given, laid over each other in a fixed
  order: `least_cloudy` (STAC cloud cover, unknown last; then newest; then name), `newest` (then cloud, name) or `name`.
  The first scene that measured a pixel gives all its bands.
- Its regions are not published; `regions` takes a file. A tile belongs to a region that holds its centre.
- It has no splits. Here tiles under one ancestor `block` levels up are one group, which a split never divides.
- A tile of level Y spans less ground away from the equator: its pixels' spacing on the ground (Mercator metres x
  cos(latitude)) is a column for every image, beside the spacing of the scene that it was made from.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.rasters.grid import geo
from data_prep.rasters.raster import check_unchanged
from data_prep.readers.registry import Request
from data_prep.records import Record, RecordSource, file_token, inputs_digest
from data_prep.source import ArrayColumn, ImageColumn
from data_prep.tiles.choose import Checked, Work, check_all, describe_best, joint_tiles, lay, touched_or_reason
from data_prep.tiles.find import SENSORS, Draft, Scene, folder_drafts, item_drafts, open_draft
from data_prep.tiles.grid import MAX_LEVEL, Tile, ancestor, children, ground_spacing, tile_centre, tile_transform
from data_prep.tiles.regions import read_regions
from data_prep.tiles.scene import native_spacing
from data_prep.tiles.sensors import Recipe, layers, stored
from data_prep.tiles.warp import Layer, warp_layer
from frontier.data.manifest import nearest
from frontier.errors import UserError

PRESETS = {"small": (15, 21497), "full": (15, 146502), "micro": (17, 188060)}
"""Base level and samples in the paper's Table 1."""
_SENSOR_NAMES = {"s1": "Sentinel-1 GRD", "s2": "Sentinel-2 L2A", "naip": "NAIP"}
_CLOUD = (8, 9, 10)
"""Classes of Sentinel-2's scene classification: cloud of medium and of high probability, thin cirrus."""


class TileSource(RecordSource):
    """One record a tile: payload (tile, scenes by sensor, main scene by sensor, valid fraction by sensor)."""

    def __init__(
        self,
        request: Request,
        work: Work,
        level: int,
        records: Sequence[Record],
        tokens: Mapping[str, bytes],
        notes: dict[str, Any],
    ) -> None:
        """`tokens`: `file_token` by path of every file that is read."""
        recipe, size = work.recipe, work.size
        super().__init__(
            records,
            settings={
                "kind": request.reader.name,
                "level": level,
                "size": size,
                "sensors": list(work.scenes),
                "levels": {sensor: list(levels) for sensor, levels in work.levels.items()},
                **asdict(recipe),
                "naip_fourth": request.settings["naip_fourth"],
                "order": request.settings["order"],
                "min_valid": request.settings["min_valid"],
                "block": request.settings["block"],
            },
            inputs=inputs_digest((os.path.relpath(path, request.path), token) for path, token in tokens.items()),
            notes=notes,
        )
        self.work, self.level = work, level
        self._tokens, self._seen = dict(tokens), dict[str, tuple[int, int, int]]()
        self.name = request.name or request.path.resolve().name
        self.license = request.license or request.reader.license
        self.citation = request.citation or request.reader.citation
        self.homepage = request.reader.homepage
        self.description = (
            f"Aligned XYZ tiles of level {level} (Web Mercator) of {', '.join(_SENSOR_NAMES[s] for s in work.scenes)}. "
            "Masks: 1 = measured. *_spacing_m: pixels on the ground, Mercator metres x cos(latitude); *_native_gsd_m: "
            "of the scene that most pixels come from, whose number in notes.scenes is *_scene. Times of 0: unknown."
        )
        self.images, arrays = {}, {}
        self.columns = {
            **dict.fromkeys(("lon", "lat"), "float64"),
            **dict.fromkeys(("crs_epsg", "tile_z", "tile_x", "tile_y"), "int32"),
            **dict.fromkeys(("gsd_m", "valid_fraction", "cloud_fraction"), "float32"),
            **dict.fromkeys(("time_start", "time_end"), "int64"),
        }
        for sensor, levels in work.levels.items():
            self.columns |= {
                f"{sensor}_native_gsd_m": "float32",
                f"{sensor}_valid_fraction": "float32",
                f"{sensor}_time": "int64",
                f"{sensor}_scene": "int32",
            }
            for up in levels:
                name, side = column_name(sensor, up), size << up
                self.images[name] = _image_column(sensor, recipe, name, side)
                arrays[f"{name}_mask"] = ArrayColumn((side, side), "uint8", "HW", "mask")
                self.columns[f"{name}_spacing_m"] = "float32"
        self.arrays: Mapping[str, ArrayColumn] = {
            **arrays,
            "transform": ArrayColumn((6,), "float64", "K", "other", tuple("abcdef"), "EPSG:3857 metres"),
        }

    def load_one(self, record: Record) -> dict[str, Any]:
        tile, chosen, mains, fractions = record.payload
        size, recipe = self.work.size, self.work.recipe
        lon, lat = tile_centre(tile)
        times = []
        out: dict[str, Any] = {
            "lon": lon,
            "lat": lat,
            "crs_epsg": 3857,
            "tile_z": tile.z,
            "tile_x": tile.x,
            "tile_y": tile.y,
            "gsd_m": ground_spacing(tile.z, size, lat),
            "transform": np.array(tile_transform(tile, size)),
            "valid_fraction": min(fractions.values()),
            "cloud_fraction": math.nan,
        }
        for sensor, levels in self.work.levels.items():
            numbers = chosen[sensor]
            for number in numbers:
                for raster in self.work.scenes[sensor][number].rasters:
                    self._check(raster.path)
            main = self.work.scenes[sensor][mains[sensor]]
            out |= {
                # Of bands in several files, the finest.
                f"{sensor}_native_gsd_m": min(native_spacing(part.raster, lon, lat) for part in layers(main, recipe)),
                f"{sensor}_valid_fraction": fractions[sensor],
                f"{sensor}_time": main.time,
                f"{sensor}_scene": mains[sensor],
            }
            times += [main.time] if main.time else []
            for up in levels:
                name = column_name(sensor, up)
                parts = [lay(self.work, sensor, numbers, part) for part in (children(tile) if up else (tile,))]
                images = [stored(sensor, part.values, part.valid, recipe) for part in parts]
                masks = [part.valid.astype(np.uint8) for part in parts]
                out[name], out[f"{name}_mask"] = _stitch(images), _stitch(masks)
                out[f"{name}_spacing_m"] = ground_spacing(tile.z + up, size, lat)
                if sensor == "s2":
                    out["cloud_fraction"] = self._cloud(parts[0].owner, tile)
        out["time_start"], out["time_end"] = (min(times), max(times)) if times else (0, 0)
        return out

    def _check(self, path: str) -> None:
        """Raise `UserError` where a file is not the one that was listed: looked into again only where it was touched."""
        try:
            found = os.stat(path)
            state = (found.st_ino, found.st_size, found.st_mtime_ns)
        except OSError:
            state = (0, 0, 0)
        if self._seen.get(path) != state or not any(state):
            check_unchanged(path, self._tokens[path])
            self._seen[path] = state

    def _cloud(self, owner: np.ndarray, tile: Tile) -> float:
        """Share of the valid pixels that their scene classification calls cloud; NaN where one has none."""
        cloudy = np.full(owner.shape, np.nan)
        for number in np.unique(owner[owner >= 0]):
            scene = self.work.scenes["s2"][number]
            place = scene.where("SCL")
            if place is None:
                return math.nan
            layer = Layer(scene.rasters[place[0]], (place[1],), (0,), 0.0)
            warped = warp_layer(layer, tile, len(owner), _is_cloud, "bilinear")
            if warped is not None:
                mine = (owner == number) & warped[1]
                cloudy[mine] = warped[0][0][mine] >= 0.5
        known = cloudy[np.isfinite(cloudy)]
        return float(known.mean()) if known.size else math.nan


def _is_cloud(values: np.ndarray) -> np.ndarray:
    return np.isin(values, _CLOUD).astype(np.float32)


def column_name(sensor: str, up: int) -> str:
    """s1, s2, naip; naip_2x for the level below."""
    return f"{sensor}_2x" if up else sensor


def _image_column(sensor: str, recipe: Recipe, name: str, side: int) -> ImageColumn:
    bands, dtype = recipe.bands(sensor), recipe.dtype(sensor)
    units, scale = "digital number", 1.0
    if sensor == "s1":
        units = "dB, uncalibrated" if recipe.units == "amplitude" and recipe.calibration == 1 else "dB"
        scale = 0.01 if dtype == "int16" else 1.0
    elif sensor == "s2":
        units, scale = ("true colour", 1.0) if recipe.s2_bands == "rgb" else ("reflectance", 1e-4)
    return ImageColumn(
        (len(bands), side, side),
        dtype,
        bands,
        units=units,
        scale=scale,
        mask=f"{name}_mask",
        sensor=_SENSOR_NAMES[sensor],
    )


def _stitch(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One tile as it is, or four children (top left, top right, bottom left, bottom right) as one image."""
    if len(parts) == 1:
        return parts[0]
    rows = [np.concatenate(parts[k : k + 2], axis=-1) for k in (0, 2)]
    return np.concatenate(rows, axis=-2)


def open_tiles(request: Request) -> TileSource:
    """Find the scenes, choose the tiles and check every one of them. Raises `UserError`."""
    geo()
    settings = request.settings
    sensors, level, levels, recipe, least, block = _parse(
        settings, {name: setting.default for name, setting in request.reader.settings.items()}
    )
    size = int(_number(settings, "size", 16, 1024, whole=True))
    request.need()
    regions = read_regions(request.need(settings["regions"], kind="file")) if settings["regions"] else None
    drafts, bad = _drafts(request, sensors)
    total = sum(len(draft.files) for draft in drafts) + len(bad)
    scenes: dict[str, list[Scene]] = {sensor: [] for sensor in sensors}
    covers: dict[str, list[np.ndarray]] = {sensor: [] for sensor in sensors}
    opened = []
    for found in request.map(partial(open_draft, naip_nir=settings["naip_fourth"] == "nir"), drafts):
        if isinstance(found, Scene):
            opened.append(found)
        else:
            bad.append(found)
    opened.sort(key=_preference(settings["order"]))
    places = request.map(partial(touched_or_reason, level=level, recipe=recipe, regions=regions), opened)
    for scene, cover in zip(opened, places, strict=True):
        if isinstance(cover, tuple):
            bad.append(cover)
        elif len(cover):
            scenes[scene.sensor].append(scene)
            covers[scene.sensor].append(cover)
    notes = request.settle(_relative(bad, request.path), total)
    tiles = joint_tiles(covers, level, regions is not None)
    work = Work({sensor: tuple(scenes[sensor]) for sensor in sensors}, recipe, size, levels)
    checked, unreadable = check_all(tiles, work, request.map)
    if unreadable:
        notes = request.settle(_relative(bad + unreadable, request.path), total)
    records = [
        _record(tile, tiles[tile], answer, block)
        for tile, answer in sorted(checked.items(), key=lambda item: (item[0].y, item[0].x))
        if all(min(whole, worst) >= least for whole, worst, _ in answer.found.values())
    ]
    if not records:
        raise UserError(
            f"{request.path}: none of {len(checked)} tiles of level {level} that every sensor touches is "
            f"{settings['min_valid']} valid: the best are {describe_best(checked, sensors)}: lower --set min_valid, or give "
            "scenes that cover whole tiles"
        )
    preset = settings["preset"]
    notes |= {
        "scenes": {sensor: [scene.name for scene in work.scenes[sensor]] for sensor in sensors},
        "tiles_touched": {sensor: len({tuple(p) for c in covers[sensor] for p in c.tolist()}) for sensor in sensors},
        "tiles_joint": len(tiles),
        "tiles_dropped": len(checked) - len(records),
    }
    if preset:
        notes |= {"preset": preset, "samples_in_paper": PRESETS[preset][1]}
    used = sorted({raster.path for sensor in sensors for scene in work.scenes[sensor] for raster in scene.rasters})
    tokens = request.map(_token, used)
    return TileSource(request, work, level, records, dict(zip(used, tokens, strict=True)), notes)


def _token(path: str) -> bytes:
    return file_token(Path(path))


def _record(tile: Tile, chosen: dict[str, tuple[int, ...]], answer: Checked, block: int) -> Record:
    lon, lat = tile_centre(tile)
    mains = {sensor: main for sensor, (_, _, main) in answer.found.items()}
    fractions = {sensor: whole for sensor, (whole, _, _) in answer.found.items()}
    group = "/".join(map(str, ancestor(tile, block))).encode()
    name = "/".join(map(str, tile)).encode()
    return Record(name, (tile, chosen, mains, fractions), group=group, lon=lon, lat=lat)


def _drafts(request: Request, sensors: Sequence[str]) -> tuple[list[Draft], list[tuple[str, str]]]:
    items = request.settings["items"]
    if items:
        drafts, bad = item_drafts(request.need(items, kind="file"), sensors)
        bad = [(f"{request.path / items}: {name}", reason) for name, reason in bad]
    else:
        bad = []
        drafts = [
            draft
            for sensor in sensors
            for draft in folder_drafts(sensor, request.need(request.settings[sensor], kind="folder"), request.path)
        ]
    for sensor in sensors:
        if not any(draft.sensor == sensor for draft in drafts) and not bad:
            place = request.path / (items or request.settings[sensor])
            raise UserError(f"{place}: no {_SENSOR_NAMES[sensor]} scene: {request.reader.expects}")
    return drafts, bad


def _preference(order: str) -> Any:
    """Key that sorts scenes into the order in which they are laid over each other, the first on top."""

    def key(scene: Scene) -> tuple[Any, ...]:
        cloud = math.inf if math.isnan(scene.cloud) else scene.cloud
        # Time 0 is unknown: last.
        by = {"least_cloudy": (cloud, -scene.time), "newest": (-scene.time, cloud), "name": ()}[order]
        return (*by, scene.name, scene.sensor)

    return key


def _relative(bad: Sequence[tuple[str, str]], root: Path) -> list[tuple[str, str]]:
    return [(os.path.relpath(path, root) if os.path.isabs(path) else path, reason) for path, reason in bad]


def _parse(
    settings: Mapping[str, str], defaults: Mapping[str, str | None]
) -> tuple[tuple[str, ...], int, dict[str, tuple[int, ...]], Recipe, float, int]:
    """(sensors, level, levels by sensor, recipe, least valid fraction, block). Raises `UserError`."""
    asked = [name.strip() for name in settings["sensors"].split(",") if name.strip()]
    for name in asked:
        if name not in SENSORS:
            raise UserError(f"--set sensors={settings['sensors']}: no sensor {name!r}: {nearest(name, SENSORS)}")
    sensors = tuple(sensor for sensor in SENSORS if sensor in asked)
    if not sensors:
        raise UserError(f"--set sensors=: give at least one of {', '.join(SENSORS)}")
    preset = settings["preset"]
    level = PRESETS[preset or "full"][0]
    if settings["level"]:
        given = int(_number(settings, "level", 0, MAX_LEVEL - 1, whole=True))
        if preset and given != level:
            raise UserError(f"--set level={given}: preset {preset} has level {level}: leave one of them out")
        level = given
    levels = dict.fromkeys(sensors, (0,)) | (
        {"naip": {"both": (0, 1), "base": (0,), "double": (1,)}[settings["hires"]]} if "naip" in sensors else {}
    )
    recipe = Recipe(
        units=settings["units"],
        calibration=_number(settings, "calibration", 1e-12, 1e12),
        s1_dtype=settings["s1_dtype"],
        s2_bands=settings["s2_bands"],
        s2_scale=_number(settings, "s2_scale", 1e-12, 1e12),
        s2_offset=None if settings["s2_offset"] == "auto" else _number(settings, "s2_offset", -65535, 65535),
        naip_bands=settings["naip_bands"],
        naip_nodata=_number(settings, "naip_nodata", 0, 65535) if settings["naip_nodata"] else None,
        resampling=settings["resampling"],
    )
    if recipe.units != "amplitude" and recipe.calibration != 1:
        raise UserError(f"--set calibration={settings['calibration']}: has no effect with units={recipe.units}")
    _no_idle_setting(settings, defaults, sensors)
    recipe = replace(recipe, naip_bands={"rgb": "RGB", "rgbn": "RGBN"}[recipe.naip_bands])
    least = _number(settings, "min_valid", 0, 1)
    # A tile without one valid pixel says nothing.
    return sensors, level, levels, recipe, max(least, 1e-9), int(_number(settings, "block", 0, MAX_LEVEL, whole=True))


def _no_idle_setting(settings: Mapping[str, str], defaults: Mapping[str, str | None], sensors: Sequence[str]) -> None:
    """Raise `UserError` for a setting of a sensor that is not asked for, or of folders where a list is given."""
    concerns = {"units": ("s1",), "calibration": ("s1",), "hires": ("naip",), "resampling": ("s2", "naip")}
    for name, value in settings.items():
        if value == defaults[name]:
            continue
        whose = concerns.get(name, tuple(sensor for sensor in SENSORS if name.split("_")[0] == sensor))
        if whose and not set(whose) & set(sensors):
            raise UserError(f"--set {name}={value}: has no effect with sensors={','.join(sensors)}: leave it out")
        if name in SENSORS and settings["items"]:
            raise UserError(
                f"--set {name}={value}: has no effect with items={settings['items']}: leave one of them out"
            )


def _number(settings: Mapping[str, str], name: str, low: float, high: float, whole: bool = False) -> float:
    text = settings[name]
    try:
        value = float(int(text) if whole else float(text))
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise UserError(f"--set {name}={text}: give {kind} from {low:g} to {high:g}")
    return value
