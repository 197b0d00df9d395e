"""Asked to stop: by SIGUSR1 or SIGTERM, by a file named STOP in the run folder, or by the clock (`frontier.train.walltime`).

The file stays: a human asked for an end, so neither a job script's requeue nor the next job of a chain goes on while it is there.

A handler only sets a flag. The flags of all ranks travel with the reduction of the loss, so all ranks leave after
the same step and no collective is added.
"""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

STOP_FILE = "STOP"


class StopFlag:
    """Set by a signal to any rank, or by the STOP file as rank 0 sees it.

    Made before anything that takes time, so that a signal during the start is not lost; the handlers stay until `close`.
    """

    def __init__(self) -> None:
        self._file: Path | None = None
        self.reason: str | None = None
        self._before = {s: signal.signal(s, self._on_signal) for s in (signal.SIGUSR1, signal.SIGTERM)}

    def watch(self, run_dir: Path) -> None:
        """Look for the STOP file of a run from now on."""
        self._file = run_dir / STOP_FILE

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name

    def __bool__(self) -> bool:
        if self.reason is None and self._file is not None and self._file.exists():
            self.reason = f"the file {self._file}, to be removed before the next start"
        return self.reason is not None

    def ask(self, reason: str) -> None:
        """As a signal would."""
        self.reason = self.reason or reason

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
