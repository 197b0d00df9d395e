"""Rows and study folders made by hand: a machine whose every number follows from a formula, and the published points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from frontier_profiling.rows import Row, to_json

MODELS = {"vit_base": 0.09e9, "vit_huge": 0.6e9, "vit_1b": 0.99e9, "vit_3b": 3.07e9, "vit_5b": 5.3e9, "vit_15b": 14.7e9}
STRATEGIES = ("no_shard", "hybrid_1", "hybrid_2", "hybrid_8", "shard_grad_op", "full_shard")
NODES = (1, 2, 4, 8, 16, 32, 64, 128)
LIMIT = 63.98


def row(**more: Any) -> Row:
    """A measured point on one node of two devices; its step of 0.5 s has 64 images."""
    devices = more.pop("devices", 2 * more.get("nodes", 1))
    base: dict[str, Any] = {
        "source": "measured", "model": "vit_debug", "system": "toy", "strategy": "full_shard", "nodes": 1, "devices": devices,
        "micro_batch": 32, "step_s": 0.5, "images_per_s": 32 * devices / 0.5,
    }  # fmt: skip
    return Row(**(base | more))


def predicted(model: str, strategy: str, nodes: int, source: str = "predicted", speed: float = 1.0) -> Row:
    """Compute grows with the model; exposed communication with the group that shards and its size. 8 devices a node."""
    parameters, devices = MODELS[model], 8 * nodes
    k = {"no_shard": 1, "shard_grad_op": devices, "full_shard": devices}.get(strategy) or int(strategy.split("_")[1])
    k = min(k, devices)
    gib = 4 * parameters / 2**30
    memory = {
        "parameters": gib / (1 if strategy == "shard_grad_op" else k), "gradients": gib / k, "optimizer": 2 * gib / k,
        "activations": 0.6 * (parameters / 1e9) ** 0.5, "gathered": 0.0 if k == 1 else 0.1 * gib, "buffers": 0.2,
    }  # fmt: skip
    total = sum(memory.values())
    memory |= {"total_allocated": total, "peak": 1.03 * total, "allocator": 0.03 * total}
    fits = memory["peak"] < LIMIT
    compute = 0.15 * parameters / 1e9 + 0.02
    exposed = (0.02 if nodes > 1 else 0.004) * (parameters / 1e9) ** 0.5 * (1 + k / 90) + (
        0.004 * nodes / 8 if k > 8 else 0
    )
    parts = {
        "compute": compute,
        "launch": 0.01,
        "optimizer": 0.02 / k,
        "gather": exposed,
        "reduce": exposed / 2,
        "exposed": exposed,
        "data": 0.0,
    }
    step = (compute + 0.01 + 0.02 / k + exposed) / speed
    out = Row(
        source=source, model=model, system="frontier", strategy=strategy, nodes=nodes, devices=devices, micro_batch=32, parameters=int(parameters),
        memory_gib=memory, memory_limit_gib=LIMIT, fits=fits, command=f"frontier plan --model {model} --system frontier --nodes {nodes} --strategy {strategy}",
        global_batch=32 * devices, peak_tflops=191.5,
    )  # fmt: skip
    if not fits:
        out.status, out.error = "oom", f"needs {memory['peak']:.1f} GiB of {LIMIT} GiB"
        return out
    out.step_s, out.step_parts_s, out.images_per_s = step, parts, 32 * devices / step
    out.step_s_low, out.step_s_high = 0.9 * step, 1.2 * step
    out.mfu = 0.45 * compute / step
    out.power_w = nodes * (900 + 1800 * compute / step)
    out.joules_per_image = out.power_w / out.images_per_s
    out.samples, out.node_hours = 1_000_000, 1e6 / out.images_per_s / 3600 * nodes
    if source == "measured":
        out.step_ci95_s, out.rank_spread, out.slowest_rank = (0.995 * step, 1.005 * step), 1.02 + 0.001 * nodes, 3
        out.memory_gib = {name: memory[name] for name in ("total_allocated", "peak")}
        out.facts = {"device": "AMD MI250X", "torch": "2.13.0", "git": "0123abc"}
    return out


def big() -> list[Row]:
    return [predicted(m, s, n) for m in MODELS for n in NODES for s in STRATEGIES]


def published(reference: Path) -> list[Row]:
    """The throughput points of the reference file, read here with code of the tests' own."""
    table = yaml.safe_load(reference.read_text())["throughput_img_s"]
    nodes = table.pop("nodes")
    return [
        Row(source="published", model=model, system="frontier", strategy=name.lower(), nodes=n, devices=8 * n, micro_batch=32, images_per_s=speed)
        for model, lines in table.items()
        for name, speeds in lines.items()
        for n, speed in zip(nodes, speeds, strict=True)
        if speed is not None
    ]  # fmt: skip


def write(folder: Path, rows: list[Row], **spec: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.json").write_text(to_json(rows))
    if spec:
        (folder / "study.yaml").write_text(yaml.safe_dump(spec))
    return folder


def record(folder: Path) -> dict[str, Any]:
    """report.json, refusing what strict JSON refuses."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((folder / "report.json").read_text(), parse_constant=refuse)
