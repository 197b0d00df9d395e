"""The 255x255x8 images of SustainBench's survey tasks: seven Landsat bands and one of night lights.

An .npz file holds `x`, float32 [8, 255, 255]: BLUE GREEN RED SWIR1 SWIR2 TEMP1 NIR NIGHTLIGHTS, the median of the three
years around the survey, sampled in Web Mercator (EPSG:3857) at 30 m around the cluster. The files begin with the
southernmost row ((0, 0) is the lower left corner, as the publishers' 3_process_tfrecords.ipynb says); here the first
row is the northernmost. The last band is of DMSP-OLS up to 2011 and of VIIRS from 2012: other units and other
statistics, so that each sensor has a band of its own here and a mask says which one is there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from data_prep.readers._sustainbench import expect, read_npz, seconds
from data_prep.source import ArrayColumn, Band, ImageColumn

SIDE = 255
GSD_M = 30.0
LAST_DMSP_YEAR = 2011
BANDS = (
    # A mixture of Landsat 5, 7 and 8: the band passes are those of Landsat 7 ETM+.
    Band("BLUE", 482.5, 65, "blue"),
    Band("GREEN", 565.0, 80, "green"),
    Band("RED", 660.0, 60, "red"),
    Band("SWIR1", 1650.0, 200, "swir16"),
    Band("SWIR2", 2220.0, 260, "swir22"),
    Band("TEMP1", 11450.0, 2100, "lwir"),
    Band("NIR", 837.5, 125, "nir"),
    Band("DMSP", 750.0, 700),
    Band("VIIRS", 700.0, 400),
)
UNITS = "surface reflectance; TEMP1: kelvin; DMSP: intercalibrated digital number; VIIRS: nW/cm2/sr"
SENSOR = "Landsat 5/7/8 Collection 1 surface reflectance, DMSP-OLS or VIIRS night lights, 3-year medians"


def image_columns(times: int = 0) -> tuple[ImageColumn, ArrayColumn]:
    """The input and its mask: axes CHW and C, or with `times` > 0 TCHW and TC."""
    axes, shape = ("CHW", (len(BANDS), SIDE, SIDE)) if not times else ("TCHW", (times, len(BANDS), SIDE, SIDE))
    image = ImageColumn(shape, "float32", BANDS, GSD_M, units=UNITS, axes=axes, mask="image_valid", sensor=SENSOR)
    return image, ArrayColumn(shape[:-2], "uint8", axes[:-2], "mask")


def read_raw(path: str) -> np.ndarray:
    """`x` as it lies in the file: [8, 255, 255], finite. Raises `UserError`."""
    return expect(read_npz(path, "x"), path, "x", (8, SIDE, SIDE))


def check(path: str) -> None:
    """Read the file once. Raises `UserError`."""
    read_raw(path)


def read_image(path: str, year: int) -> tuple[np.ndarray, np.ndarray]:
    """(image float32 [9, 255, 255], first row north; which bands are there, uint8 [9]) of a survey of `year`."""
    raw = read_raw(path)[:, ::-1]
    there = np.ones(len(BANDS), np.uint8)
    dmsp = year <= LAST_DMSP_YEAR
    there[8 if dmsp else 7] = 0
    out = np.zeros((len(BANDS), SIDE, SIDE), np.float32)
    out[:7] = raw[:7]
    out[7 if dmsp else 8] = raw[7]
    return out, there


def columns_of(lat: float, first: int, last: int) -> dict[str, Any]:
    """Ground sampling distance and time span of images of the surveys `first` to `last` (years)."""
    return {
        "crs_epsg": 3857,
        # 30 m are Web Mercator metres, which are longer than those on the ground by 1 / cos(latitude).
        "gsd_m": GSD_M * math.cos(math.radians(lat)),
        "time_start": seconds(first - 1),
        "time_end": seconds(last + 2) - 1,
    }


COLUMNS = {"lon": "float64", "lat": "float64", "crs_epsg": "int32", "gsd_m": "float32"} | {
    "time_start": "int64",
    "time_end": "int64",
}
