"""What limits a point, from the parts of its step (`Row.step_parts_s`) or, where it did not end, from its status."""

from __future__ import annotations

from dataclasses import dataclass

from frontier_profiling.report.study.points import FAILED, peak
from frontier_profiling.report.wording import percent, significant
from frontier_profiling.rows import Row

BLOCKING = ("compute", "launch", "optimizer", "exposed", "data")
"""Parts that add up to the step; gather and reduce are seen in `exposed` as far as the step waits for them."""
NAMES = {"compute": "compute", "launch": "launch", "optimizer": "optimizer", "exposed": "communication", "data": "data"}
SECOND = 0.15
"""A second part is named where it takes at least this share of the step."""
STRAGGLER = 1.10
TIGHT = 0.95


@dataclass(frozen=True)
class Limit:
    """`word`: compute, launch, optimizer, communication, data, memory or "" (unknown); `why`: one line."""

    word: str
    why: str
    shares: dict[str, float]


def shares(row: Row) -> dict[str, float]:
    """Part -> share of the step, of the parts that the step consists of; empty where none is known."""
    known = {part: row.step_parts_s[part] for part in BLOCKING if row.step_parts_s.get(part, 0.0) > 0}
    total = max(row.step_s or 0.0, sum(known.values()))
    return {part: size / total for part, size in known.items()} if total > 0 else {}


def limit(row: Row) -> Limit:
    """The largest part of the step; a second one, stragglers and scarce memory are named beside it."""
    used, most = peak(row), row.memory_limit_gib
    if row.status == "oom":
        need = (
            f"{significant(used)} GiB of {significant(most)} GiB" if used and most and used > most else "out of memory"
        )
        return Limit("memory", need, {})
    if row.status != "done":
        return Limit("", row.error or FAILED.get(row.status, row.status), {})
    found = shares(row)
    if not found:
        return Limit(row.limit, "", {})
    order = sorted(found, key=lambda part: -found[part])
    said = [f"{percent(found[order[0]], 0)} of the step{_mostly(row, order[0])}"]
    said += [
        f"{NAMES[part]} {percent(found[part], 0)}{_mostly(row, part)}" for part in order[1:] if found[part] >= SECOND
    ]
    if row.rank_spread and row.rank_spread >= STRAGGLER:
        rank = "" if row.slowest_rank is None else f" {row.slowest_rank}"
        said.append(f"rank{rank} {percent(row.rank_spread - 1, 0)} slower than the median rank")
    if used and most and used > TIGHT * most:
        said.append(f"memory {percent(used / most, 0)} full")
    return Limit(NAMES[order[0]], ", ".join(said), found)


def _mostly(row: Row, part: str) -> str:
    """Which collectives the communication mostly is."""
    gather, reduce = (row.step_parts_s.get(name, 0.0) for name in ("gather", "reduce"))
    if part != "exposed" or not gather + reduce > 0:
        return ""
    return f" (mostly {'gathering weights' if gather >= reduce else 'reducing gradients'})"
