"""Latents that begin as places: what they and the queries look at before anything was learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from frontier.config.load import validate
from frontier.errors import UserError
from frontier.models.init import initialise
from frontier.train.plan import resolve
from gpna.fourier import Region, position_features
from gpna.heads.pixels import PixelHead
from gpna.model import GPNA
from gpna.places import Places, grid, orthonormal
from tests.gpna.toys import toy_values, write_scenes, write_series

REGIONS = ("axis", "first", "half_plane")
ROWS, COLUMNS, HEADS = 4, 4, 2


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("toys")
    return write_scenes(folder / "scenes", side=32), write_series(folder / "series")


def values(shards: tuple[Path, Path], start: str, **tokens: Any) -> dict[str, Any]:
    found = toy_values(*shards, shards[0].parent / "run")
    found["model"] |= {"latents_start": start, "latents": ROWS * COLUMNS, "tokens": tokens}
    return found


def model(shards: tuple[Path, Path], start: str, **tokens: Any) -> GPNA:
    found = resolve(validate(values(shards, start, **tokens)), 1).model
    found.to_empty(device="cpu")
    initialise(found, 3)
    assert isinstance(found, GPNA)
    return found


def own_cell(rows: int, columns: int) -> Tensor:
    """Of each cell of a grid, the latent whose place it lies in."""
    y, x = torch.arange(rows) * ROWS // rows, torch.arange(columns) * COLUMNS // columns
    return (y[:, None] * COLUMNS + x).flatten()


def share(logits: Tensor, own: Tensor) -> float:
    """Mean weight of the key that lies where the query does: logits [heads, Q, K], own [Q]."""
    weights = logits.softmax(-1).mean(0)
    return weights.gather(1, own[:, None]).mean().item()


def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(0, 1)


@pytest.mark.parametrize("region", REGIONS)
def test_a_pixel_asks_the_latents_near_it(shards: tuple[Path, Path], region: str) -> None:
    found = {}
    for start in ("random", "places"):
        net = model(shards, start, region=region, position=64, highest=4)
        head = net.heads["area"]
        assert isinstance(head, PixelHead)
        attention = head.decoder.attention[0]
        keys, _ = head.decoder.keys_values(net.input_attention.latents[None])[0]
        queries = heads(
            attention.q(attention.norm_queries(head.decoder.embed(head.table))),
            attention.q.out_features // attention.head_dim,
        )
        logits = queries @ keys[0].transpose(1, 2) / attention.head_dim**0.5
        found[start] = share(logits, own_cell(head.rows, head.columns))
    assert found["places"] > 4 / (ROWS * COLUMNS) > 2 * found["random"], found


def test_a_latent_reads_the_tokens_near_it_and_a_hidden_token_the_latents(shards: tuple[Path, Path]) -> None:
    read, asked = {}, {}
    for start in ("random", "places"):
        net = model(shards, start, position=64, highest=4)
        attention, tokenizer = net.input_attention, net.tokenizer
        tokens = tokenizer.projections["position"](position_features(8, 8, 64, "half_plane", 4).flatten(0, 1))
        queries = heads(attention.q(attention.latent_norm(attention.latents)), attention.heads)
        keys = (
            attention.kv(attention.token_norm(tokens)).unflatten(-1, (attention.heads, 2, -1))[:, :, 0].transpose(0, 1)
        )
        logits = queries @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5
        inside = own_cell(8, 8)[None] == torch.arange(ROWS * COLUMNS)[:, None]
        read[start] = (logits.softmax(-1).mean(0) * inside).sum(1).mean().item()
        assert net.masked is not None
        decoder = net.masked.decoder
        first = decoder.attention[0]
        hidden = heads(first.q(first.norm_queries(decoder.embed(tokens))), first.q.out_features // first.head_dim)
        known, _ = decoder.keys_values(attention.latents[None])[0]
        asked[start] = share(hidden @ known[0].transpose(1, 2) / first.head_dim**0.5, own_cell(8, 8))
    assert read["places"] > 0.5 > 4 * read["random"], read
    assert asked["places"] > 0.4 > 4 * asked["random"], asked


def test_nothing_else_begins_otherwise(shards: tuple[Path, Path]) -> None:
    plain, placed = (dict(model(shards, start, highest=4).named_parameters()) for start in ("random", "places"))
    other = {name for name, value in placed.items() if not torch.equal(value, plain[name])}
    read = {"input_attention.latents", "input_attention.q.weight", "input_attention.kv.weight"}
    asked = {
        f"{head}.decoder.{part}.weight"
        for head in ("heads.area", "masked")
        for part in ("embed", "attention.0.q", "attention.0.kv")
    }
    assert other == read | asked | {"tokenizer.projections.position.weight"}
    assert plain.keys() == placed.keys()
    name = "input_attention.kv.weight"
    kept = (kv[name].unflatten(0, (HEADS, 2, -1))[:, 1] for kv in (plain, placed))
    torch.testing.assert_close(*kept, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("features", "token_width", "width"), [(64, 32, 32), (32, 64, 128), (128, 96, 64), (64, 64, 48)]
)
@pytest.mark.parametrize("region", REGIONS)
def test_codes_of_any_widths(features: int, token_width: int, width: int, region: Region) -> None:
    places = Places(features, region, 4, token_width, width, 4)
    codes = places.codes(8, 8)
    assert codes.shape == (64, width) and 0.5 < codes.square().mean() < 1.5
    # The nearest code to each place, told from another encoding, is its own.
    fitted = position_features(8, 8, 96, region, 5).flatten(0, 1) @ places.fitted(96, region, 5).t()
    assert ((fitted @ codes.t()).argmax(1) == torch.arange(64)).float().mean() > 0.9
    maps = places.tokens()
    small = maps @ maps.t() if token_width <= features else maps.t() @ maps
    torch.testing.assert_close(small, torch.eye(len(small)) * small[0, 0], atol=1e-5, rtol=0)


def test_grids_and_orthonormal_matrices() -> None:
    assert [grid(n) for n in (1, 7, 16, 32, 96, 512)] == [(1, 1), (1, 7), (4, 4), (4, 8), (8, 12), (16, 32)]
    for rows, columns in ((5, 9), (9, 5), (6, 6)):
        found = orthonormal(rows, columns, "test")
        torch.testing.assert_close(found, orthonormal(rows, columns, "test"), rtol=0, atol=0)
        product = found @ found.t() if rows <= columns else found.t() @ found
        torch.testing.assert_close(product, torch.eye(min(rows, columns)), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("tokens", "key"),
    [
        ({"join": "concat", "place": 2, "time": 2, "position": 4, "spectral": 4, "gsd": 0}, "join: concat"),
        ({"position": 0}, "position: 0"),
    ],
)
def test_places_need_positions(shards: tuple[Path, Path], tokens: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=f"latents_start: places needs positions.*{key}"):
        validate(values(shards, "places", **tokens))


def test_places_need_an_input_with_space(shards: tuple[Path, Path]) -> None:
    found = values(shards, "places")
    found["model"]["tasks"] = {"amount": found["model"]["tasks"]["amount"]}
    del found["data"]["sources"]["scenes"], found["model"]["masked"]
    with pytest.raises(UserError, match="no input has positions"):
        resolve(validate(found), 1)
