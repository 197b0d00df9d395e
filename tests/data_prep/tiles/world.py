"""Scenes of a made-up place as files: renders of `data_prep.scenes` and simple shapes on any grid."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pyproj
import rasterio
from rasterio.transform import Affine

from data_prep.scenes import make_scene

PLACE = (-99.15, 47.02)
"""Longitude and latitude that scenes are laid round."""
CRS = {"s1": "EPSG:4326", "s2": "EPSG:32614", "naip": "EPSG:26915"}


def write_tif(path: Path, values: np.ndarray, transform: Affine | None, crs: str | None, **options: object) -> Path:
    """GeoTIFF of [C, h, w]; `descriptions` names its bands, `tags` are its tags, `gcps` (points, crs) place it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names, tags, gcps = (options.pop(key, None) for key in ("descriptions", "tags", "gcps"))
    profile = {"driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2]}
    if len(values) == 4 and "photometric" not in options:
        profile["photometric"] = "MINISBLACK"  # GDAL would call the fourth band alpha
    if transform is not None:
        profile["transform"] = transform
    if crs is not None:
        profile["crs"] = crs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one without a transform is meant so
        file = rasterio.open(path, "w", dtype=values.dtype, **profile, **options)
    with file:
        file.write(values)
        if names:
            file.descriptions = names
        if tags:
            file.update_tags(**tags)
        if gcps:
            file.gcps = gcps
    return path


def grid_at(crs: str, lon: float, lat: float, step: float, height: int, width: int) -> Affine:
    """North-up transform of a grid of `step` (in the units of `crs`) whose middle is at a place."""
    x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    return Affine(step, 0, x - step * width / 2, 0, -step, y + step * height / 2)


def ground(crs: str, transform: Affine, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude of every pixel's middle."""
    column, row = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    x, y = transform @ (column, row)
    return pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)


def disc(crs: str, transform: Affine, height: int, width: int, lon: float, lat: float, radius_m: float) -> np.ndarray:
    """bool [h, w]: pixels whose middle is within a radius of a place, by geodesics."""
    lons, lats = ground(crs, transform, height, width)
    distance = pyproj.Geod(ellps="WGS84").inv(lons, lats, np.full_like(lons, lon), np.full_like(lats, lat))[2]
    return distance < radius_m


def triplet(folder: Path, size: int = 216, spot: tuple[float, float] | None = None) -> Path:
    """folder/s1, s2, naip: one generated scene, each sensor on a grid of its own CRS; a disc at `spot`.

    The renders' pixels are 10 m (2.5 m for NAIP), and so are the grids. The disc (60 m) is bright in every sensor.
    """
    scene = make_scene(3, 5, size, ("s1", "s2", "naip"))
    lon, lat = PLACE
    values = {
        "s1": scene["s1"].astype(np.float32) / 100,
        "s2": np.minimum(scene["s2"], 1500),
        "naip": np.minimum(scene["naip"], 150),
    }
    bright = {"s1": 25.0, "s2": 9000, "naip": 255}
    for sensor, image in values.items():
        height, width = image.shape[1:]
        crs, step = CRS[sensor], 2.5 if sensor == "naip" else 10.0
        transform = grid_at(crs, lon, lat, step if sensor != "s1" else 1e-4, height, width)
        if spot is not None:
            image[:, disc(crs, transform, height, width, *spot, 60)] = bright[sensor]
        names = {"s1": ("VV", "VH")}.get(sensor)
        write_tif(folder / sensor / f"{sensor}_20200715.tif", image, transform, crs, descriptions=names)
    return folder
