"""What is to be predicted: one model, machine, strategy and batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from frontier.config.schema import ZERO, ParallelConfig
from frontier.errors import UserError
from frontier.launch.mesh import ParallelDims
from frontier.models.mae_config import MAEConfig
from frontier_profiling.predict.system import System
from frontier_profiling.predict.workload import Workload, WorkloadName, of_encoder, of_mae, workload

ENGINES = ("fsdp2", "fsdp1")
UNGATHERED = ("ddp", "no_shard", "hybrid_1", "shard_grad_op", "zero_1", "zero_2", "zero_3")
"""Strategies whose weights are whole from the forward to the backward pass, or gathered by DeepSpeed as it likes."""


@dataclass(frozen=True)
class Case:
    """One point before it runs. Fields as in a run's config.

    Attributes:
        micro_batch: images of a device in one forward pass.
        accumulation: forward passes of a step.
        engine: fsdp2, ours; fsdp1, that of the published study (gradients reduced in the precision of computing, NO_SHARD without
            overlap, memory as published).
        samples: images of the whole run, for node-hours.
        data: synthetic, or shards: then the storage's rate bounds the step where it is known.
        sample_bytes: stored bytes that are read of a sample; None: one uint8 image as the model sees it, uncompressed.
    """

    model: str
    system: System
    nodes: int = 1
    strategy: str = "full_shard"
    tensor: int = 1
    micro_batch: int = 32
    accumulation: int = 1
    precision: str = "bf16"
    activation_checkpointing: str = "full"
    prefetch: int = 1
    image_size: int = 224
    channels: int = 3
    mask_ratio: float = 0.75
    workload: WorkloadName = "vit"
    engine: str = "fsdp2"
    offload: bool = False
    samples: int | None = None
    data: str = "synthetic"
    ranks: int | None = None
    """Devices, where not all of the nodes' are used."""
    sample_bytes: int | None = None
    sizes: MAEConfig | None = None
    """Of a run's MAE that differs from its preset; its images, bands and mask ratio are those of the case."""
    given: Workload | None = None
    """What a family says of a run's model, in place of a preset on images of `image_size` and `channels`."""

    def __post_init__(self) -> None:
        for name in ("nodes", "tensor", "micro_batch", "accumulation", "channels", "image_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: give a positive number")
        if self.engine not in ENGINES:
            raise UserError(f"engine '{self.engine}' is unknown: {' or '.join(ENGINES)}")
        if self.precision not in self.system.device.peak_tflops:
            known = ", ".join(self.system.device.peak_tflops)
            raise UserError(f"the peak of {self.system.name} in {self.precision} is not known: it has {known}")
        if self.nodes > self.system.nodes:
            raise UserError(f"{self.nodes} nodes: the largest job of {self.system.name} has {self.system.nodes}")
        most = self.nodes * self.system.node.devices
        if self.ranks is not None and not 0 < self.ranks <= most:
            raise UserError(
                f"{self.ranks} ranks: {self.nodes} node(s) of {self.system.name} have {most} devices"
                + (
                    f"; `frontier doctor --ranks {self.ranks} --write-system FILE` describes one with as many"
                    if self.system.device.type == "cpu"
                    else ""
                )
            )
        if self.engine == "fsdp1" and (self.tensor > 1 or self.strategy in ZERO):
            raise UserError("the published study ran FSDP1 without tensor parallelism or ZeRO: leave out the engine")
        if self.engine == "fsdp1":
            plain = {"workload": "vit", "offload": False, "activation_checkpointing": "full"}
            plain |= {"precision": "fp32"} if self.strategy == "ddp" else {}
            other = next((name for name, value in plain.items() if getattr(self, name) != value), None)
            if other:
                raise UserError(
                    f"the published study's engine (fsdp1) is known with {other} {plain[other]} alone, not {getattr(self, other)}: plan ours (fsdp2)"
                )
        try:
            # The same refusals as a run's own.
            ParallelConfig(
                strategy=self.strategy, tensor=self.tensor, precision=self.precision,  # type: ignore[arg-type]
                activation_checkpointing=self.activation_checkpointing,  # type: ignore[arg-type]
                prefetch=self.prefetch if self.strategy == "full_shard" or self.strategy.startswith("hybrid") else 1,
                offload=self.offload,
            )  # fmt: skip
        except ValidationError as error:
            raise UserError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None

    @property
    def devices(self) -> int:
        return self.ranks or self.nodes * self.system.node.devices

    @property
    def dims(self) -> ParallelDims:
        """Raises UserError where the strategy does not divide the devices."""
        return ParallelDims.from_strategy(self.strategy, self.devices, self.tensor)

    @property
    def global_batch(self) -> int:
        return self.devices * self.micro_batch * self.accumulation

    @property
    def work(self) -> Workload:
        if self.given is not None:
            return self.given
        if self.sizes is None:
            return workload(self.model, self.workload, self.image_size, self.channels, self.mask_ratio)
        if self.workload == "vit":
            return of_encoder(self.sizes.encoder, self.image_size, self.channels)
        return of_mae(
            self.sizes.replace(image_size=self.image_size, channels=self.channels, mask_ratio=self.mask_ratio)
        )

    @property
    def read_bytes(self) -> int:
        """Of a step's samples in storage."""
        return self.global_batch * (self.sample_bytes or self.channels * self.image_size**2)

    @property
    def element_bytes(self) -> int:
        """Of activations and working weights."""
        return 2 if self.precision == "bf16" else 4

    @property
    def reduce_bytes(self) -> int:
        """Of a gradient on the wire: float32 in our engine, the computing precision in the published study."""
        return self.element_bytes if self.engine == "fsdp1" else 4

    def but(self, **changes: Any) -> Case:
        return replace(self, **changes)
