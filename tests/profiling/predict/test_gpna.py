"""The predictor on gpna runs: memory against a pass on meta, products, and `frontier plan --config`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from frontier.config.schema import ParallelConfig
from frontier.errors import UserError
from frontier.models.registry import family
from frontier.train.memory import MemoryCase, memory_of
from frontier_profiling.predict.case import Case
from frontier_profiling.predict.command import main
from frontier_profiling.predict.memory import own_memory
from frontier_profiling.predict.system import load_system
from gpna.model import SourceShape
from gpna.sensors import InputSpec, bands_of
from gpna.workload import workload
from tests.gpna.runs import image_set, run_config, series_set

SYSTEM = load_system("frontier")


def spec(axes: str, shape: tuple[int, ...], footprint: int) -> InputSpec:
    bands = bands_of({"bands": [{"name": f"v{i}x"} for i in range(shape[axes.index("C")])]}, where="x")
    return InputSpec(axes, shape, bands, 10.0, footprint)


S2, S1 = spec("CHW", (12, 128, 128), 8), spec("CHW", (2, 128, 128), 8)
SERIES, CUBE, ODD = spec("TC", (24, 10), 1), spec("TCHW", (6, 4, 32, 32), 8), spec("CHW", (3, 60, 60), 4)
SCENE = {"head": "classification", "source": "a", "target": "y", "classes": 10, "labelled": 1.0}
LAND = {"head": "segmentation", "source": "a", "target": "m", "classes": 10, "labelled": 1.0, "size": 128}
HIDE = {"ratio": 0.75, "queries": 256}
MIX = {"a": SourceShape({"x": S2, "y": S1}, 8), "b": SourceShape({"z": SERIES}, 4), "c": SourceShape({"w": CUBE}, 4)}


def one(*inputs: InputSpec) -> dict[str, SourceShape]:
    return {"a": SourceShape({f"x{i}": given for i, given in enumerate(inputs)}, 8)}


RUNS: dict[str, tuple[str, dict[str, SourceShape], dict[str, Any], dict[str, Any] | None]] = {
    "one task": ("gpna_base", one(S2), {"t": SCENE}, None),
    "hidden tokens": ("gpna_base", one(S2), {}, HIDE),
    "two inputs": ("gpna_small", one(S2, S1), {"t": SCENE}, None),
    "a mix, hidden": ("gpna_1b", MIX, {}, HIDE),
    "maps in chunks": ("gpna_small", one(S2), {"t": LAND}, None),
    "maps, some pixels": ("gpna_small", one(S2), {"t": LAND | {"train_pixels": 1024}}, None),
    "dates": ("gpna_base", one(CUBE), {"t": SCENE}, HIDE),
    "small footprints": ("gpna_small", one(ODD), {"t": SCENE}, None),
    "series": ("gpna_base", one(SERIES), {"t": SCENE}, None),
    "billions": ("gpna_3b", one(S2), {"t": SCENE, "m": LAND}, None),
}


def both(run: str, micro_batch: int, **parallel: Any) -> tuple[dict[str, float], dict[str, float]]:
    """GiB of a rank of eight: (of the pass on meta, of the closed form)."""
    preset, sources, tasks, masked = RUNS[run]
    section = {"family": "gpna", "preset": preset, "tasks": tasks, "masked": masked}
    settings = {"strategy": "full_shard", "precision": "bf16", "activation_checkpointing": "full", **parallel}
    real = MemoryCase.of_family(family("gpna"), section, sources, ParallelConfig(**settings), 8, micro_batch)
    case = Case(preset, SYSTEM, micro_batch=micro_batch, workload="gpna", given=workload(real.model), **settings)  # type: ignore[arg-type]
    return memory_of(real)[0], own_memory(case).parts


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_the_peak_is_that_of_a_pass_on_meta(run: str, checkpointing: str) -> None:
    counted, closed = both(run, 8, activation_checkpointing=checkpointing)
    assert closed["total_allocated"] == pytest.approx(counted["peak"], rel=0.08)
    for part in ("parameters", "gradients", "optimizer", "gathered", "buffers"):
        assert closed[part] == pytest.approx(counted[part], rel=0.01, abs=1e-3), part


@pytest.mark.parametrize("strategy", ["ddp", "hybrid_4", "zero_3"])
def test_other_strategies_and_precision(strategy: str) -> None:
    counted, closed = both("a mix, hidden", 4, strategy=strategy, precision="fp32", activation_checkpointing="none")
    assert closed["total_allocated"] == pytest.approx(counted["peak"], rel=0.08)


def test_products_are_those_of_the_family() -> None:
    preset, sources, tasks, masked = RUNS["a mix, hidden"]
    chosen = family("gpna")
    import torch

    with torch.device("meta"):
        module = chosen.build(chosen.config(family="gpna", preset=preset, tasks=tasks, masked=masked), sources)
    work = workload(module)  # type: ignore[arg-type]
    assert 3 * work.flops == pytest.approx(chosen.flops(module), rel=1e-9)
    assert work.parameters == sum(p.numel() for p in module.parameters())
    (stack,) = work.stacks
    assert (stack.blocks, stack.tokens) == (len(module.shard_units()), 256)  # type: ignore[operator]
    assert work.outside_flops == work.flops - stack.blocks * stack.block_flops
    assert sum(math.prod(shape) for shape in work.root_shapes) == work.root_parameters


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run on images and series."""
    folder = tmp_path_factory.mktemp("plan")
    parallel = {"strategy": "hybrid_2", "precision": "bf16", "activation_checkpointing": "full"}
    return run_config(folder, image_set(folder / "images"), series_set(folder / "series"), parallel=parallel)


def plan(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_from_the_config_of_a_run(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = plan(capsys, "--config", config, "--nodes", "1")["rows"]
    assert (row["source"], row["workload"], row["model"], row["strategy"]) == (
        "predicted",
        "gpna",
        "gpna_debug",
        "hybrid_2",
    )
    assert (row["tokens"], row["image_size"], row["global_batch"], row["samples"]) == (16, 0, 16, 48)
    assert row["fits"] and row["images_per_s"] > 0 and row["node_hours"] > 0 and row["memory_gib"]["activations"] > 0
    assert any("no published point was fitted" in note for note in row["notes"])
    # 16 samples on 8 ranks: each source's 8 do.
    assert not any("refused" in note for note in row["notes"])
    (row,) = plan(capsys, "--config", config, "--nodes", "2", "--strategy", "full_shard")["rows"]
    assert any("refused as it is: data.sources." in note and "16 data ranks" in note for note in row["notes"])


def test_auto_and_the_words_of_the_table(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "--config", config, "--nodes", "1", "--strategy", "auto")
    assert {"hybrid_1", "hybrid_2", "full_shard"} <= {row["strategy"] for row in found["rows"]}
    assert main(["--config", str(config), "--nodes", "1", "--strategy", "auto"]) == 0
    said = capsys.readouterr().out
    assert "samples/s" in said and "gpna on the config's inputs" in said and "image" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "gpna_base"], "--model says nothing of"),
        (["--image-size", "64"], "--image-size says nothing of"),
        (["--as-published"], "--as-published says nothing of"),
        (["--check-memory"], "--check-memory says nothing of"),
    ],
)
def test_flags_of_images_are_refused(config: Path, words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        main(["--config", str(config), *words])


def test_a_preset_alone_says_too_little(config: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="depends on its inputs and tasks: give the --config"):
        main(["--model", "gpna_3b"])
    away = yaml.safe_load(config.read_text())
    away["data"]["sources"]["scenes"]["shards"] = str(tmp_path / "gone")
    (tmp_path / "away.yaml").write_text(yaml.safe_dump(away))
    with pytest.raises(UserError, match="gone"):
        main(["--config", str(tmp_path / "away.yaml")])
