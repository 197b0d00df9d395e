"""CROMA's files: the same numbers as its maths written out, in every layout of names; what comes back; what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from frontier.errors import UserError
from frontier.models.presets import DecoderShape
from scale_alibi.config import PRESETS, Size
from scale_alibi.croma import from_released, load_croma, read_croma, to_released
from scale_alibi.model import ScaleALiBi
from scale_alibi.sizes import ScaleALiBiConfig, SensorShape
from tests.scale_alibi import plain_croma
from tests.scale_alibi.plain_croma import forward, random_weights, training_names

WIDTH, DEPTH, HEADS = 32, 4, 4
TRAINED = ("radar_encoder", "GAP_FFN_radar", "optical_encoder", "GAP_FFN_optical", "cross_encoder")


def flat(weights: dict[str, Any], groups: tuple[str, ...]) -> dict[str, Tensor]:
    """As a module that holds the five parts under these names would save them."""
    return {f"{new}.{n}": t for new, old in zip(groups, weights, strict=True) for n, t in weights[old].items()}


LAYOUTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "released": lambda w: w,
    "training names": training_names,
    "a saved inference module": lambda w: flat(w, tuple(w)),
    "a saved training module": lambda w: flat(training_names(w), tuple(f"module.{g}" for g in TRAINED)),
}


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    return random_weights(WIDTH, DEPTH)


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def ours(model: ScaleALiBi, sar: Tensor, optical: Tensor, gsd: float = 10.0) -> dict[str, Tensor]:
    spacing = torch.full((len(sar), 2), gsd)
    streams = {"radar": model.encode("radar", sar, spacing), "lores": model.encode("lores", optical, spacing)}
    joint = model.join(streams)
    return {
        "SAR_encodings": streams["radar"].x,
        "SAR_GAP": model.summarise("radar", streams["radar"].x),
        "optical_encodings": streams["lores"].x,
        "optical_GAP": model.summarise("lores", streams["lores"].x),
        "joint_encodings": joint,
        "joint_GAP": joint.mean(1),
    }


def images(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(2, 2, size, size, generator=generator), torch.randn(2, 12, size, size, generator=generator)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_same_encodings_as_croma_written_out(weights: dict[str, Any], tmp_path: Path, layout: str) -> None:
    model = load_croma(saved(tmp_path / "croma.pt", LAYOUTS[layout](weights)), heads=HEADS)
    assert not model.training and model.decoder is None and model.projections is None
    for size in (32, 24):
        pair = images(size)
        assert_same(ours(model, *pair), forward(weights, *pair, HEADS))


@torch.no_grad()
def test_distances_follow_the_ground_or_the_grid(weights: dict[str, Any], tmp_path: Path) -> None:
    path, pair = saved(tmp_path / "croma.pt", weights), images(32)
    near, far = forward(weights, *pair, HEADS), forward(weights, *pair, HEADS, stretch=2.0)
    ground, grid = load_croma(path, heads=HEADS), load_croma(path, heads=HEADS, position="grid")
    assert (near["joint_encodings"] - far["joint_encodings"]).abs().max() > 0.1, "the bias matters with these weights"
    assert_same(ours(ground, *pair, gsd=20.0), far)
    assert_same(ours(grid, *pair, gsd=20.0), near)
    assert_same(ours(load_croma(path, heads=HEADS, reference_m=160.0), *pair, gsd=20.0), near)


def test_what_was_read_is_written_again_bit_for_bit(weights: dict[str, Any], tmp_path: Path) -> None:
    back = to_released(load_croma(saved(tmp_path / "croma.pt", training_names(weights)), heads=HEADS))
    assert {g: set(tensors) for g, tensors in back.items()} == {g: set(tensors) for g, tensors in weights.items()}
    for group, tensors in weights.items():
        for name, value in tensors.items():
            assert torch.equal(back[group][name], value), f"{group}.{name}"
    half = {g: {n: t.half() for n, t in tensors.items()} for g, tensors in weights.items()}
    model = load_croma(saved(tmp_path / "half.pt", half), heads=HEADS)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def config_of(size: Size) -> ScaleALiBiConfig:
    sensors = {
        "radar": SensorShape(2, 120, size.depth // 2, 0.75),
        "lores": SensorShape(12, 120, size.depth, 0.75),
    }
    return ScaleALiBiConfig(size, 8, sensors, "grid", 1.0, "auto", "joint", DecoderShape(512, 1, 8), 1.0, 1.0)


@pytest.mark.parametrize(
    ("preset", "millions", "total"),
    [
        ("scale_alibi_base", {"s1_encoder": 42.61, "s2_encoder": 85.62, "joint_encoder": 56.68, "GAP": 9.45}, 194.365),
        ("scale_alibi_large", {}, 672.6),
    ],
)
def test_sizes_are_those_of_the_releases(preset: str, millions: dict[str, float], total: float) -> None:
    """The published counts, and the shapes of such a file, from the presets alone."""
    size = PRESETS[preset]
    with torch.device("meta"):
        model = ScaleALiBi(config_of(size))
    found = to_released(model)
    counts = {group: sum(t.numel() for t in tensors.values()) / 1e6 for group, tensors in found.items()}
    counts["GAP"] = counts["s1_GAP_FFN"] + counts["s2_GAP_FFN"]
    for group, expected in millions.items():
        assert counts[group] == pytest.approx(expected, abs=0.006), group
    assert sum(value for group, value in counts.items() if group != "GAP") == pytest.approx(total, abs=0.05)
    own = dict(model.named_parameters())
    assert sum(own[name].numel() for name in model.encoder_names()) == sum(
        t.numel() for tensors in found.values() for t in tensors.values()
    )


def test_base_file_round_trip_without_values() -> None:
    """Names and shapes of a base-sized file go in, and cover the model but for what CROMA does not save."""
    with torch.device("meta"):
        model = ScaleALiBi(config_of(PRESETS["scale_alibi_base"]))
        found = from_released(model.config, to_released(model), "here")
    own = dict(model.named_parameters())
    assert {name: t.shape for name, t in found.items()} == {name: own[name].shape for name in model.encoder_names()}


def test_what_else_a_file_holds_is_named_and_left_out(weights: dict[str, Any], tmp_path: Path) -> None:
    more = flat(weights, TRAINED) | {
        "decoder.linear_output.weight": torch.zeros(3),
        "decoder.mask_token": torch.zeros(3),
        "global_contrast_loss.logit_scale": torch.zeros(()),
        "s1_encoder.attn_bias": torch.zeros(3),
        "epoch": 7,
    }
    found, left = read_croma(saved(tmp_path / "more.pt", more))
    assert left == ["decoder (2 entries)", "global_contrast_loss", "s1_encoder.attn_bias", "epoch"]
    assert {g: len(t) for g, t in found.items()} == {g: len(t) for g, t in weights.items()}


def without(weights: dict[str, Any], group: str, name: str) -> dict[str, Any]:
    return weights | {group: {n: t for n, t in weights[group].items() if n != name}}


def beside(weights: dict[str, Any], group: str, name: str, value: Tensor) -> dict[str, Any]:
    return weights | {group: weights[group] | {name: value}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: without(w, "joint_encoder", "layers.1.1.to_k.weight"), "joint_encoder.layers.1.1.to_k.weight is missing"),
        (lambda w: {g: t for g, t in w.items() if g != "s1_GAP_FFN"}, "no s1_GAP_FFN"),
        (lambda w: {"model": {"weight": torch.zeros(2)}}, "no s1_encoder .it holds model"),
        (lambda w: {}, "it holds nothing"),
        (lambda w: torch.zeros(2), "holds a Tensor, no dict"),
        (lambda w: w["s1_encoder"], "no s1_encoder .it holds linear_input, transformer"),
        (lambda w: beside(w, "s2_GAP_FFN", "4.weight", torch.zeros(2)), "s2_GAP_FFN.4.weight is there"),
        (
            lambda w: beside(w, "s1_encoder", "transformer.layers.2.0.to_out.bias", torch.zeros(WIDTH)),
            "s1_encoder.transformer.layers.2.0.to_out.bias is there, unlike in .* with 2 radar and 4 optical",
        ),
        (lambda w: beside(w, "s1_encoder", "linear_input.weight", torch.zeros(WIDTH, 192)), r"is \[32, 192\], and \[32, 128\]"),
        (lambda w: beside(w, "s2_encoder", "linear_input.weight", torch.zeros(WIDTH)), "missing or no matrix"),
        (lambda w: without(w, "s2_encoder", "linear_input.weight"), "missing or no matrix"),
        (
            lambda w: beside(w, "s1_encoder", "transformer.layers.0.1.net.2.bias", torch.zeros(WIDTH)),
            "s1_encoder.transformer.layers.0.1.net.3.bias twice",
        ),
        (lambda w: random_weights(48, 2), "width 48 with 2 blocks is no size of CROMA's"),
    ],
)  # fmt: skip
def test_files_that_are_not_cromas_are_one_line(
    weights: dict[str, Any], tmp_path: Path, change: Callable[[Any], Any], words: str
) -> None:
    path = saved(tmp_path / "odd.pt", change(weights))
    heads = None if "no size" in words else HEADS
    with pytest.raises(UserError, match=words) as told:
        load_croma(path, heads=heads)
    assert str(path) in str(told.value) and "\n" not in str(told.value)


class Trap:
    """Unpickled by a loader that runs what a file asks for, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_does_not_run(weights: dict[str, Any], tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "trap.pt"
    torch.save({**weights, "note": Trap(tmp_path / "ran")}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"asks to run posix\.mkdir, so it was not loaded"):
        load_croma(path, heads=HEADS)
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists(), "the trap is one"


def test_files_that_are_no_weights(weights: dict[str, Any], tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.pt", weights).read_bytes()
    for name, content in {
        "text": b"weights",
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "zeros": bytes(100),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} is no file of torch.save"):
            load_croma(tmp_path / name)
    with pytest.raises(UserError, match="is a folder"):
        load_croma(tmp_path)
    with pytest.raises(UserError, match="is not there"):
        load_croma(tmp_path / "none.pt")
    with pytest.raises(UserError, match="go with ground or grid"):
        load_croma(tmp_path / "whole.pt", position="gaussian")
    with pytest.raises(UserError, match="heads 5 does not divide width 32"):
        load_croma(tmp_path / "whole.pt", heads=5)


def test_the_plain_bias_is_as_published() -> None:
    """16 heads of the releases: slopes from 2**-0.5 on, each 2**-0.5 times the one before."""
    table = plain_croma.bias(2, 16)
    assert table[0, 0, 1] == pytest.approx(-(2**-0.5)) and table[15, 0, 1] == pytest.approx(-(2**-8))
    assert table[1, 0, 3] == pytest.approx(-0.5 * 2**0.5) and table[:, 2, 2].abs().max() == 0
