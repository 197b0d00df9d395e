"""What a run writes down: one JSON line a step, one line a start, a tidy line or a bar for people."""

from __future__ import annotations

import json
import os
import platform
import resource
import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from frontier.errors import RankError
from frontier.processor import processor

SCHEMA = 1

PEAK_BF16_TFLOPS = {
    "MI250X": 191.5,  # of one GCD, the device that torch sees
    "MI300A": 980.6,
    "MI300X": 1307.4,
    "H200": 989.0,
    "H100": 989.0,
    "GH200": 989.0,
    "A100": 312.0,
}
"""Dense matrix peak of the visible device in bf16, TFLOP/s, by a part of its name."""


def peak_tflops(device: torch.device, precision: str) -> float | None:
    """Peak of the device, or None where it is unknown (a CPU, another accelerator, fp32)."""
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_BF16_TFLOPS.items() if part in name), None)


def device_name(device: torch.device) -> str:
    """Name of the accelerator, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor("model name") or platform.processor() or "unknown"


def memory_gib(device: torch.device) -> tuple[float, str]:
    """(peak GiB, its kind): allocated on an accelerator, resident set of the process on a CPU."""
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated(device) / 2**30, "device_peak"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "rss"


def memory_row(device: torch.device) -> dict[str, Any]:
    """Memory of this rank in GiB, as keys of metrics.jsonl; None is "not measured".

    Of the device's allocator, peaks since the start: allocated (by tensors), active (with what a stream still needs), reserved
    (from the driver); how often it had to free its cache and try again, and how often it found nothing. Of the
    process: resident size now and its peak.
    """
    now, peak = resident_gib()
    row: dict[str, Any] = dict.fromkeys(
        ("memory_allocated_gib", "memory_active_gib", "memory_reserved_gib", "allocation_retries", "out_of_memory")
    )
    if device.type != "cpu":
        stats = torch.accelerator.memory_stats(device)
        for kind in ("allocated", "active", "reserved"):
            found = stats.get(f"{kind}_bytes.all.peak")
            row[f"memory_{kind}_gib"] = None if found is None else found / 2**30
        row |= {"allocation_retries": stats.get("num_alloc_retries"), "out_of_memory": stats.get("num_ooms")}
    return row | {"rss_gib": now, "rss_peak_gib": peak}


def resident_gib() -> tuple[float | None, float | None]:
    """(resident size of this process, its peak), GiB. Unlike getrusage's peak, Linux's own leaves out the process that
    started this one.
    """
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        now, peak = (int(lines[key].split()[0]) / 2**20 for key in ("VmRSS", "VmHWM"))
    except (OSError, KeyError, ValueError):
        import psutil

        return psutil.Process().memory_info().rss / 2**30, None
    return now, peak


def _git_commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Versions of what computes and stores."""
    from frontier import __version__

    found = {"python": platform.python_version(), "frontier": __version__}
    for name in ("torch", "numpy", "h5py"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_start(run_dir: Path, facts: dict[str, Any]) -> int:
    """Append a line to starts.jsonl; returns its index."""
    path = run_dir / "starts.jsonl"
    index = len(path.read_text().splitlines()) if path.exists() else 0
    line = {
        "schema": SCHEMA,
        "time": time.time(),
        "versions": versions(),
        "host": socket.gethostname(),
        "git": _git_commit(),
        **facts,
    }
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")
    return index


def amend_start(run_dir: Path, index: int, facts: dict[str, Any]) -> None:
    """Add to the line of a start what was not known when it was written."""
    path = run_dir / "starts.jsonl"
    lines = path.read_text().splitlines()
    lines[index] = json.dumps(json.loads(lines[index]) | facts)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in lines))
    os.replace(temporary, path)


def _last_line_step(line: str) -> int | None:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None


class MetricsLog:
    """metrics.jsonl. After a resume, lines of steps that will be computed again (and a torn last line) are dropped."""

    def __init__(self, run_dir: Path, resumed_step: int) -> None:
        path = run_dir / "metrics.jsonl"
        if path.exists():
            lines = path.read_text().splitlines()
            kept = [line for line in lines if (step := _last_line_step(line)) is not None and step <= resumed_step]
            if len(kept) != len(lines):
                temporary = path.with_suffix(".tmp")
                temporary.write_text("".join(line + "\n" for line in kept))
                os.replace(temporary, path)
        self._file = open(path, "ab", buffering=0)  # a killed process loses no row; nothing is left to write at the end

    def write(self, row: dict[str, Any]) -> None:
        """Raises RankError where the disk takes no more."""
        data = (json.dumps({"schema": SCHEMA, **row}) + "\n").encode()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise RankError(
                f"rank 0: {self._file.name}: step {row['step']} could not be written ({error.strerror}): free some disk space "
                "and start again to go on from the newest checkpoint"
            ) from None

    def close(self) -> None:
        self._file.close()


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _fit(steps: int | None, left: int) -> str:
    """How far the job's time goes; "" where its end is unknown."""
    if steps is None:
        return ""
    return "  all fit into this job" if steps >= left else f"  {steps} more steps fit into this job"


def hms(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


class Console:
    """Progress for people: a bar on a terminal, tidy lines elsewhere. Rank 0 only."""

    def __init__(self, mode: str, steps: int, first: int, every: int) -> None:
        self.steps, self.every = steps, every
        self._recent: list[float] = []
        if mode == "auto":
            mode = "bar" if sys.stderr.isatty() else "lines"
        self.mode = mode
        self._bar: Any = None
        if mode == "bar":
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("pretrain"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=steps, completed=first)

    def step(self, row: dict[str, Any]) -> None:
        self._recent = [*self._recent[-49:], row["step_s"]]
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=row["step"],
                description=f"loss {_shown(row['loss'])}  {row['images_per_s']:.0f} img/s",
            )
        elif self.mode == "lines" and (row["step"] % self.every == 0 or row["step"] in (1, self.steps)):
            typical = sorted(self._recent)[len(self._recent) // 2]
            waiting = 100 * row["data_s"] / row["step_s"]
            print(
                f"step {row['step']:>{len(str(self.steps))}}/{self.steps}  epoch {row['epoch']:.2f}  loss {_shown(row['loss'])}  "
                f"lr {row['lr']:.2e}  |g| {_shown(row['grad_norm'])}  {row['images_per_s']:.1f} img/s  "
                f"{row['step_s']:.2f} s (data {waiting:.0f} %)  {row['memory_gib']:.2f} GiB  "
                f"left {hms(typical * (self.steps - row['step']))}{_fit(row['steps_that_fit'], self.steps - row['step'])}",
                flush=True,
            )

    def say(self, text: str) -> None:
        """One line that does not disturb the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        elif self.mode != "none":
            print(text, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
