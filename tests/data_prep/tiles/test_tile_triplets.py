"""Reader tile_triplets as its user calls it: generated triplets, real pairs and single sensors, and every mistake."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from data_prep.command import main
from data_prep.readers.registry import Request, find_reader, parse_settings
from data_prep.source import Source
from data_prep.tiles.find import band_name, folder_drafts, item_sensor, parse_time, time_of_name
from data_prep.tiles.grid import Tile, ground_spacing, tile_at, tile_transform
from frontier.cli import main as frontier
from frontier.data.shards import ShardSet
from frontier.errors import EXIT_OK, EXIT_USER, UserError
from tests.conftest import SHARED_DATA
from tests.data_prep.tiles.test_warp import source_pixels
from tests.data_prep.tiles.world import PLACE, grid_at, triplet, write_tif

SPOT = (PLACE[0] + 0.001, PLACE[1] - 0.0005)
DAY = 1594771200
"""2020-07-15."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return triplet(tmp_path_factory.mktemp("place"), spot=SPOT)


def opened(path: Path, *settings: str, **options: object) -> Source:
    reader = find_reader("tile_triplets")
    return reader.open(Request(path, reader, settings=parse_settings(reader, settings), **options))


def loaded(source: Source) -> dict[str, np.ndarray]:
    return source.load(range(len(source.listing().ids)))


@pytest.fixture(scope="module")
def shards(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "out"
    command = ["write", "--reader", "tile_triplets", "--from", str(place), "--set", "preset=small", str(out)]
    assert main(command) == EXIT_OK
    assert main(["verify", str(out), "--deep"]) == EXIT_OK
    return out


def test_a_triplet(shards: Path) -> None:
    samples = ShardSet(shards)
    images = samples.manifest["images"]
    assert {name: (spec["shape"], spec["dtype"], spec["mask"]) for name, spec in images.items()} == {
        "s1": ([2, 256, 256], "int16", "s1_mask"),
        "s2": ([3, 256, 256], "uint8", "s2_mask"),
        "naip": ([3, 256, 256], "uint8", "naip_mask"),
        "naip_2x": ([3, 512, 512], "uint8", "naip_2x_mask"),
    }
    assert images["s1"]["scale"] == 0.01 and images["s1"]["units"] == "dB"
    assert len(samples) >= 1
    for k in range(len(samples)):
        tile = Tile(*(int(samples.column(f"tile_{axis}")[k]) for axis in "zxy"))
        assert tile == tile_at(samples.column("lon")[k], samples.column("lat")[k], 15)
        np.testing.assert_allclose(samples.read("transform", k, k + 1)[0], tile_transform(tile, 256))
        spacing = ground_spacing(15, 256, samples.column("lat")[k])
        for name, factor in (("s1", 1), ("s2", 1), ("naip", 1), ("naip_2x", 0.5)):
            assert samples.column(f"{name}_spacing_m")[k] == pytest.approx(spacing * factor)
        for name, native in (("s1", np.sqrt(7.6 * 11.12)), ("s2", 10), ("naip", 2.5)):
            assert samples.column(f"{name}_native_gsd_m")[k] == pytest.approx(native, rel=0.01)
            assert samples.column(f"{name}_time")[k] == DAY
            assert samples.column(f"{name}_valid_fraction")[k] >= 0.95
            measured = samples.read(f"{name}_mask", k, k + 1).mean()
            assert measured == pytest.approx(samples.column(f"{name}_valid_fraction")[k], abs=1e-6)
    assert (samples.column("crs_epsg") == 3857).all()
    assert (samples.column("time_start") == DAY).all() and (samples.column("time_end") == DAY).all()
    notes = samples.manifest["notes"]
    assert notes["samples_in_paper"] == 21497
    assert notes["scenes"]["naip"] == ["naip/naip_20200715"]


def centroid(values: np.ndarray, low: float, high: float, side: int) -> tuple[float, float]:
    """Column and row of the middle of what is bright, in pixels of the base level."""
    weight = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
    row, column = np.mgrid[0 : len(weight), 0 : len(weight)] + 0.5
    factor = side / len(weight)
    return float((weight * column).sum() / weight.sum() * factor), float((weight * row).sum() / weight.sum() * factor)


def test_a_feature_is_at_the_same_place_in_every_sensor(shards: Path) -> None:
    """A disc of 60 m drawn at one place in four CRS: the middle agrees within half a pixel of the tile."""
    samples = ShardSet(shards)
    tile = tile_at(*SPOT, 15)
    k = samples.column("sample_id").tolist().index("/".join(map(str, tile)).encode())
    a, _, c, _, e, f = tile_transform(tile, 256)
    import pyproj

    x, y = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:3857", always_xy=True).transform(*SPOT)
    expected = (x - c) / a, (y - f) / e
    power = 10 ** (samples.read("s1", k, k + 1)[0, 0] / 1000)
    spots = {"s1": centroid(power, 30, 10**2.5, 256)}
    for name, low in (("s2", 215), ("naip", 170), ("naip_2x", 170)):
        spots[name] = centroid(samples.read(name, k, k + 1)[0, 0], low, 255, 256)
    for name, found in spots.items():
        own = 0.5 if name != "naip_2x" else 0.25
        assert np.hypot(found[0] - expected[0], found[1] - expected[1]) < own, (name, found, expected)


def test_the_bytes_depend_on_nothing_but_inputs_and_settings(place: Path, tmp_path: Path) -> None:
    copy = tmp_path / place.name
    for sensor in ("naip", "s2", "s1"):  # written in another order
        shutil.copytree(place / sensor, copy / sensor)
    command = [
        "write",
        "--reader",
        "tile_triplets",
        "--set",
        "level=16",
        "--set",
        "size=32",
        "--samples-per-shard",
        "2",
    ]
    assert main([*command, "--from", str(place), str(tmp_path / "first")]) == EXIT_OK
    assert main([*command, "--from", str(copy), "--workers", "2", str(tmp_path / "again")]) == EXIT_OK
    first, again = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("first", "again")
    )
    assert first == again


def test_naip_at_256_is_the_average_of_its_children(shards: Path) -> None:
    samples = ShardSet(shards)
    fine = samples.read("naip_2x", 0, 1)[0].astype(np.float64)
    coarse = samples.read("naip", 0, 1)[0].astype(np.float64)
    mean = fine.reshape(3, 256, 2, 256, 2).mean(axis=(2, 4))
    # 2.5 m pixels under 3.25 and 1.6 m ones: the first averaged, the second interpolated.
    assert np.abs(mean - coarse).mean() < 6
    assert np.corrcoef(mean.ravel(), coarse.ravel())[0, 1] > 0.97


def test_all_four_children_must_be_there(tmp_path: Path, place: Path) -> None:
    """A gap in one child: 6 % of the child, 1.5 % of the tile."""
    import rasterio

    folder = tmp_path / "naip"
    folder.mkdir()
    tile = tile_at(*SPOT, 15)
    with rasterio.open(place / "naip/naip_20200715.tif") as file:
        values, transform, crs = file.read(), file.transform, file.crs
    a, _, c, _, _, f = tile_transform(Tile(16, 2 * tile.x + 1, 2 * tile.y), 256)
    from pyproj import Transformer

    corner = ~transform @ Transformer.from_crs("EPSG:3857", crs, always_xy=True).transform(c + 40 * a, f - 40 * a)
    left, top = round(corner[0]), round(corner[1])
    side = round(0.25 * 417 / 2.5)
    values[:, top : top + side, left : left + side] = 0
    write_tif(folder / "gap.tif", values, transform, crs, nodata=0)
    ids = {}
    for hires in ("both", "double", "base"):
        for least in ("0.95", "0.9"):
            source = opened(tmp_path, "sensors=naip", f"hires={hires}", f"min_valid={least}", "size=64")
            ids[hires, least] = set(source.listing().ids)
    name = "/".join(map(str, tile)).encode()
    assert name in ids["base", "0.95"] and name in ids["both", "0.9"] and name in ids["double", "0.9"]
    assert name not in ids["both", "0.95"] and name not in ids["double", "0.95"]
    source = opened(tmp_path, "sensors=naip", "min_valid=0.9", "hires=double", "size=64")
    assert set(source.images) == {"naip_2x"}
    sample = loaded(source)
    k = source.listing().ids.index(name)
    gap = 1 - sample["naip_2x_mask"][k, :64, 64:].mean()
    assert 0.05 < gap < 0.08
    assert sample["naip_2x_mask"][k].mean() == pytest.approx(sample["naip_valid_fraction"][k], abs=1e-6)
    assert (sample["naip_2x"][k][:, sample["naip_2x_mask"][k] == 0] == 0).all()


def test_pairs_bands_sizes_and_types(place: Path) -> None:
    source = opened(place, "sensors=s2,s1", "s2_bands=all", "s1_dtype=float16", "size=64", "resampling=cubic")
    assert list(source.images) == ["s1", "s2"]
    assert source.images["s2"].shape == (12, 64, 64) and source.images["s2"].dtype == "uint16"
    assert [band.name for band in source.images["s2"].bands][7:9] == ["B08", "B8A"]
    sample = loaded(source)
    whole = opened(place, "sensors=s1,s2", "s2_bands=all")
    assert source.listing().ids == whole.listing().ids
    big = loaded(whole)
    small = sample["s1"][:, 0].astype(np.float64)
    power = 10 ** (big["s1"][:, 0] / 1000.0)
    mean = 10 * np.log10(power.reshape(-1, 64, 4, 64, 4).mean(axis=(2, 4)))
    assert np.abs(mean - small).mean() < 0.5
    assert abs(big["s2"].astype(float).mean() - sample["s2"].astype(float).mean()) < 10
    alone = opened(place, "sensors=s2", "s2_bands=all", "level=16", "size=64")
    assert len(alone.listing().ids) > 4 * len(whole.listing().ids) - 4
    four = opened(place, "sensors=naip", "naip_bands=rgbn", "size=32", "hires=base")
    assert four.images["naip"].shape == (4, 32, 32)
    nir = loaded(four)["naip"][:, 3]
    assert nir.std() > 5


def test_a_fourth_band_that_is_called_alpha(tmp_path: Path) -> None:
    """It masks, unless the user knows better."""
    one_scene(tmp_path, "naip", [10, 20, 30, 100], photometric="RGB", alpha="YES")
    options = ("sensors=naip", "size=16", "hires=base")
    with pytest.raises(UserError, match=r"the best are naip 0\.00"):
        opened(tmp_path, *options)
    with pytest.raises(UserError, match="lacks N: it has R, G, B"):
        opened(tmp_path, *options, "naip_bands=rgbn")
    sample = loaded(opened(tmp_path, *options, "naip_bands=rgbn", "naip_fourth=nir"))
    assert sample["naip"][0, :, 0, 0].tolist() == [10, 20, 30, 100]
    assert sample["naip_mask"].all()


def one_scene(folder: Path, sensor: str, value: object, name: str = "a", **options: object) -> Path:
    """A scene of one value everywhere, three tiles wide."""
    bands = options.pop("bands", {"s1": 2, "s2": 12, "naip": 4}[sensor])
    dtype = options.pop("dtype", {"s1": np.float32, "s2": np.uint16, "naip": np.uint8}[sensor])
    n = options.pop("n", 280)
    transform = grid_at("EPSG:32614", *PLACE, 10, n, n)
    values = np.broadcast_to(np.asarray(value, dtype).reshape(-1, 1, 1), (bands, n, n)).copy()
    return write_tif(folder / sensor / f"{name}.tif", values, transform, "EPSG:32614", **options)


@pytest.mark.parametrize(
    ("settings", "stored", "expected"),
    [
        (["units=db"], -12.5, -1250),
        (["units=linear"], 0.05, -1301),
        (["units=amplitude"], 200, 4602),
        (["units=amplitude", "calibration=500"], 200, -796),
    ],
)
def test_units_of_sentinel_1(tmp_path: Path, settings: list[str], stored: float, expected: int) -> None:
    one_scene(tmp_path, "s1", stored)
    source = opened(tmp_path, "sensors=s1", "size=32", *settings)
    assert np.unique(loaded(source)["s1"]).tolist() == [expected]
    uncalibrated = settings == ["units=amplitude"]
    assert source.images["s1"].units == ("dB, uncalibrated" if uncalibrated else "dB")


def test_offsets_and_scales_of_sentinel_2(tmp_path: Path) -> None:
    def value(*settings: str) -> list[int]:
        return np.unique(loaded(opened(tmp_path, "sensors=s2", "size=32", *settings))["s2"]).tolist()

    one_scene(tmp_path, "s2", 1500)
    assert value("s2_bands=all") == [1500]
    assert value("s2_bands=all", "s2_offset=-1000") == [500]
    assert value("s2_bands=all", "s2_offset=-2000") == [0]
    assert value() == [round(1 + 254 * 0.75)]
    shutil.rmtree(tmp_path / "s2")
    one_scene(tmp_path, "s2", 1500, "S2B_MSIL2A_20230111T121649_N0509_R066_T14TLT_x")
    assert value("s2_bands=all") == [500]
    assert value("s2_bands=all", "s2_offset=0") == [1500]
    shutil.rmtree(tmp_path / "s2")
    one_scene(tmp_path, "s2", 0.15, dtype=np.float32)
    assert value("s2_bands=all", "s2_scale=10000") == [1500]
    shutil.rmtree(tmp_path / "s2")
    one_scene(tmp_path, "s2", [60, 70, 80], bands=3, dtype=np.uint8)
    assert value() == [60, 70, 80], "a true-colour image is taken as it is"
    shutil.rmtree(tmp_path / "s2")
    one_scene(tmp_path, "s2", [0, 70, 80], bands=3, dtype=np.uint8)
    assert value() == [0, 70, 80], "one band of 0 is dark, not missing"


def test_products_of_separate_files(tmp_path: Path) -> None:
    """As ESA and cloud archives lay them out: bands in files, in folders by resolution, measurements numbered."""
    for band, value in (("vv", 3), ("vh", 2)):
        number = 1 if band == "vv" else 2
        name = f"S1A_x.SAFE/measurement/s1a-iw-grd-{band}-20200715t001122-20200715t001147-033456-03e0a1-00{number}"
        one_scene(tmp_path, "s1", value, name, bands=1)
    product = "S2A_MSIL2A_20200714T170901_N0214_R112_T14TLT_20200714T213000.SAFE/GRANULE/L2A/IMG_DATA"
    tile = "T14TLT_20200714T170901"
    for k, band in enumerate(("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"), 1):
        one_scene(tmp_path, "s2", 100 * k, f"{product}/R10m/{tile}_{band}_10m", bands=1)
        one_scene(tmp_path, "s2", 7, f"{product}/R60m/{tile}_{band}_60m", bands=1, n=100)
    one_scene(tmp_path, "s2", [11, 12, 13], f"{product}/R10m/{tile}_TCI_10m", bands=3, dtype=np.uint8)
    one_scene(tmp_path, "s2", 4, f"{product}/R20m/{tile}_SCL_20m", bands=1, dtype=np.uint8)
    one_scene(tmp_path, "s2", 4, f"{product}/R20m/{tile}_AOT_20m", bands=1)
    source = opened(tmp_path, "sensors=s1,s2", "s2_bands=all", "size=16")
    sample = loaded(source)
    assert source.listing().notes["tiles_joint"] > 4
    assert np.unique(sample["s1"][:, 0]).tolist() == [300] and np.unique(sample["s1"][:, 1]).tolist() == [200]
    assert sample["s2"][0, :, 0, 0].tolist() == [100 * k for k in range(1, 13)]
    assert set(sample["s1_time"]) == {time_of_name("20200715T001122")}
    assert set(sample["s2_time"]) == {time_of_name("20200714T170901")}
    assert (sample["time_start"] == sample["s2_time"]).all() and (sample["time_end"] == sample["s1_time"]).all()
    assert set(sample["cloud_fraction"]) == {0.0}
    colour = loaded(opened(tmp_path, "sensors=s2", "size=16"))
    assert np.unique(colour["s2"]).tolist() == [11, 12, 13]


def test_jpeg_2000(tmp_path: Path) -> None:
    options = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"}
    path = one_scene(tmp_path, "s2", [60, 70, 80], "T14_20200714T170901_TCI_10m", bands=3, dtype=np.uint8, n=200)
    import rasterio.shutil

    rasterio.shutil.copy(path, path.with_suffix(".jp2"), **options)
    path.unlink()
    sample = loaded(opened(tmp_path, "sensors=s2", "size=16"))
    assert (sample["s2"] == np.array([60, 70, 80])[:, None, None]).all()


def test_a_scene_across_the_antimeridian(tmp_path: Path) -> None:
    transform = grid_at("EPSG:32601", -180, 66, 100, 300, 300)
    values = np.full((3, 300, 300), 9, np.uint8)
    write_tif(tmp_path / "naip/a.tif", values, transform, "EPSG:32601")
    sample = loaded(opened(tmp_path, "sensors=naip", "level=11", "size=16", "hires=base"))
    assert {0, 2047} <= set(sample["tile_x"]) <= {0, 1, 2046, 2047}
    assert (np.abs(sample["lon"]) > 179).all() and (sample["lon"] < 0).any() and (sample["lon"] > 0).any()
    np.testing.assert_allclose(sample["naip_native_gsd_m"], 100, rtol=0.01)


def test_cloud_fraction_is_of_the_scene_classification(tmp_path: Path) -> None:
    n = 280
    transform = grid_at("EPSG:3857", *PLACE, 12, n, n)
    write_tif(tmp_path / "s2/x_TCI.tif", np.full((3, n, n), 50, np.uint8), transform, "EPSG:3857")
    classes = np.full((1, n, n), 4, np.uint8)
    tile = tile_at(*PLACE, 15)
    a, _, c, _, _, f = tile_transform(tile, 256)
    left, top = (round(v) for v in ~transform @ (c, f))
    right = round((~transform @ (c + 64 * a, f))[0])
    classes[:, top:, left:right] = 9
    write_tif(tmp_path / "s2/x_SCL.tif", classes, transform, "EPSG:3857")
    source = opened(tmp_path, "sensors=s2", "size=64")
    sample = loaded(source)
    k = source.listing().ids.index("/".join(map(str, tile)).encode())
    assert sample["cloud_fraction"][k] == pytest.approx(0.25, abs=0.02)


def stac_item(name: str, assets: dict[str, str], **properties: object) -> dict:
    return {
        "type": "Feature",
        "id": name,
        "collection": properties.pop("collection", "sentinel-2-l2a"),
        "properties": properties,
        "assets": {key: {"href": href} for key, href in assets.items()},
    }


def test_scenes_from_a_list_in_order_of_preference(tmp_path: Path) -> None:
    clouds = {"b": 30.0, "c": 5.0, "a": 30.0, "d": None}
    dates = {"b": "2020-06-02T00:00:00Z", "c": "2020-06-01T00:00:00Z", "a": "2020-06-01T00:00:00Z"}
    items = []
    for k, name in enumerate(clouds, 1):
        one_scene(tmp_path, "s2", [k, k, k], name, bands=3, dtype=np.uint8)
        properties = {"eo:cloud_cover": clouds[name]} if clouds[name] is not None else {}
        properties |= {"datetime": dates[name]} if name in dates else {}
        items.append(
            stac_item(name, {"visual": f"s2/{name}.tif", "thumbnail": "https://a.example/b.jpg"}, **properties)
        )
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    expected = {"least_cloudy": ("c", "b", "a", "d"), "newest": ("b", "c", "a", "d"), "name": ("a", "b", "c", "d")}
    for order, names in expected.items():
        source = opened(tmp_path, "items=items.json", "sensors=s2", f"order={order}", "size=16")
        assert source.listing().notes["scenes"]["s2"] == list(names), order
        sample = loaded(source)
        first = list(clouds).index(names[0]) + 1
        assert np.unique(sample["s2"]).tolist() == [first]
        assert set(sample["s2_scene"]) == {0}
    # By folders nothing tells the cloud cover or the date: the name decides.
    assert opened(tmp_path, "sensors=s2", "size=16").listing().notes["scenes"]["s2"][0] == "s2/a"


def test_an_item_tells_its_sensor_and_offset(tmp_path: Path) -> None:
    assert item_sensor({"collection": "sentinel-1-rtc", "assets": {}}) == "s1"
    assert item_sensor({"assets": {"VV": {}, "vh": {}}}) == "s1"
    assert item_sensor({"properties": {"constellation": "sentinel-2"}, "assets": {}}) == "s2"
    with pytest.raises(UserError):
        item_sensor({"collection": "landsat-c2-l2", "assets": {"red_x": {}}})
    path = one_scene(tmp_path, "s2", 1500)
    for more, value in (
        ({}, 1500),
        ({"s2:processing_baseline": "02.14"}, 1500),
        ({"s2:processing_baseline": "05.09"}, 500),
        ({"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True}, 1500),
    ):
        item = stac_item("x", {"data": path.as_uri()}, **more)
        (tmp_path / "i.json").write_text(json.dumps([item]))
        sample = loaded(opened(tmp_path, "items=i.json", "sensors=s2", "s2_bands=all", "size=16"))
        assert np.unique(sample["s2"]).tolist() == [value], more


def test_regions_choose_tiles_by_their_centre(place: Path) -> None:
    path = place / "regions.json"
    path.write_text(json.dumps([[PLACE[0] - 0.004, PLACE[1] - 0.004, PLACE[0] + 0.004, PLACE[1] + 0.004]]))
    options = ("sensors=naip", "level=16", "hires=base", "size=16")
    every, some = (opened(place, *options, *more).listing() for more in ((), ("regions=regions.json",)))
    inside = np.abs(every.places - PLACE).max(axis=1) < 0.004
    assert 0 < inside.sum() < len(every.ids) < 40
    assert some.ids == [name for name, keep in zip(every.ids, inside, strict=True) if keep]


def test_a_scene_that_changes_under_way_is_noticed(tmp_path: Path) -> None:
    root = triplet(tmp_path / "place", spot=SPOT)
    source = opened(root, "preset=small")
    before = source.load([0])
    path = next(path for path in sorted((root / "s2").rglob("*")) if path.suffix == ".tif")
    data = path.read_bytes()
    path.write_bytes(data)
    np.testing.assert_array_equal(source.load([0])["s2"], before["s2"], "the same bytes, written again")
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 255]))
    with pytest.raises(UserError, match="changed while it was read"):
        source.load([0])
    path.unlink()
    with pytest.raises(UserError, match="cannot be read any more"):
        source.load([0])


def test_groups_are_blocks_of_tiles(place: Path) -> None:
    options = ("sensors=naip", "level=16", "hires=base", "size=16")
    listing = opened(place, *options, "block=1").listing()
    for name, group in zip(listing.ids, listing.groups, strict=True):
        z, x, y = map(int, name.split(b"/"))
        assert group == f"{z - 1}/{x >> 1}/{y >> 1}".encode()
    assert len(set(listing.groups)) < len(listing.ids)
    assert set(opened(place, *options, "block=0").listing().groups) == set(listing.ids)


def test_names_and_times() -> None:
    assert [band_name("s2", text) for text in ("b4", "B04", "B8A", "TCI", "visual", "B13", "x")] == [
        "B04",
        "B04",
        "B8A",
        "TCI",
        "TCI",
        "",
        "",
    ]
    assert time_of_name("m_4709963_se_14_1_20200715") == DAY
    assert time_of_name("m_4709963_se_14_060_20200715_20201130") == DAY, "acquired, then processed"
    assert time_of_name("S1A_IW_GRDH_1SDV_20200715T000000_20200716T000000_033") == DAY
    assert time_of_name("20209915_x_123456789") == 0
    assert parse_time("2020:07:15 00:00:00") == parse_time("2020-07-15T02:00:00+02:00") == DAY
    assert parse_time("soon") == 0


def test_hidden_files_and_links_to_elsewhere_are_left_out(tmp_path: Path) -> None:
    one_scene(tmp_path, "naip", 7)
    one_scene(tmp_path, "naip", 7, ".hidden")
    one_scene(tmp_path, "naip", 7, ".folder/a")
    (tmp_path / "naip/notes.txt").write_text("not a scene")
    assert [draft.name for draft in folder_drafts("naip", tmp_path / "naip", tmp_path)] == ["naip/a"]
    # What GDAL would follow to other files is refused, whatever its name says.
    (tmp_path / "naip/b.tif").write_text("<VRTDataset rasterXSize='1' rasterYSize='1'></VRTDataset>")
    with pytest.raises(UserError, match=r"b\.tif \(cannot be opened"):
        opened(tmp_path, "sensors=naip")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["sensors=s1,s3"], "no sensor 's3'"),
        (["sensors=,"], "give at least one of"),
        (["level=15", "preset=micro"], "preset micro has level 17"),
        (["level=31"], "a whole number from 0 to 23"),
        (["size=8"], "from 16 to 1024"),
        (["min_valid=2"], "from 0 to 1"),
        (["calibration=3"], "has no effect with units=db"),
        (["sensors=s1", "s2_bands=all"], "s2_bands=all: has no effect with sensors=s1"),
        (["sensors=s1", "resampling=cubic"], "has no effect with sensors=s1"),
        (["sensors=s2", "units=linear"], "has no effect with sensors=s2"),
        (["items=a.json", "s1=radar"], "has no effect with items=a.json"),
        (["units=power"], "no such choice"),
        (["s2_offset=x"], "s2_offset=x"),
        (["s2=nothing"], "nothing not found: a folder with the scenes"),
        (["regions=none.json"], r"none.json not found"),
        (["items=none.json"], r"none.json not found"),
        (["min_valid=1", "level=8", "size=16"], "none of 1 tiles of level 8 .* is 1 valid: the best are s1 0.0"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: list[str], words: str
) -> None:
    command = ["shards", "write", "--reader", "tile_triplets", "--from", str(place), str(tmp_path / "out")]
    assert frontier(command + [part for text in settings for part in ("--set", text)]) == EXIT_USER
    said = capsys.readouterr().err
    assert re.search(words, said), said
    assert said.count("\n") == 1


def test_no_common_tile_says_where_the_sensors_are(tmp_path: Path) -> None:
    one_scene(tmp_path, "s2", 1500)
    transform = grid_at("EPSG:32614", PLACE[0] + 1, PLACE[1], 10, 280, 280)
    write_tif(tmp_path / "s1/far.tif", np.zeros((2, 280, 280), np.float32), transform, "EPSG:32614")
    with pytest.raises(UserError) as caught:
        opened(tmp_path, "sensors=s1,s2")
    said = str(caught.value)
    found = re.findall(r"(s1|s2) has (\d+) tiles \(longitude (\S+) to (\S+), latitude (\S+) to (\S+)\)", said)
    assert [sensor for sensor, *_ in found] == ["s1", "s2"]
    for (_, count, west, east, south, north), lon in zip(found, (PLACE[0] + 1, PLACE[0]), strict=True):
        assert 9 <= int(count) <= 25
        assert float(west) < lon < float(east) and float(south) < PLACE[1] < float(north)


def test_a_scene_smaller_than_a_tile(tmp_path: Path) -> None:
    one_scene(tmp_path, "naip", 7, n=20)
    with pytest.raises(UserError, match=r"the best are naip 0\.0\d"):
        opened(tmp_path, "sensors=naip")
    sample = loaded(opened(tmp_path, "sensors=naip", "min_valid=0", "hires=base"))
    area = sample["naip_mask"].sum() * float(sample["naip_spacing_m"][0]) ** 2
    assert area == pytest.approx(200**2, rel=0.05)


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    one_scene(tmp_path, "s1", -10)
    good = one_scene(tmp_path, "s1", -10, "good")
    n = 280
    write_tif(
        tmp_path / "s1/no_crs.tif", np.zeros((2, n, n), np.float32), grid_at("EPSG:32614", *PLACE, 10, n, n), None
    )
    write_tif(tmp_path / "s1/no_transform.tif", np.zeros((2, n, n), np.float32), None, "EPSG:32614")
    one_scene(tmp_path, "s1", 0, "five_bands", bands=5)
    one_scene(tmp_path, "s1", 0, "only_vv", bands=1)
    (tmp_path / "s1/text.tif").write_text("not a TIFF")
    whole = good.read_bytes()
    # The directory comes first, so what is cut off is pixels.
    (tmp_path / "s1/cut.tif").write_bytes(whole[: len(whole) // 3])
    reasons = {
        "no_crs.tif": "has no CRS",
        "no_transform.tif": "neither a transform nor ground control points",
        "five_bands.tif": "has 5 bands without names",
        "s1/only_vv": "lacks VH",
        "text.tif": "cannot be opened",
    }
    report = tmp_path / "out" / "unreadable.tsv"
    with pytest.raises(UserError, match=r"5 of 8 files cannot be used"):
        opened(tmp_path, "sensors=s1", "size=16", report=report)
    lines = report.read_text().splitlines()
    for name, reason in reasons.items():
        assert any(name.removeprefix("s1/") in line and reason in line for line in lines), (name, lines)
    source = opened(tmp_path, "sensors=s1", "size=16", on_error="skip", report=report)
    assert len(report.read_text().splitlines()) == 6
    assert "cut.tif\tcannot be read" in report.read_text()
    listing = source.listing()
    assert listing.notes["skipped"] == 6
    assert np.unique(loaded(source)["s1"]).tolist() == [-1000]
    for name in reasons:
        (tmp_path / f"{name}.tif" if name.startswith("s1/") else tmp_path / "s1" / name).unlink()
    with pytest.raises(UserError, match=r"1 of 3 files cannot be used: s1/cut\.tif \(cannot be read"):
        opened(tmp_path, "sensors=s1", "size=16")
    (tmp_path / "s1/cut.tif").unlink()
    assert opened(tmp_path, "sensors=s1", "size=16").listing().ids == listing.ids


def test_items_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    one_scene(tmp_path, "s2", 1500)
    items = [
        stac_item("good", {"data": "s2/a.tif"}),
        stac_item("remote", {"visual": "https://data.example/a.tif"}),
        stac_item("gone", {"visual": "s2/b.tif"}),
        stac_item("other", {"visual": "s2/a.tif"}, collection="sentinel-1-grd"),
        stac_item("strange", {"x": "s2/a.tif"}, collection="landsat"),
    ]
    path = tmp_path / "i.json"
    path.write_text(json.dumps(items))
    with pytest.raises(UserError, match=r"3 of 4 files") as caught:
        opened(tmp_path, "items=i.json", "sensors=s2")
    assert "data_prep.tiles.download" in str(caught.value)
    assert "not found" in str(caught.value)
    skipped = opened(tmp_path, "items=i.json", "sensors=s2", "size=16", on_error="skip").listing()
    assert skipped.notes["skipped"] == 3 and skipped.notes["scenes"]["s2"] == ["good"]
    for content in ("{", "[1]", '{"features": 3}'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"items .*i\.json.*: give a STAC ItemCollection"):
            opened(tmp_path, "items=i.json", "sensors=s2")


@pytest.mark.realdata
def test_a_real_pair_of_radar_and_optical() -> None:
    root = SHARED_DATA / "s1s2/sen1floods11/sample"
    if not root.exists():
        pytest.skip("no real data")
    import rasterio

    source = opened(root, "sensors=s1,s2", "s1=S1", "s2=S2", "s2_bands=all", "size=64")
    assert len(source.listing().ids) == 20
    sample = source.load(range(20))
    with rasterio.open(root / "S1/Spain_7370579_S1Hand.tif") as file:
        radar, transform = file.read(), file.transform
    with rasterio.open(root / "S2/Spain_7370579_S2Hand.tif") as file:
        optical = file.read()
    # The tiles hold most of the scene: the means agree, of power and of reflectance.
    power = 10 * np.log10(np.nanmean(10 ** (radar[0] / 10.0)))
    mask = sample["s1_mask"] > 0
    assert 10 * np.log10((10 ** (sample["s1"][:, 0][mask] / 1000.0)).mean()) == pytest.approx(power, abs=0.5)
    assert sample["s2"][:, 7][sample["s2_mask"] > 0].mean() == pytest.approx(
        optical[7][optical[7] > 0].mean(), rel=0.05
    )
    # One tile, pixel by pixel, against an independent warp of the linear power.
    tile = Tile(15, 16313, 12626)
    k = source.listing().ids.index(b"15/16313/12626")
    fine = opened(root, "sensors=s1", "s1=S1").load(
        [opened(root, "sensors=s1", "s1=S1").listing().ids.index(b"15/16313/12626")]
    )
    column, row = source_pixels(tile, 256, "EPSG:4326", transform)
    for band in range(2):
        expected = map_coordinates(10 ** (radar[band] / 10.0), [row - 0.5, column - 0.5], order=1)
        assert np.abs(fine["s1"][0, band] / 100 - 10 * np.log10(expected)).max() < 0.05
    assert sample["tile_x"][k] == tile.x
    # Water is dark in both: the sensors see the same place.
    vh, nir = sample["s1"][:, 1].astype(float), sample["s2"][:, 7].astype(float)
    assert np.corrcoef(vh.ravel(), nir.ravel())[0, 1] > 0.1


@pytest.mark.realdata
def test_real_aerial_images_of_several_years(tmp_path: Path) -> None:
    root = SHARED_DATA / "timeseries"
    if not root.exists():
        pytest.skip("no real data")
    by_year = {}
    options = ("sensors=naip", "naip=naip_multiyear", "naip_bands=rgbn", "size=32")
    regions = tmp_path / "regions.json"
    regions.write_text(json.dumps([-99.16, 47.005, -99.13, 47.025]))
    assert len(opened(root, *options, "hires=base").listing().ids) == 15
    for order, hires in (("newest", "both"), ("name", "base")):
        source = opened(root, *options, f"order={order}", f"hires={hires}", f"regions={regions}")
        assert len(source.listing().ids) == 6
        sample = source.load([3])
        by_year[order] = 1970 + int(np.datetime64(int(sample["naip_time"][0]), "s").astype("datetime64[Y]").astype(int))
        assert sample["naip_native_gsd_m"][0] == pytest.approx(5, rel=0.001)
        assert sample["naip"].shape == (1, 4, 32, 32) and sample["naip_mask"].all()
        if hires == "both":
            assert sample["naip_2x"].shape == (1, 4, 64, 64) and sample["naip_2x_mask"].all()
    assert by_year == {"newest": 2020, "name": 2009}


@pytest.mark.realdata
def test_a_real_patch_of_bands_at_three_resolutions() -> None:
    root = SHARED_DATA / "s1s2/bigearthnet_tiny"
    if not root.exists():
        pytest.skip("no real data")
    import rasterio

    source = opened(root, "sensors=s2", "s2=tiny_s2", "s2_bands=all", "level=16", "size=128")
    sample = loaded(source)
    assert len(source.listing().ids) >= 1
    assert sample["s2_native_gsd_m"] == pytest.approx(10, rel=0.001)
    assert set(sample["s2_time"]) == {time_of_name("20170617T113321")}
    for k, band in ((1, "B02"), (5, "B06"), (9, "B09")):
        (path,) = root.rglob(f"*_{band}.tif")
        with rasterio.open(path) as file:
            values, transform, crs = file.read(1), file.transform, file.crs.to_string()
        tile = Tile(*(int(sample[f"tile_{axis}"][0]) for axis in "zxy"))
        column, row = source_pixels(tile, 128, crs, transform)
        expected = map_coordinates(values.astype(np.float64), [row - 0.5, column - 0.5], order=1, mode="nearest")
        assert np.abs(sample["s2"][0, k] - expected)[sample["s2_mask"][0] > 0].max() < 5, band


@pytest.mark.realdata
def test_a_real_file_whose_pixels_are_damaged(tmp_path: Path) -> None:
    path = SHARED_DATA / "rasters/rasterio/corrupt.tif"
    if not path.exists():
        pytest.skip("no real data")
    (tmp_path / "naip").mkdir()
    shutil.copy(path, tmp_path / "naip")
    with pytest.raises(UserError, match=r"naip/corrupt\.tif \(cannot be read"):
        opened(tmp_path, "sensors=naip", "level=18", "size=32", "hires=base")


def test_without_rasterio_the_extra_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(UserError, match="install the extra 'geo'"):
        opened(place)


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, data_prep.tiles.triplets, data_prep.tiles.export, data_prep.tiles.download\n"
        "from data_prep.readers import all_readers\n"
        "assert 'tile_triplets' in [reader.name for reader in all_readers()]\n"
        "print([name for name in ('rasterio', 'pyproj', 'torch', 'urllib.request') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
