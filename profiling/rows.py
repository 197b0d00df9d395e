"""One point of a study as one row, wherever it comes from: predicted, measured here, or published.

`frontier plan`, `frontier sweep` and the study report exchange nothing else. None is "not known" (predicted) or "not measured", and
is written so; it is never 0.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA = "frontier-rows/1"
Source = Literal["predicted", "measured", "published"]
Status = Literal["done", "oom", "timeout", "failed", "pending", "running", "skipped"]

MEMORY_PARTS = ("parameters", "gradients", "optimizer", "activations", "gathered", "buffers", "allocator")
"""Components of `memory_gib`; beside them stand `total_allocated`, `peak`, and where measured `active` and `reserved`."""

TIME_PARTS = ("compute", "launch", "optimizer", "gather", "reduce", "exposed", "data")
"""Of `step_parts_s`. compute: kernels of forward and backward; launch: the host's share that they wait for; gather, reduce: all
collectives of that kind, hidden or not; exposed: the part of both that the step waits for; data: waiting for samples.
compute + launch + optimizer + exposed + data = step_s."""


@dataclass
class Row:
    """One point. Units stand in the names; sizes of memory are GiB a device, rates are of the whole job unless said."""

    source: Source
    model: str
    system: str
    strategy: str
    nodes: int
    devices: int
    micro_batch: int
    status: Status = "done"
    error: str = ""
    """One line: why it is not `done`."""

    workload: str = "vit"
    """vit: the encoder on all tokens, as in the published scaling study; mae: masked pretraining; gpna, scale_alibi: a run's own inputs."""
    engine: str = "fsdp2"
    image_size: int = 224
    """0 where samples are more than one image, and so are channels."""
    channels: int = 3
    mask_ratio: float = 0.75
    """Of the workload mae."""
    tokens: int | None = None
    """Tokens of a sample in the first stack of blocks: of an image in the encoder, or latents."""
    parameters: int | None = None
    global_batch: int | None = None
    accumulation: int = 1
    precision: str = "bf16"
    activation_checkpointing: str = "full"
    tensor: int = 1
    prefetch: int = 1
    compile: bool = False
    offload: bool = False
    data: str = "synthetic"
    """synthetic: made on the device; shards: read from storage; only: read, no training."""
    mesh: dict[str, int] = field(default_factory=dict)

    memory_gib: dict[str, float] = field(default_factory=dict)
    memory_limit_gib: float | None = None
    fits: bool | None = None
    minimum_devices: int | None = None

    step_s: float | None = None
    """Median of the measured steps, or the prediction."""
    step_s_low: float | None = None
    step_s_high: float | None = None
    """p10 and p90 of the measured steps; of a prediction, the range that nine of ten published points fall into."""
    step_ci95_s: tuple[float, float] | None = None
    """Of the median, measured only."""
    steps_timed: int | None = None
    step_parts_s: dict[str, float] = field(default_factory=dict)
    images_per_s: float | None = None
    data_supply_ratio: float | None = None
    rank_spread: float | None = None
    """Slowest rank's own work over the median rank's."""
    slowest_rank: int | None = None

    flops_per_image: float | None = None
    """Matrix products, forward and backward, nothing recomputed."""
    tflops_per_device: float | None = None
    peak_tflops: float | None = None
    mfu: float | None = None
    hfu: float | None = None
    """With recomputation counted."""

    power_w: float | None = None
    """Of the whole job."""
    joules_per_image: float | None = None
    energy_source: str = ""
    samples: int | None = None
    node_hours: float | None = None
    """For `samples` images."""
    limit: str = ""
    """What bounds the step: compute, launch, optimizer, communication, data, memory; empty where unknown."""
    notes: list[str] = field(default_factory=list)
    command: str = ""
    """Reproduces the row."""
    path: str = ""
    """Folder of a measured point."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Of the machine and the software: device name, torch, git, host, date."""

    @property
    def images_per_s_per_device(self) -> float | None:
        return None if self.images_per_s is None else self.images_per_s / self.devices

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, node: dict[str, Any]) -> Row:
        """Keys that this version does not know are left out."""
        known = {f.name for f in dataclasses.fields(cls)}
        row = cls(**{key: value for key, value in node.items() if key in known})
        row.step_ci95_s = tuple(row.step_ci95_s) if row.step_ci95_s else None  # type: ignore[assignment]
        return row


def to_json(rows: Sequence[Row], **more: Any) -> str:
    """{"schema", "rows": […], …more}, strict JSON."""
    return json.dumps({"schema": SCHEMA, **more, "rows": [row.as_dict() for row in rows]}, indent=1, allow_nan=False)


def from_json(text: str) -> list[Row]:
    return [Row.from_dict(node) for node in json.loads(text)["rows"]]


def flat(row: Row) -> dict[str, Any]:
    """One level of columns: `memory_peak_gib`, `step_exposed_s`, …"""
    node = row.as_dict()
    memory, parts, mesh = node.pop("memory_gib"), node.pop("step_parts_s"), node.pop("mesh")
    ci, facts = node.pop("step_ci95_s"), node.pop("facts")
    node |= {
        f"memory_{name}_gib": memory.get(name)
        for name in (*MEMORY_PARTS, "total_allocated", "peak", "active", "reserved")
    }
    node |= {f"step_{name}_s": parts.get(name) for name in TIME_PARTS}
    node |= {f"mesh_{axis}": mesh.get(axis) for axis in ("replicate", "shard", "tensor")}
    node |= {"step_ci95_low_s": ci[0] if ci else None, "step_ci95_high_s": ci[1] if ci else None}
    node["notes"] = " | ".join(node["notes"])
    return node | {f"fact_{key}": value for key, value in facts.items() if not isinstance(value, dict | list)}


def to_csv(rows: Iterable[Row]) -> str:
    """One line a row; an empty cell is "not known" or "not measured"."""
    table = [flat(row) for row in rows]
    columns = list(dict.fromkeys(key for line in table for key in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in line.items()} for line in table)
    return out.getvalue()
