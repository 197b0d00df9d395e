"""Config files: inheritance, overrides, nearest keys, refusals."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from frontier.config.load import load_config, nearest_key, parse_override, read_yaml, validate
from frontier.config.schema import AugmentConfig, DataConfig, Section, TrainConfig
from frontier.errors import UserError
from frontier.models.registry import family
from tests.conftest import ROOT, toy_config

VALUES = toy_config(Path("run"), Path("shards"))


def test_defaults_are_spelled_out_and_round_trip() -> None:
    config = validate(VALUES)
    told = config.as_dict()
    assert told["parallel"]["strategy"] == "full_shard"
    assert told["train"]["betas"] == [0.9, 0.95]
    assert validate(told) == config
    assert validate(told).hash() == config.hash()


def test_hash_sees_every_value() -> None:
    changed = {**VALUES, "run": {**VALUES["run"], "seed": 4}}
    assert validate(changed).hash() != validate(VALUES).hash()


def test_extends_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(VALUES))
    (tmp_path / "sub").mkdir()
    child = tmp_path / "sub" / "child.yaml"
    child.write_text("extends: ../base.yaml\ntrain: {base_lr: 1.0e-3}\n")
    config = load_config(child, ["train.steps=7", "data.augment.symmetries=false", "run.seed=9", "train.min_lr=1e-6"])
    assert config.train.base_lr == 1e-3
    assert config.train.steps == 7
    assert config.train.global_batch == 32
    assert config.train.min_lr == 1e-6
    assert not config.data.augment.symmetries
    assert config.data.augment.crop_scale == (0.4, 1.0)


def test_extends_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(UserError, match="extends itself"):
        load_config(tmp_path / "a.yaml")


def test_yaml_that_would_run_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text("run: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(UserError, match="not YAML"):
        load_config(tmp_path / "evil.yaml")


def test_nearest_key_by_spelling_then_by_last_part() -> None:
    known = ["train.global_batch", "train.base_lr", "parallel.strategy", "data.augment.crop_scale"]
    assert nearest_key("train.globl_batch", known) == "train.global_batch"
    assert nearest_key("strategy", known) == "parallel.strategy"
    assert nearest_key("model.crop_scales", known) == "data.augment.crop_scale"
    assert nearest_key("zzz", known) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"family": "mae", "preset": "vit_debug", "mask_rato": 0.5}}, "did you mean 'model.mask_ratio'"),
        ({"train": {"global_batch": 32}}, "exactly one of"),
        ({"train": {"global_batch": 32, "steps": 1, "epochs": 2}}, "steps and epochs"),
        ({"train": {"global_batch": 32, "steps": 1, "micro_batch": 5}}, "does not divide"),
        ({"parallel": {"strategy": "hybrid_0"}}, "hybrid_<k>"),
        ({"data": {"shards": "x", "augment": {"crop_scale": [0.9, 0.2]}}}, "low <= high"),
        (
            {"data": {"shards": "x", "augment": {"crop_scale": [0.2]}}},
            r"^config data.augment.crop_scale: more values are expected \(given \[0.2\]\)$",
        ),
        ({"model": {}}, "model.preset"),
        (
            {"parallel": {"strategy": "hybrid_1", "prefetch": 2}},
            "parallel.prefetch has no effect under strategy hybrid_1",
        ),
        ({"train": {"global_batch": 32, "steps": 1, "betas": [0.9, 1.0]}}, "both are at least 0 and below 1"),
        ({"train": {"global_batch": 32, "steps": 1, "base_lr": math.inf}}, "train.base_lr: .* finite number"),
        (
            {"train": {"global_batch": 512, "steps": 1, "base_lr": 1e308}},
            "base_lr=1e.308 x global_batch / 256 is no finite",
        ),
    ],
)
def test_refusals_name_the_key_and_the_mend(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate({**VALUES, **change})


def test_a_section_that_is_missing() -> None:
    with pytest.raises(UserError, match=r"^config section 'run' is missing: add it, with run.dir and the like$"):
        validate({name: section for name, section in VALUES.items() if name != "run"})
    with pytest.raises(UserError, match=r"^config key 'run.dir' is missing: add it or pass run.dir=VALUE$"):
        validate({**VALUES, "run": {}})


@pytest.mark.parametrize("text", ["train.steps", "train..steps=3", ".steps=3", "train.=3", "=3"])
def test_override_that_is_none(text: str) -> None:
    with pytest.raises(UserError, match="is not an override"):
        parse_override(text)


def test_a_key_that_is_there_twice(tmp_path: Path) -> None:
    """PyYAML takes the last one without a word."""
    file = tmp_path / "a.yaml"
    file.write_text("run: {dir: a}\ntrain:\n  steps: 3\nrun: {seed: 1}\n")
    with pytest.raises(UserError, match=r"a.yaml line 4 is not YAML: the key 'run' is there twice"):
        load_config(file)
    with pytest.raises(UserError, match=r"is not YAML: the key 'a' is there twice"):
        parse_override("train={a: 1, a: 2}")
    file.write_text("base: &one {a: 1, b: 2}\nmerged: {<<: *one, a: 3}\nagain: *one\n")
    assert read_yaml(file)["merged"] == {"a": 3, "b": 2}


def test_a_config_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").touch()
    for path in (tmp_path / "a.yaml" / "b.yaml", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot be read .*: give the path of a YAML file"):
            read_yaml(path)


def test_a_shipped_config_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation has no jobs/configs/ beside it; a file of the user's comes first."""
    monkeypatch.chdir(tmp_path)
    assert load_config("mae_debug") == load_config(ROOT / "jobs/configs/mae_debug.yaml")
    with pytest.raises(UserError, match=r"no config .*/mae_debu: give .* the name of a shipped one"):
        load_config("mae_debu")
    Path("mae_debug").write_text("3\n")
    with pytest.raises(UserError, match="mae_debug must hold a mapping"):
        load_config("mae_debug")


def test_true_is_no_number() -> None:
    """`steps: yes` would be one step; a key that takes both keeps the truth."""
    for section, value in (("train", {"steps": True}), ("train", {"base_lr": False}), ("run", {"seed": True})):
        key = next(iter(value))
        with pytest.raises(UserError, match=rf"^config {section}: {key} should be a number \(given {value[key]}\)$"):
            validate({**VALUES, section: {**VALUES[section], **value}})
    assert validate({**VALUES, "run": {**VALUES["run"], "deterministic": True}}).run.deterministic


@pytest.mark.parametrize("path", sorted((ROOT / "jobs/configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs_are_valid(path: Path) -> None:
    load_config(path)


def sections(kind: type[Section] = Section) -> list[type[Section]]:
    return [one for sub in kind.__subclasses__() for one in (sub, *sections(sub))]


def test_no_number_may_be_infinite() -> None:
    """Of any section of any family, in whatever shape a field takes numbers."""
    for name in ("mae", "gpna", "scale_alibi"):
        family(name)
    fields = [(s, n) for s in sections() for n, field in s.model_fields.items() if "float" in str(field.annotation)]
    assert {(TrainConfig, "base_lr"), (DataConfig, "mean"), (AugmentConfig, "crop_scale")} <= set(fields)
    assert len({s.__module__ for s, _ in fields}) >= 6
    for section, field in fields:
        hides = section.__module__ == "gpna.config" and field == "place_uncertainty_m"  # infinite: the place is unknown
        for bad in (-math.inf, math.nan) if hides else (math.inf, -math.inf, math.nan):
            for given in (bad, [bad], [bad, bad]):
                with pytest.raises(ValidationError) as told:
                    section.model_validate({field: given})
                assert any(error["loc"][:1] == (field,) for error in told.value.errors()), (section, field, given)
