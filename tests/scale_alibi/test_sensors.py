"""What a config's sensors become on given shards, and every mistake in one line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from frontier.config.load import validate
from frontier.data.shards import ShardSet
from frontier.errors import UserError
from scale_alibi.family import FAMILY
from scale_alibi.feed import open_feed
from scale_alibi.sensors import SensorSection
from tests.data.sets import write_set
from tests.scale_alibi.sets import HIRES, LORES, RADAR, config_of, opened, write_rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "set")


def test_everything_is_filled_in(rows: Path) -> None:
    lores = LORES | {"bands": ["b3", "b0"]}
    feed = opened(rows, {"radar": RADAR, "lores": lores, "hires": HIRES | {"size": 16, "depth": 3}})
    found = {name: sensor.model_dump() for name, sensor in feed.model.sensors.items()}
    assert found["radar"] == {
        "column": "radar",
        "bands": ["b0", "b1"],
        "size": 16,
        "gsd_m": 10.0,
        "depth": None,
        "mask_ratio": None,
        "mean": [-12.0, -12.0],
        "std": [3.0, 1.0],  # a band that never varies
        "channels": 2,
        "stored_size": 16,
        "nominal_gsd_m": 10.0,
    }
    assert (found["lores"]["bands"], found["lores"]["channels"]) == (["b3", "b0"], 2)
    assert (found["lores"]["mean"], found["lores"]["std"]) == ([4300.0, 4000.0], [2003.0, 2000.0])
    assert [found["hires"][key] for key in ("gsd_m", "nominal_gsd_m", "stored_size", "size")] == [5.0, 10.0, 32, 16]
    assert feed.model.reference_m == 40.0  # a patch of 4 pixels of 10 m
    assert feed.streams[0].columns == ("radar", "radar_mask", "lores", "hires")
    assert feed.streams[0].sample_bytes == 2 * 256 * 4 + 256 + 5 * 256 * 2 + 3 * 1024


def test_what_was_filled_in_fills_in_the_same(rows: Path) -> None:
    sensors = {"radar": RADAR | {"gsd_m": "column:place_m"}, "hires": HIRES | {"gsd_m": "column:fine_m", "size": 64}}
    feed = opened(rows, sensors)
    config = config_of(sensors, shards=str(rows))
    resolved = validate(replace(config, data=feed.data, model=feed.model).as_dict())
    again = open_feed(resolved, False, None)
    assert again.model == feed.model and again.data == feed.data and again.fixed() == feed.fixed()
    median = np.median(ShardSet(rows).column("place_m").astype(np.float64))
    assert feed.model.sensors["radar"].nominal_gsd_m == pytest.approx(median, rel=1e-7)
    assert feed.model.sensors["hires"].nominal_gsd_m == pytest.approx(median / 4, rel=1e-7)
    assert feed.streams[0].columns == ("radar", "radar_mask", "hires", "place_m", "fine_m")


def test_the_unit_of_distance(rows: Path) -> None:
    sensors = {"radar": RADAR | {"size": 8}, "hires": HIRES}
    assert opened(rows, sensors).model.reference_m == 80.0
    assert opened(rows, sensors, {"reference_m": 7.0}).model.reference_m == 7.0
    # Where places are no metres there is no such unit, and the config refuses one.
    assert opened(rows, sensors, {"position": "grid"}).model.reference_m is None


def test_spacing_of_samples_goes_before_the_nominal_gsd(tmp_path: Path) -> None:
    images = np.zeros((9, 1, 8, 8), np.uint8)
    spacing = np.linspace(3, 4, 9, dtype=np.float32)
    statistics = {name: {"mean": [0.0], "std": [1.0]} for name in "abc"}
    path = write_set(
        tmp_path / "set",
        dict.fromkeys("abc", (images, "CHW")),
        columns={"a_spacing_m": spacing, "b_spacing_m": spacing, "gsd_m": spacing},
        statistics=statistics,
        gsd={"a": 99.0},
    )
    model = {"patch": 4}
    feed = opened(path, {"x": {"column": "a"}, "y": {"column": "b"}}, model)
    assert [sensor.gsd_m for sensor in feed.model.sensors.values()] == ["column:a_spacing_m", "column:b_spacing_m"]
    with pytest.raises(UserError, match="does not say how many metres a pixel of 'c' spans") as told:
        opened(path, {"x": {"column": "a"}, "y": {"column": "c"}}, model)
    assert "set model.sensors.y.gsd_m to it, or column:gsd_m if" in str(told.value)
    assert opened(path, {"x": {"column": "a"}, "y": {"column": "c", "gsd_m": "column:gsd_m"}}, model)


def test_what_must_not_change_over_a_stop(rows: Path) -> None:
    sensors = {"radar": RADAR, "hires": HIRES}

    def fixed(sensors: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
        feed = opened(rows, sensors, model)
        assert FAMILY.fixed is not None
        return feed.fixed() | FAMILY.fixed(feed.model)

    base = fixed(sensors, {})
    others: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("model.sensors.hires.size", {"radar": RADAR, "hires": HIRES | {"size": 16}}, {}),
        ("model.sensors.hires.bands", {"radar": RADAR, "hires": HIRES | {"bands": ["b2", "b1", "b0"]}}, {}),
        ("model.sensors.hires.gsd_m", {"radar": RADAR, "hires": HIRES | {"gsd_m": 5.01}}, {}),
        ("model.sensors", {"hires": HIRES, "radar": RADAR | {"size": 32}}, {}),
        ("model.sensors.hires.mean", {"radar": RADAR, "hires": HIRES | {"mean": [1.0, 2.0, 3.0]}}, {}),
        ("model.reference_m", sensors, {"reference_m": 41.0}),
        ("model.position", sensors, {"position": "grid"}),
        ("model.heads", sensors, {"heads": 2}),
        ("model.decoder.heads", sensors, {"decoder": {"heads": 2}}),
        ("model.norm_scope", sensors, {"norm_scope": "joint"}),
    ]
    for key, changed, model in others:
        assert fixed(changed, model)[key] != base[key], key


def test_no_torch_with_the_section() -> None:
    code = "import sys, scale_alibi.sensors; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


BAD: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "no such column": ({"hires": {"column": "hire"}}, "model.sensors.hires.column 'hire' is not in .*did you mean hires"),
    "not images": ({"hires": {"column": "series"}}, "has axes TC, model.family=scale_alibi takes CHW: choose among radar"),
    "not square": ({"hires": {"column": "wide"}}, "images 'wide' of 16x8 are not square"),
    "no such band": ({"hires": HIRES | {"bands": ["b9"]}}, "model.sensors.hires.bands: no band 'b9': did you mean"),
    "patches": ({"hires": HIRES | {"size": 30}}, "30x30 pixels do not divide into patches of 4: set model.sensors.hires.size=32"),
    "few means": ({"hires": HIRES | {"mean": [1.0]}}, "model.sensors.hires.mean has 1 values for 3 bands"),
    "no deviation": ({"hires": HIRES | {"std": [1.0, 0.0, 1.0]}}, "model.sensors.hires.std holds a value that is not pos"),
    "no gsd column": ({"hires": HIRES | {"gsd_m": "column:place"}}, "no per-sample column 'place' in .*did you mean place_m"),
    "gsd of text": ({"hires": HIRES | {"gsd_m": "column:name"}}, "column 'name' of .* holds no numbers"),
    "gsd of nan": ({"hires": HIRES | {"gsd_m": "column:broken_m"}}, "'broken_m' of .* holds nan for sample 5 of split 'train'"),
    "other ground": (
        {"hires": HIRES | {"gsd_m": 5.1}},
        r"radar shows 160 m a side \(16 px stored\), hires 163.2 m \(32 px\): all sensors must show the same ground",
    ),
    "other ground in some samples": (
        {"radar": RADAR | {"gsd_m": "column:place_m"}, "hires": HIRES | {"gsd_m": "column:other_m"}},
        r"of sample \d+ of .*, radar and hires show [\d.]+ and [\d.]+ m a side \(3 such samples\): .* mend model.sensors.hires.gsd_m",
    ),
    "one GSD for all where another's varies": (
        {"radar": RADAR | {"gsd_m": "column:place_m"}, "hires": HIRES | {"gsd_m": 3.448}},
        r"of sample 1 of .* show 143.313 and 110.336 m a side \(20 such samples\)",
    ),
    "grids": (
        {"hires": HIRES | {"size": 24}},
        "its 6x6 patches are no whole multiple of the 4x4 of radar, the first sensor: .*size to a multiple of 16",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_mistakes(rows: Path, name: str) -> None:
    changed, words = BAD[name]
    with pytest.raises(UserError, match=words) as told:
        opened(rows, {"radar": RADAR} | changed)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"column": "radar"}, "data.column has no effect with model.family=scale_alibi"),
        ({"image_size": 16}, "data.image_size has no effect with model.family=scale_alibi"),
        ({"mean": [1.0]}, "data.mean has no effect"),
        ({"split": "tset"}, "no split 'tset'"),
    ],
)
def test_mistakes_of_the_data_section(rows: Path, data: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        opened(rows, {"radar": RADAR, "hires": HIRES}, **data)


def test_other_kinds_of_data_are_refused() -> None:
    sensors = {"radar": RADAR, "hires": HIRES}
    with pytest.raises(UserError, match=r"data.sources: .* give data.shards"):
        config_of(sensors, sources={"a": {"shards": "x"}})
    with pytest.raises(UserError, match=r"data.synthetic.images=\{radar: \[BANDS, PIXELS\], hires: "):
        opened(None, sensors, synthetic={"samples": 99}, image_size=16)


@pytest.mark.parametrize(
    "given",
    [{"gsd_m": 0}, {"gsd_m": -1.0}, {"gsd_m": float("nan")}, {"gsd_m": "column:"}, {"gsd_m": "spacing"}, {"bands": []},
     {"bands": ["a", "a"]}, {"size": 0}, {"mask_ratio": 1.0}, {"gsd": 5}],
)  # fmt: skip
def test_sections_that_say_nothing(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SensorSection.model_validate({"column": "a"} | given)
    assert SensorSection.model_validate({"column": "a", "gsd_m": 10}).gsd_m == 10.0
