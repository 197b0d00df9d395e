"""The model against a plain reading of the paper's figure: places, masks, chain of cross-encoders, targets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import scale_alibi.attention
import scale_alibi.model
from frontier.errors import UserError
from frontier.models.layers import gather_rows
from frontier.models.vit import patchify
from scale_alibi.attention import check_backend
from scale_alibi.config import Position
from scale_alibi.decoder import from_cells, known_patches, targets, to_cells
from scale_alibi.geometry import slopes
from scale_alibi.layers import Block, CrossBlock, kept_slopes
from tests.scale_alibi.sizes import SMALL, holes, inputs, small


def table_attention(q: Tensor, k: Tensor, v: Tensor, q_at: Tensor, k_at: Tensor, heads: int) -> Tensor:
    """[B, N, D] and [B, M, D] by a table of distances a head, head by head."""
    out, dim = [], q.shape[-1] // heads
    distance = torch.linalg.vector_norm(q_at[:, :, None] - k_at[:, None], dim=-1)
    for h, slope in enumerate(slopes(heads).tolist()):
        part = slice(h * dim, (h + 1) * dim)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / dim**0.5 - slope * distance
        out.append(scores.softmax(-1) @ v[..., part])
    return torch.cat(out, -1)


def test_a_cross_block_step_by_step() -> None:
    torch.manual_seed(0)
    block = CrossBlock(32, 4, 1, "auto")
    x, context = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    at, context_at = torch.rand(2, 5, 2) * 9, torch.rand(2, 7, 2) * 9

    def apart(projected: Tensor, count: int) -> list[Tensor]:
        return [t.flatten(2) for t in projected.unflatten(-1, (4, count, 8)).unbind(-2)]

    q, k, v = apart(block.attn.qkv(block.norm1(x)), 3)
    expected = x + block.attn.proj(table_attention(q, k, v, at, at, 4))
    k, v = apart(block.cross.kv(block.norm_cross(context)), 2)
    q = block.cross.q(block.norm_cross(expected))
    expected = expected + block.cross.proj(table_attention(q, k, v, at, context_at, 4))
    expected = expected + block.mlp(block.norm2(expected))
    torch.testing.assert_close(block(x, context, at, context_at), expected, atol=1e-5, rtol=1e-5)


def test_masked_tokens_carry_their_places() -> None:
    """Encoding some patches is encoding all where the others cannot be attended to."""
    model, given = small(), inputs(3)
    ids = torch.stack([torch.randperm(64)[:20] for _ in range(3)])
    images, gsd = given["images"]["hires"], given["gsd"]["hires"]
    found = model.encode("hires", images, gsd, ids)
    everything = model.encode("hires", images, gsd)
    torch.testing.assert_close(found.at, gather_rows(everything.at, ids))
    # Block 1 by hand on all tokens, with keys outside of `ids` removed by a mask.
    encoder: Any = model.encoders["hires"]
    x = encoder.embed(patchify(images, 8))
    hidden = torch.ones(3, 64, dtype=torch.bool).scatter(1, ids, False)
    for block in encoder.blocks:
        q, k, v = (t.transpose(1, 2) for t in block.attn.qkv(block.norm1(x)).unflatten(-1, (4, 3, 8)).unbind(-2))
        distance = torch.linalg.vector_norm(everything.at[:, :, None] - everything.at[:, None], dim=-1)
        bias = -slopes(4)[:, None, None] * distance[:, None]
        out = F.scaled_dot_product_attention(q, k, v, bias.masked_fill(hidden[:, None, None], -torch.inf))
        x = x + block.attn.proj(out.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(found.x, gather_rows(encoder.norm(x), ids), atol=1e-5, rtol=1e-5)


def test_ground_equals_grid_where_gsd_is_nominal_for_the_first_grid() -> None:
    """The low-resolution streams of Scale-ALiBi are those of 2D-ALiBi exactly; high resolution is not."""
    given = inputs(2)
    ground, grid = small(), small(position="grid")
    for name in ("radar", "lores"):
        one, two = (m.encode(name, given["images"][name], given["gsd"][name]).x for m in (ground, grid))
        assert torch.equal(one, two)
    one, two = (m.encode("hires", given["images"]["hires"], given["gsd"]["hires"]).x for m in (ground, grid))
    assert (one - two).abs().max() > 1e-3
    # Between streams X-ALiBi's distances are those on the ground.
    streams = [{n: m.encode(n, given["images"][n], given["gsd"][n]) for n in SMALL.sensors} for m in (ground, grid)]
    for name in SMALL.sensors:
        torch.testing.assert_close(streams[0][name].joint_at, streams[1][name].joint_at)


@pytest.mark.parametrize("position", get_args(Position))
def test_what_gsd_does(position: Position) -> None:
    """It matters where positions are on the ground, and only there; scaled with the reference it does not."""
    model = small(position=position)
    once = model(**inputs(4))["loss"]
    wider = model(**inputs(4, scale=torch.tensor([1.0, 1.5, 2.0, 0.5])))["loss"]
    on_ground = position in ("ground", "gaussian", "sincos_gsd")
    assert (once != wider) == on_ground
    if on_ground:
        both = small(position=position, reference_m=240.0)(**inputs(4, scale=torch.full((4,), 3.0)))["loss"]
        torch.testing.assert_close(both, once)


def test_every_weight_learns() -> None:
    for changes in ({}, {"contrastive": 0.0}, {"reconstruction": 0.0, "decoder": None}, {"norm_scope": "joint"}):
        model = small(**changes)
        found = model(**inputs(3))
        found["loss"].backward()
        assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert ("loss_contrastive" in found) == bool(model.config.contrastive)
        assert ("loss_reconstruction" in found) == bool(model.config.reconstruction)


def test_loss_is_the_weighted_sum() -> None:
    found = small(contrastive=0.5, reconstruction=2.0)(**inputs(3))
    torch.testing.assert_close(found["loss"], 0.5 * found["loss_contrastive"] + 2 * found["loss_reconstruction"])
    torch.testing.assert_close(
        found["loss_reconstruction"], found["loss_radar"] + found["loss_lores"] + found["loss_hires"]
    )


def test_cells_hold_the_ground_of_their_patch() -> None:
    """A high-resolution image whose pixels tell the low-resolution patch that they lie in."""
    ground = torch.arange(16.0).reshape(4, 4).repeat_interleave(16, 0).repeat_interleave(16, 1)
    cells = to_cells(patchify(ground[None, None], 8), 2)
    assert cells.shape == (1, 16, 256) and all((cells[0, i] == i).all() for i in range(16))
    patches = torch.randn(2, 64, 7)
    assert torch.equal(from_cells(to_cells(patches, 2), 2), patches)


@pytest.mark.parametrize("scope", ["modality", "joint"])
def test_targets_are_normalised_at_full_resolution(scope: str) -> None:
    config = replace(SMALL, norm_scope=scope)
    images = inputs(2)["images"]
    patches = {name: patchify(image * 3 + 5, 8) for name, image in images.items()}
    found = targets(config, patches)
    assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in patches.items()}
    if scope == "modality":
        values = patches["hires"][1, 37]
        expected = (values - values.mean()) / (values.var() + 1e-6).sqrt()
        torch.testing.assert_close(found["hires"][1, 37], expected)
    else:  # cell (1, 2): high-resolution patches of rows 2, 3 and columns 4, 5
        cell, high = 1 * 4 + 2, [2 * 8 + 4, 2 * 8 + 5, 3 * 8 + 4, 3 * 8 + 5]
        values = torch.cat([patches["radar"][1, cell], patches["lores"][1, cell], patches["hires"][1, high].flatten()])
        expected = (values - values.mean()) / (values.var() + 1e-6).sqrt()
        together = [found["radar"][1, cell], found["lores"][1, cell], found["hires"][1, high].flatten()]
        torch.testing.assert_close(torch.cat(together), expected, atol=1e-5, rtol=1e-5)


def test_only_hidden_patches_enter_the_reconstruction() -> None:
    """Changing the target of a kept patch changes nothing but what the encoders see: with frozen tokens, nothing."""
    model, given = small(contrastive=0.0), inputs(2)
    order = {name: model.order(noise) for name, noise in given["noise"].items()}
    kept = order["hires"][:, : SMALL.kept("hires")]
    predictions: dict[str, Tensor] = {}
    assert model.decoder is not None
    model.decoder.register_forward_hook(lambda _m, _a, out: predictions.update(out))
    loss = model(**given)["loss_hires"]
    wanted = targets(SMALL, {n: patchify(i, 8) for n, i in given["images"].items()})["hires"]
    hidden = torch.ones(2, 64, dtype=torch.bool).scatter(1, kept, False)
    expected = (predictions["hires"] - wanted)[hidden].square().mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("scope", ["modality", "joint"])
def test_missing_values_are_no_targets(scope: str) -> None:
    """With what encoders see held, the values of missing pixels change neither losses nor gradients; a sensor that is missing whole adds nothing."""
    model, given = small(norm_scope=scope, contrastive=0.0), inputs(3)
    known = holes(given)
    seen = {name: images.clone() for name, images in given["images"].items()}
    whole = model.encode_masked
    model.encode_masked = lambda images, gsd, noise: whole(seen, gsd, noise)  # type: ignore[method-assign]
    found = []
    for filling in (0.0, 7.0):
        for name, there in known.items():
            given["images"][name] = torch.where(there, given["images"][name], filling)
        model.zero_grad()
        terms = model(**given, known=known)
        terms["loss"].backward()
        found.append((terms, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (terms, gradients), (others, other_gradients) = found
    torch.testing.assert_close(terms, others)
    torch.testing.assert_close(gradients, other_gradients)
    assert terms["loss"] != model(**given)["loss"]
    everything = {name: torch.ones_like(images, dtype=torch.bool) for name, images in given["images"].items()}
    torch.testing.assert_close(model(**given, known=everything), model(**given))


@pytest.mark.parametrize("scope", ["modality", "joint"])
def test_targets_of_what_is_there(scope: str) -> None:
    """Normalised by the mean and deviation of the values that are there, in their patch or cell."""
    config, given = replace(SMALL, norm_scope=scope), inputs(2)
    patches = {name: patchify(image * 3 + 5, 8) for name, image in given["images"].items()}
    known = known_patches(config, given["images"], holes(given))
    found = targets(config, patches, known)
    cell, high = 1 * 4 + 2, [2 * 8 + 4, 2 * 8 + 5, 3 * 8 + 4, 3 * 8 + 5]
    there, values = known["radar"][1, cell], patches["radar"][1, cell]
    together = values[there]
    if scope == "joint":
        fine = patches["hires"][1, high][known["hires"][1, high]]
        together = torch.cat([together, patches["lores"][1, cell], fine])
    expected = (values[there] - together.mean()) / (together.var() + 1e-6).sqrt()
    torch.testing.assert_close(found["radar"][1, cell][there], expected, atol=1e-5, rtol=1e-5)
    assert not found["radar"][1, cell][~there].any() and not found["hires"][0].any()


def test_larger_images_and_other_grids() -> None:
    model = small()
    tokens = model.encode("lores", torch.randn(2, 3, 64, 64), torch.full((2, 2), 5.0))
    assert tokens.x.shape == (2, 64, 32)
    with pytest.raises(UserError, match="3 bands and equal sides that are multiples of 8"):
        model.encode("lores", torch.randn(1, 3, 60, 60), torch.ones(1, 2))
    with pytest.raises(UserError, match="sensor thermal: the model has radar, lores, hires"):
        model.encode("thermal", torch.randn(1, 3, 64, 64), torch.ones(1, 2))


@pytest.mark.parametrize("shape", [(2,), (2, 1), (1, 2)])
def test_ground_distance_is_told_of_each_sample_and_axis(shape: tuple[int, ...]) -> None:
    given = inputs(2)
    with pytest.raises(
        UserError, match=r"GSD of radar of shape .*: give metres a pixel along \(y, x\) of each of 2 samples"
    ):
        small().encode("radar", given["images"]["radar"], torch.full(shape, 10.0))


def test_training_after_inference() -> None:
    """What is made once, for inference, serves a later backward pass in the same process."""
    check_backend.cache_clear()
    kept_slopes.cache_clear()
    model, given = small(attention="products"), inputs(2)
    with torch.inference_mode():
        model(**given)
    model(**given)["loss"].backward()


@pytest.mark.parametrize("autocast", [False, True])
def test_the_self_check_is_in_the_precision_of_the_attention(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDP in bf16 keeps float32 weights: what is checked is what will run."""
    seen: dict[str, set[torch.dtype]] = {"checked": set(), "attended": set()}
    attended = scale_alibi.attention.BACKENDS["products"]

    def check(device: torch.device, dtype: torch.dtype, *_: Any) -> None:
        seen["checked"].add(dtype)

    def attend(q: Tensor, *rest: Any) -> Tensor:
        seen["attended"].add(q.dtype)
        return attended(q, *rest)

    monkeypatch.setattr(scale_alibi.model, "check_backend", check)
    monkeypatch.setitem(scale_alibi.attention.BACKENDS, "products", attend)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        small(attention="products")(**inputs(2))
    assert seen["checked"] == seen["attended"] == {torch.bfloat16 if autocast else torch.float32}


def test_nothing_is_compared_without_the_contrastive_loss() -> None:
    """A step of several micro-batches asks all the same."""
    model, given = small(contrastive=0.0), inputs(2)
    assert model.compare([model(**given, embed_only=True)] * 2) == [{}, {}]


def test_a_compiled_block_takes_its_slopes_as_they_are(recwarn: pytest.WarningsRecorder) -> None:
    block, x, at = Block(32, 4, 1, "eager"), torch.randn(2, 9, 32), torch.rand(2, 9, 2)
    torch.testing.assert_close(torch.compile(block, backend="aot_eager")(x, at), block(x, at))
    assert not [one for one in recwarn if "lru_cache" in str(one.message)]
