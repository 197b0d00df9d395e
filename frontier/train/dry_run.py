"""`frontier pretrain --dry-run`: what would run, what it would hold and cost. All figures are predicted."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import yaml

from frontier.config.schema import ZERO
from frontier.parallel.zero import deepspeed_config, largest_unit
from frontier.train.at_scale import lines
from frontier.train.memory import predict
from frontier.train.plan import RunPlan


def deepspeed_section(plan: RunPlan) -> dict[str, Any]:
    """{"deepspeed": the config that DeepSpeed will get}, or nothing where it is not the engine."""
    if plan.config.parallel.strategy not in ZERO:
        return {}
    return {
        "deepspeed": deepspeed_config(
            plan.config.parallel, plan.config.train, plan.batch, plan.dims.world_size, largest_unit(plan.model)
        )
    }


def estimate(plan: RunPlan) -> dict[str, Any]:
    """GiB a rank by component and the work of the whole run."""
    dims = plan.dims
    memory, on_host = predict(plan)
    images = plan.steps * plan.batch.global_batch
    return {
        "provenance": "predicted",
        "parameters": plan.parameters,
        "mesh": {"strategy": dims.strategy, **dims.as_dict(), "world_size": dims.world_size},
        "batch": {
            "global": plan.batch.global_batch,
            "rank": plan.batch.local_batch,
            "micro": plan.batch.micro_batch,
            "accumulation": plan.batch.accumulation,
        },
        "steps": plan.steps,
        "images": images,
        "epochs": images / plan.epoch_samples,
        "flops_per_image": plan.flops_per_image,
        "flops": plan.flops_per_image * images,
        "checkpoint_gib": 12 * plan.parameters / 2**30,
        "memory_gib": memory,
        "host_memory_gib": on_host,
        **deepspeed_section(plan),
    }


def dry_run(plan: RunPlan, scale: dict[str, Any] | None, as_json: bool) -> None:
    """Print the resolved config, mesh, batch, memory and cost; `scale` is what `at_scale` gives."""
    figures = estimate(plan) | ({"scale": scale} if scale else {})
    if as_json:
        print(json.dumps({"config": plan.config.as_dict(), "config_hash": plan.config.hash(), **figures}, indent=1))
        return
    print(yaml.safe_dump(plan.config.as_dict(), sort_keys=False), end="")
    batch, mesh = figures["batch"], figures["mesh"]
    print(
        f"\nmesh        {mesh['strategy']} on {mesh['world_size']} ranks = replicate {mesh['replicate']} x shard {mesh['shard']} x tensor {mesh['tensor']}"
    )
    print(
        f"batch       {batch['global']} = {plan.dims.data_ranks} data ranks x {batch['accumulation']} micro-batches x {batch['micro']}"
    )
    print(f"length      {figures['steps']} steps, {figures['images']:,} images, {figures['epochs']:.1f} epochs")
    print(f"cost        {figures['flops']:.3g} FLOP = {figures['flops_per_image']:.3g} an image (predicted)")
    print("memory      GiB a rank (predicted):")
    for name, value in figures["memory_gib"].items():
        print(f"  {name:<12}{value:10.3f}")
    if figures["host_memory_gib"]:
        print(f"  on the host {sum(figures['host_memory_gib'].values()):10.3f}")
    print(f"checkpoint  {figures['checkpoint_gib']:.3f} GiB on disk (predicted)")
    if scale:
        print("\n".join(lines(scale)))
    if "deepspeed" in figures:
        print("deepspeed   its config, made from the one above:")
        print(textwrap.indent(yaml.safe_dump(figures["deepspeed"], sort_keys=False), "  "), end="")
