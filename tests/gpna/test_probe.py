"""`frontier probe` of a gpna run: latents as features, other shards with the same inputs, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from frontier.errors import UserError
from frontier.probe.baselines import PERCENTILES, band_statistics, colour_texture
from frontier.probe.command import main
from frontier.probe.subject import Ask
from frontier.train.checkpoint import load_model
from frontier.train.command import main as pretrain
from gpna.config import InputSection, SourceSection
from gpna.predict import features as frozen
from gpna.predict import open_split
from gpna.probe import Stored, baseline, features
from gpna.reader import GPNAReader
from gpna.sources import open_source
from tests.gpna.runs import image_set, run_config, series_set


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_set(tmp_path_factory.mktemp("images") / "shards")


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return series_set(tmp_path_factory.mktemp("series") / "shards")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, images: Path, series: Path) -> Path:
    """Run folder of three steps on two sources."""
    folder = tmp_path_factory.mktemp("gpna")
    assert pretrain([str(run_config(folder, images, series))]) == 0
    return folder / "run"


def probe(*args: str | Path) -> list[dict]:
    run = Path(args[0])
    assert main([str(arg) for arg in (*args, "--device", "cpu")]) == 0
    return json.loads((run / "probe.json").read_text())


def test_a_source_of_one_image_beside_colour_and_texture(trained: Path, tmp_path: Path) -> None:
    other = image_set(tmp_path / "other", seed=5)
    rows = probe(trained, "--data", other, "--source", "scenes", "--method", "knn,logistic")
    assert {(row["method"], row["encoder"]) for row in rows} == {
        (m, e) for m in ("logistic", "knn") for e in ("pretrained", "random", "colour_texture")
    }
    sizes = {row["encoder"]: row["features"] for row in rows}
    assert sizes["pretrained"] == sizes["random"] == 32
    row = rows[0]
    assert (row["source"], row["step"], row["n_train"], row["n_test"]) == ("scenes", 3, 42, 14)
    assert all(row["accuracy"] > 0.9 for row in rows if row["encoder"] == "colour_texture")


def test_other_inputs_beside_statistics_of_their_bands(trained: Path, series: Path) -> None:
    rows = probe(
        trained, "--data", series, "--source", "sites", "--method", "knn", "--pooling", "mean_std", "--layers", "0,1"
    )
    sizes = {row["encoder"]: row["features"] for row in rows}
    # Two blocks of mean and deviation; three bands of 2 + 7 statistics and the known share.
    assert sizes == {"pretrained": 128, "random": 128, "band_statistics": 3 * (2 + len(PERCENTILES) + 1)}
    assert {row["encoder"]: row["accuracy"] for row in rows}["band_statistics"] > 0.9
    assert rows[0]["layers"] == [0, 1]


@pytest.mark.parametrize("whole", [True, False])
def test_colour_and_texture_of_the_chosen_bands(tmp_path: Path, whole: bool) -> None:
    """Of those that the run reads, in its order, and not of all that the shards hold."""
    folder = image_set(tmp_path / "set")
    if not whole:  # a value that marks what is missing
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["images"]["x"]["nodata"] = 0
        (folder / "manifest.json").write_text(json.dumps(manifest))
    section = SourceSection(shards=str(folder), inputs={"x": InputSection(bands=["b2", "b0"])})
    source = open_source("scenes", section, {}, check=False)
    reader = GPNAReader(SimpleNamespace(), {"scenes": source}, torch.device("cpu"), 0)  # type: ignore[arg-type]
    name, function = baseline(source, reader)
    images = source.shards.read("x", 0, 5)
    assert name == "colour_texture" and images.all()
    found = function(Stored({"x": torch.from_numpy(images)}))
    np.testing.assert_allclose(found, colour_texture(images[:, [2, 0]]), rtol=1e-4, atol=1e-3)


def test_features_are_the_mean_of_the_latents(trained: Path, series: Path) -> None:
    module, config, _ = load_model(trained)
    subject = features(config, Ask(str(series), ("train", "test"), source="sites"))
    function = subject.encode(module.eval())
    ours = np.concatenate([function(part) for part in subject.test.batches(5)])
    theirs = frozen(module, config, open_split(config, "sites", "test", str(series)), size=14)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    with_both = features(config, Ask(str(series), ("train", "test"), source="sites", pooling="mean_std"))
    np.testing.assert_allclose(
        with_both.encode(module)(next(subject.test.batches(5)))[:, :32], ours[:5], rtol=1e-4, atol=1e-5
    )


def test_shards_need_the_inputs_and_a_label_alone(trained: Path, tmp_path: Path) -> None:
    """Not the labels of the run's tasks."""
    folder = image_set(tmp_path / "other")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["columns"]["dry"], manifest["arrays"]["land"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert len(probe(trained, "--data", folder, "--source", "scenes", "--method", "knn")) == 3
    del manifest["columns"]["label"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="takes a column 'label'"):
        probe(trained, "--data", folder, "--source", "scenes")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "has the sources scenes, sites: say by --source"),
        (["--source", "ships"], "--source ships: the run has scenes, sites"),
        (["--source", "sites"], "no input 's' in"),
        (["--source", "scenes", "--pooling", "cls"], r"no \[cls\] token: choose mean or mean_std"),
        (["--source", "scenes", "--column", "x"], "--column x: a gpna model reads all inputs"),
        (["--source", "scenes", "--resize"], "--resize: a gpna model takes the sizes"),
        (
            ["--source", "scenes", "--normalise", "data"],
            "--normalise data: a gpna model reads its inputs by its own statistics",
        ),
        (["--source", "scenes", "--layers", "2"], "layer 2 of 2 blocks"),
    ],
)
def test_refusals(trained: Path, images: Path, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        probe(trained, "--data", images, *options)


@pytest.mark.parametrize(
    ("changes", "said"), [({"bands": 2}, r"CHW \(2, 16, 16\) of .* b0, .* b1;"), ({"size": 8}, r"CHW \(3, 8, 8\)")]
)
def test_other_inputs_are_named(trained: Path, tmp_path: Path, changes: dict, said: str) -> None:
    with pytest.raises(UserError, match=rf"input 'x' of .*{said}.*the model was trained on CHW \(3, 16, 16\) of"):
        probe(trained, "--data", image_set(tmp_path / "other", **changes), "--source", "scenes")


def test_a_model_of_images_takes_no_source(tmp_path: Path, images: Path) -> None:
    from frontier.probe.images import image_subject

    with pytest.raises(UserError, match="one stream of images"):
        image_subject({"data": {"column": "x"}}, Ask(str(images), ("train", "test"), source="a"))


def test_statistics_of_bands_by_hand() -> None:
    values = np.array([[[1.0, 2.0, 3.0, 100.0], [5.0, 5.0, 5.0, 5.0]]])
    there = np.array([[[True, True, True, False], [False] * 4]])
    found = band_statistics(values, there)[0].reshape(-1, 2)
    assert found[0].tolist() == [2.0, 0.0] and found[1, 0] == pytest.approx(np.std([1, 2, 3]))
    assert found[2 + PERCENTILES.index(50)].tolist() == [2.0, 0.0] and found[-1].tolist() == [0.75, 0.0]
    assert band_statistics(values[..., :1]).tolist() == [[1.0, 5.0]]
