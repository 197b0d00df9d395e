"""`frontier evaluate`: its numbers against scikit-learn on the model's own predictions, what it counts, and when tasks should stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn import metrics as sk

from frontier import metrics
from frontier.cli import main as frontier
from frontier.config.load import validate
from frontier.data.shards import ShardSet
from frontier.errors import UserError
from frontier.train.checkpoint import build_model, load_model
from frontier.train.command import main as pretrain
from frontier.train.plan import resolve
from gpna.baselines import Budget
from gpna.early_stopping import as_text, early_stopping
from gpna.evaluate import as_text as text_of
from gpna.evaluate import main
from gpna.evaluation import baseline_rows, headline, measure, open_parts
from gpna.head_sections import SegmentationTask
from gpna.predict import open_split, predict
from tests.data.sets import write_set
from tests.gpna.toys import CLASSES, split_set, toy_values, write_scenes, write_series, write_words

STEPS = 60


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources with splits, four tasks, a checkpoint every 20 steps."""
    folder = tmp_path_factory.mktemp("evaluate")
    parts = {"train": 14, "val": 4, "test": 6}
    scenes = split_set(write_scenes(folder / "scenes", 168), parts)
    series = split_set(write_series(folder / "series", 168), parts)
    values = toy_values(scenes, series, folder / "run")
    words = write_words(folder / "words.npz", ["dark", "grey", "bright", "blue"])
    values["model"]["tasks"]["said"] = {"head": "text", "source": "scenes", "target": "label", "vectors": str(words)}
    values["model"]["tasks"]["said"]["texts"] = ["dark", "grey", "bright"]
    del values["model"]["masked"]
    values["train"] |= {"steps": STEPS, "base_lr": 0.08}
    values["checkpoint"] = {"every_steps": 20, "keep": 9}
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    assert frontier(["pretrain", str(folder / "run.yaml")]) == 0
    return folder / "run"


def rows_of(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    rows = json.loads(path.read_text(), parse_constant=refuse)
    return {(row["task"], row["model"]): row for row in rows}


def predictions(run: Path, source: str, split: str) -> Any:
    module, config, _ = load_model(run)
    return predict(module, config, open_split(config, source, split))


def test_rows_are_the_metrics_of_the_models_predictions(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert frontier(["evaluate", str(run), "--batch", "9"]) == 0
    rows = rows_of(run / "evaluation.json")
    assert {task for task, _ in rows} == {"kind", "area", "amount", "said"}
    scenes, series = predictions(run, "scenes", "test"), predictions(run, "series", "test")
    kind, label = rows["kind", "gpna"], scenes["kind"].labels
    known = label >= 0
    assert 0 < known.sum() < 42 and (kind["n"], kind["missing"]) == (known.sum(), (~known).sum())
    said = scenes["kind"].values.argmax(1)
    assert kind["metrics"]["accuracy"] == pytest.approx(sk.accuracy_score(label[known], said[known]))
    assert kind["metrics"]["macro_f1"] == pytest.approx(sk.f1_score(label[known], said[known], average="macro"))
    assert kind["metrics"]["kappa"] == pytest.approx(sk.cohen_kappa_score(label[known], said[known]))
    _, config, _ = load_model(run)
    common = open_split(config, "scenes", "train").shards.column("label")
    common = np.bincount(common[common >= 0]).argmax()
    assert kind["metrics"]["majority_rate"] == pytest.approx((label[known] == common).mean())
    amount, number = rows["amount", "gpna"], series["amount"].labels[:, 0]
    there = ~np.isnan(number)
    assert 0 < (~there).sum() == amount["missing"]
    found = series["amount"].values[there, 0]
    assert amount["metrics"]["r2"] == pytest.approx(sk.r2_score(number[there], found), rel=1e-6)
    assert amount["metrics"]["pearson_r2"] == pytest.approx(np.corrcoef(number[there], found)[0, 1] ** 2, rel=1e-5)
    assert amount["metrics"]["rmse"] == pytest.approx(sk.root_mean_squared_error(number[there], found), rel=1e-6)
    area, maps = rows["area", "gpna"], scenes["area"]
    pixels = maps.labels != 255
    assert not pixels.all()
    answer = maps.values.argmax(1)[pixels]
    assert area["metrics"]["dice"] == pytest.approx(sk.f1_score(maps.labels[pixels], answer))
    assert area["metrics"]["iou"] == pytest.approx(sk.jaccard_score(maps.labels[pixels], answer))
    for row in rows.values():
        assert row["provenance"] == "measured" and row["split"] == "test" and row["step"] == STEPS
        assert row["metric"] in row["metrics"] and row["ci95"].keys() == row["metrics"].keys()
        low, high = row["ci95"][row["metric"]]
        assert low <= row["metrics"][row["metric"]] <= high
    told = capsys.readouterr().out
    assert "accuracy*" in told and "pearson_r2*" in told and "dice*" in told


def test_baselines_stand_in_the_same_table(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpna import baselines

    monkeypatch.setattr(baselines.Budget, "__init__", small_budget(baselines.Budget.__init__))
    out = tmp_path / "rows.json"
    assert main([str(run), "--tasks", "kind,amount", "--baselines", "--out", str(out)]) == 0
    rows = rows_of(out)
    assert {model for task, model in rows if task == "kind"} == {"gpna", "majority", "knn", "logistic", "random_forest"}
    assert {model for task, model in rows if task == "amount"} == {"gpna", "mean", "knn", "ridge", "random_forest"}
    # The same labels on both sides.
    for task in ("kind", "amount"):
        assert len({row["n"] for key, row in rows.items() if key[0] == task}) == 1
    ours, majority = rows["kind", "gpna"]["metrics"], rows["kind", "majority"]["metrics"]
    assert majority["accuracy"] == pytest.approx(ours["majority_rate"])
    assert rows["amount", "mean"]["metrics"]["pearson_r2"] is None, "the correlation of a constant is undefined"
    main([str(run), "--tasks", "amount", "--baselines", "--baseline-samples", "60", "--out", str(out)])
    assert {row["n_train"] for (_, model), row in rows_of(out).items() if model != "gpna"} < set(range(40, 61))


def small_budget(whole: Any) -> Any:
    def init(self: Any, **given: Any) -> None:
        whole(self, **({"trees": 10, "tree_leaves": (3,), "tree_features": ("sqrt",), "resamples": 20} | given))

    return init


def test_groups_widen_intervals_and_are_named(run: Path) -> None:
    module, config, _ = load_model(run)
    alone = open_parts(config, "test", tasks=["amount"])
    assert alone[0].grouped_by is None
    found = measure(module, config, alone, resamples=100)[0]
    together = open_parts(config, "test", tasks=["amount"], groups="site")
    one = measure(module, config, together, resamples=100)[0]
    assert (
        one["groups"] == "site" and one["metrics"] == pytest.approx(found["metrics"]) and one["ci95"] != found["ci95"]
    )
    with pytest.raises(UserError, match="no such column"):
        open_parts(config, "test", tasks=["amount"], groups="village")


def test_other_texts_are_other_classes(run: Path, tmp_path: Path) -> None:
    """The texts' order is the labels': the same vectors in another order answer other classes."""
    words = run.parent / "words.npz"
    given = [str(run), "--tasks", "said", "--texts", str(words), "--out", str(tmp_path / "rows.json")]
    main([*given, "--text-names", "dark,grey,bright"])
    same = rows_of(tmp_path / "rows.json")["said", "gpna"]["metrics"]
    found = predictions(run, "scenes", "test")["said"]
    known = found.labels >= 0
    assert same["accuracy"] == pytest.approx((found.values.argmax(1) == found.labels)[known].mean())
    main([*given, "--text-names", "bright,dark,grey"])
    turned = rows_of(tmp_path / "rows.json")["said", "gpna"]["metrics"]
    answers = (found.values.argmax(1) + 1) % CLASSES
    assert turned["accuracy"] == pytest.approx((answers == found.labels)[known].mean())
    # A text that was never trained, and a fourth class.
    main([*given, "--text-names", "dark,grey,bright,blue"])
    with pytest.raises(UserError, match="a label is class 2, the model has 2 classes"):
        main([*given, "--text-names", "dark,blue"])


def test_the_texts_of_a_trained_model_are_its_own(run: Path) -> None:
    """A checkpoint needs no file of vectors, a changed file changes nothing in it, and a run does not go on with other vectors."""
    before, words = predictions(run, "scenes", "test")["said"], run.parent / "words.npz"
    aside = words.rename(words.with_suffix(".away"))
    try:
        after = predictions(run, "scenes", "test")["said"]
        np.testing.assert_array_equal(after.values, before.values)
        with pytest.raises(UserError, match="model.tasks.said: text vectors .*words.npz: No such file"):
            pretrain([str(run.parent / "run.yaml"), "--dry-run"])
        numbers = np.load(aside)["vectors"]
        np.savez(words, names=["dark", "grey", "bright"], vectors=numbers[[1, 0, 2]])
        with pytest.raises(UserError, match="made with model.tasks.said.vectors=sha256 .*, now it is sha256"):
            pretrain([str(run.parent / "run.yaml"), "train.steps=61"])
    finally:
        aside.replace(words)


def test_checkpoints_tell_when_each_task_should_stop(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--checkpoints", "--tasks", "kind,amount"]) == 0
    report = json.loads((run / "early_stopping.json").read_text())
    assert report["split"] == "val" and report["steps"] == [20, 40, 60]
    assert report["common_step"] in report["steps"]
    for task in report["tasks"]:
        best = task["values"][report["steps"].index(task["best_step"])]
        assert best == task["best"] == max(task["values"]) and task["last"] == task["values"][-1]
    last = predictions(run, "series", "val")["amount"]
    numbers = metrics.regression(last.values[:, 0], last.labels[:, 0], resamples=0)
    assert next(t for t in report["tasks"] if t["task"] == "amount")["last"] == pytest.approx(numbers["pearson_r2"])
    assert f"One step for all: {report['common_step']}" in capsys.readouterr().out


def test_the_common_step_loses_least() -> None:
    def row(task: str, metric: str, value: float) -> dict[str, Any]:
        return {
            "task": task,
            "metric": metric,
            "n": 5,
            "split": "val",
            "metrics": {metric: value},
            "ci95": {metric: [0, 1]},
        }

    curves = {"a": ("accuracy", [0.5, 0.8, 0.4]), "b": ("rmse", [2.0, 1.1, 1.0]), "c": ("r2", [float("nan"), 0.1, 0.2])}
    by_step = {10 * (k + 1): [row(t, m, v[k]) for t, (m, v) in curves.items()] for k in range(3)}
    found = early_stopping(by_step)
    tasks = {task["task"]: task for task in found["tasks"]}
    assert {name: task["best_step"] for name, task in tasks.items()} == {"a": 20, "b": 30, "c": 30}
    assert found["left_out"] == ["c"], "undefined at the first checkpoint"
    # Mean losses: (0.375 + 1) / 2, (0 + 0.1) / 2, (0.5 + 0) / 2.
    assert found["common_step"] == 20
    assert found["mean_relative_loss"] == pytest.approx({"at_common_step": 0.05, "at_last_step": 0.25})
    assert tasks["a"]["relative_loss_last"] == pytest.approx(0.5) and tasks["b"]["common"] == 1.1
    assert "Without a relative loss: c" in as_text(found)


def test_the_benchmarks_words_choose_the_metric() -> None:
    task = SegmentationTask(head="segmentation", source="x", target="y", classes=2)
    found = {"dice": 0.1, "iou": 0.1, "pixel_accuracy": 0.9}
    assert headline(task, found, "f1") == "dice"
    assert headline(task, found, None) == "dice"
    assert headline(task, {"dice_macro": 0.1, "pixel_accuracy": 0.9}, "macro_f1, accuracy") == "dice_macro"
    assert headline(task, {"dice_macro": 0.1, "pixel_accuracy": 0.9}, "accuracy") == "pixel_accuracy"


def test_density_is_measured_by_pixel_and_by_image() -> None:
    random = np.random.default_rng(0)
    truth = random.poisson(2.0, (6, 5, 5)).astype(float)
    guess = truth + random.normal(0, 1, truth.shape)
    truth[0, 0, :] = np.nan
    truth[1, 1, 1] = -1
    truth[5] = np.nan
    found = metrics.density(
        np.concatenate([metrics.density_sums(guess[:2], truth[:2]), metrics.density_sums(guess[2:], truth[2:])])
    )
    known = truth >= 0
    assert found["n"] == 5, "an image without labels counts nowhere"
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(truth[known], guess[known]))
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(truth[known], guess[known]))
    assert found["r2"] == pytest.approx(sk.r2_score(truth[known], guess[known]))
    counts = [(guess[k][known[k]].sum() - truth[k][known[k]].sum()) for k in range(5)]
    assert found["count_mae"] == pytest.approx(np.abs(counts).mean())
    assert found["mae_ci95"][0] < found["mae"] < found["mae_ci95"][1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "knd"], "no task 'knd': did you mean kind"),
        (["--source", "sceens"], "no source 'sceens'"),
        (["--split", "tets"], "no split 'tets'"),
        (["--shards", "x"], "say by --source"),
        (["--source", "series", "--tasks", "kind"], "no task to measure"),
        (["--texts", "x.npz"], "--texts and --text-names go together"),
        (["--checkpoints", "--baselines"], "leave --baselines and --texts out"),
        (["--baseline-samples", "3"], "goes with --baselines"),
        (["--device", "tpu"], "'tpu' is no device"),
        (["--batch", "0"], "give a positive number"),
    ],
)
def test_mistakes_are_told(run: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main([str(run), *words])


def test_other_shards_have_the_same_inputs_and_labels(run: Path, tmp_path: Path) -> None:
    other = split_set(write_scenes(tmp_path / "other", 42, seed=7), {"train": 1, "test": 5})
    given = [str(run), "--source", "scenes", "--out", str(tmp_path / "rows.json")]
    main([*given, "--shards", str(other)])
    rows = rows_of(tmp_path / "rows.json")
    assert {task for task, _ in rows} == {"kind", "area", "said"} and rows["area", "gpna"]["n"] == 35
    small = split_set(write_scenes(tmp_path / "small", 42, side=8), {"train": 1, "test": 5})
    with pytest.raises(UserError, match="the model was trained on"):
        main([*given, "--shards", str(small)])


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any]]:
    """An untrained model with the other kinds of heads, and its resolved config."""
    folder = tmp_path_factory.mktemp("heads")
    random = np.random.default_rng(5)
    image = random.normal(0, 1, (56, 3, 16, 16)).astype(np.float32)
    pair = np.stack([image.mean((1, 2, 3)), image.std((1, 2, 3))], 1).astype(np.float32)
    pair[::5, 1] = np.nan
    tags = (random.random((56, 3)) < 0.4).astype(np.int8)
    tags[1::4, 0] = -1
    counts = random.poisson(1.0, (56, 16, 16)).astype(np.float32)
    counts[2::9, :8] = -1
    classes = random.integers(0, 3, (56, 16, 16)).astype(np.uint8)
    classes[:, 0] = 255
    classes[50] = 255
    shards = write_set(
        folder / "shards",
        {"image": (image, "CHW")},
        arrays={"pair": (pair, "C"), "tags": (tags, "C"), "counts": (counts, "HW"), "classes": (classes, "HW")},
        statistics={"image": {"mean": [0.0] * 3, "std": [1.0] * 3}},
    )
    split_set(shards, {"train": 4, "val": 1, "test": 3})
    values = toy_values(shards, shards, folder / "run")
    values["data"]["sources"] = {"scenes": {"shards": str(shards)}}
    values["model"] |= {"masked": None}
    values["model"]["tasks"] = {
        "pair": {"head": "regression", "source": "scenes", "target": "pair"},
        "tags": {"head": "multilabel", "source": "scenes", "target": "tags"},
        "counts": {"head": "density", "source": "scenes", "target": "counts"},
        "classes": {"head": "segmentation", "source": "scenes", "target": "classes"},
    }
    plan = resolve(validate(values), 1)
    config = plan.config.as_dict()
    return build_model(config), config


def test_the_other_heads(heads: tuple[Any, dict[str, Any]]) -> None:
    module, config = heads
    parts = open_parts(config, "test")
    rows = {row["task"]: row for row in measure(module, config, parts, batch=5)}
    assert list(rows) == ["pair[0]", "pair[1]", "tags", "counts", "classes"]
    found = predict(module, config, parts[0].source)
    for k in range(2):
        truth = found["pair"].labels[:, k]
        known = ~np.isnan(truth)
        row = rows[f"pair[{k}]"]
        assert (row["n"], row["missing"]) == (known.sum(), (~known).sum())
        assert row["metrics"]["rmse"] == pytest.approx(
            sk.root_mean_squared_error(truth[known], found["pair"].values[known, k]), rel=1e-5
        )
    assert rows["pair[0]"]["missing"] == 0 < rows["pair[1]"]["missing"]
    known = found["tags"].labels >= 0
    said = found["tags"].values >= 0.5
    assert rows["tags"]["metrics"]["micro_f1"] == pytest.approx(sk.f1_score(found["tags"].labels[known], said[known]))
    known = found["counts"].labels >= 0
    assert rows["counts"]["metrics"]["rmse"] == pytest.approx(
        sk.root_mean_squared_error(found["counts"].labels[known], found["counts"].values.squeeze()[known]), rel=1e-5
    )
    known = found["classes"].labels != 255
    answers = found["classes"].values.argmax(1)[known]
    row = rows["classes"]
    assert row["metric"] == "dice_macro" and (row["n"], row["missing"]) == (20, 1)
    assert row["metrics"]["dice_macro"] == pytest.approx(
        sk.f1_score(found["classes"].labels[known], answers, average="macro")
    )
    train = ShardSet(config["data"]["sources"]["scenes"]["shards"], "train").read("classes", 0, 28)
    common = np.bincount(train[train != 255]).argmax()
    assert row["metrics"]["majority_rate"] == pytest.approx((found["classes"].labels[known] == common).mean())


def test_baselines_of_the_other_heads(heads: tuple[Any, dict[str, Any]]) -> None:
    module, config = heads
    parts = open_parts(config, "test")
    small = Budget(trees=3, tree_leaves=(3,), tree_features=("sqrt",), resamples=20, pixels=500, pixel_trees=2)
    rows = baseline_rows(config, parts, budget=small)
    ours = {row["task"]: row for row in measure(module, config, parts, resamples=20)}
    assert {row["task"] for row in rows} == {"pair[0]", "pair[1]", "tags", "classes"}, "none for counts a pixel"
    for row in rows:
        if "left_out" in row:
            assert (row["model"], row["task"]) == ("unet", "classes") and not row["metrics"]
            continue
        assert row["metrics"].keys() <= ours[row["task"]]["metrics"].keys() and row["metric"] in row["metrics"]
        if row["task"] != "tags":
            assert (row["n"], row["missing"]) == (ours[row["task"]]["n"], ours[row["task"]]["missing"])
    assert "unet left out: images of 16 pixels" in text_of(rows)
