"""Counter-based random numbers and the transforms that use them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from frontier.config.schema import AugmentConfig
from frontier.data.random import stream_keys, uniform
from frontier.data.shards import ShardSet
from frontier.data.transforms import (
    Normaliser,
    apply_symmetry,
    augment,
    crop_windows,
    mask_noise,
    normalise,
    resample,
    resize,
)
from tests.data.sets import write_set


def members(n: int, epoch: int = 0) -> torch.Tensor:
    return torch.stack([torch.full((n,), epoch), torch.arange(n)], 1)


def reference(seed: int, stream: int, epoch: int, sample: int, n: int) -> list[float]:
    """The same numbers with Python's unbounded integers."""
    mask = 0xFFFFFFFF

    def mix(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D & mask
        x ^= x >> 15
        x = x * 0x846CA68B & mask
        return x ^ x >> 16

    key = mix((seed * 0x9E3779B1 + stream * 0x85EBCA77 + 1) & mask)
    for part in (epoch, sample & mask, sample >> 32):
        key = mix((key + part * 0x9E3779B1) & mask)
    return [(mix(mix((key + i * 0x9E3779B1) & mask) ^ key) >> 8) / 2**24 for i in range(1, n + 1)]


@pytest.mark.parametrize("where", [(0, 13, 0, 0), (2**31 - 1, 12, 99, 123456), (7, 11, 3, 2**40 + 5)])
def test_equal_to_exact_integers(where: tuple[int, int, int, int]) -> None:
    seed, stream, epoch, sample = where
    ours = uniform(stream_keys(seed, stream, torch.tensor([[epoch, sample]])), 20)[0]
    assert ours.tolist() == reference(seed, stream, epoch, sample, 20)


def test_uniform_by_kolmogorov_and_correlation() -> None:
    draws = uniform(stream_keys(0, 13, members(2000)), 64).double().numpy()
    assert draws.min() >= 0
    assert draws.max() < 1
    flat = np.sort(draws.ravel())
    distance = np.abs(flat - np.arange(len(flat)) / len(flat)).max()
    assert distance < 1.63 / np.sqrt(len(flat))  # 1 % level
    along_samples = np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]
    along_tokens = np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]
    assert max(abs(along_samples), abs(along_tokens)) < 4 / np.sqrt(draws.size)


def test_any_split_of_a_batch_gives_the_same() -> None:
    whole = mask_noise(members(16), 49, seed=3)
    parts = torch.cat([mask_noise(members(16)[i : i + 4], 49, seed=3) for i in range(0, 16, 4)])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, mask_noise(members(16, epoch=1), 49, seed=3))


def test_symmetries_are_the_eight_of_the_square() -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3)
    results = {tuple(apply_symmetry(image, torch.tensor([code])).flatten().tolist()) for code in range(8)}
    expected = set()
    for turns in range(4):
        turned = torch.rot90(image, turns, (2, 3))
        expected |= {tuple(turned.flatten().tolist()), tuple(turned.flip(-1).flatten().tolist())}
    assert results == expected


def test_full_crop_is_the_identity_and_small_crops_are_inside() -> None:
    image = torch.rand(4, 3, 16, 16)
    same = resample(image, crop_windows(torch.full((4, 4), 0.5), (1.0, 1.0)), 16)
    torch.testing.assert_close(same, image, atol=1e-5, rtol=1e-5)
    ramp = torch.linspace(0, 1, 16).expand(1, 1, 16, 16)
    crop = resample(ramp, crop_windows(torch.tensor([[0.0, 0.5, 0.0, 0.5]]), (0.25, 1.0)), 16)  # left half
    assert crop.max() <= 0.52
    assert crop.min() == 0


def window(y: float, x: float, height: float, width: float) -> torch.Tensor:
    return torch.tensor([[y, x, height, width]], dtype=torch.float32)


@pytest.mark.parametrize(("stored", "size"), [(16, 16), (16, 24), (24, 16), (32, 8)])
def test_a_window_is_resampled_as_its_formula_says(stored: int, size: int) -> None:
    """Against loops over pixels: a triangle round each new pixel's centre, as wide as it or as a stored pixel."""
    image = torch.rand(1, 2, stored, stored, dtype=torch.float64)
    at = window(0.2, -0.35, 0.7, 0.45)
    axes = []
    for offset, share in zip(at[0, :2].tolist(), at[0, 2:].tolist(), strict=True):
        weights = np.zeros((size, stored))
        reach = max(1.0, share * stored / size)
        for i in range(size):
            centre = stored * ((1 + offset) / 2 - share / 2 + share * (i + 0.5) / size)
            for j in range(stored):
                weights[i, j] = max(0.0, 1 - abs(j + 0.5 - centre) / reach)
        axes.append(weights / weights.sum(1, keepdims=True))
    expected = np.stack([axes[0] @ band @ axes[1].T for band in image[0].numpy()])
    found = resample(image.float(), at, size)[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


def test_a_whole_window_is_a_resize() -> None:
    image, whole = torch.rand(2, 3, 48, 48), window(0, 0, 1, 1).expand(2, -1)
    for size in (12, 17, 32, 48, 60):
        torch.testing.assert_close(resample(image, whole, size), resize(image, size), atol=2e-5, rtol=0)


def test_what_is_finer_than_the_new_pixels_does_not_alias() -> None:
    """A checkerboard of single pixels seen at fewer: no coarse pattern, at any window; sampled plainly it has one."""
    board = (torch.arange(256)[:, None] + torch.arange(256)).remainder(2).float()[None, None]
    coarse, plain = [], []
    for share in torch.linspace(0.55, 1.0, 19).tolist():
        at = window(0.3 * (1 - share), -0.7 * (1 - share), share, share)
        coarse.append((F.avg_pool2d(resample(board, at, 128), 8) - 0.5).abs().max().item())
        theta = torch.tensor([[[share, 0, at[0, 1]], [0, share, at[0, 0]]]])
        grid = F.affine_grid(theta, [1, 1, 128, 128], align_corners=False)
        plain.append((F.avg_pool2d(F.grid_sample(board, grid, align_corners=False), 8) - 0.5).abs().max().item())
    assert max(coarse) < 0.02
    assert max(plain) > 0.2
    constant = torch.full((1, 1, 256, 256), 7.0)
    torch.testing.assert_close(resample(constant, at, 128), constant[..., :128, :128])


def test_augmentation_moves_images_per_sample() -> None:
    config = AugmentConfig(symmetries=True, crop_scale=(0.3, 1.0))
    image = torch.rand(1, 3, 8, 8).expand(6, -1, -1, -1)
    out = augment(image, members(6), config, seed=0)
    assert len({tuple(o.flatten().tolist()) for o in out}) == 6
    assert torch.equal(augment(image, members(6), AugmentConfig(), seed=0), image)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.float32])
def test_normalise(dtype: torch.dtype) -> None:
    stored = torch.tensor([[[[100, 200]], [[7, 9]]]]).to(dtype)
    out = normalise(stored, torch.tensor([150.0, 8.0]), torch.tensor([50.0, 2.0]))
    assert out.tolist() == [[[[-1.0, 1.0]], [[-0.5, 0.5]]]]
    assert out.dtype == torch.float32


AXES = {"CHW": "HW", "TCHW": "T", "TC": "TC", "HWC": "", "C": "C"}


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("nodata", [None, 7.0, -9999.0, float("nan")])
def test_normalise_any_axes_with_what_is_missing(axes: str, dtype: str, nodata: float | None) -> None:
    """Against numpy in float64 and in physical units: scale and offset cancel, what is missing becomes 0."""
    random = np.random.default_rng(0)
    sizes = {"C": 3, "T": 4, "H": 5, "W": 6}
    stored = random.integers(0, 20, (2, *(sizes[a] for a in axes))).astype(dtype)
    if dtype == "float32":
        stored.flat[::11] = [np.nan, np.inf, -9999.0][int(random.integers(3))]
    mask_axes = AXES[axes]
    mask = random.integers(0, 2, (2, *(sizes[a] for a in mask_axes))).astype(np.uint8)
    mean, std, scale, offset = np.array([3.0, 5.0, 9.0]), np.array([1.0, 2.0, 4.0]), 1e-4, -0.1

    by_band = [3 if a == "C" else 1 for a in axes]
    with np.errstate(invalid="ignore"):
        physical = stored.astype(np.float64) * scale + offset
        expected = (physical - (mean * scale + offset).reshape(by_band)) / (std * scale).reshape(by_band)
    missing = ~np.isfinite(stored.astype(np.float64))
    if nodata is not None:
        missing |= stored.astype(np.float64) == nodata
    spread = mask.reshape(2, *(sizes[a] if a in mask_axes else 1 for a in axes))
    missing = missing | (spread == 0)
    expected = np.where(missing, 0.0, expected)

    out = normalise(
        torch.from_numpy(stored),
        torch.from_numpy(mean).float(),
        torch.from_numpy(std).float(),
        axes,
        nodata=nodata,
        mask=torch.from_numpy(mask),
        mask_axes=mask_axes,
    )
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_normaliser_of_a_column(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    series = random.integers(0, 99, (6, 4, 2), dtype=np.int16)
    mask = random.integers(0, 2, (6, 4), dtype=np.uint8)
    path = write_set(
        tmp_path / "s",
        {"series": (series, "TC")},
        arrays={"there": (mask, "T")},
        masks={"series": "there"},
        nodata={"series": 50},
        statistics={"series": {"mean": [10.0, 20.0], "std": [2.0, 0.0]}},
    )
    shards = ShardSet(path)
    normaliser = Normaliser.of(shards, "series")
    assert normaliser.columns == ("series", "there")
    out = normaliser({name: torch.from_numpy(shards.read(name, 0, 6)) for name in normaliser.columns})
    expected = (series - np.array([10.0, 20.0])) / np.array([2.0, 1.0])  # a band that never varies has std 1
    expected[mask == 0] = 0
    expected[series == 50] = 0
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-6)
    given = Normaliser.of(shards, "series", mean=[0.0, 0.0], std=[1.0, 1.0])
    assert given.mean.tolist() == [0.0, 0.0]


def test_resize_keeps_constants() -> None:
    assert torch.allclose(resize(torch.full((1, 2, 8, 8), 3.0), 5), torch.tensor(3.0))
