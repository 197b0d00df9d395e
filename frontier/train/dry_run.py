"""`frontier pretrain --dry-run`: what would run, what it would hold and cost. All figures are predicted."""

from __future__ import annotations

import json
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from frontier.config.schema import ZERO
from frontier.parallel.tensor import planned_modules
from frontier.train.at_scale import lines
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

    if config.parallel.activation_checkpointing != "none":
        from frontier.parallel.apply import checkpoint_activations

        checkpoint_activations(plan.model.shard_units(), config.parallel.activation_checkpointing)  # type: ignore[operator]
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


def held_parameters(plan: RunPlan) -> tuple[int, list[int]]:
    """(parameters of a rank before FSDP cuts them, those of each unit): 1/T of what a tensor group of T splits."""
    tensor = plan.dims.tensor
    split: set[int] = set()
    if tensor > 1:
        for _, part, how in planned_modules(plan.model):
            layers = [getattr(part, name) for name in (*how.column, *how.row)]
            split |= {id(p) for layer in layers if layer is not None for n, p in layer.named_parameters()
                      if n == "weight" or layer in [getattr(part, c) for c in how.column]}  # fmt: skip

    def held(module: nn.Module) -> int:
        return sum(p.numel() // (tensor if id(p) in split else 1) for p in module.parameters())

    return held(plan.model), [held(unit) for unit in plan.model.shard_units()]  # type: ignore[operator]


def estimate(plan: RunPlan) -> dict[str, Any]:
    """GiB a rank by component and the work of the whole run."""
    config, dims = plan.config, plan.dims
    strategy = config.parallel.strategy
    compute_bytes = 2 if config.parallel.precision == "bf16" else _FP32
    own, units = held_parameters(plan)
    shared = own / dims.shard * _FP32 / 2**30
    memory = {"parameters": shared, "gradients": shared, "optimizer": 2 * shared}
    if dims.shard == 1 and compute_bytes == _FP32:
        gathered = 0
    elif dims.reshard_after_forward:  # the root, the unit in use and those ahead of it
        ahead = sum(sorted(units)[-1 - config.parallel.prefetch :])
        gathered = (own - sum(units) + ahead) * compute_bytes
    else:
        gathered = own * compute_bytes
    memory["gathered"] = gathered / 2**30
    if strategy in ZERO:  # working weights beside the float32 master weights, which belong to the optimizer
        whole = own * compute_bytes / 2**30
        memory["parameters"] = whole / dims.shard if strategy == "zero_3" else whole
        memory["gradients"] = shared if strategy != "zero_1" else own * _FP32 / 2**30
        memory["optimizer"] = 3 * shared
        memory["gathered"] = gathered / 2**30 if strategy == "zero_3" else 0.0
    memory["activations"] = saved_activation_bytes(plan) / 2**30
    on_host = {}
    if config.parallel.offload:
        moved = ("optimizer",) if strategy in ZERO else ("parameters", "gradients", "optimizer")
        on_host = {name: memory.pop(name) for name in moved}
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
        "host_memory_gib": on_host,
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
