"""Fourier encodings against quadrature of their definition, exact arithmetic, published numbers and what they are for."""

import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from frontier.errors import UserError
from gpna.fourier import (
    CIRCUMFERENCE_M,
    axis_frequencies,
    encode,
    gsd_features,
    place_features,
    plane_frequencies,
    position_features,
    position_features_at,
    spectral_features,
    time_features,
)

F64 = torch.float64
DAY = 86400.0


def f64(values) -> Tensor:
    return torch.tensor(values, dtype=F64)


def day(text: str) -> float:
    return float(np.datetime64(text, "s").astype("int64"))


def attenuation(k: float, d: float) -> float:
    """The cosine at x = 0."""
    return encode(f64([0.0]), f64([d]), f64([[k]]), F64)[1].item()


# -- the closed form --------------------------------------------------------------------------------------------------


def test_worked_values() -> None:
    waves = encode(f64([0.3]), f64([0.05]), f64([[2.0]]), F64)
    # sin | cos (1.2 pi) * sin(0.2 pi) / (0.2 pi)
    np.testing.assert_allclose(waves, [-0.549866805, -0.756826729], atol=5e-10)
    np.testing.assert_allclose(waves, by_quad(0.3, 0.05, 2.0), atol=1e-14, rtol=0)


def by_quad(x: float, d: float, k: float) -> list[float]:
    """The averages of sine and cosine by adaptive quadrature of Eq. 3, the interval mapped to [-1, 1]."""
    options = {"epsabs": 1e-13, "epsrel": 1e-13}
    return [
        quad(lambda u, w=w: w(2 * math.pi * k * (x + d * u)) / 2, -1, 1, **options)[0] for w in (math.sin, math.cos)
    ]


def test_one_dimension_equals_quadrature() -> None:
    g = np.random.default_rng(0)
    for _ in range(200):
        x, k, d = g.uniform(-1, 1), g.uniform(-12, 12), 10 ** g.uniform(-6, -0.3)
        waves = encode(f64([x]), f64([d]), f64([[k]]), F64)
        np.testing.assert_allclose(waves, by_quad(x, d, k), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_boxes_equal_quadrature(dimensions: int) -> None:
    """Tensor Gauss-Legendre over the box, all axes at once: written apart from the product form."""
    g = np.random.default_rng(dimensions)
    points, weights = np.polynomial.legendre.leggauss(32)
    nodes = np.stack(np.meshgrid(*[points] * dimensions), -1).reshape(-1, dimensions)
    weight = np.stack(np.meshgrid(*[weights / 2] * dimensions), -1).reshape(-1, dimensions).prod(1)
    x, d, k = (
        g.uniform(-1, 1, (20, dimensions)),
        g.uniform(0, 0.6, (20, dimensions)),
        g.uniform(-6, 6, (15, dimensions)),
    )
    phase = 2 * np.pi * (x[:, None] + d[:, None] * nodes) @ k.T
    expected = np.concatenate([np.einsum("n,bnf->bf", weight, wave(phase)) for wave in (np.sin, np.cos)], 1)
    got = encode(torch.from_numpy(x), torch.from_numpy(d), torch.from_numpy(k), F64)
    np.testing.assert_allclose(got, expected, atol=1e-12, rtol=0)


def test_certain_coordinates_give_equation_1_and_4() -> None:
    x, k = (
        torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(1)),
        plane_frequencies(9, 6.0, "half_plane"),
    )
    phase = 2 * math.pi * x @ k.T
    plain = torch.cat([phase.sin(), phase.cos()], -1)
    torch.testing.assert_close(encode(x, 0.0, k, F64), plain, atol=1e-13, rtol=0)
    torch.testing.assert_close(encode(x, 1e-9, k, F64), plain, atol=1e-12, rtol=0)
    assert encode(x, 0.3, k, F64).abs().max() <= 1


@pytest.mark.parametrize("half_turns", [1, 2, 3, 7, 1001, 2_000_001])
def test_whole_cycles_average_to_exactly_zero(half_turns: int) -> None:
    """k d = 1/2, 1, 3/2, ...: not 4e-17, not a rounding error of sin(pi n)."""
    assert torch.count_nonzero(encode(f64([0.3]), f64([0.5]), f64([[float(half_turns)]]), F64)) == 0


@pytest.mark.parametrize("parts", [2, 8])
def test_hierarchical_consistency(parts: int) -> None:
    x, d, k = f64([[0.31, -0.2]]), f64([[0.2, 0.07]]), plane_frequencies(32, 20.0, "half_plane")
    offsets = (torch.arange(parts, dtype=F64) * 2 + 1 - parts) / parts
    inner = x + torch.cartesian_prod(offsets, offsets) * d
    mean = encode(inner, d / parts, k, F64).mean(0)
    torch.testing.assert_close(mean, encode(x, d, k, F64)[0], atol=1e-14, rtol=0)


def test_cells_of_a_fine_grid_average_to_the_coarse_grid() -> None:
    """So tokens of 8 x 8 pixels sit at the mean of their pixels, and no grid is preferred."""
    fine = position_features(24, 40, 64, "half_plane", 30.0, F64)
    coarse = position_features(3, 5, 64, "half_plane", 30.0, F64)
    torch.testing.assert_close(fine.view(3, 8, 5, 8, 64).mean((1, 3)), coarse, atol=1e-14, rtol=0)
    assert (fine[::8, ::8] - coarse).abs().max() > 0.1


def test_box_reading_of_equation_4() -> None:
    """Independent axes: the product of the axes' sincs. A segment (all axes move together) would give sinc(2 k.D) = 0 here."""
    k, d = f64([[3.0, 4.0]]), f64([0.1, 0.05])
    assert encode(f64([0.0, 0.0]), d, k, F64)[1].item() == pytest.approx(0.3819, abs=5e-5)
    assert np.sinc(2 * (k[0] @ d).item()) == pytest.approx(0, abs=1e-15)


def test_negative_lobes_are_kept() -> None:
    """Between k d = 1/2 and 1 the average has the opposite sign: part of Eq. 3, at most 0.2172."""
    at = torch.linspace(0.5, 1, 20001, dtype=F64)
    lobe = encode(torch.zeros(20001, 1, dtype=F64), at[:, None], f64([[1.0]]), F64)[:, 1]
    assert (lobe <= 0).all() and lobe.min().item() == pytest.approx(-0.2172, abs=5e-5)
    assert at[lobe.argmin()].item() == pytest.approx(0.7151, abs=1e-4)


# -- unknown coordinates, gradients, precision --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "half"),
    [
        ([math.nan, 0.1], [0.1, 0.1]),
        ([0.1, 0.1], [math.inf, 0.1]),
        ([0.1, 0.1], [0.1, math.nan]),
        ([math.inf, 0.1], [0.0, 0.0]),
        ([math.nan, math.nan], [math.inf, math.inf]),
    ],
)
def test_unknown_is_the_zero_vector(x: list[float], half: list[float]) -> None:
    k = plane_frequencies(6, 4.0, "axis")  # half of them do not even look at the unknown axis
    both = encode(f64([x, [0.2, 0.3]]), f64([half, [0.1, 0.1]]), k)
    assert torch.count_nonzero(both[0]) == 0
    assert torch.equal(both[1], encode(f64([0.2, 0.3]), f64([0.1, 0.1]), k))


def test_a_huge_box_fades_to_the_zero_vector() -> None:
    k = plane_frequencies(16, 10.0, "half_plane")
    size = [encode(f64([0.2, 0.3]), f64([d, d]), k, F64).abs().max().item() for d in (1e3, 1e5, 1e7)]
    assert size[0] < 1e-3 and size[2] < size[1] < size[0]


def test_gradients_are_finite_everywhere_and_right() -> None:
    k = plane_frequencies(5, 3.0, "half_plane")
    x = f64([[0.2, 0.3], [math.nan, 0.1], [0.4, 0.4], [0.4, 0.4], [0.0, 0.0]]).requires_grad_()
    half = f64([[0.0, 0.0], [0.1, 0.1], [math.inf, 0.1], [0.0, math.inf], [0.25, 1.0]]).requires_grad_()
    gx, gh = torch.autograd.grad((encode(x, half, k) * torch.linspace(1, 2, 10)).sum(), (x, half))
    assert gx.isfinite().all() and gh.isfinite().all()
    assert torch.count_nonzero(gh[0]) == 0 and torch.count_nonzero(gx[0]) == 2  # even in half, so flat at half = 0
    assert torch.count_nonzero(gx[1:4]) == torch.count_nonzero(gh[1:4]) == 0
    # Away from the unknowns, and where the attenuation crosses zero, against differences.
    known = (f64([[0.2, 0.3], [0.1, -0.4]]).requires_grad_(), f64([[0.25, 0.4], [0.5, 1.0]]).requires_grad_())
    whole = f64([[1.0, 0.0], [2.0, 1.0], [1.0, 3.0]])
    assert torch.autograd.gradcheck(lambda a, b: encode(a, b, whole, F64), known)


def exact_sine(k: int, x: float) -> float:
    """sin(2 pi k x) with the phase in rational numbers."""
    return math.sin(2 * math.pi * float((Fraction(k) * Fraction(x) + Fraction(1, 2)) % 1 - Fraction(1, 2)))


@pytest.mark.parametrize(
    ("k", "naive_at_least"), [(100, 1e-5), (10_000, 1e-3), (100_000, 1e-2), (1_000_000, 0.1), (2_003_751, 0.3)]
)
def test_phases_down_to_20_metres(k: int, naive_at_least: float) -> None:
    """2,003,751 cycles round the Earth are 20 m a cycle. float32 phases, as usual in encodings, are useless there."""
    x = np.random.default_rng(0).uniform(-0.5, 0.5, 300)
    exact = np.array([exact_sine(k, float(v)) for v in x])
    ours = encode(torch.from_numpy(x)[:, None], 0.0, f64([[float(k)]]))[:, 0]
    assert ours.dtype == torch.float32
    assert np.abs(ours.double().numpy() - exact).max() < 1e-6
    naive = torch.sin(2 * math.pi * k * torch.from_numpy(x).float())
    assert np.abs(naive.double().numpy() - exact).max() > naive_at_least


def test_misuse_is_refused() -> None:
    x, k = f64([[0.1, 0.2]]), plane_frequencies(3, 2.0, "first")
    for bad in (
        partial(encode, x.float(), 0.0, k),
        partial(encode, x, torch.zeros(2), k),
        partial(encode, x, 0.0, k.float()),
        partial(encode, x, -0.1, k),
        partial(encode, x, f64([[0.1, -1e-9]]), k),
        partial(encode, x[:, :1], 0.0, k),
        partial(encode, x, torch.zeros(5, 2, dtype=F64), k),
        partial(encode, x, torch.zeros(3, 1, 2, dtype=F64), k),
    ):
        with pytest.raises(ValueError, match=r"float64|negative|fit|broadcast"):
            bad()


# -- frequencies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("region", ["axis", "first", "half_plane"])
@pytest.mark.parametrize("count", [1, 2, 5, 64, 1000])
def test_plane_frequencies(region, count: int) -> None:
    k = plane_frequencies(count, 16.0, region)
    assert k.shape == (count, 2) and k.dtype == F64
    assert torch.equal(k, plane_frequencies(count, 16.0, region))
    rounded = [tuple(v) for v in k.round(decimals=9).tolist()]
    assert len({*rounded, *((-a, -b) for a, b in rounded)}) == 2 * count  # all distinct, k and -k never both
    length = k.norm(dim=1)
    assert length.min().item() == pytest.approx(0.5) and length.max() <= 16 + 1e-9
    if count > 2:
        assert length.max().item() == pytest.approx(16)
    if region == "axis":
        assert (k == 0).any(1).all() and abs(int((k[:, 1] == 0).sum() * 2) - count) <= 1
        return
    assert (k[:, 1] >= 0).all() and (region == "half_plane" or (k[:, 0] >= 0).all())
    assert (length.diff() > 0).all()
    # Well spread: in every run of 16 lengths no direction is further than a seventh of the range from a frequency.
    span = math.pi if region == "half_plane" else math.pi / 2
    angle = torch.atan2(k[:, 1], k[:, 0])
    for start in range(0, count - 15, 16):
        some = angle[start : start + 16].sort().values
        gaps = torch.cat([some[:1], some.diff(), span - some[-1:]])
        assert gaps.max() < span / 7


def test_axis_frequencies() -> None:
    linear, geometric = (axis_frequencies(5, 16.0, s, lowest=1.0)[:, 0] for s in ("linear", "geometric"))
    torch.testing.assert_close(linear, f64([1, 4.75, 8.5, 12.25, 16]))
    torch.testing.assert_close(geometric, f64([1, 2, 4, 8, 16]))
    assert axis_frequencies(4, 4, "integer")[:, 0].tolist() == [1, 2, 3, 4]
    assert axis_frequencies(1, 9, "integer")[:, 0].tolist() == [1]
    for count, highest in ((8, 20.0), (30, 31.0), (64, 2e6)):
        k = axis_frequencies(count, highest, "integer")[:, 0]
        assert (k == k.round()).all() and (k.diff() >= 1).all() and k[0] == 1 and k[-1] == highest


@pytest.mark.parametrize(
    "bad",
    [
        lambda: plane_frequencies(0, 4.0, "first"),
        lambda: plane_frequencies(4, 0.0, "first"),
        lambda: plane_frequencies(4, 4.0, "first", lowest=4.0),
        lambda: plane_frequencies(4, math.inf, "half_plane"),
        lambda: plane_frequencies(4, 4.0, "second"),
        lambda: axis_frequencies(9, 8.0, "integer"),
        lambda: axis_frequencies(3, 8.0, "octaves"),
        lambda: axis_frequencies(3, -1.0, "linear"),
    ],
)
def test_impossible_frequencies_are_refused(bad) -> None:
    with pytest.raises(UserError):
        bad()


def ridge_r2(region, cycles: float = 2.3, lam: float = 1.0) -> list[float]:
    """R2 on unseen cells of plane waves in 8 directions, fitted linearly on 400 of the 32 x 32 cells' 128 features."""
    features = position_features(32, 32, 128, region, dtype=F64).view(1024, 128).numpy()
    features = np.concatenate([features, np.ones((1024, 1))], 1)
    centre = (np.arange(32) + 0.5) / 32
    y, x = (v.ravel() for v in np.meshgrid(centre, centre, indexing="ij"))
    order = np.random.default_rng(0).permutation(1024)
    train, test = order[:400], order[400:]
    scores = []
    for angle in np.radians(np.arange(0, 180, 22.5)):
        wave = np.sin(2 * np.pi * cycles * (x * np.cos(angle) + y * np.sin(angle)))
        a = features[train]
        weights = np.linalg.solve(a.T @ a + lam * np.eye(129), a.T @ wave[train])
        error = ((features[test] @ weights - wave[test]) ** 2).mean()
        scores.append(1 - error / wave[test].var())
    return scores


def test_directions_that_a_linear_map_can_reach() -> None:
    axis, first, half_plane = (ridge_r2(r) for r in ("axis", "first", "half_plane"))
    assert min(axis[0], axis[4]) > 0.95 and max(axis[1:4] + axis[5:]) < 0.2
    assert min(first[:5]) > 0.85 and max(first[5:]) < 0.2
    assert min(half_plane) >= 0.9


# -- place ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wavelength_km", "left"), [(20, 0.0), (10, 0.0), (40, 0.637), (80, 0.900)])
def test_jitter_of_10_km(wavelength_km: float, left: float) -> None:
    """The displacement of rural DHS clusters, as a box; shorter waves than 20 km keep at most 0.2172."""
    assert attenuation(1 / wavelength_km, 10.0) == pytest.approx(left, abs=5e-4)


def test_jitter_of_10_km_in_place_features() -> None:
    """Along the equator and along a meridian, whatever the frequencies: wavelength from the numbers themselves."""
    exact, fuzzy = (place_features(10.0, 0.0, r, 256, dtype=F64) for r in (0.0, 10_000.0))
    left = fuzzy[:128].hypot(fuzzy[128:]) / exact[:128].hypot(exact[128:])
    # The wave's number among 128 of which the first is as long as the globe and the last is 20 m: 320 km, 20 km.
    reach = math.log(CIRCUMFERENCE_M / 20)
    longer, shorter = (int(127 * math.sqrt(math.log(CIRCUMFERENCE_M / w) / reach)) for w in (320e3, 20e3))
    assert left[:longer].min() > 0.97 and left[shorter + 2 :].max() < 0.2173


@pytest.mark.parametrize("chart", ["lonlat", "sphere"])
def test_longitude_wraps(chart) -> None:
    west, east = (place_features(lon, 37.5, 5.0, 128, chart, dtype=F64) for lon in (-180.0, 180.0))
    assert (west - east).abs().max() < (2e-14 if chart == "lonlat" else 1e-8)
    a, b = (place_features(lon, 37.5, 5.0, 128, chart, dtype=F64) for lon in (-100.0, 260.0))
    assert (a - b).abs().max() < 1e-8


def test_other_frequencies_do_not_wrap() -> None:
    """Why those along longitude are whole: equal ratios from 1/2 on put -180 and 180 degrees far apart."""
    k = axis_frequencies(32, 1000.0, "geometric")
    west, east = (encode(f64([x]), 0.0, k, F64) for x in (-0.5, 0.5))
    assert (west - east).abs().max() > 1.9


def test_metres_are_metres_at_every_latitude() -> None:
    """1 km in degrees of longitude grows as 1 / cos(latitude): against the mean over the square by quadrature."""
    points, weights = np.polynomial.legendre.leggauss(40)
    lon, lat, radius = 23.0, 64.0, 1000.0
    degree = CIRCUMFERENCE_M / 360
    at_lon = lon + radius * points / (degree * math.cos(math.radians(lat)))
    at_lat = lat + radius * points / degree
    waves = place_features(at_lon[None, :], at_lat[:, None], 0.0, 64, shortest_m=400.0, dtype=F64)
    mean = torch.einsum("i,j,ijf->f", torch.from_numpy(weights) / 2, torch.from_numpy(weights) / 2, waves)
    torch.testing.assert_close(
        place_features(lon, lat, radius, 64, shortest_m=400.0, dtype=F64), mean, atol=1e-10, rtol=0
    )


def test_sphere_is_the_mean_over_the_square_on_the_ground() -> None:
    points, weights = np.polynomial.legendre.leggauss(24)
    lon, lat, radius = 23.0, 64.0, 1000.0
    degree = CIRCUMFERENCE_M / 360
    at_lon = lon + radius * points / (degree * math.cos(math.radians(lat)))
    at_lat = lat + radius * points / degree
    waves = place_features(at_lon[None, :], at_lat[:, None], 0.0, 64, "sphere", 1000.0, F64)
    mean = torch.einsum("i,j,ijf->f", torch.from_numpy(weights) / 2, torch.from_numpy(weights) / 2, waves)
    got = place_features(lon, lat, radius, 64, "sphere", 1000.0, F64)
    assert (got - mean).abs().max() < 2e-3  # the ground bends away from the plane
    assert (got - place_features(lon, lat, 0.0, 64, "sphere", 1000.0, F64)).abs().max() > 0.5


def test_poles() -> None:
    """The sphere knows no pole; lon/lat keeps only waves along the meridian there, instead of 1/cos(90) = nothing known."""
    lons = np.array([-180.0, -20.0, 77.0])
    sphere = place_features(lons, 90.0, 0.0, 64, "sphere", shortest_m=1000.0)
    torch.testing.assert_close(sphere[1:], sphere[:1].expand(2, 64), atol=1e-5, rtol=0)
    flat = place_features(lons, 90.0, 100.0, 64, shortest_m=1000.0)
    torch.testing.assert_close(flat[1:], flat[:1].expand(2, 64), atol=1e-6, rtol=0)
    assert flat.isfinite().all() and 0 < torch.count_nonzero(flat[0].abs() > 1e-3) < 16
    # 10 km apart across the pole: neighbours on the sphere, far apart in lon/lat.
    here, there = (place_features(lon, 89.955, 0.0, 64, "sphere", shortest_m=1e6) for lon in (0.0, 180.0))
    assert (here - there).abs().max() < 0.1
    here, there = (place_features(lon, 89.955, 0.0, 64, shortest_m=1e6) for lon in (0.0, 180.0))
    assert (here - there).abs().max() > 1.9


@pytest.mark.parametrize("chart", ["lonlat", "sphere"])
def test_places_differ_at_20_metres_and_unknown_is_zero(chart) -> None:
    here, ten_metres_north = place_features(7.1, [50.7, 50.7 + 10 / (CIRCUMFERENCE_M / 360)], 0.0, 128, chart)
    assert (here - ten_metres_north).abs().max() > 0.5
    for lon, lat, radius in ((math.nan, 1.0, 1.0), (1.0, math.nan, 1.0), (1.0, 1.0, math.nan), (1.0, 1.0, math.inf)):
        got = place_features([lon, 7.1], [lat, 50.7], [radius, 0.0], 128, chart)
        assert torch.count_nonzero(got[0]) == 0
        torch.testing.assert_close(got[1], here)


@pytest.mark.parametrize("count", [8, 64, 512])
def test_place_frequencies(count: int) -> None:
    from gpna.fourier import _place_frequencies, _sphere_frequencies

    k = _place_frequencies(count, CIRCUMFERENCE_M / 20)
    assert (k[:, 0] == k[:, 0].round()).all() and k[-1].norm() > 2e6 - 1e4
    for vectors in (k, _sphere_frequencies(count, CIRCUMFERENCE_M / 20)):
        both = torch.cat([vectors, -vectors])
        assert len({tuple(v) for v in both.tolist()}) == 2 * count
        assert vectors.norm(dim=1).min() > 0.8


# -- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("year", [1969, 2019, 2020, 2100])
def test_a_year_has_no_season(year: int) -> None:
    """Exactly, leap year or not; the trend stays."""
    waves = time_features(day(f"{year}-01-01"), day(f"{year + 1}-01-01"), 32, F64)
    assert torch.count_nonzero(waves[:16]) == 0
    assert torch.count_nonzero(waves[16:].abs() > 0.01) >= 10


def test_monthly_composites() -> None:
    """A twelfth of a year leaves 0.9886, 0.9549, 0.9003, 0.8270 of the first four seasonal frequencies."""
    start = day("2019-03-10")
    waves = time_features(start, start + 365 * DAY / 12, 16, F64)
    np.testing.assert_allclose(waves[:4].hypot(waves[4:8]), [0.9886, 0.9549, 0.9003, 0.8270], atol=5e-5)


def test_season_repeats_and_trend_does_not() -> None:
    dates = [day(f"{y}-07-02") for y in (2001, 2002, 2019)]
    waves = time_features(dates, dates, 32, F64)
    torch.testing.assert_close(waves[1:, :16], waves[:1, :16].expand(2, 16), atol=1e-9, rtol=0)
    far = torch.cdist(waves[:, 16:], waves[:, 16:])
    assert far[0, 1] > 0.5 and far[0, 2] > 0.5
    # Half a year turns the annual wave round; the phase starts with the calendar year.
    torch.testing.assert_close(time_features(day("2019-01-01"), day("2019-01-01"), 8, F64)[:4], f64([0, 0, 1, 1]))


def test_time_is_the_mean_over_its_interval() -> None:
    start, end = day("2019-11-20T06:30"), day("2020-02-03")
    step = (day("2020-01-01") - start) / 4000, (end - day("2020-01-01")) / 4000
    days = (
        [start + step[0] * (i + 0.5) for i in range(4000)],
        [day("2020-01-01") + step[1] * (i + 0.5) for i in range(4000)],
    )
    # In the calendar's time a day of a leap year is 365/366 as long.
    length = (step[0] / 365, step[1] / 366)
    mean = sum(time_features(d, d, 16, F64).mean(0) * w for d, w in zip(days, length, strict=True)) / sum(length)
    torch.testing.assert_close(time_features(start, end, 16, F64), mean, atol=1e-6, rtol=0)


def test_unknown_and_wrong_times() -> None:
    known = time_features(day("2019-01-05"), day("2019-01-08"), 16)
    waves = time_features([math.nan, day("2019-01-05"), 0.0], [5.0, day("2019-01-08"), math.nan], 16)
    assert torch.count_nonzero(waves[0]) == torch.count_nonzero(waves[2]) == 0 and torch.equal(waves[1], known)
    with pytest.raises(UserError, match="before its start"):
        time_features(10.0, 9.0, 16)
    with pytest.raises(UserError, match="Unix seconds"):
        time_features(day("2019-01-05") * 1000, day("2019-01-05") * 1000, 16)


# -- wavelength, resolution, position -----------------------------------------------------------------------------------


def test_spectral_is_the_mean_over_the_band() -> None:
    """On the logarithm of the wavelength, from edge to edge."""
    low, high = math.log2(490 - 32.5), math.log2(490 + 32.5)
    inside = 2 ** (low + (high - low) * (torch.arange(20000, dtype=F64) + 0.5) / 20000)
    mean = spectral_features(inside, 0.0, 32, F64).mean(0)
    torch.testing.assert_close(spectral_features(490, 65, 32, F64), mean, atol=1e-7, rtol=0)


def test_spectral_tells_sentinel_2_bands_apart() -> None:
    centre = [443, 490, 560, 665, 705, 740, 783, 842, 865, 945, 1610, 2190]
    width = [20, 65, 35, 30, 15, 15, 20, 115, 20, 20, 90, 180]
    waves = spectral_features(centre, width, 64)
    apart = torch.cdist(waves, waves) + 9 * torch.eye(12)
    assert apart.min() > 0.8
    # Bands of two sensors that see the same light are close (Landsat 8 red beside Sentinel-2 red).
    assert torch.dist(spectral_features(655, 37, 64), waves[3]) < apart[3].min()
    assert torch.count_nonzero(spectral_features([math.nan, 490], [10, math.nan], 64)) == 0
    for bad in ((490, -1), (490, 990), (0, 0)):
        with pytest.raises(UserError):
            spectral_features(*bad, 64)


def test_gsd() -> None:
    waves = gsd_features([0.3, 10.0, 11.0, 20.0, 1000.0, math.nan], 16)
    assert torch.count_nonzero(waves[5]) == 0
    apart = torch.cdist(waves[:5], waves[:5])
    assert apart[1, 2] < 0.6 * apart[1, 3] and (apart + torch.eye(5)).min() > 0.3
    # A factor is the same step at any resolution.
    pairs = gsd_features([0.3, 0.6, 500.0, 1000.0], 16)
    assert torch.dist(pairs[0], pairs[1]).item() == pytest.approx(torch.dist(pairs[2], pairs[3]).item(), rel=1e-5)
    with pytest.raises(UserError):
        gsd_features([10.0, 0.0], 16)


def test_positions() -> None:
    grid = position_features(4, 6, 32, "half_plane")
    assert grid.shape == (4, 6, 32) and grid.dtype == torch.float32
    one = position_features_at([1.5 / 6], [2.5 / 4], 0.5 / 6, 0.5 / 4, 32, "half_plane")
    torch.testing.assert_close(grid[2, 1], one[0])
    k = plane_frequencies(16, 16.0, "half_plane")
    plain = encode(f64([1.5 / 6, 2.5 / 4]), f64([0.5 / 6, 0.5 / 4]), k)
    torch.testing.assert_close(one[0], plain)
    # Tokens of different grids meet: the same spot is nearly the same vector, unlike the one beside it.
    fine = position_features(64, 64, 64, "half_plane").view(4096, 64)
    middle = position_features_at(0.5 + 1 / 128, 0.5 + 1 / 128, 1 / 100, 1 / 100, 64, "half_plane")
    assert torch.cdist(middle[None], fine).argmin().item() == 32 * 64 + 32
    assert torch.count_nonzero(position_features_at([0.5, math.nan], 0.5, [math.inf, 0.1], 0.1, 32, "first")) == 0
    with pytest.raises(UserError):
        position_features(0, 4, 32, "first")
    with pytest.raises(UserError):
        position_features_at(0.5, 0.5, -0.1, 0.1, 32, "first")


ALL = {
    "place": lambda size, dtype=torch.float32: place_features([7.0, 8.0], 50.0, 100.0, size, dtype=dtype),
    "sphere": lambda size, dtype=torch.float32: place_features([7.0, 8.0], 50.0, 100.0, size, "sphere", dtype=dtype),
    "time": lambda size, dtype=torch.float32: time_features([0.0, 1.0], [2.0, 3.0], size, dtype),
    "spectral": lambda size, dtype=torch.float32: spectral_features([490.0, 560.0], 30.0, size, dtype),
    "gsd": lambda size, dtype=torch.float32: gsd_features([10.0, 20.0], size, dtype),
    "position": lambda size, dtype=torch.float32: position_features_at(
        [0.1, 0.2], 0.3, 0.0, 0.0, size, "first", dtype=dtype
    ),
}


@pytest.mark.parametrize("name", ALL)
def test_exactly_size_columns(name: str) -> None:
    for size in (2, 4, 6, 62, 128):
        waves = ALL[name](size)
        assert waves.shape == (2, size) and waves.dtype == torch.float32 and waves.abs().max() <= 1
        assert not torch.equal(waves[0], waves[1]) or size == 2 or name == "time"
        torch.testing.assert_close(ALL[name](size, F64).float(), waves)
    for size in (0, 1, 7, -2):
        with pytest.raises(UserError, match="even size"):
            ALL[name](size)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda: place_features(0, 90.1, 0, 8), "latitude 90.1"),
        (lambda: place_features([0, 0], [0, -91], 0, 8), "latitude -91"),
        (lambda: place_features(500_000.0, 45, 0, 8), "longitude 500000"),
        (lambda: place_features(0, 0, -1, 8), "radius"),
        (lambda: place_features(0, 0, 1, 8, chart="mercator"), "chart"),
        (lambda: place_features(0, 0, 1, 8, shortest_m=0.0), "shortest"),
        (lambda: place_features(0, 0, 1, 8, shortest_m=1e8), "shortest"),
    ],
)
def test_wrong_places_are_refused(bad, words: str) -> None:
    with pytest.raises(UserError, match=words):
        bad()


def test_built_on_the_cpu_under_any_device() -> None:
    """Modules are built under torch.device("meta"); fixed encodings must have values there all the same."""
    with torch.device("meta"):
        waves = [f(8) for f in ALL.values()] + [position_features(2, 2, 8, "first")]
    assert all(w.device.type == "cpu" and w.abs().sum() > 0 for w in waves)


def test_autocast_changes_nothing() -> None:
    plain = [f(16) for f in ALL.values()]
    with torch.autocast("cpu", torch.bfloat16):
        waves = [f(16) for f in ALL.values()]
    assert all(torch.equal(a, b) for a, b in zip(plain, waves, strict=True))
