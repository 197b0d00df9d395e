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


def published_peaks(model: str, strategy: str, devices: int, group: int) -> dict[str, float]:
    """{max_allocated, peak_active} GiB as far as published; hybrid_k at any number of nodes is the cell of its group of k."""
    where = devices if strategy == "full_shard" else max(8, group)
    cells = memory_cells()
    return {q: gib for m, word, n, q, gib in cells if (m, word.lower(), n) == (model, strategy, where)}


@lru_cache
def memory_cells() -> tuple[tuple[str, str, int, str, float], ...]:
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
    return tuple(cells)


def published_rows() -> list[Row]:
    """Every cell of throughput as a Row, with the memory where it was published too."""
    names = {"max_allocated": "total_allocated", "peak_active": "peak"}
    rows = []
    for model, word, nodes, rate in throughput():
        case = case_of(model, word, nodes)
        peaks = published_peaks(model, case.strategy, case.devices, case.dims.shard)
        rows.append(
            Row(
                source="published",
                model=model,
                system="frontier",
                strategy=case.strategy,
                nodes=nodes,
                devices=case.devices,
                micro_batch=32,
                engine="fsdp1",
                precision=case.precision,
                global_batch=case.global_batch,
                mesh=case.dims.as_dict(),
                tokens=case.work.tokens,
                parameters=case.work.parameters,
                memory_gib={names[q]: gib for q, gib in peaks.items()},
                memory_limit_gib=63.98,
                images_per_s=rate,
                step_s=case.global_batch / rate,
                notes=[CITATION],
                activation_checkpointing="full",
            )
        )
    return rows
