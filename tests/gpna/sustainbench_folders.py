"""Small folders in the layouts that SustainBench publishes, with as many samples of each split as asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from data_prep.readers import sustainbench_brick_kiln, sustainbench_dhs, sustainbench_kenya, sustainbench_lsms
from tests.data_prep.readers.sustainbench_folders import number, write_table

SPLITS = {"train": 4, "val": 2, "test": 3}


def listed() -> list[tuple[int, str]]:
    """(number, split) of every sample."""
    splits = [split for split, count in SPLITS.items() for _ in range(count)]
    return list(enumerate(splits))


def dhs(root: Path) -> None:
    """Every label is missing (NA) in every third cluster, of each label another third."""
    country = {"train": ("AL", "ZW"), "val": ("TZ", "BJ"), "test": ("ET", "EG")}
    rows = []
    for k, split in listed():
        name, year = f"{country[split][k % 2]}-{2008 + k}-5#-{k:08d}", 2008 + k
        values = {label: "NA" if (k + j) % 3 == 2 else 1.5 * k + j for j, label in enumerate(sustainbench_dhs.UNITS)}
        rows.append(
            {"DHSID_EA": name, "cname": name[:2], "year": year, "lat": 10 + k, "lon": 20 + k, "urban": "R"} | values
        )
        path = root / "dhs_npzs" / name[:10] / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, x=number(k, 8, 255, 255))
    write_table(root / "dhs_final_labels.csv", rows)


def lsms(root: Path) -> None:
    pairs = [(f"{k}", 2009, 2013) for k in range(10)]
    write_table(
        root / sustainbench_lsms.OVER_TIME,
        [
            {"country": "ug", "ea_id": e, "year.x": a, "year.y": b, "asset_index": k, "asset_index_diff": -k}
            | {"infrastructure_index": k, "infrastructure_index_diff": k, "n": 8}
            for k, (e, a, b) in enumerate(pairs)
        ],
    )
    write_table(
        root / sustainbench_lsms.PLACES,
        [
            {"country": "ug", "year": year, "ea_id": e, "lat": 1 + k, "lon": 30 + k, "n": 9}
            for k, (e, a, b) in enumerate(pairs)
            for year in (a, b)
        ],
    )
    for k, (e, *years) in enumerate(pairs):
        for year in years:
            path = root / "lsms_npzs" / f"ug_{year}" / f"{e}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, x=number(k + year, 8, 255, 255))


def landcover(root: Path) -> None:
    rows = []
    (root / "tile_triplets").mkdir(parents=True)
    for k, split in listed():
        code = (75, 69, 3)[k % 3]
        pixels = np.random.default_rng(k).integers(0, 60, (4, 100, 100), np.uint8)
        np.save(
            root / "tile_triplets" / f"{k}anchor.npy", np.concatenate([pixels, np.full((1, 100, 100), code, np.uint8)])
        )
        number_of = {"train": 0, "val": 1, "test": 2}[split]
        # One tile of the training split has no label.
        rows.append(
            {"fileName": f"{k}anchor.npy", "landCover": code if k else "", "split": number_of, "splitStr": split}
        )
    write_table(root / "metadata.csv", rows)


def brick_kiln(root: Path) -> None:
    samples = listed()
    rows, bounds = [], []
    for k, split in samples:
        west, north = 88.0 + k, 24.0
        bounds.append((west, north, west + 0.0064, north - 0.0064))
        row = {"y": k % 2, "partition": {"train": 0, "val": 1, "test": 2}[split], "hdf5_file": 0, "hdf5_idx": k}
        row |= dict(zip(sustainbench_brick_kiln.CORNERS, bounds[-1], strict=True))
        rows.append(row | {"indice_offset_num": 1.0, "indice_x": 2.0, "indice_y": 0.0})
    write_table(root / "list_eval_partition.csv", rows)
    with h5py.File(root / "examples_0.hdf5", "w") as file:
        file["images"] = np.random.default_rng(0).integers(0, 9000, (len(samples), 64, 64, 13), np.uint16)
        file["labels"] = np.array([k % 2 for k, _ in samples], np.float64).reshape(-1, 1)
        file["bounds"] = np.array(bounds)


def crop_yield(root: Path) -> None:
    folder = root / "soybeans" / "usa"
    folder.mkdir(parents=True)
    for name, split in (("train", "train"), ("dev", "val"), ("test", "test")):
        count = SPLITS[split]
        random = np.random.default_rng(len(name)).random((count, 32, 32, 9))
        files: dict[str, Any] = {
            "hists": random / random.sum(axis=1, keepdims=True),
            "yields": np.arange(count) + 2.5,
            "years": np.full(count, 2005.0),
            "keys": np.array([f"{name}{k}_ia_2005" for k in range(count)]),
        }
        for part, data in files.items():
            np.savez(folder / f"{name}_{part}.npz", data=data)


def delineation(root: Path) -> None:
    rows = []
    for folder in ("imgs", "masks", "masks_filled"):
        (root / folder).mkdir(parents=True)
    for k, split in listed():
        rows.append(
            {"ids": k, "indices": k, "split": split, "max_lat": 46.02, "max_lon": 2.03, "min_lat": 46.0, "min_lon": 2.0}
        )
        pixels = np.random.default_rng(k).integers(0, 255, (224, 224, 3), np.uint8)
        lines = (np.add.outer(np.arange(224), np.arange(224)) % (k + 7) < 3).astype(np.uint8)
        Image.fromarray(pixels).save(root / "imgs" / f"{k}.jpeg")
        Image.fromarray(lines * 255).save(root / "masks" / f"{k}.png")
        Image.fromarray((1 - lines) * 255).save(root / "masks_filled" / f"{k}.png")
    write_table(root / "clean_data.csv", rows)


def _crop_type(root: Path, country: str) -> None:
    folder = root / country
    for name in ("npy", "truth", "s1", "s2"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for k, _ in listed():
        name, random, steps = f"{country}_{k:06d}", np.random.default_rng(k), 2 + k % 2
        s1 = random.normal(-12, 3, (3, 64, 64, steps)).astype(np.float32)
        np.savez(folder / "npy" / f"{name}.npz", s1=s1, s2=random.integers(1, 9000, (10, 64, 64, steps), np.uint16))
        np.savez(folder / "truth" / f"{name}.npz", truth=random.integers(0, 5, (64, 64)).astype(np.float64))
        for sensor in ("s1", "s2"):
            dates = [f"2016-0{month + 4}-01" for month in range(steps)]
            (folder / sensor / f"{sensor}_{name}.json").write_text(json.dumps({"dates": dates}))
    partition = {"train": 0, "val": 1, "test": 2}
    write_table(folder / "list_eval_partition.csv", [{"id": k, "partition": partition[s]} for k, s in listed()])


def ghana(root: Path) -> None:
    _crop_type(root, "ghana")


def south_sudan(root: Path) -> None:
    _crop_type(root, "southsudan")


def kenya(root: Path) -> None:
    """Values on one day in ten, as an observation would be."""
    rows = []
    (root / "timeseries").mkdir(parents=True)
    for k, split in listed():
        crop, name = sustainbench_kenya.CROPS[k % 3], f"kenya_2017_sentinel2_timeseries_{k}.npy"
        fold = "test" if split == "test" else "train"
        row = {"fileName": name, "cropType": crop, "fieldID": k + 1, "region": "Busia"}
        rows.append(row | {f"fold_{which}": fold for which in ("random", "busia_test", "bungoma_test", "siaya_test")})
        values = np.random.default_rng(k).integers(500, 4000, (14, 365)).astype(np.float64)
        values[:, np.arange(365) % 10 != k % 10] = np.nan
        np.save(root / "timeseries" / name, values)
    write_table(root / "crop_type_kenya_2017_metadata.csv", rows)


WRITERS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    # reader -> (writer of its folder, further words of `frontier shards write`)
    "dhs": (dhs, []),
    "lsms": (lsms, ["--val-fraction", "0.2", "--test-fraction", "0.3"]),
    "landcover": (landcover, []),
    "brick_kiln": (brick_kiln, []),
    "crop_yield": (crop_yield, ["--set", "country=usa"]),
    "delineation": (delineation, []),
    "crop_type": (ghana, ["--set", "country=ghana", "--set", "sensors=s1,s2", "--set", "max_dates=12"]),
    "crop_type_south_sudan": (
        south_sudan,
        ["--set", "country=south_sudan", "--set", "sensors=s1,s2", "--set", "max_dates=12"],
    ),
    "kenya": (kenya, ["--set", "fold=random"]),
}
"""The words are those of the configs' first lines."""
