"""Which tokens are hidden, and what a hidden footprint looks like."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gpna.head_sections import MaskedTask, RegressionTask
from gpna.heads import Answers, Queries, build_head
from gpna.heads.masked import statistics
from gpna.reader import drawn


def test_bands_of_a_footprint_are_hidden_together():
    there = np.ones((6, 30), bool)
    hide = drawn(there, 0.6, torch.rand(6, 10), 3)
    assert (hide.sum(1) == 18).all()
    assert set(hide.reshape(6, 10, 3).sum(2).ravel()) == {0, 3}
    apart = drawn(there, 0.6, torch.rand(6, 30), 1)
    assert (apart.sum(1) == 18).all()
    assert not set(apart.reshape(6, 10, 3).sum(2).ravel()) <= {0, 3}


def test_what_is_not_there_is_not_hidden_and_one_token_stays():
    there = np.zeros((4, 12), bool)
    there[1, 3], there[2, [3, 4]], there[3, ::2] = True, True, True
    hide = drawn(there, 0.9, torch.rand(4, 12), 1)
    assert not (hide & ~there).any()
    assert hide.sum(1).tolist() == [0, 0, 1, 5]


def test_statistics_tell_direction_contrast_and_mean():
    column = torch.arange(8.0).expand(8, 8)
    flat = torch.full((8, 8), 2.0)
    found = statistics(torch.stack([column, column.t(), column + column.t(), column - column.t(), flat]).flatten(1))
    # A ramp along x, along y, along both, against each other: one orientation each (0, 90, 45, 135 degrees), the others nothing.
    nothing = (math.log(0.01) + 3.2) / 0.9
    full = (math.log(1.01) + 3.2) / 0.9
    for row, orientation in ((0, 0), (1, 2)):
        expected = torch.full((4,), nothing)
        expected[orientation] = full
        torch.testing.assert_close(found[row, 2:6], expected, atol=1e-4, rtol=0)
    assert found[2, 2:6].argmax() == 1 and found[3, 2:6].argmax() == 3
    torch.testing.assert_close(found[:, 0], torch.tensor([3.5, 3.5, 7.0, 0.0, 2.0]))
    assert math.isclose(found[0, 1], (math.log(column.std().item() + 0.03) + 1.5) / 0.9, rel_tol=1e-5)
    assert math.isclose(found[4, 1], (math.log(0.03) + 1.5) / 0.9, rel_tol=1e-5)
    assert (found[:4, 6] - (math.log(0.01) + 1.4) / 0.85).abs().max() < 1e-3  # ramps have no curvature


def test_texture_adds_to_the_loss_and_not_to_the_prediction():
    torch.manual_seed(0)
    asked, values = torch.randn(2, 5, 6), torch.randn(2, 5, 16)
    known = torch.ones(2, 5, 16, dtype=torch.bool)
    known[0, 0, 3] = False  # a footprint with a gap has no statistics
    outputs = [torch.randn(2, 5, 23)]

    def head(texture: float):
        return build_head(MaskedTask(source="*", head="masked", texture=texture), 8, 6, [16, 1])

    plain = head(0.0).loss([outputs[0][..., :16]], [Answers(values, known)])
    both = head(0.5).loss(outputs, [Answers(values, known)])
    looks = (outputs[0][..., 16:] - statistics(values)).square().mean(-1)
    looks[0, 0] = 0
    torch.testing.assert_close(both - plain, 0.5 * looks.mean(1))
    module = head(0.5)
    assert module.predict(outputs)[0].shape == (2, 5, 16)
    torch.nn.init.normal_(next(module.parameters()))
    found = module(torch.randn(2, 3, 8), [Queries(asked, 16), Queries(asked, 1)])
    assert [one.shape[-1] for one in found] == [23, 1]
    assert [one.shape[-1] for one in module.predict(found)] == [16, 1]


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_a_settled_regression_validates_again(loss):
    task = RegressionTask(head="regression", source="a", target="b", loss=loss)
    assert RegressionTask.model_validate(task.model_dump()) == task
