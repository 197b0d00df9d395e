"""Small GeoTIFFs for tests of what reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin

UTM = from_origin(500_000, 4_649_776, 10, 10)
"""10 m pixels in EPSG:32631, a UTM zone with its central meridian at 3 degrees east."""


def save_tiff(path: Path, values: np.ndarray, **options: Any) -> Path:
    """`values` [C, H, W] as a GeoTIFF; options of rasterio, and `names`, `mask`, `gcps`, `band_tags`, `tags`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names, mask = options.pop("names", None), options.pop("mask", None)
    gcps, band_tags, tags = options.pop("gcps", None), options.pop("band_tags", {}), options.pop("tags", {})
    scales, offsets = options.pop("scales", None), options.pop("offsets", None)
    colours = options.pop("colours", None)
    profile: dict[str, Any] = {"crs": "EPSG:32631", "transform": UTM, "tiled": True, "blockxsize": 16, "blockysize": 16}
    profile |= {"driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2]}
    profile |= {"dtype": values.dtype} | options
    profile = {key: value for key, value in profile.items() if value is not None}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as file:
        file.write(values)
        if gcps is not None:
            file.gcps = gcps
        if names is not None:
            file.descriptions = names
        if colours is not None:
            file.colorinterp = colours
        if scales is not None:
            file.scales, file.offsets = scales, offsets
        for band, items in band_tags.items():
            for namespace, content in items.items():
                file.update_tags(band, ns=namespace or None, **content)
        file.update_tags(**tags)
        if mask is not None:
            file.write_mask(mask)
    return path


def pixels(seed: int = 0, shape: tuple[int, ...] = (3, 40, 50), dtype: str = "uint16") -> np.ndarray:
    """Random whole numbers from 1 to 250."""
    return np.random.default_rng(seed).integers(1, 251, shape).astype(dtype)
