"""What a user can get wrong in data.sources and model.tasks: exit 2 and one line that names the place and the mend, before anything runs."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from frontier.cli import main
from frontier.config.load import load_config
from frontier.errors import UserError
from frontier.train.plan import resolve
from frontier.train.trainer import check_record
from gpna.config import SourceSection
from gpna.head_sections import ClassificationTask
from gpna.sources import open_source
from gpna.targets import settle
from tests.data.sets import write_set
from tests.gpna.sets import small_config, write_both

CLASSES = {"head": "classification", "source": "scenes", "target": "label"}
SCENES, SERIES = "data.sources.scenes", "data.sources.series"

ONE: dict[str, Any] = {SCENES: None, "model.tasks.kind": None, "model.tasks.cover": None}
"""Changes after which only the series are left, which have neither positions nor wavelengths."""

MISTAKES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    # tasks
    "no such source": ({"model.tasks.kind.source": "scene"}, ("no source 'scene'", "scenes, series")),
    "no such target": ({"model.tasks.kind.target": "lable"}, ("model.tasks.kind.target", "did you mean label?")),
    "an input as target": ({"model.tasks.kind.target": "image"}, ("model.tasks.kind.target", "'image'")),
    "classes of floats": ({"model.tasks.soil.head": "classification"}, ("model.tasks.soil", "choose head: regression")),
    "one class of a map": ({"model.tasks.kind.target": "cover"}, ("model.tasks.kind", "(16, 16)", "segmentation")),
    "map of a number": ({"model.tasks.cover.target": "label"}, ("model.tasks.cover", "map of rows and columns")),
    "numbers of a map": (
        {"model.tasks.kind": {"head": "regression", "source": "scenes", "target": "cover"}},
        ("model.tasks.kind", "(16, 16)", "segmentation"),
    ),
    "yes and no of a number": ({"model.tasks.kind.head": "multilabel"}, ("model.tasks.kind", "one number a class")),
    "unknown head": ({"model.tasks.kind.head": "clasification"}, ("model.tasks.kind.head", "classification")),
    "no head": ({"model.tasks.kind.head": None}, ("'model.tasks.kind.head' is missing",)),
    "no target": ({"model.tasks.kind.target": None}, ("'model.tasks.kind.target' is missing",)),
    "misspelt key of a task": ({"model.tasks.kind.weigth": 2}, ("did you mean 'model.tasks.kind.weight'?",)),
    "key of another head": ({"model.tasks.kind.train_pixels": 9}, ("'model.tasks.kind.train_pixels' has no effect",)),
    "too few classes": ({"model.tasks.kind.classes": 2}, ("class 2 of 2", "more classes")),
    "too few classes of a map": ({"model.tasks.cover.classes": 3}, ("model.tasks.cover", "class 3 of 3", "255")),
    "weights of other classes": ({"model.tasks.kind.class_weights": [1, 2]}, ("model.tasks.kind", "3 classes")),
    "more pixels than there are": ({"model.tasks.cover.train_pixels": 999}, ("model.tasks.cover", "256 pixels")),
    "another size": ({"model.tasks.cover.size": 8}, ("model.tasks.cover", "(8, 8)", "leave size out")),
    "a mean too few": ({"model.tasks.soil.mean": [1.0]}, ("model.tasks.soil", "1 numbers for 2 outputs")),
    "heads of attention": ({"model.tasks.kind.attention_heads": 5}, ("model.tasks.kind", "divide width 32")),
    "tasks as a list": ({"model.tasks": [CLASSES]}, ("model.tasks is no section",)),
    "a task as a word": ({"model.tasks.kind": "classification"}, ("model.tasks.kind is no section",)),
    "a task's name": ({"model.tasks.my-task": CLASSES}, ("'my-task'", "letters")),
    "a task called as a method": ({"model.tasks.train": CLASSES}, ("called train", "rename")),
    "a task called masked": ({"model.tasks.masked": CLASSES}, ("'masked'", "another name")),
    "masked as a task": ({"model.tasks.hidden": {"head": "masked", "source": "scenes"}}, ("give model.masked",)),
    "nothing to learn": ({"model.tasks": {}, "model.masked": None}, ("nothing to learn", "model.tasks")),
    # sources
    "sources as a list": ({"data.sources": [{"shards": "a"}]}, ("data.sources is no section",)),
    "no sources": ({"data.sources": {}}, ("data.sources is empty",)),
    "a source as a path": ({SCENES: "shards/scenes"}, (f"{SCENES} is no section", "scenes: {shards: FOLDER}")),
    "a source's name": ({"data.sources.a/b": {"shards": "x"}}, ("'a/b' cannot be a source's name",)),
    "misspelt key of a source": ({f"{SCENES}.shard": "x"}, (f"did you mean '{SCENES}.shards'?",)),
    "no folder named": ({f"{SCENES}.shards": None}, (f"'{SCENES}.shards' is missing",)),
    "no folder there": ({f"{SCENES}.shards": "/nowhere"}, (SCENES, "/nowhere", "does not exist")),
    "mixing beside weights": (
        {f"{SCENES}.weight": 2, f"{SERIES}.weight": 1, "data.mixing": 0.5},
        ("data.mixing has no effect where every source has a weight",),
    ),
    "no such split": ({f"{SCENES}.split": "tset"}, (SCENES, "no split 'tset'", "train")),
    "shards and sources": ({"data.shards": "x"}, ("exactly one of", "shards and sources given")),
    "shards instead": ({"data.sources": None, "data.shards": "x"}, ("model.family=gpna takes data.sources",)),
    "one split for all": ({"data.split": "test"}, ("data.split has no effect with data.sources",)),
    "a source nobody learns from": ({"model.masked": None, "model.tasks.soil": None}, (SERIES, "no task learns")),
    "another family": ({"model": {"family": "mae", "preset": "vit_debug"}}, ("family=mae", "data.shards")),
    "no such input": ({f"{SCENES}.inputs": {"imag": {}}}, (f"{SCENES}.inputs", "did you mean image?")),
    "inputs as a list": ({f"{SCENES}.inputs": ["image"]}, (f"{SCENES}.inputs is no section",)),
    "no inputs": ({f"{SCENES}.inputs": {}}, (SCENES, "inputs is empty")),
    "unknown sensor": (
        {f"{SCENES}.inputs": {"image": {"sensor": "sentinel9"}}},
        (f"{SCENES}.inputs.image", "did you mean sentinel"),
    ),
    "a sensor without the bands": (
        {f"{SCENES}.inputs": {"image": {"sensor": "sentinel1"}}},
        (f"{SCENES}.inputs.image", "band blue", "VV"),
    ),
    "a huge footprint": (
        {f"{SCENES}.inputs": {"image": {"footprint": 64}}},
        ("inputs.image.footprint", "1, 2, 4 or 8"),
    ),
    "a footprint without space": (
        {f"{SERIES}.inputs": {"series": {"footprint": 8}}},
        (f"{SERIES}.inputs.series", "footprint 8 of axes TC"),
    ),
    "more samples than there are": ({f"{SCENES}.samples": 999}, (SCENES, "999", "64")),
    "fewer samples than its share": ({f"{SCENES}.samples": 8}, (SCENES, "8 samples")),
    "turned series": ({f"{SERIES}.symmetries": True}, (f"{SERIES}.symmetries has no effect",)),
    # shares
    "a batch smaller than the sources": ({"train.global_batch": 1}, ("train.global_batch=1", "2 shares")),
    "a granule that does not divide": ({"data.granule": 5}, ("data.granule=5", "multiple of 5")),
    "a share beyond the data": ({"train.global_batch": 1024}, (SCENES, "exceeds the 64 samples")),
    "per_batch of one source": ({f"{SCENES}.per_batch": 8}, (f"{SERIES}.per_batch is missing",)),
    "another sum of per_batch": (
        {f"{SCENES}.per_batch": 8, f"{SERIES}.per_batch": 8},
        ("adds up to 16", "train.global_batch is 32"),
    ),
    # without effect on these data
    "clusters without bounds": ({"model.batching": {"method": "one", "max_tokens": 99}}, ("max_tokens has no effect",)),
    "each alone with a bound": (
        {"model.batching": {"method": "each", "max_padding": 0.2}},
        ("model.batching: max_padding has no effect with method each",),
    ),
    "frequencies of no position": ({"model.tokens": {"position": 0, "highest": 3.0}}, ("highest has no effect",)),
    "mixing of one source": (ONE | {"data.mixing": 0.5}, ("data.mixing has no effect: there is one source",)),
    "weight of one source": (ONE | {f"{SERIES}.weight": 2}, (f"{SERIES}.weight has no effect",)),
    "region of points": (ONE | {"model.tokens": {"region": "first"}}, ("model.tokens.region has no effect",)),
    "wavelengths of none": (ONE | {"model.tokens": {"highest_spectral": 2.0}}, ("no band is optical",)),
    "normalised single values": (ONE | {"model.masked.norm_pix": True}, ("model.masked.norm_pix has no effect",)),
    "texture of single values": (ONE | {"model.masked.texture": 0.5}, ("model.masked.texture has no effect",)),
    "doubt about no place": ({f"{SERIES}.place_uncertainty_m": 10.0}, (f"{SERIES}.place_uncertainty_m", "lon and lat")),
    # model
    "unknown preset": ({"model.preset": "gpna_bsae"}, ("gpna_bsae", "gpna_base")),
    "width and heads": ({"model.heads": 5}, ("model.heads 5", "width 32")),
    "no bound on padding": ({"model.batching": {"max_padding": math.inf}}, ("model.batching.max_padding", "finite")),
    "half a token of padding": (
        {"model.batching": {"max_padding": 1.5}},
        ("model.batching.max_padding", "whole number"),
    ),
    "no room for values": ({"model.tokens": {"join": "concat"}}, ("width: 32", "join: concat")),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_both(tmp_path_factory.mktemp("sources"))


def changed(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`config` with dotted keys set; None takes a key out."""
    config = copy.deepcopy(config)
    for key, value in changes.items():
        *path, last = key.split(".")
        node = config
        for part in path:
            node = node[part]
        if value is None:
            node.pop(last)
        else:
            node[last] = value
    return config


def told(capsys: pytest.CaptureFixture[str], config: dict[str, Any], path: Path, *args: str) -> str:
    """The one line that `frontier pretrain` ends with."""
    path.write_text(yaml.safe_dump(config))
    assert main(["pretrain", str(path), "--dry-run", *args]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("name", MISTAKES)
def test_one_line(name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, words = MISTAKES[name]
    line = told(capsys, changed(small_config(tmp_path / "run", data), changes), tmp_path / "config.yaml")
    for word in words:
        assert word in line, line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("ranks", "overrides", "words"),
    [
        (3, (), ("32", "3 ranks")),
        (32, (), (SCENES, "16 samples", "data.granule")),
        (2, ("train.micro_batch=1",), (SCENES, "2 data ranks", "16 micro-batches", "train.micro_batch")),
        (4, ("data.sources.scenes.weight=3", "data.granule=1", "train.micro_batch=2"), (SCENES, "multiple of 16")),
        (2, ("parallel.tensor=4",), ("tensor",)),
    ],
)
def test_ranks_that_do_not_divide(
    ranks: int,
    overrides: tuple[str, ...],
    words: tuple[str, ...],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = small_config(tmp_path / "run", data)
    line = told(capsys, config, tmp_path / "config.yaml", "--world-size", str(ranks), *overrides)
    for word in words:
        assert word in line, line


RESUMES: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"run.seed": 4}, "run.seed=3, now it is 4"),
    "batch": ({"train.global_batch": 48}, "train.global_batch=32"),
    "share": ({f"{SCENES}.weight": 3.0}, f"{SCENES}.per_batch=16, now it is 24"),
    "footprint": (
        {f"{SCENES}.inputs": {"image": {"footprint": 2}, "weather": {}}},
        f"{SCENES}.inputs.image.footprint=4",
    ),
    "block": ({f"{SCENES}.block": 2}, f"{SCENES}.block=4, now it is 2"),
    "doubt about places": ({f"{SCENES}.place_uncertainty_m": 9.0}, f"{SCENES}.place_uncertainty_m=0.0, now it is 9.0"),
    "samples": ({f"{SCENES}.samples": 63}, f"{SCENES}.samples=None, now it is 63"),
    "target": ({"model.tasks.kind.target": "kind2"}, "model.tasks.kind.target=label, now it is kind2"),
    "inputs": ({f"{SCENES}.inputs": {"image": {}}}, "another model"),
    "another head": ({"model.tasks.kind": None}, "another model"),
    "classes": ({"model.tasks.kind.classes": 7}, "another model"),
    "heads": ({"model.heads": 4}, "model.heads=2, now it is 4"),
    "heads of a task": ({"model.tasks.kind.attention_heads": 2}, "model.tasks.kind.attention_heads=4, now it is 2"),
    "frequencies": ({"model.tokens": {"highest": 8.0}}, "model.tokens.highest=16.0, now it is 8.0"),
    "values of hidden tokens": ({"model.masked.norm_pix": True}, "model.masked.norm_pix=False, now it is True"),
}


@pytest.mark.parametrize("name", RESUMES)
def test_what_a_resume_may_not_change(name: str, data: Path, tmp_path: Path) -> None:
    changes, words = RESUMES[name]
    refused(data, tmp_path, changes, words, masked=name != "footprint")  # its head depends on footprints


def refused(data: Path, tmp_path: Path, changes: dict[str, Any], words: str, masked: bool = True) -> None:
    """A run as the tests have it, resumed with `changes`, is refused in one line."""
    config = small_config(tmp_path / "run", data)
    if not masked:
        config["model"].pop("masked")
    config["model"]["tasks"]["kind"]["classes"] = 3

    def plan(given: dict[str, Any]):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
        return resolve(load_config(tmp_path / "config.yaml"), 2)

    first = plan(config)
    record = {"step": 5, "fixed": first.fixed(), "parameters": first.parameter_shapes, "config": first.config.as_dict()}
    record = json.loads(json.dumps(record))  # as complete.json gives it back
    check_record(first, record)
    with pytest.raises(UserError) as error:
        check_record(plan(changed(config, changes)), record)
    assert words in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600
    assert "run.dir" in str(error.value)


def test_the_mark_of_an_unknown_pixel_is_no_class(tmp_path: Path) -> None:
    """A uint8 column of classes with 255 would quietly have 256 of them."""
    values = np.zeros((8, 2), np.float32)
    label = np.array([0, 1, 2, 255] * 2, np.uint8)
    shards = write_set(
        tmp_path / "set",
        {"x": (values, "C")},
        columns={"label": label},
        statistics={"x": {"mean": [0, 0], "std": [1, 1]}},
    )
    section = SourceSection(shards=str(shards))
    for classes, refused_ in ((None, True), (256, False)):
        task = ClassificationTask(source="s", target="label", head="classification", classes=classes)
        source = open_source("s", section, {"kind": task}, check=False)
        if refused_:
            with pytest.raises(UserError, match="model.tasks.kind: 'label' holds 255, .* store -1 .* classes: 256"):
                settle("kind", task, source)
        else:
            assert settle("kind", task, source).classes == 256  # type: ignore[union-attr]


def test_sources_added_renamed_or_left_out(data: Path, tmp_path: Path) -> None:
    shards = str(data / "series")
    tasks = {"soil": {"head": "regression", "source": "dates", "target": "soil"}}
    added = {"data.sources.more": {"shards": shards}}
    refused(data, tmp_path, added, "data.sources=['scenes', 'series'], now it is ['scenes', 'series', 'more']")
    renamed = {SERIES: None, "data.sources.dates": {"shards": shards}, "model.tasks.soil": tasks["soil"]}
    refused(data, tmp_path, renamed, "now it is ['scenes', 'dates']")
