"""Where samples lie: blocks of ground, distances between splits, and an order that keeps neighbours together."""

from __future__ import annotations

from typing import Any

import numpy as np

EARTH_KM = 6371.0088
"""Mean radius R1 (IUGG)."""
_KM_A_DEGREE = EARTH_KM * np.pi / 180


def known(places: np.ndarray) -> np.ndarray:
    """Which of `places` [n, 2] (longitude, latitude in degrees) are known: bool [n]."""
    return np.isfinite(places).all(axis=1) & (np.abs(places[:, 1]) <= 90)


def blocks(places: np.ndarray, block_km: float) -> list[bytes]:
    """The block of ground of each known place: bands of latitude `block_km` high, cut into pieces about as wide.

    Around a band a whole number of pieces fits, so the antimeridian is a border like any other.
    """
    lon, lat = places[:, 0] % 360, places[:, 1]
    row = np.floor((lat + 90) * _KM_A_DEGREE / block_km).astype(np.int64)
    middle = np.clip((row + 0.5) * block_km / _KM_A_DEGREE - 90, -90, 90)
    around = np.maximum(1, np.rint(360 * _KM_A_DEGREE * np.cos(np.radians(middle)) / block_km)).astype(np.int64)
    column = np.minimum((lon / 360 * around).astype(np.int64), around - 1)
    return [b"block:%d:%d" % pair for pair in zip(row.tolist(), column.tolist(), strict=True)]


def nearest_km(places: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Great-circle distance in kilometres of each of `places` [n, 2] to the nearest of `others` [m, 2], m > 0."""
    from sklearn.neighbors import BallTree

    tree = BallTree(np.radians(others[:, ::-1]), metric="haversine")
    return tree.query(np.radians(places[:, ::-1]), k=1)[0][:, 0] * EARTH_KM


def split_distances(places: np.ndarray, splits: np.ndarray) -> dict[str, Any]:
    """How near the splits come to each other: {"test-train": {"nearest_km", "median_nearest_km"}, …}.

    Over samples whose place is known; centres count, not footprints.
    """
    there = known(places)
    names = [name for name in sorted(set(splits[there].tolist())) if name]
    out: dict[str, Any] = {}
    for k, one in enumerate(names):
        for other in names[k + 1 :]:
            held, rest = (other, one) if one == "train" else (one, other)
            found = nearest_km(places[there & (splits == held)], places[there & (splits == rest)])
            out[f"{held}-{rest}"] = {
                "nearest_km": round(float(found.min()), 3),
                "median_nearest_km": round(float(np.median(found)), 3),
            }
    return out


_BITS = 16


def curve_position(places: np.ndarray) -> np.ndarray:
    """Position of each place on a Hilbert curve over longitude and latitude, 2^16 cells a side: int64 [n].

    Places that are near on the curve are near on the ground (not always the other way round); unknown places get the
    last position. Hilbert (1891), computed digit by digit from the top as in Warren, Hacker's Delight, section 16-2.
    """
    there = known(places)
    cells = 1 << _BITS
    x = np.where(there, (places[:, 0] + 180) % 360 / 360, 0)
    y = np.where(there, (places[:, 1] + 90) / 180, 0)
    x, y = (np.minimum((v * cells).astype(np.int64), cells - 1) for v in (x, y))
    position = np.zeros(len(places), np.int64)
    side = cells >> 1
    while side:
        right, upper = (x & side) > 0, (y & side) > 0
        position += side * side * ((3 * right) ^ upper)
        # Turn the quadrant so that the curve inside it begins and ends where the next one goes on.
        turn, mirror = ~upper, ~upper & right
        x, y = np.where(mirror, cells - 1 - x, x), np.where(mirror, cells - 1 - y, y)
        x, y = np.where(turn, y, x), np.where(turn, x, y)
        side >>= 1
    return np.where(there, position, cells * cells)
