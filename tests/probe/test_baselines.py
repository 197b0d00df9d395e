"""Colour and texture statistics of images whose figures are known."""

import numpy as np
import pytest

from frontier.errors import UserError
from frontier.probe.baselines import PATTERNS, colour_texture, local_binary_patterns

BAND = 12 + 5 + 2 + 3 * PATTERNS - 2  # 10 of pixels, 5 of gradients, 2 ratios, 30 of patterns


def names() -> list[str]:
    """Names of the features of one band at full size, in their order."""
    pixels = ["mean", "std", "skewness", "p2", "p10", "p25", "p50", "p75", "p90", "p98"]
    gradients = ["g_mean", "g_std", "g50", "g90", "g99"]
    patterns = [f"lbp1_{b}" for b in range(PATTERNS)]
    for factor in (2, 4):
        patterns += [f"lbp{factor}_{b}" for b in range(PATTERNS)] + [f"spread{factor}"]
    return pixels + gradients + patterns


def described(band: np.ndarray) -> dict[str, float]:
    features = colour_texture(band[None, None])
    assert features.shape == (1, len(names()))
    return dict(zip(names(), features[0].tolist(), strict=True))


def test_constant_image() -> None:
    found = described(np.full((16, 16), 4000, np.uint16))
    assert len(found) == BAND
    assert {found[n] for n in ("mean", "p2", "p50", "p98")} == {4000.0}
    assert {found[n] for n in ("std", "skewness", "g_mean", "g_std", "g99")} == {0.0}
    assert found["lbp1_8"] == found["lbp2_8"] == found["lbp4_8"] == 1.0
    assert found["spread2"] == found["spread4"] == 1.0


def test_ramp() -> None:
    """Pixel (y, x) is 3x: gradient 3 everywhere; ring of the inner pixels: 5 of 8 neighbours >= the centre."""
    found = described(np.tile(3 * np.arange(16, dtype=np.uint8), (16, 1)))
    assert found["mean"] == pytest.approx(22.5)
    assert found["p50"] == pytest.approx(22.5)
    assert found["std"] == pytest.approx(3 * np.sqrt((16**2 - 1) / 12))
    assert found["skewness"] == pytest.approx(0, abs=1e-6)
    assert {found[n] for n in ("g_mean", "g50", "g90", "g99")} == {3.0}
    assert found["g_std"] == 0
    assert found["lbp1_5"] == found["lbp2_5"] == found["lbp4_5"] == 1.0
    assert found["spread4"] == pytest.approx(12 * np.sqrt((4**2 - 1) / 12) / found["std"])


def test_known_histogram_of_patterns() -> None:
    checkerboard = (np.indices((9, 9)).sum(axis=0) % 2).astype(np.float32)
    shares = local_binary_patterns(checkerboard[None])[0]
    # A 0 has only neighbours >= 0; a 1 has its four diagonal neighbours: 8 changes, so not uniform.
    ones = checkerboard[1:-1, 1:-1].mean()
    assert shares[8] == pytest.approx(1 - ones)
    assert shares[9] == pytest.approx(ones)
    assert shares.sum() == pytest.approx(1)
    spot = np.zeros((3, 3), np.float32)
    spot[1, 1] = 1
    assert local_binary_patterns(spot[None])[0].tolist() == [1.0] + [0.0] * 9


def test_percentiles_and_skewness_of_a_known_image() -> None:
    pixels = np.zeros((20, 20), np.uint8)
    pixels[:4] = 100  # a fifth
    found = described(pixels)
    assert [found[n] for n in ("p2", "p75", "p90", "p98")] == [0, 0, 100, 100]
    assert found["std"] == pytest.approx(40)
    assert found["skewness"] == pytest.approx((0.2 * 80**3 - 0.8 * 20**3) / 40**3)


def test_bands_are_described_alike_and_compared() -> None:
    random = np.random.default_rng(0)
    band = random.integers(0, 60000, (16, 16)).astype(np.uint16)
    images = np.stack([band, band, 65535 - band, np.full_like(band, 7)])[None]
    features = colour_texture(images)
    assert features.shape == (1, 4 * BAND + 6)
    np.testing.assert_array_equal(features[0, :BAND], features[0, BAND : 2 * BAND])
    # pairs 01, 02, 03, 12, 13, 23
    np.testing.assert_allclose(features[0, -6:], [1, -1, 0, -1, 0, 0], atol=1e-6)


def test_type_and_batch_do_not_matter() -> None:
    images = np.random.default_rng(1).integers(0, 256, (5, 3, 16, 16))
    features = colour_texture(images.astype(np.uint8))
    np.testing.assert_array_equal(features, colour_texture(images.astype(np.uint16)))
    np.testing.assert_allclose(features[2:3], colour_texture(images[2:3].astype(np.float64)), rtol=1e-5, atol=1e-6)


def test_small_images_have_fewer_scales_and_tiny_ones_are_refused() -> None:
    assert colour_texture(np.zeros((2, 1, 8, 8), np.uint8)).shape == (2, BAND - 11)
    assert colour_texture(np.zeros((2, 1, 3, 5), np.uint8)).shape == (2, BAND - 22)
    with pytest.raises(UserError, match="3 x 3 pixels"):
        colour_texture(np.zeros((2, 1, 2, 5), np.uint8))
