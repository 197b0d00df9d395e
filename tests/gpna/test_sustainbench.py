"""Every row of SustainBench: published layout -> reader -> shards -> the shipped config -> evaluation, on a few generated samples."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from data_prep.command import main as shards_command
from frontier.cli import main as frontier
from frontier.config.load import load_config, read_extended
from frontier.data.feed import Loaders
from frontier.data.shards import ShardSet
from frontier.train.plan import resolve
from gpna.sensors import InputSpec
from tests.conftest import ROOT
from tests.gpna.sustainbench_folders import WRITERS

CONFIGS = ROOT / "jobs/configs/gpna_sustainbench"
PIXELS = {"dice", "iou", "miou", "pixel_accuracy", "majority_rate"}
NUMBERS = {"pearson_r2", "r2", "rmse", "mae"}
CLASSES = {"accuracy", "macro_f1", "kappa", "majority_rate"}


@dataclass(frozen=True)
class Expected:
    """Attributes: source and reader; tokens of an input whose every band is there; the paper's metric, and all of them; by task."""

    source: str
    reader: str
    tokens: dict[str, int]
    metric: str
    metrics: set[str]
    tasks: tuple[str, ...]


def dhs(task: str) -> Expected:
    # Nine bands, of which a sample has eight: 32 x 32 cells of 8 pixels each.
    return Expected("dhs", "dhs", {"image": 9 * 1024}, "pearson_r2", NUMBERS, (task,))


CROPS = {"dice_macro", "miou", "pixel_accuracy", "majority_rate"}
BINARY = CLASSES | {"auc", "precision", "recall", "f1"}
ROWS = {
    "poverty": dhs("poverty"),
    "womens_education": dhs("womens_education"),
    "womens_bmi": dhs("womens_bmi"),
    "under5_mortality": dhs("under5_mortality"),
    "sanitation": dhs("sanitation"),
    "water": dhs("water"),
    "poverty_temporal": Expected("lsms", "lsms", {"image": 2 * 9 * 1024}, "pearson_r2", NUMBERS, ("poverty_change",)),
    "land_cover": Expected("landcover", "landcover", {"image": 676}, "accuracy", CLASSES, ("land_cover",)),
    "brick_kiln": Expected("kilns", "brick_kiln", {"image": 832}, "accuracy", BINARY, ("brick_kiln",)),
    "crop_yield": Expected("counties", "crop_yield", {"histogram": 1152}, "rmse", NUMBERS, ("crop_yield",)),
    "field_delineation": Expected("fields", "delineation", {"image": 2352}, "dice", PIXELS, ("boundary",)),
    "farm_area": Expected("fields", "delineation", {"image": 2352}, "dice", PIXELS, ("area",)),
    "fields": Expected("fields", "delineation", {"image": 2352}, "dice", PIXELS, ("boundary", "area")),
    # Twelve dates; shorter series are padded, and what is padded is no token.
    "crop_type_ghana": Expected(
        "tiles", "crop_type", {"s1": 12 * 3 * 64, "s2": 12 * 10 * 64}, "dice_macro", CROPS, ("crop_type",)
    ),
    "crop_type_south_sudan": Expected(
        "tiles", "crop_type_south_sudan", {"s1": 12 * 3 * 64, "s2": 12 * 10 * 64}, "dice_macro", CROPS, ("crop_type",)
    ),
    "crop_type_kenya": Expected("series", "kenya", {"image": 5110}, "macro_f1", CLASSES, ("crop_type",)),
}
TABLE_1 = (
    *("poverty", "womens_education", "womens_bmi", "under5_mortality", "sanitation", "water", "poverty_temporal"),
    *("land_cover", "brick_kiln", "crop_yield", "field_delineation", "farm_area"),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The shards of a reader, written when first asked for."""
    root = tmp_path_factory.mktemp("sustainbench")

    class Written(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            write, words = WRITERS[name]
            (root / "in" / name).mkdir(parents=True)
            write(root / "in" / name)
            reader = "crop_type" if name.startswith("crop_type") else name
            given = ["--reader", f"sustainbench_{reader}", "--from", str(root / "in" / name), "--set", "partial=yes"]
            assert shards_command(["write", *given, *words, str(root / name)]) == 0
            self[name] = root / name
            return self[name]

    return Written()


def small(row: str, run: Path, *more: str) -> list[str]:
    return [
        *("pretrain", str(CONFIGS / f"{row}.yaml"), f"run.dir={run}", "model.preset=gpna_debug"),
        *("train.epochs=null", "train.steps=2", "train.global_batch=4", "train.warmup_steps=0"),
        *("log.progress=none", "log.energy=false"),
        *more,
    ]


@pytest.mark.parametrize("row", ROWS)
def test_a_row_from_the_published_files_to_its_metric(row: str, written: dict[str, Path], tmp_path: Path) -> None:
    expected, run = ROWS[row], tmp_path / "run"
    shards = written[expected.reader]
    assert frontier(small(row, run, f"data.sources.{expected.source}.shards={shards}")) == 0
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and all(math.isfinite(line["loss"]) for line in losses)
    config = yaml.safe_load((run / "config.yaml").read_text())
    inputs = config["data"]["sources"][expected.source]["inputs"]
    specs = {column: InputSpec.from_dict(given["spec"]) for column, given in inputs.items()}
    assert {column: spec.tokens for column, spec in specs.items()} == expected.tokens

    assert frontier(["evaluate", str(run), "--batch", "3"]) == 0
    rows = json.loads((run / "evaluation.json").read_text())
    assert [one["task"] for one in rows] == list(expected.tasks)
    for one in rows:
        assert one["metric"] == expected.metric and set(one["metrics"]) == expected.metrics
        # Of three samples a correlation or an area under a curve may be undefined, what a row is judged by may not be.
        assert all(math.isfinite(value) for name, value in one["metrics"].items() if value is not None)
        assert one["metrics"][expected.metric] is not None
        assert one["n"] + one["missing"] == len(ShardSet(shards, "test"))
        if expected.reader == "dhs":
            labels = ShardSet(shards, "test").column(one["target"])
            assert one["missing"] == np.isnan(labels).sum() == 1
            labelled = config["model"]["tasks"][one["task"]]["labelled"]
            assert labelled == np.isfinite(ShardSet(shards, "train").column(one["target"])).mean() < 1


def test_every_row_of_the_papers_table_has_a_config() -> None:
    names = {path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("_")}
    assert set(TABLE_1) < set(ROWS) and names == {*ROWS, "all"}
    for name in names:
        config = load_config(CONFIGS / f"{name}.yaml")
        assert config.run.dir == f"runs/gpna_sustainbench/{name}"
        assert {task.source for task in config.model.tasks.values()} == set(config.data.sources)
    # The shards that single rows name are those of the run on all of them.
    shared = read_extended(CONFIGS / "all.yaml")["data"]["sources"]
    for row in TABLE_1:
        config = load_config(CONFIGS / f"{row}.yaml")
        for name, section in config.data.sources.items():
            assert section.shards == shared[name]["shards"]
            assert section.place_uncertainty_m == shared[name].get("place_uncertainty_m", 0)


def test_all_rows_of_the_table_with_one_set_of_weights(written: dict[str, Path], tmp_path: Path) -> None:
    """Six sources of 676 to 16,384 tokens in one batch, twelve tasks, one checkpoint."""
    given = load_config(CONFIGS / "all.yaml").data.sources
    readers = {expected.source: expected.reader for name, expected in ROWS.items() if name in TABLE_1}
    assert set(given) == set(readers)
    more = [f"data.sources.{name}.shards={written[reader]}" for name, reader in readers.items()]
    weights = [f"data.sources.{name}.weight=1" for name in given]
    words = small("all", tmp_path / "run", *more, *weights, "data.granule=1", "train.global_batch=6")
    assert frontier(words) == 0
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    tasks = {task: ROWS[row].metric for row in TABLE_1 for task in ROWS[row].tasks}
    assert all(math.isfinite(last[f"loss_{task}"]) for task in tasks)
    assert frontier(["evaluate", str(tmp_path / "run"), "--batch", "3"]) == 0
    rows: list[dict[str, Any]] = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert {one["task"]: one["metric"] for one in rows} == tasks


def test_a_place_can_be_hidden(written: dict[str, Path], tmp_path: Path) -> None:
    """As docs/gpna_sustainbench.md says for splits that are random in space."""
    more = [f"data.sources.kilns.shards={written['brick_kiln']}", "data.sources.kilns.place_uncertainty_m=.inf"]
    words = small("brick_kiln", tmp_path / "run", *more)
    assert frontier(words) == 0 and frontier(["evaluate", str(tmp_path / "run")]) == 0
    plan = resolve(load_config(words[1], words[2:]), 1)
    placed = plan.feed.reader(torch.device("cpu"), 0).place(
        next(Loaders(plan.feed.streams, 0, 1, 0, torch.device("cpu"), 3).batches(0))
    )
    assert not placed["kilns"].place.any() and placed["kilns"].time["image"].any()
