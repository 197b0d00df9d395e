"""Tile arithmetic against closed forms, and regions against areas known beforehand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyproj
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.tiles.grid import (
    HALF_WORLD_M,
    LIMIT_LAT,
    Tile,
    ancestor,
    children,
    ground_spacing,
    lonlat_bounds,
    lonlat_to_mercator,
    mercator_to_lonlat,
    tile_at,
    tile_bounds,
    tile_centre,
    tile_transform,
    tiles_of_box,
)
from data_prep.tiles.regions import any_holds, read_regions
from frontier.errors import UserError

LEVELS = st.integers(0, 22)
LONS = st.floats(-180, 180, exclude_max=True)
LATS = st.floats(-85.05, 85.05)


def usual_tile(lon: float, lat: float, level: int) -> tuple[float, float]:
    """Column and row, not rounded, by the formula that slippy maps document."""
    n = 2.0**level
    turned = math.radians(lat)
    return (lon + 180) / 360 * n, (1 - math.log(math.tan(turned) + 1 / math.cos(turned)) / math.pi) / 2 * n


@settings(deadline=None, max_examples=50)
@given(LONS, LATS, LEVELS)
def test_tile_at_is_the_usual_formula(lon: float, lat: float, level: int) -> None:
    tile = tile_at(lon, lat, level)
    x, y = usual_tile(lon, lat, level)
    # Points on an edge may fall to either side of it by rounding.
    assert tile.x <= x + 1e-6 and x - 1e-6 <= tile.x + 1
    assert tile.y <= y + 1e-6 and y - 1e-6 <= tile.y + 1


@settings(deadline=None, max_examples=50)
@given(LEVELS, st.data())
def test_a_tile_holds_its_centre_and_its_children_fill_it(level: int, data: st.DataObject) -> None:
    place = st.integers(0, 2**level - 1)
    tile = Tile(level, data.draw(place), data.draw(place))
    assert tile_at(*tile_centre(tile), level) == tile
    west, south, east, north = tile_bounds(tile)
    bounds = np.array([tile_bounds(child) for child in children(tile)])
    np.testing.assert_allclose([*bounds[:, :2].min(0), *bounds[:, 2:].max(0)], [west, south, east, north], atol=1e-6)
    assert np.ptp(np.prod(bounds[:, 2:] - bounds[:, :2], 1)) < 1
    top_left, top_right, bottom_left, bottom_right = bounds
    assert top_left[0] == bottom_left[0] < top_right[0] == bottom_right[0]
    assert top_left[3] == top_right[3] > bottom_left[3] == bottom_right[3]
    assert {ancestor(child, 1) for child in children(tile)} == {tile}


def test_bounds_agree_with_proj() -> None:
    to_lonlat = pyproj.Transformer.from_crs("EPSG:3857", "EPSG:4326", always_xy=True)
    for tile in (Tile(15, 7357, 11521), Tile(17, 0, 5), Tile(3, 7, 7), Tile(0, 0, 0)):
        west, south, east, north = tile_bounds(tile)
        found = [*to_lonlat.transform(west, south), *to_lonlat.transform(east - 1e-6, north)]
        np.testing.assert_allclose(lonlat_bounds(tile), found, atol=1e-9)


def test_known_tiles() -> None:
    # Greenwich and the equator meet in the corner of four tiles.
    assert tile_at(0, 0, 1) == Tile(1, 1, 1)
    assert tile_at(-1e-9, 1e-9, 1) == Tile(1, 0, 0)
    assert tile_at(-122.4194, 37.7749, 12) == Tile(12, 655, 1583)  # San Francisco, by the usual formula
    assert lonlat_bounds(Tile(0, 0, 0)) == pytest.approx((-180, -85.0511287798, 180, 85.0511287798))


def test_the_poles_and_the_antimeridian() -> None:
    assert tile_at(10, 90, 5).y == 0
    assert tile_at(10, -90, 5).y == 31
    assert tile_at(180, 0, 4) == tile_at(-180, 0, 4) == Tile(4, 0, 8)
    assert tile_at(540.1, 10, 8) == tile_at(-179.9, 10, 8)
    assert lonlat_to_mercator(0, 90)[1] == pytest.approx(HALF_WORLD_M)
    assert math.tan(math.radians(LIMIT_LAT)) == pytest.approx(math.sinh(math.pi))
    assert len(tiles_of_box(0, 86, 10, 90, 6)) == 0
    across = tiles_of_box(179.9, 10, 180.1, 10.1, 8)
    assert set(across[:, 0]) == {255, 0}
    np.testing.assert_array_equal(across, tiles_of_box(179.9, 10, -179.9, 10.1, 8))
    assert sorted(map(tuple, tiles_of_box(-180, -90, 180, 90, 2).tolist())) == [
        (x, y) for x in range(4) for y in range(4)
    ]


@settings(deadline=None, max_examples=50)
@given(st.floats(-180, 179), st.floats(-84, 83), st.floats(0.001, 40), st.floats(0.001, 1), st.integers(0, 6))
def test_tiles_of_box_are_those_that_overlap(west: float, south: float, wide: float, high: float, level: int) -> None:
    north, n = south + high, 2**level
    found = np.zeros((n, n), int)
    np.add.at(found, tuple(tiles_of_box(west, south, west + wide, north, level).T), 1)
    left = np.arange(n) / n * 360 - 180
    edges = np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * np.arange(n + 1) / n))))
    across = [np.minimum(left + 360 / n, west + wide - t) - np.maximum(left, west - t) for t in (0, 360)]
    depth = np.minimum(np.maximum(*across)[:, None], (np.minimum(edges[:-1], north) - np.maximum(edges[1:], south)))
    sure = np.abs(depth) > 1e-9
    np.testing.assert_array_equal(found[sure], (depth > 0)[sure])


def test_transform_and_spacing() -> None:
    tile = Tile(15, 7357, 11521)
    a, b, c, d, e, f = tile_transform(tile, 256)
    west, south, east, north = tile_bounds(tile)
    assert (c, f) == (west, north) and b == d == 0
    assert (c + 256 * a, f + 256 * e) == pytest.approx((east, south))
    assert ground_spacing(15, 256, 0) == pytest.approx(4.777, abs=1e-3)
    assert ground_spacing(15, 256, 40) == pytest.approx(3.66, abs=1e-2)
    assert ground_spacing(15, 512, 40) == pytest.approx(ground_spacing(16, 256, 40))
    # On the ellipsoid the true length is within the stated 0.7 %.
    lon, lat = tile_centre(tile)
    x, y = lonlat_to_mercator(lon, lat)
    for dx, dy in ((a, 0), (0, a)):
        other = mercator_to_lonlat(x + dx, y + dy)
        length = pyproj.Geod(ellps="WGS84").inv(lon, lat, *other)[2]
        assert length == pytest.approx(ground_spacing(15, 256, lat), rel=0.007)


def regions_of(folder: Path, content: object) -> list:
    path = folder / "regions.json"
    path.write_text(json.dumps(content))
    return read_regions(path)


def test_regions_of_every_form(tmp_path: Path) -> None:
    ring = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
    hole = [[4, 4], [6, 4], [6, 6], [4, 6], [4, 4]]
    polygon = {"type": "Polygon", "coordinates": [ring, hole]}
    feature = {"type": "Feature", "properties": {}, "geometry": polygon}
    lon, lat = np.array([5.0, 1.0, 11.0, 361.0, -1.0]), np.array([5.0, 1.0, 5.0, 9.0, 5.0])
    for content in (
        polygon,
        feature,
        {"type": "FeatureCollection", "features": [feature]},
        {"type": "MultiPolygon", "coordinates": [[ring, hole]]},
        {"type": "GeometryCollection", "geometries": [polygon]},
    ):
        assert any_holds(regions_of(tmp_path, content), lon, lat).tolist() == [False, True, False, True, False]
    boxes = regions_of(tmp_path, [[0, 0, 10, 10], [20, -5, 30, 5]])
    assert any_holds(boxes, np.array([5.0, 25, 15]), np.array([5.0, 0, 0])).tolist() == [True, True, False]
    assert len(regions_of(tmp_path, [0, 0, 10, 10])) == 1


def test_regions_across_the_antimeridian(tmp_path: Path) -> None:
    lon, lat = np.array([179.5, -179.5, 0.0, 178.0, -178.0]), np.zeros(5)
    inside = [True, True, False, False, False]
    ring = [[179, -1], [-179, -1], [-179, 1], [179, 1], [179, -1]]
    assert any_holds(regions_of(tmp_path, [[179, -1, -179, 1]]), lon, lat).tolist() == inside
    assert any_holds(regions_of(tmp_path, [[179, -1, 181, 1]]), lon, lat).tolist() == inside
    assert any_holds(regions_of(tmp_path, {"type": "Polygon", "coordinates": [ring]}), lon, lat).tolist() == inside
    world = [[-180, -90], [180, -90], [180, 90], [-180, 90], [-180, -90]]
    assert any_holds(regions_of(tmp_path, {"type": "Polygon", "coordinates": [world]}), lon, lat).all()


@settings(deadline=None, max_examples=50)
@given(st.integers(3, 12), st.floats(-80, 80), st.floats(-179, 179))
def test_a_region_has_the_area_of_its_polygon(corners: int, lat: float, lon: float) -> None:
    from data_prep.tiles.regions import Region

    turn = np.arange(corners) * 2 * np.pi / corners
    ring = np.stack([lon + np.cos(turn), lat + np.sin(turn)], -1)
    x, y = np.meshgrid(np.linspace(-1.1, 1.1, 120) + lon, np.linspace(-1.1, 1.1, 120) + lat)
    share = Region((ring,)).holds(x, y).mean() * 2.2**2
    assert share == pytest.approx(corners / 2 * np.sin(2 * np.pi / corners), rel=0.05)


@pytest.mark.parametrize(
    "content",
    [
        '{"type": "Point", "coordinates": [1, 2]}',
        "[[1, 2, 3]]",
        "[[3, 0, 4, 95]]",
        "[]",
        "7",
        "{",
        '{"type": "Polygon"}',
    ],
)
def test_a_wrong_regions_file_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "regions.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"regions\.json.*give GeoJSON") as caught:
        read_regions(path)
    assert "\n" not in str(caught.value)
