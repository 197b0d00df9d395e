"""What each land use looks like at 2.5 m: a painter a class, giving material, greenness and brightness grids."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data_prep.scenes_fields import FINE, Season, parcels, rotated
from data_prep.scenes_spectra import M

CLASSES = ("water", "forest", "grassland", "cropland", "orchard", "residential", "industrial", "bare")
WATER, FOREST, GRASSLAND, CROPLAND, ORCHARD, RESIDENTIAL, INDUSTRIAL, BARE = range(8)

Layer = tuple[np.ndarray, np.ndarray, np.ndarray]
"""material uint8, greenness 0 … 1 and brightness factor float32, each [F, F]."""


class Site:
    """What the painters share: the random stream, the season, and fields of the scene.

    `grain`: white noise at 2.5 m; `clump`: noise averaged over 5 m, about the size of a tree crown; `wet` and
    `rough`: smooth and fractal fields [F, F]. All have unit variance. `u`, `v`: metres from the centre, turned by
    `angle`, the direction of the scene's parcels and streets.
    """

    def __init__(self, rng: np.random.Generator, n: int, season: Season, wet: np.ndarray, rough: np.ndarray) -> None:
        """`n` is the side in pixels of 10 m."""
        self.rng, self.n, self.season, self.wet, self.rough = rng, n, season, wet, rough
        self.grain = rng.standard_normal((FINE * n, FINE * n), np.float32)
        clump = self.grain + np.roll(self.grain, 1, 0)
        clump += np.roll(clump, 1, 1)
        self.clump = clump * np.float32(0.5)
        self.angle = float(rng.uniform(0, np.pi))
        self.u, self.v = rotated(n, self.angle)

    def random(self, low: float, high: float, size: int) -> np.ndarray:
        """`size` uniform float32 values."""
        return rng_uniform(self.rng, low, high, size)


def rng_uniform(rng: np.random.Generator, low: float, high: float, size: int) -> np.ndarray:
    """Uniform float32 in [low, high)."""
    return low + (high - low) * rng.random(size, np.float32)


def water(site: Site) -> Layer:
    """Open water; its state is turbidity, smooth and different in every scene."""
    green = np.clip(site.rng.uniform(0, 0.6) + 0.18 * site.wet, 0, 1)
    bright = 1 + 0.05 * site.rng.uniform(0.5, 2) * site.grain
    return np.full(green.shape, M["water"], np.uint8), green, bright


def forest(site: Site) -> Layer:
    """Broadleaf and conifer stands, crowns with lit and shaded sides, gaps with undergrowth."""
    season, rng = site.season, site.rng
    conifer = site.rough > np.float32(rng.normal(0.3, 1.0))
    leafy = season.pulse(190, 75, 0.1, 0.95)
    needles = season.pulse(190, 90, 0.55, 0.9)
    green = np.where(conifer, np.float32(needles), np.float32(leafy)) + 0.05 * site.wet
    bright = 1 + 0.17 * site.clump + 0.07 * site.rough
    material = np.where(conifer, np.uint8(M["conifer"]), np.uint8(M["broadleaf"]))
    gaps = site.clump + 0.5 * site.rough > np.float32(rng.uniform(1.8, 2.6))
    material[gaps] = M["grass"]
    return material, np.clip(green, 0, 1), bright


def grassland(site: Site) -> Layer:
    """Large pastures with faint mowing differences, hedges on some borders, trees standing alone."""
    season, rng = site.season, site.rng
    u, v = site.u, site.v
    number, edge, cut = parcels(rng, u, v, rng.uniform(120, 260), rng.uniform(150, 320))
    lush = season.pulse(150, 85, 0.15, 0.85)
    green = lush + site.random(-0.14, 0.14, 4096).take(number) + 0.09 * site.wet + 0.04 * site.rough
    bright = 1 + site.random(-0.06, 0.06, 4096).take(number) + 0.035 * site.grain
    material = np.full(green.shape, M["grass"], np.uint8)
    hedged = site.random(0, 1, 4096).take(number) < rng.uniform(0.1, 0.7)
    hedge = (np.minimum(edge, cut) < 4) & hedged & (site.clump > -0.6)
    tree = (site.clump > rng.uniform(1.9, 2.5)) & (site.rough > 0)
    woody = hedge | tree
    material[woody] = M["broadleaf"]
    np.copyto(green, np.float32(season.pulse(190, 75, 0.15, 0.95)), where=woody)
    np.copyto(bright, 0.85 + 0.15 * site.clump, where=woody)
    return material, np.clip(green, 0, 1), bright


def cropland(site: Site) -> Layer:
    """Parcels of cereal, maize, rape, fallow and tilled soil, each at its own stage; rows, tramlines and margins."""
    season, rng = site.season, site.rng
    u, v = site.u, site.v
    across = rng.uniform(50, 160)
    number, edge, cut = parcels(rng, u, v, across, across * rng.uniform(1.2, 3.0))
    count = 4096
    crop = rng.choice(5, count, p=rng.dirichlet((3.0, 2.5, 1.0, 1.0, 0.7)))
    shift = rng.normal(0, 12, count)
    day = (season.day + shift) % 365
    ripe, blooming = (day > 185) & (day < 265), (day > 105) & (day < 135)
    stages = np.stack(
        [
            season.pulses(shift, 135, 48, 0.08, 0.95),
            season.pulses(shift, 215, 42, 0.0, 0.95),
            season.pulses(shift, 120, 50, 0.15, 0.95),
            season.pulses(shift, 150, 90, 0.2, 0.7),
            np.zeros(count),
        ]
    ).astype(np.float32)
    stage = stages[crop, np.arange(count)]
    kind = np.array([M[name] for name in ("cereal", "maize", "rape", "grass", "soil")], np.uint8)[crop]
    kind[ripe & ((crop == 0) | (crop == 2))] = M["stubble"]
    kind[blooming & (crop == 2)] = M["rape in flower"]
    tone = site.random(0.86, 1.14, count)
    vigour = site.random(-0.12, 0.08, count)
    along_u = site.random(0, 1, count) < 0.3
    spacing = rng.uniform(10, 24)
    rows_at = np.where(along_u.take(number), v, u)
    tram = np.cos(rows_at * np.float32(2 * np.pi / spacing))
    green = stage.take(number) + vigour.take(number)
    green = green * (1 + 0.10 * site.wet * 0.7) - 0.05 * (tram > 0.9)
    bright = tone.take(number) * (1 + 0.035 * tram + 0.03 * site.grain - 0.05 * site.wet)
    material = kind.take(number)
    margin = np.minimum(edge, cut) < rng.uniform(1.6, 3.2)
    material[margin] = M["grass"]
    np.copyto(green, np.float32(season.pulse(150, 85, 0.25, 0.8)), where=margin)
    return material, np.clip(green, 0, 1), bright


def orchard(site: Site) -> Layer:
    """Small parcels of trees or vines in lines, over grass or bare soil; the spacing differs between parcels."""
    season, rng = site.season, site.rng
    u, v = site.u, site.v
    number, edge, cut = parcels(rng, u, v, rng.uniform(45, 100), rng.uniform(70, 180))
    spacing = site.random(6.5, 11, 4096).take(number)
    vines = (site.random(0, 1, 4096) < rng.uniform(0.1, 0.8)).take(number)
    cover = site.random(-0.35, 0.45, 4096).take(number)
    turn = np.float32(2 * np.pi)
    lines = np.cos(u * (turn / spacing))
    trees = lines + np.where(vines, np.float32(0.6), np.cos(v * (turn / spacing))) + 0.3 * site.clump
    crown = trees > 0.7 - cover
    grassy = (site.random(0, 1, 4096) < rng.uniform(0.2, 0.9)).take(number)
    leafy, lush = season.pulse(195, 70, 0.08, 0.9), season.pulse(150, 85, 0.2, 0.8)
    material = np.where(crown, np.uint8(M["broadleaf"]), np.where(grassy, np.uint8(M["grass"]), np.uint8(M["soil"])))
    green = np.where(crown, np.float32(leafy), np.float32(lush)) + site.random(-0.1, 0.1, 4096).take(number)
    bright = np.where(crown, np.float32(0.92), np.float32(1.0)) + 0.08 * site.clump
    # A tree's shade falls beside it.
    shade = np.roll(crown, 1, 0) & ~crown
    np.copyto(bright, bright * np.float32(0.75), where=shade)
    track = np.minimum(edge, cut) < 2.2
    material[track] = M["soil"]
    np.copyto(bright, np.float32(1.05), where=track)
    return material, np.clip(green, 0, 1), bright


def _shaded(roof: np.ndarray, bright: np.ndarray, cells: int) -> None:
    """Shadow of buildings towards the north-west, `cells` long."""
    for step in range(1, cells + 1):
        cast = np.roll(roof, (-step, -step), (0, 1)) & ~roof
        np.copyto(bright, np.float32(0.42), where=cast)


def residential(site: Site) -> Layer:
    """Streets in a turned grid; lots with a house, a garden and trees; roofs of tile or slate."""
    season, rng = site.season, site.rng
    u, v = site.u, site.v
    bend = np.float32(rng.uniform(0, 9)) * site.wet
    u, v = u + bend, v + bend
    block_u, block_v = rng.uniform(55, 85), rng.uniform(110, 220)
    du = u - np.floor(u * np.float32(1 / block_u)) * np.float32(block_u)
    dv = v - np.floor(v * np.float32(1 / block_v)) * np.float32(block_v)
    lot = np.float32(rng.uniform(15, 26))
    row, column = np.floor(u * np.float32(2 / block_u)), np.floor(v * (1 / lot))
    key = ((row * 97 + column * 61).astype(np.intp)) & 4095
    street = (du < 7.5) | (dv < 7.5)
    # A house stands back from the street on both sides of the block.
    from_street = np.minimum(du - 7.5, np.float32(block_u) - du)
    in_lot = v - column * lot
    back = site.random(3, 9, 4096).take(key)
    wide = site.random(7, 0.75 * float(lot), 4096).take(key)
    deep = site.random(8, 14, 4096).take(key)
    built = (site.random(0, 1, 4096) < rng.uniform(0.72, 0.97)).take(key)
    side = (lot - wide) * np.float32(0.5)
    house = built & ~street & (from_street > back) & (from_street < back + deep)
    house &= (in_lot > side) & (in_lot < side + wide)
    tiled = (site.random(0, 1, 4096) < rng.uniform(0.15, 0.95)).take(key)
    treed = rng.uniform(0.2, 1.4)
    tree = (site.clump > treed) & ~house & ~street
    drive = ~house & ~street & (from_street < back) & (in_lot < 5) & built
    material = np.full(u.shape, M["grass"], np.uint8)
    material[tree] = M["broadleaf"]
    material[drive] = M["concrete"]
    material[street] = M["asphalt"]
    np.copyto(material, np.where(tiled, np.uint8(M["tile roof"]), np.uint8(M["slate roof"])), where=house)
    green = np.full(u.shape, season.pulse(150, 90, 0.3, 0.75), np.float32) + 0.1 * site.rough
    np.copyto(green, np.float32(season.pulse(190, 75, 0.15, 0.95)), where=tree)
    bright = 1 + 0.06 * site.grain
    bright += np.where(house, site.random(-0.22, 0.22, 4096).take(key), np.float32(0))
    _shaded(house, bright, 2)
    return material, np.clip(green, 0, 1), bright


def industrial(site: Site) -> Layer:
    """Large halls in plots, parking with cars, yards of concrete, strips of grass."""
    season, rng = site.season, site.rng
    u, v = site.u, site.v
    number, edge, cut = parcels(rng, u, v, rng.uniform(80, 140), rng.uniform(90, 190))
    nearest = np.minimum(edge, cut)
    road = nearest < 5
    verge = (nearest < 9) & ~road
    setback = site.random(11, 30, 4096).take(number)
    has_hall = (site.random(0, 1, 4096) < rng.uniform(0.6, 0.95)).take(number)
    hall = has_hall & (edge > setback) & (cut > setback * np.float32(0.8))
    ground = rng.choice(
        np.array([M["asphalt"], M["concrete"], M["soil"], M["grass"]], np.uint8),
        4096,
        p=(0.5, 0.33, 0.09, 0.08),
    )[number]
    roofs = rng.choice(
        np.array([M["metal roof"], M["concrete"], M["slate roof"], M["tile roof"]], np.uint8),
        4096,
        p=rng.dirichlet((4, 3, 3, 0.7)),
    )[number]
    material = ground
    material[verge] = M["grass"]
    material[road] = M["asphalt"]
    cars = (site.grain > 1.1) & (material == M["asphalt"]) & ~road & (np.cos(u * np.float32(0.62)) > 0)
    material[cars] = M["metal roof"]
    np.copyto(material, roofs, where=hall)
    green = np.full(u.shape, season.pulse(150, 90, 0.2, 0.7), np.float32) + 0.08 * site.rough
    bright = 1 + 0.05 * site.grain + 0.08 * site.rough
    ribs = 0.05 * np.sign(np.cos(v * np.float32(2 * np.pi / 16)))
    bright += np.where(hall, site.random(-0.3, 0.2, 4096).take(number) + ribs, np.float32(0))
    _shaded(hall, bright, 3)
    return material, np.clip(green, 0, 1), bright


def bare(site: Site) -> Layer:
    """Sand and rock with gullies and layers, shrubs where it is wetter."""
    season, rng = site.season, site.rng
    # Grain in the threshold lets sand thin out over rock instead of ending at a line.
    mixing = np.float32(rng.uniform(0.5, 1.2)) * site.grain
    sandy = 0.7 * site.rough + 0.7 * site.wet + mixing > np.float32(rng.normal(0, 1.1))
    material = np.where(sandy, np.uint8(M["sand"]), np.uint8(M["rock"]))
    gully = np.exp(-((site.rough * 6) ** 2))
    ripple = np.cos((site.wet * 9 + site.rough * 2) * np.float32(rng.uniform(0.5, 2)))
    tone = rng.uniform(0.72, 1.1)
    bright = tone * (1 - 0.16 * gully + 0.05 * ripple + 0.04 * site.grain + 0.05 * site.rough)
    shrub = site.clump + 0.5 * site.wet > np.float32(rng.uniform(1.6, 2.8))
    material[shrub] = M["grass"]
    green = np.where(shrub, np.float32(season.pulse(150, 90, 0.2, 0.6)), np.float32(rng.uniform(0, 0.15)))
    return material, green, bright


PAINTERS: tuple[Callable[[Site], Layer], ...] = (
    water,
    forest,
    grassland,
    cropland,
    orchard,
    residential,
    industrial,
    bare,
)
"""In the order of `CLASSES`."""
