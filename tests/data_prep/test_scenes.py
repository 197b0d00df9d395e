"""Generated scenes: reproducible one by one, aligned between sensors, plausible, and worth learning from."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from data_prep.scenes import SceneSource, make_scene, scene_label
from data_prep.scenes_fields import FINE, Season, smooth_fields, upsample
from data_prep.scenes_landuse import CLASSES
from data_prep.scenes_spectra import REFLECTANCE, M
from frontier.errors import UserError

ALL = ("rgb", "s2", "s1", "naip", "naip_5m")


@pytest.fixture(scope="module")
def scenes() -> list[dict[str, Any]]:
    return [make_scene(11, index, 64, ALL) for index in range(64)]


def labels(count: int, seed: int = 11) -> np.ndarray:
    return np.array([scene_label(seed, index) for index in range(count)])


def coarse(fine: np.ndarray) -> np.ndarray:
    """Mean over the cells of a pixel."""
    n = fine.shape[-1] // FINE
    return fine.reshape(*fine.shape[:-2], n, FINE, n, FINE).mean((-3, -1))


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_a_scene_depends_on_seed_and_index_alone(scenes: list[dict[str, Any]]) -> None:
    assert same(make_scene(11, 5, 64, ALL), scenes[5])
    assert not np.array_equal(make_scene(12, 5, 64, ALL)["s2"], scenes[5]["s2"])
    source = SceneSource(64, seed=11, sensors=ALL)
    loaded = source.load([9, 3])
    assert np.array_equal(loaded["naip"][0], scenes[9]["naip"])
    assert np.array_equal(loaded["s1"][1], scenes[3]["s1"])
    assert len({hashlib.sha256(s["s2"].tobytes()).digest() for s in scenes}) == 64


@pytest.mark.parametrize("sensor", ALL)
def test_a_sensor_does_not_depend_on_the_others(scenes: list[dict[str, Any]], sensor: str) -> None:
    alone = make_scene(11, 2, 64, (sensor,))
    column = "image" if sensor == "rgb" else sensor
    assert np.array_equal(alone[column], scenes[2][column])


def test_classes_are_balanced_and_dominant(scenes: list[dict[str, Any]]) -> None:
    counts = np.bincount(labels(800), minlength=len(CLASSES))
    assert counts.tolist() == [100] * len(CLASSES)
    assert labels(64, seed=1).tolist() != labels(64, seed=2).tolist()
    shares = np.array([scene["label_fraction"] for scene in scenes])
    assert shares.min() > 0.4
    assert shares.mean() < 0.95, "pure scenes only would be too easy"


def test_shapes_types_and_ranges(scenes: list[dict[str, Any]]) -> None:
    source = SceneSource(8, sensors=ALL)
    for scene in scenes:
        for name, column in source.images.items():
            assert scene[name].shape == column.shape
            assert scene[name].dtype == column.dtype
        assert scene["s2"].min() >= 1, "0 is nodata"
        assert scene["s2"].max() <= 16000
        assert scene["s1"].min() / 100 > -40
        assert scene["s1"].max() / 100 < 20
        assert -180 <= scene["lon"] <= 180
        assert -90 < scene["lat"] < 90
        zone = scene["crs_epsg"] % 100
        assert abs((zone * 6 - 183) - scene["lon"]) <= 3 + 1e-9
        assert (scene["crs_epsg"] // 100 == 326) == (scene["lat"] >= 0)
        assert 0.2 < scene["valid_fraction"] <= 1
    assert 0.0 < np.mean([scene["cloud_fraction"] > 0 for scene in scenes]) < 0.6


def clear(scenes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [scene for scene in scenes if scene["valid_fraction"] == 1]


def water_of_s2(scene: dict[str, Any]) -> np.ndarray:
    """Modified NDWI (Xu 2006) above zero and dark near infrared."""
    green, nir, swir = (scene["s2"][band].astype(float) for band in (2, 7, 10))
    return (green > swir) & (nir < 700)


def test_water_lies_at_the_same_place_in_all_sensors(scenes: list[dict[str, Any]]) -> None:
    named = zip(scenes, labels(64), strict=True)
    chosen = [s for s, label in named if CLASSES[label] == "water" and s["valid_fraction"] == 1]
    assert len(chosen) >= 3
    for scene in chosen:
        water = water_of_s2(scene)
        red, green, blue, nir = coarse(scene["naip"].astype(float))
        dark = (nir < 100) & (nir < 1.1 * (red + green + blue) / 3)
        assert np.mean(water == dark) > 0.93
        calm = scene["s1"][0] / 100
        assert np.median(calm[water]) < np.median(calm[~water]) - 1, "dB"


def test_aerial_and_satellite_images_agree_in_detail(scenes: list[dict[str, Any]]) -> None:
    """Once averaged, the aerial bands follow the satellite's; shifted by two pixels they follow less."""
    for scene in clear(scenes)[:20]:
        aerial = coarse((scene["naip"][0] / 255.0) ** 2)
        satellite = scene["s2"][3].astype(float)
        here = np.corrcoef(aerial.ravel(), satellite.ravel())[0, 1]
        away = np.corrcoef(np.roll(aerial, 2, 1).ravel(), satellite.ravel())[0, 1]
        assert here > 0.85
        assert here > away


def test_the_aerial_image_at_5_m_is_the_mean_of_the_finer_one(scenes: list[dict[str, Any]]) -> None:
    for scene in scenes[:3]:
        fine = scene["naip"].astype(float)
        expected = sum(fine[:, row::2, column::2] for row in (0, 1) for column in (0, 1)) / 4
        assert np.abs(scene["naip_5m"] - expected).max() <= 0.5


def test_true_colour_is_the_satellites(scenes: list[dict[str, Any]]) -> None:
    for scene in scenes[:8]:
        expected = 255 * np.clip(scene["s2"][[3, 2, 1]] / 2800.0, 0, 1) ** (1 / 1.4)
        assert np.abs(scene["image"] - expected).max() <= 1


def test_the_land_of_every_pixel_is_a_target(scenes: list[dict[str, Any]]) -> None:
    plain, source = SceneSource(64, seed=11), SceneSource(64, seed=11, targets=True)
    assert "land" not in plain.load([0])
    assert plain.describe().keys() < source.describe().keys()
    assert {name: target.kind for name, target in source.targets.items()} == {
        "label": "classification",
        "land": "segmentation",
    }
    land = source.load(range(16))["land"]
    assert land.shape == (16, 64, 64)
    for index in range(16):
        assert abs(np.mean(land[index] == scene_label(11, index)) - scenes[index]["label_fraction"]) < 0.02
    chosen = [
        s for s, label in zip(scenes, labels(64), strict=True) if CLASSES[label] == "water" and s["valid_fraction"] == 1
    ]
    for scene in chosen:
        assert np.mean((scene["land"] == 0) == water_of_s2(scene)) > 0.9


def test_seasons_green_the_fields() -> None:
    """Same place, July and January: vegetation is greener in summer, and the poles' seasons are opposite."""
    summer, winter = Season(190, 1.0), Season(10, 1.0)
    for peak, width in ((190, 75), (150, 85)):
        assert summer.pulse(peak, width, 0.1, 0.9) > winter.pulse(peak, width, 0.1, 0.9) + 0.3
    tropics = [Season(day, 0.15).pulse(190, 75, 0.1, 0.95) for day in (10, 190)]
    assert tropics[1] - tropics[0] < 0.2


def test_vegetation_has_a_red_edge() -> None:
    for name in ("broadleaf", "conifer", "grass", "cereal", "maize"):
        green = REFLECTANCE[1, M[name]]
        assert green[7] > 3 * green[3]
    water = REFLECTANCE[0, M["water"]]
    assert water[7] < water[1]


def test_speckle_has_its_looks() -> None:
    """On even ground the ratio of mean² to variance is the number of looks (within the texture of the scene)."""
    found = []
    for index in range(200):
        if CLASSES[scene_label(0, index)] == "water" and len(found) < 4:
            scene = make_scene(0, index, 64, ("s2", "s1"))
            water = water_of_s2(scene)
            inner = water & np.roll(water, 2, 0) & np.roll(water, -2, 0) & np.roll(water, 2, 1) & np.roll(water, -2, 1)
            power = 10 ** (scene["s1"][0][inner] / 1000)
            found.append(power.mean() ** 2 / power.var())
    assert 3 < np.median(found) < 7


def test_classes_can_be_told_but_not_by_mean_colour(scenes: list[dict[str, Any]]) -> None:
    """The probes have something to measure: well above chance, and colour alone does not finish it."""
    made = [make_scene(21, index, 32, ("rgb", "s2", "s1")) for index in range(240)]
    truth = labels(240, 21)
    rgb = np.stack([s["image"] for s in made]).astype(float)
    s2 = np.stack([s["s2"] for s in made]).astype(float)
    s1 = np.stack([s["s1"] for s in made]).astype(float)
    edges = [np.abs(np.diff(rgb, axis=axis)).mean((2, 3)) for axis in (2, 3)]
    rich = np.concatenate([s2.mean((2, 3)), s2.std((2, 3)), s1.mean((2, 3)), s1.std((2, 3)), *edges], 1)

    def accuracy(features: np.ndarray) -> float:
        # Ridge regression on one-hot classes: one solve, and close to a linear probe.
        known, new = features[:180], features[180:]
        mean, std = known.mean(0), known.std(0) + 1e-9
        known, new = ((part - mean) / std for part in (known, new))
        weights = np.linalg.solve(
            known.T @ known + 3 * np.eye(known.shape[1]), known.T @ (np.eye(8)[truth[:180]] - 0.125)
        )
        return float(np.mean((new @ weights).argmax(1) == truth[180:]))

    assert 0.35 < accuracy(rgb.mean((2, 3))) < 0.85
    assert accuracy(rich) > 0.75


def test_fields() -> None:
    fields = smooth_fields(np.random.default_rng(0), (3.0, 1.0), 48)
    assert np.allclose(fields.mean((1, 2)), 0, atol=1e-4)
    assert np.allclose(fields.std((1, 2)), 1, atol=1e-3)
    step = np.abs(np.diff(fields, axis=2)).mean((1, 2))
    assert step[0] < 0.5 * step[1], "a steeper spectrum is smoother"
    assert np.allclose(upsample(np.ones((8, 8), np.float32)), 1, atol=1e-6)
    ramp = np.tile(np.arange(8, dtype=np.float32), (8, 1))
    inner = upsample(ramp)[16, 8:-8]
    assert np.allclose(np.diff(inner), 1 / FINE, atol=1e-5), "linear ground stays linear"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": 0}, "--scenes 0"),
        ({"count": 1, "sensors": ("s3",)}, "no sensor 's3'"),
        ({"count": 1, "sensors": ()}, "at least one"),
        ({"count": 1, "size": 8}, "--size 8"),
        ({"count": 1, "seed": -1}, "--seed -1"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        SceneSource(**options)


@pytest.mark.parametrize("size", [16, 21, 100])
def test_other_sizes(size: int) -> None:
    scene = make_scene(1, 0, size, ALL)
    assert scene["s2"].shape == (12, size, size)
    assert scene["naip"].shape == (4, FINE * size, FINE * size)
