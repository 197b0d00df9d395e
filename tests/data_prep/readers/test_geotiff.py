"""GeoTIFF scenes as chips: pixels, places, masks, bands, labels, groups, and what is refused."""

from __future__ import annotations

import math
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from data_prep.command import main
from data_prep.plan import PlanOptions
from data_prep.rasters import raster
from data_prep.writer import write
from frontier.data.shards import ShardSet
from frontier.errors import EXIT_OK, UserError
from tests.conftest import SHARED_DATA, run_frontier
from tests.data_prep.geotiffs import pixels, save_tiff
from tests.data_prep.opening import every, open_with, refusal

RASTERS, NAIP = SHARED_DATA / "rasters", SHARED_DATA / "timeseries" / "naip_multiyear"
needs_real = pytest.mark.skipif(not RASTERS.exists(), reason="the shared real imagery is not here")


read, refused = partial(open_with, "geotiff"), partial(refusal, "geotiff")


def test_chips_are_windows_of_the_scene(tmp_path: Path) -> None:
    values = pixels(0, (3, 70, 90))
    path = save_tiff(tmp_path / "in" / "a_20200601.tif", values)
    source = read(tmp_path / "in", size=16, stride=12)
    found = every(source)
    assert len(found["image"]) == 5 * 7
    to_degrees = pyproj.Transformer.from_crs(32631, 4326, always_xy=True)
    with rasterio.open(path) as dataset:
        for row, record in enumerate(source.records):
            name, top, left = record.id.decode().rsplit(":", 2)
            window = Window(int(left), int(top), 16, 16)
            assert name == "a_20200601.tif"
            assert np.array_equal(found["image"][row], dataset.read(window=window))
            assert np.allclose(found["transform"][row], tuple(dataset.window_transform(window))[:6])
            centre = to_degrees.transform(*dataset.xy(window.row_off + 7.5, window.col_off + 7.5))
            assert (found["lon"][row], found["lat"][row]) == pytest.approx(centre, abs=1e-9)
    assert (found["valid"] == 1).all() and (found["valid_fraction"] == 1).all()
    assert (found["crs_epsg"] == 32631).all()
    assert found["gsd_m"] == pytest.approx(10 / 0.9996, rel=1e-5)
    assert (found["time_start"] == 1590969600).all() and (found["time_end"] == 1590969600 + 86399).all()
    spec = source.images["image"]
    assert (spec.shape, spec.dtype, spec.gsd_m) == ((3, 16, 16), "uint16", pytest.approx(10.004, abs=1e-3))
    backwards = source.load([7, 3, 5])
    assert np.array_equal(backwards["image"], found["image"][[7, 3, 5]])


def test_through_the_command_and_back(tmp_path: Path) -> None:
    for k in range(12):
        transform = from_origin(500_000 + 2000 * k, 4_649_776, 10, 10)
        save_tiff(tmp_path / "in" / f"d{k % 3}" / f"{k}.tif", pixels(k, (2, 40, 40)), transform=transform, nodata=9)
    arguments = [
        "write",
        "--reader",
        "geotiff",
        "--from",
        str(tmp_path / "in"),
        "--set",
        "size=16",
        "--test-fraction",
        "0.3",
    ]
    assert main([*arguments, str(tmp_path / "one")]) == EXIT_OK
    assert main([*arguments, "--workers", "2", str(tmp_path / "two")]) == EXIT_OK
    shards = [ShardSet(tmp_path / name, split="train") for name in ("one", "two")]
    assert shards[0].manifest["fingerprint"] == shards[1].manifest["fingerprint"]
    assert len(shards[0]) == 4 * 8 and len(ShardSet(tmp_path / "one", split="test")) == 4 * 4
    for row, name in enumerate(shards[0].column("sample_id")):
        scene, top, left = name.decode().rsplit(":", 2)
        with rasterio.open(tmp_path / "in" / scene) as dataset:
            window = Window(int(left), int(top), 16, 16)
            assert np.array_equal(shards[0].read("image", row, row + 1)[0], dataset.read(window=window))
    names = {name.decode().partition(":")[0] for name in shards[0].column("sample_id")}
    others = {name.decode().partition(":")[0] for name in ShardSet(tmp_path / "one", split="test").column("sample_id")}
    assert not names & others, "a scene is in one split"
    assert shards[0].manifest["notes"]["groups"] == 12
    assert shards[0].manifest["images"]["image"]["nodata"] == 9


def test_only_the_blocks_under_a_chip_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiff(tmp_path / "a.tif", pixels(0, (1, 300, 300)))
    sizes: list[int] = []
    real = raster.read_window

    def watched(dataset: Any, bands: Any, nodata: Any, row: int, column: int, height: int, width: int) -> Any:
        sizes.append(height * width)
        return real(dataset, bands, nodata, row, column, height, width)

    monkeypatch.setattr(raster, "read_window", watched)
    source = read(tmp_path / "a.tif", size=32, check="headers", min_valid=0)
    assert sizes == [], "headers only"
    source.load([5])
    assert sizes == [32 * 32]
    source = read(tmp_path / "a.tif", size=16, gsd=20, check="headers", min_valid=0)
    source.load([5])
    assert sizes[-1] < 60 * 60
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copy.load([1])["image"], source.load([1])["image"])


def test_masks_and_missing_values(tmp_path: Path) -> None:
    values = pixels(0, (2, 32, 32))
    values[:, :10, :10] = 0
    values[0, 20, 20] = 0
    save_tiff(tmp_path / "a.tif", values, nodata=0)
    found = every(read(tmp_path / "a.tif", size=16, min_valid=0))
    assert np.array_equal(found["valid"][0], (values[:, :16, :16] != 0).any(axis=0))
    assert found["valid_fraction"][0] == pytest.approx(1 - 100 / 256)
    assert found["valid"][3].all(), "by default an integer pixel is there where any band is"
    assert not every(read(tmp_path / "a.tif", size=16, min_valid=0, valid="all"))["valid"][3, 4, 4]
    source = read(tmp_path / "a.tif", size=16, min_valid=0.7)
    assert len(source.records) == 3 and source.listing().notes["chips_below_min_valid"] == 1
    assert every(read(tmp_path / "a.tif", size=16, min_valid=0.7, nodata="none"))["valid"].all()
    overridden = every(read(tmp_path / "a.tif", size=16, min_valid=0, nodata=7, valid="all"))
    assert np.array_equal(overridden["valid"][3], (values[:, 16:, 16:] != 7).all(axis=0))


def test_scenes_that_mark_missing_pixels_differently(tmp_path: Path) -> None:
    values = pixels(0, (1, 16, 16))
    values[0, 0, :3] = 7
    save_tiff(tmp_path / "a.tif", values, nodata=7)
    save_tiff(tmp_path / "b.tif", values, nodata=values[0, 5, 5])
    source = read(tmp_path, size=16)
    found = every(source)
    assert source.images["image"].nodata is None
    assert np.array_equal(found["image"][0], np.where(values == 7, 0, values))
    assert np.array_equal(found["valid"][1], (values != values[0, 5, 5])[0])


@pytest.mark.parametrize("kind", ["several values", "scaled", "floats"])
def test_a_band_that_is_missing_alone_is_never_taken_for_zero(tmp_path: Path, kind: str) -> None:
    values = pixels(0, (3, 16, 16), "float32" if kind == "floats" else "uint16") + 10
    values[0, :4] = math.nan if kind == "floats" else 7
    path = save_tiff(tmp_path / "in" / "a_20200601.tif", values, nodata=None if kind == "floats" else 7)
    if kind == "several values":
        save_tiff(tmp_path / "in" / "b_20200701.tif", pixels(1, (3, 16, 16)) + 10, nodata=5)
    settings = {"scaled": {"scaling": "apply"}, "floats": {"valid": "any"}}.get(kind, {})
    source = read(path.parent, size=16, **settings)
    found = every(source)
    assert source.images["image"].nodata is None and source.arrays["valid"].axes == "CHW"
    there = np.ones((3, 16, 16), np.uint8)
    there[0, :4] = 0
    assert np.array_equal(found["valid"][0], there)
    assert found["valid_fraction"][0] == 1, "of pixels that have a band"
    write(source, tmp_path / "out", PlanOptions())
    shards = ShardSet(tmp_path / "out", "train")
    low = shards.manifest["images"]["image"]["statistics"]["min"]
    assert min(low) > 10, "zeros that stand for nothing are no values"
    series = open_with("raster_series", path.parent, size=16, **settings)
    assert series.arrays["valid"].axes == "TCHW" and np.array_equal(every(series)["valid"][0, 0], there)


def test_scales_that_say_nothing_and_values_that_they_make_too_large(tmp_path: Path) -> None:
    for name, scale, offset in (("nan", math.nan, 0), ("zero", 0, 0), ("endless", 1, math.inf)):
        save_tiff(tmp_path / f"{name}.tif", pixels(), scales=[scale] * 3, offsets=[offset] * 3)
        assert f"scale {scale:g}, offset {offset:g} of band 1" in refused(tmp_path / f"{name}.tif", size=32)
    values = pixels(0, (1, 16, 16), "float32")
    values[0, 0, 0] = 1e30
    save_tiff(tmp_path / "large.tif", values, scales=[1e20], offsets=[0])
    found = every(read(tmp_path / "large.tif", size=16, scaling="apply"))
    assert np.isfinite(found["image"]).all() and not found["valid"][0, 0, 0] and found["valid"].sum() == 255


def test_nan_is_missing_and_never_stored(tmp_path: Path) -> None:
    values = pixels(0, (2, 32, 32)).astype(np.float32)
    values[0, 3, 4], values[1, 20, 20] = np.nan, np.inf
    save_tiff(tmp_path / "a.tif", values, nodata=math.nan)
    source = read(tmp_path / "a.tif", size=32)
    found = every(source)
    assert np.isfinite(found["image"]).all()
    assert sorted(zip(*np.nonzero(found["valid"][0] == 0), strict=True)) == [(3, 4), (20, 20)]
    assert source.images["image"].nodata is None
    assert "NaN or infinite" in refused(tmp_path / "a.tif", size=32, nan="error")
    assert "no effect" in refused(tmp_path / "a.tif", size=32, nan="error", check="headers")


def test_padding_reaches_every_pixel(tmp_path: Path) -> None:
    values = pixels(0, (1, 20, 40))
    save_tiff(tmp_path / "a.tif", values)
    found = every(read(tmp_path / "a.tif", size=32, edge="pad", min_valid=0))
    assert found["valid"].sum(axis=(1, 2)).tolist() == [20 * 32, 20 * 8]
    assert np.array_equal(found["image"][1, :, :20, :8], values[:, :, 32:])
    assert (found["image"][1, :, :, 8:] == 0).all()
    assert "less than a chip of 32" in refused(tmp_path / "a.tif", size=32)


def test_bands_by_name_with_wavelengths(tmp_path: Path) -> None:
    band_tags = {
        1: {"IMAGERY": {"CENTRAL_WAVELENGTH_UM": "0.665", "FWHM_UM": "0.03"}},
        3: {"": {"wavelength": "842", "wavelength_units": "Nanometers", "fwhm": "115"}},
    }
    values = pixels()
    save_tiff(tmp_path / "a.tif", values, names=("B04", "B03", "B08"), band_tags=band_tags)
    source = read(tmp_path / "a.tif", size=32, bands="b08,1")
    assert [(b.name, b.centre_nm, b.width_nm) for b in source.images["image"].bands] == [
        ("B08", 842.0, 115.0),
        ("B04", 665.0, 30.0),
    ]
    assert np.array_equal(every(source)["image"][0], values[[2, 0], :32, :32])
    named = read(tmp_path / "a.tif", size=32, bands="1,2", band_names="red,green")
    assert [band.name for band in named.images["image"].bands] == ["red", "green"]
    assert "no band 'B05'" in refused(tmp_path / "a.tif", bands="B05")
    assert "did you mean B08" in refused(tmp_path / "a.tif", bands="B088")
    assert "gives 2 names" in refused(tmp_path / "a.tif", band_names="x,y")


def test_alpha_is_a_mask_not_a_band(tmp_path: Path) -> None:
    values = pixels(0, (4, 32, 32), "uint8")
    values[3] = np.where(np.arange(32) < 20, 255, 0)
    save_tiff(tmp_path / "a.tif", values, photometric="RGB", alpha="yes")
    source = read(tmp_path / "a.tif", size=32)
    bands = source.images["image"].bands
    assert [band.name for band in bands] == ["red", "green", "blue"] == [band.common_name for band in bands]
    assert np.array_equal(every(source)["valid"][0], np.broadcast_to(np.arange(32) < 20, (32, 32)))


def test_scale_and_offset(tmp_path: Path) -> None:
    values = pixels(0, (2, 32, 32))
    save_tiff(tmp_path / "a.tif", values, scales=(0.0001, 0.0001), offsets=(-0.1, -0.1))
    spec = read(tmp_path / "a.tif", size=32).images["image"]
    assert (spec.scale, spec.offset, spec.dtype) == (0.0001, -0.1, "uint16")
    save_tiff(tmp_path / "b" / "b.tif", values, scales=(0.0001, 0.01), offsets=(-0.1, 0))
    assert "--set scaling=apply" in refused(tmp_path / "b", size=32)
    source = read(tmp_path / "b", size=32, scaling="apply")
    expected = values * np.array([0.0001, 0.01])[:, None, None] + np.array([-0.1, 0])[:, None, None]
    assert np.allclose(every(source)["image"][0], expected, rtol=1e-6)
    assert (source.images["image"].scale, source.images["image"].dtype) == (1.0, "float32")


def test_gsd_is_true_metres(tmp_path: Path) -> None:
    """Degrees at 60 north: one in longitude is half of one in latitude on the ground."""
    values = pixels(0, (1, 200, 400))
    save_tiff(tmp_path / "a.tif", values, crs="EPSG:4326", transform=from_origin(10, 60, 1e-4, 1e-4))
    plain = every(read(tmp_path / "a.tif", size=64))
    geod = pyproj.Geod(ellps="WGS84")
    lon, lat = plain["lon"][0], plain["lat"][0]
    along, down = (geod.inv(lon, lat, lon + 1e-4 * x, lat + 1e-4 * y)[2] for x, y in ((1, 0), (0, 1)))
    assert plain["gsd_m"][0] == pytest.approx(math.sqrt(along * down), rel=1e-5)
    source = read(tmp_path / "a.tif", size=32, gsd=30, resampling="average")
    found = every(source)
    assert found["gsd_m"] == pytest.approx(30, rel=1e-3)
    a, _, _, _, e, _ = found["transform"][0]
    assert a / -e == pytest.approx(down / along, rel=1e-3), "square on the ground, not in degrees"
    assert source.images["image"].gsd_m == pytest.approx(30, rel=1e-3)
    assert found["image"].mean() == pytest.approx(values.mean(), rel=0.02)


def test_rotated_scene(tmp_path: Path) -> None:
    turn = rasterio.Affine(8.0, 6.0, 500_000, 6.0, -8.0, 4_600_000)
    values = pixels(0, (1, 48, 48))
    save_tiff(tmp_path / "a.tif", values, transform=turn)
    found = every(read(tmp_path / "a.tif", size=16))
    assert np.array_equal(found["image"][4], values[:, 16:32, 16:32])
    assert found["gsd_m"][4] == pytest.approx(10 / 0.9996, rel=1e-5)
    x, y = 500_000 + 8 * 24 + 6 * 24, 4_600_000 + 6 * 24 - 8 * 24
    expected = pyproj.Transformer.from_crs(32631, 4326, always_xy=True).transform(x, y)
    assert (found["lon"][4], found["lat"][4]) == pytest.approx(expected, abs=1e-9)
    coarse = every(read(tmp_path / "a.tif", size=16, gsd=20))
    expected_mean = values.reshape(24, 2, 24, 2).mean(axis=(1, 3))[:16, :16]
    assert np.abs(coarse["image"][0, 0] - expected_mean).max() <= 0.55 + 0.02 * 250


def test_scenes_that_disagree_name_both_files(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    save_tiff(folder / "a.tif", pixels(0, (3, 32, 32)))
    save_tiff(folder / "b.tif", pixels(0, (4, 32, 32)))
    save_tiff(folder / "c.tif", pixels(0, (3, 32, 32), "uint8"))
    text = refused(folder, size=16)
    assert "b.tif (4 bands of uint16" in text and "a.tif has 3" in text and "c.tif (pixels of uint8" in text
    assert len(read(folder, "skip", size=16).records) == 4
    save_tiff(folder / "c.tif", pixels(0, (3, 33, 31)))
    source = read(folder, size=16, bands="1,2", group="scene")
    assert len(source.records) == 4 + 4 + 2, "a row more or less is no matter"
    save_tiff(folder / "c.tif", pixels(0, (3, 32, 32)), names=("x", "y", "z"))
    assert "'x' stands where" in refused(folder, size=16, bands="1,2")


def test_damaged_files_stop_or_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    save_tiff(folder / "a.tif", pixels(1))
    save_tiff(folder / "no_crs.tif", pixels(2), crs=None)
    bad = save_tiff(folder / "torn.tif", pixels(3), compress="deflate")
    data = bytearray(bad.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = b"\xff" * 64
    bad.write_bytes(data)
    (folder / "text.tif").write_text("hello")
    (folder / "notes.txt").write_text("not looked at")
    report = tmp_path / "out" / "unreadable.tsv"
    with pytest.raises(UserError, match="3 of 4"):
        read(folder, report=report, size=16)
    lines = dict(line.split("\t") for line in report.read_text().splitlines())
    assert set(lines) == {"no_crs.tif", "torn.tif", "text.tif"}
    assert "no CRS" in lines["no_crs.tif"] and "does not decode" in lines["torn.tif"]
    source = read(folder, "skip", size=16)
    assert source.listing().notes["skipped"] == 3 and {r.id.partition(b":")[0] for r in source.records} == {b"a.tif"}
    assert len(read(folder, "skip", size=16, crs="EPSG:32631").places) == 2
    late = read(folder / "torn.tif", size=16, check="headers", min_valid=0)
    with pytest.raises(UserError, match=r"torn\.tif: does not decode"):
        every(late)
    assert "no CRS" in refused(folder / "no_crs.tif")
    assert "not found" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ({"size": "0"}, "whole number from 1"),
        ({"size": "x"}, "whole number"),
        ({"gsd": "-3"}, "give a number"),
        ({"min_valid": "2"}, "from 0 to 1"),
        ({"crs": "EPSG:999999"}, "no such CRS"),
        ({"nodata": "black"}, "nodata=black"),
        ({"date_pattern": "(x"}, "date_pattern"),
        ({"date_pattern": "x"}, r"\(\?P<year>"),
        ({"block_m": "100"}, "without --set group=block"),
        ({"classes": "a,b"}, "without --set labels"),
        ({"band_names": "a,a"}, "twice"),
        ({"bands": "1,1"}, "twice"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, setting: dict[str, str], why: str) -> None:
    save_tiff(tmp_path / "a.tif", pixels())
    with pytest.raises(UserError, match=why):
        read(tmp_path, **({"size": 16} | setting))


def test_label_rasters(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    folder, labels = tmp_path / "in", tmp_path / "labels"
    maps = {}
    for name in ("a", "b"):
        save_tiff(folder / f"{name}.tif", pixels(0, (2, 32, 32)))
        maps[name] = random.integers(-1, 3, (1, 32, 32)).astype(np.int16)
        save_tiff(labels / f"{name}.tif", maps[name], nodata=-1)
    source = read(folder, size=16, labels=labels)
    found = every(source)
    for row, record in enumerate(source.records):
        name, top, left = record.id.decode().rsplit(":", 2)
        part = maps[name[0]][0, int(top) : int(top) + 16, int(left) : int(left) + 16]
        assert np.array_equal(found["label_map"][row], np.where(part < 0, 255, part))
    target = source.targets["label_map"]
    assert (target.kind, target.classes, target.missing) == ("segmentation", ("0", "1", "2"), 255)
    assert read(folder, size=16, labels=labels, classes="x,y,z").targets["label_map"].classes == ("x", "y", "z")
    assert "2 names, but the labels go up to 2" in refused(folder, size=16, labels=labels, classes="x,y")
    swapped = every(read(folder, size=16, labels=labels, classes="2:two,1:one,0:none"))
    assert np.array_equal(swapped["label_map"] == 0, found["label_map"] == 2)
    assert "label 0 is not among" in refused(folder, size=16, labels=labels, classes="2:two,1:one")
    (labels / "b.tif").unlink()
    assert "no label raster b.tif" in refused(folder, size=16, labels=labels)
    assert read(folder, "skip", size=16, labels=labels).listing().notes["skipped"] == 1
    save_tiff(labels / "b.tif", maps["b"])
    assert "label -1" in refused(folder, size=16, labels=labels)
    assert len(read(folder, size=16, labels=labels, label_missing=-1).records) == 8


def test_label_of_numbers_on_another_grid(tmp_path: Path) -> None:
    save_tiff(tmp_path / "a.tif", pixels(0, (2, 32, 32)))
    heights = np.repeat(np.repeat(np.arange(64, dtype=np.float32).reshape(1, 8, 8), 4, 1), 4, 2)[:, ::4, ::4]
    label = save_tiff(tmp_path / "dem" / "dem.tif", heights, transform=from_origin(500_000, 4_649_776, 40, 40))
    assert "float32 labels" in refused(tmp_path / "a.tif", size=32, labels=label)
    source = read(tmp_path / "a.tif", size=32, labels=label, label_kind="regression")
    found = every(source)["label_map"][0]
    assert source.targets["label_map"].kind == "regression" and found.dtype == np.float32
    # Linear between the centres of the coarse pixels.
    assert found[6, 6] == pytest.approx(
        np.interp((6.5 - 2) / 4, np.arange(8), heights[0, 0]) + 8 * (6.5 - 2) / 4, abs=0.05
    )


def test_group_by_blocks_and_the_plan(tmp_path: Path) -> None:
    save_tiff(tmp_path / "a.tif", pixels(0, (1, 320, 320)))
    source = read(tmp_path / "a.tif", size=16, group="block", block_m=480)
    write(source, tmp_path / "out", PlanOptions(test_fraction=0.3))
    train, test = (ShardSet(tmp_path / "out", split=split) for split in ("train", "test"))
    assert len(train) + len(test) == 400 and 100 < len(test) < 150
    auto = read(tmp_path / "a.tif", size=16)
    assert auto.listing().notes["grouped_by"] == "block"
    assert read(tmp_path / "a.tif", size=16, stride=8).listing().notes["grouped_by"] == "scene"


def test_samples_depend_on_content_not_on_where_it_lies(tmp_path: Path) -> None:
    for parent in ("one", "two"):
        for k in range(3):
            save_tiff(tmp_path / parent / "in" / f"{2 - k if parent == 'one' else k}.tif", pixels(0))
    written = [
        write(read(tmp_path / parent / "in", size=16), tmp_path / f"out-{parent}", PlanOptions()).manifest
        for parent in ("one", "two")
    ]
    assert written[0] == written[1]


def test_a_file_that_changes_under_way_is_noticed(tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "a.tif", pixels(0))
    source = read(tmp_path, size=16)
    save_tiff(path, pixels(1))
    with pytest.raises(UserError, match=r"a\.tif: changed while it was read"):
        source.load([0])
    path.unlink()
    with pytest.raises(UserError, match=r"a\.tif: cannot be read any more"):
        source.load([0])


def test_sidecars_are_counted(tmp_path: Path) -> None:
    save_tiff(tmp_path / "a.tif", pixels())
    (tmp_path / "a.tif.ovr").write_bytes(b"anything")
    assert read(tmp_path, size=16).listing().notes["sidecar_files_ignored"] == 1


def test_missing_extra_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "rasterio", None)
    (tmp_path / "a.tif").write_bytes(b"II*\0")
    assert "install the extra 'geo'" in refused(tmp_path)


def test_chips_of_a_place_that_are_all_missing(tmp_path: Path) -> None:
    save_tiff(tmp_path / "a.tif", np.zeros((1, 32, 32), np.uint8), nodata=0)
    assert "no chip has 0.5 of its pixels valid" in refused(tmp_path, size=16)


@pytest.mark.realdata
@needs_real
def test_real_naip_years_by_the_command(tmp_path: Path) -> None:
    done = run_frontier("shards", "write", "--reader", "geotiff", "--from", NAIP, "--set", "size=256", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    shards = ShardSet(tmp_path / "out")
    notes = shards.manifest["notes"]
    assert len(shards) == 4 * 2 * 3 and notes["groups"] == 1, "723 and 724 rows; all of one place"
    with rasterio.open(NAIP / "m_4709963_se_14_1_20160816.tif") as dataset:
        names = shards.column("sample_id").tolist()
        row = names.index(b"m_4709963_se_14_1_20160816.tif:256:512")
        assert np.array_equal(shards.read("image", row, row + 1)[0], dataset.read(window=Window(512, 256, 256, 256)))
    assert shards.column("time_start")[row] == 1471305600


@pytest.mark.realdata
@needs_real
def test_real_scene_over_the_date_line() -> None:
    """Chips west of the line have longitudes near 180, east of it near -180, and none is in between."""
    path = RASTERS / "rio_tiler" / "cog_dateline.tif"
    source = read(path, size=256, min_valid=0)
    lon, lat = (np.array([getattr(record, name) for record in source.records]) for name in ("lon", "lat"))
    with rasterio.open(path) as dataset:
        centres = [dataset.xy(r.payload[1] + 127.5, r.payload[2] + 127.5) for r in source.records]
        expected = pyproj.Transformer.from_crs(dataset.crs, 4326, always_xy=True).transform(*np.transpose(centres))
    assert np.allclose(lon, expected[0], rtol=0, atol=1e-9) and np.allclose(lat, expected[1], rtol=0, atol=1e-9)
    assert (np.abs(lon) > 177).all() and (lon > 0).any() and (lon < 0).any()
    listing = source.listing()
    assert listing.places is not None and len(set(listing.groups)) > 1
    degrees = every(read(path, size=64, gsd=400, min_valid=0))
    assert degrees["gsd_m"] == pytest.approx(400, rel=2e-3)


@pytest.mark.realdata
@needs_real
def test_real_folder_of_everything_is_refused_in_one_line(tmp_path: Path) -> None:
    done = run_frontier("shards", "write", "--reader", "geotiff", "--from", RASTERS / "rasterio", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert "corrupt.tif\tdoes not decode" in (tmp_path / "out" / "unreadable.tsv").read_text()


@pytest.mark.realdata
@needs_real
@pytest.mark.parametrize("name", ["_alpha", "_mask", "_nodata"])
def test_real_masks(name: str) -> None:
    path = RASTERS / f"rio_tiler/my-bucket/hro_sources/colorado/201404_13SED190110_201404_0x1500m_CL_1{name}.tif"
    found = every(read(path, size=64, min_valid=0))
    with rasterio.open(path) as dataset:
        expected = dataset.dataset_mask()[:64, :64] > 0
    assert np.array_equal(found["valid"][0], expected)
    assert found["image"].shape[1] == 3 and found["gsd_m"][0] == pytest.approx(0.15, rel=1e-2)


@pytest.mark.realdata
@needs_real
def test_real_flood_labels() -> None:
    folder = SHARED_DATA / "s1s2" / "sen1floods11" / "sample"
    path, label = folder / "S2" / "Spain_7370579_S2Hand.tif", folder / "Labels" / "Spain_7370579_LabelHand.tif"
    source = read(path, size=128, labels=label, label_missing=-1, min_valid=0)
    found = every(source)
    with rasterio.open(label) as dataset:
        values = dataset.read(1)
    whole = np.where(values < 0, 255, values)
    for row, record in enumerate(source.records):
        top, left = record.payload[1:3]
        assert np.array_equal(found["label_map"][row], whole[top : top + 128, left : left + 128])
    assert len(source.records) == 16 and source.targets["label_map"].classes == ("0", "1")


@pytest.mark.parametrize("name", ["b.tif", "missing.tif"])
def test_a_link_to_itself_or_to_nothing_is_one_line(tmp_path: Path, name: str) -> None:
    save_tiff(tmp_path / "a.tif", pixels())
    (tmp_path / "b.tif").symlink_to(tmp_path / name)
    assert "b.tif: a link that leads to nothing: remove it" in refusal("geotiff", tmp_path, size=16)
