"""Label rasters on the pixels of chips: classes (uint8, 255 where there is no label) or numbers (float32, NaN)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.rasters.grid import Grid
from data_prep.rasters.labels import MISSING_CLASS, parse_classes, to_classes
from data_prep.rasters.options import words
from data_prep.rasters.raster import EXTENSIONS, Rasters, as_stored, environment, georeference, open_raster, read_grid
from data_prep.rasters.raster_places import Place
from data_prep.readers.registry import Request, Setting
from data_prep.records import file_token
from data_prep.source import ArrayColumn, Target
from frontier.errors import UserError

SETTINGS: dict[str, Setting] = {
    "labels": Setting("raster of labels for all scenes, or a folder of rasters with the scenes' names"),
    "label_kind": Setting("classes, or numbers for regression", "segmentation", ("segmentation", "regression")),
    "label_missing": Setting("values that mean no label, comma-separated; none: the file's nodata"),
    "classes": Setting("names of the classes 0, 1, …, or VALUE:NAME of each, comma-separated; none: the numbers found"),
}


@dataclass(frozen=True)
class LabelFile:
    """A label raster: where it lies, its values that mean no label, and its greatest class (-1 where none)."""

    path: str
    grid: Grid | None = None
    missing: tuple[float, ...] = ()
    greatest: int = -1
    token: bytes = b""
    error: str = ""


@dataclass(frozen=True)
class Labels:
    """A label raster for each place, and what the labels are. Column "label_map" [N, N]."""

    files: tuple[LabelFile, ...]
    classes: tuple[str, ...]
    values: tuple[int, ...]
    numbers: bool

    def column(self, size: int) -> ArrayColumn:
        return ArrayColumn((size, size), "float32" if self.numbers else "uint8", "HW", "target")

    def target(self) -> Target:
        if self.numbers:
            return Target("regression", "label_map", missing="nan")
        return Target("segmentation", "label_map", self.classes, missing=MISSING_CLASS)

    def read(self, rasters: Rasters, index: int, grid: Grid) -> np.ndarray:
        """Labels [H, W] of place `index` on `grid`: the nearest class, or numbers interpolated."""
        file = self.files[index]
        assert file.grid is not None
        with environment():
            dataset = rasters.get(file.path, file.token)
            how = "bilinear" if self.numbers else "nearest"
            nodata = [file.missing[0] if file.missing else None]
            values, valid = read_grid(dataset, file.grid, grid, [1], nodata, how)
        there = valid[0] & ~np.isin(values[0], file.missing)
        if self.numbers:
            return np.where(there, values[0], np.nan).astype(np.float32)
        return to_classes(values[0], there, self.values)


def find_labels(request: Request, places: Sequence[Place]) -> tuple[Labels | None, list[tuple[str, str]]]:
    """Labels of `places`, None where none are asked for; and (place, reason) of those that have none that can be used."""
    settings = request.settings
    if not settings["labels"]:
        for name in SETTINGS:
            if settings[name] not in ("", SETTINGS[name].default):
                raise UserError(f"--set {name}={settings[name]}: has no effect without --set labels=…: leave it out")
        return None, []
    root = Path(settings["labels"])
    if not root.exists():
        raise UserError(f"--set labels={root}: does not exist: give a raster, or a folder of them")
    numbers = settings["label_kind"] == "regression"
    if numbers and settings["classes"]:
        raise UserError("--set classes: has no effect with label_kind=regression: leave it out")
    try:
        given = tuple(float(text) for text in words(settings["label_missing"]))
    except ValueError:
        raise UserError(f"--set label_missing={settings['label_missing']}: give numbers") from None
    if len(given) > 1 and numbers:
        raise UserError("--set label_missing: one value at most with label_kind=regression")
    names, stored = parse_classes(settings["classes"])
    paths = [str(root) if root.is_file() else _beside(root, place.name) for place in places]
    unique = sorted(set(paths) - {""})
    looked = request.map(look_at_label, [(path, given, settings["crs"], numbers, stored) for path in unique])
    by_path = {file.path: file for file in looked}
    bad, files = [], []
    for place, path in zip(places, paths, strict=True):
        file = by_path.get(path, LabelFile("", error=f"no label raster {place.name} in {root}"))
        files.append(file)
        if file.error:
            bad.append((place.name, file.error))
    greatest = max((file.greatest for file in looked), default=-1)
    if names and greatest >= len(names):
        raise UserError(f"--set classes: {len(names)} names, but the labels go up to {greatest}: name them all")
    return Labels(tuple(files), names or tuple(map(str, range(greatest + 1))), stored, numbers), bad


def _beside(root: Path, name: str) -> str:
    """The label raster of a scene: the same relative path, with any extension of a GeoTIFF; "" where there is none."""
    whole = root / name
    for end in (whole.suffix, *EXTENSIONS):
        path = whole.with_suffix(end)
        if path.is_file():
            return str(path)
    return ""


def look_at_label(argument: tuple[str, tuple[float, ...], str, bool, tuple[int, ...]]) -> LabelFile:
    """(path, missing values, CRS where it names none, numbers or classes, class values) → the file, wholly read once."""
    path, given, crs, numbers, stored_values = argument
    try:
        with environment(), open_raster(path) as dataset:
            grid, _ = georeference(dataset, crs=crs)
            dtype = np.dtype(dataset.dtypes[0])
            if dataset.count != 1:
                raise UserError(f"{path}: {dataset.count} bands, a label raster has one")
            if not numbers and dtype.kind == "f":
                raise UserError(f"{path}: {dtype.name} labels: convert them to integers, or pass label_kind=regression")
            stored = as_stored(dataset.nodata, dtype)
            missing = given or (() if stored is None else (stored,))
            greatest = -1
            step = max(1, (4 << 20) // max(1, dataset.width))
            for row in range(0, dataset.height, step):
                window = ((row, min(row + step, dataset.height)), (0, dataset.width))
                values = np.unique(_read(dataset, window))
                if numbers:
                    continue
                try:
                    classes = to_classes(values, ~np.isin(values, missing), stored_values)
                except ValueError as error:
                    raise UserError(f"{path}: {error}, or say what means no label with --set label_missing=…") from None
                greatest = max([greatest, *classes[classes != MISSING_CLASS].tolist()])
        return LabelFile(path, grid, missing, greatest, file_token(Path(path)))
    except UserError as error:
        return LabelFile(path, error=str(error))


def _read(dataset: Any, window: Any) -> np.ndarray:
    from data_prep.rasters.grid import geo
    from data_prep.rasters.raster import reason

    try:
        return np.asarray(dataset.read(1, window=window))
    except geo()[0].errors.RasterioError as error:
        raise UserError(f"{dataset.name}: does not decode ({reason(error)})") from None
