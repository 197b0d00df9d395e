"""Rates are of the right amount of work: bytes and operations counted independently."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from frontier.doctor import rates, system

CPU = torch.device("cpu")


def test_gradients_are_those_of_input_and_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    inner = torch.autograd.grad

    def spy(outputs, inputs, *more):
        asked.append([tuple(t.shape) for t in inputs])
        return inner(outputs, inputs, *more)

    monkeypatch.setattr(torch.autograd, "grad", spy)
    done = rates.both(nn.Linear(3, 5), torch.randn(2, 3), repeats=1)
    assert done.forward_s > 0 and done.backward_s > 0
    assert asked[0] == [(2, 3), (5, 3), (5,)]


def test_short_calls_are_timed_in_bundles() -> None:
    calls = 0

    def action() -> None:
        nonlocal calls
        calls += 1

    taken = rates.median_s(action, CPU, repeats=2)
    assert 0 < taken < 1e-3 and calls > 1000


def test_elementwise_bytes() -> None:
    forward, backward = rates.elementwise_bytes(10, 20, torch.bfloat16)
    assert (forward, backward) == (7 * 400, 9 * 400)


def test_summaries_weigh_by_work_and_time() -> None:
    # 2 * 8 * 4 * 4 = 256 operations forward at 1e-12 TFLOP/s and twice as many backward at 2e-12: as long again.
    found = {"product.fp32.8x4x4.forward": 1e-12, "product.fp32.8x4x4.backward": 2e-12}
    assert system.typical(found, "fp32") == pytest.approx(1.5e-12)
    assert system.best(found, "fp32") == 2e-12
    even = {"elementwise.fp32.forward": 3.0, "elementwise.fp32.backward": 3.0}
    assert system.elementwise(even, "fp32") == pytest.approx(3.0)
