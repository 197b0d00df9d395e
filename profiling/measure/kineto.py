"""Where the time of a profiled rank goes, from a trace of PyTorch's profiler (Kineto, Chrome format): compute, communication, what of
it nothing hides, and idling.

All is interval arithmetic. With U the union of a set of spans and |.| its length, of one device over the window from its first to its
last activity:

    compute = |U(kernels that are no collectives)|      communication = |U(collectives)|
    copies = |U(copies and fills)|                      exposed = |U(collectives) \\ U(kernels, copies)|
    idle = window - |U(everything)|

Device traces (CUDA, ROCm, XPU): activities of the device, collectives told by their kernels' names (nccl, rccl, oneccl). A trace
without device activities is a CPU run: compute is the innermost operators on the training thread, collectives are gloo's own spans on its
threads, idle is the host outside of them (Python and the profiler itself). There `exposed` is an upper bound: a collective beside which
the host runs Python counts in full. `exposed_s` of metrics.jsonl times the waits themselves.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from frontier.errors import EXIT_OK, UserError

Spans = list[tuple[float, float]]
"""Disjoint, ascending (begin, end), µs."""

KERNEL, COPY = ("kernel",), ("gpu_memcpy", "gpu_memset")
COLLECTIVE = re.compile(r"nccl|rccl|oneccl|mscclKernel", re.IGNORECASE)
COLLECTIVE_ON_HOST = re.compile(r"^(gloo|mpi|ucc|xccl):", re.IGNORECASE)
DISPATCH = re.compile(r"^(c10d::|_c10d_functional::|record_param_comms|nccl:)")
"""Operators that only hand a collective over: neither compute nor communication."""
STEP = re.compile(r"^ProfilerStep#(\d+)$")


@dataclass(frozen=True)
class Share:
    """Seconds of one device (`cpu` for a trace without one) in one trace; `steps`: profiled training steps, 0 where not marked."""

    device: str
    steps: int
    window_s: float
    compute_s: float
    communication_s: float
    exposed_s: float
    copies_s: float
    idle_s: float
    collectives: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def union(spans: Iterable[tuple[float, float]]) -> Spans:
    """The same points of time as disjoint spans, ascending."""
    out: Spans = []
    for begin, end in sorted(spans):
        if out and begin <= out[-1][1]:
            out[-1] = out[-1][0], max(out[-1][1], end)
        elif end > begin:
            out.append((begin, end))
    return out


def length(spans: Spans) -> float:
    return sum(end - begin for begin, end in spans)


def without(spans: Spans, cover: Spans) -> Spans:
    """What of `spans` no span of `cover` covers; both as `union` gives them."""
    out: Spans = []
    first = 0
    for begin, end in spans:
        while first < len(cover) and cover[first][1] <= begin:
            first += 1
        at, place = begin, first
        while place < len(cover) and cover[place][0] < end:
            if cover[place][0] > at:
                out.append((at, cover[place][0]))
            at = max(at, cover[place][1])
            place += 1
        if at < end:
            out.append((at, end))
    return out


def read_trace(path: str | Path) -> dict[str, Any]:
    """The trace as JSON gives it, plain or gzipped. Raises UserError where it is none."""
    path = Path(path)
    try:
        raw = path.read_bytes()
        found = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"trace {path} is damaged ({error}): profile again") from None
    except OSError as error:
        raise UserError(f"trace {path}: {error.strerror or error}: give a file that the profiler wrote") from None
    except (ValueError, EOFError) as error:
        raise UserError(
            f"trace {path} is not readable JSON ({str(error)[:80]}): it was cut short; profile again"
        ) from None
    if not isinstance(found, dict) or not isinstance(found.get("traceEvents"), list):
        raise UserError(f"trace {path} holds no traceEvents: give a Chrome trace of PyTorch's profiler")
    return found


def shares(trace: dict[str, Any]) -> list[Share]:
    """One share for each device with any activity, by device number; one of the CPU where there is no device activity."""
    events = [e for e in trace["traceEvents"] if isinstance(e, dict) and e.get("ph") == "X" and _timed(e)]
    steps = len({e["name"] for e in events if STEP.match(str(e.get("name", "")))})
    by_device: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if str(event.get("cat", "")).lower() in (*KERNEL, *COPY):
            args = event.get("args")
            device = args.get("device", event.get("pid")) if isinstance(args, dict) else event.get("pid")
            by_device.setdefault(str(device), []).append(event)
    if not by_device:
        return _host_share(events, steps)
    return [_device_share(device, own, steps) for device, own in sorted(by_device.items())]


def _timed(event: dict[str, Any]) -> bool:
    return isinstance(event.get("ts"), int | float) and isinstance(event.get("dur"), int | float) and event["dur"] >= 0


def _span(event: dict[str, Any]) -> tuple[float, float]:
    return event["ts"], event["ts"] + event["dur"]


def _share(device: str, steps: int, compute: Spans, collectives: Sequence[Any], copies: Spans, window: float) -> Share:
    communication = union(map(_span, collectives))
    busy = union([*compute, *communication, *copies])
    return Share(
        device=device,
        steps=steps,
        window_s=window / 1e6,
        compute_s=length(compute) / 1e6,
        communication_s=length(communication) / 1e6,
        exposed_s=length(without(communication, union([*compute, *copies]))) / 1e6,
        copies_s=length(copies) / 1e6,
        idle_s=(window - length(busy)) / 1e6,
        collectives=len(collectives),
    )


def _device_share(device: str, events: list[dict[str, Any]], steps: int) -> Share:
    kernels = [e for e in events if str(e["cat"]).lower() in KERNEL]
    collectives = [e for e in kernels if COLLECTIVE.search(str(e.get("name", "")))]
    compute = union(_span(e) for e in kernels if not COLLECTIVE.search(str(e.get("name", ""))))
    copies = union(_span(e) for e in events if str(e["cat"]).lower() in COPY)
    every = union(map(_span, events))
    return _share(device, steps, compute, collectives, copies, every[-1][1] - every[0][0] if every else 0.0)


def _innermost(operators: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Operators of one thread that call no other. Those that do may wait for a collective in between: a hook of the backward
    pass runs inside the operator that it hangs on.
    """
    ordered = sorted(operators, key=lambda e: (e["ts"], -e["dur"]))
    pairs = zip(ordered, [*ordered[1:], None], strict=True)
    return [e for e, after in pairs if after is None or after["ts"] >= e["ts"] + e["dur"]]


def _host_share(events: list[dict[str, Any]], steps: int) -> list[Share]:
    operators = [e for e in events if e.get("cat") == "cpu_op"]
    if not operators:
        return []
    marks = [e for e in events if STEP.match(str(e.get("name", "")))]
    count: dict[tuple[Any, Any], int] = {}
    for event in marks or operators:
        thread = event.get("pid"), event.get("tid")
        count[thread] = count.get(thread, 0) + 1
    training = max(count, key=lambda thread: count[thread])
    own = [
        e
        for e in _innermost([e for e in operators if (e.get("pid"), e.get("tid")) == training])
        if not DISPATCH.match(str(e.get("name", "")))
    ]
    compute = union(map(_span, own))
    collectives = [e for e in events if COLLECTIVE_ON_HOST.match(str(e.get("name", "")))]
    # A mark covers its step also where nothing is computed.
    window = union(map(_span, [*own, *collectives, *marks]))
    return [_share("cpu", steps, compute, collectives, [], window[-1][1] - window[0][0])]


def table(paths: Sequence[str | Path]) -> str:
    """One line a trace and device, seconds, for a terminal."""
    head = f"{'trace':<40} {'device':>6} {'steps':>5} {'window':>9} {'compute':>9} {'communic.':>9} {'exposed':>9} {'copies':>9} {'idle':>9}"
    lines = [head]
    for path in paths:
        for s in shares(read_trace(path)):
            figures = (s.window_s, s.compute_s, s.communication_s, s.exposed_s, s.copies_s, s.idle_s)
            lines.append(
                f"{Path(path).name[-40:]:<40} {s.device:>6} {s.steps:>5} "
                + " ".join(f"{value:9.4f}" for value in figures)
            )
    return "\n".join(lines)


def main(paths: Sequence[str]) -> int:
    """Returns the exit code. Raises UserError."""
    if not paths or paths[0].startswith("-"):
        raise UserError("usage: python -m frontier_profiling.measure.kineto RUN/profile/*.json.gz")
    print(table(paths))
    return EXIT_OK


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"kineto: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
