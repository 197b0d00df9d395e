"""`frontier pretrain --dry-run`: what would run, what it would hold and cost. All figures are predicted."""

from __future__ import annotations

import json
from typing import Any

import torch
import yaml
from torch import Tensor

from frontier.train.plan import RunPlan

_FP32 = 4


def saved_activation_bytes(plan: RunPlan) -> int:
    """Bytes that autograd keeps for the backward pass of one micro-batch, counted in a forward pass on meta.

    Each storage counts once; parameters do not count. Under activation checkpointing this is what stays between
    the passes (the blocks' inputs), without the peak of one block's recomputation.
    """
    config = plan.config
    assert config.data.image_size and config.data.mean
    seen: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    if config.parallel.activation_checkpointing == "full":
        from frontier.parallel.apply import checkpoint_activations

        checkpoint_activations(plan.model.shard_units())  # type: ignore[operator]
    micro, size = plan.batch.micro_batch, config.data.image_size
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        images = torch.empty(micro, len(config.data.mean), size, size)
        members = torch.zeros(micro, 2, dtype=torch.int64)
        model = plan.model
        if config.parallel.precision == "bf16":
            model = model.to(torch.bfloat16)
        model(**plan.family.inputs(model, images, members, config.run.seed))
    parameters = {p.untyped_storage()._cdata for p in plan.model.parameters()}
    return sum(t.untyped_storage().nbytes() for key, t in seen.items() if key not in parameters)


def estimate(plan: RunPlan) -> dict[str, Any]:
    """GiB a rank by component and the work of the whole run."""
    config, dims = plan.config, plan.dims
    per_rank = plan.parameters / dims.shard * _FP32 / 2**30
    compute_bytes = 2 if config.parallel.precision == "bf16" else _FP32
    units = [sum(p.numel() for p in unit.parameters()) for unit in plan.model.shard_units()]  # type: ignore[operator]
    if dims.shard == 1 and compute_bytes == _FP32:
        gathered = 0
    elif dims.reshard_after_forward:  # the root and two units in flight
        gathered = (plan.parameters - sum(units) + 2 * max(units)) * compute_bytes
    else:
        gathered = plan.parameters * compute_bytes
    memory = {
        "parameters": per_rank,
        "gradients": per_rank,
        "optimizer": 2 * per_rank,
        "gathered": gathered / 2**30,
        "activations": saved_activation_bytes(plan) / 2**30,
    }
    memory["total"] = sum(memory.values())
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
        "epochs": images / plan.sampler.epoch_samples,
        "flops_per_image": plan.flops_per_image,
        "flops": plan.flops_per_image * images,
        "checkpoint_gib": 3 * plan.parameters * _FP32 / 2**30,
        "memory_gib": memory,
    }


def dry_run(plan: RunPlan, as_json: bool) -> None:
    """Print the resolved config, mesh, batch, memory and cost."""
    figures = estimate(plan)
    if as_json:
        print(json.dumps({"config": plan.config.as_dict(), "config_hash": plan.config.hash(), **figures}, indent=1))
        return
    print(yaml.safe_dump(plan.config.as_dict(), sort_keys=False), end="")
    batch, mesh = figures["batch"], figures["mesh"]
    print(
        f"\nmesh        {mesh['strategy']} on {mesh['world_size']} ranks = replicate {mesh['replicate']} x shard {mesh['shard']}"
    )
    print(
        f"batch       {batch['global']} = {plan.dims.data_ranks} ranks x {batch['accumulation']} micro-batches x {batch['micro']}"
    )
    print(f"length      {figures['steps']} steps, {figures['images']:,} images, {figures['epochs']:.1f} epochs")
    print(f"cost        {figures['flops']:.3g} FLOP = {figures['flops_per_image']:.3g} an image (predicted)")
    print("memory      GiB a rank (predicted):")
    for name, value in figures["memory_gib"].items():
        print(f"  {name:<12}{value:10.3f}")
    print(f"checkpoint  {figures['checkpoint_gib']:.3f} GiB on disk (predicted)")
