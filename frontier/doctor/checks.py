"""One line of the doctor's report, and how the reports of many nodes become one."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def ok(check: str, text: str, value: float | str | None = None, unit: str = "") -> Check:
    return Check(check, "OK", text, value, unit)


def warning(check: str, text: str, mend: str, value: float | str | None = None, unit: str = "") -> Check:
    return Check(check, "WARNING", text, value, unit, mend)


def error(check: str, text: str, mend: str, value: float | str | None = None, unit: str = "") -> Check:
    return Check(check, "ERROR", text, value, unit, mend)


def merge(nodes: Sequence[tuple[str, Sequence[Check]]]) -> list[Check]:
    """The checks of (host, checks) of every node: per name the worst verdict, with the hosts that share it."""
    by_name: dict[str, list[tuple[str, Check]]] = {}
    for host, checks in nodes:
        for check in checks:
            by_name.setdefault(check.check, []).append((host, check))
    merged = []
    for seen in by_name.values():
        worst = max((c for _, c in seen), key=lambda c: _WORSE[c.status])
        if worst.status != "OK" and len(nodes) > 1:
            where = [host for host, c in seen if c.status == worst.status]
            named = ", ".join(where[:3]) + (f" and {len(where) - 3} more" if len(where) > 3 else "")
            worst = dataclasses.replace(worst, text=f"{worst.text} (on {named})")
        merged.append(worst)
    return merged


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
