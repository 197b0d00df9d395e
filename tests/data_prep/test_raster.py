"""Rasters on the ground and window by window: against rasterio, pyproj, scipy and closed forms."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.transform import Affine, from_origin
from rasterio.windows import Window
from scipy.ndimage import map_coordinates

from data_prep.rasters.chips import Boxes, block_groups, offsets, places, scene_groups
from data_prep.rasters.grid import Grid, epsg_code, ground_distance, lonlat
from data_prep.rasters.raster import (
    Rasters,
    decode_all,
    environment,
    georeference,
    open_raster,
    read_grid,
    read_window,
)
from frontier.errors import UserError
from tests.conftest import SHARED_DATA
from tests.data_prep.geotiffs import UTM, pixels, save_tiff

A, E2 = 6378137.0, 0.0066943799901413165  # WGS 84: semi-major axis, first eccentricity squared
RASTERS = SHARED_DATA / "rasters"
realdata = pytest.mark.realdata
needs_real = pytest.mark.skipif(not RASTERS.exists(), reason="the shared real imagery is not here")


def grid_of(crs: str, transform: Affine, height: int = 100, width: int = 120) -> Grid:
    return Grid(crs, tuple(transform)[:6], height, width)


def radii(lat: float) -> tuple[float, float]:
    """Radii of curvature (meridian, prime vertical) of the ellipsoid: Snyder 1987, 4-18 and 4-20."""
    w = 1 - E2 * math.sin(math.radians(lat)) ** 2
    return A * (1 - E2) / w**1.5, A / math.sqrt(w)


def test_grid_agrees_with_rasterio() -> None:
    transform = Affine(9.0, 2.0, 500_000, 3.0, -10.0, 4_600_000)
    grid = grid_of("EPSG:32631", transform)
    x, y = grid.xy([0.5, 17.5], [0.5, 30.5])
    assert np.allclose(np.stack([x, y]), rasterio.transform.xy(transform, [0, 30], [0, 17]), rtol=0, atol=1e-6)
    columns, rows = grid.pixels(x, y)
    assert np.allclose(columns, [0.5, 17.5]) and np.allclose(rows, [0.5, 30.5])
    window = rasterio.windows.transform(Window(7, 11, 20, 30), transform)
    assert np.allclose(grid.window(11, 7, 30, 20).affine, tuple(window)[:6], rtol=0, atol=1e-6)
    scaled = grid.scaled(2.0, 4.0)
    assert (scaled.height, scaled.width) == (25, 60)
    assert np.allclose(scaled.affine, [18.0, 8.0, 500_000, 6.0, -40.0, 4_600_000])


@pytest.mark.parametrize("lat", [0.0, 37.7, -60.0, 84.0])
def test_ground_distance_of_degrees_and_web_mercator_is_that_of_the_ellipsoid(lat: float) -> None:
    meridian, normal = radii(lat)
    step = 1e-4
    degrees = grid_of("EPSG:4326", from_origin(10, lat, step, step))
    along, down = ground_distance(degrees, 0, 0)
    assert along == pytest.approx(math.radians(step) * normal * math.cos(math.radians(lat)), rel=1e-8)
    assert down == pytest.approx(math.radians(step) * meridian, rel=1e-8)
    x, y = pyproj.Transformer.from_crs(4326, 3857, always_xy=True).transform(10, lat)
    along, down = ground_distance(grid_of("EPSG:3857", from_origin(x, y, 30, 30)), 0, 0)
    # The map's scale is 1 / cos(lat) on a sphere of radius A.
    assert along == pytest.approx(30 * math.cos(math.radians(lat)) * normal / A, rel=1e-6)
    assert down == pytest.approx(30 * math.cos(math.radians(lat)) * meridian / A, rel=1e-6)


@pytest.mark.parametrize(("epsg", "lon", "lat"), [(32631, 5.9, 45.0), (3031, 60.0, -75.0), (2154, 5.2, 47.9)])
def test_ground_distance_agrees_with_the_scale_factors_of_projections(epsg: int, lon: float, lat: float) -> None:
    crs = pyproj.CRS.from_epsg(epsg)
    x, y = pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
    along, down = ground_distance(grid_of(f"EPSG:{epsg}", from_origin(x, y, 10, 10)), 0, 0)
    factors = pyproj.Proj(crs).get_factors(lon, lat)
    assert factors.meridional_scale == pytest.approx(factors.parallel_scale, rel=1e-6), "conformal"
    assert along == pytest.approx(10 / factors.parallel_scale, rel=1e-6)
    assert down == pytest.approx(10 / factors.parallel_scale, rel=1e-6)


def test_longitudes_are_within_half_a_turn() -> None:
    lon, lat = lonlat("EPSG:4326", [190.0, 359.0, -180.0, 180.0], [0.0, 1.0, 2.0, 3.0])
    assert np.allclose(lon, [-170, -1, -180, -180]) and np.allclose(lat, [0, 1, 2, 3])
    assert epsg_code("EPSG:3857") == 3857
    assert epsg_code("+proj=laea +lat_0=13 +lon_0=17.5") == 0


def test_window_beyond_the_edges(tmp_path: Path) -> None:
    values = pixels()
    values[:, 3, 4] = 7
    values[1, 5, 6] = 7
    path = save_tiff(tmp_path / "a.tif", values, nodata=7)
    with environment(), open_raster(path) as dataset:
        found, valid = read_window(dataset, [3, 1], [7, None], -5, 40, 20, 30)
    with rasterio.open(path) as dataset:
        expected = dataset.read([3, 1], window=Window(40, -5, 30, 20), boundless=True, fill_value=0)
    assert np.array_equal(found, expected)
    assert not valid[:, :5].any() and not valid[:, :, 10:].any()
    with environment(), open_raster(path) as dataset:
        _, valid = read_window(dataset, [2, 1], [7, None], 0, 0, 20, 30)
    assert np.array_equal(valid[0], values[1, :20, :30] != 7)
    assert valid[1].all()


def test_a_block_beyond_all_memory_is_one_line(tmp_path: Path) -> None:
    """A sparse file of a few hundred bytes may declare blocks of any size."""
    path = tmp_path / "a.tif"
    sides = {"height": 1 << 20, "width": 1 << 20, "blockxsize": 1 << 14, "blockysize": 1 << 14}
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint16", "crs": "EPSG:32631", "transform": UTM, "tiled": True}
    with rasterio.open(path, "w", **profile, **sides, SPARSE_OK=True, BIGTIFF="YES"):
        pass
    with environment(), open_raster(path) as dataset, pytest.raises(UserError, match=r"a.tif: 1048576x1048576 pixels"):
        read_window(dataset, [1] * 64, [None] * 64, 0, 0, 1 << 20, 1 << 20)


@pytest.mark.parametrize("kind", ["alpha", "mask", "nan", "huge"])
def test_validity(tmp_path: Path, kind: str) -> None:
    there = np.random.default_rng(1).random((40, 50)) < 0.7
    values = pixels(dtype="uint8")
    nodata = None
    if kind == "alpha":
        alpha = np.where(there, 255, 0).astype(np.uint8)[None]
        path = save_tiff(tmp_path / "a.tif", np.concatenate([values, alpha]), photometric="RGB", alpha="yes")
    elif kind == "mask":
        path = save_tiff(tmp_path / "a.tif", values, mask=there)
    else:
        # The missing value of float32 as a header states it in decimals.
        missing, nodata = (math.nan, None) if kind == "nan" else (np.float32(-3.4028235e38), -3.4028234663852886e38)
        path = save_tiff(tmp_path / "a.tif", np.where(there, values, missing).astype(np.float32), nodata=nodata)
    with environment(), open_raster(path) as dataset:
        _, valid = read_window(dataset, [1, 2, 3], [nodata] * 3, 0, 0, 40, 50)
    assert np.array_equal(valid, np.broadcast_to(there, (3, 40, 50)))
    with rasterio.open(path) as dataset:
        assert np.array_equal(dataset.dataset_mask() > 0, there) or kind == "nan"


def test_shrinking_by_whole_factors_is_the_mean_of_valid_pixels(tmp_path: Path) -> None:
    values = pixels(3, (2, 48, 60)).astype(np.float32)
    values[np.random.default_rng(5).random(values.shape) < 0.3] = -9999
    path = save_tiff(tmp_path / "a.tif", values, nodata=-9999)
    with environment(), open_raster(path) as dataset:
        grid, _ = georeference(dataset)
        found, valid = read_grid(dataset, grid, grid.scaled(2, 3), [1, 2], [-9999, -9999], "average")
    blocks = np.where(values == -9999, np.nan, values).reshape(2, 16, 3, 30, 2)
    share = np.isfinite(blocks).mean(axis=(2, 4))
    assert np.array_equal(valid, share >= 0.5)
    assert np.allclose(found[valid], np.nanmean(blocks, axis=(2, 4))[valid], rtol=1e-5)


def test_shifted_grid_is_interpolated_linearly(tmp_path: Path) -> None:
    values = pixels(4, (1, 40, 50)).astype(np.float32)
    path = save_tiff(tmp_path / "a.tif", values)
    with environment(), open_raster(path) as dataset:
        grid, _ = georeference(dataset)
        target = grid.window(0, 0, 30, 30)
        target = Grid(
            target.crs,
            (*target.affine[:2], target.affine[2] + 103.0, *target.affine[3:5], target.affine[5] - 54.0),
            30,
            30,
        )
        smooth, valid = read_grid(dataset, grid, target, [1], [None], "bilinear")
        near, _ = read_grid(dataset, grid, target, [1], [None], "nearest")
    rows, columns = np.mgrid[0:30, 0:30]
    expected = map_coordinates(values[0], [rows + 5.4, columns + 10.3], order=1)
    assert valid.all()
    assert np.allclose(smooth[0], expected, atol=1e-2)
    assert np.array_equal(near[0], values[0, 5:35, 10:40])


def test_other_crs_finds_the_same_ground(tmp_path: Path) -> None:
    """A field that is linear in longitude and latitude, stored in UTM, read back on degrees."""
    rows, columns = np.mgrid[0:80, 0:80] + 0.5
    grid = grid_of("EPSG:32631", UTM, 80, 80)
    lon, lat = lonlat(grid.crs, *grid.xy(columns, rows))
    path = save_tiff(tmp_path / "a.tif", np.stack([lon, lat]))
    target = Grid("EPSG:4326", (1e-4, 0, 3.0015, 0, -8e-5, 41.9985), 24, 24)
    with environment(), open_raster(path) as dataset:
        found, valid = read_grid(dataset, georeference(dataset)[0], target, [1, 2], [None, None], "bilinear")
    x, y = target.xy(*np.meshgrid(np.arange(24) + 0.5, np.arange(24) + 0.5))
    assert valid.all()
    # 2e-7 degrees are 2 cm: the warper's own tolerance is a hundredth of a pixel.
    assert np.allclose(found, np.stack([x, y]), rtol=0, atol=1.5e-6)


@pytest.mark.parametrize("how", ["average", "bilinear", "cubic", "nearest"])
@pytest.mark.parametrize("factor", [0.6, 1.3, 2.37, 3.9])
def test_pixels_do_not_depend_on_the_window_they_are_read_in(tmp_path: Path, how: str, factor: float) -> None:
    path = save_tiff(tmp_path / "a.tif", pixels(6, (1, 200, 220)))
    with environment(), open_raster(path) as dataset:
        grid, _ = georeference(dataset)
        target = grid.scaled(factor, factor)
        whole, _ = read_grid(dataset, grid, target, [1], [None], how)
        for row, column in ((0, 0), (7, 11), (target.height - 24, target.width - 24)):
            part, _ = read_grid(dataset, grid, target.window(row, column, 24, 24), [1], [None], how)
            assert np.array_equal(part, whole[:, row : row + 24, column : column + 24])


def test_handles_are_few_and_do_not_travel(tmp_path: Path) -> None:
    paths = [save_tiff(tmp_path / f"{k}.tif", pixels(k)) for k in range(5)]
    rasters = Rasters(2)
    with environment():
        held = [rasters.get(path) for path in paths]
        assert [one.closed for one in held] == [True, True, True, False, False]
        copy = pickle.loads(pickle.dumps(rasters))
        assert not copy.get(paths[0]).closed
        copy.close()
        rasters.close()
    assert all(one.closed for one in held)


def refused(path: Path, **options: object) -> str:
    def look() -> None:
        with environment(), open_raster(path) as dataset:
            georeference(dataset, **options)
            decode_all(dataset)

    with pytest.raises(UserError) as caught:
        look()
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text
    return text


def test_what_is_refused_and_why(tmp_path: Path) -> None:
    good = save_tiff(tmp_path / "good.tif", pixels())
    vrt = tmp_path / "vrt.tif"
    vrt.write_text(
        '<VRTDataset rasterXSize="50" rasterYSize="40"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        f"<SourceFilename>{good}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    assert rasterio.open(vrt).count == 1, "GDAL itself would follow it"
    assert "not a TIFF" in refused(vrt)
    (tmp_path / "empty.tif").touch()
    assert "empty file" in refused(tmp_path / "empty.tif")
    cut = tmp_path / "cut.tif"
    cut.write_bytes(good.read_bytes()[:-2000])
    assert "cannot be opened" in refused(cut)
    packed = save_tiff(tmp_path / "packed.tif", pixels(), compress="deflate")
    data = bytearray(packed.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = b"\xff" * 40
    packed.write_bytes(data)
    assert "does not decode" in refused(packed)
    frames = [Image.fromarray(pixels(k, (40, 50), "uint8")) for k in range(2)]
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    assert "holds 2 pages" in refused(tmp_path / "pages.tif")
    (tmp_path / "head.tif").write_bytes(b"II*\0" + b"\0" * 40)
    assert "cannot be opened" in refused(tmp_path / "head.tif")
    assert "cannot be read" in refused(tmp_path / "none.tif")
    assert "--set crs=" in refused(save_tiff(tmp_path / "a.tif", pixels(), crs=None))
    assert "no geotransform" in refused(save_tiff(tmp_path / "b.tif", pixels(), transform=None))
    assert "no inverse" in refused(save_tiff(tmp_path / "c.tif", pixels(), transform=Affine(10, 0, 5e5, 20, 0, 4e6)))
    assert "complex64" in refused(save_tiff(tmp_path / "d.tif", pixels().astype(np.complex64)))
    assert "nowhere on Earth" in refused(
        save_tiff(tmp_path / "e.tif", pixels(), crs="EPSG:4326", transform=from_origin(0, 400, 1, 1))
    )


def test_files_beside_a_raster_change_nothing(tmp_path: Path) -> None:
    values = pixels(dtype="uint8")
    path = save_tiff(tmp_path / "a.tif", values)
    with rasterio.open(
        tmp_path / "a.tif.msk", "w", driver="GTiff", width=50, height=40, count=1, dtype="uint8"
    ) as file:
        file.write(np.zeros((1, 40, 50), np.uint8))
        file.update_tags(INTERNAL_MASK_FLAGS_1="2", INTERNAL_MASK_FLAGS_2="2", INTERNAL_MASK_FLAGS_3="2")
    (tmp_path / "a.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>5</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    (tmp_path / "a.tfw").write_text("1\n0\n0\n-1\n0\n0\n")
    with rasterio.open(path) as dataset:
        assert dataset.nodata == 5 or not dataset.dataset_mask().any(), "GDAL itself would take them in"
    with environment(), open_raster(path) as dataset:
        assert dataset.nodata is None
        assert dataset.transform == UTM
        found, valid = read_window(dataset, [1, 2, 3], [None] * 3, 0, 0, 40, 50)
    assert np.array_equal(found, values) and valid.all()


def test_control_points(tmp_path: Path) -> None:
    points = [
        GroundControlPoint(row, column, 500_000 + 10 * column, 4_649_776 - 10 * row)
        for row, column in ((0, 0), (0, 50), (40, 0), (40, 50))
    ]
    path = save_tiff(
        tmp_path / "a.tif", pixels(), crs=None, transform=None, gcps=(points, rasterio.CRS.from_epsg(32631))
    )
    assert "--set gcps=use" in refused(path)
    with environment(), open_raster(path) as dataset:
        grid, residual = georeference(dataset, gcps=True)
    assert np.allclose(grid.affine, tuple(UTM)[:6], atol=1e-6) and residual < 1e-6
    assert grid.crs == "EPSG:32631"


def test_offsets_cover_or_stay_inside() -> None:
    inside = offsets(100, 64, 32, 20, False)
    assert sorted(set(inside[:, 0])) == [0, 20, 40, 60] and sorted(set(inside[:, 1])) == [0, 20]
    padded = offsets(100, 64, 32, 20, True)
    seen = np.zeros((140, 140), bool)
    for row, column in padded:
        seen[row : row + 32, column : column + 32] = True
    assert seen[:100, :64].all()
    assert len(offsets(31, 64, 32, 32, False)) == 0
    assert offsets(31, 31, 32, 32, True).tolist() == [[0, 0]]


def test_places_are_centres() -> None:
    grid = grid_of("EPSG:32631", UTM)
    lon, lat, gsd = places(grid, np.array([[0, 0], [10, 20]]), 16)
    x, y = 500_280, 4_649_596
    expected = pyproj.Transformer.from_crs(32631, 4326, always_xy=True).transform(x, y)
    assert (lon[1], lat[1]) == pytest.approx(expected, abs=1e-12)
    assert gsd == pytest.approx(10 / 0.9996, rel=1e-6), "metres on the ground at the central meridian"
    assert [len(one) for one in places(grid, np.zeros((0, 2), int), 16)] == [0, 0, 0]


def test_scenes_that_overlap_are_one_group() -> None:
    def scene(x: float, crs: str = "EPSG:32631") -> Boxes:
        grid = grid_of(crs, from_origin(x, 4_649_776, 10, 10), 100, 100)
        return Boxes.of(grid, np.zeros((1, 2)), 100, 100)

    zone32 = pyproj.Transformer.from_crs(32631, 32632, always_xy=True).transform(500_000 + 2500, 4_649_776)
    boxes = Boxes.join([scene(500_000), scene(501_000), scene(501_990), scene(500_990), scene(900_000)])
    groups = scene_groups(["a", "b", "c", "d", "e"], boxes)
    assert groups == [b"scene:a", b"scene:a", b"scene:a", b"scene:a", b"scene:e"], "d joins a, b; b and c overlap"
    apart = scene_groups(["a", "b"], Boxes.join([scene(500_000), scene(501_000)]))
    assert len(set(apart)) == 2, "touching is not overlapping"
    grid = grid_of("EPSG:32632", from_origin(*zone32, 10, 10), 100, 100)
    mixed = Boxes.join([scene(502_000), Boxes.of(grid, np.zeros((1, 2)), 100, 100)])
    assert len(set(scene_groups(["a", "b"], mixed))) == 1, "the same ground in two zones"
    date_line = [
        Boxes.of(grid_of("EPSG:4326", from_origin(left, 10, 0.01, 0.01), 100, 100), np.zeros((1, 2)), 100, 100)
        for left in (179.5, -180.2)
    ]
    assert len(set(scene_groups(["a", "b"], Boxes.join(date_line)))) == 1


@pytest.mark.parametrize("left", [-180.0, 0.0, -170.0])
def test_scenes_of_the_whole_world_overlap_every_other(left: float) -> None:
    def scene(transform: Affine, height: int, width: int, crs: str = "EPSG:4326") -> Boxes:
        return Boxes.of(grid_of(crs, transform, height, width), np.zeros((1, 2)), height, width)

    world = scene(from_origin(left, 90, 1, 1), 180, 360)
    for lon in (-175, -95, -5, 5, 95, 120, 175):
        both = Boxes.join([world, scene(from_origin(lon, 10, 0.1, 0.1), 20, 20)])
        assert len(set(scene_groups(["world", "other"], both))) == 1, lon
        assert both.overlapping(0, np.array([1])).all() and both.overlapping(1, np.array([0])).all()


@pytest.mark.parametrize(("crs", "sign"), [("EPSG:3413", 1), ("EPSG:3031", -1)])
def test_a_scene_with_a_pole_reaches_all_round_it(crs: str, sign: int) -> None:
    polar = Boxes.of(grid_of(crs, from_origin(-300_000, 320_000, 10_000, 10_000), 64, 64), np.zeros((1, 2)), 64, 64)
    for lon in range(-179, 179, 7):
        near = grid_of("EPSG:4326", from_origin(lon, sign * 89.5, 0.01, 0.01), 10, 10)
        far = grid_of("EPSG:4326", from_origin(lon, sign * 80.0, 0.01, 0.01), 10, 10)
        boxes = Boxes.join([polar, *(Boxes.of(grid, np.zeros((1, 2)), 10, 10) for grid in (near, far))])
        assert boxes.overlapping(0, np.array([1, 2])).tolist() == [True, False], lon


@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize("left", [500_000.0, 502_347.0])
def test_blocks_share_no_ground(stride: int, left: float) -> None:
    """Two scenes a few metres apart: whatever is kept, chips of different blocks do not overlap (brute force)."""
    parts, lon, lat = [], [], []
    for shift in (0, 13):
        grid = grid_of("EPSG:32631", from_origin(left + shift, 4_649_776 - shift, 10, 10), 200, 220)
        corners = offsets(200, 220, 16, stride, False)
        parts.append(Boxes.of(grid, corners, 16, 16))
        where = places(grid, corners, 16)
        lon.append(where[0])
        lat.append(where[1])
    boxes = Boxes.join(parts)
    groups, keep = block_groups(np.concatenate(lon), np.concatenate(lat), boxes, 640)
    names = np.array(groups)[keep]
    flat = boxes.flat[keep]
    assert len(set(names)) > 4 and 0.3 < keep.mean() < 1
    for name in set(names):
        mine, other = flat[names == name], flat[names != name]
        low = np.maximum(mine[:, None, :2], other[None, :, :2])
        high = np.minimum(mine[:, None, 2:], other[None, :, 2:])
        assert not ((high - low) > 1e-3).all(axis=2).any()


def test_blocks_keep_all_chips_that_lie_side_by_side() -> None:
    grid = grid_of("EPSG:32631", UTM, 320, 320)
    corners = offsets(320, 320, 16, 16, False)
    lon, lat, _ = places(grid, corners, 16)
    groups, keep = block_groups(lon, lat, Boxes.of(grid, corners, 16, 16), 640)
    assert keep.all() and len(set(groups)) > 9


@realdata
@needs_real
def test_real_file_that_does_not_decode() -> None:
    assert "does not decode (" in refused(RASTERS / "rasterio" / "corrupt.tif")


@realdata
@needs_real
@pytest.mark.parametrize(
    "name",
    [
        "rasterio/RGB.byte.tif",
        "rasterio/RGBA.byte.tif",
        "rasterio/cogeo.tif",
        "rasterio/shade.tif",
        "rio_tiler/cog.tif",
    ],
)
def test_real_files_against_rasterio(name: str) -> None:
    with environment(), open_raster(RASTERS / name) as dataset:
        grid, _ = georeference(dataset)
        assert not decode_all(dataset)
        bands = [index for index in dataset.indexes if dataset.colorinterp[index - 1].name != "alpha"]
        found, valid = read_window(dataset, bands, [dataset.nodata] * len(bands), 300, 200, 150, 170)
    with rasterio.open(RASTERS / name) as dataset:
        window = Window(200, 300, 170, 150)
        assert np.array_equal(found, dataset.read(bands, window=window))
        assert np.array_equal(valid.any(axis=0), dataset.dataset_mask(window=window) > 0)
        expected = pyproj.Transformer.from_crs(dataset.crs, 4326, always_xy=True).transform(*dataset.xy(370, 280))
    assert lonlat(grid.crs, *grid.xy(280.5, 370.5)) == pytest.approx(expected, abs=1e-9)


@realdata
@needs_real
def test_real_scene_over_the_date_line() -> None:
    path = RASTERS / "rio_tiler" / "cog_dateline.tif"
    with environment(), open_raster(path) as dataset:
        grid, _ = georeference(dataset)
    lon, lat = lonlat(grid.crs, *grid.xy([0, grid.width], [grid.height / 2] * 2))
    assert 170 < lon[0] < 180 and -180 < lon[1] < -170
    corners = offsets(grid.height, grid.width, 256, 256, False)
    boxes = Boxes.of(grid, corners, 256, 256)
    assert (boxes.round[:, 2] - boxes.round[:, 0] < 1).all(), "no chip spans the globe"
    over = (boxes.round[:, 0] < 180) & (boxes.round[:, 2] > 180) | (boxes.round[:, 0] < -180)
    assert over.any(), "some chips lie over the line"
    assert ((lat > 50) & (lat < 53)).all()
