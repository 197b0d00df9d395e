"""The few physical constants of the predictor, with their provenance (`constants.yaml`)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from frontier_profiling.predict.system import System

FILE = Path(__file__).parent / "constants.yaml"


@dataclass(frozen=True)
class Constants:
    """See `constants.yaml` for what each one is. Times are seconds, efficiencies parts of a peak."""

    product_efficiency_bf16: float
    product_efficiency_fp32: float
    memory_efficiency: float
    launch_s: float
    hop_s: float
    ring_congestion: float
    network_efficiency: float
    contention: float
    tree_slowdown: float
    selective_recompute: float
    link_efficiency: float
    tensor_launch: float
    tensor_products: float
    overlap: float
    host_copy_gb_per_s: float
    host_update_gb_per_s: float

    def product_efficiency(self, precision: str) -> float:
        return self.product_efficiency_bf16 if precision == "bf16" else self.product_efficiency_fp32

    def on(self, system: System) -> Constants:
        """With what the system's own file says instead."""
        own = {f.name: system.constant(f.name) for f in dataclasses.fields(self)}
        if system.device.type == "cpu" and own["overlap"] is None:
            own["overlap"] = 0.0  # a rank's collectives run on the cores that it computes with
        return dataclasses.replace(self, **{name: value for name, value in own.items() if value is not None})


@dataclass(frozen=True)
class FSDP1Memory:
    """See `memory_fsdp1` in `constants.yaml`."""

    library_gib: float
    scores: float
    start_blocks: float
    end_blocks: float
    active_start_blocks: float
    active_end_blocks: float
    active_whole: float


@lru_cache
def fsdp1_memory() -> FSDP1Memory:
    return FSDP1Memory(**raw()["memory_fsdp1"])


@lru_cache
def raw() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


@lru_cache
def defaults() -> Constants:
    node = raw()
    return Constants(**node["fitted"], **node["assumed"])


FITTED = (
    "product_efficiency_bf16",
    "product_efficiency_fp32",
    "memory_efficiency",
    "launch_s",
    "hop_s",
    "ring_congestion",
    "network_efficiency",
    "contention",
)
