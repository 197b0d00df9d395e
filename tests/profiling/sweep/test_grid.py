"""Studies and grids: what is a point, what is skipped and why, and that mistakes name the mend."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from frontier.config.load import validate
from frontier.errors import UserError
from frontier_profiling.sweep.grid import fingerprint, points, run_config, select
from frontier_profiling.sweep.study import find, nested, read_study, shipped
from tests.profiling.sweep.fakes import study


def made(path: Path, *overrides: str, ranks_per_node: int = 8, **changes):
    return points(read_study(study(path, **changes), overrides), ranks_per_node)


GRID = {
    "model": ["vit_base", "vit_1b"],
    "strategy": ["ddp", "hybrid_2", "hybrid_16"],
    "nodes": [1, 2, 64],
    "micro_batch": 32,
}


def test_every_combination_is_a_point_with_its_own_name(tmp_path: Path) -> None:
    found = made(tmp_path / "s.yaml", "data.image_size=224", grid={**GRID, "prefetch": [0, 1]})
    assert len(found) == 2 * 3 * 3 * 2 == len({point.id for point in found})
    one = next(p for p in found if p.id == "vit_1b-hybrid_16-n64-prefetch1")
    assert (one.ranks, one.global_batch, one.accumulation, one.skip) == (512, 512 * 32, 1, "")
    reasons = {p.id: p.skip for p in found if p.skip}
    assert "does not fit 8 ranks" in reasons["vit_base-hybrid_16-n1-prefetch1"]
    assert "parallel.prefetch has no effect under strategy ddp" in reasons["vit_1b-ddp-n2-prefetch0"]
    assert len(reasons) == 2 * (2 + 3)  # hybrid_16 on one node, and ddp with prefetch 0


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ([{"strategy": "hybrid_*"}], {"ddp"}),
        ([{"strategy": ["ddp", "hybrid_2"], "model": "vit_base"}, {"model": "vit_1b"}], {"hybrid_16"}),
        (
            [{"nodes": ">=2", "strategy": "ddp"}, {"nodes": "<64", "strategy": "hybrid_*"}],
            {"ddp", "hybrid_2", "hybrid_16"},
        ),
    ],
)
def test_rules_exclude(tmp_path: Path, rules: list[dict], left: set[str]) -> None:
    found = made(tmp_path / "s.yaml", grid=GRID, exclude=rules)
    assert {point.strategy for point in found} == left
    if len(rules[0]) == 2 and "nodes" in rules[0]:
        assert {(p.strategy, p.nodes) for p in found} == {("ddp", 1), ("hybrid_2", 64), ("hybrid_16", 64)}


def test_strong_scaling_keeps_the_global_batch(tmp_path: Path) -> None:
    grid = {"model": "vit_debug", "strategy": "ddp", "ranks": [1, 2, 4, 3], "global_batch": 64, "micro_batch": 16}
    found = made(tmp_path / "s.yaml", grid=grid, scaling="strong")
    assert [(p.global_batch, p.micro_batch, p.accumulation) for p in found[:3]] == [
        (64, 16, 4),
        (64, 16, 2),
        (64, 16, 1),
    ]
    assert "does not divide over 3 ranks" in found[3].skip
    assert (
        made(tmp_path / "s.yaml", grid={**grid, "micro_batch": None, "ranks": 2}, scaling="strong")[0].micro_batch == 32
    )


def test_tensor_degrees_must_divide_heads_and_ranks(tmp_path: Path) -> None:
    grid = {"model": "vit_tiny", "strategy": "full_shard", "ranks": [2, 4], "tensor": [1, 2, 3]}
    skipped = {p.id: p.skip for p in made(tmp_path / "s.yaml", grid=grid) if p.skip}
    assert "does not divide the 3 heads" in skipped["vit_tiny-full_shard-r4-tp2"]
    assert "does not divide 4 ranks" in skipped["vit_tiny-full_shard-r4-tp3"]


def test_a_point_becomes_a_config_that_the_trainer_takes(tmp_path: Path) -> None:
    loaded = read_study(
        study(tmp_path / "s.yaml", config={"data.shards": "x", "train.epochs": 3, "model.mask_ratio": 0.5}),
        ["train.base_lr=0.01"],
    )
    point = points(loaded, 1)[1]
    node = run_config(loaded, point, "/somewhere/run")
    config = validate(node)
    assert config.train.steps == 10 and config.train.epochs is None and config.train.base_lr == 0.01
    assert config.train.global_batch == 16 and config.train.micro_batch == 8
    assert config.parallel.strategy == "full_shard" and config.model.mask_ratio == 0.5
    assert not config.checkpoint.at_end and config.data.shards == str(Path("x").absolute())
    assert fingerprint(node) == fingerprint(run_config(loaded, point, "/elsewhere"))
    assert fingerprint(node) != fingerprint(run_config(loaded.model_copy(update={"steps": 9}), point, "/somewhere/run"))


def test_patterns_choose_points(tmp_path: Path) -> None:
    found = made(tmp_path / "s.yaml", grid=GRID)
    assert {p.model for p in select(found, ["vit_1b"])} == {"vit_1b"}
    assert {(p.model, p.strategy) for p in select(found, ["*/hybrid_*/64"])} == {
        (m, s) for m in GRID["model"] for s in GRID["strategy"][1:]
    }
    assert [p.id for p in select(found, ["vit_base-ddp-n2"])] == ["vit_base-ddp-n2"]
    with pytest.raises(UserError, match="--only vit_9b fits no point"):
        select(found, ["vit_9b"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stepz": 3}, "unknown key 'stepz': did you mean 'steps'"),
        ({"grid": {"model": "vit_debug", "strateggy": "ddp", "ranks": 1}}, "did you mean 'grid.strategy'"),
        ({"grid": {"model": "vit_debug", "strategy": "hybrid"}}, "'hybrid' is no strategy"),
        ({"grid": {"model": "vit_debug"}}, "one of grid.nodes and grid.ranks"),
        ({"grid": {"model": "vit_debug", "ranks": [1, 1]}}, "a value stands twice"),
        ({"grid": {"model": "vit_debug", "ranks": []}}, "at least one value"),
        ({"exclude": [{"strategie": "ddp"}]}, "did you mean 'strategy'"),
        ({"exclude": [{"ranks": ">1.2.3"}]}, "comparisons are"),
        ({"exclude": [{"strategy": ">2"}]}, "comparisons are"),
        ({"exclude": [{"strategy": "hybrd_2"}]}, "'hybrd_2' is no strategy"),
        ({"exclude": [{"model": {"a": 1}}]}, "takes a value"),
        ({"grid": {"model": "vit_debug", "ranks": True}}, "true and false"),
        ({"grid": {"model": "vit_debug", "ranks": 1, "prefetch": -1}}, "greater than or equal to 0"),
        ({"scaling": "strong"}, "needs grid.global_batch"),
        ({"mode": "guessed"}, "mode"),
        ({"name": "a/b"}, "names the study's folder"),
    ],
)
def test_mistakes_are_one_line_with_the_mend(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words.replace("(", r"\(")) as error:
        read_study(study(tmp_path / "s.yaml", **changes))
    assert "\n" not in str(error.value)


def test_unknown_models_and_studies_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='did you mean "vit_base"'):
        made(tmp_path / "s.yaml", grid={**GRID, "model": "vit_bas"})
    with pytest.raises(UserError, match="did you mean 'weak_scaling'"):
        find("weak_scalling")
    with pytest.raises(UserError, match="leaves no point"):
        made(tmp_path / "s.yaml", exclude=[{"model": "*"}])
    with pytest.raises(UserError, match='did you mean "vit_base"'):
        made(tmp_path / "s.yaml", exclude=[{"model": "vit_bas"}])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"data.imagesize": 64}, "did you mean 'data.image_size'"),
        ({"data.image_size": "large"}, "config data.image_size"),
        ({"parallel.strateg": "ddp"}, "did you mean 'parallel.strategy'"),
        ({"parallel.timeout_s": -1}, "config parallel.timeout_s"),
        ({"train.warmup": 1}, "did you mean 'train.warmup_steps'"),
        ({"optimiser.lr": 1}, "unknown config key 'optimiser'"),
        ({"log": 5}, "config.log is a section"),
    ],
)
@pytest.mark.parametrize("mode", ["measured", "predicted"])
def test_mistakes_in_the_config_are_told_in_every_mode(tmp_path: Path, mode: str, config: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        made(tmp_path / "s.yaml", mode=mode, config=config)


def test_the_config_may_hold_what_only_some_points_take(tmp_path: Path) -> None:
    grid = {"model": "vit_debug", "strategy": "full_shard", "ranks": 4, "tensor": [1, 2]}
    found = made(tmp_path / "s.yaml", grid=grid, config={"parallel.sequence_parallel": False})
    assert [bool(point.skip) for point in found if point.tensor == 2] == [False]


def test_a_study_extends_another_and_lies_over_a_runs_config(tmp_path: Path) -> None:
    study(tmp_path / "parent.yaml")
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump({"train": {"base_lr": 0.5, "global_batch": 7}, "parallel": {"precision": "bf16"}})
    )
    (tmp_path / "child.yaml").write_text(
        yaml.safe_dump(
            {
                "extends": "parent.yaml",
                "name": "child",
                "base": "run.yaml",
                "grid": {"strategy": "ddp"},
                "config": {"train.clip_norm": 1.0},
            }
        )
    )
    loaded = read_study(tmp_path / "child.yaml", ["steps=3", "grid.ranks=[1,2]"], "predicted")
    assert (loaded.name, loaded.title, loaded.steps, loaded.mode) == ("child", "A toy", 3, "predicted")
    found = points(loaded, 1)
    assert [(p.strategy, p.ranks, p.precision) for p in found] == [("ddp", 1, "bf16"), ("ddp", 2, "bf16")]
    config = run_config(loaded, found[1], "run")
    assert (
        config["train"]["base_lr"] == 0.5
        and config["train"]["clip_norm"] == 1.0
        and config["train"]["global_batch"] == 16
    )
    again = tmp_path / "resolved.yaml"
    again.write_text(yaml.safe_dump(loaded.as_dict()))
    assert read_study(again) == loaded


def test_dotted_keys() -> None:
    assert nested({"data.image_size": 3, "data": {"x.y": 1}, "run": {"seed": 2}}) == {
        "data": {"image_size": 3, "x": {"y": 1}},
        "run": {"seed": 2},
    }


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_shipped_studies_are_whole(path: Path) -> None:
    loaded = read_study(path)
    assert loaded.name == path.stem and loaded.question.endswith((")", "?"))
    found = points(loaded, 8)
    assert len({p.id for p in found}) == len(found) and any(not p.skip for p in found)
    if loaded.mode == "measured":
        assert loaded.grid.ranks is not None and max(p.ranks for p in found) <= 4


def test_the_patch_must_divide_the_image(tmp_path: Path) -> None:
    grid = {"model": ["vit_debug", "vit_1b"], "strategy": "ddp", "ranks": 1, "data": "shards"}
    skips = {p.model: p.skip for p in made(tmp_path / "s.yaml", grid=grid)}
    assert not skips["vit_debug"] and "image_size 32 is not a multiple of patch 14" in skips["vit_1b"]
    assert not any(p.skip for p in made(tmp_path / "s.yaml", "data.image_size=112", grid=grid))


def test_images_are_as_large_as_stored_where_nothing_else_is_said(tmp_path: Path) -> None:
    path = study(tmp_path / "s.yaml", config={"data": {"shards": str(tmp_path / "shards")}})
    (tmp_path / "shards" / "manifest.json").write_text('{"images": {"image": {"shape": [3, 64, 64]}}}')
    assert {p.image_size for p in points(read_study(path), 1)} == {64}
    assert {p.image_size for p in points(read_study(path, ["grid.data=synthetic"]), 1)} == {224}


def test_a_base_is_a_path_or_the_name_of_a_shipped_config(tmp_path: Path) -> None:
    configs = Path(__file__).resolve().parents[3] / "jobs" / "configs"
    by_name = read_study(study(tmp_path / "a.yaml", base="mae_debug"))
    assert by_name.config == read_study(study(tmp_path / "b.yaml", base=str(configs / "mae_debug.yaml"))).config
    assert by_name.config["train"]
    with pytest.raises(UserError, match="no config .*mae_debgu"):
        read_study(study(tmp_path / "c.yaml", base="mae_debgu"))
