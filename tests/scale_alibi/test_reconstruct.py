"""Predictions put back into images: exact where the prediction is the truth, and what is counted on hidden patches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from frontier.models.vit import patchify
from scale_alibi.decoder import known_patches, targets
from scale_alibi.reconstruct import predict, reconstruct, restore, squared_errors
from tests.scale_alibi.sizes import holes, inputs, small


@pytest.mark.parametrize("scope", ["modality", "joint"])
def test_the_truth_reconstructs_the_images(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = small(norm_scope=scope), inputs(3)
    for name, offset in (("radar", -3.0), ("lores", 0.5), ("hires", 8.0)):
        given["images"][name] = 2 * given["images"][name] + offset
    assert model.decoder is not None
    patches = {name: patchify(images, 8) for name, images in given["images"].items()}
    true = targets(model.config, patches)
    monkeypatch.setattr(model.decoder, "forward", lambda joint, order: true)
    found, hidden = reconstruct(model, **given)
    for name, images in given["images"].items():
        torch.testing.assert_close(found[name], images, atol=1e-5, rtol=1e-5)
        assert hidden[name].sum(1).tolist() == [hidden[name].shape[1] - model.config.kept(name)] * 3


@pytest.mark.parametrize("scope", ["modality", "joint"])
def test_a_hidden_patch_by_hand(scope: str) -> None:
    """A hidden patch of the finest sensor: normalised prediction times deviation plus mean, of itself or of its cell in all sensors."""
    model, given = small(norm_scope=scope), inputs(2)
    with torch.no_grad():
        found, hidden = reconstruct(model, **given)
        guess = predict(model, model.encode_masked(**given))["hires"]
    images = {name: one[1] for name, one in given["images"].items()}
    grid = 8
    place = int(hidden["hires"][1].nonzero()[0, 0])
    row, column = divmod(place, grid)

    def cut(image: Tensor, row: int, column: int, side: int) -> Tensor:
        return image[:, row * side : (row + 1) * side, column * side : (column + 1) * side]

    own = cut(images["hires"], row, column, 8)
    values = own.flatten()
    if scope == "joint":
        coarse = [cut(images[name], row // 2, column // 2, 8).flatten() for name in ("radar", "lores")]
        values = torch.cat([*coarse, cut(images["hires"], row // 2, column // 2, 16).flatten()])
    expected = guess[1, place].view(3, 8, 8) * values.std() + values.mean()
    torch.testing.assert_close(cut(found["hires"][1], row, column, 8), expected, atol=1e-5, rtol=1e-4)
    shown = int((~hidden["hires"][1]).nonzero()[0, 0])
    row, column = divmod(shown, grid)
    assert torch.equal(cut(found["hires"][1], row, column, 8), cut(images["hires"], row, column, 8))


@pytest.mark.parametrize("scope", ["modality", "joint"])
def test_restoring_is_the_inverse_of_the_targets(scope: str) -> None:
    config = small(norm_scope=scope).config
    patches = {name: 5 * patchify(images, 8) - 2 for name, images in inputs(2)["images"].items()}
    back = restore(config, patches, targets(config, patches))
    for name, values in patches.items():
        torch.testing.assert_close(back[name], values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scope", ["modality", "joint"])
def test_restoring_where_values_are_missing(scope: str) -> None:
    """Those that are there come back, whatever the missing ones hold."""
    given = inputs(3)
    config, known = small(norm_scope=scope).config, known_patches(small().config, given["images"], holes(given))
    patches = {name: 5 * patchify(images, 8) - 2 for name, images in given["images"].items()}
    for name, there in known.items():
        patches[name] = torch.where(there, patches[name], 1e3)
    back = restore(config, patches, targets(config, patches, known), known)
    for name, values in patches.items():
        there = known.get(name, torch.ones_like(values, dtype=torch.bool))
        torch.testing.assert_close(back[name][there], values[there], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("missing", [False, True])
def test_errors_are_those_of_the_loss_and_of_a_plain_mean(missing: bool) -> None:
    model, given = small(), inputs(3)
    known = holes(given) if missing else {}
    with torch.no_grad():
        terms = model(**given, known=known)
        masked = model.encode_masked(**given)
        guess = predict(model, masked)
    there = known_patches(model.config, given["images"], known)
    wanted = targets(model.config, {name: patchify(images, 8) for name, images in given["images"].items()}, there)
    for name in model.config.sensors:
        counted = there.get(name)
        ours, plain = squared_errors(model.config, masked.order[name], name, guess[name], wanted[name], counted)
        assert float(ours.mean()) == pytest.approx(float(terms[f"loss_{name}"]), rel=1e-5)
        counted = torch.ones_like(wanted[name], dtype=torch.bool) if counted is None else counted
        for guessed, found in ((guess[name], ours), (None, plain)):
            expected = [
                by_hand(given["noise"][name][i], wanted[name][i], counted[i], model.config.kept(name), guessed, i)
                for i in range(3)
            ]
            assert found.tolist() == pytest.approx(expected, rel=1e-5)


def by_hand(noise: Tensor, target: Tensor, counted: Tensor, kept: int, guess: Tensor | None, sample: int) -> float:
    """Value by value; guess None: the mean, at each place within a patch, of what is there of the visible patches."""
    order, total, count = noise.argsort().tolist(), 0.0, 0
    for place in range(target.shape[1]):
        seen = [float(target[i, place]) for i in order[:kept] if counted[i, place]]
        mean = sum(seen) / len(seen) if seen else 0.0
        for i in order[kept:]:
            if counted[i, place]:
                value = mean if guess is None else float(guess[sample, i, place])
                total, count = total + (value - float(target[i, place])) ** 2, count + 1
    return total / count if count else 0.0
