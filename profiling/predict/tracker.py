"""Memory of a rank by simulation: the real engine and model on fake tensors in a fake world, watched by PyTorch's memory tracker.

The second way to know memory before a run, beside the closed form (`frontier.train.memory`), and independent of it: FSDP2 itself
gathers, frees and reduces, on tensors without storage, and `FSDPMemTracker` counts every storage that is alive. Any number of ranks in
one process; a pass of `vit_15b` takes about a minute. Bytes are those of tensors, as in the closed form: no allocator
rounding, no workspaces of kernels.

    python -m frontier_profiling.predict.tracker --model vit_3b --world-size 64 --strategy full_shard --json

A process group, a fake mode and the choice of attention kernel are global, so a process tracks one case: from other code call
`track`, which starts one.

What it cannot do: DistributedDataParallel and DeepSpeed (it follows FSDP2 modules), tensor parallelism (slicing a mesh of several axes
fails on fake tensors in PyTorch 2.13), offload.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from frontier.config.schema import ZERO
from frontier.errors import UserError
from frontier.models.presets import get_shape


@dataclass(frozen=True)
class TrackedCase:
    """One case; the words are those of a config.

    Attributes:
        micro_batch: images of a forward pass on a rank.
        model: preset of the MAE family.
        overrides: further keys of the config's `model:` section.
    """

    model: str
    world_size: int
    strategy: str = "full_shard"
    micro_batch: int = 32
    precision: str = "bf16"
    activation_checkpointing: str = "full"
    prefetch: int = 1
    accumulation: int = 1
    image_size: int = 224
    mask_ratio: float = 0.75
    channels: int = 3
    overrides: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        get_shape(self.model)  # UserError where there is none
        if self.strategy == "ddp" or self.strategy in ZERO:
            raise UserError(f"strategy {self.strategy}: the tracker follows FSDP2 only; the closed form knows this one")


def track(case: TrackedCase, timeout_s: float = 1200) -> dict[str, float]:
    """GiB of a rank at the peak of a step by component, in a process of its own.

    Keys: parameters, gradients, optimizer, activations, gathered (weights while they are whole), buffers (gradients before and in
    their reduction), peak, seconds. The parts add up to `peak`; inputs of the model do not count.

    Raises:
        UserError: a case that cannot be (its own words), or that the tracker cannot follow.
    """
    command = [sys.executable, "-m", "frontier_profiling.predict.tracker", "--case", json.dumps(asdict(case)), "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise UserError(f"the memory tracker gave no answer in {timeout_s:.0f} s for {case.model}") from None
    if done.returncode == 2:
        raise UserError(done.stderr.strip().removeprefix("error: "))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"the memory tracker of PyTorch failed on {case.model} under {case.strategy}: {last}")
    return json.loads(done.stdout)


@contextlib.contextmanager
def _fake_world(world_size: int) -> Iterator[None]:
    """Rank 0 of `world_size` ranks whose collectives move nothing."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def simulate(case: TrackedCase) -> dict[str, float]:
    """What `track` gives, in this process: it leaves global state behind."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker, _FSDPRefType

    import frontier.models.attention
    import frontier.parallel.apply
    from frontier.config.schema import ParallelConfig, TrainConfig
    from frontier.launch.mesh import ParallelDims
    from frontier.models.mae_family import FAMILY
    from frontier.models.registry import ImageShape
    from frontier.parallel.engine import TorchEngine

    class Dims(ParallelDims):
        def meshes(self, device_type: str) -> Any:
            with unset_fake_temporarily():  # a mesh reads its ranks, which fake tensors do not have
                return super().meshes(device_type)

    parallel = ParallelConfig(
        strategy=case.strategy,
        precision=case.precision,
        activation_checkpointing=case.activation_checkpointing,
        prefetch=case.prefetch,
    )
    dims = Dims(**vars(ParallelDims.from_strategy(case.strategy, case.world_size)))
    # Fused attention on whatever device: the products that a CPU takes for short bf16 sequences keep more.
    frontier.models.attention.PRODUCTS_MAX_TOKENS = -1
    # No initial values: nothing reads them, and fake tensors have none.
    frontier.parallel.apply.materialise = lambda module, device, *_: module.to_empty(device=device)  # type: ignore[assignment]
    start = time.perf_counter()
    batch = case.micro_batch
    section = FAMILY.config(
        **{"family": "mae", "preset": case.model, "mask_ratio": case.mask_ratio, **(case.overrides or {})}
    )
    train = TrainConfig(steps=1, global_batch=batch * case.accumulation * dims.data_ranks)
    with _fake_world(case.world_size), FakeTensorMode():
        with torch.device("meta"):
            model = FAMILY.build(section, ImageShape(case.image_size, case.channels))
        engine = TorchEngine(model, parallel, train, dims, torch.device("cpu"), 0)
        moments = [*engine.optimizer.exp_avg.values(), *engine.optimizer.exp_avg_sq.values()]
        inputs = {
            "images": torch.empty(batch, case.channels, case.image_size, case.image_size),
            "noise": torch.empty(batch, engine.module.config.patches),  # type: ignore[union-attr]
        }
        tracker = FSDPMemTracker(engine.model)
        tracker.track_inputs(tuple(inputs.values()))
        with tracker:
            for number in range(case.accumulation):
                if number:
                    tracker.reset_mod_stats()
                loss = engine.forward(inputs, last=number + 1 == case.accumulation)["loss"]
                engine.backward(loss, case.accumulation)
        # Moments are alive all along; the fused step adds nothing to them.
        optimizer = sum(m.nbytes for m in moments)
        found = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    kinds = _FSDPRefType
    parts = {
        "parameters": found[kinds.SHARDED_PARAM],
        "gradients": found[kinds.SHARDED_GRAD],
        "optimizer": optimizer,
        "activations": found[kinds.ACT] + found[kinds.TEMP],
        "gathered": found[kinds.UNSHARDED_PARAM] + found[kinds.ALL_GATHER],
        "buffers": found[kinds.UNSHARDED_GRAD] + found[kinds.REDUCE_SCATTER] + found[kinds.BUFFER],
    }
    result = {name: value / 2**30 for name, value in parts.items()}
    return {**result, "peak": sum(result.values()), "seconds": time.perf_counter() - start}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m frontier_profiling.predict.tracker", description="Memory of a rank on fake tensors."
    )
    parser.add_argument("--case", type=json.loads, default={}, help="all of the following as one JSON object")
    parser.add_argument("--model", help="preset of the MAE family")
    parser.add_argument("--world-size", type=int)
    parser.add_argument("--strategy")
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--precision")
    parser.add_argument("--activation-checkpointing")
    parser.add_argument("--prefetch", type=int)
    parser.add_argument("--accumulation", type=int)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--mask-ratio", type=float)
    parser.add_argument("--json", action="store_true")
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    as_json, whole = given.pop("json"), given.pop("case")
    try:
        if not {"model", "world_size"} <= {*given, *whole}:
            raise UserError("--model and --world-size say what to track")
        found = simulate(TrackedCase(**{**whole, **given}))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if as_json:
        print(json.dumps(found))
    else:
        print(
            "\n".join(f"{name:<12}{value:10.3f}{'' if name == 'seconds' else ' GiB'}" for name, value in found.items())
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
