"""Gradients of the first batch, gathered: `python -m tests.scale_alibi.gradients_worker CONFIG OUT OVERRIDE…` under `run_local`."""

from __future__ import annotations

import json
import sys

import torch
from torch.distributed.tensor import DTensor

from frontier.config.load import load_config
from frontier.data.feed import Loaders
from frontier.launch.process_group import process_group
from frontier.launch.ranks import discover
from frontier.parallel.engine import Update
from frontier.train.plan import resolve
from frontier.train.trainer import Stepper


class Stop(Exception):
    """The step has gone far enough."""


def main(config: str, jobs: str) -> None:
    ranks, cpu = discover(), torch.device("cpu")
    with process_group(ranks, cpu, 120):
        for overrides, out in json.loads(jobs):
            plan = resolve(load_config(config, overrides), ranks.world_size)
            stepper = Stepper(plan, ranks, cpu)
            engine = stepper.engine

            def update(*_args: object) -> Update:
                raise Stop

            engine.update = update  # type: ignore[method-assign]
            place = plan.dims.data_rank(ranks.rank), plan.dims.data_ranks
            batches = Loaders(plan.feed.streams, *place, 0, cpu, plan.config.run.seed).batches(0)
            try:
                stepper.step(batches, 0.0, (1e9, 1e9), False, False, [])
            except Stop:
                pass
            if plan.dims.tensor > 1 and plan.dims.sequence_parallel:
                engine._sum_replicated()  # type: ignore[attr-defined]
            found = {}
            for name, parameter in engine.module.named_parameters():
                gradient = parameter.grad
                assert gradient is not None, name
                found[name] = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            if ranks.is_main:
                torch.save(found, out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
