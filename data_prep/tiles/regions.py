"""Regions of interest: GeoJSON polygons, or a plain list of boxes, in degrees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frontier.errors import UserError

_SHAPE = "GeoJSON with Polygons or MultiPolygons, or a list of boxes [[west, south, east, north], …] in degrees"


@dataclass(frozen=True)
class Region:
    """A polygon as rings [n, 2] of longitude and latitude, continuous in longitude; holes are further rings."""

    rings: tuple[np.ndarray, ...]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(west, south, east, north); east may exceed 180."""
        low, high = self.rings[0].min(axis=0), self.rings[0].max(axis=0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    def holds(self, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Which of the points lie inside: the even-odd rule over all rings. bool, shape of `lon`."""
        west, _, _, _ = self.box
        lon = west + np.mod(lon - west, 360)
        inside = np.zeros(np.shape(lon), bool)
        for ring in self.rings:
            for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                if y0 == y1:
                    continue
                crosses = (y0 > lat) != (y1 > lat)
                inside ^= crosses & (lon < x0 + (lat - y0) / (y1 - y0) * (x1 - x0))
        return inside


def read_regions(path: Path) -> list[Region]:
    """The regions of a file. Raises `UserError` that names it."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"regions {path}: cannot be read ({error.strerror}): give {_SHAPE}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"regions {path}: not valid JSON ({error}): give {_SHAPE}") from None
    try:
        regions = list(_regions(content))
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"regions {path}: {error}: give {_SHAPE}") from None
    if not regions:
        raise UserError(f"regions {path}: holds no region: give {_SHAPE}")
    return regions


def any_holds(regions: list[Region], lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Which points lie in at least one region."""
    inside = np.zeros(np.shape(lon), bool)
    for region in regions:
        inside |= region.holds(lon, lat)
    return inside


def _regions(content: Any) -> Iterator[Region]:
    if isinstance(content, list):
        boxes = [content] if content and not isinstance(content[0], list) else content
        for box in boxes:
            yield _box(box)
        return
    kind = content["type"] if isinstance(content, dict) and "type" in content else None
    if kind == "FeatureCollection":
        for feature in content["features"]:
            yield from _regions(feature)
    elif kind == "Feature":
        yield from _regions(content["geometry"])
    elif kind == "GeometryCollection":
        for geometry in content["geometries"]:
            yield from _regions(geometry)
    elif kind == "Polygon":
        yield _polygon(content["coordinates"])
    elif kind == "MultiPolygon":
        for part in content["coordinates"]:
            yield _polygon(part)
    else:
        raise ValueError(f"{kind or type(content).__name__} is not a region")


def _box(box: Any) -> Region:
    west, south, east, north = (float(edge) for edge in box)
    if east < west:
        east += 360
    if not (-360 <= west < east <= 720 and -90 <= south < north <= 90):
        raise ValueError(f"box {box} is not [west, south, east, north] in degrees")
    return Region((np.array([[west, south], [east, south], [east, north], [west, north]]),))


def _polygon(rings: Any) -> Region:
    out: list[np.ndarray] = []
    for ring in rings:
        points = np.array([point[:2] for point in ring], np.float64)
        if points.ndim != 2 or len(points) < 3 or not np.isfinite(points).all() or np.abs(points[:, 1]).max() > 90:
            raise ValueError("a polygon's ring is not a list of [longitude, latitude]")
        # An edge of more than half the world is one across the antimeridian; one of all the world is meant so.
        steps = np.diff(points[:, 0])
        points[1:, 0] -= np.cumsum(np.where(np.abs(steps) < 360, 360 * np.round(steps / 360), 0))
        if out:
            points[:, 0] += 360 * np.round((out[0][0, 0] - points[0, 0]) / 360)
        out.append(points)
    if not out:
        raise ValueError("a polygon without rings")
    return Region(tuple(out))
