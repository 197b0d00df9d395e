"""`frontier report` of a gpna run: its words, the parts of its loss, pictures of maps and of hidden tokens."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from frontier.errors import UserError
from frontier.train.checkpoint import load_model
from frontier.train.command import main as pretrain
from frontier_profiling.report.command import main
from frontier_profiling.report.pictures import class_picture
from gpna.pictures import SAMPLES, joined, pictures
from gpna.sensors import InputSpec, bands_of
from gpna.tokenizer import patches
from tests.gpna.runs import image_set, run_config, series_set

TASKS = {
    "scene": {"head": "classification", "source": "scenes", "target": "label"},
    "land": {"head": "segmentation", "source": "scenes", "target": "land", "train_pixels": 4},
    "site": {"head": "classification", "source": "sites", "target": "label"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpna")
    images, series = image_set(folder / "images"), series_set(folder / "series")
    assert pretrain([str(run_config(folder, images, series, model__tasks=TASKS))]) == 0
    return folder / "run"


def test_the_page_speaks_of_samples_and_shows_the_parts(trained: Path) -> None:
    assert main([str(trained)]) == 0
    page, record = (trained / "report.html").read_text(), json.loads((trained / "report.json").read_text())
    assert "48 samples" in record["verdict"] and "samples/s" in record["verdict"]
    figures = record["figures"]
    assert figures["images_per_s_median"]["unit"] == "samples/s"
    assert {"final_loss_scene", "final_loss_land", "final_loss_site", "final_loss_masked"} <= set(figures)
    assert "Parts of the loss over the step" in page
    # Two groups of SAMPLES rows: image, label, prediction; original, shown, predicted, both.
    assert page.count('src="data:image/png;base64,') == SAMPLES * (3 + 4)
    assert record["pictures"]["images"] == 2 * SAMPLES and not record["pictures"]["unavailable"]
    for word in ("images/s", "Images seen", "an image", "Not available: "):
        assert word not in page, word


def test_a_comparison_of_runs_with_other_parts(trained: Path, tmp_path: Path) -> None:
    """One CSV for both: what only one of them has is not measured for the other."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text("model: {family: mae, preset: vit_debug}\n")
    (other / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "samples": 8}\n')
    assert main([str(other), str(trained), "--out", str(tmp_path / "both")]) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "both" / "report.csv").read_text())))
    assert [row["final_loss_land"] == "not measured" for row in rows] == [True, False]
    assert "samples/s, median" in (tmp_path / "both" / "report.html").read_text()


def test_what_is_hidden_is_what_is_predicted(trained: Path) -> None:
    module, config, _ = load_model(trained)
    maps, hidden = pictures(module.eval(), config)
    assert (maps.title, maps.columns) == ("Task land", ("image", "label", "prediction"))
    for row in maps.rows:
        assert [picture.shape for picture in row.pictures] == [(3, 16, 16), (4, 4), (4, 4)]
        assert set(np.unique(row.pictures[2])) <= {0, 1, 2}
    shares = []
    for row in hidden.rows:
        original, shown, predicted, both = row.pictures
        gone = np.isnan(shown)
        shares.append(gone.mean())
        assert np.isfinite(original).all() and np.isfinite(both).all()
        assert (np.isnan(predicted) == ~gone).all()
        np.testing.assert_allclose(shown[~gone], original[~gone])
        np.testing.assert_allclose(both[gone], predicted[gone])
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
    # In stored units: the images of the set themselves.
    from frontier.data.shards import ShardSet

    stored = ShardSet(config["data"]["sources"]["scenes"]["shards"], split="test").read("x", 0, 1)[0]
    np.testing.assert_allclose(hidden.rows[0].pictures[0], stored, atol=1e-3)


def test_no_pictures_without_images_or_maps(trained: Path, tmp_path: Path) -> None:
    module, config, _ = load_model(trained)
    with pytest.raises(UserError, match="pictures come from where they are"):
        pictures(module, config, str(tmp_path))
    alone = json.loads(json.dumps(config))
    del alone["data"]["sources"]["scenes"]
    with pytest.raises(UserError, match="no source has images"):
        pictures(module, alone)


@pytest.mark.parametrize(
    ("axes", "shape"), [("TCHW", (2, 3, 20, 17)), ("CHW", (3, 16, 16)), ("TC", (4, 3)), ("CK", (3, 9))]
)
def test_joined_is_the_inverse_of_cutting(axes: str, shape: tuple[int, ...]) -> None:
    bands = bands_of({"bands": [{"name": n} for n in ("a", "b", "c")]}, where="x")
    spec = InputSpec(axes, shape, bands, None, 8 if "H" in axes else 2 if "K" in axes else 1)
    values = torch.randn(2, *shape)
    torch.testing.assert_close(joined(patches(values, spec), spec), values)


def test_colours_of_classes() -> None:
    picture = class_picture(np.array([[0, 1], [2, 255]]))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 4 and picture[1, 1].tolist() == [128] * 3
