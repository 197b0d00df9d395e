"""One raster as a reader sees it before any pixel is read: bands, grid, missing values, scale and date; and its reading."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.rasters import dates
from data_prep.rasters.grid import Grid
from data_prep.rasters.options import number, words
from data_prep.rasters.raster import RESAMPLING, as_stored, georeference, read_grid
from data_prep.readers.registry import Setting
from data_prep.source import Band
from frontier.data.manifest import nearest
from frontier.errors import UserError

SETTINGS: dict[str, Setting] = {
    "size": Setting("side of a chip in pixels", "256"),
    "stride": Setting("pixels from one chip to the next; none: size, chips side by side"),
    "edge": Setting("what is left at the right and lower edge: drop it, or pad it as missing", "drop", ("drop", "pad")),
    "min_valid": Setting("leave out chips with a smaller share of valid pixels, 0 to 1", "0.5"),
    "bands": Setting("bands in order, by number from 1 or by name, comma-separated; none: all but alpha"),
    "band_names": Setting("names of the chosen bands, comma-separated; none: the file's"),
    "gsd": Setting("resample to square pixels of this many true metres at the scene's centre; none: the file's own"),
    "nodata": Setting("value that marks missing pixels, or none; none: the file's"),
    "valid": Setting(
        "a pixel is valid where any or all bands are; auto: any for integers, all for floats",
        "auto",
        ("auto", "any", "all"),
    ),
    "nan": Setting("NaN and infinite pixels are missing, or an error", "missing", ("missing", "error")),
    "scaling": Setting(
        "record the file's scale and offset, or apply them (float32, physical units)", "record", ("record", "apply")
    ),
    "crs": Setting("CRS of files that name none, such as EPSG:32632"),
    "gcps": Setting("files placed by control points only: refuse, or use an affine fit", "refuse", ("refuse", "use")),
    "check": Setting("at listing, decode every block, or read headers only", "blocks", ("blocks", "headers")),
    "date_pattern": Setting("regular expression with groups year, month, day, hour … for dates in file names"),
    "group": Setting(
        "what never goes to different splits: overlapping scenes, or ground blocks; auto: blocks where under 10 scenes, "
        "none overlapping, are cut side by side",
        "auto",
        ("auto", "scene", "block"),
    ),
    "block_m": Setting("side of a ground block in metres; none: 8 chips"),
}
GCP_TOLERANCE = 2.0
"""Pixels by which a control point may lie off the affine fit."""
_COLOURS = {"red", "green", "blue", "nir", "swir", "pan", "coastal", "yellow", "rededge", "mwir", "lwir", "cirrus"}


@dataclass(frozen=True)
class Cut:
    """How rasters are cut and read: the settings, parsed. `resampling` is the reader's."""

    size: int
    stride: int
    pad: bool
    min_valid: float
    bands: tuple[str, ...]
    band_names: tuple[str, ...]
    gsd: float | None
    nodata: str
    valid: str
    nan_error: bool
    apply_scale: bool
    crs: str
    gcps: bool
    decode: bool
    date_pattern: str
    resampling: str


def parse_cut(settings: Mapping[str, str]) -> Cut:
    """The settings of `SETTINGS` and `resampling`. Raises `UserError` for one that cannot be."""
    from data_prep.rasters.grid import geo

    size = number(settings, "size", int, 1)
    cut = Cut(
        size=size,
        stride=number(settings, "stride", int, 1) if settings["stride"] else size,
        pad=settings["edge"] == "pad",
        min_valid=number(settings, "min_valid", float, 0, 1),
        bands=words(settings["bands"]),
        band_names=words(settings["band_names"]),
        gsd=number(settings, "gsd", float, 1e-3) if settings["gsd"] else None,
        nodata=settings["nodata"].strip().lower(),
        valid=settings["valid"],
        nan_error=settings["nan"] == "error",
        apply_scale=settings["scaling"] == "apply",
        crs=settings["crs"],
        gcps=settings["gcps"] == "use",
        decode=settings["check"] == "blocks",
        date_pattern=settings["date_pattern"],
        resampling=settings["resampling"],
    )
    if cut.nodata not in ("", "none"):
        number(settings, "nodata", float, -math.inf)
    if cut.nan_error and not cut.decode:
        raise UserError("--set nan=error: has no effect with check=headers, which reads no pixels: leave one out")
    if len(set(cut.band_names)) != len(cut.band_names):
        raise UserError(f"--set band_names={settings['band_names']}: a name is given twice")
    if cut.crs:
        try:
            geo()[1].CRS.from_user_input(cut.crs)
        except geo()[1].exceptions.CRSError:
            raise UserError(f"--set crs={cut.crs}: no such CRS: give one such as EPSG:32632") from None
    if cut.date_pattern:
        import re

        try:
            groups = re.compile(cut.date_pattern).groupindex
        except re.error as error:
            raise UserError(f"--set date_pattern={cut.date_pattern}: {error}") from None
        if "year" not in groups:
            raise UserError(f"--set date_pattern={cut.date_pattern}: give a group (?P<year>…)")
    assert cut.resampling in RESAMPLING
    return cut


@dataclass(frozen=True)
class Layer:
    """One raster: `path` absolute; `indexes` from 1; `nodata` a chosen band; `time` in Unix seconds, (0, 0) unknown."""

    path: str
    grid: Grid
    indexes: tuple[int, ...]
    bands: tuple[Band, ...]
    dtype: str
    nodata: tuple[float | None, ...]
    scales: tuple[tuple[float, float], ...]
    units: str | None
    time: dates.Interval
    time_problem: str
    masked: bool
    gcp_residual: float
    token: bytes = b""


def describe_layer(dataset: Any, cut: Cut) -> Layer:
    """What the header of an open raster says. Raises `UserError` beginning with its path."""
    path = dataset.name
    grid, residual = georeference(dataset, crs=cut.crs, gcps=cut.gcps)
    if residual > GCP_TOLERANCE:
        raise UserError(
            f"{path}: its control points lie up to {residual:.1f} pixels off an affine transform: warp it (gdalwarp -tps)"
        )
    colours = [item.name for item in dataset.colorinterp]
    names = _file_names(dataset, colours)
    indexes = _choose(path, cut, names, [index for index, c in enumerate(colours, 1) if c != "alpha"])
    if any(colours[index - 1] == "palette" for index in indexes):
        raise UserError(f"{path}: a colour table, not intensities: expand it (gdal_translate -expand rgb)")
    if cut.band_names and len(cut.band_names) != len(indexes):
        raise UserError(f"{path}: {len(indexes)} bands, but --set band_names= gives {len(cut.band_names)} names")
    bands = []
    for place, index in enumerate(indexes):
        centre, width = _wavelength(dataset, index)
        common = colours[index - 1] if colours[index - 1] in _COLOURS else None
        bands.append(Band(cut.band_names[place] if cut.band_names else names[index - 1], centre, width, common))
    dtype = np.dtype(dataset.dtypes[0])
    nodata = [dataset.nodatavals[index - 1] for index in indexes]
    if cut.nodata:
        nodata = [None if cut.nodata == "none" else float(cut.nodata)] * len(indexes)
    scales = tuple((dataset.scales[index - 1], dataset.offsets[index - 1]) for index in indexes)
    for index, (scale, offset) in zip(indexes, scales, strict=True):
        if not is_scale(scale, offset):
            raise UserError(
                f"{path}: scale {scale:g}, offset {offset:g} of band {index}: mend them (gdal_edit.py -scale)"
            )
    units = {dataset.units[index - 1] for index in indexes}
    when, problem = _time(dataset, cut)
    flags = {flag.name for flag in dataset.mask_flag_enums[indexes[0] - 1]}
    return Layer(
        path=path,
        grid=grid,
        indexes=indexes,
        bands=tuple(bands),
        dtype=dtype.name,
        nodata=tuple(as_stored(value, dtype) for value in nodata),
        scales=scales,
        units=units.pop() if len(units) == 1 else None,
        time=when,
        time_problem=problem,
        masked="per_dataset" in flags or "alpha" in flags,
        gcp_residual=residual,
    )


def _file_names(dataset: Any, colours: list[str]) -> list[str]:
    """Names by band: its description, else its colour, else its number; numbers added where two are the same."""
    names = [
        " ".join((text or "").split()) or (colour if colour in _COLOURS or colour == "alpha" else f"band_{index}")
        for index, (text, colour) in enumerate(zip(dataset.descriptions, colours, strict=True), 1)
    ]
    return [f"{name}_{index}" if names.count(name) > 1 else name for index, name in enumerate(names, 1)]


def _choose(path: str, cut: Cut, names: list[str], usual: list[int]) -> tuple[int, ...]:
    if not cut.bands:
        if not usual:
            raise UserError(f"{path}: no band but alpha")
        return tuple(usual)
    lower = [name.lower() for name in names]
    out = []
    for asked in cut.bands:
        if asked.lower() in lower:
            out.append(lower.index(asked.lower()) + 1)
        elif asked.isdigit() and 1 <= int(asked) <= len(names):
            out.append(int(asked))
        else:
            raise UserError(f"{path}: no band {asked!r} among its {len(names)}: {nearest(asked, names)}")
    if len(set(out)) != len(out):
        raise UserError(f"--set bands={','.join(cut.bands)}: a band is named twice")
    return tuple(out)


def _wavelength(dataset: Any, index: int) -> tuple[float | None, float | None]:
    """Centre and width in nanometres, as GDAL's IMAGERY domain or ENVI's items state them."""
    imagery = {key.upper(): value for key, value in dataset.tags(index, ns="IMAGERY").items()}
    plain = {key.lower(): value for key, value in dataset.tags(index).items()}

    def nanometres(text: str | None, unit: str) -> float | None:
        factor = {"nanometers": 1.0, "nm": 1.0, "micrometers": 1e3, "um": 1e3, "µm": 1e3}.get(unit.strip().lower())
        try:
            value = float(text) if text is not None and factor is not None else math.nan
        except ValueError:
            return None
        return round(value * (factor or 1.0), 6) if math.isfinite(value) and value > 0 else None

    if "CENTRAL_WAVELENGTH_UM" in imagery:
        return nanometres(imagery["CENTRAL_WAVELENGTH_UM"], "um"), nanometres(imagery.get("FWHM_UM"), "um")
    unit = plain.get("wavelength_units", plain.get("wavelength_unit", ""))
    return nanometres(plain.get("wavelength"), unit), nanometres(plain.get("fwhm"), unit)


def _time(dataset: Any, cut: Cut) -> tuple[dates.Interval, str]:
    """When it was taken, and why that is not known."""
    stem = Path(dataset.name).stem
    try:
        if cut.date_pattern:
            return dates.from_pattern(stem, cut.date_pattern), ""
        found = dates.from_tags({**dataset.tags(), **dataset.tags(ns="IMAGERY")})
        if found == dates.UNKNOWN:
            found = dates.from_name(stem)
    except ValueError as error:
        return dates.UNKNOWN, str(error)
    return found, "" if found != dates.UNKNOWN else "no date in its metadata or name"


def read_layer(dataset: Any, layer: Layer, target: Grid, cut: Cut) -> tuple[np.ndarray, np.ndarray]:
    """Bands [C, H, W] on `target`, as stored or scaled, and the validity of every value (bool, same shape)."""
    values, valid = read_grid(dataset, layer.grid, target, layer.indexes, layer.nodata, cut.resampling)
    if cut.apply_scale:
        scale, offset = (np.array(part, np.float64)[:, None, None] for part in zip(*layer.scales, strict=True))
        with np.errstate(over="ignore", invalid="ignore"):
            values = (values * scale + offset).astype(np.float32)
        valid &= np.isfinite(values)
    return values, valid


def is_scale(scale: float, offset: float) -> bool:
    """Whether physical = stored * scale + offset says anything."""
    return math.isfinite(scale) and scale != 0 and math.isfinite(offset)


def pixel_mask(valid: np.ndarray, layer: Layer, cut: Cut) -> np.ndarray:
    """Where a pixel counts as there, [H, W] of valid [C, H, W]: by the setting `valid`."""
    return np.asarray(valid.all(axis=0) if _rule(layer, cut) == "all" else valid.any(axis=0))


def _rule(layer: Layer, cut: Cut) -> str:
    return cut.valid if cut.valid != "auto" else ("all" if np.dtype(layer.dtype).kind == "f" else "any")


def mask_by_band(layers: Sequence[Layer], cut: Cut) -> bool:
    """Whether a pixel may lack some of its bands without a missing value that says so in the data."""
    if len(layers[0].bands) == 1 or column_nodata(layers, cut) is not None:
        return False
    return any(
        _rule(layer, cut) == "any"
        and (np.dtype(layer.dtype).kind == "f" or any(value is not None for value in layer.nodata))
        for layer in layers
    )


def disagreement(layer: Layer, first: Layer, cut: Cut) -> str:
    """Why `layer` cannot stand beside `first`, naming it; "" where it can."""
    name = first.path
    if len(layer.bands) != len(first.bands):
        return (
            f"{len(layer.bands)} bands of {layer.dtype}, but {name} has {len(first.bands)} of {first.dtype}: choose "
            "bands that both have with --set bands=…"
        )
    if layer.dtype != first.dtype and not cut.apply_scale:
        return f"pixels of {layer.dtype}, but {name} has {first.dtype}: convert one of them (gdal_translate -ot)"
    for mine, other in zip(layer.bands, first.bands, strict=True):
        if mine.name != other.name:
            return (
                f"its band {mine.name!r} stands where {name} has {other.name!r}: choose bands by name with "
                "--set bands=…, or name them with --set band_names=…"
            )
    if not cut.apply_scale and set(layer.scales) | set(first.scales) != {first.scales[0]}:
        return f"scales and offsets differ between bands, or from {name}: pass --set scaling=apply"
    return ""


def column_nodata(layers: Sequence[Layer], cut: Cut) -> float | None:
    """The one missing value of all bands of all layers, to fill with and to record; None where there is none."""
    found = {value for layer in layers for value in layer.nodata}
    value = found.pop() if len(found) == 1 else None
    return None if cut.apply_scale else value
