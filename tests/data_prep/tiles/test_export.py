"""Shards of tiles as folders of PNG: what a reader of the paper's form finds in them."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.command import main as shards_main
from data_prep.tiles.export import main
from data_prep.tiles.grid import Tile, children
from frontier.data.shards import ShardSet
from frontier.errors import EXIT_OK, EXIT_USER
from tests.data_prep.tiles.test_tile_triplets import one_scene


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    one_scene(folder, "s1", [400, 100])
    rng = np.random.default_rng(0)
    one_scene(folder, "s2", [100, 200, 1000, 2000, 5, 6, 7, 8, 9, 10, 11, 12])
    path = one_scene(folder, "naip", 0)
    import rasterio

    with rasterio.open(path, "r+") as file:
        values = rng.integers(1, 255, (4, 280, 280)).astype(np.uint8)
        values[:, :60] = 0
        file.write(values)
        file.nodata = 0
    return folder


def written(world: Path, out: Path, *settings: str) -> Path:
    command = ["write", "--reader", "tile_triplets", "--from", str(world), "--val-fraction", "0.3", str(out)]
    command += [part for text in ("size=32", "block=0", "min_valid=0.6", *settings) for part in ("--set", text)]
    assert shards_main(command) == EXIT_OK
    return out


def png(path: Path) -> np.ndarray:
    image = np.asarray(Image.open(path))
    assert image.dtype == np.uint8 and image.shape == (32, 32, 4)
    return image.transpose(2, 0, 1)


def test_the_form_of_the_paper(world: Path, tmp_path: Path) -> None:
    shards = written(world, tmp_path / "shards", "units=amplitude", "s2_bands=all")
    out = tmp_path / "png"
    done = subprocess.run(
        [sys.executable, "-m", "data_prep.tiles.export", str(shards), str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    splits = {name: ShardSet(shards, name) for name in ("train", "val")}
    total = sum(map(len, splits.values()))
    assert done.stdout == f"{out}: {total} sar, {total} visual, {5 * total} hires tiles\n"
    with open(out / "tiles.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == total and rows == sorted(rows, key=lambda row: (int(row["x"]), int(row["y"])))
    missing = 0
    for split, samples in splits.items():
        for k in range(len(samples)):
            tile = Tile(*(int(samples.column(f"tile_{axis}")[k]) for axis in "zxy"))
            assert {(row["z"], row["x"], row["y"]): row["split"] for row in rows}[tuple(map(str, tile))] == split
            name = f"{tile.z}/{tile.x}/{tile.y}.png"
            radar = png(out / "sar" / name)
            # 400 x 255/1000 = 102, 100 x 255/1000 = 25.5; red is empty.
            there = radar[3] == 255
            assert there.mean() >= 0.6 and (radar[:, ~there] == 0).all()
            assert (radar[0] == 0).all() and (radar[1, there] == 102).all()
            assert np.abs(radar[2, there].astype(int) - 25.5).max() <= 0.5
            # B04 at full scale, B03 at half, B02 at a tenth.
            colour = png(out / "visual" / name)
            assert (colour[:3, colour[3] == 255] == np.array([[255], [128], [26]])).all()
            naip, mask = samples.read("naip", k, k + 1)[0], samples.read("naip_mask", k, k + 1)[0]
            coarse = png(out / "hires" / name)
            np.testing.assert_array_equal(coarse[:3], naip)
            np.testing.assert_array_equal(coarse[3], mask * 255)
            missing += int((mask == 0).sum())
            fine = samples.read("naip_2x", k, k + 1)[0]
            # A loader of the paper's form puts the children together by their columns and rows.
            whole = np.zeros((3, 64, 64), np.uint8)
            for child in children(tile):
                left, top = 32 * (child.x - 2 * tile.x), 32 * (child.y - 2 * tile.y)
                part = png(out / f"hires/{child.z}/{child.x}/{child.y}.png")
                whole[:, top : top + 32, left : left + 32] = part[:3]
            np.testing.assert_array_equal(whole, fine)
    assert missing > 0


def test_the_scale_of_calibrated_radar(world: Path, tmp_path: Path) -> None:
    shards = written(world, tmp_path / "shards", "units=amplitude", "calibration=800", "sensors=s1")
    for more, value in (([], 102), (["--dn-at-0db", "400"], 51), (["--dn-at-0db", "8000"], 255)):
        out = tmp_path / f"png{value}"
        assert main([str(shards), str(out), *more]) == EXIT_OK
        assert {path.name for path in out.iterdir()} == {"sar", "tiles.csv"}
        for path in out.rglob("*.png"):
            radar = png(path)
            assert np.unique(radar[1, radar[3] == 255]).tolist() == [value], "cut off, never wrapped"


def test_mistakes_are_one_line(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = written(world, tmp_path / "shards", "sensors=s1", "units=amplitude")
    assert shards_main(["write", "--scenes", "8", "--size", "16", str(tmp_path / "scenes")]) == EXIT_OK
    capsys.readouterr()
    full = tmp_path / "full"
    full.mkdir()
    (full / "a").touch()
    for arguments, words in (
        ([tmp_path / "nowhere", tmp_path / "out"], "does not exist"),
        ([tmp_path / "scenes", tmp_path / "out"], "holds no tiles"),
        ([shards, full], "is not an empty directory"),
        ([shards, tmp_path / "out", "--dn-at-0db", "-1"], "give a number above 0"),
    ):
        assert main([*map(str, arguments)]) == EXIT_USER
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
