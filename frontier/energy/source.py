"""What every source of energy readings gives: cumulative joules by component, or a word on why not."""

from __future__ import annotations

import importlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NODE = "node"
"""Component that includes all others of its reading; where it is present it is the total."""

COMMAND_TIMEOUT_S = 20.0


class Unavailable(Exception):
    """A source that cannot be read here; the message says why, for people."""


class Source:
    """One source of readings.

    Attributes:
        name: what the run's facts and its report call it.
        covers: what its joules include.
        period_s: how often its values change, which is also how often they are sampled where a read is slow.
        stamp: when the last reading was taken, seconds on the source's own clock; None where it has none.
        notes: sentences on what happened to the counters (a reset, a changed power cap), emptied by who reads them.
    """

    name = ""
    covers = ""
    period_s = 0.1
    slow = False
    """To be read from a thread of its own, however long one read takes."""

    def __init__(self) -> None:
        self.stamp: float | None = None
        self.notes: list[str] = []

    def read(self) -> dict[str, float]:
        """Joules by component since an arbitrary moment; never decreasing. Raises Unavailable."""
        raise NotImplementedError

    def sensor_w(self) -> float | None:
        """Watts now by a power sensor beside the counters, to check them against; None where there is none."""
        return None


def total(reading: Mapping[str, float]) -> float:
    """Joules of a reading: the node's where it is measured as a whole, else the sum of the components."""
    return reading[NODE] if NODE in reading else sum(reading.values())


class Rising:
    """Raw counters made never decreasing: a wrap continues them, a restart begins a new stretch after the old one."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._offset: dict[str, float] = {}

    def follow(self, name: str, raw: float, wraps_at: float | None = None) -> float:
        """The continued counter. With `wraps_at` a lower value is a wrap, without it a restart, whose joules are lost."""
        before = self._last.get(name)
        if before is not None and raw < before:
            self._offset[name] = self._offset.get(name, 0.0) + (before - raw if wraps_at is None else wraps_at)
        self._last[name] = raw
        return raw + self._offset.get(name, 0.0)

    def restarted(self, name: str, raw: float) -> None:
        """The counter began anew and stands at `raw`: nothing is counted between the last value and this one."""
        if name in self._last:
            self._offset[name] = self._offset.get(name, 0.0) + self._last[name] - raw
            self._last[name] = raw


class Integrated(Source):
    """Power readings (watts by component) integrated by the trapezoidal rule, one step a `read`."""

    slow = True

    def __init__(
        self,
        name: str,
        covers: str,
        watts: Callable[[], dict[str, float]],
        period_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.name, self.covers, self.period_s = f"{name} power, integrated", covers, period_s
        self._watts, self._clock = watts, clock
        self._before: tuple[float, dict[str, float]] | None = None
        self._joules: dict[str, float] = {}

    def read(self) -> dict[str, float]:
        began = self._clock()
        watts = self._watts()
        now = (began + self._clock()) / 2
        then, old = self._before or (now, {})
        for name, value in watts.items():
            piece = (old[name] + value) / 2 * (now - then) if name in old else 0.0
            self._joules[name] = self._joules.get(name, 0.0) + piece
        self._before = now, watts
        self.stamp = now
        return dict(self._joules)


class Together(Source):
    """Sources that cover different parts, read one after the other."""

    def __init__(self, parts: Sequence[Source]) -> None:
        super().__init__()
        self._parts = parts
        self.name = " + ".join(part.name for part in parts)
        self.covers = "; ".join(part.covers for part in parts)
        self.period_s = max(part.period_s for part in parts)
        self.slow = any(part.slow for part in parts)

    def read(self) -> dict[str, float]:
        reading: dict[str, float] = {}
        for part in self._parts:
            reading |= part.read()
            self.notes += part.notes
            part.notes = []
        return reading

    def sensor_w(self) -> float | None:
        return None  # of parts that have no sensor it would miss the power


def run_command(command: Sequence[str]) -> str:
    """Standard output of a command. Raises Unavailable where it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
    except FileNotFoundError:
        raise Unavailable(f"no command {command[0]} here") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]}: {type(error).__name__}") from None
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines()
        raise Unavailable(f"{command[0]} exits with {done.returncode}{': ' + told[-1][:200] if told else ''}")
    return done.stdout


@dataclass(frozen=True)
class Access:
    """Where readings come from; tests give a folder, a function and fake modules of their own."""

    pm_counters: Path = Path("/sys/cray/pm_counters")
    powercap: Path = Path("/sys/class/powercap")
    run: Callable[[Sequence[str]], str] = run_command
    load: Callable[[str], Any] = importlib.import_module
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)


def read_small(path: Path | str) -> str:
    """The text of a small file of the kernel: a quarter of the time of `Path.read_text`. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.read(handle, 4096).decode("ascii", "replace")
    finally:
        os.close(handle)
