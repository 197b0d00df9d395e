"""Sample reconstructions: the four pictures, the bands shown, and the reasons why there are none."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from frontier_profiling.report import pictures
from frontier_profiling.report.command import main
from frontier_profiling.report.read import Run, read_run

MEAN, STD = [120.0, 121.0, 122.0], [50.0, 51.0, 52.0]


def decode(uri: str) -> np.ndarray:
    head, data = uri.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def reconstructions(run: Run) -> pictures.Pictures:
    (found,) = pictures.sample_pictures(run)
    return found


def make_run(path: Path, shards: Path | str) -> Path:
    path.mkdir()
    config = {
        "model": {"family": "mae", "preset": "vit_debug"},
        "data": {"shards": str(shards), "column": "image", "image_size": 32, "mean": MEAN, "std": STD},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    (path / "starts.jsonl").write_text(json.dumps({"parameters": 1000}) + "\n")
    complete = path / "checkpoints" / "step_00000001"
    complete.mkdir(parents=True)
    (complete / "complete.json").write_text("{}")
    return path


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """A small MAE with its initial weights, in place of the checkpoint's."""
    from frontier.models.init import initialise
    from frontier.models.mae import MAE, MAEConfig
    from frontier.train import checkpoint

    module = MAE(MAEConfig.preset("vit_debug", image_size=32))
    initialise(module, 0)

    def load_model(path: Path) -> tuple[torch.nn.Module, dict, int]:
        return module.eval(), yaml.safe_load((Path(path) / "config.yaml").read_text()), 1

    monkeypatch.setattr(checkpoint, "load_model", load_model)
    return module


def test_reconstructions_keep_what_is_visible(tmp_path: Path, shards: Path, model: torch.nn.Module) -> None:
    run = make_run(tmp_path / "run", shards)
    found = reconstructions(read_run(run))
    assert not found.unavailable
    assert len(found.rows) == pictures.IMAGES
    assert found.rows[0].title.endswith("test image 0")
    assert found.rows[-1].title.endswith("test image 39")
    assert "75 % of the" in found.caption
    assert "normalised by their own mean" in found.caption
    grey = int(255 * pictures.GREY + 0.5)
    for row in found.rows:
        original, masked, predicted, pasted = map(decode, row.uris)
        assert original.shape == (32, 32, 3)
        hidden = (masked != original).any(-1) | (masked == grey).all(-1)
        assert 0.7 < hidden.mean() < 0.8
        assert (masked[hidden] == grey).all()
        assert (pasted[~hidden] == original[~hidden]).all()
        assert (predicted[hidden] == pasted[hidden]).all()
        assert (predicted[~hidden] == grey).all()
    assert reconstructions(read_run(run)) == found


def test_pictures_are_in_the_page_and_moved_shards_are_found(
    tmp_path: Path, shards: Path, model: torch.nn.Module
) -> None:
    run = make_run(tmp_path / "run", tmp_path / "gone")
    assert main([str(run)]) == 0
    assert "Not available: " in (run / "report.html").read_text()
    assert str(tmp_path / "gone") in json.loads((run / "report.json").read_text())["pictures"]["unavailable"]
    assert main([str(run), "--data", str(shards)]) == 0
    assert (run / "report.html").read_text().count('src="data:image/png;base64,') == 4 * pictures.IMAGES
    first = (run / "report.html").read_bytes()
    assert main([str(run), "--data", str(shards)]) == 0
    assert (run / "report.html").read_bytes() == first


def test_reasons_for_no_pictures(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", shards)
    assert reconstructions(read_run(run)).unavailable  # the checkpoint is empty
    (run / "checkpoints" / "step_00000001" / "complete.json").unlink()
    assert "no complete checkpoint" in reconstructions(read_run(run)).unavailable
    with pytest.raises(Exception, match="more than half of the memory"):
        pictures.check_room(10**14)


@pytest.mark.parametrize(
    ("names", "channels", "expected"),
    [
        (["B02", "B03", "B04", "B08"], 4, [2, 1, 0]),
        (["red", "green", "blue"], 3, [0, 1, 2]),
        (["nir", "Blue", "Green", "Red"], 4, [3, 2, 1]),
        (["VV", "VH"], 2, [0, 0, 0]),
        (["a", "b", "c", "d"], 4, [0, 1, 2]),
        ([], 5, [0, 1, 2]),
    ],
)
def test_bands_shown(names: list[str], channels: int, expected: list[int]) -> None:
    assert pictures.shown_bands([{"name": name} for name in names], channels)[0] == expected


def test_stretch_is_that_of_the_original() -> None:
    original = np.linspace(1000.0, 3000.0, 3 * 16).reshape(3, 4, 4)
    hidden = np.zeros((1, 4, 4), dtype=bool)
    hidden[0, :2] = True
    low, high = pictures.limits(np.append(original, np.nan))
    assert (low, high) == pytest.approx(np.percentile(original, [1, 99]))
    four = pictures.four_pictures(original, np.full_like(original, 9e9), hidden, low, high)
    expected = np.clip((original - low) / (high - low), 0, 1).transpose(1, 2, 0) * 255
    assert np.abs(four[0] - expected).max() <= 0.5 + 1e-9
    assert (four[3][:2] == 255).all()
    assert (four[3][2:] == four[0][2:]).all()
