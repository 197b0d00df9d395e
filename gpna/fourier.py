"""Fourier encodings of uncertain coordinates: place, time, position in a tile, wavelength, resolution (arXiv 2211.02348, 7.1.1).

A coordinate is a box x +- half. Its encoding is the average of [sin(2 pi k.x) | cos(2 pi k.x)] over that box (Eqs. 1, 3, 4), in
closed form [sin | cos](2 pi k.x) * prod_i sinc(2 k_i half_i) with sinc(u) = sin(pi u) / (pi u); `gpna.derivation` derives it.
Nothing known is an infinite box, whose average is zero: unknown coordinates need no token of their own.
Coordinates and phases are float64; only the result, of magnitude <= 1, is cast. docs/gpna_encodings.md gives the choices and why.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from frontier.errors import UserError

Region = Literal["axis", "first", "half_plane"]
Spacing = Literal["linear", "geometric", "integer"]
Chart = Literal["lonlat", "sphere"]

CIRCUMFERENCE_M = 2 * math.pi * 6_371_008.8
"""Of the sphere with the Earth's mean radius (IUGG R1)."""
TREND_YEARS = (1984, 2050)
"""The span of the trend's frequencies; Landsat's 30 m record begins in 1984."""
HIGHEST_POSITION = 16.0
"""Cycles a tile: the Nyquist frequency of 32 x 32 tokens."""
HIGHEST_SPECTRAL = 16.0
"""Cycles an octave: bands 4 % apart in wavelength are opposites in the fastest wave."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_PLASTIC = 1.3247179572447460


def encode(x: Tensor, half: Tensor | float, frequencies: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """[..., 2F] averages of sin, then of cos, of 2 pi k.x over the boxes x +- half (Eq. 4 averaged as in Eq. 3).

    x [..., d] float64; half broadcastable to x, in x's units; frequencies [F, d] float64, in cycles per unit of x.
    Where x is NaN, or half infinite or NaN, in any of the d axes, the whole encoding is zero. Gradients are finite everywhere,
    at half = 0 and half = inf too. Raises ValueError for another dtype than float64, for shapes that do not fit, for half < 0.
    """
    half = torch.as_tensor(half, dtype=None if isinstance(half, Tensor) else torch.float64, device=x.device)
    frequencies = frequencies.to(x.device)
    if not x.dtype == half.dtype == frequencies.dtype == torch.float64:
        raise ValueError(f"x, half, frequencies must be float64, not {x.dtype}, {half.dtype}, {frequencies.dtype}")
    if frequencies.ndim != 2 or x.ndim < 1 or x.shape[-1] != frequencies.shape[1]:
        raise ValueError(f"x [..., d] and frequencies [F, d] do not fit: {tuple(x.shape)}, {tuple(frequencies.shape)}")
    if bool((half < 0).any()):
        raise ValueError("half-widths must not be negative")
    half = half.expand(*half.shape[:-1], x.shape[-1])
    if np.broadcast_shapes(half.shape, x.shape) != x.shape:  # torch's own would import sympy
        raise ValueError(f"half {tuple(half.shape)} does not broadcast to x {tuple(x.shape)}")
    # Unknowns leave before the sines do their work: a `where` behind them would still send NaN back through the gradient.
    unknown_x, unknown_half = ~x.isfinite(), ~half.isfinite()
    unknown = unknown_x.any(-1, keepdim=True) | unknown_half.any(-1, keepdim=True)
    turns = x.masked_fill(unknown_x, 0.0).unsqueeze(-2) * frequencies
    # Whole turns leave axis by axis: coordinates that wrap around then give the same digits on both sides, at any frequency.
    phase = (turns - turns.detach().round()).sum(-1)
    spans = 2 * half.masked_fill(unknown_half, 0.0).unsqueeze(-2) * frequencies
    return _waves(phase, spans, unknown, dtype)


def _waves(phase: Tensor, spans: Tensor, unknown: Tensor, dtype: torch.dtype) -> Tensor:
    """phase [..., F] in cycles; spans [..., F, d] in cycles, the box's full width along each axis; unknown [..., 1] bool."""
    turn = 2 * math.pi * (phase - phase.detach().round())
    attenuation = _sinc(spans).prod(-1)
    waves = torch.cat([turn.sin() * attenuation, turn.cos() * attenuation], -1)
    return waves.masked_fill(unknown, 0.0).to(dtype)


def _sinc(u: Tensor) -> Tensor:
    """sin(pi u) / (pi u), exactly 0 at every integer but 0, where torch.sinc leaves rounding errors that grow with u."""
    near = u.abs() < 0.5
    nearest = u.detach().round()
    sign = 1 - 2 * nearest.remainder(2)
    far = sign * (math.pi * (u - nearest)).sin() / (math.pi * u.masked_fill(near, 1.0))
    return torch.where(near, torch.sinc(u), far)


def plane_frequencies(count: int, highest: float, region: Region, lowest: float | None = None) -> Tensor:
    """[count, 2] distinct frequency vectors, float64, increasing in length from `lowest` to `highest` in equal ratios.

    axis: half of them on the x axis, half on the y axis, each half with its own ladder of lengths (Eq. 2).
    first: angles in [0, 90) degrees (Eq. 4 as in the paper); half_plane: in [0, 180), every direction once, as k and -k give the
    same waves. Consecutive angles differ by the golden section of that range, so any run of lengths has all directions.
    `lowest` is 0.5 unless said (half of `highest` if that is less).
    """
    if region not in get_args(Region):
        raise UserError(f"unknown region of frequencies {region!r}: it is one of {', '.join(get_args(Region))}")
    if region == "axis":
        along = torch.zeros(count, 2, dtype=torch.float64, device="cpu")
        columns = count - count // 2
        along[:columns, 0] = _ladder(columns, highest, lowest)
        if count > 1:
            along[columns:, 1] = _ladder(count // 2, highest, lowest)
        return along
    return _fan(_ladder(count, highest, lowest), math.pi / 2 if region == "first" else math.pi)


def _fan(length: Tensor, span: float) -> Tensor:
    """[n, 2] vectors of these lengths at angles in [0, span) that lie a golden section of it apart."""
    angle = span * _sequence(len(length), _GOLDEN, start=0.5)
    return torch.stack([length * angle.cos(), length * angle.sin()], -1)


def axis_frequencies(count: int, highest: float, spacing: Spacing, lowest: float | None = None) -> Tensor:
    """[count, 1] increasing frequencies from `lowest` (0.5, or highest/2 if less; 1 where integer) to `highest`, float64.

    linear: equal steps; geometric: equal ratios; integer: whole numbers near equal ratios, each used once, for coordinates
    that wrap around at 1. Raises UserError where `highest` leaves too few whole numbers.
    """
    if spacing == "geometric":
        return _ladder(count, highest, lowest)[:, None]
    if spacing == "linear":
        _ladder(count, highest, lowest)  # refuses what the other ladder refuses
        lowest = min(0.5, highest / 2) if lowest is None else lowest
        return torch.linspace(lowest, highest, count, dtype=torch.float64, device="cpu")[:, None]
    if spacing != "integer":
        raise UserError(f"unknown spacing of frequencies {spacing!r}: it is one of {', '.join(get_args(Spacing))}")
    first, last = math.ceil(1 if lowest is None else lowest), math.floor(highest)
    if first < 1 or last - first + 1 < count:
        raise UserError(
            f"there are no {count} whole frequencies in {first} ... {highest:g}: lower the size or raise `highest`"
        )
    if count == 1:
        return torch.full((1, 1), float(first), dtype=torch.float64, device="cpu")
    wanted = _ladder(count, last, first).round().long().tolist()
    for i in range(1, count):
        wanted[i] = min(max(wanted[i], wanted[i - 1] + 1), last - (count - 1 - i))
    return torch.tensor(wanted, dtype=torch.float64, device="cpu")[:, None]


def _ladder(count: int, highest: float, lowest: float | None) -> Tensor:
    """[count] numbers from lowest to highest in equal ratios, float64; the lowest alone where count is 1."""
    lowest = min(0.5, highest / 2) if lowest is None else lowest
    if count < 1 or not 0 < lowest <= highest < math.inf or (count > 1 and lowest == highest):
        raise UserError(
            f"no {count} frequencies can lie in {lowest:g} ... {highest:g}: give a count >= 1, 0 < lowest < highest"
        )
    ladder = lowest * (highest / lowest) ** torch.linspace(0, 1, count, dtype=torch.float64, device="cpu")
    ladder[1:][-1:] = highest
    return ladder


def _sequence(count: int, step: float, start: float) -> Tensor:
    """[count] numbers in [0, 1): start + i * step, wrapped; evenly spread for every count where step is badly rational."""
    return (start + step * torch.arange(count, dtype=torch.float64, device="cpu")).remainder(1)


def place_features(
    lon_deg: Any,
    lat_deg: Any,
    radius_m: Any,
    size: int,
    chart: Chart = "lonlat",
    shortest_m: float = 20.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """[..., size] encoding of the square lon, lat +- radius_m; arrays or numbers that broadcast; NaN (or an infinite radius): zeros.

    Waves in all directions, from the Earth's circumference to `shortest_m`, ever sparser towards the short ones.
    lonlat: waves in (lon, lat)/360 degrees, with whole frequencies along longitude, so -180 and 180 agree; radius_m is
    divided by cos(lat) along longitude, up to the whole circle. At a pole only the waves along the meridian are left where radius_m > 0.
    sphere: waves in the unit vector's three coordinates, averaged over the square in the plane that touches the sphere there: no
    seam, no pole, no latitude unlike the others; the price is waves that stand still where they meet the ground at
    a right angle. Raises UserError for |lat| > 90, |lon| > 360, a negative radius.
    """
    count = _waves_of(size, "place")
    if not 0 < shortest_m < CIRCUMFERENCE_M:
        raise UserError(
            f"the shortest wave of places cannot be {shortest_m:g} m: give more than 0, less than {CIRCUMFERENCE_M:.0f}"
        )
    lon, lat, radius = torch.broadcast_tensors(_float64(lon_deg), _float64(lat_deg), _float64(radius_m))
    _refuse(lat.abs() > 90, lat, "latitude", "must lie in -90 ... 90 degrees: are lon and lat exchanged?")
    _refuse(lon.abs() > 360, lon, "longitude", "must be in degrees: is it in metres of a projection?")
    _refuse(radius < 0, radius, "radius", "must not be negative")
    half = radius / CIRCUMFERENCE_M
    if chart == "lonlat":
        half_lon = (half / torch.deg2rad(lat).cos().clamp(min=1e-15)).clamp(max=0.5)
        frequencies = _place_frequencies(count, CIRCUMFERENCE_M / shortest_m)
        return encode(torch.stack([lon, lat], -1) / 360, torch.stack([half_lon, half], -1), frequencies, dtype)
    if chart != "sphere":
        raise UserError(f"unknown chart of places {chart!r}: it is one of {', '.join(get_args(Chart))}")
    unknown = ~(lon.isfinite() & lat.isfinite() & half.isfinite())[..., None]
    lam, phi, half = (v.masked_fill(unknown[..., 0], 0.0) for v in (torch.deg2rad(lon), torch.deg2rad(lat), half))
    up = torch.stack([phi.cos() * lam.cos(), phi.cos() * lam.sin(), phi.sin()], -1)
    east = torch.stack([-lam.sin(), lam.cos(), torch.zeros_like(lam)], -1)
    north = torch.linalg.cross(up, east)
    frequencies = _sphere_frequencies(count, CIRCUMFERENCE_M / shortest_m)
    spans = 2 * half[..., None, None] * torch.stack([east @ frequencies.T, north @ frequencies.T], -1)
    return _waves(up @ frequencies.T / (2 * math.pi), spans, unknown, dtype)


def _place_frequencies(count: int, highest: float) -> Tensor:
    """[count, 2] float64 in cycles a full circle, whole along longitude, on one half of all directions."""
    frequencies = _fan(_place_lengths(count, highest), math.pi)
    frequencies[:, 0].round_()
    return frequencies


def _sphere_frequencies(count: int, highest: float) -> Tensor:
    """[count, 3] float64 in cycles a full circle on the ground, on one half of all directions (steps by the plastic number)."""
    z, turn = _sequence(count, 1 / _PLASTIC, 0.5), 2 * math.pi * _sequence(count, 1 / _PLASTIC**2, 0.5)
    r = (1 - z**2).sqrt()
    return _place_lengths(count, highest)[:, None] * torch.stack([r * turn.cos(), r * turn.sin(), z], -1)


def _place_lengths(count: int, highest: float) -> Tensor:
    """[count] from 1 to highest. Their logarithms grow with the square of the place in the sequence: continents get most waves."""
    return highest ** (torch.linspace(0, 1, count, dtype=torch.float64, device="cpu") ** 2)


def time_features(start_s: Any, end_s: Any, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[..., size] encoding of the intervals start_s ... end_s, Unix seconds (UTC); NaN: zeros.

    The first half of the waves (one more where their number is odd) is the season: 1, 2, 3, ... cycles a calendar year,
    leap or not, so a composite of one calendar year is exactly 0 there. The others are the trend: one cycle in 264 years to
    one in 2 years, in equal ratios, counted from 1984. Layout: [season sin | season cos | trend sin | trend cos].
    Raises UserError where end_s < start_s and outside the years 1 ... 9999.
    """
    count = _waves_of(size, "time")
    start, end = torch.broadcast_tensors(_float64(start_s), _float64(end_s))
    _refuse(end < start, end, "end of a time interval", "lies before its start")
    for instant in (start, end):
        _refuse(
            (instant < -62135596800) | (instant >= 253402300800),
            instant,
            "time",
            "must be in Unix seconds, years 1 ... 9999",
        )
    unknown = ~(start.isfinite() & end.isfinite())
    year, first = _calendar(start.masked_fill(unknown, 0.0))
    last_year, last = _calendar(end.masked_fill(unknown, 0.0))
    last = last + (last_year - year)
    centre = ((first + last) / 2).masked_fill(unknown, math.nan)[..., None]
    half = ((last - first) / 2)[..., None]
    parts = [encode(centre, half, axis_frequencies(count - count // 2, count - count // 2, "integer"), dtype)]
    if count > 1:
        span = TREND_YEARS[1] - TREND_YEARS[0]
        trend = axis_frequencies(count // 2, span / 2, "geometric", lowest=0.25)
        parts.append(encode((year[..., None] - TREND_YEARS[0] + centre) / span, half / span, trend, dtype))
    return torch.cat(parts, -1)


def _calendar(seconds: Tensor) -> tuple[Tensor, Tensor]:
    """The calendar year of Unix seconds, and the part of that year gone by, in [0, 1): both float64."""
    given = seconds.numpy()
    whole = np.floor(given)
    year = whole.astype("int64").astype("datetime64[s]").astype("datetime64[Y]")
    begins, ends = (y.astype("datetime64[s]").astype("int64") for y in (year, year + 1))
    gone = ((whole.astype("int64") - begins) + (given - whole)) / (ends - begins)
    return torch.from_numpy(np.asarray(year.astype("int64") + 1970.0)), torch.from_numpy(np.asarray(gone))


def spectral_features(
    centre_nm: Any, width_nm: Any, size: int, dtype: torch.dtype = torch.float32, highest: float = HIGHEST_SPECTRAL
) -> Tensor:
    """[..., size] encoding of bands centre_nm +- width_nm / 2 (width_nm: the full width); NaN (not optical, unknown): zeros.

    The coordinate is log2 of the wavelength and the box is the band's two edges on it; frequencies go from 1/16 to `highest` cycles
    an octave in equal ratios. Raises UserError for a negative width and for a band that reaches 0 nm.
    """
    count = _waves_of(size, "spectral")
    centre, width = torch.broadcast_tensors(_float64(centre_nm), _float64(width_nm))
    _refuse(width < 0, width, "bandwidth", "must not be negative")
    _refuse(
        (centre - width / 2 <= 0) & width.isfinite(),
        centre,
        "band at wavelength",
        "reaches 0 nm: give centre and full width in nm",
    )
    unknown = ~(centre.isfinite() & width.isfinite())
    shortest, longest = ((centre + side * width / 2).masked_fill(unknown, 1.0).log2() for side in (-1, 1))
    x = ((shortest + longest) / 2).masked_fill(unknown, math.nan)
    frequencies = axis_frequencies(count, highest, "geometric", lowest=1 / 16)
    return encode(x[..., None], ((longest - shortest) / 2)[..., None], frequencies, dtype)


def gsd_features(gsd_m: Any, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[..., size] encoding of log2 of the ground sampling distance, known exactly; 1/40 to 1 cycles an octave; NaN: zeros."""
    count = _waves_of(size, "gsd")
    gsd = _float64(gsd_m)
    _refuse(gsd <= 0, gsd, "ground sampling distance", "must be positive metres")
    return encode(gsd.log2()[..., None], 0.0, axis_frequencies(count, 1.0, "geometric", lowest=1 / 40), dtype)


def position_features(
    rows: int,
    columns: int,
    size: int,
    region: Region,
    highest: float = HIGHEST_POSITION,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """[rows, columns, size] encoding of a grid's cells in their tile [0, 1]^2: centres +- half a cell, row 0 and column 0 at 0.

    `highest` in cycles a tile; tokens and queries that shall meet in one space need the same `highest`, whatever their grids.
    """
    if rows < 1 or columns < 1:
        raise UserError(f"a grid needs at least one row and one column, not {rows} x {columns}")
    y, x = (((torch.arange(n, dtype=torch.float64, device="cpu") + 0.5) / n) for n in (rows, columns))
    return position_features_at(x, y[:, None], 0.5 / columns, 0.5 / rows, size, region, highest, dtype)


def position_features_at(
    x: Any,
    y: Any,
    half_x: Any,
    half_y: Any,
    size: int,
    region: Region,
    highest: float = HIGHEST_POSITION,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """[..., size] encoding of boxes x +- half_x (along columns), y +- half_y (along rows) in a tile [0, 1]^2.

    Arrays or numbers; x and y broadcast to each other, the half-widths to both. NaN or an infinite half-width: zeros.
    """
    frequencies = plane_frequencies(_waves_of(size, "position"), highest, region)
    at = torch.stack(torch.broadcast_tensors(_float64(x), _float64(y)), -1)
    half = torch.stack(torch.broadcast_tensors(_float64(half_x), _float64(half_y)), -1)
    _refuse(half < 0, half, "half-width of a position", "must not be negative")
    return encode(at, half, frequencies, dtype)


def _waves_of(size: int, name: str) -> int:
    """Half of size: each wave has a sine and a cosine."""
    if size < 2 or size % 2:
        raise UserError(f"the {name} encoding cannot have {size} columns: give an even size of at least 2")
    return size // 2


def _float64(value: Any) -> Tensor:
    """A CPU float64 tensor; float32 coordinates are taken as they are, no digits come back."""
    if isinstance(value, Tensor):
        return value.to("cpu", torch.float64)
    return torch.as_tensor(np.asarray(value, dtype=np.float64), device="cpu")


def _refuse(wrong: Tensor, values: Tensor, name: str, words: str) -> None:
    if bool(wrong.any()):
        raise UserError(f"{name} {values[wrong][0].item():g} {words}")
