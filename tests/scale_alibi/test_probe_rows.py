"""Rows of `frontier probe` on a run of three sensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from frontier.cli import main as frontier


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, beside the scenes that it saw, whose pixels have labels."""
    folder = tmp_path_factory.mktemp("scenes")
    words = ["shards", "write", "--scenes", "24", "--size", "32", "--sensors", "s2,s1,naip", "--targets"]
    assert frontier([*words, "--test-fraction", "0.5", str(folder / "scenes")]) == 0
    sensors = {
        "radar": {"column": "s1"},
        "lores": {"column": "s2", "bands": ["B04", "B03", "B02"]},
        "hires": {"column": "naip", "bands": ["red", "green", "blue"], "size": 64},
    }
    values = {
        "run": {"dir": str(folder / "run")},
        "model": {"family": "scale_alibi", "preset": "scale_alibi_debug", "sensors": sensors},
        "data": {"shards": str(folder / "scenes")},
        "train": {"steps": 1, "global_batch": 4, "base_lr": 1e-3},
        "log": {"progress": "none", "energy": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    assert frontier(["pretrain", str(folder / "run.yaml")]) == 0
    return folder / "run"


def probe(run: Path, out: Path, *words: str) -> list[dict[str, Any]]:
    assert frontier(["probe", str(run), "--data", str(run.parent / "scenes"), "--out", str(out), *words]) == 0
    return json.loads(out.read_text())


def test_rows_say_what_was_looked_at(run: Path, tmp_path: Path) -> None:
    words = ["--target", "label", "--method", "knn"]
    rows = probe(run, tmp_path / "rows.json", *words, "--source", "hires", "--resize", "--pooling", "mean_std")
    assert [row["encoder"] for row in rows] == ["pretrained", "random", "colour_texture"]
    for row in rows:
        assert (row["source"], row["bands"], row["gsd_m"]) == ("hires", ["red", "green", "blue"], 2.5)
        assert row["n_train"] + row["n_test"] == 24
    for row in rows[:2]:
        assert (row["resize"], row["gsd_seen_m"], row["pooling"]) == ([128, 64], 5.0, "mean_std")
        assert row["normalisation"] == "mean and deviation of the run" and row["layers"] == "last"
        assert row["features"] == 2 * 32
    rows = probe(run, tmp_path / "rows.json", *words)
    assert rows[0]["source"] == "joint" and rows[0]["gsd_m"] == {"s1": 10.0, "s2": 10.0, "naip": 2.5}
    assert rows[0]["gsd_seen_m"] == {"radar": 10.0, "lores": 10.0, "hires": 2.5}
    assert rows[0]["resize"] == {"radar": None, "lores": None, "hires": None}
    assert rows[0]["bands"]["s2"] == ["B04", "B03", "B02"]


@pytest.mark.parametrize("source", ["lores", "joint"])
def test_labels_of_pixels(run: Path, tmp_path: Path, source: str) -> None:
    manifest = json.loads((run.parent / "scenes" / "manifest.json").read_text())
    (target,) = [name for name, spec in manifest["targets"].items() if spec["kind"] == "segmentation"]
    rows = probe(run, tmp_path / "rows.json", "--target", target, "--method", "segment_knn", "--source", source)
    assert [row["encoder"] for row in rows] == ["pretrained", "random", "cell_statistics"]
    for row in rows:
        assert (row["method"], row["source"], row["target"]) == ("segment_knn", source, target)
    assert len({row[row["metric"]] if row["metric"] in row else row["accuracy"] for row in rows}) > 1
