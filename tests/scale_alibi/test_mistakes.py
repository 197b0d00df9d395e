"""Mistakes in a config, a resume or the words of a command: one line that says what, where and the mend, exit code 2, nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from frontier.cli import main as frontier
from tests.scale_alibi.triplets import changed, small_config, write_triplets


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run in the same folder."""
    folder = tmp_path_factory.mktemp("mistakes")
    values = small_config(folder / "run", write_triplets(folder / "set"))
    values["train"] = {"steps": 1, "global_batch": 4, "base_lr": 1e-3}
    values["log"] = {"progress": "none", "energy": False}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def trained(config: Path) -> Path:
    assert frontier(["pretrain", str(config)]) == 0
    return config.parent / "run"


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert frontier(words) == 2
    told = capsys.readouterr()
    assert not told.out and told.err.startswith(f"frontier {words[0]}: ")
    (line,) = told.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("model.sensors.radar=s1", "model.sensors.radar is no section"),
        ("model.sensors.radar.column=s3", "column 's3' is not in"),
        ("model.sensors.radar.colum=s1", "did you mean 'model.sensors.radar.column'"),
        ("model.sensors.lores.bands=[b7]", "no band 'b7'"),
        ("model.sensors.lores.bands=[b0,b0]", "each once"),
        ("model.sensors.hires.size=24", "no whole multiple of the 4x4 of radar"),
        ("model.sensors.radar.gsd_m=true", "positive number of metres a pixel, or column:NAME"),
        ("model.sensors.radar.gsd_m=[1]", "positive number of metres a pixel, or column:NAME"),
        ("model.sensors.radar.gsd_m='column:'", "positive number of metres a pixel, or column:NAME"),
        ("model.sensors.radar.gsd_m=.inf", "positive number of metres a pixel, or column:NAME"),
        ("model.sensors.radar.gsd_m=null", "does not say how many metres a pixel of 's1' spans"),
        ("model.sensors.radar.gsd_m=40", "all sensors must show the same ground"),
        (
            "model.sensors.radar.mean=[1,.nan]",
            "model.sensors.radar.mean.1: Input should be a finite number (given nan)",
        ),
        ("model.sensors.radar.std=[.inf,1]", "model.sensors.radar.std.0: Input should be a finite number (given inf)"),
        ("model.sensors.radar.std=[0,1]", "not positive"),
        (
            "model.sensors.radar.channels=5",
            "model.sensors.radar.channels=5: it is filled in, and here it is 2: leave it out",
        ),
        ("model.sensors.hires.stored_size=64", "stored_size=64: it is filled in, and here it is 32"),
        ("model.sensors.hires.nominal_gsd_m=3", "nominal_gsd_m=3: it is filled in"),
        ("model.sensors.joint={column: s1}", "'joint' cannot be a sensor's name"),
        ("model.sensors.contrastive={column: s1}", "'contrastive' cannot be a sensor's name"),
        ("model.sensors.keys={column: s1, gsd_m: 'column:coarse_m'}", "'keys' cannot be a sensor's name"),
        ("model.chain=[radar,lores]", "name each of radar, lores, hires once"),
        ("model.chain=[radar,lores,null]", "name each of radar, lores, hires once"),
        ("model.chain=[radar,[lores],hires]", "name each of radar, lores, hires once"),
        ("model.chain=[hires,radar,lores]", "no whole multiple of the 8x8 of hires"),
        ("model.patch=5", "do not divide into patches of 5"),
        ("model.mask_ratio=0.99", "keeps 0 of 16 patches"),
        (
            "model.mask_ratio=0.5 & "
            "model.sensors={radar: {mask_ratio: 0.5}, lores: {mask_ratio: 0.5}, hires: {mask_ratio: 0.6}}",
            "model.mask_ratio has no effect, as every sensor has its own",
        ),
        (
            "model.depth=2 & model.weights.reconstruction=0 & model.decoder.heads=null & "
            "model.sensors={radar: {depth: 1}, lores: {depth: 2}, hires: {depth: 2}}",
            "model.depth has no effect, as every sensor has its own and weights.reconstruction=0",
        ),
        ("model.reference_m=0", "greater than 0"),
        ("model.reference_m=.inf", "finite"),
        ("model.weights.contrastive=.inf", "finite"),
        ("model.weights={contrastive: 0, reconstruction: 0}", "nothing to learn"),
        ("model.weights.reconstruction=0", "model.decoder has no effect"),
        ("model.position=grid & model.reference_m=80", "reference_m has no effect with position=grid"),
        ("model.attention=augmented", "is for position=gaussian"),
        ("model.attention=sdpa & model.position=sincos", "no effect with position=sincos"),
        ("model.heads=3", "heads 3 does not divide width 32"),
        ("model.preset=scale_alibi_bse", "did you mean scale_alibi_base"),
        ("parallel.tensor=4 & --world-size=4", "tensor=4 does not divide the 2 heads of decoder"),
        ("data.column=s1", "data.column has no effect"),
        ("data.sources={a: {shards: x}} & data.shards=null", "data.augment has no effect with data.sources"),
        (
            "data={augment: {symmetries: false, crop_scale: null}, sources: {a: {shards: x}}, shards: null}",
            "give data.shards",
        ),
        ("train.global_batch=1", "take 2 or more"),
        ("train.global_batch=49", "exceeds the 48 samples"),
        ("data={synthetic: {images: {s1: [2, 16], s2: [3, 16]}}, shards: null}", "no per-sample column 'coarse_m'"),
    ],
)
def test_of_a_config(config: Path, words: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in refused(["pretrain", str(config), "--dry-run", *words.split(" & ")], capsys)


def test_of_a_device(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(["pretrain", str(config), f"run.dir={tmp_path / 'run'}", "model.attention=flex"], capsys)
    assert "set model.attention=auto" in told
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_one_sample_has_no_others_but_can_be_rebuilt(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train.global_batch=1", "model.weights.contrastive=0"]
    assert frontier(["pretrain", str(config), "--dry-run", *words]) == 0
    assert "global_batch: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "word",
    [
        "model.position=grid",
        "model.position=gaussian",
        "model.reference_m=40",
        "model.heads=2",
        "model.decoder.heads=4",
        "model.patch=8",
        "model.sensors.radar.size=8",
        "model.sensors.hires.size=16",
        "model.sensors.lores.bands=[b0,b2]",
        "model.sensors.hires.gsd_m=5",
        "model.sensors.hires.gsd_m=column:coarse_m",
        "model.sensors.radar.depth=2",
        "model.chain=[lores,radar,hires]",
        "model.weights.contrastive=0",
        "data.split=val",
        "train.global_batch=8",
        "run.seed=4",
    ],
)
def test_a_resume_is_refused_for_another_model_or_other_samples(
    config: Path, trained: Path, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    told = refused(["pretrain", str(config), word, "train.steps=2"], capsys)
    assert any(mend in told for mend in ("give another run.dir", "mend model.sensors", "no split"))
    assert before == {path: path.stat().st_mtime_ns for path in trained.rglob("*")}


def test_a_resume_may_change_how_it_learns(config: Path, trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    copy.symlink_to(trained)
    words = [
        "model.mask_ratio=0.75",
        "model.attention=eager",
        "model.weights.contrastive=0.5",
    ]
    words += ["data.augment.crop_scale=[0.2,1]", "train.micro_batch=2", "parallel.strategy=ddp", "train.steps=2"]
    assert frontier(["pretrain", str(config), *words]) == 0
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("probe RUN", "required: --data"),
        ("probe RUN --data SET --foo", "unrecognized arguments: --foo"),
        ("probe RUN --data SET --batch x", "invalid int value"),
        ("probe RUN --data SET --gsd-m inf", "positive number of metres"),
        ("probe RUN --data SET --split-train train --split-test train2", "no split 'train2'"),
        ("pretrain", "required: config"),
        ("pretrain RUN/config.yaml --foo", "unrecognized arguments: --foo"),
        ("export RUN --format croma --out OUT", "does not fit CROMA's layout"),
        ("export RUN --format timm --out OUT", "safetensors"),
        ("export RUN --format hf --out OUT", "safetensors"),
        ("import OUT --data SET --radar s1 --lores s2 --out OUT", "is not there"),
        ("plan --config OUT", "no config"),
        ("report OUT", "no run folder"),
    ],
)
def test_of_words(trained: Path, tmp_path: Path, words: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"RUN": trained, "SET": trained.parent / "set", "OUT": tmp_path / "out"}
    given = [
        word.replace("RUN", str(trained)) if "/" in word else str(places.get(word, word)) for word in words.split()
    ]
    assert expected in refused(given, capsys)
    assert not (tmp_path / "out").exists()


def test_of_shards_that_lack_a_sensor(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = changed(trained.parent / "set", tmp_path / "two", lambda manifest: manifest["images"].pop("naip"))
    told = refused(["evaluate", str(trained), "--data", str(two), "--split", "train"], capsys)
    assert "model.sensors.hires.column 'naip' is not in" in told
