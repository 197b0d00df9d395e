"""Run by test_prefetch.py on 2 ranks: how many blocks are gathered, or being gathered, at once in each pass."""

from __future__ import annotations

import json
import sys

import torch
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

from frontier.config.schema import ParallelConfig, TrainConfig
from frontier.launch.mesh import ParallelDims
from frontier.launch.process_group import process_group
from frontier.launch.ranks import discover
from frontier.models.mae import MAE, MAEConfig
from frontier.parallel.engine import TorchEngine

live: set[int] = set()
most = {"forward": 0, "backward": 0}
now = "forward"
unshard, reshard = FSDPParamGroup.unshard, FSDPParamGroup.reshard


def counted_unshard(self: FSDPParamGroup, *args: object, **kwargs: object) -> None:
    unshard(self, *args, **kwargs)
    if "blocks" in (self._module_fqn or ""):
        live.add(id(self))
        most[now] = max(most[now], len(live))


def counted_reshard(self: FSDPParamGroup, *args: object, **kwargs: object) -> None:
    reshard(self, *args, **kwargs)
    live.discard(id(self))


FSDPParamGroup.unshard, FSDPParamGroup.reshard = counted_unshard, counted_reshard
ranks, found = discover(), []
with process_group(ranks, torch.device("cpu"), 60):
    for depth in (0, 1, 2, 3):
        with torch.device("meta"):
            model = MAE(MAEConfig.preset("vit_debug", image_size=32).replace())
        parallel = ParallelConfig(strategy="full_shard", prefetch=depth)
        train = TrainConfig.model_validate({"steps": 1, "global_batch": 4})
        dims = ParallelDims.from_strategy("full_shard", ranks.world_size)
        engine = TorchEngine(model, parallel, train, dims, torch.device("cpu"), 0)
        inputs = {"images": torch.randn(2, 3, 32, 32), "noise": torch.rand(2, model.config.patches)}
        for _ in range(2):  # the first pass of FSDP2 records the order that backward prefetching follows
            live.clear()
            most = {"forward": 0, "backward": 0}
            now = "forward"
            loss = engine.forward(inputs, last=True)["loss"]
            now = "backward"
            engine.backward(loss, 1)
            engine.update(loss.detach().reshape(1), 1e-3, float("inf"), float("inf"))
        found.append((depth, dict(most), len(model.shard_units())))
if ranks.is_main:
    print(json.dumps(found))
sys.exit(0)
