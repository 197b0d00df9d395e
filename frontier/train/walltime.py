"""How many more steps fit before the scheduler ends the job, and when to stop for it.

Where a signal warns the job (Slurm's --signal), it comes first; this is for where none comes: PBS, a site that loses it.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable

SAVE_S, SAVE_BYTES_PER_S = 5.0, 0.1e9
"""Assumed of a save until this start has made one: seconds of any save, and bytes/s of a rank that writes."""
RECENT = 50
"""Steps that the median is taken of."""


def assumed_save_s(nbytes: int, writers: int) -> float:
    """Seconds for a checkpoint of `nbytes` by `writers` ranks, as long as none was measured."""
    return SAVE_S + nbytes / (SAVE_BYTES_PER_S * writers)


class Walltime:
    """Of rank 0, which decides for all.

    Args:
        end: when the job is ended, seconds since 1970; None: unknown, and nothing is estimated.
        reserve_s: kept free before the end, beside a step and a save; None: never stop for the end.
        save_s: assumed for a save.
        now: a clock in seconds since 1970.
    """

    def __init__(
        self, end: float | None, reserve_s: float | None, save_s: float, now: Callable[[], float] = time.time
    ) -> None:
        self.end, self.reserve_s, self.now = end, reserve_s, now
        self._save_s, self._measured = save_s, False
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._steps = 0

    def step(self, seconds: float) -> None:
        """A step was made."""
        self._steps += 1
        if self._steps == 2:  # the first warms up: it counts only as long as it is the only one
            self._recent.clear()
        self._recent.append(seconds)

    def saved(self, seconds: float | None) -> None:
        """What the newest save took from its call until it was committed; None: there was none yet."""
        if seconds is not None:
            self._save_s, self._measured = seconds, True

    def steps_that_fit(self) -> int | None:
        """Steps that fit from now on, with a save after them; None: unknown."""
        if self.end is None or not self._recent:
            return None
        room = self.end - self.now() - (self.reserve_s or 0.0) - self._save_s
        return max(0, int(room / max(self._step_s(), 1e-6)))

    def why_to_stop(self) -> str | None:
        """Asked before a step: the reason where it has to be the last one; None before the first one of this start."""
        fits = self.steps_that_fit()
        if self.end is None or fits is None or fits >= 2 or self.reserve_s is None:
            return None
        how = "measured" if self._measured else "assumed"
        text = (
            f"the job ends in {self.end - self.now():.0f} s, too soon for another step of {self._step_s():.2f} s, a save of "
            f"{self._save_s:.1f} s ({how}) and checkpoint.reserve_s={self.reserve_s:g}"
        )
        if self._steps == 1:
            text += "; no more than two steps fit into this job: give it more time"
        return text

    def _step_s(self) -> float:
        return statistics.median(self._recent)
