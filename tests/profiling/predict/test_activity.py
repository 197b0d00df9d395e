"""Phases of a step by formula against those that a pass on meta finds: their peaks, and the parameters they speak of."""

from __future__ import annotations

import pytest

from frontier.config.schema import ParallelConfig
from frontier.models.mae_family import FAMILY
from frontier.models.registry import ImageShape
from frontier.parallel.footprint import walk
from frontier.train.memory import MemoryCase, memory_of, shapes
from frontier_profiling.predict.activity import mae_blocks, mae_phases, mae_root


@pytest.mark.parametrize(
    ("section", "strategy", "precision", "checkpointing"),
    [
        ({"preset": "vit_small"}, "full_shard", "fp32", "none"),
        ({"preset": "vit_base"}, "hybrid_8", "bf16", "full"),
        ({"preset": "vit_base", "mlp": "gated"}, "shard_grad_op", "bf16", "selective"),
        ({"preset": "vit_base", "mlp": "gated"}, "full_shard", "bf16", "full"),
        ({"preset": "vit_huge", "depth": 8}, "no_shard", "bf16", "none"),
    ],
)
def test_formula_and_trace_agree(section: dict[str, object], strategy: str, precision: str, checkpointing: str) -> None:
    parallel = ParallelConfig(strategy=strategy, precision=precision, activation_checkpointing=checkpointing)
    case = MemoryCase.of_family(FAMILY, section, ImageShape(224, 3), parallel, 64, 32)
    maths = case.model.config
    units = [block.shapes() for block in mae_blocks(maths.encoder, maths.decoder, maths.patches, maths.kept)]
    root = mae_root(maths.encoder, maths.decoder, maths.patch_values)
    traced_units, traced_root = shapes(case.model)
    assert [sorted(unit) for unit in units] == [sorted(unit) for unit in traced_units]
    assert sorted(root) == sorted(traced_root)
    sizes = (maths.encoder, maths.decoder, maths.patches, maths.kept, maths.patch_values)
    found, _ = walk(mae_phases(*sizes, 32, precision, checkpointing), units, root, case.dims, precision)
    assert found["peak"] / 2**30 == pytest.approx(memory_of(case)[0]["peak"], rel=0.03)
