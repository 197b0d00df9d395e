"""What the trainer asks of an engine, and the engine on PyTorch's own parallelism (FSDP2, DDP, tensor parallel)."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from frontier.config.schema import ParallelConfig, TrainConfig
from frontier.launch.mesh import ParallelDims
from frontier.parallel.apply import parallelise, set_gradient_sync, stands_alone, unwrap
from frontier.parallel.shares import Share
from frontier.parallel.tensor import is_split, replicated_parameters
from frontier.parallel.working_copies import WorkingCopies
from frontier.train.optimizer import AdamW, local


@dataclass(frozen=True)
class Update:
    """What one optimizer step came to, the same on every rank.

    Attributes:
        made: whether the weights changed.
        norm: of the gradient, before clipping.
        sums: of the values given, over all ranks.
    """

    made: bool
    norm: float
    sums: list[float]


class Engine(Protocol):
    """Model and optimizer of one rank. The trainer sees nothing else of a parallelism.

    Attributes:
        module: the family's module, for its methods that are no maths (batch adapters).
        replicas: the ranks that hold the same parts of the state as this one, in the order of the copies of the model; None
            where it is the only one.
    """

    module: nn.Module
    replicas: dist.ProcessGroup | None

    def forward(self, inputs: dict[str, Any], last: bool) -> dict[str, Tensor]:
        """Losses of a micro-batch; `last` of its step, after which gradients are reduced."""
        ...

    def backward(self, loss: Tensor, times: int) -> None:
        """Add the gradient of `loss`, one of `times` micro-batches."""
        ...

    def update(self, values: Tensor, lr: float, norm_limit: float, loss_limit: float) -> Update:
        """Sum `values` [n] (values[0] is this rank's loss) over all ranks and make one optimizer step.

        The step is left out, by all ranks, where the gradient norm or the mean loss is not finite or beyond its limit.
        """
        ...

    def state(self) -> dict[str, Share]:
        """What a checkpoint holds: `model.<name>`, `optimizer.exp_avg.<name>`, `optimizer.exp_avg_sq.<name>`, float32.

        The memory is live: loading into it, then calling `restored`, restores the run.
        """
        ...

    def restored(self, updates: int) -> None:
        """Take over what was loaded into `state()`; `updates` optimizer steps were made so far."""
        ...


class TorchEngine:
    """FSDP2 or DDP, with or without tensor parallelism, and AdamW on local shards."""

    def __init__(
        self,
        module: nn.Module,
        parallel: ParallelConfig,
        train: TrainConfig,
        dims: ParallelDims,
        device: torch.device,
        seed: int,
    ) -> None:
        self.dims, self.device, self.clip_norm = dims, device, train.clip_norm
        self.model, self.tensor_group, self.replicas = parallelise(module, parallel, dims, device, seed)
        self.module = unwrap(self.model)
        self.optimizer = AdamW(dict(self.module.named_parameters()), train)
        self.parameters = {
            split: [p for p in self.module.parameters() if is_split(p) == split] for split in (False, True)
        }
        self.copies = None
        if parallel.precision == "bf16" and stands_alone(parallel, dims):
            self.copies = WorkingCopies(self.module, torch.bfloat16)
        self.autocast = (
            torch.autocast(device.type, torch.bfloat16)
            if parallel.precision == "bf16" and parallel.strategy == "ddp"
            else contextlib.nullcontext()
        )

    def forward(self, inputs: dict[str, Any], last: bool) -> dict[str, Tensor]:
        set_gradient_sync(self.model, last)
        if self.copies is not None:
            self.copies.install()
        with self.autocast:
            return self.model(**inputs)

    def backward(self, loss: Tensor, times: int) -> None:
        # FSDP and DDP average over the data axes. A tensor group of T ranks with different samples is T data ranks
        # whose gradients add up inside the blocks, hence the mean over them too.
        samples = self.dims.tensor if self.dims.sequence_parallel else 1
        (loss / (times * samples)).backward()

    @torch.no_grad()
    def update(self, values: Tensor, lr: float, norm_limit: float, loss_limit: float) -> Update:
        if self.copies is not None:
            self.copies.remove()
        if self.tensor_group is not None and self.dims.sequence_parallel:
            self._sum_replicated()
        world = self.dims.world_size
        shared = torch.cat([self._squares().reshape(1), values.float()])
        if world > 1:
            dist.all_reduce(shared)
        norm, loss = shared[0].sqrt(), shared[1] / world
        fine = norm.isfinite() & loss.isfinite() & (norm <= norm_limit) & (loss <= loss_limit)
        clip = self.clip_norm
        divide = torch.ones_like(norm) if clip is None else ((norm + 1e-6) / clip).clamp(min=1.0)
        self.optimizer.step(lr, divide, (~fine).float())
        self.optimizer.zero_grad()
        # The only wait for the device in a step, after all of it was launched.
        made, total, *sums = torch.cat([fine.float().reshape(1), norm.reshape(1), shared[1:]]).tolist()
        return Update(bool(made), total, sums)

    def _squares(self) -> Tensor:
        """This rank's part of the squared norm of all gradients, such that the sum over the world is that norm."""
        total = torch.zeros((), device=self.device)
        for split, parameters in self.parameters.items():
            gradients = [local(p.grad) for p in parameters if p.grad is not None]
            if gradients:
                copies = self.dims.replicate * (1 if split else self.dims.tensor)
                squares = torch.stack(torch._foreach_norm(gradients, dtype=torch.float32)).square().sum()
                total += squares.to(self.device) / copies
        return total

    def _sum_replicated(self) -> None:
        """Over the tensor group, the gradients of what every rank of it holds whole, in one collective."""
        gradients = [local(p.grad) for p in replicated_parameters(self.module) if p.grad is not None]
        flat = torch.cat([g.flatten().to(self.device) for g in gradients])
        dist.all_reduce(flat, group=self.tensor_group)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))

    def state(self) -> dict[str, Share]:
        result: dict[str, Share] = {}
        with torch.no_grad():
            for name, parameter in self.optimizer.named.items():
                result[f"model.{name}"] = Share.of(parameter)
                result[f"optimizer.exp_avg.{name}"] = Share.of(parameter, self.optimizer.exp_avg[name])
                result[f"optimizer.exp_avg_sq.{name}"] = Share.of(parameter, self.optimizer.exp_avg_sq[name])
        return result

    def restored(self, updates: int) -> None:
        self.optimizer.set_updates(updates)
