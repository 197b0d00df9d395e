"""Baselines: each finds what it can find, chooses on val alone, and leaves out what is missing."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.command import main as shards_main
from data_prep.fields import FieldSource
from frontier.data.shards import ShardSet
from frontier.errors import UserError
from gpna.baselines import Budget, Row, Split, baselines, features, hold_out, read_split
from gpna.baselines_command import as_table, main
from tests.data.sets import write_set
from tests.data_prep.readers.test_presto_fuel_moisture import NAME, save

SMALL = Budget(
    neighbours=(1, 5, 20),
    ridge_penalties=(0.1, 10.0, 1000.0),
    logistic_strengths=(1e-2, 1.0),
    trees=30,
    tree_features=("sqrt", 1.0),
    tree_leaves=(1, 5),
    resamples=200,
)


def series(n: int, seed: int, form: str = "linear") -> Split:
    """Two inputs, of which a third of the first is missing; labels of the first step, linear or of their product."""
    random = np.random.default_rng(seed)
    values, scalars = random.normal(5, 2, (n, 3, 2)), random.normal(0, 1, (n, 2))
    label = values[:, 0, 0] + 3 * scalars[:, 0] if form == "linear" else 4 * np.sign(scalars[:, 0] * scalars[:, 1])
    valid = np.ones(values.shape, bool)
    valid[random.random(n) < 0.33, 2] = False
    return Split(
        {"series": np.where(valid, values, 1e6), "scalars": scalars},
        {"series": "TC", "scalars": "C"},
        label + random.normal(0, 0.3, n),
        {"series": valid},
        np.arange(n) // 5,
    )


def by_model(rows: list[Row]) -> dict[str, Row]:
    return {row["model"]: row for row in rows}


def test_regression_finds_lines_and_products() -> None:
    linear = by_model(baselines("regression", series(300, 0), series(200, 1), series(100, 2), budget=SMALL, task="t"))
    assert list(linear) == ["mean", "knn", "ridge", "random_forest"]
    assert linear["ridge"]["r2"] > 0.97 > linear["knn"]["r2"] > 0.4
    assert linear["mean"]["r2"] < 0.02 and np.isnan(linear["mean"]["pearson_r2"])
    low, high = linear["ridge"]["rmse_ci95"]
    assert low < linear["ridge"]["rmse"] < high
    assert {(row["task"], row["kind"], row["n_train"], row["n_test"]) for row in linear.values()} == {
        ("t", "baseline", 300, 200)
    }
    product = by_model(baselines("regression", *(series(n, n, "product") for n in (400, 200, 100)), budget=SMALL))
    assert product["random_forest"]["r2"] > 0.6 > 0.1 > product["ridge"]["r2"]
    json.dumps(list(linear.values()))


def test_choices_are_made_without_the_test_split() -> None:
    train, test, val = series(200, 0), series(100, 1), series(80, 2)
    spoilt = replace(test, labels=-test.labels)
    rows, others = (baselines("regression", train, one, val, budget=SMALL) for one in (test, spoilt))
    assert [row["chosen"] for row in rows] == [row["chosen"] for row in others]
    assert rows[2]["r2"] > 0 > others[2]["r2"]
    again = baselines("regression", train, test, val, budget=SMALL)
    # NaN is not equal to itself.
    assert json.dumps(again) == json.dumps(rows)
    # Another val makes other choices: neighbours are of use only where labels are those of the training samples.
    same = by_model(baselines("regression", train, test, train, budget=SMALL))
    assert same["knn"]["chosen"]["n_neighbors"] == 1 != by_model(rows)["knn"]["chosen"]["n_neighbors"]


def test_missing_labels_and_several_outputs() -> None:
    train, test = series(200, 0), series(100, 1)
    labels = [np.stack([one.labels, -2 * one.labels], 1) for one in (train, test)]
    labels[0][:50, 1] = np.nan
    labels[1][:30, 1] = np.nan
    rows = baselines(
        "regression", replace(train, labels=labels[0]), replace(test, labels=labels[1]), budget=SMALL, task="y"
    )
    assert [row["task"] for row in rows] == ["y[0]"] * 4 + ["y[1]"] * 4
    assert [(row["n_train"], row["n_test"]) for row in rows] == [(200, 100)] * 4 + [(150, 70)] * 4
    assert rows[2]["r2"] > 0.95 and rows[6]["r2"] > 0.95
    with pytest.raises(UserError, match="no sample of the test split has a label"):
        baselines("regression", train, replace(test, labels=np.full(100, np.nan)), budget=SMALL)
    with pytest.raises(UserError, match="no task kind 'regresion': did you mean regression"):
        baselines("regresion", train, test)


def test_features_are_the_training_splits_and_missing_is_its_mean() -> None:
    train, test = features([series(500, 0), series(300, 1)])
    assert train.shape == (500, 8)
    assert np.abs(train.mean(0)).max() < 1e-4
    known = train[:, 4] != 0
    assert 0.5 < known.mean() < 0.8 and abs(train[known, 4].std() - 1) < 0.01
    assert np.abs(test).max() < 6, "no 1e6 of what is missing"
    constant = Split({"x": np.ones((4, 2))}, {"x": "C"}, np.zeros(4))
    other = Split({"x": np.full((2, 2), 9.0)}, {"x": "C"}, np.zeros(2))
    assert (features([constant, other])[1] == 0).all()


def test_groups_are_held_out_whole() -> None:
    split = series(100, 0)
    rest, away = hold_out(split, 0.2, 3)
    assert rest.groups is not None and away.groups is not None
    assert not set(rest.groups) & set(away.groups)
    assert len(away) == 20 and len(rest) == 80
    assert hold_out(split, 0.2, 4)[1].groups.tolist() != away.groups.tolist()  # type: ignore[union-attr]
    with pytest.raises(UserError, match="of one group"):
        hold_out(replace(split, groups=np.zeros(100)), 0.2, 0)


def images(n: int, seed: int, classes: int) -> Split:
    """Class k has brighter and rougher images."""
    random = np.random.default_rng(seed)
    labels = random.choice(classes, n, p=np.arange(classes, 0, -1) / sum(range(classes + 1)))
    pixels = labels[:, None, None, None] * 0.5 + (1 + labels[:, None, None, None]) * random.normal(0, 1, (n, 2, 8, 8))
    return Split({"image": pixels}, {"image": "CHW"}, labels)


def test_classification_of_images() -> None:
    rows = by_model(baselines("classification", *(images(n, n, 3) for n in (150, 120, 60)), budget=SMALL))
    assert list(rows) == ["majority", "knn", "logistic", "random_forest"]
    assert rows["majority"]["accuracy"] == rows["majority"]["majority_rate"] < 0.65
    assert rows["majority"]["kappa"] == 0
    for name in ("knn", "logistic", "random_forest"):
        assert rows[name]["accuracy"] > 0.85
        assert rows[name]["majority_rate"] == rows["majority"]["majority_rate"]
        assert "auc" not in rows[name]
    two = by_model(baselines("classification", *(images(n, n, 2) for n in (90, 80, 40)), budget=SMALL))
    assert two["majority"]["auc"] == 0.5 and two["logistic"]["auc"] > 0.95


def test_multilabel() -> None:
    def tags(n: int, seed: int) -> Split:
        split = series(n, seed)
        scalars = split.inputs["scalars"]
        labels = np.stack([scalars[:, 0] > 0, scalars[:, 1] > 0.3, scalars.sum(1) > 0], 1).astype(int)
        labels[:5, 1] = -1
        return replace(split, labels=labels)

    rows = by_model(baselines("multilabel", tags(200, 0), tags(100, 1), budget=SMALL))
    assert rows["logistic"]["micro_f1"] > 0.9 > rows["majority"]["micro_f1"]
    assert rows["logistic"]["n_test"] == 100  # as the model: samples with any label


def test_labels_that_are_all_alike() -> None:
    """A tag that no training sample has, and a single class: a constant, or a line that says why not."""
    split = series(60, 0)
    yes = (split.inputs["scalars"][:, 0] > 0).astype(int)
    tags = replace(split, labels=np.stack([yes, 0 * yes, 0 * yes - 1], 1))
    rows = by_model(baselines("multilabel", tags, tags, tags, budget=SMALL))
    assert rows["logistic"]["micro_f1"] > 0.9 and rows["random_forest"]["micro_f1"] > 0.9
    one = replace(split, labels=0 * yes)
    rows = by_model(baselines("classification", one, one, budget=SMALL))
    assert rows["knn"]["accuracy"] == 1 and "one class" in rows["logistic"]["left_out"]


def fields(first: int, last: int) -> Split:
    loaded = FieldSource(last, seed=1, size=48).load(range(first, last))
    labels = loaded["boundary"].copy()
    labels[:, :2] = 255
    return Split({"image": loaded["image"]}, {"image": "CHW"}, labels)


def test_segmentation_of_generated_fields() -> None:
    budget = replace(SMALL, pixels=6000, pixel_trees=10, unet_steps=50, unet_features=(8, 8, 16, 16, 32, 8))
    rows = by_model(baselines("segmentation", fields(0, 40), fields(40, 60), fields(60, 70), budget=budget))
    assert rows["majority"]["dice"] == 0 and rows["majority"]["pixel_accuracy"] > 0.7
    dice = {name: row["dice"] for name, row in rows.items()}
    assert dice["pixel_logistic"] > 0.3 and dice["pixel_random_forest"] > 0.35, dice
    assert dice["unet"] > 0.35, dice
    assert rows["unet"]["chosen"]["steps"] in (10, 20, 30, 40, 50)
    assert rows["unet"]["n_train"] == 40 and rows["unet"]["dice_ci95"][0] < dice["unet"] < rows["unet"]["dice_ci95"][1]


def test_without_monai_the_unet_is_left_out_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = replace(SMALL, pixels=500, pixel_trees=2, unet_steps=1)
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    rows = baselines("segmentation", fields(0, 4), fields(4, 6), budget=budget)
    assert [row["model"] for row in rows] == ["majority", "pixel_logistic", "pixel_random_forest", "unet"]
    assert "pip install 'frontier-geofm[baselines]'" in rows[3]["left_out"]
    assert "dice" not in rows[3]
    assert "unet left out: MONAI cannot be imported" in as_table(rows)


def test_shards_are_read_with_masks_and_units(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert shards_main(["write", "--reader", NAME, "--from", str(save(tmp_path / "in")), str(out)]) == 0
    shards = ShardSet(out, "train")
    split = read_split(shards, "fuel_moisture", groups="site")
    assert list(split.inputs) == ["s1", "s2", "era5", "srtm", "dynamic_world", "place_and_time"]
    assert split.axes["dynamic_world"] == "TC"
    assert list(split.valid) == ["dynamic_world"]
    assert split.valid["dynamic_world"].shape == (3, 3, 9)
    row = shards.column("site").tolist().index(b"Ana, WY")
    assert split.valid["dynamic_world"][row].all()
    assert np.allclose(split.inputs["s2"], shards.read("s2", 0, 3) * 1e-4)
    lon, lat, *_, year = split.inputs["place_and_time"][row]
    assert (round(lon, 2), round(lat, 2), int(1970 + year)) == (-108.1, 44.9, 2015)
    assert split.groups is not None and split.groups[row] == b"Ana, WY"
    assert list(read_split(shards, "fuel_moisture", inputs=["s1"], place_and_time=False).inputs) == ["s1"]
    with pytest.raises(UserError, match="no target 'moisture'"):
        read_split(shards, "moisture")
    with pytest.raises(UserError, match="no input 's3'"):
        read_split(shards, "fuel_moisture", inputs=["s3"])


def test_chosen_bands_and_unknown_times(tmp_path: Path) -> None:
    """The baselines have what the model has: the bands that a config takes, and no time where 0 or NaT stands for none."""
    random = np.random.default_rng(0)
    image = random.normal(size=(6, 3, 4, 4)).astype(np.float32)
    mask = random.integers(2, size=image.shape).astype(np.uint8)
    nat = np.iinfo(np.int64).min
    columns = {
        "label": np.arange(6) % 2,
        "time_start": np.array([0, nat, 86400 * 365, 86400 * 365, 86400 * 365, 86400 * 365]),
        "time_end": np.array([0, 0, 0, nat, 86400 * 365, 86400 * 367]),
    }
    path = write_set(
        tmp_path / "set", {"x": (image, "CHW")}, arrays={"m": (mask, "CHW")}, masks={"x": "m"}, columns=columns
    )
    split = read_split(ShardSet(path, "train"), "label", bands={"x": [2, 0]})
    assert (split.inputs["x"] == image[:, [2, 0]]).all() and (split.valid["x"] == mask[:, [2, 0]]).all()
    year = split.inputs["place_and_time"][:, -1]
    assert np.isnan(year[:2]).all() and np.allclose(year[2:], [0.999, 0.999, 0.999, 1.002], atol=1e-3)
    assert np.isfinite(features([split])[0]).all()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from gpna import baselines_command

    def quick(*arguments: Any, **options: Any) -> list[Row]:
        return baselines(*arguments, **options, budget=SMALL)

    monkeypatch.setattr(baselines_command, "baselines", quick)
    shards, rows = tmp_path / "shards", tmp_path / "rows.json"
    words = ["write", "--scenes", "80", "--size", "16", "--test-fraction", "0.3", str(shards)]
    assert shards_main(words) == 0
    capsys.readouterr()
    assert main([str(shards), "--target", "label", "--out", str(rows)]) == 0
    found = json.loads(rows.read_text())
    text = capsys.readouterr().out
    assert [row["model"] for row in found] == ["majority", "knn", "logistic", "random_forest"]
    for row in found:
        assert f"{row['accuracy']:.3f} [" in text
    for word in ("labels", "lon"):  # a column that is no target of the manifest
        with pytest.raises(UserError, match=f"no target .{word}.: "):
            main([str(shards), "--target", word])
    with pytest.raises(UserError, match="did you mean label"):
        main([str(shards), "--target", "labels"])
