"""One line of the doctor's report, and how the reports of many nodes become one."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["OK", "WARNING", "ERROR"]
_WORSE: dict[str, int] = {"OK": 0, "WARNING": 1, "ERROR": 2}


@dataclass(frozen=True)
class Check:
    """What was looked at, the verdict, the number behind it, and what to do about it.

    `value` is None where nothing was measured; `text` then says why.
    """

    check: str
    status: Status
    text: str
    value: float | str | None = None
    unit: str = ""
    mend: str = ""
    hosts: tuple[str, ...] = ()
    """Nodes that a WARNING or an ERROR is about; empty where it is about the job."""
    blame: Mapping[str, str] = field(default_factory=dict)
    """Of these, the nodes without which the finding would be gone, each with the reason. Not part of the report's JSON."""

    def as_dict(self) -> dict[str, Any]:
        return {
            f.name: list(self.hosts) if f.name == "hosts" else getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name != "blame"
        }


def ok(check: str, text: str, value: float | str | None = None, unit: str = "") -> Check:
    return Check(check, "OK", text, value, unit)


def warning(check: str, text: str, mend: str, value: float | str | None = None, unit: str = "") -> Check:
    return Check(check, "WARNING", text, value, unit, mend)


def error(check: str, text: str, mend: str, value: float | str | None = None, unit: str = "") -> Check:
    return Check(check, "ERROR", text, value, unit, mend)


NAMED = 8
"""At most so many nodes or ranks are named in a text; `hosts` holds them all."""
OF_THE_JOB = ("working_dir", "ranks", "collectives")
"""Checks that another set of nodes does not mend."""


def some(names: Iterable[object], most: int = NAMED) -> str:
    every = [str(name) for name in names]
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def leave_out(hosts: Iterable[str]) -> str:
    """The words of a mend; a list that is too long for a line is in --bad-nodes."""
    every = list(dict.fromkeys(hosts))
    return f"sbatch --exclude={','.join(every[:NAMED])}{',…' if len(every) > NAMED else ''}"


def merge(found: Sequence[tuple[str, Sequence[Check]]]) -> list[Check]:
    """The checks of (host, checks) of every rank that has some: per name the worst verdict, with the hosts that share it."""
    by_name: dict[str, list[tuple[str, Check]]] = {}
    for host, checks in found:
        for check in checks:
            by_name.setdefault(check.check, []).append((host, check))
    nodes = len({host for host, _ in found})
    return [_worst(name, seen, nodes) for name, seen in by_name.items()]


def _worst(name: str, seen: Sequence[tuple[str, Check]], nodes: int) -> Check:
    worst = max((c for _, c in seen), key=lambda c: _WORSE[c.status])
    if worst.status == "OK":
        return worst
    alike = {host: c.text for host, c in reversed(seen) if c.status == worst.status}
    hosts = tuple(dict.fromkeys(host for host, _ in seen if host in alike))
    text = worst.text
    if nodes > 1:
        text += f" (on {some(hosts)})"
        if milder := dict.fromkeys(h for h, c in seen if c.status == "WARNING" and h not in alike):
            text += f"; a WARNING on {some(milder)}"
    # With fewer than three nodes nobody can tell whether variables and packages are wrong on one node or in the job.
    settings = name.startswith("env.") or name == "versions"
    blames = worst.status == "ERROR" and name not in OF_THE_JOB and not (settings and nodes < 3)
    return dataclasses.replace(worst, text=text, hosts=hosts, blame=alike if blames else {})


@contextmanager
def bounded(check: str, seconds: float, hung: Callable[[Check], None]) -> Iterator[None]:
    """Call `hung` from another thread when the block has not ended after `seconds`: it has to end the process.

    A copy to a broken device or a write to a dead file system cannot be interrupted from within.
    """
    found = error(
        check,
        f"did not end within {seconds:.0f} s",
        "if the node is busy, give it longer (--timeout); if it is not, leave it out (sbatch --exclude) and tell the site's support",
        value=seconds,
        unit="s",
    )
    timer = threading.Timer(seconds, hung, [found])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def lines(checks: Sequence[Check]) -> list[str]:
    """For a terminal: a line a check, and one more with the mend where something is wrong."""
    width = max((len(c.check) for c in checks), default=0)
    out = []
    for c in checks:
        out.append(f"{c.status:<8}{c.check:<{width}}  {c.text}")
        if c.mend and c.status != "OK":
            out.append(f"{'':<8}{'':<{width}}  -> {c.mend}")
    count: Mapping[str, int] = {s: sum(c.status == s for c in checks) for s in _WORSE}
    return [*out, f"doctor: {len(checks)} checks, {count['WARNING']} warnings, {count['ERROR']} errors"]
