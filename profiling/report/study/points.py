"""What the rows of a study are points of: the scaling axis, the panels, the settings that vary, the key of a point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from frontier_profiling.rows import Row

SUBJECT = ("model", "system", "workload", "image_size")
SETTINGS = (
    "micro_batch",
    "accumulation",
    "prefetch",
    "activation_checkpointing",
    "precision",
    "compile",
    "offload",
    "engine",
    "data",
)
KEY = (*SUBJECT, "strategy", "tensor", "nodes", "devices", *SETTINGS)
WORDS = {
    "micro_batch": "micro-batch",
    "activation_checkpointing": "checkpointing",
    "prefetch": "prefetch",
    "data": "data",
    "image_size": "image size",
}
SOURCE_ORDER = {"measured": 0, "predicted": 1, "published": 2}
FAILED = {
    "oom": "out of memory",
    "timeout": "timeout",
    "failed": "failed",
    "skipped": "skipped",
    "pending": "pending",
    "running": "running",
}


def word(name: str) -> str:
    return WORDS.get(name, name.replace("_", " "))


def key(row: Row) -> tuple:
    """The configuration of a point, whoever predicted or measured it."""
    return tuple(getattr(row, name) for name in KEY)


def label(row: Row) -> str:
    """The strategy as the plots name it, with the tensor degree where there is one."""
    return row.strategy if row.tensor == 1 else f"{row.strategy} × tensor {row.tensor}"


def trained(row: Row) -> bool:
    """Ended well, with a speed, and not a run that only reads data."""
    return row.status == "done" and bool(row.images_per_s) and row.data != "only"


def peak(row: Row) -> float | None:
    """GiB a device at the peak: `peak`, else what of it was recorded."""
    for name in ("peak", "active", "total_allocated", "reserved"):
        if row.memory_gib.get(name):
            return row.memory_gib[name]
    return None


def before_model(row: Row) -> float | None:
    """GiB that the process held before its model, of a peak that is a resident set; None where it is none, or not told."""
    told = row.facts.get("rss_before_model_gib")
    whole = peak(row)
    known = resident(row) and isinstance(told, int | float) and whole is not None and 0 < told < whole
    return told if known else None


def resident(row: Row) -> bool:
    """Whether its memory is a resident set, with the interpreter and its libraries."""
    return row.facts.get("memory_kind") == "rss"


def tensors_peak(row: Row) -> float | None:
    """A peak of what tensors take, as predicted; None of a resident set, which holds libraries and what the allocator keeps as well."""
    return None if resident(row) else peak(row)


def global_batch(row: Row) -> int:
    return row.global_batch or row.micro_batch * row.accumulation * max(1, row.devices // row.tensor)


def varying(rows: Sequence[Row], names: Sequence[str] = SETTINGS) -> list[str]:
    """Those of `names` with more than one value."""
    return [name for name in names if len({getattr(row, name) for row in rows}) > 1]


def settings(row: Row, names: Sequence[str]) -> str:
    """`micro-batch 16, prefetch 2` of the named settings."""
    return ", ".join(f"{word(name)} {shown(getattr(row, name))}" for name in names)


def shown(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Axis:
    """What a study scales over: nodes, or devices where one node count has several."""

    name: str
    values: list[int]

    def of(self, row: Row) -> int:
        return int(getattr(row, self.name))

    def say(self, value: int) -> str:
        return f"{value:,} {self.name if value != 1 else self.name[:-1]}"


def scaling_axis(rows: Sequence[Row]) -> Axis:
    """nodes where each node count stands for one number of devices and there are several; else devices."""
    nodes: dict[tuple[str, int], set[int]] = {}
    for row in rows:
        nodes.setdefault((row.system, row.nodes), set()).add(row.devices)
    several = len({row.nodes for row in rows}) > 1 or len({row.devices for row in rows}) == 1
    name = "nodes" if several and all(len(found) == 1 for found in nodes.values()) else "devices"
    return Axis(name, sorted({getattr(row, name) for row in rows}))


@dataclass(frozen=True)
class Panel:
    """The rows that may be compared with each other: one model on one system, images of one size."""

    title: str
    rows: list[Row]


def panels(rows: Sequence[Row]) -> list[Panel]:
    """By model, and by system, workload and image size where they vary; small models first."""
    names = ["model", *varying(rows, SUBJECT[1:])]
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, name) for name in names), []).append(row)

    def size(found: tuple[tuple, list[Row]]) -> tuple:
        order = model_order(found[1][0].model)
        return max(row.parameters or 0 for row in found[1]) or 1e9 * order, order, str(found[0])

    def title(values: tuple) -> str:
        return " · ".join(f"{v} px" if n == "image_size" else str(v) for n, v in zip(names, values, strict=True))

    return [Panel(title(values), found) for values, found in sorted(groups.items(), key=size)]


def model_order(name: str) -> float:
    """vit_base 0.1, vit_huge 0.6, vit_3b 3: for rows that do not tell the number of parameters."""
    words = {"debug": 0.0, "tiny": 0.01, "small": 0.03, "base": 0.1, "large": 0.3, "huge": 0.6}
    tail = name.rsplit("_", 1)[-1].lower()
    if tail in words:
        return words[tail]
    number = tail[:-1].replace(".", "", 1)
    return float(tail[:-1]) if tail.endswith("b") and number.isdigit() else 1e6


def labels(rows: Sequence[Row]) -> list[str]:
    """Strategies in the order that every plot and legend has: whole copies first, then growing groups."""
    fixed = {"ddp": 0.0, "no_shard": 1.0, "hybrid_1": 2.0, "zero_1": 7e8, "zero_2": 7.5e8, "shard_grad_op": 8e8}
    fixed |= {"full_shard": 9e8, "zero_3": 9.5e8}

    def order(text: str) -> tuple[float, str]:
        strategy = text.split(" ")[0]
        _, _, k = strategy.rpartition("_")
        return fixed.get(strategy, 2.0 + int(k) if strategy.startswith("hybrid_") and k.isdigit() else 1e9), text

    return sorted({label(row) for row in rows}, key=order)


def fastest(rows: Sequence[Row]) -> Row | None:
    """Among equals the one that holds less."""
    return max(filter(trained, rows), key=lambda row: (row.images_per_s or 0.0, -(peak(row) or 0.0)), default=None)


def by(rows: Sequence[Row], of: Callable[[Row], object]) -> dict:
    """Rows grouped by `of`, in the order in which the groups appear."""
    out: dict = {}
    for row in rows:
        out.setdefault(of(row), []).append(row)
    return out
