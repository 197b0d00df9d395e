"""CPU offload of FSDP: on a CPU there is nothing to move, so it is refused; the engine under it makes the same steps."""

from __future__ import annotations

from pathlib import Path

import torch

from frontier.config.schema import ParallelConfig, TrainConfig
from frontier.launch.mesh import ParallelDims
from frontier.launch.process_group import process_group
from frontier.launch.ranks import discover
from frontier.models.mae import MAE, MAEConfig
from frontier.parallel.engine import TorchEngine
from tests.conftest import run_frontier


def test_refused_on_a_cpu(toy: Path) -> None:
    done = run_frontier("pretrain", toy, "parallel.offload=true")
    assert done.returncode == 2
    assert "parallel.offload has no effect here" in done.stderr


def test_same_steps() -> None:
    config = MAEConfig.preset("vit_debug", image_size=32)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "images": torch.randn(4, 3, 32, 32, generator=generator),
        "noise": torch.rand(4, config.patches, generator=generator),
    }
    losses: dict[bool, list[float]] = {}
    with process_group(discover({}), torch.device("cpu"), 60):
        for offload in (False, True):
            with torch.device("meta"):
                model = MAE(config)
            engine = TorchEngine(
                model,
                ParallelConfig(strategy="full_shard", offload=offload),
                TrainConfig.model_validate({"steps": 1, "global_batch": 4, "clip_norm": 0.1}),
                ParallelDims.from_strategy("full_shard", 1),
                torch.device("cpu"),
                seed=0,
            )
            losses[offload] = []
            for _ in range(4):
                loss = engine.forward(inputs, last=True)["loss"]
                engine.backward(loss, 1)
                losses[offload].append(engine.update(loss.detach().reshape(1), 1e-2, 1e9, 1e9).sums[0])
    assert losses[True] == losses[False]
    assert losses[True][-1] < losses[True][0] - 0.01
