"""Frozen features of labelled shards, against the model called by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from frontier.config.load import validate
from frontier.data.shards import ShardSet
from frontier.errors import UserError
from frontier.probe.baselines import colour_texture
from frontier.probe.subject import Ask, Subject
from frontier.train.checkpoint import build_model
from scale_alibi.feed import open_feed
from scale_alibi.model import ScaleALiBi
from scale_alibi.probe import features, match_bands, pool
from tests.scale_alibi.sets import write_rows
from tests.scale_alibi.triplets import changed, small_config, write_triplets

TRAIN = ("train", "train")
STORED = {"radar": 16, "lores": 16, "hires": 32}


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_triplets(tmp_path_factory.mktemp("probe") / "set", 20)


def resolved(data: Path, sensors: dict[str, dict[str, Any]] | None = None, **model: Any) -> dict[str, Any]:
    """A run's config with all filled in; `sensors`: what differs of each."""
    values = small_config(data.parent / "run", data)
    values["model"] |= model
    for name, changes in (sensors or {}).items():
        values["model"]["sensors"][name] |= changes
    config = validate(values)
    feed = open_feed(config, True, None)
    return replace(config, data=feed.data, model=feed.model).as_dict()


def built(config: dict[str, Any]) -> ScaleALiBi:
    model = build_model(config).eval()
    assert isinstance(model, ScaleALiBi)
    return model


def pooled(subject: Subject, model: ScaleALiBi, count: int = 5) -> np.ndarray:
    return subject.encode(model)(subject.train.read(0, count))


def by_hand(data: Path, count: int = 5) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Images and GSD of the first samples of `write_triplets`, by sensor."""
    shards = ShardSet(data)
    columns = {"radar": ("s1", "coarse_m"), "lores": ("s2", "coarse_m"), "hires": ("naip", "fine_m")}
    images, gsd = {}, {}
    for name, (image, metres) in columns.items():
        stored = torch.from_numpy(shards.read(image, 0, count)).float()
        images[name] = ((stored[:, [2, 0]] if name == "lores" else stored) - 120) / 45
        gsd[name] = torch.from_numpy(shards.read(metres, 0, count))[:, None].repeat(1, 2)
    return images, gsd


def test_features_are_the_pooled_tokens_of_a_direct_call(triplets: Path) -> None:
    config = resolved(triplets)
    model = built(config)
    images, gsd = by_hand(triplets)
    with torch.no_grad():
        tokens = {name: model.encode(name, images[name], gsd[name]) for name in images}
        joint = model.join(tokens)
    for source, expected in [*((name, t.x) for name, t in tokens.items()), ("joint", joint)]:
        for pooling in ("mean", "mean_std"):
            subject = features(config, Ask(str(triplets), TRAIN, source=source, pooling=pooling))
            found = pooled(subject, model)
            parts = [expected.mean(1), expected.std(1, correction=0)][: 1 + (pooling == "mean_std")]
            np.testing.assert_allclose(found, torch.cat(parts, 1), atol=2e-5)
            assert subject.origin["source"] == source
        assert subject.tokens is not None
        grid = subject.tokens(model)(subject.train.read(0, 5))
        side = STORED.get(source, 16) // 4
        torch.testing.assert_close(grid, expected.reshape(5, side, side, -1), atol=2e-5, rtol=1e-4)
    every = features(config, Ask(str(triplets), TRAIN))
    np.testing.assert_array_equal(every.train.labels, ShardSet(triplets).column("label"))
    assert every.origin["source"] == "joint" and every.origin["bands"]["s2"] == ["b2", "b0"]


def test_pooling() -> None:
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    assert pool(tokens, "mean").tolist() == [[2, 4]] and pool(tokens, "mean_std").tolist() == [[2, 4, 1, 2]]


def test_blocks_are_told_by_number(triplets: Path) -> None:
    config = resolved(triplets)
    model = built(config)

    def found(layers: list[int] | None) -> np.ndarray:
        return pooled(features(config, Ask(str(triplets), TRAIN, source="lores", layers=layers)), model)

    both = found([0, 1])
    np.testing.assert_array_equal(both[:, 32:], found(None))
    np.testing.assert_array_equal(both[:, :32], found([0]))
    images, gsd = by_hand(triplets)
    deepest = model.encoders["lores"].blocks.pop(1)
    with torch.no_grad():
        np.testing.assert_allclose(
            both[:, :32], model.encode("lores", images["lores"], gsd["lores"]).x.mean(1), atol=2e-5
        )
    model.encoders["lores"].blocks.append(deepest)
    with pytest.raises(UserError, match="blocks 2 of lores's encoder: choose among 0 to 1"):
        found([2])
    with pytest.raises(UserError, match="joint tokens come from the last blocks"):
        features(config, Ask(str(triplets), TRAIN, layers=[0]))


def test_ground_distance_reaches_the_encoder(triplets: Path, tmp_path: Path) -> None:
    """From a column, from the manifest, or as told: seen by `ground`, ignored by `grid`."""

    def stated(manifest: dict[str, Any]) -> None:
        manifest["images"]["s1"]["gsd_m"] = 7.5
        del manifest["columns"]["coarse_m"]

    other = changed(triplets, tmp_path / "other", stated)
    images, _ = by_hand(triplets)
    for position, differs in (("ground", True), ("grid", False), ("sincos_gsd", True)):
        config = resolved(triplets, position=position)
        model = built(config)
        of_samples, stated_m, told = (
            pooled(features(config, Ask(str(data), TRAIN, source="radar", gsd_m=gsd)), model)
            for data, gsd in ((triplets, None), (other, None), (triplets, 30.0))
        )
        for found, metres in ((stated_m, 7.5), (told, 30.0)):
            with torch.no_grad():
                expected = model.encode("radar", images["radar"], torch.full((5, 2), metres)).x.mean(1)
            np.testing.assert_allclose(found, expected, atol=2e-5)
            assert (np.abs(found - of_samples).max() > 1e-3) == differs
    for data, gsd, metres in ((other, None, 7.5), (other, 20.0, 20.0)):
        subject = features(config, Ask(str(data), TRAIN, source="radar", gsd_m=gsd))
        assert subject.origin["gsd_m"] == subject.views["gsd_seen_m"] == metres


def test_images_of_another_size(triplets: Path) -> None:
    """The run sees hires at 16 of its 32 pixels: so does the probe with `resize`, else at 32, each at its own metres a pixel."""
    config = resolved(triplets, {"hires": {"size": 16}})
    model = built(config)
    images, gsd = by_hand(triplets)
    small = torch.nn.functional.interpolate(images["hires"], size=(16, 16), mode="bilinear", antialias=True)
    stored = ShardSet(triplets).read("naip", 0, 5).astype(np.float32)
    median = float(np.median(ShardSet(triplets).column("fine_m")))
    for resize, seen, metres, record in ((False, images["hires"], 1, None), (True, small, 2, [32, 16])):
        subject = features(config, Ask(str(triplets), TRAIN, source="hires", resize=resize))
        with torch.no_grad():
            expected = model.encode("hires", seen, gsd["hires"] * metres).x.mean(1)
        np.testing.assert_allclose(pooled(subject, model), expected, atol=2e-5)
        np.testing.assert_allclose(subject.baseline[1](subject.train.read(0, 5)), colour_texture(stored), rtol=1e-4)
        assert subject.views["resize"] == record
        assert subject.views["gsd_seen_m"] == pytest.approx(metres * median)
        assert subject.origin["gsd_m"] == pytest.approx(median)
    grid = resolved(triplets, {"hires": {"size": 16}}, position="grid")
    with pytest.raises(UserError, match="counts patches, and hires has 2 times .* 1 in training: add --resize"):
        features(grid, Ask(str(triplets), TRAIN))
    features(grid, Ask(str(triplets), TRAIN, resize=True))


def test_bands_by_name_and_by_colour(triplets: Path, tmp_path: Path) -> None:
    """The run takes b2 (Sentinel-2's blue) and b0."""
    config = resolved(triplets)
    model = built(config)

    def found(names: list[str], out: str) -> np.ndarray:
        def rename(manifest: dict[str, Any]) -> None:
            manifest["images"]["s2"]["bands"] = [{"name": name} for name in names]

        data = changed(triplets, tmp_path / out, rename)
        subject = features(config, Ask(str(data), TRAIN, source="lores"))
        assert subject.origin["bands"] == [next(n for n in names if n.lower() in ("b2", "b02", "blue")), "b0"]
        return pooled(subject, model)

    plain = pooled(features(config, Ask(str(triplets), TRAIN, source="lores")), model)
    for number, colour in enumerate(("Blue", "B02")):
        np.testing.assert_array_equal(found(["b0", "nir", colour], f"same{number}"), plain)
    images, gsd = by_hand(triplets)
    with torch.no_grad():
        turned = model.encode("lores", images["lores"].flip(1), gsd["lores"]).x.mean(1)
    np.testing.assert_allclose(found(["blue", "nir", "b0"], "turned"), turned, atol=2e-5)
    with pytest.raises(
        UserError, match="has the bands b0, red, green; the encoder was trained on b2: choose another --source"
    ):
        found(["b0", "red", "green"], "without")


def test_aerial_bands_by_letter_and_by_common_name() -> None:
    """Tile triplets call NAIP's bands R, G and B, GEO-Bench's aerial tasks red, green and blue, its Landsat task B4, B3 and B2."""

    def found(wanted: list[str], *bands: tuple[str, str | None]) -> list[str]:
        spec = {"bands": [{"name": name} | ({"common_name": common} if common else {}) for name, common in bands]}
        return match_bands(wanted, spec, "here")

    aerial = [("blue", None), ("green", None), ("red", None), ("nir", None)]
    assert found(["R", "G", "B", "N"], *aerial) == ["red", "green", "blue", "nir"]
    assert found(["red"], ("R", None)) == found(["B04"], ("R", None)) == ["R"]
    landsat = [("B2", "blue"), ("B3", "green"), ("B4", "red"), ("B5", "nir"), ("B8", "pan")]
    assert found(["B04", "B08"], *landsat[:4]) == found(["R", "N"], *landsat[:4]) == ["B4", "B5"]
    assert found(["B08"], ("B8A", "nir"), ("B08", "nir")) == ["B08"]


def test_normalised_by_the_probed_shards(triplets: Path, tmp_path: Path) -> None:
    """The same ground in other units: seen as in training, by the statistics of the shards that are probed."""

    def scaled(manifest: dict[str, Any]) -> None:
        manifest["images"]["s1"]["statistics"] = {"mean": [90.0, 100.0], "std": [5.0, 0.5]}

    config = resolved(triplets)
    model = built(config)
    other = changed(triplets, tmp_path / "other", scaled)
    _, gsd = by_hand(triplets)
    stored = torch.from_numpy(ShardSet(triplets).read("s1", 0, 5)).float()
    mean, std = (torch.tensor(v).view(2, 1, 1) for v in ([90.0, 100.0], [5.0, 0.5]))
    for word, said, images in (
        ("run", "mean and deviation of the run", (stored - 120) / 45),
        ("data", "mean and deviation of the probed shards", (stored - mean) / std),
        ("data_2std", "mean -+ 2 deviations of the probed shards to 0 and 1", (stored - mean + 2 * std) / (4 * std)),
    ):
        subject = features(config, Ask(str(other), TRAIN, source="radar", normalise=word))
        with torch.no_grad():
            expected = model.encode("radar", images, gsd["radar"]).x.mean(1)
        np.testing.assert_allclose(pooled(subject, model), expected, atol=1e-4)
        assert subject.views["normalisation"] == said
        # The first band fits the run's numbers, the second does not.
        assert len(subject.notes) == (word == "run")
    (note,) = features(config, Ask(str(other), TRAIN, source="radar")).notes
    assert "column 's1'" in note and "--normalise data" in note and "\n" not in note
    assert not features(config, Ask(str(triplets), TRAIN)).notes

    def without(manifest: dict[str, Any]) -> None:
        manifest["images"]["s1"]["statistics"] = None

    bare = changed(triplets, tmp_path / "bare", without)
    with pytest.raises(UserError, match="--normalise data: .* has no statistics of 's1', .*: leave it out"):
        features(config, Ask(str(bare), TRAIN, source="radar", normalise="data"))


def test_what_is_asked_when_nothing_is_said(triplets: Path, tmp_path: Path) -> None:
    config = resolved(triplets)

    def only(*columns: str) -> str:
        def drop(manifest: dict[str, Any]) -> None:
            manifest["images"] = {name: spec for name, spec in manifest["images"].items() if name in columns}

        return str(changed(triplets, tmp_path / "_".join(columns), drop))

    assert features(config, Ask(only("s2"), TRAIN)).origin["source"] == "lores"
    with pytest.raises(
        UserError, match="has the columns s1, s2: choose --source radar, lores, hires, joint, and --column"
    ):
        features(config, Ask(only("s1", "s2"), TRAIN))
    without = resolved(triplets, decoder={}, weights={"contrastive": 1, "reconstruction": 0})
    with pytest.raises(
        UserError, match="has the columns s1, s2, naip: choose --source radar, lores, hires, and --column"
    ):
        features(without, Ask(str(triplets), TRAIN))
    with pytest.raises(
        UserError, match="--source joint: the run has no such encoder: choose --source radar, lores, hires$"
    ):
        features(without, Ask(str(triplets), TRAIN, source="joint"))


def without_gsd(manifest: dict[str, Any]) -> None:
    manifest["columns"] = {"label": manifest["columns"]["label"]}


def two_sensors(manifest: dict[str, Any]) -> None:
    del manifest["images"]["naip"]


def same(manifest: dict[str, Any]) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "ask", "message"),
    [
        (
            same,
            {"source": "sar"},
            "--source sar: the run has no such encoder: choose --source radar, lores, hires, joint",
        ),
        (same, {"pooling": "cls"}, "no \\[cls\\]: choose mean or mean_std"),
        (same, {"column": "s1"}, "choose --source"),
        (same, {"source": "joint", "column": "s1"}, "joint tokens take the columns of all sensors: leave it out"),
        (same, {"source": "radar", "column": "s9"}, "no image column 's9' .* choose --column s1 or s2 or naip"),
        (same, {"source": "joint", "gsd_m": 10.0}, "same ground: leave --gsd-m out, or name a sensor by --source"),
        (two_sensors, {"source": "joint"}, "no image column 'naip' .*: name a sensor by --source"),
        (without_gsd, {"source": "radar"}, "does not say how many metres a pixel of 's1' spans: add --gsd-m$"),
    ],
)
def test_mistakes(
    triplets: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], ask: dict[str, Any], message: str
) -> None:
    data = changed(triplets, tmp_path / "changed", change)
    with pytest.raises(UserError, match=message) as told:
        features(resolved(triplets), Ask(str(data), TRAIN, **ask))
    assert "\n" not in str(told.value)


def test_columns_that_do_not_suit(triplets: Path, tmp_path: Path) -> None:
    rows, config = write_rows(tmp_path / "rows", {"radar": 18}), resolved(triplets)
    for column, message in (
        ("radar", "radar images of 18 pixels in .* do not divide into patches of 4: add --resize"),
        ("series", "--column 'series' of .* has axes TC"),
        ("wide", "are not square"),
    ):
        with pytest.raises(UserError, match=message):
            features(config, Ask(str(rows), TRAIN, source="radar", column=column))


def test_samples_without_a_label_are_left_out(triplets: Path, tmp_path: Path) -> None:
    config = resolved(triplets)
    model = built(config)
    data = Path(shutil.copytree(triplets, tmp_path / "set"))
    with h5py.File(data / "train-00000.h5", "r+") as file:
        file["label"][[0, 3]] = -1
    subject = features(config, Ask(str(data), TRAIN, source="radar"))
    (batch,) = subject.train.batches(20)
    whole = features(config, Ask(str(triplets), TRAIN, source="radar"))
    kept = [n for n in range(20) if n not in (0, 3)]
    np.testing.assert_allclose(subject.encode(model)(batch), pooled(whole, model, 20)[kept], atol=2e-5)
    np.testing.assert_array_equal(subject.train.labelled, ShardSet(triplets).column("label")[kept])
