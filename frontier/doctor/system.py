"""`--write-system FILE`: this machine measured as a system description of the predictor, with one rank as its device on a CPU."""

from __future__ import annotations

import datetime
import os
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from frontier.doctor import rates
from frontier.doctor.collectives import Fit
from frontier.doctor.environment import cores
from frontier.doctor.machine import host_memory_gib
from frontier.launch.doctor import all_gather
from frontier.launch.ranks import Ranks
from frontier.train.metrics import device_name

# (tokens, in, out) of blocks: qkv, fc1 and fc2 of widths 192 to 768.
CPU_SIZES = (
    (1024, 192, 576),
    (1024, 192, 768),
    (1024, 384, 1536),
    (1024, 1536, 384),
    (1024, 768, 2304),
    (512, 768, 3072),
)
GPU_SIZES = ((8192, 768, 2304), (8192, 1536, 6144), (8192, 2816, 8448), (8192, 2816, 11264), (8192, 11264, 2816))
CPU_BLOCKS = {"blocks": 3, "batch": 16, "tokens": 50, "width": 384, "heads": 6, "hidden": 1536}
GPU_BLOCKS = {"blocks": 3, "batch": 32, "tokens": 257, "width": 1536, "heads": 16, "hidden": 6144}
QUICK_SIZES = ((512, 192, 768), (512, 384, 1536))


def constants(device: torch.device, mesh: DeviceMesh, quick: bool = False) -> dict[str, Any]:
    """Everything a rank does in a step, timed on this rank; a flat dictionary of numbers. Not collective: `mesh` is of one rank."""
    cpu, repeats = device.type == "cpu", 3 if quick else 5
    sizes = QUICK_SIZES if quick else CPU_SIZES if cpu else GPU_SIZES
    batch, tokens, heads, dim = (16, 50, 6, 64) if cpu else (32, 257, 16, 96)
    found: dict[str, Any] = {}
    for name, dtype in rates.DTYPES.items():
        for size in sizes:
            done, work = rates.linear_pass(size, dtype, device, repeats), 2 * size[0] * size[1] * size[2] / 1e12
            key = f"product.{name}.{size[0]}x{size[1]}x{size[2]}"
            found[f"{key}.forward"] = work / done.forward_s
            found[f"{key}.backward"] = 2 * work / done.backward_s
        work = 4 * batch * heads * tokens**2 * dim / 1e12
        done = rates.attention_pass(batch, tokens, heads, dim, dtype, device, repeats)
        found[f"attention.{name}.forward"], found[f"attention.{name}.backward"] = (
            work / done.forward_s,
            2 * work / done.backward_s,
        )
        rows, width = (1600, 384) if cpu else (8192, 2816)
        done, moved = (
            rates.elementwise_pass(rows, width, dtype, device, repeats),
            rates.elementwise_bytes(rows, width, dtype),
        )
        found[f"elementwise.{name}.forward"], found[f"elementwise.{name}.backward"] = (
            moved[0] / done.forward_s / 1e9,
            moved[1] / done.backward_s / 1e9,
        )
        done = rates.whole_blocks(CPU_BLOCKS if cpu else GPU_BLOCKS, dtype, device, repeats)
        found[f"whole.{name}"] = done.forward_s + done.backward_s
        done = rates.block_overhead_s(device, dtype, repeats)
        found[f"block.{name}.forward"], found[f"block.{name}.backward"] = done.forward_s, done.backward_s
    sharded = rates.sharded_block_s(mesh, repeats)
    found["sharded.forward"], found["sharded.backward"] = sharded.forward_s, sharded.backward_s
    found["triad"] = rates.triad_gb_per_s(device, 16 << 20 if quick else None, repeats)
    found["optimizer"] = rates.optimizer_gb_per_s(device, (1 if quick else 16) << 20, repeats)
    found["operator"] = rates.operator_s(device, repeats)
    return found


def product_size(key: str) -> list[int]:
    return [int(n) for n in key.split(".")[2].split("x")]


def typical(found: dict[str, Any], name: str) -> float:
    """TFLOP/s of a step's products: all sizes weighted by their work, one part forward and two backward."""
    work = seconds = 0.0
    for key, rate in found.items():
        if key.startswith(f"product.{name}."):
            tokens, inner, outer = product_size(key)
            flop = 2 * tokens * inner * outer / 1e12 * (1 if key.endswith("forward") else 2)
            work, seconds = work + flop, seconds + flop / rate
    return work / seconds


def best(found: dict[str, Any], name: str) -> float:
    return max(rate for key, rate in found.items() if key.startswith(f"product.{name}."))


def elementwise(found: dict[str, Any], name: str) -> float:
    """GB/s of the elementwise work of a block, forward and backward together (7 and 9 tensors)."""
    forward, backward = found[f"elementwise.{name}.forward"], found[f"elementwise.{name}.backward"]
    return 16 / (7 / forward + 9 / backward)


def over_ranks(found: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Collective: the median over the ranks of each number."""
    own = torch.tensor(list(found.values()), device=device, dtype=torch.float32)
    world = dist.get_world_size()
    every = torch.empty(world * len(found), device=device)
    all_gather(every, own)
    table = every.view(world, -1).tolist()
    return {key: statistics.median(column) for key, column in zip(found, zip(*table, strict=True), strict=True)}


def alone(device: torch.device, mesh: DeviceMesh, rank: int, quick: bool, threads: int | None = None) -> dict[str, Any]:
    """Collective: `constants` of rank 0 while the others wait; with `threads` threads instead of its own."""
    found: list[Any] = [None]
    if rank == 0:
        before = torch.get_num_threads()
        if threads:
            torch.set_num_threads(threads)
        found = [constants(device, mesh, quick)]
        torch.set_num_threads(before)
    dist.broadcast_object_list(found)
    return found[0]


def measure(ranks: Ranks, device: torch.device, quick: bool, during: Callable[[str], Any]) -> dict[str, dict[str, Any]]:
    """Collective: constants with all ranks at work at once, with one alone, and with one that has all cores.

    `during(name)` is a context that bounds each in time.
    """
    runs: dict[str, dict[str, Any]] = {}
    mesh = init_device_mesh(device.type, (ranks.world_size, 1), mesh_dim_names=("of", "self"))["self"]
    with during("system.all"):
        dist.barrier()
        runs["all"] = over_ranks(constants(device, mesh, quick), device)
    if ranks.world_size > 1:
        with during("system.alone"):
            runs["alone"] = alone(device, mesh, ranks.rank, quick)
    if device.type == "cpu" and ranks.world_size > 1 and torch.get_num_threads() < cores():
        with during("system.whole_node"):
            runs["whole_node"] = alone(device, mesh, ranks.rank, quick, cores())
    return runs


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _round(v) for key, v in value.items()}
    return [_round(v) for v in value] if isinstance(value, list | tuple) else value


def _table(found: dict[str, Any]) -> dict[str, Any]:
    """A run's numbers, grouped for people."""
    out: dict[str, Any] = {}
    for name in rates.DTYPES:
        rows = [
            {"tokens_in_out": product_size(key), "forward": rate, "backward": found[key.replace("forward", "backward")]}
            for key, rate in found.items()
            if key.startswith(f"product.{name}.") and key.endswith("forward")
        ]
        out[name] = {
            "product_tflops": rows,
            "product_typical_tflops": typical(found, name),
            "attention_tflops": {
                "forward": found[f"attention.{name}.forward"],
                "backward": found[f"attention.{name}.backward"],
            },
            "elementwise_gb_per_s": {
                "forward": found[f"elementwise.{name}.forward"],
                "backward": found[f"elementwise.{name}.backward"],
            },
            "whole_blocks_s": found[f"whole.{name}"],
            "block_overhead_s": {
                "forward": found[f"block.{name}.forward"],
                "backward": found[f"block.{name}.backward"],
            },
        }
    return out | {
        "sharded_block_overhead_s": {"forward": found["sharded.forward"], "backward": found["sharded.backward"]},
        "triad_gb_per_s": found["triad"],
        "optimizer_gb_per_s": found["optimizer"],
        "operator_s": found["operator"],
    }


def describe(
    name: str,
    ranks: Ranks,
    device: torch.device,
    runs: dict[str, dict[str, Any]],
    fits: Sequence[Fit],
    read: float | None,
) -> dict[str, Any]:
    """The description: what `profiling/systems/*.yaml` hold, each constant with `from: measured` and the date.

    Peaks are the best product rates with all ranks at work, `product_efficiency_*` what a block's sizes reach of them.
    """
    today = datetime.date.today().isoformat()
    here, local = runs["all"], ranks.local_world_size
    total = host_memory_gib()[0]
    cpu = device.type == "cpu"
    memory = total / local if cpu else torch.accelerator.get_memory_info(device)[1] / 2**30

    def measured(value: float, **more: Any) -> dict[str, Any]:
        return {"value": value, "from": "measured", "date": today, **more}

    peaks = {dtype: best(here, dtype) for dtype in rates.DTYPES}
    efficiency: dict[str, Any] = {
        f"product_efficiency_{dtype}": measured(typical(here, dtype) / peaks[dtype]) for dtype in rates.DTYPES
    }
    efficiency["memory_efficiency"] = measured(elementwise(here, "fp32") / here["triad"])
    for dtype in rates.DTYPES:
        forward, backward = here[f"attention.{dtype}.forward"], here[f"attention.{dtype}.backward"]
        efficiency[f"attention_tflops_{dtype}"] = measured(3 / (1 / forward + 2 / backward))
        efficiency[f"elementwise_gb_per_s_{dtype}"] = measured(elementwise(here, dtype))
        efficiency[f"blocks_s_{dtype}"] = measured(here[f"whole.{dtype}"], **(CPU_BLOCKS if cpu else GPU_BLOCKS))
    block = here["sharded.forward"] + here["sharded.backward"]
    efficiency["launch_s"] = measured(block / 3, of="one pass of a block under FSDP: forward counts 1, backward 2")
    efficiency["optimizer_gb_per_s"] = measured(here["optimizer"], bytes_a_parameter=rates.ADAMW_BYTES)
    efficiency["operator_s"] = measured(here["operator"])
    efficiency["ranks"] = {
        "from": "measured",
        "date": today,
        "threads": torch.get_num_threads(),
        "cores": cores(),
        **{run: _table(found) for run, found in runs.items()},
    }
    inside = [fit for fit in fits if fit.ranks <= local]
    if inside:
        efficiency["collectives"] = {
            "from": "measured",
            "date": today,
            "form": "seconds = hops x alpha_s + wire / gb_per_s; hops n - 1 and wire S (n - 1) / n, twice both for all_reduce",
            "fits": [
                {
                    "collective": fit.collective,
                    "ranks": fit.ranks,
                    "alpha_s": fit.alpha_s,
                    "gb_per_s": fit.gb_per_s,
                    "bytes_seconds": [list(point) for point in fit.points],
                }
                for fit in inside
            ],
        }
    node = {
        "devices": local,
        "cpu": device_name(torch.device("cpu")),
        "cores": cores(),
        "memory_gib": total,
        "scheduler": ranks.source if ranks.source in ("slurm", "pals") else None,
    }
    return _round(
        {
            "name": name,
            "title": f"{os.uname().nodename}: {local} {'ranks' if cpu else 'devices'} of {device_name(device)}",
            "source": f"measured by `frontier doctor --write-system` on {today}, PyTorch {torch.__version__}",
            "device": {
                "name": f"one of {local} ranks, {torch.get_num_threads()} threads" if cpu else device_name(device),
                "type": device.type,
                "memory_gib": memory,
                "peak_tflops": peaks,
                "memory_gb_per_s": here["triad"],
            },
            "node": node,
            "links": links(inside),
            "network": None,
            "storage": {"read_gb_per_s_per_node": read},
            "nodes": 1,
            "efficiency": efficiency,
        }
    )


def links(fits: Sequence[Fit]) -> list[dict[str, Any]]:
    """One link for each size of group: medians over the collectives of what a ring's rank sends, and of a hop."""
    out = []
    for ranks in sorted({fit.ranks for fit in fits}):
        own = [fit for fit in fits if fit.ranks == ranks]
        speeds = [fit.gb_per_s for fit in own if fit.gb_per_s]
        if speeds:
            out.append(
                {
                    "devices": ranks,
                    "gb_per_s": statistics.median(speeds),
                    "latency_s": statistics.median(fit.alpha_s for fit in own),
                    "name": f"{dist.get_backend()} between {ranks} ranks of this node, measured",
                }
            )
    return out


HEAD = "# Measured by `frontier doctor --write-system`; `frontier plan --system THIS_FILE` predicts with it. Rates are of one rank.\n"


def text_of(description: dict[str, Any]) -> str:
    return HEAD + yaml.safe_dump(description, sort_keys=False, width=150, default_flow_style=None)
