"""How an attempt ended: done, out of memory, timeout or failed, from its exit code, its own words and the kernel's counters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from frontier.errors import EXIT_OK, EXIT_REQUEUE

OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|(?:CUDA|HIP|XPU) out of memory|can't allocate memory: you tried to allocate|\bMemoryError\b"
    r"|Cannot allocate memory|std::bad_alloc|hipErrorOutOfMemory|CUDA_ERROR_OUT_OF_MEMORY|CUBLAS_STATUS_ALLOC_FAILED"
    r"|oom[-_ ]kill(?:ed)? event|Out Of Memory|OUT_OF_MEMORY"
)
SRUN_SIGNAL = re.compile(r"srun: error: \S+: tasks? [\d,-]+: (?!Terminated|Exited)[A-Z]")
SRUN_NODE = re.compile(
    r"srun: error: (Node failure on |Task launch for \S+ failed on node |Application launch failed|Unable to create step .*not available \(down)"
)
LOST = re.compile(
    r"lost contact with another rank|found no other ranks|[Cc]onnection (?:closed|reset)|DistNetworkError"
)
KILLED = re.compile(r"signal SIGKILL|Killed\b|signal 9")
TAIL = 256 * 1024


@dataclass(frozen=True)
class Outcome:
    """`status` is that of a row, or pending where the attempt was interrupted and counts for nothing."""

    status: str
    reason: str = ""
    exit_code: int | None = None
    wall_s: float | None = None


def kernel_kills() -> dict[str, int]:
    """How often the kernel has killed a process for want of memory, by counter: this host's, and this control group's."""
    found = {}
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                found["host"] = int(line.split()[1])
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        for _, controllers, path in groups:
            if controllers == "":
                events = Path("/sys/fs/cgroup" + path) / "memory.events"
            elif "memory" in controllers.split(","):
                events = Path("/sys/fs/cgroup/memory" + path) / "memory.oom_control"
            else:
                continue
            if events.is_file():
                words = dict(line.split()[:2] for line in events.read_text().splitlines() if len(line.split()) >= 2)
                found["control group"] = int(words.get("oom_kill", 0))
    except (OSError, ValueError):
        pass
    return found


def classify(code: int, text: str, before: dict[str, int], after: dict[str, int]) -> tuple[str, str]:
    """(status, reason) of an attempt that ended by itself.

    Args:
        code: of the process; negative: the signal that ended it.
        text: the end of what it printed.
        before, after: `kernel_kills` around it. A rank that signal 9 ended while a counter went up was killed for its memory.
    """
    if code == EXIT_OK:
        return "done", ""
    for line in text.splitlines():
        if OUT_OF_MEMORY.search(line):
            return "oom", _tidy(line)
    killed = code in (-9, 137) or KILLED.search(text) is not None
    grown = [name for name, count in after.items() if count > before.get(name, count)]
    if killed and grown:
        return (
            "oom",
            f"a rank was killed by the kernel for want of memory (out-of-memory kills of this {grown[0]} went up)",
        )
    if code == EXIT_REQUEUE:
        return "pending", "asked to stop; the next call runs it again"
    how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    said = _last_words(text)
    return "failed", f"{how}: {said}" if said else how


def lost_nodes(text: str) -> list[str]:
    """srun's lines about nodes that are gone or do not answer."""
    return [line for line in text.splitlines() if SRUN_NODE.match(line)]


def _last_words(text: str) -> str:
    """The line that says most of why: a cause before its effects on the other ranks, which may come first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith(("frontier pretrain:", "frontier sweep"))]
    raised = [line for line in lines if re.match(r"(\[rank\d+\]: ?)?[\w.]*(Error|Exception)\b.*:", line)]
    causes = [line for line in own if not LOST.search(line)]
    errors = [line for line in raised if not LOST.search(line)]
    signals = [
        line for line in lines if SRUN_SIGNAL.search(line)
    ]  # the first: later ones are what srun ended because of it
    for line in (*causes[:1], *errors[-1:], *signals[:1], *own[:1], *raised[-1:], *lines[-1:]):
        return _tidy(line)
    return ""


def _tidy(line: str) -> str:
    """One line of at most 300 characters."""
    text = re.sub(r"^\[rank\d+\]:\s*", "", " ".join(line.split()))
    return text if len(text) <= 300 else text[:299] + "…"


def tail(path: Path, start: int) -> str:
    """What was printed from `start` on, the last part of it."""
    try:
        with open(path, "rb") as file:
            end = file.seek(0, 2)
            file.seek(max(start, end - TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
