"""A run folder as one measured row of a study. docs/measurement.md says how every number is taken."""

from __future__ import annotations

import dataclasses
import math
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from frontier.errors import UserError
from frontier.models.presets import get_shape
from frontier_profiling.measure.kineto import read_trace, shares
from frontier_profiling.measure.timed import WARM_UP, after_warm_up, timed
from frontier_profiling.report.read import Run, read_run
from frontier_profiling.report.records import launch_command
from frontier_profiling.rows import Row

ENGINES = {"ddp": "ddp", "zero_1": "deepspeed", "zero_2": "deepspeed", "zero_3": "deepspeed"}
SAME = ("world_size", "nodes", "mesh", "strategy", "precision", "device", "micro_batch")
"""Facts in which the starts of a run must agree for their steps to be one measurement."""


def measured_row(run_dir: Path, **facts: Any) -> Row:
    """What the run in `run_dir` measured. `facts` that are fields of `Row` (system, samples, path …) replace what is found; others
    join `Row.facts`.

    Steps that count for speed: those of the newest start and of earlier ones on the same topology, without the first
    five of each start (at most a fifth of it) and without profiled ones. With none left the speed is None, and a note says so.

    Raises UserError where the folder is no run.
    """
    run = read_run(run_dir)
    notes = list(run.notes)
    same = _same_topology(run, notes)
    keep = same & after_warm_up(np.nan_to_num(run.columns["start"])) & ~(run.columns["profiled"] > 0)
    row = _described(run)
    row.memory_gib = _memory(run, same)
    row.rank_spread, row.slowest_rank = _spread(run, row.devices)
    _speed(run, row, keep, notes)
    _energy(run, row, keep, notes)
    row.facts |= _trace(run, notes)
    fields = {field.name for field in dataclasses.fields(Row)}
    row.facts |= {key: value for key, value in facts.items() if key not in fields}
    for key, value in facts.items():
        if key in fields and key not in ("facts", "notes"):
            setattr(row, key, value)
    row.facts |= facts.get("facts", {})
    row.notes = [*notes, *facts.get("notes", [])]
    if row.samples and row.images_per_s:
        row.node_hours = row.samples / row.images_per_s / 3600 * row.nodes
    return row


def _same_topology(run: Run, notes: list[str]) -> np.ndarray:
    """Mask of the logged steps of starts that agree with the newest in `SAME`."""
    start = np.nan_to_num(run.columns["start"]).astype(int)
    mask = np.ones(len(run), dtype=bool)
    for index in np.unique(start):
        facts = run.starts[index] if 0 <= index < len(run.starts) else {}
        if facts and any(facts.get(key) != run.starts[-1].get(key) for key in SAME):
            mask[start == index] = False
    if not mask.all():
        notes.append(
            f"{int((~mask).sum())} steps of earlier starts on another topology or device do not count towards speed or memory."
        )
    return mask


def _described(run: Run) -> Row:
    world, strategy = int(run.fact("world_size", 1)), str(run.setting("parallel.strategy", "full_shard"))
    mesh = run.fact("mesh", {})
    tensor = int(run.setting("parallel.tensor", 1))
    data_ranks = world if run.setting("parallel.sequence_parallel", True) else world // tensor
    batch = int(run.setting("train.global_batch", 0))
    local = batch // max(1, data_ranks)
    micro = int(run.fact("micro_batch") or min(run.setting("train.micro_batch") or local, local))
    synthetic = run.setting("data.synthetic") is not None
    versions = run.fact("versions", {})
    when = run.fact("time")
    return Row(
        source="measured",
        model=str(run.setting("model.preset", "unknown")),
        system="local",
        strategy=strategy,
        nodes=int(run.fact("nodes", 1)),
        devices=world,
        micro_batch=micro,
        workload=str(run.setting("model.family", "unknown")),
        engine=ENGINES.get(strategy, "fsdp2"),
        image_size=int(run.setting("data.image_size") or 0),
        tokens=_tokens(run),
        parameters=run.fact("parameters"),
        global_batch=batch,
        accumulation=int(run.fact("accumulation") or max(1, local // max(1, micro))),
        precision=str(run.setting("parallel.precision", "fp32")),
        activation_checkpointing=str(run.setting("parallel.activation_checkpointing", "none")),
        tensor=tensor,
        prefetch=int(run.setting("parallel.prefetch", 1)),
        compile=bool(run.setting("parallel.compile", False)),
        offload=bool(run.setting("parallel.offload", False)),
        data="synthetic" if synthetic else "shards",
        mesh={axis: int(size) for axis, size in mesh.items()} if isinstance(mesh, dict) else {},
        flops_per_image=run.fact("flops_per_image"),
        peak_tflops=run.fact("peak_tflops"),
        command=launch_command(run),
        path=str(run.path),
        facts={
            "device": run.fact("device"),
            "device_type": run.fact("device_type"),
            "threads": run.fact("threads"),
            "torch": versions.get("torch") if isinstance(versions, dict) else None,
            "frontier": versions.get("frontier") if isinstance(versions, dict) else None,
            "git": run.fact("git"),
            "host": run.fact("host"),
            "launcher": run.fact("launcher"),
            "date": datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")
            if isinstance(when, int | float)
            else None,
            "memory_kind": run.memory_kind,
            "rss_before_model_gib": run.fact("rss_before_model_gib"),
            "exposed_from": run.fact("exposed_from"),
        },
    )


def _tokens(run: Run) -> int | None:
    """Encoder tokens of an image: [cls] and the kept patches."""
    size = run.setting("data.image_size")
    if run.setting("model.family") != "mae" or not size:
        return None
    patch = run.setting("model.patch") or get_shape(str(run.setting("model.preset"))).patch
    return 1 + int((size // patch) ** 2 * (1 - run.setting("model.mask_ratio", 0.75)))


def _most(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else None


def _memory(run: Run, same: np.ndarray) -> dict[str, float]:
    """Largest value over the steps, and over the ranks where they were compared; what was not measured is left out.

    `peak`: allocated by tensors on an accelerator, resident set on a CPU (facts["memory_kind"] says which).
    """
    names = {
        "peak": "memory_gib",
        "total_allocated": "memory_allocated_gib",
        "active": "memory_active_gib",
        "reserved": "memory_reserved_gib",
    }
    found = {name: most for name, key in names.items() if (most := _most(run.columns[key][same])) is not None}
    of_ranks = [line["memory_gib"]["max"] for line in _comparisons(run, "memory_gib")]
    if of_ranks and "peak" in found:
        found["peak"] = max(found["peak"], *of_ranks)
    return found


def _comparisons(run: Run, key: str) -> list[dict[str, Any]]:
    """Lines of ranks.jsonl with `key`, of the newest start's number of ranks."""
    world = run.fact("world_size")
    return [line for line in run.ranks if line.get("ranks") == world and isinstance(line.get(key), dict)]


def _spread(run: Run, devices: int) -> tuple[float | None, int | None]:
    """(slowest rank's own work over the median rank's: the median over all comparisons, the rank most often slowest).

    By the ranks' shares of the steps, where exposed communication is measured, else by a fixed product.
    """
    if devices == 1:
        return None, None
    for key in ("work_s", "product_s"):
        found = [(line[key].get("factor"), line[key].get("max_rank")) for line in _comparisons(run, key)]
        known = [(factor, rank) for factor, rank in found if factor is not None and rank is not None]
        if known:
            return statistics.median(factor for factor, _ in known), statistics.mode(rank for _, rank in known)
    return None, None


def _speed(run: Run, row: Row, keep: np.ndarray, notes: list[str]) -> None:
    step = timed(run.columns["step_s"][keep])
    if step is None:
        row.steps_timed = 0
        notes.append(f"{len(run)} step(s) logged, none left after warm-up and profiled steps: speed not measured.")
        return
    row.step_s, row.step_s_low, row.step_s_high, row.step_ci95_s = step.median, step.p10, step.p90, step.ci95
    row.steps_timed = step.count
    notes.append(
        f"median of {step.count} steps; of each start the first {WARM_UP} (at most a fifth) dropped as warm-up; "
        + (
            "interval of the median by order statistics"
            if step.ci95
            else "no interval of the median: that takes 6 steps"
        )
    )
    row.step_parts_s = _parts(run, keep, notes)
    supply = timed(run.columns["data_supply_ratio"][keep])
    row.data_supply_ratio = None if supply is None else supply.median
    row.limit = _limit(row)
    if row.global_batch:
        row.images_per_s = row.global_batch / step.median
    if row.images_per_s and row.flops_per_image:
        row.tflops_per_device = row.images_per_s * row.flops_per_image / row.devices / 1e12
        hardware = run.fact("hardware_flops_per_image")
        if row.peak_tflops:
            row.mfu = row.tflops_per_device / row.peak_tflops
            row.hfu = row.mfu * hardware / row.flops_per_image if hardware else None


def _parts(run: Run, keep: np.ndarray, notes: list[str]) -> dict[str, float]:
    """Medians by part, each on its own, so that their sum is the median step only nearly."""
    columns = {
        name: run.columns[f"{name}_s"][keep]
        for name in ("data", "forward", "backward", "optimizer", "checkpoint", "other", "exposed")
    }
    inside = {
        name: np.nan_to_num(run.columns[f"exposed_{name}_s"][keep]) for name in ("forward", "backward", "optimizer")
    }
    exposed = columns["exposed"]
    # Where only the sum is known (device events) it is taken off the passes, which hold nearly all of it.
    elsewhere = np.nan_to_num(exposed) - sum(inside.values())
    parts = {
        "compute": columns["forward"] + columns["backward"] - inside["forward"] - inside["backward"] - elsewhere,
        "optimizer": columns["optimizer"] - inside["optimizer"],
        "exposed": exposed,
        "data": columns["data"],
        "other": columns["other"] + np.nan_to_num(columns["checkpoint"]),
    }
    if _world(run) > 1 and not np.isfinite(exposed).any():
        notes.append("exposed communication was not measured: it is in `compute`.")
    medians = {name: timed(values) for name, values in parts.items()}
    return {name: max(0.0, found.median) for name, found in medians.items() if found is not None}


def _world(run: Run) -> int:
    return int(run.fact("world_size", 1))


def _trace(run: Run, notes: list[str]) -> dict[str, Any]:
    """{"trace": seconds a profiled step of the lowest rank profiled}, from RUN/profile, where there is one."""
    files = sorted((run.path / "profile").glob("rank*.json.gz"), key=lambda file: int(file.name[4:].split(".")[0]))
    if not files:
        return {}
    try:
        found = shares(read_trace(files[0]))
    except UserError as error:
        notes.append(f"{error}.")
        return {}
    steps = max(1, found[0].steps) if found else 1
    kinds = ("compute_s", "communication_s", "exposed_s", "copies_s", "idle_s")
    return {"trace": {kind: getattr(found[0], kind) / steps for kind in kinds}} if found else {}


def _limit(row: Row) -> str:
    """The largest of waiting for data, exposed communication, and all else that the device does; empty where it cannot be told."""
    parts = row.step_parts_s
    data, own = parts.get("data", 0.0), parts.get("compute", 0.0) + parts.get("optimizer", 0.0)
    if data > own + parts.get("exposed", 0.0):
        return "data"
    if "exposed" not in parts and row.devices > 1:
        return ""
    shares = {"data": data, "communication": parts.get("exposed", 0.0), "compute": own}
    return max(shares, key=lambda name: shares[name]) if any(shares.values()) else ""


def _energy(run: Run, row: Row, keep: np.ndarray, notes: list[str]) -> None:
    """Of the job: what node 0's meter gave times the nodes. Joules over all counted steps, so that slow ones weigh what they cost."""
    joules, seconds = run.columns["energy_j"][keep], run.columns["step_s"][keep]
    known = np.isfinite(joules) & np.isfinite(seconds)
    row.energy_source = run.energy_source
    if known.any() and row.global_batch:
        total = float(joules[known].sum()) * row.nodes
        row.joules_per_image = total / (int(known.sum()) * row.global_batch)
        row.power_w = total / float(seconds[known].sum())
    else:
        power = timed(run.columns["power_w"][keep])
        row.power_w = None if power is None else power.median * row.nodes
        if row.power_w is not None and row.images_per_s:
            row.joules_per_image = row.power_w / row.images_per_s
    if row.power_w is not None and row.nodes > 1:
        notes.append(f"power and energy are node 0's times {row.nodes} nodes.")
    if row.joules_per_image is not None and not math.isfinite(row.joules_per_image):
        row.joules_per_image = None
