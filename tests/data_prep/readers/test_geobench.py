"""GEO-Bench v1.0: made-up tasks of the published layout, their defects, and files that are not to be trusted."""

from __future__ import annotations

import datetime
import json
import os
import pickle
import sys
import types
import zlib
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_prep.plan import PlanOptions
from data_prep.readers.geobench import GEOBENCH, GeobenchSource, open_geobench
from data_prep.readers.geobench_probe import NOT_A_TIME
from data_prep.readers.geobench_tasks import ALIASES, PARTITIONS, TASKS, inputs_of
from data_prep.readers.registry import Request, find_reader, parse_settings
from data_prep.writer import write
from frontier.data.shards import ShardSet
from frontier.errors import UserError
from tests.conftest import run_frontier

S2 = [
    "01 - Coastal aerosol",
    "02 - Blue",
    "03 - Green",
    "04 - Red",
    "05 - Vegetation Red Edge",
    "06 - Vegetation Red Edge",
    "07 - Vegetation Red Edge",
    "08 - NIR",
    "08A - Vegetation Red Edge",
    "09 - Water vapour",
    "10 - SWIR - Cirrus",
    "11 - SWIR",
    "12 - SWIR",
]
WKT_32634 = 'PROJCS["WGS 84 / UTM zone 34N",GEOGCS["WGS 84",AUTHORITY["EPSG","4326"]],AUTHORITY["EPSG","32634"]]'


class _Object:
    def __init__(self, **state: Any) -> None:
        self.__dict__.update(state)


def _made(module: str, name: str, base: type = _Object, **members: Any) -> type:
    made = type(name, (base,), members)
    made.__module__, made.__qualname__ = module, name
    return made


Sentinel2 = _made("geobench.dataset", "Sentinel2")
SegmentationClasses = _made("geobench.dataset", "SegmentationClasses")
Classification = _made("geobench.label", "Classification")
MultiLabel = _made("geobench.label", "MultiLabelClassification")
Specs = _made("geobench.task", "TaskSpecifications")
# As affine 2 does: a tuple of nine whose pickle has the first six.
Affine = _made(
    "affine", "Affine", namedtuple("Affine", "a b c d e f g h i"), __getnewargs__=lambda self: tuple(self)[:6],
    __new__=lambda cls, *six: tuple.__new__(cls, (*six, 0.0, 0.0, 1.0)),
)  # fmt: skip
CRS = _made("rasterio.crs", "CRS", object, __getstate__=lambda self: WKT_32634, __setstate__=lambda self, state: None)


def dumps(value: Any, protocol: int = 4) -> bytes:
    """As pickle writes it where geobench, affine and rasterio are installed."""
    names = ("geobench", "geobench.dataset", "geobench.label", "geobench.task", "affine", "rasterio", "rasterio.crs")
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: types.ModuleType(name) for name in names})
    for made in (Sentinel2, SegmentationClasses, Classification, MultiLabel, Specs, Affine, CRS):
        setattr(sys.modules[made.__module__], made.__name__, made)
    try:
        return pickle.dumps(value, protocol)
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def write_sample(
    folder: Path,
    name: str,
    bands: dict[str, np.ndarray],
    label: Any,
    date: datetime.date | None = None,
    transform: Any = None,
    crs: Any = None,
    meta_info: Any = None,
    **more: Any,
) -> Path:
    """As geobench's write_sample_hdf5: a dataset a band, one attribute with all the rest."""
    meta: dict[str, Any] = {}
    order = []
    with h5py.File(folder / f"{name}.hdf5", "w") as file:
        stored = bands | ({"label": label} if isinstance(label, np.ndarray) and label.ndim == 2 else {})
        if "label" not in stored:
            meta["label"] = label
        for band, values in stored.items():
            dataset = band if date is None else f"{band}_{date:%Y-%m-%d}"
            file.create_dataset(dataset, data=values)
            order.append(dataset)
            meta[dataset] = {
                "date": date,
                "date_id": date,
                "spatial_resolution": np.int64(10),
                "band_info": Sentinel2(name=band, alt_names=(band[:2],), spatial_resolution=10, wavelength=0.5),
                "meta_info": meta_info,
                "transform": transform,
                "crs": crs,
            }
        file.attrs["pickle"] = str(dumps(meta | {"bands_order": order} | more))
    return folder / f"{name}.hdf5"


def finish(folder: Path, label_type: Any, partition: dict[str, list[str]], name: str = "default") -> None:
    (folder / f"{name}_partition.json").write_text(json.dumps(partition))
    if label_type is not None:
        specs = Specs(dataset_name=folder.name, patch_size=(8, 8), n_time_steps=1, label_type=label_type)
        (folder / "task_specs.pkl").write_bytes(dumps(specs))


def task_folder(root: Path, task: str) -> Path:
    folder = root / f"{TASKS[task].kind}_v1.0" / task
    folder.mkdir(parents=True)
    return folder


def split_ids(ids: Sequence[str]) -> dict[str, list[str]]:
    return {"train": list(ids[:-2]), "valid": [ids[-2]], "test": [ids[-1]]}


def make_task(root: Path, task: str, size: int = 8, count: int = 5, **how: Any) -> Path:
    """A task with random pixels: one dataset a band, as many classes as the published one."""
    folder, facts = task_folder(root, task), TASKS[task]
    random = np.random.default_rng(3)
    ids = [f"id_{number:04d}" for number in range(count)]
    stored = inputs_of(task, False)
    for number, name in enumerate(ids):
        bands = {}
        for given in stored.values():
            for band, _ in given.bands:
                shape = (size, size) if given.planes == 1 else (size // 2, size // 2, given.planes)
                bands[band] = random.integers(0, 255, shape).astype(np.int16)
        label: Any = number % facts.count
        if facts.target == "multilabel":
            label = (random.random(43) < 0.2).astype(np.int64)
        if facts.target == "segmentation":
            label = random.integers(0, facts.count, (size, size)).astype(np.uint8)
        write_sample(folder, name, bands, label, **how)
    kind = {"multilabel": MultiLabel, "classification": Classification, "segmentation": SegmentationClasses}[
        facts.target
    ]
    names = [f"name {number}" for number in range(facts.count)]
    finish(folder, kind(n_classes=facts.count, class_name=names, _class_names=names), split_ids(ids))
    return folder


def read(root: Path, *given: str, **options: Any) -> GeobenchSource:
    return open_geobench(Request(root, GEOBENCH, settings=parse_settings(GEOBENCH, given), **options))


def eurosat(root: Path, **how: Any) -> Path:
    """Band k of sample n is full of 100 n + k, whatever it is called."""
    folder = task_folder(root, "m-eurosat")
    ids = [f"id_{number}" for number in range(6)]
    for number, name in enumerate(ids):
        bands = {band: np.full((8, 8), 100 * number + k, np.int16) for k, band in enumerate(S2)}
        write_sample(folder, name, bands, number % 10, **how)
    names = [f"class{number}" for number in range(10)]
    finish(folder, Classification(n_classes=10, _class_names=names), split_ids(ids))
    finish(folder, None, {"train": ids[:1], "valid": [ids[-2]], "test": [ids[-1]]}, "0.01x_train")
    by_class = {str(number): [f"id_{number}"] for number in range(6)}
    (folder / "label_map.json").write_text(json.dumps(by_class))
    return folder


def test_eurosat_with_true_band_names(tmp_path: Path) -> None:
    eurosat(tmp_path)
    write(read(tmp_path, "task=m-eurosat"), tmp_path / "out", PlanOptions())
    train, val, test = (ShardSet(tmp_path / "out", split) for split in ("train", "val", "test"))
    assert [len(shards) for shards in (train, val, test)] == [4, 1, 1]
    assert train.classes == [f"class{number}" for number in range(10)]
    spec = train.manifest["images"]["image"]
    names = [band["name"] for band in spec["bands"]]
    assert names == [*(f"B{number:02d}" for number in range(1, 13)), "B8A"]
    assert spec["sensor"] == "Sentinel-2 L1C" and spec["scale"] == 1e-4 and spec["dtype"] == "int16"
    waves = {band["name"]: band["centre_nm"] for band in spec["bands"]}
    assert waves["B10"] == 1373.5 and waves["B8A"] == 864.7 and waves["B11"] == 1613.7
    # The dataset called 09 is the tenth channel: the true B10 (issue 28).
    for name, label, image in zip(
        train.column("sample_id"), train.column("label"), train.read("image", 0, 4), strict=True
    ):
        number = int(name.decode().removeprefix("id_"))
        assert label == number
        assert image[:, 0, 0].tolist() == [100 * number + k for k in range(13)]
    assert test.column("sample_id").tolist() == [b"id_5"]
    assert train.manifest["targets"]["label"]["kind"] == "classification"
    assert train.manifest["license"] == "CC-BY-4.0"
    notes = train.manifest["notes"]
    assert notes["samples_published_are_verified"] is True
    assert notes["complete"] is False and notes["samples_published"] == {"train": 2000, "val": 1000, "test": 1000}
    assert notes["pixels_published"] == 64 and notes["class_names"] == "task_specs.pkl"
    assert set(train.manifest["columns"]) == {"sample_id", "label", "gsd_m", "crc32"}


def test_band_names_as_the_files_have_them(tmp_path: Path) -> None:
    eurosat(tmp_path)
    source = read(tmp_path, "task=m-eurosat", "band_fix=no")
    bands = source.images["image"].bands
    assert [band.name for band in bands] == S2
    assert bands[9].centre_nm == 945.1
    fixed = read(tmp_path, "task=m-eurosat")
    assert fixed.describe() != source.describe()
    assert np.array_equal(fixed.load([3])["image"], source.load([3])["image"]), "the pixels are the same"


def test_bands_of_a_later_release_are_not_mended_twice(tmp_path: Path) -> None:
    folder = task_folder(tmp_path, "m-eurosat")
    right = [*S2[:8], *S2[9:], S2[8]]
    for name in ("a", "b", "c"):
        write_sample(folder, name, {band: np.zeros((8, 8), np.int16) for band in right}, 1)
    finish(folder, None, split_ids(["a", "b", "c"]))
    with pytest.raises(UserError, match=r"3 of 3 samples.*not stored as in v1.0.*pass --set band_fix=no"):
        read(folder)
    source = read(folder, "band_fix=no")
    assert source.images["image"].bands[8].name == S2[8], "read by name"


def test_brick_kiln_is_ten_bands_and_a_true_colour_image(tmp_path: Path) -> None:
    folder = task_folder(tmp_path, "m-brick-kiln")
    transform = Affine(0.0001, 0, 90.0, 0, -0.0001, 24.0)
    for name in ("a", "b", "c"):
        bands = {band: np.full((8, 8), k, np.int16) for k, band in enumerate(S2)}
        write_sample(folder, name, bands, 1, transform=transform, crs="EPSG:4326")
    finish(folder, None, split_ids(["a", "b", "c"]))
    source = read(tmp_path, "task=m-brick-kiln")
    names = [band.name for band in source.images["image"].bands]
    assert names == ["B01", "B02", "B03", "B04", "B05", "B07", "B8A", "B08", "B11", "B12"]
    assert [band.name for band in source.images["true_colour"].bands] == ["red", "green", "blue"]
    loaded = source.load([0])
    assert loaded["image"][0, :, 0, 0].tolist() == list(range(10))
    assert loaded["true_colour"][0, :, 0, 0].tolist() == [10, 11, 12]
    assert loaded["lon"][0] == pytest.approx(90.0004) and loaded["lat"][0] == pytest.approx(23.9996)
    assert loaded["transform"][0].tolist() == [0.0001, 0, 90, 0, -0.0001, 24]
    assert loaded["crs_epsg"][0] == 4326
    assert read(folder, "band_fix=no").images["image"].shape == (13, 8, 8)
    assert source.classes == ("not brick kiln", "brick kiln"), "the published list, without task_specs.pkl"


def test_so2sat_keeps_two_sensors_and_reflectance(tmp_path: Path) -> None:
    folder = task_folder(tmp_path, "m-so2sat")
    random = np.random.default_rng(0)
    sar = [name for name, _ in inputs_of("m-so2sat", False)["s1"].bands]
    assert len(sar) == 8 and len(set(sar)) == 8
    optical = [band for band in S2 if band[:2] not in ("01", "09", "10")]
    pixels = {}
    for name in ("a", "b", "c"):
        pixels[name] = {band: random.random((32, 32)).astype(np.float32) * 2.8 for band in sar + optical}
        write_sample(folder, name, pixels[name], np.int64(16))
    finish(folder, None, split_ids(["a", "b", "c"]))
    source = read(folder)
    assert (source.images["s1"].shape, source.images["s2"].shape) == ((8, 32, 32), (10, 32, 32))
    assert source.images["s2"].scale == 1 and source.images["s2"].units == "reflectance"
    loaded = source.load([1])
    assert np.array_equal(loaded["s2"][0], np.stack([pixels["b"][band] for band in optical]))
    assert np.array_equal(loaded["s1"][0], np.stack([pixels["b"][band] for band in sar]))
    assert source.listing().labels.tolist() == [16, 16, 16] and source.classes[16] == "water"


def test_forestnet_dates_clouds_and_places(tmp_path: Path) -> None:
    folder = task_folder(tmp_path, "m-forestnet")
    bands = {band: np.zeros((8, 8), np.uint8) for band, _ in inputs_of("m-forestnet", False)["image"].bands}
    degrees = 15 / 111_320
    transform = Affine(degrees, 0.0, 110.0, 0.0, -degrees, -1.0)
    told = {"n_cloud_pixels": 16, "is_composite": False, "forest_loss_region": "POLYGON " * 20_000}
    ids = ["-1.0_110.0_2013_05_06", "-1.0_110.0_2014_01_01", "-2.0_110.0_2013_05_06"]
    for name, info, day in zip(
        ids,
        [told, told | {"n_cloud_pixels": None, "is_composite": True}, told],
        [(2013, 5, 6), (2014, 1, 1), (2013, 5, 6)],
        strict=True,
    ):
        date = datetime.date(*day)
        write_sample(folder, name, bands, 3, date=date, transform=transform, crs="EPSG:4326", meta_info=info)
    finish(folder, None, {"train": [ids[0]], "valid": [ids[1]], "test": [ids[2]]})
    source = read(folder)
    assert source.images["image"].sensor == "Landsat-8" and source.images["image"].gsd_m == 15
    loaded = source.load([0, 1, 2])
    start = int(datetime.datetime(2013, 5, 6, tzinfo=datetime.UTC).timestamp())
    assert loaded["time_start"].tolist() == [start, NOT_A_TIME, start]
    assert loaded["time_end"].tolist() == [start + 86400, NOT_A_TIME, start + 86400]
    assert loaded["cloud_fraction"][0] == 0.25 and np.isnan(loaded["cloud_fraction"][1])
    groups = source.listing().groups
    assert groups[0] == groups[1] != groups[2]
    assert source.listing().notes["places_across_given_splits"] == 1
    assert source.listing().places is not None


def test_multilabel(tmp_path: Path) -> None:
    folder = task_folder(tmp_path, "m-bigearthnet")
    bands = {band: np.ones((8, 8), np.float32) for band in S2 if band[:2] != "10"}
    truth = (np.random.default_rng(1).random((3, 43)) < 0.1).astype(np.int64)
    labels = [truth[0], truth[1].tolist(), truth[2].astype(np.float32)]
    for name, label in zip("abc", labels, strict=True):
        write_sample(folder, name, bands, label)
    names = [f"name {number}" for number in range(43)]
    finish(folder, MultiLabel(n_classes=43, class_name=names), split_ids("abc"))
    source = read(folder)
    assert np.array_equal(source.load([0, 1, 2])["labels"], truth)
    assert source.targets["labels"].kind == "multilabel" and source.targets["labels"].classes == tuple(names)
    assert source.arrays["labels"].names == tuple(names)
    assert source.listing().classes == () and source.listing().labels.tolist() == [-1] * 3
    write_sample(folder, "a", bands, [1, 2, 3])
    with pytest.raises(UserError, match="a.hdf5 .its label is not 43 numbers of 0 or 1"):
        read(folder)


def cashew(root: Path, label: np.ndarray, date: datetime.date | None = None) -> Path:
    folder = task_folder(root, "m-cashew-plant")
    bands = {band: np.ones((8, 8), np.float32) for band in S2 if band[:2] != "10"}
    bands["Cloud Probability"] = np.zeros((8, 8), np.float32)
    for name in "abc":
        write_sample(folder, name, bands, label, date=date)
    finish(folder, SegmentationClasses(n_classes=7, _class_names=None), split_ids("abc"))
    return folder


def test_segmentation_and_what_is_not_labelled(tmp_path: Path) -> None:
    label = np.arange(64).reshape(8, 8).astype(np.int16) % 7
    label[0, :3] = (255, -1, -9999)
    folder = cashew(tmp_path, label, datetime.date(2019, 11, 5))
    source = read(folder)
    found = source.load([0])["segmentation"][0]
    assert found[0, :3].tolist() == [255] * 3
    assert np.array_equal(found[1:], label[1:])
    assert source.targets["segmentation"].missing == 255
    assert source.targets["segmentation"].classes[1] == "well-managed plantation"
    assert set(source.images) == {"image", "cloud"}
    ignored = read(folder, "no_data=ignore").load([0])["segmentation"][0]
    assert np.array_equal(ignored == 255, (found == 255) | (found == 0))
    with pytest.raises(UserError, match="no_data=ignore: has no effect with m-eurosat"):
        read(eurosat(tmp_path), "no_data=ignore")


def test_classes_that_there_are_not(tmp_path: Path) -> None:
    label = np.zeros((8, 8), np.int64)
    label[2, 2] = 9
    with pytest.raises(UserError, match=r"a.hdf5: its label holds 9, of 7 classes"):
        read(cashew(tmp_path, label)).load([0])
    for number, value in enumerate((0.5, np.nan)):
        with pytest.raises(UserError, match="not whole"):
            read(cashew(tmp_path / str(number), np.full((8, 8), value, np.float32))).load([0])
    whole = read(cashew(tmp_path / "whole", np.full((8, 8), 6.0))).load([0])
    assert (whole["segmentation"] == 6).all()
    with pytest.raises(UserError, match=r"its label has shape \[4, 4\], its image \[8, 8\]"):
        read(cashew(tmp_path / "small", np.zeros((4, 4), np.uint8)))
    folder = cashew(tmp_path / "planes", np.zeros((8, 8), np.uint8))
    for name in "abc":
        with h5py.File(folder / f"{name}.hdf5", "a") as file:
            del file["label"]
            file["label"] = np.zeros((8, 8, 2), np.uint8)
    with pytest.raises(UserError, match=r"its label has shape \[8, 8, 2\], its image \[8, 8\]"):
        read(folder)


def test_series_of_dates_have_a_time_axis(tmp_path: Path) -> None:
    folder = task_folder(tmp_path, "m-cashew-plant")
    days = ["2019-11-05", "2019-11-10", "2020-01-04"]
    bands = [*(band for band in S2 if band[:2] != "10"), "Cloud Probability"]
    for name, count in (("a", 3), ("b", 2), ("c", 3)):
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            meta: dict[str, Any] = {"bands_order": []}
            for step, day in enumerate(days[:count]):
                for k, band in enumerate(bands):
                    if (name, step, k) != ("c", 1, 2):  # one band of one date is not there
                        file[f"{band}_{day}"] = np.full((8, 8), 100 * step + k, np.int16)
                        meta[f"{band}_{day}"] = {"date": datetime.date.fromisoformat(day)}
            file["label"] = np.zeros((8, 8), np.uint8)
            file.attrs["pickle"] = str(dumps(meta))
    finish(folder, None, {"train": list("abc"), "valid": [], "test": []})
    write(read(folder), tmp_path / "out", PlanOptions())
    shards = ShardSet(tmp_path / "out")
    spec = shards.manifest["images"]["image"]
    assert spec["axes"] == "TCHW" and spec["shape"] == [3, 12, 8, 8] and spec["mask"] == "image_mask"
    ids = shards.column("sample_id").tolist()
    values, there = shards.read("image", 0, 3), shards.read("image_mask", 0, 3)
    dates = shards.read("dates", 0, 3)
    a, b, c = (ids.index(name) for name in (b"a", b"b", b"c"))
    assert values[a, :, :, 0, 0].tolist() == [[100 * step + k for k in range(12)] for step in range(3)]
    assert there[a].all() and there[b].sum() == 24 and not there[b, 2].any()
    assert there[c].sum() == 35 and there[c, 1, 2] == 0 and not values[c, 1, 2].any()
    assert dates[b].tolist()[2] == NOT_A_TIME
    assert dates[a].astype("datetime64[s]").astype(str).tolist() == [f"{day}T00:00:00" for day in days]
    # 3 + 2 + 3 dates, but one of the third band is missing: statistics leave it out.
    assert spec["statistics"]["count"][2] == 7 * 64 and spec["statistics"]["count"][0] == 8 * 64
    assert shards.column("time_end")[a] - shards.column("time_start")[a] == 61 * 86400


def test_cattle_year_and_a_transform_of_another_scale(tmp_path: Path) -> None:
    folder = task_folder(tmp_path, "m-nz-cattle")
    bands = {band: np.zeros((10, 10), np.uint8) for band in ("Red", "Green", "Blue")}
    # The converter takes 0.1 m for 0.1 degrees about the right centre.
    transform = Affine(0.1, 0, 175.2 - 0.5, 0, -0.1, -40.6 + 0.5)
    name = "1_Kapiti_Coast_[2016]_175.2,-40.6"
    for one in (name, "b", "c"):
        write_sample(folder, one, bands, np.zeros((10, 10), np.uint8), datetime.date(2016, 1, 1), transform, CRS())
        write_sample(
            folder, one, bands, np.zeros((10, 10), np.uint8), datetime.date(2016, 1, 1), transform, "EPSG:4326"
        )
    finish(folder, None, split_ids([name, "b", "c"]))
    source = read(folder)
    loaded = source.load([0])
    assert loaded["lon"][0] == pytest.approx(175.2) and loaded["lat"][0] == pytest.approx(-40.6)
    assert "transform" not in source.arrays
    assert (loaded["time_end"][0] - loaded["time_start"][0]) == 366 * 86400


def test_a_transform_must_fit_the_resolution(tmp_path: Path) -> None:
    folder = task_folder(tmp_path, "m-pv4ger")
    bands = {band: np.zeros((8, 8), np.uint8) for band in ("Red", "Green", "Blue")}
    north = 0.1 / 111_320
    east = north / np.cos(np.deg2rad(60))
    for name, factor in (("a", 1), ("b", 3), ("c", 0.3)):
        transform = Affine(east * factor, 0.0, 7.0, 0.0, -north * factor, 60.0)
        write_sample(folder, name, bands, 1, transform=transform, crs="EPSG:4326")
    write_sample(folder, "d", bands, 1, transform=Affine(east, 0.0, 7.0, 0.0, -north, 95.0), crs="epsg:4326")
    finish(folder, None, split_ids("abcd"))
    loaded = read(folder).load([0, 1, 2, 3])
    assert np.isfinite(loaded["transform"][:, 0]).tolist() == [True, False, False, False]
    assert np.isfinite(loaded["lon"]).tolist() == [True, False, False, False]
    assert read(folder).listing().notes["samples_without_a_place"] == 3


def test_neontree_has_three_resolutions_and_a_projection(tmp_path: Path) -> None:
    pyproj = pytest.importorskip("pyproj")
    folder = task_folder(tmp_path, "m-NeonTree")
    random = np.random.default_rng(0)
    cube = random.integers(0, 10000, (4, 4, 369)).astype(np.int16)
    height = random.random((4, 4, 1)).astype(np.float32)
    rgb = {band: random.integers(0, 255, (40, 40), np.uint8) for band in ("Red", "Green", "Blue")}
    transform = Affine(0.1, 0, 500_000.0, 0, -0.1, 4_000_000.0)
    bands = rgb | {"Canopy Height Model": height, "Neon": cube}
    ids = ["SJER_1", "SJER_1_00_01", "c"]
    for name in ids:
        write_sample(folder, name, bands, np.zeros((40, 40), np.uint8), transform=transform, crs=CRS())
    finish(folder, None, split_ids(ids))
    source = read(folder)
    shapes = {column: spec.shape for column, spec in source.images.items()}
    assert shapes == {"image": (3, 40, 40), "canopy_height": (1, 4, 4), "hyperspectral": (369, 4, 4)}
    assert len({band.name for band in source.images["hyperspectral"].bands}) == 369
    loaded = source.load([0, 1])
    assert np.array_equal(loaded["hyperspectral"][0], cube.transpose(2, 0, 1))
    assert np.array_equal(loaded["canopy_height"][0, 0], height[..., 0])
    lon, lat = pyproj.Transformer.from_crs(32634, 4326, always_xy=True).transform(500_002.0, 3_999_998.0)
    assert (loaded["lon"][0], loaded["lat"][0]) == pytest.approx((lon, lat), abs=1e-9)
    # A slice has the transform of the tile that it was cut from, which is not its own.
    assert np.isnan(loaded["lon"][1]) and np.isnan(loaded["transform"][1]).all()
    assert loaded["crs_epsg"].tolist() == [32634, 32634]


def test_one_place_for_all_is_none(tmp_path: Path) -> None:
    make_task(tmp_path, "m-SA-crop-type", transform=Affine(10.0, 0, 331040.0, 0, -10, -3714560.0), crs=CRS())
    source = read(tmp_path, "task=m-SA-crop-type")
    assert "transform" not in source.arrays and "lon" not in source.columns
    assert source.load([0])["crs_epsg"][0] == 32634


@pytest.mark.parametrize("task", TASKS)
def test_every_task(tmp_path: Path, task: str) -> None:
    folder = make_task(tmp_path, task)
    source = read(tmp_path, f"task={task}")
    done = write(source, tmp_path / "out", PlanOptions())
    assert done.manifest["samples"] == 5 and list(done.manifest["splits"]) == ["train", "val", "test"]
    names = [f"name {number}" for number in range(TASKS[task].count)]
    (target,) = done.manifest["targets"].values()
    assert target["kind"] == TASKS[task].target and target["classes"] == names
    assert all(band.name for spec in source.images.values() for band in spec.bands)
    shards = ShardSet(tmp_path / "out", "test")
    stored = inputs_of(task, True)
    with h5py.File(folder / "id_0004.hdf5") as file:
        for column, given in stored.items():
            planes = [np.asarray(file[band]) for band, _ in given.bands]
            expected = np.stack(planes) if given.planes == 1 else planes[0].transpose(2, 0, 1)
            assert np.array_equal(shards.read(column, 0, 1)[0], expected)
        if TASKS[task].target == "segmentation":
            assert np.array_equal(shards.read("segmentation", 0, 1)[0], file["label"][:])


def test_tables() -> None:
    sizes = {name: sum(len(given.bands) for given in facts.inputs.values()) for name, facts in TASKS.items()}
    published = {
        "m-bigearthnet": 12,
        "m-so2sat": 18,
        "m-brick-kiln": 13,
        "m-forestnet": 6,
        "m-eurosat": 13,
        "m-pv4ger": 3,
    }
    assert {name: sizes[name] for name in published} == published
    classes = {"m-bigearthnet": 43, "m-so2sat": 17, "m-forestnet": 12, "m-chesapeake": 7, "m-cashew-plant": 7}
    classes |= {"m-SA-crop-type": 10, "m-nz-cattle": 2, "m-NeonTree": 2, "m-eurosat": 10}
    assert {name: TASKS[name].count for name in classes} == classes
    assert len(TASKS) == 12 and set(ALIASES.values()) <= set(TASKS)
    assert PARTITIONS[1] == "0.01x_train" and PARTITIONS[-1] == "1.00x_train"
    for facts in TASKS.values():
        for given in (*facts.inputs.values(), *facts.as_named.values()):
            assert len({name for name, _ in given.bands}) == len(given.bands)
            assert len({band.name for _, band in given.bands}) == len(given.bands)


def test_partitions_and_paths(tmp_path: Path) -> None:
    folder = eurosat(tmp_path)
    few = read(folder, "partition=0.01x_train")
    assert few.listing().splits == ["train", "val", "test"]
    assert few.listing().notes["samples_published"]["train"] == 20
    assert few.listing().notes["samples_not_in_partition"] == 3
    whole = read(folder.parent, "task=m-eurosat")
    assert whole.describe() == read(tmp_path, "task=m-eurosat").describe() == read(folder).describe()
    assert whole.name == "m-eurosat"
    with pytest.raises(UserError, match=r"no 0.5x_partition.json .* there are 0.01x_train, default"):
        read(folder, "partition=0.5x")
    with pytest.raises(UserError, match="which task\\? pass --set task=NAME: there are m-eurosat"):
        read(tmp_path)
    with pytest.raises(UserError, match="m-pv4ger not found: download .*recursix/geo-bench-1.0"):
        read(tmp_path, "task=m-pv4ger")
    with pytest.raises(UserError, match="nowhere not found: download"):
        read(tmp_path / "nowhere", "task=m-eurosat")
    with pytest.raises(UserError, match="did you mean m-eurosat"):
        read(tmp_path, "task=m-euroset")
    folder.rename(tmp_path / "mine")
    assert read(tmp_path / "mine", "task=m-eurosat").describe() == whole.describe()
    with pytest.raises(UserError, match="no task of GEO-Bench v1.0 is called 'mine'"):
        read(tmp_path / "mine")


def test_aliases(tmp_path: Path) -> None:
    make_task(tmp_path, "m-chesapeake").rename(tmp_path / "segmentation_v1.0" / "m-chesapeake-landcover")
    one = read(tmp_path, "task=m-chesapeake")
    assert one.describe() == read(tmp_path, "task=m-chesapeake-landcover").describe()
    assert [band.common_name for band in one.images["image"].bands] == ["red", "green", "blue", "nir"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not a partition"),
        ('{"training": []}', "not a partition"),
        ('{"train": {}}', "not a list"),
        ('{"train": ["../../etc/passwd"]}', "cannot be a sample's id"),
        ('{"train": [3]}', "a int cannot be a sample's id"),
        ('{"train": ["a\\nb"]}', "cannot be a sample's id"),
        ('{"train": [' + "[" * 900 + "]" * 900 + "]}", "not valid JSON|a list cannot be a sample's id"),
        ('{"train": ["id_1", "id_1"]}', "listed twice"),
        ('{"train": ["id_1"], "test": ["id_1"]}', "listed twice"),
        ('{"train": []}', "lists no samples"),
    ],
)
def test_partitions_that_are_none(tmp_path: Path, text: str, reason: str) -> None:
    folder = eurosat(tmp_path)
    (folder / "default_partition.json").write_text(text)
    with pytest.raises(UserError, match=f"default_partition.json: .*{reason}"):
        read(folder)


def test_an_incomplete_copy_is_reported(tmp_path: Path) -> None:
    folder = eurosat(tmp_path)
    (folder / "id_2.hdf5").unlink()
    (folder / "id_3.hdf5").write_bytes((folder / "id_3.hdf5").read_bytes()[:3000])
    report = tmp_path / "out" / "unreadable.tsv"
    with pytest.raises(UserError, match=r"2 of 6 samples cannot be used: id_2.hdf5 \(not there.*--on-error skip"):
        read(folder, report=report)
    assert report.read_text().splitlines()[1].startswith("id_3.hdf5\tnot a readable HDF5 file")
    source = read(folder, on_error="skip", report=report)
    assert len(source.listing().ids) == 4 and source.listing().notes["skipped"] == 2


def test_labels_that_disagree_or_are_none(tmp_path: Path) -> None:
    folder = eurosat(tmp_path)
    (folder / "label_map.json").write_text('{"3": ["id_1"]}')
    with pytest.raises(UserError, match="id_1.hdf5 .its label is 1, in label_map.json 3"):
        read(folder)
    (folder / "label_map.json").write_text('{"11": ["id_1"]}')
    with pytest.raises(UserError, match="'11' is none of the 10 classes"):
        read(folder)
    (folder / "label_map.json").write_text('{"1": [["id_1"]]}')
    with pytest.raises(UserError, match="'1' is not a list of sample ids"):
        read(folder)
    (folder / "label_map.json").unlink()
    bands = {band: np.zeros((8, 8), np.int16) for band in S2}
    for label in (10, -1, 2.5, "river", None, [1, 2], 2**70):
        write_sample(folder, "id_1", bands, label)
        with pytest.raises(UserError, match="id_1.hdf5 .its label .* is none of 10 classes"):
            read(folder)


def test_samples_of_another_layout(tmp_path: Path) -> None:
    folder = make_task(tmp_path, "m-pv4ger", count=6)
    rgb = {band: np.zeros((8, 8), np.uint8) for band in ("Red", "Green", "Blue")}
    write_sample(folder, "id_0000", {"Red": rgb["Red"], "Green": rgb["Green"], "Alpha": rgb["Blue"]}, 1)
    write_sample(folder, "id_0001", {band: np.zeros((9, 8), np.uint8) for band in rgb}, 1)
    write_sample(folder, "id_0002", rgb | {"Red": np.zeros((4, 8), np.uint8)}, 1)
    write_sample(folder, "id_0003", rgb | {"Depth": rgb["Red"]}, 1)
    report = tmp_path / "report.tsv"
    source = read(folder, on_error="skip", report=report)
    lines = report.read_text()
    assert "id_0000.hdf5\tno band 'Blue'; there are ['Alpha', 'Green', 'Red']" in lines
    assert "id_0001.hdf5\tis (9, 8) pixels, most are (8, 8)" in lines
    assert "id_0002.hdf5\tbands of one sensor have different shapes" in lines
    assert source.listing().notes["datasets_not_read"] == ["Depth"]
    assert len(source.listing().ids) == 3


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def attack(file: h5py.File, how: str, folder: Path) -> None:
    """Do to a sample's file what a hostile one could hold."""
    band = "Red"
    if how == "pickle":
        file.attrs["pickle"] = str(pickle.dumps(Evil()))
    elif how == "not a literal":
        file.attrs["pickle"] = "__import__('os').system('touch ran')"
    elif how == "numbers for text":
        file.attrs["pickle"] = np.arange(4)
    elif how == "references":
        del file.attrs["pickle"]
        file.attrs.create("pickle", file.ref, dtype=h5py.ref_dtype)
    elif how == "no pickle":
        del file.attrs["pickle"]
    elif how == "a list":
        file.attrs["pickle"] = str(pickle.dumps([1]))
    else:
        del file[band]
        if how == "external link":
            file[band] = h5py.ExternalLink(str(folder / "other.h5"), "x")
        elif how == "soft link":
            file[band] = h5py.SoftLink("/Green")
        elif how == "group":
            file.create_group(band)
        elif how == "object type":
            file.create_dataset(band, (8, 8), h5py.string_dtype())
        elif how == "text type":
            file.create_dataset(band, (8, 8), "S8")
        elif how == "compound type":
            file.create_dataset(band, (8, 8), [("a", "i4")])
        elif how == "virtual":
            layout = h5py.VirtualLayout((8, 8), "i2")
            layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", (8, 8))
            file.create_virtual_dataset(band, layout)
        elif how == "external data":
            file.create_dataset(band, (8, 8), "i2", external=[(str(folder / "other.raw"), 0, 128)])
        elif how == "huge":
            file.create_dataset(band, (1 << 20, 1 << 20), "u1", chunks=(1024, 1024))
        elif how == "bomb":
            dataset = file.create_dataset(band, (8, 8), "u1", chunks=(8, 8), compression="gzip")
            dataset.id.write_direct_chunk((0, 0), zlib.compress(bytes(1 << 20)))
        elif how == "one axis":
            file.create_dataset(band, (8,), "u1")
        elif how == "unknown filter":
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_chunk((8, 8))
            plist.set_filter(32_500, h5py.h5z.FLAG_OPTIONAL, ())
            h5py.h5d.create(file.id, band.encode(), h5py.h5t.NATIVE_INT16, h5py.h5s.create_simple((8, 8)), plist)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("pickle", "refused, and nothing of it was run: it names 'posix.system'"),
        ("not a literal", "not the text of a bytes object"),
        ("numbers for text", "not one text"),
        ("references", "not one text"),
        ("no pickle", "no attribute 'pickle'"),
        ("a list", "a list, not a dictionary"),
        ("external link", "soft or external link"),
        ("soft link", "soft or external link"),
        ("group", "not a dataset"),
        ("object type", "not of plain numbers"),
        ("text type", "not of plain numbers"),
        ("compound type", "not of plain numbers"),
        ("virtual", "data in other files"),
        ("external data", "data in other files"),
        ("huge", "bytes, more than"),
        ("bomb", "stores 1,0.. bytes, more than the 64 that it holds"),
        ("one axis", "not rows, columns"),
        ("unknown filter", "filter 32500"),
    ],
)
def test_hostile_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, reason: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_task(tmp_path / "in", "m-pv4ger", count=3)
    with h5py.File(folder / "id_0001.hdf5", "a") as file:
        attack(file, how, tmp_path)
    with pytest.raises(UserError, match=f"1 of 3 samples cannot be used: id_0001.hdf5 .*{reason}"):
        read(folder)
    assert not (tmp_path / "ran").exists()


def test_the_last_year_there_is(tmp_path: Path) -> None:
    folder = task_folder(tmp_path, "m-nz-cattle")
    bands = {band: np.zeros((8, 8), np.uint8) for band in ("Red", "Green", "Blue")}
    for name in "abc":
        write_sample(folder, name, bands, np.zeros((8, 8), np.uint8), datetime.date(9999, 12, 31))
    finish(folder, None, split_ids("abc"))
    with pytest.raises(UserError, match="its metadata cannot be understood"):
        read(folder)


@pytest.mark.parametrize(
    ("specs", "reason"),
    [
        (pickle.dumps(Evil()), "refused, and nothing of it was run"),
        (pickle.dumps({}), "no task specifications"),
        (dumps(Specs(label_type=Classification(n_classes=10**5000))), "number of classes is not one of 2 to 255"),
        (dumps(Specs(label_type=Classification(n_classes=True))), "number of classes is not one of 2 to 255"),
        (b"", "refused"),
    ],
)
def test_hostile_task_specs(tmp_path: Path, specs: bytes, reason: str) -> None:
    folder = eurosat(tmp_path)
    (folder / "task_specs.pkl").write_bytes(specs)
    with pytest.raises(UserError, match=f"task_specs.pkl: .*{reason}"):
        read(folder)


def test_published_statistics_are_compared_on_request(tmp_path: Path) -> None:
    folder = eurosat(tmp_path)
    with pytest.raises(UserError, match="check=band_stats: no .*band_stats.json"):
        read(folder, "check=band_stats")
    # Band k of the four training samples is 100 n + k: its mean is 150 + k.
    stats = {band: {"mean": 150.0 + k, "std": 10.0} for k, band in enumerate(S2)} | {"label": {"mean": 1, "std": 0}}
    (folder / "band_stats.json").write_text(json.dumps(stats))
    plain = read(folder)
    assert "band_stats_bands" not in plain.listing().notes
    source = read(folder, "check=band_stats")
    assert source.describe() == plain.describe(), "the same samples"
    notes = source.listing().notes
    assert (notes["band_stats_samples"], notes["band_stats_bands"]) == (4, 13)
    assert notes["band_stats_largest_distance_in_std"] == 0
    stats["11 - SWIR"]["mean"] += 25
    (folder / "band_stats.json").write_text(json.dumps(stats))
    notes = read(folder, "check=band_stats").listing().notes
    assert notes["band_stats_largest_distance_in_std"] == 2.5 and notes["band_stats_farthest_band"] == "11 - SWIR"
    for text in (
        "[]",
        "{",
        '{"a": 1}',
        '{"a": {"mean": "x", "std": 1}}',
        '{"a": {"mean": NaN, "std": 1}}',
        "[" * 100_000,
    ):
        (folder / "band_stats.json").write_text(text)
        with pytest.raises(UserError, match="band_stats.json: not statistics by band"):
            read(folder, "check=band_stats")


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    folder = eurosat(tmp_path)
    source = read(folder)
    before = source.describe()
    write_sample(folder, "id_1", {band: np.ones((8, 8), np.int16) for band in S2}, 1)
    with pytest.raises(UserError, match="id_1.hdf5: changed while it was read"):
        source.load([1])
    assert read(folder).describe() != before


def test_workers_do_not_change_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.team._IN_PROCESS", 2)
    eurosat(tmp_path)
    done = [
        write(
            read(tmp_path, "task=m-eurosat", workers=n),
            tmp_path / f"out{n}",
            PlanOptions(samples_per_shard=2),
            workers=n,
        )
        for n in (1, 2)
    ]
    assert done[0].manifest == done[1].manifest


def test_on_the_command_line(tmp_path: Path) -> None:
    eurosat(tmp_path / "bench")
    done = run_frontier(
        "shards", "write", "--reader", "geobench", "--from", tmp_path / "bench", "--set", "task=m-eurosat",
        "--set", "partition=default", "--json", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["splits"] == {"train": 4, "val": 1, "test": 1}
    assert done.stderr == (
        "m-eurosat, partition default: lists 4 train, 1 val, 1 test samples; 2000 train, 1000 val, 1000 test are published\n"
    )
    done = run_frontier("shards", "write", "--reader", "geobench", "--from", tmp_path / "bench", tmp_path / "two")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "which task?" in done.stderr
    assert find_reader("geobench") is GEOBENCH
