"""Chips on a regular grid: where they lie, and which must stay together so that no ground is in two splits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.rasters.grid import Grid, ground_distance, is_geographic, lonlat

_METRES_A_DEGREE = 111_320.0
Cell = tuple[int, int]


def offsets(height: int, width: int, size: int, stride: int, pad: bool) -> np.ndarray:
    """(row, column) of every chip's first pixel, int32 [n, 2], row by row.

    Chips lie wholly inside; with `pad` the last ones may reach out, so that every pixel is in one.
    """

    def along(length: int) -> np.ndarray:
        if pad:
            return np.arange(0, max(1, length - size + stride), stride) if length > size else np.zeros(1, int)
        return np.arange(0, length - size + 1, stride)

    rows, columns = np.meshgrid(along(height), along(width), indexing="ij")
    return np.stack([rows.ravel(), columns.ravel()], axis=1).astype(np.int32)


def places(grid: Grid, corners: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre longitude and latitude (degrees) and ground sampling distance (metres) of chips, each [n].

    The distance is the geometric mean of both directions, at the centre.
    """
    rows, columns = (corners.T + size / 2) if len(corners) else np.zeros((2, 0))
    lon, lat = lonlat(grid.crs, *grid.xy(columns, rows))
    along, down = ground_distance(grid, columns, rows)
    return lon, lat, np.sqrt(along * down)


@dataclass(frozen=True)
class Boxes:
    """Bounding boxes [n, 4] (x0, y0, x1, y1): `flat` in the CRS, `round` in degrees, beyond 180 over the date line.

    `crs` is "" for degrees, which only the round boxes compare rightly: they begin again at the date line.
    """

    crs: np.ndarray
    flat: np.ndarray
    round: np.ndarray

    @staticmethod
    def of(grid: Grid, corners: np.ndarray, height: int, width: int) -> Boxes:
        """Boxes of the windows of height x width pixels from `corners` [n, 2] on."""
        steps = np.linspace(0, 1, 5)
        down, along = (part.ravel() for part in np.meshgrid(steps, steps, indexing="ij"))
        rows = corners[:, :1] + down * height
        columns = corners[:, 1:] + along * width
        x, y = grid.xy(columns, rows)
        lon, lat = lonlat(grid.crs, x, y)
        # Off the Earth: the middle of the 5 x 5 mesh.
        lon = np.where(np.isfinite(lon), lon, lon[:, 12:13])
        lat = np.where(np.isfinite(lat), lat, lat[:, 12:13])
        lon, lat = _round_the_poles(_continuous(lon), lat)
        return Boxes(
            np.full(len(corners), "" if is_geographic(grid.crs) else grid.crs, object),
            np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], axis=1),
            np.stack([lon.min(1), lat.min(1), lon.max(1), lat.max(1)], axis=1),
        )

    def overlapping(self, one: int, others: np.ndarray) -> np.ndarray:
        """Which of `others` (indices) share ground with box `one`: exact in one CRS, by degrees between two."""
        same = (self.crs[others] == self.crs[one]) & (self.crs[one] != "")
        flat = _intersect(self.flat[others], self.flat[one])
        box = self.round[one]
        # Boxes may be as wide as the world: of its turns, all that can meet are tried.
        turns = np.rint((box[0] - self.round[others, 0]) / 360)
        met = np.zeros(len(others), bool)
        for more in (-1, 0, 1):
            moved = self.round[others].copy()
            moved[:, [0, 2]] += 360 * (turns + more)[:, None]
            met |= _intersect(moved, box)
        return np.where(same, flat, met)

    @staticmethod
    def join(parts: Sequence[Boxes]) -> Boxes:
        """All boxes of `parts` in order."""
        return Boxes(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("crs", "flat", "round")))


def _continuous(lon: np.ndarray) -> np.ndarray:
    """Longitudes [n, 25] of 5 x 5 meshes without jumps at the date line, the middle within [-180, 180)."""
    mesh = lon.reshape(-1, 5, 5)
    spine = np.unwrap(mesh[:, :, 2], period=360, axis=1)
    left = np.unwrap(np.concatenate([spine[..., None], mesh[:, :, 1::-1]], axis=2), period=360, axis=2)
    right = np.unwrap(np.concatenate([spine[..., None], mesh[:, :, 3:]], axis=2), period=360, axis=2)
    out = np.concatenate([left[:, :, :0:-1], right], axis=2).reshape(lon.shape)
    return np.asarray(out - (out[:, 12:13] - lon[:, 12:13]))


def _round_the_poles(lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The meshes [n, 25], but those that hold a pole reach it, and all round: their edge goes once about it."""
    edge = np.array([0, 1, 2, 3, 4, 9, 14, 19, 24, 23, 22, 21, 20, 15, 10, 5, 0])
    steps = (np.diff(lon[:, edge], axis=1) + 180) % 360 - 180
    polar = np.abs(steps.sum(axis=1)) > 180
    lon, lat = lon.copy(), lat.copy()
    lon[polar, 0], lon[polar, 1:] = -180, 180
    lat[polar, 0] = np.where(lat[polar, 12] > 0, 90, -90)
    return lon, lat


def _intersect(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Whether more than a hair of each box lies in `box`: neighbours that touch do not overlap."""
    hair = 1e-6 * (box[2:] - box[:2])
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    return np.asarray((high - low > hair).all(axis=1))


def scene_groups(names: Sequence[str], boxes: Boxes) -> list[bytes]:
    """A group for each scene; scenes that overlap, directly or through others, share one, named after the first."""
    parent = list(range(len(names)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for one in range(1, len(names)):
        for other in np.flatnonzero(boxes.overlapping(one, np.arange(one))):
            low, high = sorted((root(one), root(int(other))))
            parent[high] = low
    return [b"scene:" + os.fsencode(names[root(one)]) for one in range(len(names))]


def block_groups(lon: np.ndarray, lat: np.ndarray, boxes: Boxes, block_m: float) -> tuple[list[bytes], np.ndarray]:
    """A group for each chip, by the ground block of `block_m` metres that its centre lies in; and which chips to keep.

    A chip that reaches into another block is left out where it shares ground with a kept chip of a block other than
    its own. So no two groups share ground. Blocks are rows of latitude cut into equal steps of longitude.
    """
    own = np.stack(_cells(lon, lat, block_m), axis=1)
    owners: list[Cell] = list(map(tuple, own.tolist()))
    # Blocks are rectangles in degrees: a box lies in one where all its corners do.
    inside = boxes.round[:, 2] - boxes.round[:, 0] < 180
    for x, y in ((0, 1), (0, 3), (2, 1), (2, 3)):
        corner = np.stack(_cells(boxes.round[:, x], boxes.round[:, y], block_m), axis=1)
        inside &= (corner == own).all(axis=1)
    members: dict[Cell, list[int]] = {}
    keep = np.ones(len(owners), bool)
    for chip in np.flatnonzero(inside).tolist():
        members.setdefault(owners[chip], []).append(chip)
    for chip in np.flatnonzero(~inside).tolist():
        cells = _touched(boxes.round[chip], block_m) | {owners[chip]}
        near = {other for cell in cells for other in members.get(cell, ()) if owners[other] != owners[chip]}
        if near and boxes.overlapping(chip, np.array(sorted(near))).any():
            keep[chip] = False
            continue
        for cell in cells:
            members.setdefault(cell, []).append(chip)
    return [b"block:%d:%d" % owner for owner in owners], keep


def _cells(lon: np.ndarray, lat: np.ndarray, block_m: float) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of the blocks that positions lie in."""
    rows = np.floor((np.asarray(lat) + 90) * _METRES_A_DEGREE / block_m).astype(np.int64)
    middle = np.radians((rows + 0.5) * block_m / _METRES_A_DEGREE - 90)
    around = np.maximum(1, np.floor(360 * _METRES_A_DEGREE * np.abs(np.cos(middle)) / block_m))
    columns = np.floor((np.asarray(lon) + 180) % 360 / 360 * around).astype(np.int64)
    return rows, np.minimum(columns, around.astype(np.int64) - 1)


def _touched(box: np.ndarray, block_m: float) -> set[Cell]:
    """Every block that a box in degrees reaches into."""
    low, high = (int(np.floor((lat + 90) * _METRES_A_DEGREE / block_m)) for lat in (box[1], box[3]))
    out: set[Cell] = set()
    for row in range(low, high + 1):
        lat = np.clip((row + 0.5) * block_m / _METRES_A_DEGREE - 90, -90, 90)
        # Steps below the width of a block at this latitude, so that none is stepped over.
        turn = block_m / (_METRES_A_DEGREE * max(np.cos(np.radians(lat)), 1e-3))
        steps = np.linspace(box[0], box[2], max(2, int(np.ceil((box[2] - box[0]) / turn * 2)) + 1))
        rows, columns = _cells(steps, np.full(len(steps), lat), block_m)
        out |= set(zip(rows.tolist(), columns.tolist(), strict=True))
    return out
