"""Laps on a source: joules since the last lap, with a thread in between where a read is slow."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from frontier.energy.source import Source, total

QUICK_S = 3e-4
"""A read below this is made in the step itself; a slower one in a thread."""


@dataclass(frozen=True)
class Lap:
    """Joules over seconds, and joules by component (the total is not the sum where one component includes the others)."""

    joules: float
    seconds: float
    parts: dict[str, float]

    @property
    def watts(self) -> float:
        return self.joules / self.seconds


class Meter:
    """Reads one source. `lap` costs less than a millisecond whatever the source.

    Counters change some ten times a second. A lap without a new value gives None, and the next one covers both: a step is never said to have cost 0 joules.
    """

    def __init__(self, source: Source) -> None:
        """Raises Unavailable where the source cannot be read."""
        self.source = source
        self._lock = threading.Lock()
        source.read()
        start = time.perf_counter()
        self._stamp, self._reading = self._read()
        self.read_s = time.perf_counter() - start
        """Seconds of one read."""
        self._latest = self._stamp, self._reading
        self._notes: list[str] = []
        self._failed = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        if source.slow or self.read_s > QUICK_S:
            self._thread = threading.Thread(target=self._sample, name="energy", daemon=True)
            self._thread.start()

    @property
    def threaded(self) -> bool:
        return self._thread is not None

    def _read(self) -> tuple[float, dict[str, float]]:
        reading = self.source.read()
        return time.monotonic() if self.source.stamp is None else self.source.stamp, reading

    def _update(self) -> None:
        """Take a reading; a failure is noted once and the last good one stays, so that nothing is lost when it recovers."""
        try:
            found = self._read()
        except Exception as error:  # Unavailable, or what a vendor's library raises: it must not end a run
            if not self._failed:
                self._note(f"energy: {self.source.name} cannot be read any more ({error})")
            self._failed = True
            return
        self._failed = False
        with self._lock:
            self._latest = found
        for note in self.source.notes:
            self._note(f"energy: {note}")
        self.source.notes = []

    def _note(self, text: str) -> None:
        with self._lock:
            self._notes.append(text)

    def _sample(self) -> None:
        while not self._ended.wait(max(self.source.period_s, 10 * self.read_s)):
            self._update()

    def lap(self) -> Lap | None:
        """What was used since the last lap that gave something; None where no new reading has come in."""
        if self._thread is None:
            self._update()
        with self._lock:
            stamp, reading = self._latest
        joules, seconds = total(reading) - total(self._reading), stamp - self._stamp
        if joules <= 0 or seconds <= 0:
            return None
        parts = {name: value - self._reading.get(name, value) for name, value in reading.items()}
        self._stamp, self._reading = stamp, reading
        return Lap(joules, seconds, parts)

    def notes(self) -> list[str]:
        """What happened to the counters since the last call."""
        with self._lock:
            notes, self._notes = self._notes, []
        return notes

    def close(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
