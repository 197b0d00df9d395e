"""The published points of the Frontier study (arXiv 2404.11706), as rows: what the predictor is fitted on and scored against.

`published.yaml` holds the figure data as read from the first author's public plotting scripts; it is their data, cited, unchanged.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from frontier_profiling.predict.case import Case
from frontier_profiling.predict.system import load_system
from frontier_profiling.rows import Row

FILE = Path(__file__).parent / "published.yaml"
CITATION = "Tsaris et al., arXiv 2404.11706 (IPDPSW 2024), figure data"


@lru_cache
def published() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def case_of(model: str, word: str, nodes: int) -> Case:
    """The settings of a published cell: local batch 32, synthetic data; DDP without the bf16 policy (inferred from its rate)."""
    strategy = word.lower()
    return Case(
        model, load_system("frontier"), nodes, strategy, micro_batch=32, engine="fsdp1",
        precision="fp32" if strategy == "ddp" else "bf16",
    )  # fmt: skip


@lru_cache
def throughput() -> tuple[tuple[str, str, int, float], ...]:
    """(model, published strategy word, nodes, images/s) of every cell."""
    table = published()["throughput_img_s"]
    nodes = table["nodes"]
    return tuple(
        (model, word, n, float(rate))
        for model, rows in table.items()
        if model != "nodes"
        for word, rates in rows.items()
        for n, rate in zip(nodes, rates, strict=True)
        if rate is not None
    )


def published_rate(model: str, strategy: str, nodes: int) -> float | None:
    """Images/s of the cell, or None where none was published."""
    wanted = (model, strategy.upper(), nodes)
    return next((rate for m, word, n, rate in throughput() if (m, word, n) == wanted), None)


def memory_cells() -> list[tuple[str, str, int, str, float]]:
    """(model, strategy word, GCDs that share one copy or all of them, quantity, GiB); quantity: max_allocated or peak_active."""
    table, cells = published()["memory_gib"], []
    for quantity in ("max_allocated", "peak_active"):
        for model, row in table[quantity].items():
            for word, gib in row.items():
                k = int(word.split("_")[1]) if word.startswith("HYBRID") else 1
                cells.append((model, word, max(8, k), quantity, float(gib)))
    for model, values in table["full_shard_peak_active_by_nodes"].items():
        for n, gib in zip(published()["throughput_img_s"]["nodes"], values, strict=True):
            cells.append((model, "FULL_SHARD", 8 * n, "peak_active", float(gib)))
    return cells


def published_rows() -> list[Row]:
    """Every cell of throughput as a Row, with the memory where it was published too."""
    memory: dict[tuple[str, str, int], dict[str, float]] = {}
    for model, word, devices, quantity, gib in memory_cells():
        key = "total_allocated" if quantity == "max_allocated" else "peak"
        memory.setdefault((model, word, devices), {})[key] = gib
    rows = []
    for model, word, nodes, rate in throughput():
        case = case_of(model, word, nodes)
        where = (model, word, 8 * nodes if word == "FULL_SHARD" else max(8, case.dims.shard))
        rows.append(
            Row(
                source="published", model=model, system="frontier", strategy=case.strategy, nodes=nodes, devices=case.devices,
                micro_batch=32, engine="fsdp1", precision=case.precision, global_batch=case.global_batch, mesh=case.dims.as_dict(),
                tokens=case.work.tokens, parameters=case.work.parameters, memory_gib=memory.get(where, {}), memory_limit_gib=63.98,
                images_per_s=rate, step_s=case.global_batch / rate, notes=[CITATION], activation_checkpointing="full",
            )  # fmt: skip
        )
    return rows
