"""Stacks of dates: order, alignment onto the first grid, masks by date, missing steps, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import transform as warp_points
from rasterio.windows import Window
from scipy.ndimage import map_coordinates

from data_prep.plan import PlanOptions
from data_prep.writer import write
from frontier.data.shards import ShardSet
from tests.conftest import SHARED_DATA, run_frontier
from tests.data_prep.geotiffs import pixels, save_tiff
from tests.data_prep.opening import every, open_with, refusal

SERIES = SHARED_DATA / "timeseries"
needs_real = pytest.mark.skipif(not SERIES.exists(), reason="the shared real imagery is not here")


read, refused = partial(open_with, "raster_series"), partial(refusal, "raster_series")


def at(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp())  # type: ignore[misc]


def test_dates_are_in_order_and_pixels_untouched(tmp_path: Path) -> None:
    values = {year: pixels(year, (2, 40, 40)) for year in (2005, 1990, 2020)}
    for name, year in (("c", 1990), ("a", 2005), ("b", 2020)):
        save_tiff(tmp_path / f"{name}_{year}.tif", values[year])
    source = read(tmp_path, size=16)
    found = every(source)
    for row, record in enumerate(source.records):
        _, top, left, _ = record.payload
        for step, year in enumerate((1990, 2005, 2020)):
            assert np.array_equal(found["series"][row, step], values[year][:, top : top + 16, left : left + 16])
    spec = source.images["series"]
    assert (spec.axes, spec.shape, spec.mask) == ("TCHW", (3, 2, 16, 16), "valid")
    assert found["times"][0, :, 0].tolist() == [at(1990, 1, 1), at(2005, 1, 1), at(2020, 1, 1)]
    assert (found["time_start"][0], found["time_end"][0]) == (at(1990, 1, 1), at(2021, 1, 1) - 1)
    assert source.listing().notes["warped_onto_the_first_grid"] == 0
    write(source, tmp_path / "out", PlanOptions())
    shards = ShardSet(tmp_path / "out")
    assert shards.read("series", 0, 4).shape == (4, 3, 2, 16, 16)
    assert shards.manifest["images"]["series"]["statistics"]["count"] == [4 * 3 * 256] * 2


def test_grids_off_by_metres_and_rows(tmp_path: Path) -> None:
    """A smooth field sampled on three grids comes back as one; the row and column that lack are masked."""

    def field(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (100 + 20 * np.sin(x / 90) * np.cos(y / 110))[None].astype(np.float32)

    for date, dx, dy, rows in (("20100101", 0, 0, 40), ("20110101", 3, -2, 39), ("20120101", -20, 10, 41)):
        row, column = np.mgrid[0:rows, 0:40] + 0.5
        transform = from_origin(500_000 + dx, 4_649_776 + dy, 10, 10)
        save_tiff(tmp_path / f"{date}.tif", field(dx + 10 * column, dy - 10 * row), transform=transform)
    source = read(tmp_path, size=40, min_valid=0)
    found = every(source)
    row, column = np.mgrid[0:40, 0:40] + 0.5
    expected = field(10 * column, -10 * row)[0]
    for step in range(3):
        there = found["valid"][0, step] == 1
        # Less the outermost pixels, which have no neighbour to be interpolated with.
        off = np.where(there, np.abs(found["series"][0, step, 0] - expected), 0)
        assert off[1:38, 1:38].max() < 0.15
        assert (found["series"][0, step, 0][~there] == 0).all()
    assert found["valid"][0, 0].all()
    assert not found["valid"][0, 1, 39].any() and found["valid"][0, 1, :39].all(), "39 rows"
    assert not found["valid"][0, 2, :, 38:].any() and found["valid"][0, 2, :, :38].all(), "two columns to the left"
    notes = source.listing().notes
    assert notes["warped_onto_the_first_grid"] == 1, "whole pixels need no warping"
    assert notes["warped"][0]["file"] == "20110101.tif" and notes["warped"][0]["size"] == [39, 40]
    assert notes["warped"][0]["shift_m"] == pytest.approx([3.0, 2.0], abs=0.01)
    near = every(read(tmp_path, size=40, min_valid=0, resampling="nearest"))
    with rasterio.open(tmp_path / "20110101.tif") as dataset:
        assert np.array_equal(near["series"][0, 1, 0, :39], dataset.read(1))


def test_another_crs_is_warped(tmp_path: Path) -> None:
    row, column = np.mgrid[0:40, 0:40] + 0.5
    save_tiff(tmp_path / "2000.tif", np.stack([500_000 + 10 * column, 4_649_776 - 10 * row]))
    transform = from_origin(2.998, 42.001, 1e-4, 1e-4)
    lon, lat = (
        part.ravel()
        for part in (2.998 + 1e-4 * (np.mgrid[0:90, 0:110][1] + 0.5), 42.001 - 1e-4 * (np.mgrid[0:90, 0:110][0] + 0.5))
    )
    x, y = (np.reshape(part, (90, 110)) for part in warp_points("EPSG:4326", "EPSG:32631", lon, lat))
    save_tiff(tmp_path / "2001.tif", np.stack([x, y]), crs="EPSG:4326", transform=transform)
    source = read(tmp_path, size=40, min_valid=0)
    found = every(source)
    there = found["valid"][0].all(axis=0) == 1
    assert there.mean() > 0.5
    off = np.abs(found["series"][0, 1] - found["series"][0, 0])[:, there]
    assert off.max() < 1.0, "a tenth of a pixel"
    assert source.listing().notes["warped"][0]["crs"] == "EPSG:4326"


def test_shorter_series_end_in_missing_steps(tmp_path: Path) -> None:
    for name, years in (("a", (2000, 2001, 2002)), ("b", (2001, 2003))):
        for year in years:
            save_tiff(
                tmp_path / name / f"{year}.tif",
                pixels(year, (1, 16, 16)),
                transform=from_origin(500_000 if name == "a" else 600_000, 4e6, 10, 10),
            )
    source = read(tmp_path, size=16)
    found = every(source)
    assert [record.id for record in source.records] == [b"a:0:0", b"b:0:0"]
    assert found["valid"].mean(axis=(2, 3)).tolist() == [[1, 1, 1], [1, 1, 0]]
    assert found["times"][1, :, 0].tolist() == [at(2001, 1, 1), at(2003, 1, 1), 0]
    assert found["valid_fraction"].tolist() == pytest.approx([1, 2 / 3])
    assert found["time_end"][1] == at(2004, 1, 1) - 1
    assert source.listing().notes["places_with_missing_steps"] == 1
    assert read(tmp_path, size=16, steps=5).images["series"].shape == (5, 1, 16, 16)
    assert "has 3 dates" in refused(tmp_path, size=16, steps=2)


def test_several_places_in_one_folder(tmp_path: Path) -> None:
    for place in ("t1", "t2"):
        for year in (2000, 2001):
            save_tiff(
                tmp_path / f"{place}_{year}.tif",
                pixels(year, (1, 16, 16)),
                transform=from_origin(5e5 + 1e4 * int(place[1]), 4e6, 10, 10),
            )
    assert "same date as" in refused(tmp_path, size=16)
    source = read(tmp_path, size=16, place_pattern="^(t.)")
    assert [record.id for record in source.records] == [b"./t1:0:0", b"./t2:0:0"]
    assert source.images["series"].shape[0] == 2
    assert "finds nothing" in refused(tmp_path, size=16, place_pattern="q")
    assert "place_pattern" in refused(tmp_path, size=16, place_pattern="(")


def test_dates_must_be_known(tmp_path: Path) -> None:
    save_tiff(tmp_path / "a_20000101.tif", pixels(0))
    save_tiff(tmp_path / "b_20010101_20020101.tif", pixels(1))
    save_tiff(tmp_path / "c.tif", pixels(2))
    text = refused(tmp_path, size=16)
    assert "several dates in its name: 20010101, 20020101" in text and "c.tif (no date in its metadata or name" in text
    source = read(tmp_path, "skip", size=16)
    assert source.images["series"].shape[0] == 1 and source.listing().notes["skipped"] == 2
    (tmp_path / "c.tif").unlink()
    source = read(tmp_path, size=16, date_pattern=r"^._(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)")
    assert every(source)["times"][0, 1, 0] == at(2001, 1, 1)


def test_masks_by_date(tmp_path: Path) -> None:
    values = pixels(0, (2, 16, 16), "uint8")
    for year, gap in ((2000, 4), (2001, 8)):
        content = values.copy()
        content[:, :gap] = 0
        save_tiff(tmp_path / f"{year}.tif", content, nodata=0)
    found = every(read(tmp_path, size=16))
    assert found["valid"][0].sum(axis=(1, 2)).tolist() == [16 * 12, 16 * 8]
    assert "no chip has 0.7" in refused(tmp_path, size=16, min_valid=0.7)


@pytest.mark.realdata
@needs_real
def test_real_naip_years(tmp_path: Path) -> None:
    """Years that differ by a row and by metres: against scipy's interpolation of the raw pixels."""
    source = read(SERIES / "naip_multiyear", size=128)
    notes = source.listing().notes
    assert notes["warped_onto_the_first_grid"] == 3
    shifts = [one["shift_m"] for one in notes["warped"]]
    assert np.allclose(shifts, [[0, 2.0], [0.6, 0.8], [-1.0, 1.0]], atol=0.002), "metres right and down, 5 m pixels"
    sample = source.load([9])
    _, top, left, _ = source.records[9].payload
    rows, columns = np.mgrid[0:128, 0:128]
    for step, (right, down) in enumerate([(0, 0), (0, 2.0), (0.6, 0.8), (-1.0, 1.0)]):
        with rasterio.open(source.places[0].layers[step].path) as dataset:
            raw = dataset.read(4).astype(float)
        # A pixel of the first grid lies this much further left and up in the other's rows and columns.
        at_rows, at_columns = rows + top - down / 5, columns + left - right / 5
        expected = map_coordinates(raw, [at_rows, at_columns], order=1)
        off = np.abs(sample["series"][0, step, 3] - expected)
        assert off.max() <= 1.0, "rounding alone"
    assert sample["times"][0, :, 0].tolist() == [at(2009, 8, 18), at(2012, 7, 31), at(2016, 8, 16), at(2020, 8, 31)]


@pytest.mark.realdata
@needs_real
def test_real_landsat_decades_by_the_command(tmp_path: Path) -> None:
    folder = SERIES / "landsat_decadal"
    arguments = ["--reader", "raster_series", "--from", folder, "--set", "size=128", tmp_path / "out"]
    done = run_frontier("shards", "write", *arguments)
    assert done.returncode == 0, done.stderr
    shards = ShardSet(tmp_path / "out")
    assert shards.manifest["images"]["series"]["shape"] == [8, 4, 128, 128]
    _, top, left = shards.column("sample_id")[0].decode().rsplit(":", 2)
    for step, year in enumerate(range(1985, 2021, 5)):
        with rasterio.open(folder / f"{year}.tif") as dataset:
            window = Window(int(left), int(top), 128, 128)
            assert np.array_equal(shards.read("series", 0, 1)[0, step], dataset.read(window=window))
            assert np.array_equal(shards.read("valid", 0, 1)[0, step], dataset.dataset_mask(window=window) > 0)
    # 8.4 degrees south: a degree of longitude is shorter on the ground than one of latitude by cos(8.4) = 0.989.
    assert shards.column("gsd_m")[0] == pytest.approx(89.2, abs=0.2)
