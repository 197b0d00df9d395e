"""What keeps a bad step from spoiling a run: limits from its own history, counters, and an end to it."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

from frontier.errors import UserError

HISTORY, LEAST = 64, 16
"""Updates whose median is the measure, and how many there must be before spikes are judged."""


class Guard:
    """Judges every step from its gradient norm and loss, the same on every rank.

    A step is skipped where either is not finite, or exceeds `spike_factor` times its median over the last updates. The limits are
    known before the step begins, so the optimizer can leave the step out on the device; no extra synchronisation is needed.

    Attributes:
        updates: steps that changed the weights; skipped, spikes: those left out, and how many of them were finite.
    """

    def __init__(self, spike_factor: float | None, max_skipped: int) -> None:
        self.factor, self.max_skipped = spike_factor, max_skipped
        self.norms: deque[float] = deque(maxlen=HISTORY)
        self.losses: deque[float] = deque(maxlen=HISTORY)
        self.updates = self.skipped = self.spikes = self.in_a_row = 0

    def limits(self) -> tuple[float, float]:
        """(largest gradient norm, largest loss) of the next step."""
        if self.factor is None or len(self.norms) < LEAST:
            return math.inf, math.inf
        norm, loss = statistics.median(self.norms), statistics.median(self.losses)
        return self.factor * norm, self.factor * loss if loss > 0 else math.inf

    def judge(self, step: int, made: bool, norm: float, loss: float) -> str | None:
        """Count a step under `limits()`, `made` or left out; why it was left out, or None.

        Raises:
            UserError: too many steps in a row were skipped.
        """
        most_norm, most_loss = self.limits()
        finite = math.isfinite(norm) and math.isfinite(loss)
        if made:
            self.updates += 1
            self.in_a_row = 0
            self.norms.append(norm)
            self.losses.append(loss)
            return None
        self.skipped += 1
        self.in_a_row += 1
        self.spikes += finite
        if not finite:
            why = f"the gradient is not finite (norm {norm:.4g}, loss {loss:.4g})"
        elif norm > most_norm:
            why = f"a spike: gradient norm {norm:.4g}, {self.factor:g} times its median is {most_norm:.4g}"
        else:
            why = f"a spike: loss {loss:.4g}, {self.factor:g} times its median is {most_loss:.4g}"
        if self.in_a_row > self.max_skipped:
            raise UserError(
                f"{self.in_a_row} steps in a row were skipped (train.max_skipped={self.max_skipped}), the last is step {step}: "
                f"{why}; lower train.base_lr, set train.clip_norm, look at the data, or raise train.spike_factor"
            )
        return why

    def state(self) -> dict[str, Any]:
        """For the checkpoint's record."""
        return {
            "updates": self.updates,
            "skipped": self.skipped,
            "spikes": self.spikes,
            "in_a_row": self.in_a_row,
            "norms": list(self.norms),
            "losses": list(self.losses),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.updates, self.skipped, self.spikes = state["updates"], state["skipped"], state["spikes"]
        self.in_a_row = state["in_a_row"]
        self.norms.extend(state["norms"])
        self.losses.extend(state["losses"])
