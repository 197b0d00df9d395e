"""One tile's pixels against an independent warp: coordinates by pyproj, interpolation by scipy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyproj
import pytest
from rasterio.control import GroundControlPoint
from rasterio.transform import Affine
from scipy.ndimage import map_coordinates

from data_prep.tiles.choose import touched
from data_prep.tiles.grid import Tile, lonlat_bounds, tile_at, tile_transform
from data_prep.tiles.scene import native_spacing, outline, read_header
from data_prep.tiles.sensors import stored, to_power, true_colour
from data_prep.tiles.warp import Layer, mosaic, view, warp_layer
from frontier.errors import UserError
from tests.conftest import SHARED_DATA
from tests.data_prep.tiles.world import PLACE, grid_at, write_tif

TILE = tile_at(*PLACE, 15)
GRIDS = {"EPSG:32614": 10.0, "EPSG:4326": 1e-4, "EPSG:3857": 12.0, "EPSG:26914": 10.0, "EPSG:32610": 10.0}
"""CRS and pixel; the last is far outside its zone, so rows of the tile run askew through it."""


def same(values: np.ndarray) -> np.ndarray:
    return values


def layer_of(path: Path, bands: tuple[int, ...] = (1,), nodata: float | None = None) -> Layer:
    return Layer(read_header(path), bands, tuple(range(len(bands))), nodata)


def source_pixels(tile: Tile, size: int, crs: str, transform: Affine, parts: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Source columns and rows (0 at the outer edge) of points in tile pixels, `parts` x `parts` in each."""
    a, _, c, _, e, f = tile_transform(tile, size)
    steps = (np.arange(size * parts) + 0.5) / parts
    x, y = np.meshgrid(a * steps + c, e * steps + f)
    x, y = pyproj.Transformer.from_crs("EPSG:3857", crs, always_xy=True).transform(x, y)
    return ~transform @ (x, y)


def smooth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return (np.sin(x / 3 + rng.uniform(0, 6)) * np.cos(y / 4) + x / 50 - y / 70).astype(np.float32)


@pytest.mark.parametrize(("crs", "step"), GRIDS.items())
def test_interpolation_is_that_of_scipy(tmp_path: Path, crs: str, step: float) -> None:
    rng = np.random.default_rng(1)
    transform = grid_at(crs, *PLACE, step, 300, 340)
    values = rng.normal(0, 1, (1, 300, 340)).astype(np.float32)
    path = write_tif(tmp_path / "a.tif", values, transform, crs)
    warped = warp_layer(layer_of(path), TILE, 256, same, "bilinear")
    assert warped is not None
    found, valid = warped
    assert valid.all()
    column, row = source_pixels(TILE, 256, crs, transform)
    expected = map_coordinates(values[0].astype(np.float64), [row - 0.5, column - 0.5], order=1)
    # White noise, so that 1/100 of a pixel would show as about 0.01.
    assert np.abs(found[0] - expected).max() < 0.02


def test_cubic_is_the_kernel_of_keys(tmp_path: Path) -> None:
    crs, rng = "EPSG:32614", np.random.default_rng(2)
    transform = grid_at(crs, *PLACE, 10, 220, 220)
    values = rng.normal(0, 1, (1, 220, 220)).astype(np.float32)
    path = write_tif(tmp_path / "a.tif", values, transform, crs)
    found, _ = warp_layer(layer_of(path), TILE, 64, same, "cubic") or pytest.fail("outside")
    assert view(read_header(path), TILE, 64).ratio > 1, "averaged, whatever is asked for what is interpolated"
    found, _ = warp_layer(layer_of(path), TILE, 256, same, "cubic") or pytest.fail("outside")
    column, row = source_pixels(TILE, 256, crs, transform)

    def weights(t: np.ndarray) -> list[np.ndarray]:
        # Keys (1981), a = -1/2, at distances 1 + t, t, 1 - t, 2 - t.
        near = [1.5 * d**3 - 2.5 * d**2 + 1 for d in (t, 1 - t)]
        far = [-0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 for d in (1 + t, 2 - t)]
        return [far[0], near[0], near[1], far[1]]

    left, top = np.floor(column - 0.5).astype(int), np.floor(row - 0.5).astype(int)
    across, down = weights(column - 0.5 - left), weights(row - 0.5 - top)
    expected = sum(
        down[j] * across[k] * values[0, top + j - 1, left + k - 1].astype(np.float64)
        for j in range(4)
        for k in range(4)
    )
    assert np.abs(found[0] - expected).max() < 0.03


@pytest.mark.parametrize(
    ("crs", "step", "angle"), [("EPSG:32614", 0.6, 0), ("EPSG:4326", 8e-6, 0), ("EPSG:32614", 1, 20)]
)
def test_average_is_the_mean_over_the_pixels_area(tmp_path: Path, crs: str, step: float, angle: float) -> None:
    size = 20
    n = 1700 if step == 0.6 else 1600
    transform = grid_at(crs, *PLACE, step, n, n)
    if angle:
        middle = transform @ (n / 2, n / 2)
        transform = Affine.rotation(angle, middle) @ transform
    values = smooth(np.random.default_rng(3), n, n)[None]
    path = write_tif(tmp_path / "a.tif", values, transform, crs)
    found, valid = warp_layer(layer_of(path), TILE, size, same, "bilinear") or pytest.fail("outside")
    parts = 30
    column, row = source_pixels(TILE, size, crs, transform, parts)
    inside = (column >= 0) & (row >= 0) & (column < n) & (row < n)
    whole = inside.reshape(size, parts, size, parts).all(axis=(1, 3))
    nearest = values[0, np.clip(row, 0, n - 1).astype(int), np.clip(column, 0, n - 1).astype(int)].astype(np.float64)
    expected = nearest.reshape(size, parts, size, parts).mean(axis=(1, 3))
    assert whole.sum() > 200
    assert valid[whole].all()
    # A rotated pixel is averaged over its bounding box, as GDAL does.
    np.testing.assert_allclose(found[0][whole], expected[whole], atol=0.02 if not angle else 0.2)


def test_power_is_averaged_not_decibels() -> None:
    power = to_power(np.array([-30.0, 0.0], np.float32), "db", 1)
    assert 10 * np.log10(power.mean()) == pytest.approx(-3.006, abs=0.01)
    np.testing.assert_allclose(to_power(np.array([300.0]), "amplitude", 300), [1])
    assert np.isnan(to_power(np.array([0.0, -1]), "amplitude", 1)).all()
    assert np.isnan(to_power(np.array([0.0]), "linear", 1)).all()


def test_missing_pixels_do_not_grow_or_leak(tmp_path: Path) -> None:
    crs = "EPSG:3857"
    west, _, _, north = tile_transform(TILE, 256)[2], 0, 0, tile_transform(TILE, 256)[5]
    step = tile_transform(TILE, 256)[0] * 2
    values = np.full((2, 128, 128), 5.0, np.float32)
    values[:, 40:60, 30:70] = -9999
    values[0, 80, 80] = -9999  # one of two bands: measured all the same
    values[1, 100, 100] = np.nan
    path = write_tif(tmp_path / "a.tif", values, Affine(step, 0, west, 0, -step, north), crs, nodata=-9999)
    for size, factor in ((256, 2), (128, 1), (64, 0.5)):
        found, valid = warp_layer(layer_of(path, (1, 2), -9999), TILE, size, same, "bilinear") or pytest.fail("outside")
        gap = np.zeros((size, size), bool)
        gap[int(40 * factor) : int(60 * factor), int(30 * factor) : int(70 * factor)] = True
        if size >= 128:
            gap[int(100 * factor) : int(101 * factor), int(100 * factor) : int(101 * factor)] = True
        np.testing.assert_array_equal(valid, ~gap)
        assert (found[1][valid] == 5).all()


def test_the_edge_of_a_scene_is_where_its_pixels_end(tmp_path: Path) -> None:
    transform = tile_transform(TILE, 256)
    left = Affine(*transform) @ Affine.translation(100, -30) @ Affine.scale(4)
    path = write_tif(tmp_path / "a.tif", np.ones((1, 100, 100), np.uint8), left, "EPSG:3857")
    _, valid = warp_layer(layer_of(path), TILE, 256, same, "cubic") or pytest.fail("outside")
    assert valid[:, 100:].all() and not valid[:, :100].any()
    outside = Tile(TILE.z, TILE.x + 3, TILE.y)
    assert warp_layer(layer_of(path), outside, 256, same, "cubic") is None


def test_a_mosaic_takes_the_first_valid_pixel_with_all_its_bands(tmp_path: Path) -> None:
    transform = Affine(*tile_transform(TILE, 64))
    scenes = []
    for number in range(3):
        values = np.stack([np.full((64, 64), 10 * number + band + 1, np.uint8) for band in range(2)])
        values[:, :, : 20 * (2 - number)] = 0
        scenes.append((layer_of(write_tif(tmp_path / f"{number}.tif", values, transform, "EPSG:3857"), (1, 2), 0),))
    found = mosaic(scenes, [same] * 3, 2, TILE, 64, "bilinear")
    assert found.valid.all()
    assert (found.owner[0, :20] == 2).all() and (found.owner[0, 20:40] == 1).all() and (found.owner[0, 40:] == 0).all()
    np.testing.assert_array_equal(found.values[1], 10 * found.owner + 2)
    assert found.main == 0
    assert mosaic([], [], 2, TILE, 64, "bilinear").main == -1


def test_separate_files_of_a_scene_are_one_scene(tmp_path: Path) -> None:
    """Bands at 10 and 20 m in two files: a pixel is there where both are."""
    fine = grid_at("EPSG:32614", *PLACE, 10, 200, 200)
    coarse = grid_at("EPSG:32614", *PLACE, 20, 100, 100)
    one = np.full((1, 200, 200), 7, np.uint16)
    one[:, :100] = 0
    a = Layer(read_header(write_tif(tmp_path / "a.tif", one, fine, "EPSG:32614")), (1,), (1,), 0)
    b = Layer(
        read_header(write_tif(tmp_path / "b.tif", np.full((1, 100, 100), 9, np.uint16), coarse, "EPSG:32614")),
        (1,),
        (0,),
        0,
    )
    found = mosaic([(a, b)], [same], 2, TILE, 64, "bilinear")
    share = found.valid.mean()
    assert 0.2 < share < 0.8
    assert (found.values[:, found.valid] == np.array([[9], [7]])).all()
    assert np.isnan(found.values[:, ~found.valid]).all()


def test_alpha_and_mask_bands_say_what_is_missing(tmp_path: Path) -> None:
    transform = Affine(*tile_transform(TILE, 64))
    values = np.full((4, 64, 64), 200, np.uint8)
    values[3] = 255
    values[3, :, :10] = 0
    values[3, :, 10:12] = 127
    path = write_tif(tmp_path / "a.tif", values, transform, "EPSG:3857", photometric="RGB", alpha="YES")
    header = read_header(path)
    assert len(header.names) == 3 and header.masked
    _, valid = warp_layer(layer_of(path, (1, 2, 3)), TILE, 64, same, "bilinear") or pytest.fail("outside")
    np.testing.assert_array_equal(valid[0], np.arange(64) >= 12)


def test_a_scene_across_the_antimeridian_has_both_sides(tmp_path: Path) -> None:
    n = 400
    for crs, step in (("EPSG:4326", 1e-3), ("EPSG:3857", 111.0), ("EPSG:32601", 100.0)):
        middle = grid_at(crs, 180 if crs != "EPSG:32601" else -180, 10, step, n, n)
        values = np.broadcast_to(np.arange(n, dtype=np.float32), (1, n, n))
        header = read_header(write_tif(tmp_path / f"{crs[5:]}.tif", values.copy(), middle, crs))
        lon, _ = outline(header)
        assert np.ptp(lon) == pytest.approx(0.38, abs=0.03)
        tiles = touched(header, 12, None)
        assert {0, 4095} <= set(tiles[:, 0]) and len(set(tiles[:, 0])) <= 8
        layer = Layer(header, (1,), (0,), None)
        y = tile_at(180, 10, 12).y
        for x, side in ((4095, 0), (0, 1)):
            found, valid = warp_layer(layer, Tile(12, x, y), 32, same, "bilinear") or pytest.fail("outside")
            assert valid.all()
            assert ((found[0] > n / 2 - 1) == side).all(), "columns east of the line are beyond the middle"
        edge = [warp_layer(layer, Tile(12, x, y), 32, same, "bilinear") for x in (4095, 0)]
        step_over = edge[1][0][0, :, 0] - edge[0][0][0, :, -1]
        inside = edge[0][0][0, :, -1] - edge[0][0][0, :, -2]
        np.testing.assert_allclose(step_over, inside, rtol=0.05)


def test_the_world_and_its_poles(tmp_path: Path) -> None:
    transform = Affine(1, 0, -180, 0, -1, 90)
    values = np.broadcast_to(np.arange(360, dtype=np.float32), (1, 180, 360)).copy()
    header = read_header(write_tif(tmp_path / "a.tif", values, transform, "EPSG:4326"))
    assert len(touched(header, 3, None)) == 64
    for x in range(4):
        found, valid = warp_layer(Layer(header, (1,), (0,), None), Tile(2, x, 0), 16, same, "bilinear") or pytest.fail(
            "outside"
        )
        assert valid[:, 1:-1].all()
        assert found[0, 8, 1:-1] == pytest.approx(90 * x + (np.arange(1, 15) + 0.5) * 90 / 16 - 0.5, abs=0.2)
    polar = grid_at("EPSG:3413", -45, 89, 1000, 300, 300)
    around = read_header(write_tif(tmp_path / "b.tif", np.ones((1, 300, 300), np.uint8), polar, "EPSG:3413"))
    assert len(touched(around, 4, None)) == 0, "all of it lies beyond the limit"


def test_ground_control_points(tmp_path: Path) -> None:
    """A turned and stretched grid by its control points, as ground-range radar images come."""
    n, rng = 200, np.random.default_rng(5)
    true = Affine.rotation(12, (0, 0))
    lon, lat = PLACE
    place = Affine(1.4e-4, 0, lon, 0, -1e-4, lat) @ true @ Affine.translation(-n / 2, -n / 2)
    points = [
        GroundControlPoint(row, col, *(place @ (col, row)))
        for row in np.linspace(0, n, 5)
        for col in np.linspace(0, n, 5)
    ]
    values = smooth(rng, n, n)[None] + 50
    path = write_tif(tmp_path / "a.tif", values, None, None, gcps=(points, "EPSG:4326"))
    header = read_header(path)
    assert header.transform is None and len(header.gcps) == 25
    assert [TILE.x, TILE.y] in touched(header, 15, None).tolist()
    found, valid = warp_layer(layer_of(path), TILE, 128, same, "bilinear") or pytest.fail("outside")
    column, row = source_pixels(TILE, 128, "EPSG:4326", place)
    expected = map_coordinates(values[0].astype(np.float64), [row - 0.5, column - 0.5], order=1)
    assert valid.all()
    assert np.abs(found[0] - expected).max() < 0.03
    assert native_spacing(header, lon, lat) == pytest.approx(
        np.sqrt(1.4e-4 * 1e-4) * 111300 * np.sqrt(np.cos(np.radians(lat))), rel=0.01
    )


@pytest.mark.parametrize(("crs", "step"), GRIDS.items())
def test_native_spacing(tmp_path: Path, crs: str, step: float) -> None:
    transform = grid_at(crs, *PLACE, step, 50, 50)
    header = read_header(write_tif(tmp_path / "a.tif", np.ones((1, 50, 50), np.uint8), transform, crs))
    expected = {"EPSG:4326": np.sqrt(7.6064 * 11.119), "EPSG:3857": 12 * np.cos(np.radians(PLACE[1]))}.get(crs, 10)
    tolerance = 0.05 if crs == "EPSG:32610" else 0.005
    assert native_spacing(header, *PLACE) == pytest.approx(expected, rel=tolerance)


def test_a_window_that_is_too_large_names_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.tiles.warp.MOST_VALUES", 300 * 300)
    transform = grid_at("EPSG:32614", *PLACE, 10, 400, 400)
    layer = layer_of(write_tif(tmp_path / "a.tif", np.ones((1, 400, 400), np.uint8), transform, "EPSG:32614"))
    assert warp_layer(layer, TILE, 32, same, "bilinear") is not None
    with pytest.raises(UserError, match=r"tile 12/919/1440 covers \d+x400 of its pixels: give a larger level"):
        warp_layer(layer, tile_at(*PLACE, 12), 32, same, "bilinear")


def test_what_is_stored() -> None:
    from data_prep.tiles.sensors import Recipe

    valid = np.array([[True, True, False]])
    power = np.array([[[1.0, 0.0, np.nan]], [[0.01, 10, np.nan]]], np.float32)
    found = stored("s1", power, valid, Recipe())
    assert found.dtype == np.int16
    assert found[:, 0].tolist() == [[0, -20000, 0], [-2000, 1000, 0]]
    half = stored("s1", power, valid, Recipe(s1_dtype="float16"))
    assert half.dtype == np.float16 and half[1, 0, 0] == -20
    colour = stored("naip", np.array([[[-3.0, 254.6, np.nan]]], np.float32), valid, Recipe())
    assert colour.tolist() == [[[0, 255, 0]]]
    assert true_colour(np.array([0.0, 1000, 2000, 9000])).tolist() == [1, 128, 255, 255]


@pytest.mark.realdata
def test_a_real_scene_agrees_with_the_independent_warp() -> None:
    path = SHARED_DATA / "timeseries/naip_multiyear/m_4709963_se_14_1_20160816.tif"
    if not path.exists():
        pytest.skip("no real data")
    import rasterio

    with rasterio.open(path) as file:
        values, transform, crs = file.read(), file.transform, file.crs.to_string()
    found, valid = warp_layer(layer_of(path, (1, 2, 3)), TILE, 256, same, "bilinear") or pytest.fail("outside")
    column, row = source_pixels(TILE, 256, crs, transform)
    for band in range(3):
        expected = map_coordinates(values[band].astype(np.float64), [row - 0.5, column - 0.5], order=1)
        assert np.abs(found[band] - expected)[valid].max() < 1
    assert valid.all()


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("rio_tiler/cog_dateline.tif", 7),
        ("rasterio/RGB.byte.tif", 8),
        ("rasterio/alpha.tif", 12),
        ("opengeos/landsat7.tif", 10),
    ],
)
def test_real_scenes_lie_where_they_are(name: str, level: int) -> None:
    """Every tile that has a valid pixel is among those touched, and these span the scene."""
    path = SHARED_DATA / "rasters" / name
    if not path.exists():
        pytest.skip("no real data")
    layer = layer_of(path)
    tiles = [Tile(level, x, y) for x, y in touched(layer.raster, level, None).tolist()]
    assert tiles
    if "dateline" in name:
        assert {0, 2**level - 1} <= {tile.x for tile in tiles}
    near = {Tile(level, (t.x + dx) % 2**level, t.y + dy) for t in tiles for dx in (-1, 0, 1) for dy in (-1, 0, 1)}
    shares = {}
    for tile in near:
        warped = warp_layer(layer, tile, 16, same, "bilinear")
        shares[tile] = 0.0 if warped is None else float(warped[1].mean())
    assert {tile for tile, share in shares.items() if share > 0} <= set(tiles)
    assert max(shares.values()) > (0 if "alpha" in name else 0.5)  # that one is nearly empty
    _, lat = outline(layer.raster)
    bounds = np.array([lonlat_bounds(tile) for tile in tiles])
    assert bounds[:, 1].min() <= lat.min() + 1e-6 and bounds[:, 3].max() >= lat.max() - 1e-6


def test_without_pixels_the_mask_is_the_same(tmp_path: Path) -> None:
    """On a scene with a gap and an edge, at scales on both sides of 1."""
    values = np.full((1, 600, 600), 5, np.uint8)
    values[:, 290:330, 200:260] = 0
    transform = grid_at("EPSG:32614", *PLACE, 4, 600, 600)
    layer = layer_of(write_tif(tmp_path / "a.tif", values, transform, "EPSG:32614"), nodata=0)
    shares = set()
    for tile in [Tile(15, TILE.x + dx, TILE.y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)] + [tile_at(*PLACE, 18)]:
        for size in (32, 512):
            with_pixels = warp_layer(layer, tile, size, same, "cubic")
            without = warp_layer(layer, tile, size, same, "cubic", pixels=False)
            assert (with_pixels is None) == (without is None)
            if with_pixels is not None and without is not None:
                np.testing.assert_array_equal(with_pixels[1], without[1])
                shares.add(float(without[1].mean()))
    assert 1.0 in shares and len(shares) > 4
