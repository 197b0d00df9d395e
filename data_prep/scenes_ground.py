"""The ground of one generated scene: terrain, water on low ground, land use, roads, and the material of every 2.5 m.

Every sensor is rendered from this one ground, so all of them see the same place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.scenes_fields import PIXEL_M, Season, rotated, smooth_fields, upsample
from data_prep.scenes_landuse import (
    BARE,
    CROPLAND,
    FOREST,
    GRASSLAND,
    INDUSTRIAL,
    ORCHARD,
    PAINTERS,
    RESIDENTIAL,
    WATER,
    Site,
)
from data_prep.scenes_spectra import M

_NEIGHBOURS = {
    WATER: (FOREST, GRASSLAND, CROPLAND, RESIDENTIAL, BARE, INDUSTRIAL, ORCHARD),
    FOREST: (GRASSLAND, CROPLAND, BARE, ORCHARD),
    GRASSLAND: (FOREST, CROPLAND, ORCHARD, RESIDENTIAL, BARE),
    CROPLAND: (GRASSLAND, FOREST, ORCHARD, RESIDENTIAL),
    ORCHARD: (CROPLAND, GRASSLAND, FOREST, RESIDENTIAL),
    RESIDENTIAL: (GRASSLAND, FOREST, CROPLAND, INDUSTRIAL),
    INDUSTRIAL: (RESIDENTIAL, GRASSLAND, CROPLAND, BARE),
    BARE: (GRASSLAND, FOREST, CROPLAND, INDUSTRIAL),
}
_STRAIGHT = {CROPLAND, ORCHARD, RESIDENTIAL, INDUSTRIAL}
"""Uses that end at straight borders of parcels."""
_FIELDS = (3.9, 2.6, 2.6, 3.0, 1.9)
"""Spectral slopes of: terrain, two land-use fields, wetness, roughness."""


@dataclass
class Ground:
    """Fine grids [F, F] of one scene, F = 4 n, and the terrain [n, n].

    `material`: uint8, see `scenes_spectra`; `green`: state of the material, 0 … 1; `bright`: factor on reflectance;
    `land`: uint8, land use class; `height`: relative, about unit variance.
    """

    material: np.ndarray
    green: np.ndarray
    bright: np.ndarray
    land: np.ndarray
    height: np.ndarray


def make_ground(rng: np.random.Generator, label: int, n: int, season: Season) -> Ground:
    """A scene of n x n pixels of 10 m whose largest land use is class `label`.

    Two neighbouring uses take about 0.26 and 0.16 of it, water at most 0.12, roads a few hundredths; so the
    class named keeps the largest share. In a scene of class water, water takes at least 0.52.
    """
    fields = smooth_fields(rng, _FIELDS, n)
    height, zone_a, zone_b = fields[:3]
    wanted = 0.0
    if label == WATER:
        wanted = rng.uniform(0.52, 1.0)
    elif rng.random() < 0.4:
        wanted = rng.uniform(0.015, 0.12)
    if wanted and rng.random() < 0.6:
        height = _carve_valley(rng, height, wanted)
    first, second = rng.permutation(_NEIGHBOURS[label])[:2].tolist()
    base = first if label == WATER else label
    share_a, share_b = rng.uniform(0.0, 0.26), max(0.0, rng.uniform(-0.08, 0.16))
    if label == WATER:
        first = second
    fine = upsample(fields[3:])
    site = Site(rng, n, season, fine[0], fine[1])
    land = np.full(fine.shape[1:], base, np.uint8)
    for use, zone, share in ((first, zone_a, share_a), (second, zone_b, share_b)):
        if share:
            level = float(np.quantile(zone, 1 - share))
            if {base, use} & _STRAIGHT:
                inside = _straight_zone(zone, site, rng.uniform(40, 80), level)
            else:
                inside = upsample(zone) > level
            land[inside] = use
    shore = None
    if wanted:
        terrain = upsample(height)
        surface = np.float32(np.quantile(height, wanted))
        land[terrain < surface] = WATER
        shore = (terrain >= surface) & (terrain < surface + np.float32(rng.uniform(0.02, 0.09)))
    material = np.zeros(land.shape, np.uint8)
    green, bright = np.zeros(land.shape, np.float32), np.ones(land.shape, np.float32)
    for use in np.flatnonzero(np.bincount(land.ravel(), minlength=8)).tolist():
        layer = PAINTERS[use](site)
        mask = land == use
        np.copyto(material, layer[0], where=mask)
        np.copyto(green, layer[1], where=mask)
        np.copyto(bright, layer[2], where=mask)
    if shore is not None:
        material[shore] = M["sand"] if rng.random() < 0.3 else M["shore"]
        np.copyto(green, np.float32(season.pulse(170, 80, 0.2, 0.8)), where=shore)
        np.copyto(bright, 1 + 0.1 * site.clump, where=shore)
    for _ in range(int(rng.choice(3, p=(0.45, 0.4, 0.15)))):
        _pave_road(rng, n, site, material, bright)
    np.clip(bright, 0.3, 1.6, out=bright)
    return Ground(material, green, bright, land, height)


def _straight_zone(zone: np.ndarray, site: Site, cell: float, level: float) -> np.ndarray:
    """Where `zone` [n, n] exceeds `level`, in whole squares of `cell` metres along the parcels: bool [F, F]."""
    n = zone.shape[0]
    # Drawn at 5 m, which is fine enough for borders and four times quicker.
    u, v = site.u[::2, ::2], site.v[::2, ::2]
    side = np.float32(cell)
    u, v = (np.floor(u / side) + 0.5) * side, (np.floor(v / side) + 0.5) * side
    c, s = np.float32(np.cos(site.angle) / PIXEL_M), np.float32(np.sin(site.angle) / PIXEL_M)
    column = np.clip(c * u - s * v + n / 2, 0, n - 1).astype(np.intp)
    row = np.clip(s * u + c * v + n / 2, 0, n - 1).astype(np.intp)
    inside = (zone > level).ravel().take(row * n + column)
    return inside.repeat(2, 0).repeat(2, 1)


def _carve_valley(rng: np.random.Generator, height: np.ndarray, wanted: float) -> np.ndarray:
    """Lower the terrain along a meandering line, so that its lowest ground is a river."""
    n = height.shape[0]
    axis = (np.arange(n, dtype=np.float32) + 0.5 - n / 2) / n
    turn = rng.uniform(0, np.pi)
    c, s = np.cos(turn), np.sin(turn)
    along = c * axis[None, :] + s * axis[:, None]
    across = c * axis[:, None] - s * axis[None, :]
    line = rng.uniform(-0.2, 0.2) + sum(
        rng.uniform(0.02, 0.12) / k * np.sin(along * (2 * np.pi * k * rng.uniform(0.7, 1.4)) + rng.uniform(0, 6.3))
        for k in (1, 2, 3)
    )
    width = max(0.045, 0.6 * wanted)
    carved = height * 0.5 - rng.uniform(2.5, 4.0) * np.exp(-(((across - line) / width) ** 2))
    return ((carved - carved.mean()) / carved.std()).astype(np.float32)


def _pave_road(rng: np.random.Generator, n: int, site: Site, material: np.ndarray, bright: np.ndarray) -> None:
    """One curved road through the scene, over water as a bridge; wide ones have a central strip."""
    u, v = rotated(n, rng.uniform(0, np.pi))
    reach = n * 5.0
    line = np.float32(rng.uniform(-0.6, 0.6) * reach) + np.float32(rng.uniform(0, 0.2) * reach) * np.sin(
        v * np.float32(rng.uniform(0.5, 1.5) * np.pi / reach) + np.float32(rng.uniform(0, 6.3))
    )
    away = np.abs(u - line)
    half = rng.uniform(3.5, 12)
    road = away < half
    material[road] = M["asphalt"]
    np.copyto(bright, 1.05 + 0.05 * site.grain, where=road)
    if half > 8:
        strip = away < 1.6
        material[strip] = M["grass"]
