"""The predictor on Scale-ALiBi runs: memory against a pass on meta, parameters, what accumulation adds, and `frontier plan --config`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from frontier.config.schema import ParallelConfig
from frontier.errors import UserError
from frontier.models.registry import family
from frontier.train.memory import MemoryCase, memory_of
from frontier_profiling.predict.case import Case
from frontier_profiling.predict.command import main
from frontier_profiling.predict.compute import compute
from frontier_profiling.predict.constants import defaults
from frontier_profiling.predict.memory import own_memory
from frontier_profiling.predict.predict import predict
from frontier_profiling.predict.step import moved
from frontier_profiling.predict.system import load_system
from scale_alibi.counting import embedding_flops, hardware_flops
from scale_alibi.model import ScaleALiBi
from scale_alibi.workload import workload

SYSTEM = load_system("frontier")
Shapes = dict[str, tuple[int, int]]
PAPER: Shapes = {"radar": (2, 256), "lores": (3, 256), "hires": (3, 512)}
CROMA: Shapes = {"radar": (2, 120), "optical": (12, 120)}
STEEP: Shapes = {"a": (12, 64), "b": (4, 64), "c": (3, 256)}
RUNS: dict[str, tuple[str, Shapes, int, dict[str, Any]]] = {
    "the paper's": ("scale_alibi_base", PAPER, 4, {}),
    "two sensors": ("scale_alibi_small", CROMA, 8, {"mask_ratio": 0.75}),
    "four times as fine": ("scale_alibi_tiny", STEEP, 8, {"norm_scope": "joint"}),
    "the squared distance": ("scale_alibi_base", CROMA, 4, {"position": "gaussian"}),
    "contrast alone": ("scale_alibi_base", CROMA, 4, {"weights": {"reconstruction": 0.0}}),
    "reconstruction alone": ("scale_alibi_base", CROMA, 4, {"weights": {"contrastive": 0.0}}),
    "billions": ("scale_alibi_1b", CROMA, 2, {}),
}


def section(preset: str, sensors: Shapes, model: dict[str, Any]) -> dict[str, Any]:
    return {"preset": preset, "sensors": {name: {"column": name} for name in sensors}, **model}


def both(run: str, accumulation: int = 1, **parallel: Any) -> tuple[dict[str, float], dict[str, float]]:
    """GiB of a rank of eight: (of the pass on meta, of the closed form)."""
    preset, sensors, micro, model = RUNS[run]
    settings = {"strategy": "full_shard", "precision": "bf16", "activation_checkpointing": "full", **parallel}
    real = MemoryCase.of_family(
        family("scale_alibi"), section(preset, sensors, model), sensors, ParallelConfig(**settings), 8, micro, accumulation
    )  # fmt: skip
    work = workload(real.model)  # type: ignore[arg-type]
    case = Case(
        preset, SYSTEM, micro_batch=micro, accumulation=accumulation, workload="scale_alibi", given=work, **settings
    )
    return memory_of(real)[0], own_memory(case).parts


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_the_peak_is_that_of_a_pass_on_meta(run: str, checkpointing: str) -> None:
    counted, closed = both(run, activation_checkpointing=checkpointing)
    assert closed["total_allocated"] == pytest.approx(counted["peak"], rel=0.03)
    for part in ("parameters", "gradients", "optimizer", "gathered", "buffers"):
        assert closed[part] == pytest.approx(counted[part], rel=0.01, abs=1e-3), part


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "ddp", "precision": "fp32", "activation_checkpointing": "none"},
        {"strategy": "hybrid_4", "activation_checkpointing": "selective"},
        {"strategy": "zero_3"},
        {"tensor": 2},
        {"accumulation": 4},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
def test_other_settings(changes: dict[str, Any]) -> None:
    counted, closed = both("two sensors", **changes)
    assert closed["total_allocated"] == pytest.approx(counted["peak"], rel=0.03)


def module_of(run: str) -> ScaleALiBi:
    preset, sensors, _, model = RUNS[run]
    chosen = family("scale_alibi")
    with torch.device("meta"):
        return chosen.build(chosen.config(**section(preset, sensors, model)), sensors)  # type: ignore[return-value]


def case_of(run: str, **changes: Any) -> Case:
    return Case(
        RUNS[run][0],
        SYSTEM,
        micro_batch=RUNS[run][2],
        workload="scale_alibi",
        given=workload(module_of(run)),
        **changes,
    )


@pytest.mark.parametrize("run", RUNS)
def test_parameters_and_products_are_those_of_the_family(run: str) -> None:
    module = module_of(run)
    work, units = workload(module), module.shard_units()
    assert work.parameters == sum(p.numel() for p in module.parameters())
    assert sum(math.prod(shape) for shape in work.root_shapes) == work.root_parameters
    stacks = [stack for stack in work.stacks for _ in range(stack.blocks)]
    assert len(stacks) == len(units)
    for stack, unit in zip(stacks, units, strict=True):
        assert sorted(stack.shapes(1)) == sorted(tuple(p.shape) for p in unit.parameters())
        assert stack.block_parameters == sum(p.numel() for p in unit.parameters())
    assert 3 * work.flops == family("scale_alibi").flops(module)


def test_accumulation_runs_the_encoders_once_more() -> None:
    """Products and gathers of the pass that compares samples; HFU tells it, MFU does not."""
    settings = {"nodes": 2, "strategy": "full_shard", "activation_checkpointing": "none"}
    one = case_of("the paper's", **settings)
    four = one.but(accumulation=4)
    constants = defaults()
    assert four.work.flops == one.work.flops
    config = module_of("the paper's").config
    more = embedding_flops(config) / (3 * one.work.flops)
    slower = compute(four, constants).products / (4 * compute(one, constants).products)
    assert slower == pytest.approx(1 + more, rel=0.02)
    encoders = sum(stack.blocks for stack in four.work.stacks[:3])
    gathered = moved(four, constants).gathers / (4 * moved(one, constants).gathers)
    assert 1.1 < gathered < 1 + 0.6 * encoders / four.work.blocks
    row = predict(four)
    assert row.hfu / row.mfu == pytest.approx(1 + more)  # type: ignore[operator]
    exact = hardware_flops(config, "none", 4) / hardware_flops(config, "none", 1)
    assert row.hfu / row.mfu == pytest.approx(exact, rel=0.01)  # type: ignore[operator]
    alone = case_of("reconstruction alone", **settings).but(accumulation=4)
    assert compute(alone, constants).products == pytest.approx(
        4 * compute(alone.but(accumulation=1), constants).products
    )


def test_a_preset_alone_says_too_little() -> None:
    with pytest.raises(UserError, match="depends on its sensors: give the --config"):
        main(["--model", "scale_alibi_base"])
