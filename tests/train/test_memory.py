"""The closed form of memory: its parts by hand, and its trends. `python benchmarks/memory_prediction.py` compares it with measurements
and with PyTorch's tracker.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from frontier.config.load import load_config
from frontier.launch.mesh import ParallelDims
from frontier.parallel.footprint import ROOT, Phase, count, padded, walk
from frontier.train.memory import MemoryCase, on_one_rank, phases, predict, shapes
from frontier.train.plan import resolve

BIG = ("model.preset=vit_small", "data.image_size=224", "train.global_batch=32")


def plan(toy: Path, *overrides: str, ranks: int = 4):
    return resolve(load_config(toy, [*BIG, *overrides]), ranks)


def test_states_by_hand(toy: Path) -> None:
    p = plan(toy).parameters
    found, _ = predict(plan(toy))
    assert found["parameters"] == pytest.approx(4 * p / 4 / 2**30)
    assert found["optimizer"] == pytest.approx(8 * p / 4 / 2**30)
    zero, _ = predict(plan(toy, "parallel.strategy=zero_2"))
    assert zero["parameters"] == pytest.approx((4 * p / 4 + 4 * p) / 2**30)
    moved, host = predict(plan(toy, "parallel.offload=true"))
    assert "optimizer" not in moved and sum(host.values()) == pytest.approx(16 * p / 4 / 2**30)
    assert found["total"] >= found["peak"]


def kept_and_working(toy: Path, *overrides: str, ranks: int = 4) -> tuple[float, float]:
    """(bytes alive as the backward pass begins, the most that a unit's backward pass adds)."""
    found = phases(MemoryCase.of_plan(plan(toy, *overrides, ranks=ranks)))
    first = next(p for p in found if p.kind == "backward" and p.unit != ROOT)
    return first.start, max(p.peak - p.start for p in found if p.kind == "backward")


def test_activations_by_hand(toy: Path) -> None:
    """Per block and token: norm in and out, qkv 3, attention out, x, norm out, hidden in and out 4 + 4: 16 widths."""
    c = plan(toy).model.config
    tokens, everything = 1 + c.kept, 1 + c.patches
    encoder = 16 * c.encoder.depth * tokens * c.encoder.width
    decoder = 16 * c.decoder.depth * everything * c.decoder.width
    assert kept_and_working(toy)[0] == pytest.approx(4 * 8 * (encoder + decoder), rel=0.08)


def test_checkpointing_and_tensor_parallelism_lower_it(toy: Path) -> None:
    none, selective, full = (
        kept_and_working(toy, f"parallel.activation_checkpointing={kind}") for kind in ("none", "selective", "full")
    )
    assert full[0] < selective[0] < none[0]
    assert none[1] < selective[1] < full[1]
    assert full[0] < 0.2 * none[0]
    whole, cut = (
        shapes(on_one_rank(MemoryCase.of_plan(plan(toy, f"parallel.tensor={tensor}"))))[0] for tensor in (1, 2)
    )
    assert 2 * sum(map(count, cut)) == pytest.approx(sum(map(count, whole)), rel=0.01)
    alone = predict(plan(toy, "parallel.tensor=2", "parallel.sequence_parallel=false", "train.global_batch=16"))[0]
    assert alone["activations"] < predict(plan(toy))[0]["activations"]


UNITS = [[(8, 4)], [(8, 4)]]
STEP = [
    Phase("forward", ROOT, 0, 10), Phase("forward", 0, 0, 100), Phase("forward", 1, 100, 200), Phase("forward", ROOT, 200, 200),
    Phase("backward", ROOT, 200, 200), Phase("backward", 1, 200, 328), Phase("reduce", 1, 228, 228),
    Phase("backward", 0, 100, 228), Phase("reduce", 0, 128, 128), Phase("backward", ROOT, 0, 16), Phase("reduce", ROOT, 16, 16),
]  # fmt: skip
"""Two units of 32 parameters (128 bytes) and a root of 4: 100 bytes kept a unit, and its gradient in the backward pass."""


def walked(strategy: str, ranks: int, **more) -> dict[str, float]:
    return walk(STEP, UNITS, [(4,)], ParallelDims.from_strategy(strategy, ranks), "fp32", **more)[0]


def test_walk_by_hand() -> None:
    states = 3 * (64 + 4) * 4 / 4
    # Backward pass of unit 1: itself and unit 0 gathered, the root whole.
    assert walked("full_shard", 4)["peak"] == states + 328 + 128 + 128 + 16
    # Nothing in advance: backward pass of unit 0, beside the buffer in which unit 1 is reduced and what came of it.
    assert walked("full_shard", 4, prefetch=0)["peak"] == states + 228 + 128 + 16 + 128 + 32
    # All weights stay: both units, the root.
    assert walked("shard_grad_op", 4)["peak"] == states + 328 + 2 * 128 + 16
    # In the second micro-batch the gradients of the first lie whole on every rank.
    assert walked("full_shard", 4, accumulation=2)["peak"] == states + 328 + 2 * 128 + 16 + 68 * 4
    # Each of 16 ranks holds a row of 8, half of them padding; the root's 4 numbers take 16.
    assert walked("full_shard", 16)["parameters"] == (16 * 4 * 2 + 16) / 16 * 4
    # One rank: no copies of anything. The peak is the backward pass of unit 0, where the gradient of unit 1 lies.
    alone = 3 * (64 + 4) * 4
    assert walked("full_shard", 1)["peak"] == alone + 228 + 128
    assert walked("full_shard", 1)["gradients"] == 68 * 4 and walked("full_shard", 1)["gathered"] == 0
    # In the second micro-batch the gradients of the first are there.
    assert walked("full_shard", 1, accumulation=2)["peak"] == alone + 328 + 68 * 4
    # bf16: working copies; gradients gather in bf16, at the end beside their float32 form, with the root's 16 in the phase itself.
    mixed = walk(STEP, UNITS, [(4,)], ParallelDims.from_strategy("full_shard", 1), "bf16")[0]
    assert mixed["gathered"] == 68 * 2 and mixed["gradients"] == 68 * 4
    assert mixed["peak"] == alone + 68 * 2 + max(328, 228 + 64, 16 + 2 * 64 + 68 * 4)
    assert walked("ddp", 4)["peak"] == 4 * 68 * 4 + 328


def test_padding() -> None:
    assert padded([(5, 3), (2,)], 4) == 8 * 3 + 4
    assert padded([(5, 3)], 1) == count([(5, 3)]) == 15
