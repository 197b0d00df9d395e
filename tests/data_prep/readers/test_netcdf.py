"""NetCDF cubes: NetCDF-4 and NetCDF-3, CF times, grids, scales and missing values; chips, pixels, and what is refused."""

from __future__ import annotations

import math
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyproj
import pytest
from scipy.io import netcdf_file

from data_prep.plan import PlanOptions
from data_prep.rasters.cube_file import CubeFile
from data_prep.readers import Request, find_reader
from data_prep.readers.registry import parse_settings
from data_prep.writer import write
from frontier.data.shards import ShardSet
from frontier.errors import UserError
from tests.conftest import SHARED_DATA, run_frontier
from tests.data_prep.opening import every, open_with, refusal

WORLDCEREAL = SHARED_DATA / "timeseries" / "worldcereal" / "inference_areas"
needs_real = pytest.mark.skipif(not WORLDCEREAL.exists(), reason="the shared real imagery is not here")
WKT = pyproj.CRS.from_epsg(32631).to_wkt("WKT1_GDAL")
Content = dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, Any]]]


def cube(steps: int = 4, height: int = 20, width: int = 24, left: float = 500_005.0, **variables: Any) -> Content:
    """Coordinates of a UTM cube of 10 m, and `variables`: (dims, values, attributes); two by default."""
    random = np.random.default_rng(0)
    shape = (steps, height, width)
    if not variables:
        variables = {
            "B2": (("t", "y", "x"), random.integers(1, 9000, shape).astype(np.int16), {"grid_mapping": "crs"}),
            "VV": (("t", "y", "x"), random.integers(1, 9000, shape).astype(np.int16), {"grid_mapping": "crs"}),
        }
    return {
        "t": (("t",), np.arange(steps, dtype=np.int32) * 30, {"units": "days since 2020-01-01", "axis": "T"}),
        "y": (("y",), 4_649_771 - 10.0 * np.arange(height), {"standard_name": "projection_y_coordinate"}),
        "x": (("x",), left + 10.0 * np.arange(width), {"standard_name": "projection_x_coordinate"}),
        "crs": ((), np.array(0, np.int32), {"crs_wkt": WKT}),
        **variables,
    }


def save4(path: Path, content: Content, attributes: dict[str, Any] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, (_, values, items) in content.items():
            chunks = {"chunks": True, "compression": "gzip"} if values.ndim > 1 else {}
            file.create_dataset(name, data=values, **chunks).attrs.update(items)
        for name, (dims, _, _) in content.items():
            if dims == (name,):
                file[name].make_scale(name)
        for name, (dims, _, _) in content.items():
            for place, dim in enumerate(dims):
                if dim in content and dims != (name,):
                    file[name].dims[place].attach_scale(file[dim])
        file.attrs.update(attributes or {})
    return path


def save3(path: Path, content: Content) -> Path:
    with netcdf_file(path, "w") as file:
        for name, (dims, values, items) in content.items():
            for dim, size in zip(dims, values.shape, strict=True):
                if dim not in file.dimensions:
                    file.createDimension(dim, size)
            variable = file.createVariable(name, values.dtype, dims)
            variable[...] = values
            for key, value in items.items():
                setattr(variable, key, value)
    return path


read, refused = partial(open_with, "netcdf"), partial(refusal, "netcdf")


@pytest.mark.parametrize("kind", ["netcdf4", "netcdf3"])
def test_chips_of_both_kinds(tmp_path: Path, kind: str) -> None:
    content = cube()
    (save4 if kind == "netcdf4" else save3)(tmp_path / "a.nc", content)
    source = read(tmp_path, size=8)
    found = every(source)
    spec = source.images["series"]
    assert (spec.axes, spec.shape, spec.dtype) == ("TCHW", (4, 2, 8, 8), "int16")
    assert [band.name for band in spec.bands] == ["B2", "VV"]
    assert len(source.records) == 2 * 3
    to_degrees = pyproj.Transformer.from_crs(32631, 4326, always_xy=True)
    for row, record in enumerate(source.records):
        _, top, left, _ = record.payload
        for band, name in enumerate(("B2", "VV")):
            part = content[name][1][:, top : top + 8, left : left + 8]
            assert np.array_equal(found["series"][row, :, band], part)
        # Coordinates are pixel centres: the middle of 8 pixels lies 3.5 further.
        x, y = content["x"][1][left] + 35, content["y"][1][top] - 35
        assert (found["lon"][row], found["lat"][row]) == pytest.approx(to_degrees.transform(x, y), abs=1e-9)
        assert found["transform"][row].tolist() == [10, 0, content["x"][1][left] - 5, 0, -10, content["y"][1][top] + 5]
    assert found["times"][0, :, 0].tolist() == [1577836800 + 30 * 86400 * k for k in range(4)]
    assert (found["crs_epsg"] == 32631).all() and found["valid"].all()
    assert found["gsd_m"] == pytest.approx(10 / 0.9996, rel=1e-5)


def test_single_pixels_with_labels(tmp_path: Path) -> None:
    content = cube()
    labels = np.random.default_rng(1).choice([0, 100, 255], (20, 24)).astype(np.uint8)
    content["crop"] = (("y", "x"), labels, {"_FillValue": np.uint8(255)})
    content["height"] = (("x", "y"), np.arange(24 * 20, dtype=np.float32).reshape(24, 20), {"units": "m"})
    save4(tmp_path / "a.nc", content)
    source = read(
        tmp_path, unit="pixel", stride=3, label="crop", classes="0:other,100:crop", static="height", variables="VV,B2"
    )
    assert source.images["series"].axes == "TC" and source.images["static"].axes == "C"
    found, listing = every(source), source.listing()
    assert len(source.records) == 7 * 8 and listing.classes == ("other", "crop")
    for row, record in enumerate(source.records):
        _, top, left, _ = record.payload
        assert np.array_equal(found["series"][row, :, 0], content["VV"][1][:, top, left])
        assert found["static"][row, 0] == content["height"][1][left, top]
        assert listing.labels[row] == {0: 0, 100: 1, 255: -1}[labels[top, left]]
    backwards = source.load([50, 0, 9])
    assert np.array_equal(backwards["series"], found["series"][[50, 0, 9]])
    write(source, tmp_path / "out", PlanOptions(test_fraction=0.25))
    assert ShardSet(tmp_path / "out").manifest["targets"]["label"]["classes"] == ["other", "crop"]
    assert "label 100 is not among" in refused(tmp_path, size=8, label="crop", classes="0:other,7:crop")
    chips = read(tmp_path, size=8, label="crop", classes="0:other,100:crop")
    assert chips.targets["label_map"].kind == "segmentation"
    expected = np.select([labels == 0, labels == 100], [0, 1], 255)[:8, :8]
    assert np.array_equal(every(chips)["label_map"][0], expected)


def test_missing_values_by_band_and_time(tmp_path: Path) -> None:
    one = np.random.default_rng(0).integers(1, 99, (3, 8, 8)).astype(np.int16)
    two, three, four = one.copy(), one.astype(np.float32), one.copy()
    one[0, 0, 0], two[1, 1, 1], three[2, 2, 2], four[0, 3, 3] = -1, -9, np.nan, 99
    content = cube(
        3,
        8,
        8,
        one=(("t", "y", "x"), one, {"_Unsigned": "true", "_FillValue": np.int16(-1)}),
        two=(("t", "y", "x"), two, {"missing_value": np.int16(-9)}),
        three=(("t", "y", "x"), three, {}),
        four=(
            ("t", "y", "x"),
            np.where(four == 99, 500, four).astype(np.int16),
            {"valid_range": np.array([0, 200], np.int16)},
        ),
    )
    save4(tmp_path / "a.nc", content)
    source = read(tmp_path, size=8)
    found = every(source)
    gaps = sorted(zip(*np.nonzero(found["valid"][0] == 0), strict=True))
    names = [band.name for band in source.images["series"].bands]
    assert names == sorted(names) == ["four", "one", "three", "two"], "HDF5 lists by name"
    assert gaps == [(0, 0, 3, 3), (0, 1, 0, 0), (1, 3, 1, 1), (2, 2, 2, 2)]
    assert np.isfinite(found["series"]).all() and (found["series"][found["valid"] == 0] == 0).all()
    assert found["series"].dtype == np.float32
    assert found["valid_fraction"][0] == pytest.approx(1 - 4 / (3 * 4 * 64))


def test_fill_value_of_the_file_and_by_setting(tmp_path: Path) -> None:
    values = np.full((2, 4, 4), 7, np.int16)
    values[0, 0, 0], values[1, 1, 1] = -1, 5
    content = cube(2, 4, 4, a=(("t", "y", "x"), values, {"_Unsigned": "true"}))
    save4(tmp_path / "a.nc", content, {"_FillValue": np.array([65535])})
    source = read(tmp_path, size=4)
    assert source.images["series"].dtype == "uint16"
    assert np.argwhere(every(source)["valid"][0] == 0).tolist() == [[0, 0, 0, 0]]
    assert source.listing().notes["fill_value_of_the_whole_file_used"] == 1
    assert np.argwhere(every(read(tmp_path, size=4, fill=5))["valid"][0] == 0).tolist() == [[1, 0, 1, 1]]


def test_scale_factor(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 100, (2, 4, 4)).astype(np.int16)
    items = {"scale_factor": 0.01, "add_offset": 5.0}
    save4(tmp_path / "a.nc", cube(2, 4, 4, a=(("t", "y", "x"), values, items), b=(("t", "y", "x"), values, items)))
    spec = read(tmp_path, size=4).images["series"]
    assert (spec.scale, spec.offset, spec.dtype) == (0.01, 5.0, "int16")
    found = every(read(tmp_path, size=4, scaling="apply"))
    assert np.allclose(found["series"][0, :, 0], values * 0.01 + 5)
    save4(tmp_path / "b.nc", cube(2, 4, 4, a=(("t", "y", "x"), values, items), b=(("t", "y", "x"), values, {})))
    assert "scaling=apply" in refused(tmp_path / "b.nc", size=4)
    found = every(read(tmp_path / "b.nc", size=4, scaling="apply"))
    assert np.allclose(found["series"][0, :, 1], values)
    for items in ({"scale_factor": math.nan}, {"scale_factor": 0.0}, {"add_offset": math.inf}):
        save4(tmp_path / "b.nc", cube(2, 4, 4, a=(("t", "y", "x"), values, items)))
        assert "scale_factor" in refused(tmp_path / "b.nc", size=4) and "of a: mend" in refused(
            tmp_path / "b.nc", size=4
        )


def test_band_dimension_any_order_and_backward_time(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 100, (6, 3, 5, 2)).astype(np.uint8)
    content: Content = {
        "time": (("time",), np.array([9.0, 3.0, 6.0]), {"units": "hours since 2020-01-01"}),
        "lat": (("lat",), 10 + 0.5 * np.arange(5), {"units": "degrees_north"}),
        "lon": (("lon",), 200 + 0.5 * np.arange(6), {"units": "degrees_east"}),
        "band": (("band",), np.array([b"red", b"nir"]), {}),
        "data": (("lon", "time", "lat", "band"), values, {}),
    }
    save4(tmp_path / "a.nc", content)
    source = read(tmp_path, size=4)
    found = every(source)
    assert [band.name for band in source.images["series"].bands] == ["data_red", "data_nir"]
    assert np.array_equal(found["series"][0], values.transpose(1, 3, 2, 0)[[1, 2, 0], :, :4, :4])
    assert np.diff(found["times"][0, :, 0]).tolist() == [3 * 3600] * 2
    assert found["lon"][0] == pytest.approx(200 + 0.75 - 360) and found["lat"][0] == pytest.approx(10.75)
    assert found["crs_epsg"][0] == 4326
    assert found["transform"][0].tolist() == pytest.approx([0.5, 0, 199.75, 0, 0.5, 9.75]), "rows go north"


def test_shorter_cubes_end_in_missing_steps(tmp_path: Path) -> None:
    for name, steps, left in (("a", 4, 500_005.0), ("b", 3, 600_005.0)):
        save4(tmp_path / f"{name}.nc", cube(steps, 8, 8, left))
    source = read(tmp_path, size=8)
    found = every(source)
    assert found["valid"].mean(axis=(2, 3, 4)).tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert found["times"][1, 3].tolist() == [0, 0] and found["time_end"][1] == found["times"][1, 2, 1]
    assert source.listing().notes["cubes_with_missing_steps"] == 1
    assert "4 steps" in refused(tmp_path, size=8, steps=3)


def without(content: Content, name: str, **changed: Any) -> Content:
    return {key: changed.get(key, value) for key, value in content.items() if key != name}


def test_what_is_refused_and_why(tmp_path: Path) -> None:
    content = cube()

    def why(name: str, changed: Content, **settings: Any) -> str:
        return refused(save4(tmp_path / f"{name}.nc", changed), **({"size": 8} | settings))

    t, y, x, b2 = (content[name] for name in ("t", "y", "x", "B2"))
    bare = content | {"time": (("time",), t[1], {})}
    bare = {key: value for key, value in bare.items() if key != "t"}
    bare |= {"B2": (("time", "y", "x"), b2[1], {}), "VV": (("time", "y", "x"), b2[1], {})}
    assert "not of the form 'days since" in why("units", bare)
    assert "no variable has the dimensions time, y and x" in why("none", {"t": t, "y": y, "x": x})
    assert "no CRS" in why("crs", without(content, "crs"))
    assert read(save4(tmp_path / "crs.nc", without(content, "crs")), size=8, crs="EPSG:32631").places[0].epsg == 32631
    assert "calendar 'noleap'" in why("cal", content | {"t": (t[0], t[1], t[2] | {"calendar": "noleap"})})
    assert "same time" in why("twice", content | {"t": (t[0], t[1] * 0, t[2])})
    uneven = x[1].copy()
    uneven[3] += 4
    assert "not evenly spaced" in why("uneven", content | {"x": (x[0], uneven, x[2])})
    assert "cannot be understood" in why("wkt", content | {"crs": ((), np.array(0), {"crs_wkt": "PROJCS["})})
    assert "no steps along 't'" in why("empty", cube(0))
    assert "did you mean VV" in why("name", content, variables="Vv")
    assert "less than a chip" in why("size", content, size=21)
    assert "has no effect with unit=pixel" in why("pixel", content, unit="pixel", size=8)
    with h5py.File(tmp_path / "nt.nc", "w") as file:
        for name in ("x", "y"):
            file[name] = content[name][1]
            file[name].make_scale(name)
        file["B2"] = b2[1]
        file["t"] = np.zeros(4)
        file["t"].make_scale("This is a netCDF dimension but not a netCDF variable.         4")
        for place, name in enumerate(("t", "y", "x")):
            file["B2"].dims[place].attach_scale(file[name])
    assert "no time coordinate" in refused(tmp_path / "nt.nc", size=8, crs="EPSG:32631")


def test_damaged_files(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    whole = save4(folder / "whole.nc", cube())
    data = whole.read_bytes()
    (folder / "cut4.nc").write_bytes(data[: len(data) * 2 // 3])
    save3(folder / "cut3.nc", cube())
    classic = (folder / "cut3.nc").read_bytes()
    (folder / "cut3.nc").write_bytes(classic[: len(classic) * 2 // 3])
    with h5py.File(whole) as file:
        info = file["VV"].id.get_chunk_info(0)
    torn = bytearray(data)
    torn[info.byte_offset + 20 : info.byte_offset + 60] = b"\xff" * 40
    (folder / "torn.nc").write_bytes(torn)
    (folder / "text.nc").write_text("hello")
    (folder / "empty.nc").touch()
    (folder / "five.nc").write_bytes(b"CDF\x05" + b"\0" * 64)
    reader = find_reader("netcdf")
    request = Request(folder, reader, settings=parse_settings(reader, ["size=8"]), report=tmp_path / "bad.tsv")
    with pytest.raises(UserError, match="6 of 7 files"):
        reader.open(request)
    lines = dict(line.split("\t") for line in (tmp_path / "bad.tsv").read_text().splitlines())
    assert "damaged or cut short" in lines["cut4.nc"] and "damaged or cut short" in lines["cut3.nc"]
    assert "VV does not decode" in lines["torn.nc"] and "neither HDF5 nor CDF" in lines["text.nc"]
    assert "empty file" in lines["empty.nc"] and "CDF-5" in lines["five.nc"]
    source = read(folder, "skip", size=8)
    assert source.listing().notes["skipped"] == 6 and len(source.cubes) == 1


def test_a_file_that_changes_under_way_is_noticed(tmp_path: Path) -> None:
    source = read(save4(tmp_path / "a.nc", cube()), size=8)
    save4(tmp_path / "a.nc", cube(3))
    with pytest.raises(UserError, match=r"a\.nc: changed while it was read"):
        source.load([0])


def test_data_in_other_files_are_refused(tmp_path: Path) -> None:
    save4(tmp_path / "secret.h5", cube())
    for kind in ("link", "external"):
        content = cube()
        shape = content["VV"][1].shape
        path = save4(tmp_path / f"{kind}.nc", without(content, "VV"))
        with h5py.File(path, "a") as file:
            if kind == "link":
                file["VV"] = h5py.ExternalLink("secret.h5", "VV")
            else:
                file.create_dataset("VV", shape, "i2", external=[(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)])
        assert "another file" in refused(path, size=8)


def test_a_variable_that_stores_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    """A chunk that deflate would make 8 MiB of, in the place of a few values."""
    content = cube()
    shape = content["VV"][1].shape
    path = save4(tmp_path / "bomb.nc", without(content, "VV"))
    with h5py.File(path, "a") as file:
        bomb = file.create_dataset("VV", shape, "i2", chunks=shape, compression="gzip")
        bomb.id.write_direct_chunk((0,) * len(shape), zlib.compress(bytes(max(8 << 20, 2048 * bomb.nbytes))))
    assert "VV stores" in refused(path, size=8)


def test_cubes_that_disagree_name_both(tmp_path: Path) -> None:
    save4(tmp_path / "a.nc", cube())
    save4(tmp_path / "b.nc", without(cube(), "VV"))
    text = refused(tmp_path, size=8)
    assert "b.nc (bands differ from" in text and "a.nc (in one only: VV)" in text
    assert len(read(tmp_path, size=8, variables="B2").cubes) == 2


@pytest.mark.realdata
@needs_real
def test_real_worldcereal_by_the_command(tmp_path: Path) -> None:
    arguments = ["--set", "size=16", "--set", "static=elevation,slope", tmp_path / "out"]
    done = run_frontier("shards", "write", "--reader", "netcdf", "--from", WORLDCEREAL, *arguments)
    assert done.returncode == 0, done.stderr
    shards = ShardSet(tmp_path / "out")
    spec = shards.manifest["images"]["series"]
    assert spec["shape"] == [20, 13, 16, 16] and spec["dtype"] == "uint16"
    names = [band["name"] for band in spec["bands"]]
    with h5py.File(next(WORLDCEREAL.glob("*.nc"))) as file:
        for row, name in enumerate(shards.column("sample_id").tolist()):
            top, left = (int(part) for part in name.decode().rsplit(":", 2)[1:])
            for band, variable in enumerate(names):
                raw = file[variable][:, top : top + 16, left : left + 16].view(np.uint16)
                mask = shards.read("valid", row, row + 1)[0, :, band]
                assert np.array_equal(mask, raw != 65535)
                assert np.array_equal(shards.read("series", row, row + 1)[0, :, band], np.where(mask, raw, 0))
            assert np.array_equal(
                shards.read("static", row, row + 1)[0, 0], file["elevation"][top : top + 16, left : left + 16]
            )
    assert (shards.column("crs_epsg") == 32631).all()
    assert (shards.column("time_start")[0], shards.column("time_end")[0]) == (1596240000, 1646092800)
    assert 50 < shards.column("lat")[0] < 51 and 5 < shards.column("lon")[0] < 6


def test_unsigned_twins_bound_what_is_valid(tmp_path: Path) -> None:
    stored = np.tile(np.array([-128, -2, -1, 0, 100], np.int8), (4, 20, 4))
    items = {"_Unsigned": "true", "valid_range": np.array([0, -2], np.int8)}
    source = read(save4(tmp_path / "a.nc", cube(4, 20, 20, v=(("t", "y", "x"), stored, items))), size=20)
    sample = source.load([0])
    unsigned = stored.view(np.uint8)
    np.testing.assert_array_equal(sample["valid"][0, :, 0], unsigned <= 254)
    np.testing.assert_array_equal(sample["series"][0, :, 0], np.where(unsigned <= 254, unsigned, 0))


@pytest.mark.parametrize(("dtype", "fill"), [("f4", 9.969209968386869e36), ("i2", -32767), ("i4", -2147483647)])
def test_what_was_never_written_is_missing(tmp_path: Path, dtype: str, fill: float) -> None:
    values = np.full((4, 20, 20), 7, dtype)
    values[1, :, :5] = fill
    for save, name in ((save3, "a.nc"), (save4, "b.nc")):
        sample = read(save(tmp_path / name, cube(4, 20, 20, v=(("t", "y", "x"), values, {}))), size=20).load([0])
        np.testing.assert_array_equal(sample["valid"][0, :, 0], values == 7)
        assert sample["series"].max() == 7
    told = cube(4, 20, 20, v=(("t", "y", "x"), values, {"_FillValue": np.array(-1, dtype)}))
    assert read(save4(tmp_path / "c.nc", told), size=20).load([0])["valid"].all(), "another value was declared"


def test_what_cannot_be_placed_dated_or_held_is_one_line(tmp_path: Path) -> None:
    wkt = 'ENGCRS["l",EDATUM["x"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["m",1]]'
    content = cube() | {"crs": ((), np.array(0), {"crs_wkt": wkt})}
    assert "cannot be brought to longitude and latitude" in refused(save4(tmp_path / "a.nc", content), size=8)
    far = cube() | {"t": (("t",), np.arange(4) * 1e300, {"units": "days since 2020-01-01"})}
    assert "seconds from its origin" in refused(save4(tmp_path / "b.nc", far), size=8)
    with h5py.File(tmp_path / "huge.nc", "w") as file:
        file.create_dataset("v", (1, 1 << 23, 1 << 23), "u1", chunks=(1, 1024, 1024))
    with CubeFile(tmp_path / "huge.nc") as cubes, pytest.raises(UserError, match=r"huge\.nc: v of shape .* memory"):
        cubes.read("v")
