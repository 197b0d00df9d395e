"""From shards to the module's arguments: values, GSD and noise, on any number of ranks, of generated and real images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data_prep.command import main
from data_prep.tiles.grid import ground_spacing
from frontier.data.feed import Loaders
from frontier.data.shards import ShardSet
from frontier.errors import EXIT_OK
from tests.conftest import SHARED_DATA
from tests.scale_alibi.sets import HIRES, LORES, RADAR, opened, placed, write_rows

AUGMENT = {"symmetries": True, "crop_scale": [0.3, 1.0]}
SENSORS = {"radar": RADAR, "lores": LORES | {"bands": ["b4", "b1"]}, "hires": HIRES | {"size": 16}}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "set")


def test_images_are_those_of_the_shards(rows: Path) -> None:
    """Against numpy: chosen bands in their order, by their own statistics; masks and nodata become 0; sizes are resized."""
    _, batch = placed(opened(rows, SENSORS))
    shards, members = ShardSet(rows), batch.members[:, 1].numpy()
    radar, mask, lores, hires = (shards.take(name, members) for name in ("radar", "radar_mask", "lores", "hires"))
    deviation = np.array([3.0, 1.0], np.float32)[:, None, None]
    np.testing.assert_allclose(batch.images["radar"], np.where(mask[:, None], (radar + 12) / deviation, 0), atol=1e-5)
    chosen = lores[:, [4, 1]].astype(np.float32)
    scaled = (chosen - np.array([4400, 4100])[:, None, None]) / np.array([2004, 2001])[:, None, None]
    np.testing.assert_allclose(batch.images["lores"], np.where(chosen == 0, 0, scaled), atol=1e-5)
    assert np.array_equal(batch.known["radar"].expand(-1, 2, -1, -1), np.repeat(mask[:, None] > 0, 2, 1))
    assert np.array_equal(batch.known["lores"], chosen != 0) and "hires" not in batch.known
    plain = torch.from_numpy((hires - np.float32(127)) / np.float32(70))
    halved = F.interpolate(plain, size=(16, 16), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(batch.images["hires"], halved)
    assert all(gsd.tolist() == [[10.0, 10.0]] * 8 for gsd in batch.gsd.values())


def test_gsd_of_samples_reaches_the_module(rows: Path) -> None:
    sensors = {"radar": RADAR | {"gsd_m": "column:place_m"}, "hires": HIRES | {"gsd_m": "column:fine_m", "size": 16}}
    feed = opened(rows, sensors, augment=AUGMENT)
    reader, batch = placed(feed)
    own = torch.from_numpy(ShardSet(rows).take("place_m", batch.members[:, 1].numpy()))
    inputs = reader.inputs(torch.nn.Identity(), batch, 1, 2)
    for name in sensors:  # the same pixels for both
        shares = inputs["gsd"][name] / own[4:, None]
        assert (shares.prod(1) > 0.29).all() and (shares <= 1 + 1e-6).all() and len(shares.unique(dim=0)) == 4
    torch.testing.assert_close(inputs["gsd"]["radar"], inputs["gsd"]["hires"])
    assert inputs["gsd"]["radar"].dtype == torch.float32


def flat(batch: Any, reader: Any) -> dict[tuple[str, str, tuple[int, ...]], torch.Tensor]:
    """Every argument of every sample, by kind, sensor and (epoch, sample)."""
    inputs = reader.inputs(torch.nn.Identity(), batch, 0, 1)
    return {
        (kind, name, tuple(member)): values[row]
        for kind, of in inputs.items()
        for name, values in of.items()
        for row, member in enumerate(batch.members.tolist())
    }


def test_a_sample_is_the_same_on_any_rank(rows: Path) -> None:
    feed = opened(rows, SENSORS, augment=AUGMENT)
    for step in (0, 5):  # the second epoch
        reader, whole = placed(feed, step)
        one = flat(whole, reader)
        parts: dict[Any, torch.Tensor] = {}
        for rank in (0, 1):
            reader, part = placed(feed, step, rank, 2)
            parts |= flat(part, reader)
        assert one.keys() == parts.keys()
        for key, values in one.items():
            torch.testing.assert_close(values, parts[key], atol=1e-6, rtol=0)
            assert key[0] == "images" or torch.equal(values, parts[key])


def test_each_sensor_hides_other_patches(rows: Path) -> None:
    feed = opened(rows, {"radar": RADAR, "lores": LORES, "hires": HIRES}, {"patch": 1})
    reader, batch = placed(feed)
    noise = reader.inputs(torch.nn.Identity(), batch, 0, 2)["noise"]
    assert {name: tuple(values.shape) for name, values in noise.items()} == {
        "radar": (4, 256),
        "lores": (4, 256),
        "hires": (4, 1024),
    }
    values = torch.stack([noise[name][:, :256].flatten() for name in noise])
    off_diagonal = torch.corrcoef(values)[~torch.eye(3, dtype=torch.bool)]
    assert off_diagonal.abs().max() < 4 / 1024**0.5
    # A sensor more leaves the others' masks as they are.
    reader, batch = placed(opened(rows, {"lores": LORES, "radar": RADAR}, {"patch": 1}))
    assert torch.equal(reader.inputs(torch.nn.Identity(), batch, 0, 2)["noise"]["radar"], noise["radar"])
    other = placed(opened(rows, {"lores": LORES, "radar": RADAR}, {"patch": 1}), 3)
    assert not torch.equal(other[0].inputs(torch.nn.Identity(), other[1], 0, 2)["noise"]["radar"], noise["radar"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_sees_the_same(rows: Path) -> None:
    sensors = SENSORS | {
        "radar": RADAR | {"gsd_m": "column:place_m"},
        "hires": HIRES | {"gsd_m": "column:fine_m", "size": 16},
    }
    sensors["lores"] = sensors["lores"] | {"gsd_m": "column:place_m"}
    feed = opened(rows, sensors, augment=AUGMENT)
    reader, batch = placed(feed)
    there = feed.reader(torch.device("cuda"), 3)
    moved = there.place(next(Loaders(feed.streams, 0, 1, 0, torch.device("cuda"), 3).batches(0)))
    ours, theirs = (r.inputs(torch.nn.Identity(), b, 0, 2) for r, b in ((reader, batch), (there, moved)))
    for kind, of in ours.items():
        for name, values in of.items():
            assert theirs[kind][name].is_cuda
            if kind == "known":  # a pixel of which half is there may go either way
                assert (theirs[kind][name].cpu() != values).float().mean() < 1e-3
            else:
                torch.testing.assert_close(theirs[kind][name].cpu(), values, atol=1e-4, rtol=1e-4)


def test_turns_share_out_the_batch(rows: Path) -> None:
    reader, batch = placed(opened(rows, SENSORS, augment=AUGMENT))
    whole = reader.inputs(torch.nn.Identity(), batch, 0, 1)
    parts = [reader.inputs(torch.nn.Identity(), batch, turn, 4) for turn in range(4)]
    for kind, of in whole.items():
        for name, values in of.items():
            assert torch.equal(values, torch.cat([part[kind][name] for part in parts]))


def test_images_made_on_the_device() -> None:
    images = {"radar": [2, 16], "hires": [3, 32]}
    sensors = {"radar": RADAR | {"gsd_m": 10}, "hires": HIRES | {"gsd_m": 5}}
    feed = opened(None, sensors, synthetic={"images": images, "samples": 100})
    reader, batch = placed(feed)
    assert feed.streams[0].columns == ("radar", "hires")
    assert {name: tuple(values.shape) for name, values in batch.images.items()} == {
        "radar": (8, 2, 16, 16),
        "hires": (8, 3, 32, 32),
    }
    assert abs(float(batch.images["hires"].std()) - 1) < 0.02
    assert reader.inputs(torch.nn.Identity(), batch, 0, 1)["gsd"]["hires"].tolist() == [[5.0, 5.0]] * 8


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of two sets of images [B, S, S], each image less its mean."""
    a, b = ((v - v.mean((1, 2), keepdim=True)).flatten() for v in (a, b))
    return float((a @ b) / (a.norm() * b.norm()))


def test_generated_scenes_show_the_same_ground(tmp_path: Path) -> None:
    """Cropped and turned, the red of the aerial image averaged to 10 m is the red of the optical one, of its own scene alone."""
    command = [
        "write",
        "--scenes",
        "16",
        "--sensors",
        "s2,s1,naip",
        "--size",
        "32",
        "--test-fraction",
        "0",
        str(tmp_path / "out"),
    ]
    assert main(command) == EXIT_OK
    sensors = {
        "radar": {"column": "s1"},
        "lores": {"column": "s2", "bands": ["B04"]},
        "hires": {"column": "naip", "size": 64, "bands": ["red"]},
    }
    feed = opened(tmp_path / "out", sensors, {"patch": 8}, augment=AUGMENT)
    assert [s.nominal_gsd_m for s in feed.model.sensors.values()] == [10.0, 10.0, 5.0]
    _, batch = placed(feed)
    lores, hires = batch.images["lores"][:, 0], F.avg_pool2d(batch.images["hires"], 2)[:, 0]
    assert correlation(lores, hires) > 0.7
    assert abs(correlation(lores, hires.roll(1, 0))) < 0.4
    torch.testing.assert_close(batch.gsd["lores"], 2 * batch.gsd["hires"])


def tiles(path: Path, out: Path, *settings: str) -> Path:
    pytest.importorskip("rasterio")
    command = ["write", "--reader", "tile_triplets", "--from", str(path), "--test-fraction", "0"]
    assert main([*command, *(word for s in settings for word in ("--set", s)), str(out)]) == EXIT_OK
    return out


def test_gsd_of_tile_triplets_varies_with_latitude(tmp_path: Path) -> None:
    """Tiles of Web Mercator: metres a pixel go with the cosine of the latitude, and reach the module for every sensor."""
    pytest.importorskip("rasterio")
    from tests.data_prep.tiles.world import triplet

    shards = tiles(
        triplet(tmp_path / "place", 96), tmp_path / "out", "level=17", "size=32", "min_valid=0.5", "s2_bands=all"
    )
    sensors = {
        "radar": {"column": "s1"},
        "lores": {"column": "s2", "bands": ["B04", "B03", "B02"]},
        "hires": {"column": "naip_2x"},
    }
    feed = opened(shards, sensors, {"patch": 8})
    assert feed.model.sensors["hires"].gsd_m == "column:naip_2x_spacing_m"
    _, batch = placed(feed)
    lat = ShardSet(shards).take("lat", batch.members[:, 1].numpy())
    expected = torch.tensor([ground_spacing(17, 32, value) for value in lat], dtype=torch.float32)
    for name, factor in (("radar", 1.0), ("lores", 1.0), ("hires", 0.5)):
        torch.testing.assert_close(batch.gsd[name], factor * expected[:, None].expand(-1, 2))
    assert len(set(expected.tolist())) > 1 and {tuple(i.shape[1:]) for i in batch.images.values()} == {
        (2, 32, 32),
        (3, 32, 32),
        (3, 64, 64),
    }


@pytest.mark.realdata
def test_real_pairs_of_sentinel_1_and_2(tmp_path: Path) -> None:
    root = SHARED_DATA / "s1s2/sen1floods11/sample"
    if not root.exists():
        pytest.skip("no real data")
    for name in ("S1", "S2"):
        shutil.copytree(root / name, tmp_path / "place" / name)
    shards = tiles(tmp_path / "place", tmp_path / "out", "sensors=s1,s2", "s1=S1", "s2=S2", "s2_bands=all", "size=64")
    sensors = {"radar": {"column": "s1", "bands": ["VH"]}, "lores": {"column": "s2", "bands": ["B08", "B11"]}}
    found = []
    for augment in ({}, AUGMENT):
        feed = opened(shards, sensors, {"patch": 8}, augment=augment)
        assert feed.model.reference_m == pytest.approx(8 * feed.model.sensors["radar"].nominal_gsd_m)
        _, batch = placed(feed)
        spacing = ShardSet(shards).take("s1_spacing_m", batch.members[:, 1].numpy())
        if not augment:
            np.testing.assert_allclose(batch.gsd["radar"], np.repeat(spacing[:, None], 2, 1), rtol=1e-6)
        torch.testing.assert_close(batch.gsd["radar"], batch.gsd["lores"])
        assert all(torch.isfinite(images).all() and images.abs().max() < 30 for images in batch.images.values())
        # Water is dark in both: the sensors see the same place, also after it was cropped and turned.
        found.append(correlation(batch.images["radar"][:, 0], batch.images["lores"][:, 0]))
    assert min(found) > 0.1, found
