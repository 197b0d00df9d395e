"""The closed form of memory against FSDP2 itself on fake ranks, watched by PyTorch's tracker: two counts that share no code."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from frontier.config.schema import ParallelConfig
from frontier.errors import UserError
from frontier.models.mae_family import FAMILY
from frontier.models.registry import ImageShape
from frontier.train.memory import MemoryCase, memory_of
from frontier_profiling.predict.tracker import TrackedCase, track

THIN = {"depth": 4, "decoder": {"width": 192, "depth": 2, "heads": 6}}


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "fp32", "activation_checkpointing": "none"},
        {"strategy": "hybrid_8", "activation_checkpointing": "full", "world_size": 128},
        {"strategy": "shard_grad_op", "activation_checkpointing": "selective"},
        {"strategy": "no_shard", "activation_checkpointing": "none", "accumulation": 2},
    ],
)
def test_closed_form_agrees(options: dict[str, Any]) -> None:
    case = TrackedCase(**{"model": "vit_small", "world_size": 16, "micro_batch": 8, "overrides": THIN, **options})
    names = ("strategy", "precision", "activation_checkpointing", "prefetch")
    parallel = ParallelConfig(**{name: getattr(case, name) for name in names})
    section = {"family": "mae", "preset": case.model, "mask_ratio": case.mask_ratio, **THIN}
    closed, _ = memory_of(
        MemoryCase.of_family(
            FAMILY,
            section,
            ImageShape(case.image_size, case.channels),
            parallel,
            case.world_size,
            case.micro_batch,
            case.accumulation,
        )
    )
    found = track(case)
    assert closed["peak"] == pytest.approx(found["peak"], rel=0.05)
    for name in ("parameters", "optimizer"):
        assert closed[name] == pytest.approx(found[name], rel=1e-3)
    assert sum(v for k, v in found.items() if k not in ("peak", "seconds")) == pytest.approx(found["peak"])


def test_what_it_cannot_follow_is_said() -> None:
    with pytest.raises(UserError, match="ddp"):
        track(TrackedCase("vit_debug", 4, "ddp"))
    with pytest.raises(UserError, match="vit_tny"):
        track(TrackedCase("vit_tny", 4))
    command = [sys.executable, "-m", "frontier_profiling.predict.tracker", "--model", "vit_debug", "--image-size", "32"]
    done = subprocess.run([*command, "--world-size", "4", "--json"], capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["peak"] > 0
