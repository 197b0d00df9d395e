"""DeepSpeed ZeRO-1/2/3 as a second engine behind the same trainer: its config made from ours, its optimizer state as shares.

| word   | weights                     | gradients                        | optimizer state |
|--------|-----------------------------|----------------------------------|-----------------|
| zero_1 | whole                       | whole, reduced once a step       | cut over ranks  |
| zero_2 | whole                       | cut, reduced every micro-batch   | cut over ranks  |
| zero_3 | cut, gathered around use    | cut, reduced every micro-batch   | cut over ranks  |

DeepSpeed cuts the row-major order of elements, of all parameters of a group one after the other (1, 2) or of each parameter
(3), and keeps float32 master weights in both precisions. Those and AdamW's moments are what a checkpoint holds, in place, so a
checkpoint of FSDP loads here and the other way round, with no conversion.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import math
import os
import warnings
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from frontier.config.schema import ZERO, ParallelConfig, TrainConfig
from frontier.errors import UserError
from frontier.launch.mesh import BatchPlan
from frontier.models.init import initial_value, parameter_generator
from frontier.parallel.apply import ShardUnits, checkpoint_activations
from frontier.parallel.engine import Update
from frontier.parallel.materialise import initialise_buffers, materialise
from frontier.parallel.shares import Share
from frontier.train.optimizer import AdamW


def check_installed() -> None:
    """Raises UserError where DeepSpeed is missing."""
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            f"parallel.strategy {', '.join(ZERO)} need DeepSpeed, which is not installed: pip install 'deepspeed>=0.19.8' "
            "(the extra frontier-geofm[deepspeed]), or use full_shard"
        )


def largest_unit(module: nn.Module) -> int:
    """Parameters of the largest unit of sharding."""
    units = cast(ShardUnits, module).shard_units()
    return max(sum(p.numel() for p in unit.parameters()) for unit in units)


def deepspeed_config(
    parallel: ParallelConfig, train: TrainConfig, batch: BatchPlan, world_size: int, unit: int
) -> dict[str, Any]:
    """The config that DeepSpeed is given, word for word. `unit`: parameters of the largest unit of sharding.

    Buckets have the size of a unit, so at most about two units are whole at a time, as under FSDP. What DeepSpeed's config
    cannot say is done by the engine: weight decay on matrices only, the learning rate of each step, skipped steps.
    """
    stage = ZERO.index(parallel.strategy) + 1
    bucket = 2 * math.ceil(unit / 2)
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": bucket, "overlap_comm": stage == 3}
    if stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": bucket,
            "stage3_max_live_parameters": 2 * bucket,
            "stage3_max_reuse_distance": bucket,
            "stage3_param_persistence_threshold": 0,  # as under FSDP, nothing stays whole
            "memory_efficient_linear": False,  # it would replace torch.nn.functional.linear for the whole process
        }
    if parallel.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    config: dict[str, Any] = {
        "train_batch_size": batch.global_batch,
        "train_micro_batch_size_per_gpu": batch.micro_batch,
        "gradient_accumulation_steps": batch.accumulation,
        "gradient_clipping": train.clip_norm or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's AdamW, in a subclass that can leave a step out
        "zero_force_ds_cpu_optimizer": False,  # the same AdamW where it is offloaded: nothing is compiled
        "timers": {"throughput": {"enabled": False}},
    }
    assert batch.global_batch == world_size * batch.accumulation * batch.micro_batch
    if parallel.precision == "bf16":
        config |= {
            "bf16": {"enabled": True, "check_grad_overflow": False},  # the norm tells
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
        }
    return config


class GuardedAdamW(torch.optim.AdamW):
    """The maths of `frontier.train.optimizer.AdamW` on whatever flat parameters DeepSpeed puts in; can leave a step out.

    Attributes:
        allowed: asked by every `step`, after DeepSpeed has computed the gradient norm; where it says no, nothing changes.
    """

    def __init__(self, parameters: list[nn.Parameter], train: TrainConfig) -> None:
        matrices = [p for p in parameters if len(_shape(p)) > 1]
        others = [p for p in parameters if len(_shape(p)) <= 1]
        groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}]
        super().__init__(groups, lr=0.0, betas=train.betas, eps=AdamW.EPS, fused=True)
        self.allowed: Any = lambda: True

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if self.allowed():
            super().step()

    def begin(self, flat: Tensor) -> None:
        """Moments of the parameter `flat`, at zero."""
        with torch.no_grad():
            self.state[flat] = {
                "step": torch.zeros((), device=flat.device),
                "exp_avg": torch.zeros_like(flat, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(flat, requires_grad=False),
            }


def _shape(parameter: nn.Parameter) -> torch.Size:
    """The shape that the model sees, also where ZeRO-3 has cut the parameter."""
    return getattr(parameter, "ds_shape", parameter.shape)


def load_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed, silent but for errors, for the kind of device that the run is on."""
    check_installed()
    os.environ["DS_ACCELERATOR"] = device.type
    # It takes the device's index from here, also later on; launchers may count otherwise (one visible device a rank).
    index = str(device.index or 0)
    os.environ["LOCAL_RANK"] = index
    if "OMPI_COMM_WORLD_LOCAL_RANK" in os.environ:  # it refuses to start where the two differ
        os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = index
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # It calls collectives by names that this PyTorch is about to rename.
    warnings.filterwarnings("ignore", message="`torch.distributed.* is deprecated", category=FutureWarning)
    # Its own table of what can be compiled here: nothing. Else it would probe compilers and, on CPUs, compile an all-reduce
    # through shared memory (46 s, and g++) that only its inference uses.
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def partition(module: nn.Module, config: dict[str, Any], device: torch.device, dtype: torch.dtype, seed: int) -> None:
    """meta -> ZeRO-3 partitions with the initial weights of `seed`: one module's own parameters are whole at a time."""
    from deepspeed.runtime.zero import Init

    initialise_buffers(module, device)
    for prefix, owner in reversed(list(module.named_modules())):  # children first
        own = list(owner.named_parameters(recurse=False))
        for name, parameter in own:
            fqn = f"{prefix}.{name}" if prefix else name
            value = initial_value(owner, name, parameter_generator(seed, fqn)).to(device, dtype)
            owner.register_parameter(name, nn.Parameter(value, requires_grad=parameter.requires_grad))
        if own:
            Init(module=owner, config_dict_or_path=config, dtype=dtype)


def gather_once(module: nn.Module) -> None:
    """Have the weights of every part of `module` with `gathered_once` set gathered with the root's: once a pass, whatever it calls.

    Such a part may call its own layers a number of times, or use their weights in an order, that differs from rank to rank: gathered one by
    one, ranks would wait for each other. To DeepSpeed its layers are not there ("leaf module") and its weights are the root's too.
    """
    from deepspeed.runtime.zero.partition_parameters import register_external_parameter
    from deepspeed.utils import set_z3_leaf_module

    for part in module.modules():
        if getattr(part, "gathered_once", False):
            set_z3_leaf_module(part, True)
            for parameter in part.parameters():
                register_external_parameter(module, parameter)


@contextlib.contextmanager
def gradients_one_by_one() -> Iterator[None]:
    """Have DeepSpeed hook the gradients of leaf modules as all others: reduced when they are complete.

    By itself it reduces them when the gradient of a leaf's *inputs* is known. That holds for a leaf that is called once on inputs that need a
    gradient; one that is called twice would be reduced twice, one fed with data before there is a gradient. Its way is for
    leaves of which parts got no gradient; ours all do.
    """
    from deepspeed.runtime.zero import stage3

    asked, stage3.z3_leaf_parameter = stage3.z3_leaf_parameter, lambda _: False
    try:
        yield
    finally:
        stage3.z3_leaf_parameter = asked


class ZeroEngine:
    """The `Engine` of strategies zero_1, zero_2 and zero_3. `module` (on meta) stays as it is: the engine works on a copy."""

    replicas: dist.ProcessGroup | None = None  # its optimizer state is cut over all ranks

    def __init__(
        self,
        module: nn.Module,
        parallel: ParallelConfig,
        train: TrainConfig,
        batch: BatchPlan,
        device: torch.device,
        seed: int,
    ) -> None:
        deepspeed = load_deepspeed(device)
        self.blueprint, self.module = module, copy.deepcopy(module)
        self.device, self.world = device, dist.get_world_size()
        self.config = deepspeed_config(parallel, train, batch, self.world, largest_unit(module))
        if parallel.activation_checkpointing != "none":
            units = cast(ShardUnits, self.module).shard_units()
            checkpoint_activations(units, parallel.activation_checkpointing)
        # It prints the memory at every step of its set-up where stage 1 meets bf16.
        with contextlib.redirect_stdout(io.StringIO()), gradients_one_by_one():
            if parallel.strategy == "zero_3":
                dtype = torch.bfloat16 if parallel.precision == "bf16" else torch.float32
                deepspeed.init_distributed(dist_init_required=False)
                partition(self.module, self.config, device, dtype, seed)
                gather_once(self.module)
            else:
                materialise(self.module, device, device, seed)
            self.optimizer = GuardedAdamW(list(self.module.parameters()), train)
            self.engine, self.zero, *_ = deepspeed.initialize(
                model=self.module,
                optimizer=self.optimizer,
                config=copy.deepcopy(self.config),
                dist_init_required=False,
            )
        for flat, _ in self._groups():
            self.optimizer.begin(flat)
        if parallel.precision == "bf16":
            self._masters_from_seed(seed)

    def forward(self, inputs: dict[str, Any], last: bool) -> dict[str, Tensor]:
        self.engine.set_gradient_accumulation_boundary(last)
        return self.engine(**inputs)

    def backward(self, loss: Tensor, times: int) -> None:
        assert times == self.engine.gradient_accumulation_steps()  # it divides by that
        self.engine.backward(loss)

    def update(self, values: Tensor, lr: float, norm_limit: float, loss_limit: float) -> Update:
        shared = values.float()
        if self.world > 1:
            dist.all_reduce(shared)
        sums = shared.tolist()
        loss = sums[0] / self.world

        def fine() -> bool:
            # DeepSpeed sets this before it calls the optimizer, the same on all ranks; infinity for whatever is not finite.
            norm = float(self.zero._global_grad_norm)
            return math.isfinite(loss) and loss <= loss_limit and math.isfinite(norm) and norm <= norm_limit

        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.allowed = fine
        self.engine.step()
        return Update(fine(), float(self.zero._global_grad_norm), sums)

    def state(self) -> dict[str, Share]:
        result: dict[str, Share] = {}
        for name, shape, start, flat, piece in self._pieces():
            moments = self.optimizer.state[flat]
            result[f"model.{name}"] = Share.of_range(shape, start, flat[piece])
            for moment in ("exp_avg", "exp_avg_sq"):
                result[f"optimizer.{moment}.{name}"] = Share.of_range(shape, start, moments[moment][piece])
        return result

    @torch.no_grad()
    def restored(self, updates: int) -> None:
        for flat, _ in self._groups():
            self.optimizer.state[flat]["step"].fill_(updates)
        # Stage 3: working weights of either precision, in spite of the name.
        working = getattr(self.zero, "fp16_partitioned_groups_flat", None)
        if working is None:
            self.zero.update_lp_params()
        else:
            for weights, flat in zip(working, self._masters(), strict=True):
                weights.data.copy_(flat.data)

    def _masters(self) -> list[Tensor]:
        """This rank's float32 weights, one flat tensor a group of parameters."""
        # In order: stage 3; stages 1 and 2; stage 1 with bf16 weights, which DeepSpeed has an optimizer of its own for.
        for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
            if hasattr(self.zero, name):
                return getattr(self.zero, name)
        raise AssertionError(f"{type(self.zero).__name__} is none of the optimizers of DeepSpeed that are known here")

    def _groups(self) -> list[tuple[Tensor, list[nn.Parameter]]]:
        """(flat float32 weights of this rank, the parameters of which they are a part), one for each group."""
        names = ("fp16_groups", "bit16_groups", "bf16_groups")
        groups = next(getattr(self.zero, name) for name in names if hasattr(self.zero, name))
        return list(zip(self._masters(), groups, strict=True))

    def _pieces(self) -> Iterator[tuple[str, torch.Size, int, Tensor, slice]]:
        """(name, whole shape, first element held, flat tensor that holds it, where in it) of every parameter.

        Padding, at the end of a group (1, 2) or of a parameter (3), belongs to no piece.
        """
        names = {id(p): name for name, p in self.module.named_parameters()}
        rank = dist.get_rank()
        for flat, parameters in self._groups():
            at = 0  # where the parameter begins: in the whole group (1, 2), in this rank's part (3)
            first = rank * flat.numel()  # of the whole group, held here
            for parameter in parameters:
                shape = _shape(parameter)
                if hasattr(parameter, "ds_tensor"):
                    each = parameter.ds_tensor.ds_numel
                    start = min(rank * each, shape.numel())
                    count = min(each, shape.numel() - start)
                    yield names[id(parameter)], shape, start, flat, slice(at, at + count)
                    at += each
                else:
                    low = min(max(at, first), at + shape.numel())
                    high = max(low, min(at + shape.numel(), first + flat.numel()))
                    yield names[id(parameter)], shape, low - at, flat, slice(low - first, high - first)
                    at += shape.numel()

    @torch.no_grad()
    def _masters_from_seed(self, seed: int) -> None:
        """Initial weights in full precision: DeepSpeed has made its masters from rounded ones."""
        state = self.state()
        for prefix, owner in self.blueprint.named_modules():
            for name, _ in owner.named_parameters(recurse=False):
                fqn = f"{prefix}.{name}" if prefix else name
                value = initial_value(owner, name, parameter_generator(seed, fqn))
                for offsets, box in state[f"model.{fqn}"].boxes:
                    box.copy_(value[tuple(slice(o, o + n) for o, n in zip(offsets, box.shape, strict=True))])
