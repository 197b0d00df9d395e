"""Generated, labelled scenes as a source: aligned Sentinel-2-like, Sentinel-1-like and aerial images.

A scene is a function of (seed, index) alone, so any subset, order or number of workers gives the same bytes. The
images are synthetic: they are for trying, testing and timing the suite, not for training a model of the Earth.
Columns by sensor: `rgb` gives "image" (uint8 true colour of s2), `s2` "s2", `s1` "s1", `naip` "naip" (2.5 m, 4x finer), `naip_5m` "naip_5m" (its mean at 5 m, 2x
finer). With `targets`, "land" is the land use of every pixel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_prep.scenes_fields import FINE, PIXEL_M, Season
from data_prep.scenes_ground import make_ground
from data_prep.scenes_landuse import CLASSES
from data_prep.scenes_sensors import (
    View,
    abundances,
    render_naip,
    render_s1,
    render_s2,
    surface_spectra,
    true_colour,
)
from data_prep.scenes_spectra import NAIP_BANDS, RGB_BANDS, S1_BANDS, S2_BANDS
from data_prep.source import ArrayColumn, ImageColumn, Listing, Source, Stored, Target
from frontier.data.manifest import nearest
from frontier.errors import UserError

GENERATOR_VERSION = 1
MOST = 10_000_000
"""Generated samples of one plan, which every process holds in memory."""
SENSORS = ("rgb", "s2", "s1", "naip", "naip_5m")
_DAY = 86400
_FIRST_DAY = 17897 * _DAY
"""2019-01-01, Unix seconds."""


def scene_label(seed: int, index: int) -> int:
    """The class of a scene: every eight in a row hold all classes once, in a shuffled order."""
    group, place = divmod(index, len(CLASSES))
    digest = hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=2 * len(CLASSES)).digest()
    return int(np.argsort(np.frombuffer(digest, "<u2"), kind="stable")[place])


def scene_stream(seed: int, index: int, what: int) -> np.random.Generator:
    """The random numbers of one part of one scene: counter-based, so no scene waits for another."""
    return np.random.Generator(np.random.Philox(key=[seed, index * 16 + what]))


def _when_and_where(rng: np.random.Generator) -> tuple[int, float, float]:
    """Day since the first, longitude and latitude (uniform on the ground between 40° S and 64° N)."""
    day = int(rng.integers(0, 5 * 365))
    return day, float(rng.uniform(-180, 180)), float(np.rad2deg(np.arcsin(rng.uniform(-0.64, 0.9))))


def make_scene(seed: int, index: int, size: int, sensors: Sequence[str]) -> dict[str, Any]:
    """One scene of `size` x `size` pixels of 10 m.

    Returns the asked images (uint8 "image" [3, n, n], uint16 "s2" [12, n, n], int16 "s1" [2, n, n], uint8 "naip"
    [4, 4 n, 4 n], uint8 "naip_5m" [4, 2 n, 2 n]) and the per-sample values. A sensor's image does not depend on which others are asked for.
    """
    label = scene_label(seed, index)
    rng = scene_stream(seed, index, 0)
    day, lon, lat = _when_and_where(rng)
    season_day = (day % 365 + (182 if lat < 0 else 0)) % 365
    season = Season(season_day, min(1.0, max(0.15, abs(lat) / 45)))
    noon = 90 - abs(lat) + 23.4 * np.sin(2 * np.pi * (season_day - 81) / 365)
    view = View(float(np.clip(noon, 18, 75)), 155.0 if lat >= 0 else 25.0, max(0.0, rng.normal(0.003, 0.008)))
    relief = float(rng.gamma(1.5, 0.18))
    spectra = surface_spectra(rng)
    ground = make_ground(scene_stream(seed, index, 1), label, size, season)
    out: dict[str, Any] = {}
    mixed = abundances(ground)
    # Drawn even where it is not kept: validity describes it.
    s2, opacity, shadow = render_s2(scene_stream(seed, index, 2), ground, mixed, spectra, view, relief)
    if "s2" in sensors:
        out["s2"] = s2
    if "rgb" in sensors:
        out["image"] = true_colour(s2)
    if "s1" in sensors:
        out["s1"] = render_s1(scene_stream(seed, index, 3), ground, mixed, relief)
    if "naip" in sensors or "naip_5m" in sensors:
        aerial = render_naip(scene_stream(seed, index, 4), ground, spectra, view, relief)
        halved = aerial.reshape(len(aerial), 2 * size, 2, 2 * size, 2).mean((2, 4))
        out |= {"naip": aerial} if "naip" in sensors else {}
        out |= {"naip_5m": np.rint(halved).astype(np.uint8)} if "naip_5m" in sensors else {}
    zone = int((lon + 180) // 6) % 60 + 1
    out |= {
        "land": _commonest(ground.land),
        "time_start": _FIRST_DAY + day * _DAY + 10 * 3600,
        "lon": lon,
        "lat": lat,
        "crs_epsg": (32600 if lat >= 0 else 32700) + zone,
        "gsd_m": PIXEL_M,
        "valid_fraction": float(np.mean((opacity < 0.2) & (shadow < 0.3))),
        "cloud_fraction": float(np.mean(opacity >= 0.2)),
        "label_fraction": float(np.mean(ground.land == label)),
        "scene_index": index,
    }
    return out


def _commonest(land: np.ndarray) -> np.ndarray:
    """The class that most cells of a pixel have, the first of equals: uint8 [4 n, 4 n] to [n, n]."""
    n = land.shape[0] // FINE
    counts = [(land == use).reshape(n, FINE, n, FINE).sum((1, 3)) for use in range(len(CLASSES))]
    return np.argmax(counts, axis=0).astype(np.uint8)


class SceneSource(Source):
    """`count` generated scenes. See the module's text for the columns."""

    def __init__(
        self,
        count: int,
        *,
        seed: int = 0,
        size: int = 64,
        sensors: Sequence[str] = ("rgb",),
        targets: bool = False,
        name: str | None = None,
    ) -> None:
        """`targets`: with the land use of every pixel, beside the class of the scene. Raises `UserError` for a sensor, count, size or seed that cannot be."""
        for sensor in sensors:
            if sensor not in SENSORS:
                raise UserError(f"--sensors: no sensor {sensor!r}: {nearest(sensor, SENSORS)}")
        if not sensors:
            raise UserError(f"--sensors: give at least one of {', '.join(SENSORS)}")
        if not 1 <= count <= MOST:
            raise UserError(f"--scenes {count}: give 1 to {MOST:,}")
        if not 16 <= size <= 1024:
            raise UserError(f"--size {size}: give 16 to 1024 pixels")
        if not 0 <= seed < 1 << 63:
            raise UserError(f"--seed {seed}: give a number from 0 up to 2**63 - 1")
        self.count, self.seed, self.size = count, seed, size
        self.sensors = tuple(sensor for sensor in SENSORS if sensor in sensors)
        self.name = name or "generated-scenes"
        self.license: str | None = "CC0-1.0"
        self.citation: str | None = None
        every = {
            "rgb": ("image", ImageColumn((3, size, size), "uint8", RGB_BANDS, PIXEL_M, None, "true colour")),
            "s2": (
                "s2",
                ImageColumn((12, size, size), "uint16", S2_BANDS, PIXEL_M, 0, "reflectance", scale=1e-4),
            ),
            "s1": ("s1", ImageColumn((2, size, size), "int16", S1_BANDS, PIXEL_M, None, "dB", scale=0.01)),
            "naip": (
                "naip",
                ImageColumn((4, FINE * size, FINE * size), "uint8", NAIP_BANDS, PIXEL_M / FINE, None, "tone"),
            ),
            "naip_5m": (
                "naip_5m",
                ImageColumn((4, 2 * size, 2 * size), "uint8", NAIP_BANDS, PIXEL_M / 2, None, "tone"),
            ),
        }
        self.images = dict(every[sensor] for sensor in self.sensors)
        if targets:
            self.arrays = {"land": ArrayColumn((size, size), "uint8", "HW", "target")}
            self.targets = {
                "label": Target("classification", "label", CLASSES, missing=-1),
                "land": Target("segmentation", "land", CLASSES, missing=255),
            }
        self.columns = {
            "time_start": "int64",
            "lon": "float64",
            "lat": "float64",
            "crs_epsg": "int32",
            "gsd_m": "float32",
            "valid_fraction": "float32",
            "cloud_fraction": "float32",
            "label_fraction": "float32",
            "scene_index": "int64",
        }

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "scenes",
            "generator": GENERATOR_VERSION,
            "count": self.count,
            "seed": self.seed,
            "size": self.size,
            "sensors": list(self.sensors),
            **({"targets": True} if self.targets else {}),
        }

    def listing(self) -> Listing:
        ids = [f"scene-{self.seed}-{index:08d}".encode() for index in range(self.count)]
        labels = np.array([scene_label(self.seed, index) for index in range(self.count)], np.int32)
        places = [_when_and_where(scene_stream(self.seed, index, 0))[1:] for index in range(self.count)]
        return Listing(ids, labels, ids, [""] * self.count, CLASSES, places=np.array(places))

    def load(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        stored: dict[str, Stored] = {**self.images, **self.arrays}
        out: dict[str, np.ndarray] = {
            name: np.empty((len(rows), *column.shape), column.dtype) for name, column in stored.items()
        }
        out |= {name: np.empty(len(rows), dtype) for name, dtype in self.columns.items()}
        for place, row in enumerate(rows):
            scene = make_scene(self.seed, int(row), self.size, self.sensors)
            for name, values in out.items():
                values[place] = scene[name]
        return out
