"""Where the time of a step goes: host clock on a CPU, device events on an accelerator."""

from __future__ import annotations

import time

import torch


class StepClock:
    """Marks the ends of the parts of a step; `parts` gives seconds by part once the device has caught up."""

    def __init__(self, device: torch.device) -> None:
        self._events = device.type != "cpu"
        self._marks: list[tuple[str, float | torch.Event]] = []

    def start(self) -> None:
        self._marks = []
        self.mark("")

    def mark(self, part: str) -> None:
        """The part that ends now."""
        if self._events:
            event = torch.Event(enable_timing=True)
            event.record()
            self._marks.append((part, event))
        else:
            self._marks.append((part, time.perf_counter()))

    def parts(self) -> dict[str, float]:
        """Seconds by part, repeated parts added up. Call after the device was synchronised."""
        total: dict[str, float] = {}
        for (_, before), (part, now) in zip(self._marks[:-1], self._marks[1:], strict=True):
            if isinstance(before, float) and isinstance(now, float):
                spent = now - before
            else:
                spent = before.elapsed_time(now) / 1e3  # type: ignore[union-attr, arg-type]
            total[part] = total.get(part, 0.0) + spent
        return total
