"""What DeepSpeed gathers and reduces in micro-batches of few and of many clusters: `python -m tests.gpna.gathers_worker CONFIG`, JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from frontier.config.load import load_config
from frontier.data.feed import Loaders
from frontier.launch.process_group import process_group
from frontier.launch.ranks import discover
from frontier.parallel.zero import load_deepspeed
from frontier.train.plan import resolve
from frontier.train.trainer import build_engine


def main(path: str) -> None:
    cpu = torch.device("cpu")
    plans = [
        resolve(
            load_config(path, ["parallel.strategy=zero_3", f"model.batching.method={method}", "train.micro_batch=16"]),
            1,
        )
        for method in ("one", "each")
    ]
    load_deepspeed(cpu)
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3 as Stage3

    gathered: list[str] = []
    reduced: list[str] = []
    names: dict[int, str] = {}
    hidden = "_PartitionedParameterCoordinator__all_gather_params_"
    gather, reduce = getattr(Coordinator, hidden), Stage3.reduce_ready_partitions_and_remove_grads

    def noted_gather(self: Any, params: Any, *args: Any, **more: Any) -> Any:
        gathered.extend(names[id(p)] for p in params if p.ds_status.name == "NOT_AVAILABLE")
        return gather(self, params, *args, **more)

    def noted_reduce(self: Any, param: Any) -> Any:
        reduced.append(names[id(param)])
        return reduce(self, param)

    setattr(Coordinator, hidden, noted_gather)
    Stage3.reduce_ready_partitions_and_remove_grads = noted_reduce
    with process_group(discover(), cpu, 60):
        engine: Any = build_engine(plans[0], cpu)
        names.update({id(p): name for name, p in engine.module.named_parameters()})
        found = []
        batches = Loaders(plans[0].feed.streams, 0, 1, 0, cpu, 3).batches(0)
        for _ in range(2):  # the second time DeepSpeed knows the order of things and gathers ahead
            batch = next(batches)
            losses = []
            for turn, plan in enumerate(plans):  # the two micro-batches of a step
                reader = plan.feed.reader(cpu, 3)
                inputs = reader.inputs(engine.module, reader.place(batch), turn, 2)
                gathered.clear(), reduced.clear()
                loss = engine.forward(inputs, last=turn == 1)["loss"]
                forward = list(gathered)
                engine.backward(loss, 2)
                backward = gathered[len(forward) :]
                losses.append(loss.detach())
                found.append(
                    {
                        "clusters": len(inputs["clusters"]),
                        "forward": forward,
                        "backward": backward,
                        "reduced": list(reduced),
                    }
                )
            engine.update(torch.stack(losses).mean().reshape(1), 1e-3, float("inf"), float("inf"))
    print(json.dumps({"names": list(names.values()), "passes": found}))


if __name__ == "__main__":
    main(sys.argv[1])
