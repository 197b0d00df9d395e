"""GEO-Bench tasks of the published layout, through their reader, to rows beside published figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_prep.command import main as shards_command
from frontier.errors import UserError
from frontier.probe import linear
from frontier.probe.command import main
from frontier.probe.methods import METHODS
from frontier.probe.published import _table, normalised, published
from frontier.probe.table import headline, table
from frontier.train.command import main as pretrain
from tests.conftest import toy_config
from tests.data_prep.readers.test_geobench import (
    S2,
    Classification,
    MultiLabel,
    SegmentationClasses,
    finish,
    task_folder,
    write_sample,
)

COUNT, SIZE = 48, 16


def made(root: Path, task: str) -> Path:
    """Shards and, beside them, a run of one step of a task whose pixels tell the label."""
    random = np.random.default_rng(0)
    folder = task_folder(root, task)
    ids = [f"id_{number}" for number in range(COUNT)]
    for number, name in enumerate(ids):
        level = 1000 + 400 * (number % 4)
        bands = {band: random.normal(level, 60, (SIZE, SIZE)).astype(np.int16) for band in S2}
        label: object = number % 4
        if task == "m-bigearthnet":
            bands.pop("10 - SWIR - Cirrus")
            label = [number % 4 // 2, number % 2] + [0] * 41
        if task == "m-pv4ger-seg":
            panel = np.zeros((SIZE, SIZE), np.uint8)
            panel[:, : 4 * (number % 4)] = 1
            bands = {
                band: (60 + 90 * panel + random.normal(0, 9, panel.shape)).astype(np.int16)
                for band in ("Red", "Green", "Blue")
            }
            label = panel
        write_sample(folder, name, bands, label)
    kind = {"m-eurosat": Classification, "m-bigearthnet": MultiLabel, "m-pv4ger-seg": SegmentationClasses}[task]
    count = {"m-eurosat": 10, "m-bigearthnet": 43, "m-pv4ger-seg": 2}[task]
    finish(
        folder,
        kind(
            n_classes=count,
            class_name=[f"class{k}" for k in range(count)],
            _class_names=[f"class{k}" for k in range(count)],
        ),
        {"train": ids[:28], "valid": ids[28:36], "test": ids[36:]},
    )
    shards = root / "shards"
    write = ["write", "--reader", "geobench", "--from", str(root), str(shards), "--set", f"task={task}"]
    assert shards_command(write) == 0
    config = toy_config(root / "run", shards)
    config["train"].update(steps=1, warmup_steps=0, global_batch=4)
    config["data"]["image_size"] = 32
    (root / "toy.yaml").write_text(yaml.safe_dump(config))
    assert pretrain([str(root / "toy.yaml")]) == 0
    return shards


def probe(shards: Path, *options: str) -> list[dict]:
    run = shards.parent / "run"
    assert main([str(run), "--data", str(shards), "--resize", "--device", "cpu", *options]) == 0
    return json.loads((run / "probe.json").read_text())


def test_eurosat_beside_published_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = probe(made(tmp_path, "m-eurosat"), "--method", "logistic,mlp,knn20_l2,kmeans")
    printed = capsys.readouterr().out
    measured = [row for row in rows if row["kind"] == "measured"]
    assert len(measured) == 12 and all(row["n_train"] == 28 and row["n_test"] == 12 for row in measured)
    first = measured[0]
    assert first["bands"][-2:] == ["B12", "B8A"] and first["gsd_m"] == 10
    assert (first["resize"], first["gsd_seen_m"]) == ([16, 32], 5.0)
    assert first["normalisation"] == "mean and deviation of the run" and first["pooling"] == "mean"
    assert "resize" not in measured[2] and measured[2]["normalisation"] == "none"
    assert first["geobench_normalised"] == pytest.approx((first["accuracy"] - 0.907) / 0.078)
    assert {row["validation"] for row in measured if row["method"] == "mlp"} == {"split"}
    assert first["splits"] == ["train", "test", "val"]
    assert all(row["accuracy"] > 0.9 for row in measured if row["encoder"] == "pretrained"), "the level tells the class"
    clusters = [row for row in measured if row["method"] == "kmeans"]
    assert all({"nmi", "ari", "raw_accuracy", "accuracy_matched_on_test", "nmi_ci95"} <= set(row) for row in clusters)

    others = {(row["method"], row["encoder"]): row for row in rows if row["kind"] == "published"}
    assert others["mlp", "CROMA"]["accuracy"] == 0.4904
    assert others["logistic", "CROMA-base"]["accuracy"] == 0.931
    raw = others["kmeans", "Scale-ALiBi low"]
    assert raw["metric"] == "raw_accuracy" and raw["raw_accuracy"] == 0.1212 and "accuracy" not in raw
    assert "unmatched" in raw["note"] and (raw["n_train"], raw["n_test"]) == (2000, 1000)
    assert [row["method"] for row in rows] == sorted((row["method"] for row in rows), key=list(METHODS).index)
    assert "published: on the official split of 2000 training and 1000 test samples, which is not this one" in printed
    (line,) = [line for line in printed.splitlines() if "Scale-ALiBi low" in line and "0.121" in line]
    assert "raw accuracy 0.121" in line and "published" in line


def test_several_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "RATE_BUDGET", 3.0)  # quick
    shards = made(tmp_path, "m-bigearthnet")
    rows = probe(shards)
    measured = [row for row in rows if row["kind"] == "measured"]
    assert list(dict.fromkeys(row["method"] for row in measured)) == [
        "linear",
        "mlp",
        "knn",
        "knn20_cosine",
        "knn20_l2",
    ]
    for row in measured:
        assert row["metric"] == "micro_map" and row["target"] == "labels" and row["classes"] == 43
        assert row["micro_map_ci95"][0] <= row["micro_map"] <= row["micro_map_ci95"][1]
        assert 0 <= row["macro_map"] <= 1 and len(row["ci95"]) == 2
        assert ("difference" in row) == (row["encoder"] == "pretrained")
    by = {(row["method"], row["encoder"]): row for row in measured}
    assert by["mlp", "colour_texture"]["micro_map"] > 0.9
    apart = by["mlp", "pretrained"]["difference"]["colour_texture"]
    assert apart["micro_map"] == pytest.approx(
        by["mlp", "pretrained"]["micro_map"] - by["mlp", "colour_texture"]["micro_map"]
    )
    assert {(row["method"], row["micro_map"]) for row in rows if row["kind"] == "published"} == {
        ("linear", 0.698),
        ("knn20_l2", 0.55),
    }
    with pytest.raises(UserError, match="kmeans does not take labels for multilabel, which 'labels' has"):
        probe(shards, "--method", "kmeans")


def test_segmentation(tmp_path: Path) -> None:
    shards = made(tmp_path, "m-pv4ger-seg")
    rows = probe(shards)
    by = {(row["method"], row["encoder"]): row for row in rows}
    assert {encoder for _, encoder in by} == {"pretrained", "random", "cell_statistics"}
    assert {method for method, _ in by} == {"segment", "segment_knn"}
    assert by["segment", "cell_statistics"]["miou"] > 0.7, "the panels are brighter"
    assert (by["segment", "pretrained"]["map"], by["segment", "pretrained"]["target"]) == ([16, 16], "segmentation")
    assert "iou" in rows[0] and "pooling" not in rows[0]
    with pytest.raises(UserError, match="--pooling cls: 'segmentation' is labels of pixels"):
        probe(shards, "--pooling", "cls")
    with pytest.raises(UserError, match="mlp does not take labels for segmentation"):
        probe(shards, "--method", "mlp")
    with pytest.raises(UserError, match="--split-val val: none of segment_knn needs"):
        probe(shards, "--method", "segment_knn", "--split-val", "val")
    with pytest.raises(UserError, match="--split-val test: it also fits or tests"):
        probe(shards, "--split-val", "test")


def test_published_figures_are_whole() -> None:
    told = _table()
    for figure in told["figures"]:
        assert figure["source"] in told["sources"] and set(figure["beside"]) <= set(METHODS)
        (values,) = [figure[name] for name in ("accuracy", "raw_accuracy", "micro_map") if name in figure]
        for task, percents in values.items():
            assert task in told["sizes"] and len(percents) == len(figure["encoders"])
            assert all(1 < percent < 100 for percent in percents)
    assert set(told["normalizer"]) <= set(told["sizes"])
    assert published("generated-scenes", list(METHODS), "classification") == []
    assert normalised("m-brick-kiln", 0.991) == {"geobench_normalised": pytest.approx(1)} and normalised("x", 0.5) == {}
    names = {row["encoder"] for row in published("m-forestnet", ["mlp"], "classification")}
    assert names == {"Scale-ALiBi high", "Scale-ALiBi low", "CROMA"}


def test_rows_of_earlier_releases_are_shown() -> None:
    old = {"method": "knn", "encoder": "pretrained", "features": 8, "accuracy": 0.5, "ci95": [0.4, 0.6]}
    old["difference"] = {"random": {"accuracy": 0.1, "ci95": [0.0, 0.2], "resamples": 9}}
    assert headline(old) == ("accuracy", 0.5, [0.4, 0.6])
    lines = table([old, {**old, "encoder": "random", "difference": {}}]).splitlines()
    assert lines[0].split() == [
        "method",
        "encoder",
        "features",
        "accuracy",
        "95",
        "%",
        "interval",
        "pretrained",
        "minus",
        "this",
    ]
    assert len(lines) == 3
