"""Cray EX nodes: /sys/cray/pm_counters, the node as a whole and its parts, refreshed about ten times a second.

A file holds `value unit timestamp us` (`218318347 J 1732281422123456 us`). `energy` includes `accel_energy`, `cpu_energy`,
`memory_energy` and what has no counter (network, board). Source: HPE, "User Access to Compute Node Power Data".
"""

from __future__ import annotations

import re
from pathlib import Path

from frontier.energy.source import NODE, Access, Rising, Source, Unavailable, read_small

TRIES = 5


def parse(text: str) -> tuple[float, float | None]:
    """(value, timestamp in seconds where the file has one)."""
    words = text.split()
    if not words:
        raise ValueError("empty")
    stamp = float(words[-2]) / 1e6 if len(words) >= 3 and words[-1] == "us" else None
    return float(words[0]), stamp


class PmCounters(Source):
    name = "Cray pm_counters"
    covers = "the whole node: processors, memory, devices and the rest of the board"
    period_s = 0.1

    def __init__(self, root: Path) -> None:
        """Raises Unavailable where the folder or its `energy` is missing."""
        super().__init__()
        if not (root / "energy").is_file():
            raise Unavailable(f"no {root / 'energy'}: not a Cray EX node, or hidden from this job")
        names = {NODE: "energy", "cpu": "cpu_energy", "memory": "memory_energy"}
        modules = sorted(
            int(m[1]) for f in root.glob("accel*_energy") if (m := re.fullmatch(r"accel(\d+)_energy", f.name))
        )
        names |= {f"accel{n}": f"accel{n}_energy" for n in modules} or {"accel": "accel_energy"}
        self._files = {part: str(root / name) for part, name in names.items() if (root / name).is_file()}
        self._freshness, self._startup, self._generation = (
            str(root / n) for n in ("freshness", "startup", "generation")
        )
        self._power = str(root / "power")
        self._rising = Rising()
        self._seen: dict[str, float | None] = {}

    def _number(self, path: str) -> float | None:
        try:
            return parse(read_small(path))[0]
        except FileNotFoundError:
            return None

    def read(self) -> dict[str, float]:
        try:
            raw, stamp = self._untorn()
            startup, generation = self._number(self._startup), self._number(self._generation)
        except (OSError, ValueError) as error:
            raise Unavailable(f"{Path(self._freshness).parent}: {error}") from None
        if self._changed("generation", generation):
            self.notes.append("the node's power cap was changed (pm_counters generation)")
        if self._changed("startup", startup):
            self.notes.append("pm_counters were restarted: the joules of that moment are lost")
            for part, value in raw.items():
                self._rising.restarted(part, value)
        self.stamp = stamp
        return {part: self._rising.follow(part, value) for part, value in raw.items()}

    def sensor_w(self) -> float | None:
        return self._number(self._power)

    def _untorn(self) -> tuple[dict[str, float], float | None]:
        """Values of one refresh: read again where `freshness` moved meanwhile."""
        for _ in range(TRIES):
            before = self._number(self._freshness)
            found = {part: parse(read_small(path)) for part, path in self._files.items()}
            if self._number(self._freshness) == before:
                return {part: value for part, (value, _) in found.items()}, found[NODE][1]
        raise Unavailable(f"freshness moved during each of {TRIES} reads: no reading is whole")

    def _changed(self, name: str, value: float | None) -> bool:
        before = self._seen.get(name, value)
        self._seen[name] = value
        return value != before


def open_source(access: Access, ranks: int) -> Source:
    """Raises Unavailable. The node is read as a whole, so `ranks` (on this node) has no part in it."""
    return PmCounters(access.pm_counters)
