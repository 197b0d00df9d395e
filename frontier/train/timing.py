"""Where the time of a step goes: host clock on a CPU, device events on an accelerator."""

from __future__ import annotations

import time

import torch

from frontier.train.waits import Waits


class StepClock:
    """Marks the ends of the parts of a step; `parts` gives seconds by part once the device has caught up."""

    def __init__(self, device: torch.device, waits: Waits) -> None:
        self._events, self._waits = device.type != "cpu", waits
        self._marks: list[tuple[str, float | torch.Event, float]] = []

    def start(self) -> None:
        self._marks = []
        self.mark("")

    def mark(self, part: str) -> None:
        """The part that ends now."""
        now: float | torch.Event
        if self._events:
            now = torch.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self._marks.append((part, now, self._waits.host_seconds()))

    def parts(self) -> dict[str, float]:
        """Seconds by part, repeated parts added up. Call after the device was synchronised."""
        total: dict[str, float] = {}
        for (_, before, _), (part, now, _) in zip(self._marks[:-1], self._marks[1:], strict=True):
            if isinstance(before, float) and isinstance(now, float):
                spent = now - before
            else:
                spent = before.elapsed_time(now) / 1e3  # type: ignore[union-attr, arg-type]
            total[part] = total.get(part, 0.0) + spent
        return total

    def exposed(self) -> dict[str, float | None]:
        """Exposed communication of the step: `exposed_s`, and `exposed_<part>` of every part where the host waits.

        Call once a step, after the device was synchronised. None: not measured (`frontier.train.waits`).
        """
        if self._waits.way is None:
            return {"exposed_s": None}
        stalled = self._waits.stalled()
        if stalled is not None:
            return {"exposed_s": stalled}
        by_part: dict[str, float | None] = {}
        for (_, _, before), (part, _, now) in zip(self._marks[:-1], self._marks[1:], strict=True):
            if part != "data_s":
                key = f"exposed_{part}"
                by_part[key] = (by_part.get(key) or 0.0) + now - before
        return {"exposed_s": self._marks[-1][2] - self._marks[0][2], **by_part}
