"""Sentinel-1, Sentinel-2 and NAIP scenes as aligned XYZ tiles: the Scale-ALiBi data set's form. See `tiles.triplets`."""

from __future__ import annotations

from data_prep.readers.registry import Reader, Request, Setting
from data_prep.source import Source


def _open(request: Request) -> Source:
    from data_prep.tiles.triplets import open_tiles

    return open_tiles(request)


READERS = (
    Reader(
        name="tile_triplets",
        summary="Sentinel-1, Sentinel-2 and NAIP scenes cut into aligned XYZ tiles (Scale-ALiBi)",
        expects="a folder with the scenes (GeoTIFF or JPEG 2000) of each sensor in s1, s2 and naip, or a STAC "
        "ItemCollection given by --set items=FILE whose assets are local: python -m data_prep.tiles.download makes one",
        open=_open,
        uses=frozenset({"on_error", "license", "citation"}),
        settings={
            "sensors": Setting("which sensors a sample has", "s1,s2,naip"),
            "s1": Setting("folder of Sentinel-1 scenes, relative to PATH", "s1"),
            "s2": Setting("folder of Sentinel-2 scenes, relative to PATH", "s2"),
            "naip": Setting("folder of NAIP scenes, relative to PATH", "naip"),
            "items": Setting("instead of folders: a STAC ItemCollection with local assets, relative to PATH"),
            "preset": Setting("base level of the paper's data sets: 15, 15 or 17", "", ("small", "full", "micro")),
            "level": Setting("base level Y of the tiles, 15 without a preset"),
            "size": Setting("pixels of a tile at the base level", "256"),
            "regions": Setting("GeoJSON or list of boxes, relative to PATH: tiles whose centre lies inside"),
            "hires": Setting(
                "NAIP at level Y, from the children at Y + 1, or both", "both", ("both", "base", "double")
            ),
            "min_valid": Setting(
                "least share of measured pixels of every sensor, and of each of NAIP's children", "0.95"
            ),
            "order": Setting(
                "which scene is on top where several measured a place",
                "least_cloudy",
                ("least_cloudy", "newest", "name"),
            ),
            "units": Setting(
                "what Sentinel-1 files hold: dB, linear power, or amplitude (GRD digital numbers)",
                "db",
                ("db", "linear", "amplitude"),
            ),
            "calibration": Setting("with units=amplitude: power = (value / this)^2; 1 = uncalibrated", "1"),
            "s1_dtype": Setting("int16 keeps 0.01 dB, float16 keeps dB", "int16", ("int16", "float16")),
            "s2_bands": Setting("true colour, or the 12 bands of L2A", "rgb", ("rgb", "all")),
            "s2_scale": Setting("1e4 x reflectance = value x this + offset", "1"),
            "s2_offset": Setting(
                "auto: -1000 from processing baseline 04.00 on (SAFE names, STAC items), else 0", "auto"
            ),
            "naip_bands": Setting("with or without near infrared", "rgb", ("rgb", "rgbn")),
            "naip_fourth": Setting(
                "the fourth band is what the file says, or near infrared although it is marked as alpha",
                "file",
                ("file", "nir"),
            ),
            "naip_nodata": Setting("value of all bands that means missing (default: as the files say)"),
            "resampling": Setting(
                "of optical images where tile pixels are the smaller ones", "bilinear", ("bilinear", "cubic")
            ),
            "block": Setting("tiles under one ancestor so many levels up go to the same split", "3"),
        },
        license="Copernicus Sentinel data: free, with attribution; NAIP: US public domain",
        citation="P. Kage and P. Andreadis, Multi-Modal, Multi-Scale Representation Learning for Satellite Imagery "
        "Analysis Just Needs a Good ALiBi; contains modified Copernicus Sentinel data",
        homepage="https://github.com/pkage/scale-alibi",
    ),
)
