"""Time-series cubes of a NetCDF file by the CF conventions: which variables, on which grid, at which times; and reading."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.rasters.cube_file import CubeFile, Variable
from data_prep.rasters.dates import from_cf
from data_prep.rasters.grid import Grid, geo, lonlat
from data_prep.rasters.raster_layer import is_scale
from frontier.data.manifest import nearest
from frontier.errors import UserError

_NAMES = {
    "T": {"t", "time", "date", "dates"},
    "Y": {"y", "lat", "latitude", "northing"},
    "X": {"x", "lon", "longitude", "easting"},
}
_STANDARD = {
    "time": "T",
    "projection_x_coordinate": "X",
    "longitude": "X",
    "projection_y_coordinate": "Y",
    "latitude": "Y",
}
_CHECK_BYTES = 16 << 20
_DEFAULT_FILL = {"f4": [9.969209968386869e36], "f8": [9.969209968386869e36], "i2": [-32767.0], "i4": [-2147483647.0]}
"""What the NetCDF library leaves where nothing was written and no _FillValue was set, by type; bytes have none."""


@dataclass(frozen=True)
class CubeBand:
    """One band: a variable, or entry `place` of its band dimension. `roles`: its dimensions, of T, B, Y and X.

    physical = stored * scale + offset; stored values in `missing`, or outside `limits`, are missing.
    """

    name: str
    variable: str
    roles: str
    place: int
    dtype: str
    scale: float
    offset: float
    missing: tuple[float, ...]
    limits: tuple[float, float]
    units: str


@dataclass(frozen=True)
class Cube:
    """What the header of one file says. `times`: Unix seconds in rising order; `order` puts stored steps into it."""

    path: str
    grid: Grid
    times: tuple[int, ...]
    order: tuple[int, ...]
    bands: tuple[CubeBand, ...]
    static: tuple[CubeBand, ...]
    label: CubeBand | None
    label_classes: tuple[str, ...]
    fill_of_file: bool
    token: bytes = b""


def role_of(file: CubeFile, dim: str) -> str:
    """T, Y or X by the CF attributes of the coordinate, or by its name; B for any other dimension."""
    coordinate = file.variables.get(dim)
    if coordinate is not None:
        axis = coordinate.text("axis").upper()
        if axis in ("T", "X", "Y"):
            return axis
        standard = _STANDARD.get(coordinate.text("standard_name"))
        if standard:
            return standard
        if " since " in coordinate.text("units"):
            return "T"
    return next((role for role, names in _NAMES.items() if dim.lower() in names), "B")


def describe_cube(
    file: CubeFile, chosen: Sequence[str], static: Sequence[str], label: str, crs: str, fill: float | None
) -> Cube:
    """The cube of an open file. `chosen`: variables, or none for all with time, y and x. Raises `UserError`."""
    path = file.path
    roles = {dim: role_of(file, dim) for variable in file.variables.values() for dim in variable.dims}
    # A variable's letters: TYX and TBYX in any order are series, YX and XY are static.
    letters = {
        name: "".join(roles[dim] for dim in variable.dims)
        for name, variable in file.variables.items()
        if variable.dtype.kind in "iuf"
    }
    series = [name for name, found in letters.items() if sorted(found) in (list("TXY"), list("BTXY"))]
    for name in chosen:
        if name not in series:
            raise UserError(f"{path}: no variable {name!r} with time, y and x: {nearest(name, series)}")
    names = list(chosen) or series
    if not names:
        held = ", ".join(f"{name}({', '.join(file.variables[name].dims)})" for name in sorted(letters)[:8])
        raise UserError(f"{path}: no variable has the dimensions time, y and x: it holds {held or 'no numbers'}")
    flat = [name for name, found in letters.items() if sorted(found) == list("XY")]
    for name in (*static, *([label] if label else ())):
        if name not in flat:
            raise UserError(f"{path}: no variable {name!r} with y and x alone: {nearest(name, flat)}")
    dims = {role: _one_dim(file, [*names, *static], roles, role) for role in "TYX"}
    grid = _grid(file, dims["X"], dims["Y"], names[0], crs)
    times = _times(file, dims["T"])
    order = np.argsort(times, kind="stable")
    if len(np.unique(times)) != len(times):
        raise UserError(f"{path}: two steps of {dims['T']!r} have the same time")
    if fill is None and file.attributes.get("_FillValue") is not None:
        value = np.asarray(file.attributes["_FillValue"]).ravel()
        fallback = float(value[0]) if value.size and value.dtype.kind in "iuf" else None
    else:
        fallback = None
    bands = [band for name in names for band in _bands(file, name, letters[name], fill, fallback)]
    flat_bands = tuple(_bands(file, name, letters[name], fill, fallback)[0] for name in static)
    target = None
    classes: tuple[str, ...] = ()
    if label:
        target = _bands(file, label, letters[label], None, None)[0]
        if np.dtype(target.dtype).kind == "f":
            raise UserError(f"{path}: label {label!r} is of {target.dtype}, whole numbers are expected")
        classes = _flag_names(file.variables[label])
    used_fallback = fallback is not None and any(fallback in band.missing for band in (*bands, *flat_bands))
    return Cube(
        path,
        grid,
        tuple(int(times[k]) for k in order),
        tuple(order.tolist()),
        tuple(bands),
        flat_bands,
        target,
        classes,
        used_fallback,
    )


def _one_dim(file: CubeFile, names: Sequence[str], roles: dict[str, str], role: str) -> str:
    found = {dim for name in names for dim in file.variables[name].dims if roles[dim] == role}
    if len(found) > 1:
        raise UserError(
            f"{file.path}: the variables lie along several dimensions {', '.join(sorted(found))}: choose those of one "
            "with --set variables=…"
        )
    return found.pop()


def _bands(file: CubeFile, name: str, letters: str, fill: float | None, fallback: float | None) -> list[CubeBand]:
    variable = file.variables[name]
    missing = [fill] if fill is not None else [*variable.numbers("_FillValue"), *variable.numbers("missing_value")]
    if not missing and fallback is not None:
        missing = [fallback]
    if fill is None and not missing:
        missing = _DEFAULT_FILL.get(variable.dtype.str[1:], [])
    bounds = variable.numbers("valid_range") or [
        (variable.numbers("valid_min") or [-math.inf])[0],
        (variable.numbers("valid_max") or [math.inf])[0],
    ]
    if variable.text("_Unsigned").lower() == "true" or variable.dtype.kind == "u":
        # Attributes of unsigned data may be stored as their signed twins.
        turn = 2.0 ** (8 * variable.dtype.itemsize)
        missing = [value + turn if value < 0 else value for value in missing]
        bounds = [value + turn if -math.inf < value < 0 else value for value in bounds]
    if len(bounds) != 2:
        raise UserError(f"{file.path}: valid_range of {name} has {len(bounds)} numbers, two are expected")
    scale = (variable.numbers("scale_factor") or [1.0])[0]
    offset = (variable.numbers("add_offset") or [0.0])[0]
    if not is_scale(scale, offset):
        raise UserError(f"{file.path}: scale_factor {scale:g}, add_offset {offset:g} of {name}: mend them (ncatted)")
    labels = [name]
    if "B" in letters:
        dim = variable.dims[letters.index("B")]
        count = variable.shape[letters.index("B")]
        labels = [f"{name}_{text}" for text in _entries(file, dim, count)]
    return [
        CubeBand(
            label,
            name,
            letters,
            place,
            variable.dtype.name,
            scale,
            offset,
            tuple(value for value in missing if not math.isnan(value)),
            (bounds[0], bounds[1]),
            variable.text("units"),
        )
        for place, label in enumerate(labels)
    ]


def _entries(file: CubeFile, dim: str, count: int) -> list[str]:
    """Names of the entries of a band dimension: its coordinate's values, else numbers from 1."""
    coordinate = file.variables.get(dim)
    if coordinate is None or coordinate.shape != (count,):
        return [str(number) for number in range(1, count + 1)]
    values = file.read(dim).tolist()
    texts = [one.decode("utf-8", "replace") if isinstance(one, bytes) else f"{one:g}" for one in values]
    return texts if len(set(texts)) == count else [str(number) for number in range(1, count + 1)]


def _flag_names(variable: Variable) -> tuple[str, ...]:
    """Class names by CF's flag_values and flag_meanings, where the values are 0, 1, 2, …; else none."""
    meanings = variable.text("flag_meanings").split()
    return tuple(meanings) if variable.numbers("flag_values") == list(range(len(meanings))) else ()


def _times(file: CubeFile, dim: str) -> np.ndarray:
    coordinate = file.variables.get(dim)
    if coordinate is None or coordinate.dims != (dim,) or coordinate.dtype.kind not in "iuf":
        raise UserError(f"{file.path}: no time coordinate: give dimension {dim!r} a variable in CF units")
    if coordinate.shape[0] == 0:
        raise UserError(f"{file.path}: no steps along {dim!r}: write some")
    try:
        return from_cf(file.read(dim), coordinate.text("units"), coordinate.text("calendar"))
    except ValueError as error:
        raise UserError(f"{file.path}: {dim}: {error}") from None


def _grid(file: CubeFile, x_dim: str, y_dim: str, name: str, crs: str) -> Grid:
    """The grid of pixel centres x and y, which must be evenly spaced. Raises `UserError`."""
    path = file.path
    steps = []
    for dim in (x_dim, y_dim):
        coordinate = file.variables.get(dim)
        if coordinate is None or coordinate.dims != (dim,) or coordinate.dtype.kind not in "iuf":
            raise UserError(f"{path}: no coordinate for dimension {dim!r}: add one")
        values = file.read(dim).astype(np.float64)
        if len(values) < 2:
            raise UserError(f"{path}: {dim} has {len(values)} entries: the size of a pixel needs 2")
        step = (values[-1] - values[0]) / (len(values) - 1)
        even = values[0] + step * np.arange(len(values))
        if not np.isfinite(step) or step == 0 or np.abs(values - even).max() > 0.01 * abs(step):
            raise UserError(f"{path}: {dim} is not evenly spaced: regrid it")
        steps.append((values[0], step, len(values)))
    (x, dx, width), (y, dy, height) = steps
    found = _crs(file, name, x_dim) or crs
    if not found:
        raise UserError(f"{path}: no CRS: no grid mapping with crs_wkt or spatial_ref: pass --set crs=EPSG:…")
    grid = Grid(found, (dx, 0.0, x - dx / 2, 0.0, dy, y - dy / 2), height, width)
    try:
        centre = lonlat(grid.crs, *grid.xy(width / 2, height / 2))
    except geo()[1].exceptions.ProjError as error:
        raise UserError(
            f"{path}: CRS cannot be brought to longitude and latitude ({error}): mend the CRS of the grid mapping"
        ) from None
    if not np.isfinite(centre).all() or abs(float(centre[1])) > 90:
        raise UserError(f"{path}: its centre lies nowhere on Earth in {found[:40]}: mend the CRS or the coordinates")
    return grid


def _crs(file: CubeFile, name: str, x_dim: str) -> str:
    """EPSG:n or WKT of the grid mapping; EPSG:4326 for coordinates in degrees; "" where there is neither."""
    pyproj = geo()[1]
    mapping = file.variables[name].text("grid_mapping").split(":")[0].strip()
    for candidate in (mapping, "crs", "spatial_ref"):
        variable = file.variables.get(candidate)
        if variable is None:
            continue
        text = variable.text("crs_wkt") or variable.text("spatial_ref")
        try:
            if text:
                crs = pyproj.CRS.from_user_input(text)
            elif variable.text("grid_mapping_name"):
                crs = pyproj.CRS.from_cf({k: _plain(v) for k, v in variable.attributes.items() if v is not None})
            else:
                continue
        except (pyproj.exceptions.CRSError, KeyError, ValueError, TypeError):
            raise UserError(f"{file.path}: the CRS in {candidate!r} cannot be understood: mend crs_wkt") from None
        code = crs.to_epsg()
        return f"EPSG:{code}" if code else crs.to_wkt()
    coordinate = file.variables.get(x_dim)
    degrees = coordinate is not None and coordinate.text("units") in ("degrees_east", "degree_east", "degrees_E")
    return "EPSG:4326" if degrees else ""


def _plain(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    return value.item() if value.size == 1 else value.tolist()


def common_dtype(bands: Sequence[CubeBand]) -> str:
    """The smallest type that holds every band exactly."""
    return np.result_type(*(np.dtype(band.dtype) for band in bands)).name


def read_bands(
    file: CubeFile, cube: Cube, bands: Sequence[CubeBand], box: tuple[int, int, int, int], apply: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Values and validity (bool) of a box (row, column, height, width) inside the grid, as stored or scaled.

    [T, C, h, w] in rising order of time; [C, h, w] where the bands are static.
    """
    row, column, height, width = box
    values, valid = [], []
    for band in bands:
        index: list[slice | int] = []
        for letter in band.roles:
            if letter == "B":
                index.append(band.place)
            else:
                index.append(
                    {"T": slice(None), "Y": slice(row, row + height), "X": slice(column, column + width)}[letter]
                )
        found = file.read(band.variable, tuple(index))
        left = band.roles.replace("B", "")
        wanted = [letter for letter in "TYX" if letter in left]
        found = found.transpose([left.index(letter) for letter in wanted])
        if "T" in left:
            found = found[list(cube.order)]
        there = np.isfinite(found) if found.dtype.kind == "f" else np.ones(found.shape, bool)
        for missing in band.missing:
            there &= found != (found.dtype.type(missing) if found.dtype.kind == "f" else missing)
        low, high = band.limits
        there &= (found >= low) & (found <= high)
        if apply:
            with np.errstate(over="ignore", invalid="ignore"):
                found = (found * np.float64(band.scale) + band.offset).astype(np.float32)
            there &= np.isfinite(found)
        values.append(found)
        valid.append(there)
    dtype = "float32" if apply else common_dtype(bands)
    axis = 1 if values[0].ndim == 3 else 0
    return np.stack([one.astype(dtype) for one in values], axis), np.stack(valid, axis)


def decode_all(file: CubeFile, cube: Cube) -> None:
    """Read every value of the chosen variables, a few MiB at a time. Raises `UserError` where one does not decode."""
    parts = (*cube.bands, *cube.static, *(() if cube.label is None else (cube.label,)))
    for name in dict.fromkeys(band.variable for band in parts):
        variable = file.variables[name]
        size = variable.dtype.itemsize * int(np.prod(variable.shape[1:]))
        step = max(1, _CHECK_BYTES // max(1, size))
        for start in range(0, variable.shape[0], step):
            file.read(name, (slice(start, start + step),))


def cube_disagreement(cube: Cube, first: Cube, apply: bool) -> str:
    """Why `cube` cannot stand beside `first`, naming it; "" where it can."""
    for mine, other, what in ((cube.bands, first.bands, "variables"), (cube.static, first.static, "static")):
        names, others = [band.name for band in mine], [band.name for band in other]
        if names != others:
            odd = sorted(set(names) ^ set(others))
            return f"bands differ from {first.path} (in one only: {', '.join(odd[:6])}): choose with --set {what}=…"
        if not apply and mine and common_dtype(mine) != common_dtype(other):
            return f"values of {common_dtype(mine)}, but {first.path} has {common_dtype(other)}: convert one of them"
        if not apply and len({(band.scale, band.offset) for band in (*mine, *other)}) > 1:
            where = f"or from {first.path}" if cube is not first else "of one file"
            return f"scale_factor or add_offset differ between variables {where}: pass --set scaling=apply"
    return ""
