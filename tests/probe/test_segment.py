"""Labels of pixels from grids of features, on maps whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from frontier import metrics
from frontier.errors import UserError
from frontier.probe import segment
from frontier.probe.baselines import cell_statistics
from frontier.probe.features import LabelledSamples, encoder_grid
from frontier.probe.segment import Cells, class_shares, evaluate_maps
from tests.probe.test_evaluate import MEAN, STD, model, stripes


def halves(count: int, seed: int, noise: float = 0.3) -> LabelledSamples:
    """Grids [4, 4, 3] as samples: cells of class k have the feature k alone; a class a block of cells, maps of 16 x 16."""
    random = np.random.default_rng(seed)
    cells = random.integers(0, 3, (count, 4, 4))
    maps = cells.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
    maps[:, 0, :2] = 255
    grids = (np.eye(3)[cells] + random.normal(0, noise, (count, 4, 4, 3))).astype(np.float32)
    return LabelledSamples(read=lambda start, stop: grids[start:stop], labels=maps)


def as_is(grid: tuple[int, int] | None) -> segment.GridFunction:
    return torch.from_numpy


def blind(grid: tuple[int, int] | None) -> segment.GridFunction:
    assert grid == (4, 4)
    return lambda part: torch.zeros(len(part), 4, 4, 2)


def test_shares_are_counted_pixel_by_pixel() -> None:
    random = np.random.default_rng(0)
    maps = random.integers(0, 4, (3, 7, 9)).astype(np.uint8)
    maps[maps == 3] = 255
    found = class_shares(maps, (2, 4), 3)
    expected = np.zeros((3, 2, 4, 3))
    sizes = np.zeros((2, 4))
    for y in range(7):
        for x in range(9):
            cell = y * 2 // 7, x * 4 // 9
            sizes[cell] += 1
            for n in range(3):
                if maps[n, y, x] != 255:
                    expected[(n, *cell, maps[n, y, x])] += 1
    np.testing.assert_allclose(found, expected / sizes[None, :, :, None], rtol=1e-6)


def test_maps_are_learnt_and_beat_features_that_see_nothing() -> None:
    lines: list[str] = []
    rows = evaluate_maps(
        {"pretrained": as_is, "blind": blind},
        halves(60, 0),
        halves(25, 1),
        3,
        ["segment", "segment_knn"],
        batch=16,
        progress=lines.append,
    )
    assert [(row["method"], row["encoder"]) for row in rows] == [
        (m, e) for m in ("segment", "segment_knn") for e in ("pretrained", "blind")
    ]
    for seeing, unseeing in (rows[:2], rows[2:]):
        # Bilinear scores blur the edges of blocks of 4 pixels.
        assert seeing["miou"] > 0.6 and seeing["accuracy"] > 0.75
        assert unseeing["miou"] < 0.3 and unseeing["accuracy"] == pytest.approx(unseeing["majority_rate"], abs=0.05)
        apart = seeing["difference"]["blind"]
        assert apart["miou"] == pytest.approx(seeing["miou"] - unseeing["miou"]) and apart["ci95"][0] > 0.3
        assert seeing["miou_ci95"][0] < seeing["miou"] < seeing["miou_ci95"][1]
    first = rows[0]
    assert (first["metric"], first["n_train"], first["n_test"], first["classes"]) == ("miou", 60, 25, 3)
    assert (first["grid"], first["map"], first["features"]) == ([4, 4], [16, 16], 3)
    assert np.mean(first["iou_by_class"]) == pytest.approx(first["miou"])
    assert len(lines) == 2
    again = evaluate_maps({"pretrained": as_is}, halves(60, 0), halves(25, 1), 3, ["segment_knn"], batch=7)
    assert again[0]["miou"] == pytest.approx(rows[2]["miou"])


def test_scores_of_cells_are_interpolated_to_pixels() -> None:
    """By hand, from the head that is returned."""
    train, test = halves(30, 0), halves(8, 1)
    row = evaluate_maps({"a": as_is}, train, test, 3, ["segment_knn"])[0]
    grids = torch.from_numpy(train.read(0, 30)).flatten(0, 2).numpy()
    shift, deviation = grids.mean(0), grids.std(0)
    shares = class_shares(train.labels, (4, 4), 3).reshape(-1, 3)
    cells = Cells((grids - shift) / deviation, shares, np.repeat(np.arange(30), 16))
    scores, _ = segment.neighbours(cells, None, 0, "cpu")
    queries = (torch.from_numpy(test.read(0, 8)).flatten(0, 2).numpy() - shift) / deviation
    image = scores(queries).reshape(8, 4, 4, 3).permute(0, 3, 1, 2)
    answers = F.interpolate(image, (16, 16), mode="bilinear").argmax(1).numpy()
    found = metrics.segmentation(metrics.segmentation_counts(answers, test.labels, 3), resamples=2)
    assert row["miou"] == pytest.approx(found["miou"], abs=1e-3)


def test_a_validation_split_stops_it() -> None:
    options = {"methods": ["segment"], "validation": halves(20, 5)}
    row = evaluate_maps({"a": as_is}, halves(40, 0), halves(10, 1), 3, **options)[0]
    assert row["validation"] == "split" and row["cells"] == 40 * 16
    held = evaluate_maps({"a": as_is}, halves(40, 0), halves(10, 1), 3)[0]
    assert held["validation"] == "0.2 of training" and held["cells"] == 32 * 16, "whole images are held out"


def test_cells_are_few_and_as_many_of_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "CELLS", 100)
    train = halves(40, 0)
    found = segment._Reader(torch.from_numpy, 3, 16, "a").cells(train, 0)
    assert np.bincount(found.image).tolist() == [3] * 40
    assert found.features.shape == (120, 3) and (found.shares.sum(1) > 0).all()


def test_refusals() -> None:
    good = halves(10, 0)
    unlabelled = LabelledSamples(read=good.read, labels=np.full_like(good.labels, 255))
    with pytest.raises(UserError, match="no pixel of the training split has a class"):
        evaluate_maps({"a": as_is}, unlabelled, good, 3)
    with pytest.raises(UserError, match="class 2 in the maps of the training split, shards: 2 are named"):
        evaluate_maps({"a": as_is}, good, good, 2)
    one = LabelledSamples(read=good.read, labels=np.zeros_like(good.labels))
    with pytest.raises(UserError, match="all pixels of the training split are of one class"):
        evaluate_maps({"a": as_is}, one, good, 3)
    with pytest.raises(UserError, match="features are not finite, encoder 'a'"):
        evaluate_maps({"a": lambda grid: lambda part: torch.full((len(part), 4, 4, 1), torch.nan)}, good, good, 3)


def test_tokens_lie_where_their_patches_do() -> None:
    images, _ = stripes(2, 0)
    module = model(0)
    grid = encoder_grid(module, MEAN, STD, 32)(images)
    values = torch.from_numpy((images - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))).float()
    with torch.no_grad():
        tokens = module.encode(values)
    side = grid.shape[1]
    torch.testing.assert_close(grid[:, 1, 2], tokens[:, 1 + side + 2], rtol=1e-4, atol=1e-4)


def test_statistics_of_cells_by_hand() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 4000, (2, 2, 12, 8)).astype(np.uint16)
    found = cell_statistics(images, (3, 2)).numpy()
    assert found.shape == (2, 3, 2, 10)
    cell = images[1, :, 4:8, 0:4].astype(np.float64)
    np.testing.assert_allclose(found[1, 1, 0, :2], cell.mean((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(found[1, 1, 0, 2:4], cell.std((1, 2)), rtol=1e-3)
    slope = np.stack([np.hypot(*np.gradient(band.astype(np.float64))) for band in images[1]])
    np.testing.assert_allclose(found[1, 1, 0, 4:6], slope[:, 4:8, 0:4].mean((1, 2)), rtol=1e-3)
    around = images[1].astype(np.float64)  # of the middle row and two columns: the whole image
    np.testing.assert_allclose(found[1, 1, 0, 6:8], around.mean((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(found[1, 1, 0, 8:], around.std((1, 2)), rtol=1e-3)
