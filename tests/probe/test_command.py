"""`frontier probe` on a real checkpoint and real shards: rows, table, options, and every mistake a user can make."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from data_prep.command import main as shards_command
from frontier.errors import UserError
from frontier.probe.command import main
from frontier.probe.methods import METHODS
from tests.conftest import run_frontier, toy_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """Run folder after two steps."""
    folder = tmp_path_factory.mktemp("probe")
    config = toy_config(folder / "run", shards)
    config["train"].update(steps=2, warmup_steps=1)
    (folder / "toy.yaml").write_text(yaml.safe_dump(config))
    done = run_frontier("pretrain", folder / "toy.yaml")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """The images at 16 pixels."""
    out = tmp_path_factory.mktemp("small") / "shards"
    assert shards_command(["write", "--from", str(image_folder), str(out), "--image-size", "16"]) == 0
    return out


def probe(*args: str | Path) -> int:
    return main([str(arg) for arg in args])


def test_all_methods_and_baselines(
    trained: Path, shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but umap_kmeans, which would compile for a minute; tests/probe/test_heads_and_neighbours.py has it."""
    monkeypatch.setattr("frontier.probe.methods.find_spec", lambda name: None)
    assert probe(trained, "--data", shards, "--device", "cpu") == 0
    printed = capsys.readouterr()
    rows = json.loads((trained / "probe.json").read_text())
    every = [name for name, how in METHODS.items() if "classification" in how.kinds and not how.missing]
    assert [(row["method"], row["encoder"]) for row in rows] == [
        (m, e) for m in every for e in ("pretrained", "random", "colour_texture")
    ]
    assert "umap_kmeans left out" in printed.err and "umap_kmeans" not in every
    for row in rows:
        assert row["schema"] == 1
        assert (row["step"], row["checkpoint"], row["column"]) == (2, "step_00000002", "image")
        assert (row["n_train"], row["n_test"], row["splits"]) == (160, 40, ["train", "test"])
        assert len(row["ci95"]) == 2
    assert {row["encoder"]: row.get("encoder_seed") for row in rows} == {
        "pretrained": 3,
        "random": 4,
        "colour_texture": None,
    }
    assert rows[0]["pooling"] == "mean"
    assert rows[0]["layers"] == "last"
    assert set(rows[0]["difference"]) == {"random", "colour_texture"}
    assert not list(trained.glob("*.tmp")) + list(trained.glob(".*"))
    assert "160 training and 40 test samples of 2 classes" in printed.out
    assert printed.out.count("colour_texture") == len(every)
    assert printed.err.count("features of 200 samples") == 3


def test_options_and_json(trained: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "probe.json").read_text() if (trained / "probe.json").exists() else None
    out = tmp_path / "rows.json"
    options = ["--method", "knn", "--pooling", "mean_std", "--layers", "0,1", "--batch", "33", "--seed", "7"]
    step = trained / "checkpoints" / "step_00000002"
    assert probe(step, "--data", shards, "--out", out, "--json", *options) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == json.loads(out.read_text())
    assert [row["method"] for row in rows] == ["knn"] * 3
    assert [row["features"] for row in rows] == [128, 128, 144]
    assert rows[1]["encoder_seed"] == 3 + 1 + 7
    assert rows[0]["layers"] == [0, 1]
    assert (rows[0]["kind"], rows[0]["metric"], rows[0]["target"]) == ("measured", "accuracy", "label")
    assert (rows[0]["resize"], rows[0]["gsd_m"], rows[0]["gsd_seen_m"]) == (None, None, None)
    after = (trained / "probe.json").read_text() if (trained / "probe.json").exists() else None
    assert after == before


def test_a_checkpoint_outside_a_run_keeps_its_rows(trained: Path, shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mine"
    shutil.copytree(trained / "checkpoints" / "step_00000002", copy)
    assert probe(copy, "--data", shards, "--method", "knn") == 0
    assert len(json.loads((copy / "probe.json").read_text())) == 3


def test_other_sizes_only_on_request(trained: Path, small: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"16 x 16 .* trained on 32 x 32: add --resize"):
        probe(trained, "--data", small, "--method", "knn")
    assert probe(trained, "--data", small, "--method", "knn", "--resize", "--out", tmp_path / "r.json") == 0


def test_images_in_other_units(trained: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A hundred times the values: told, and the same features where they are normalised by their own statistics."""
    other = Path(shutil.copytree(shards, tmp_path / "other"))
    manifest = json.loads((other / "manifest.json").read_text())
    own = manifest["images"]["image"]["statistics"]
    config = yaml.safe_load((trained / "config.yaml").read_text())["data"]
    manifest["images"]["image"]["statistics"] = {**own, "mean": config["mean"], "std": config["std"]}
    (other / "manifest.json").write_text(json.dumps(manifest))

    def rows(*options: str | Path) -> list[dict]:
        out = tmp_path / "rows.json"
        assert probe(trained, "--data", other, "--method", "logistic", "--out", out, *options) == 0
        return json.loads(out.read_text())

    plain, same = rows(), rows("--normalise", "data")
    assert not capsys.readouterr().err.count("--normalise")
    assert [row["accuracy"] for row in same] == [row["accuracy"] for row in plain]
    said = [row["normalisation"] for row in same]
    assert said == ["mean and deviation of the probed shards"] * 2 + ["none"]
    manifest["images"]["image"]["statistics"] |= {"mean": [100 * m for m in config["mean"]]}
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert rows()[0]["accuracy"] == plain[0]["accuracy"]  # of the numbers of the run still
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "--normalise" in line]
    assert "column 'image'" in told and "other units" in told
    assert rows("--normalise", "data_2std")[0]["normalisation"].startswith("mean -+ 2 deviations")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "svm"], "method 'svm' is unknown, --method: choose all or some of linear,logistic,mlp,knn"),
        (["--method", "segment"], "method segment does not take labels for classification, which 'label' has"),
        (["--target", "colour"], "no target 'colour' in .*--target: there are: label"),
        (["--method", "mlp", "--split-val", "val"], "no split 'val'"),
        (["--layers", "a,b"], "'a,b' is no list of blocks"),
        (["--layers", "1,1"], "names a block twice"),
        (["--layers", "0,9"], "layer 9 of 2 blocks"),
        (["--batch", "0"], "--batch 0: give a positive number"),
        (["--seed", "-1"], "--seed -1"),
        (["--device", "abacus"], "'abacus' is no device"),
        (["--device", "meta"], "device 'meta' is not supported"),
        (["--device", "cuda:99"], "no device 'cuda:99' here"),
        (["--split-test", "train"], "split 'train' both fits and tests"),
        (["--split-test", "val"], "no split 'val'"),
        (["--column", "s2"], "no image column 's2' .* choose --column image"),
        (["--out", "/nowhere/at/all.json"], "cannot be written"),
    ],
)
def test_mistakes(trained: Path, shards: Path, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        probe(trained, "--data", shards, *options)


def test_no_checkpoint(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        probe(tmp_path, "--data", shards)


def test_bands_differ(trained: Path, image_folder: Path, tmp_path: Path) -> None:
    args = ["write", "--from", str(image_folder), str(tmp_path / "grey"), "--channels", "grey"]
    assert shards_command(args) == 0
    with pytest.raises(UserError, match=r"1 bands in column 'image' .* trained on 3"):
        probe(trained, "--data", tmp_path / "grey")


def test_no_labels(trained: Path, image_folder: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted((image_folder / "blobs").iterdir())[:12]:
        shutil.copy(path, flat)
    args = ["write", "--from", str(flat), str(tmp_path / "shards"), "--test-fraction", "0.25"]
    assert shards_command(args) == 0
    with pytest.raises(UserError, match=r"no labels|has a label"):
        probe(trained, "--data", tmp_path / "shards")


def test_one_class(trained: Path, image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder / "blobs", tmp_path / "images" / "blobs")
    args = ["write", "--from", str(tmp_path / "images"), str(tmp_path / "shards")]
    assert shards_command(args) == 0
    with pytest.raises(UserError, match="of one class"):
        probe(trained, "--data", tmp_path / "shards")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        probe("--help")
    assert stopped.value.code == 0
    assert "--pooling {mean,cls,mean_std}" in capsys.readouterr().out


def test_one_line_on_the_command_line(trained: Path) -> None:
    done = run_frontier("probe", trained, "--data", "/nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("frontier probe: ")
    assert done.stderr.count("\n") == 1
