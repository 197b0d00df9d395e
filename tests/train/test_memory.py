"""The closed form of memory: its parts by hand, and its trends. `python benchmarks/engine.py memory` compares it with a measurement."""

from __future__ import annotations

from pathlib import Path

import pytest

from frontier.config.load import load_config
from frontier.train.memory import MemoryCase, activations, held_parameters, predict
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


def test_activations_by_hand(toy: Path) -> None:
    """Per block and token: norm in and out, qkv 3, attention out, x, norm out, hidden in and out 4 + 4: 16 widths."""
    resolved = plan(toy)
    kept, _ = activations(MemoryCase.of_plan(resolved))
    c = resolved.model.config
    tokens, everything = 1 + c.kept, 1 + c.patches
    encoder = 16 * c.encoder.depth * tokens * c.encoder.width
    decoder = 16 * c.decoder.depth * everything * c.decoder.width
    assert kept == pytest.approx(4 * 8 * (encoder + decoder), rel=0.08)


def test_checkpointing_and_tensor_parallelism_lower_it(toy: Path) -> None:
    none, selective, full = (
        activations(MemoryCase.of_plan(plan(toy, f"parallel.activation_checkpointing={kind}")))
        for kind in ("none", "selective", "full")
    )
    assert full[0] < selective[0] < none[0]
    assert none[1] == 0 < selective[1] < full[1]
    assert full[0] < 0.2 * none[0]
    whole, cut = (held_parameters(plan(toy).model, tensor) for tensor in (1, 2))
    assert cut[0] < 0.6 * whole[0]
    assert 2 * sum(cut[1]) == pytest.approx(sum(whole[1]), rel=0.01)
    alone = predict(plan(toy, "parallel.tensor=2", "parallel.sequence_parallel=false", "train.global_batch=16"))[0]
    assert alone["activations"] < predict(plan(toy))[0]["activations"]
