"""The typed sections of a run's config. `model` belongs to the family and is validated by its own class.

Every field has an effect; what cannot work together is refused here or, where it needs the number of ranks, in
`frontier.launch.mesh` before any process group starts.
"""

from __future__ import annotations

import math
import re
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

ZERO = ("zero_1", "zero_2", "zero_3")
STRATEGIES = ("ddp", "no_shard", "shard_grad_op", "full_shard", *ZERO)
STRATEGY_HELP = f"{', '.join(STRATEGIES)} or hybrid_<k> (hybrid_8: shards inside groups of 8 consecutive ranks)"


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that a field may hold: of `PositiveInt | None` int and None."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return {kind for one in get_args(annotation) for kind in _kinds(one)}
    return {annotation}


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, numbers are finite, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, values: Any) -> Any:
        """`train.steps: yes` would be one step. A key that takes words too tells itself what it wants."""
        for name, value in values.items() if isinstance(values, dict) else ():
            kinds = _kinds(cls.model_fields[name].annotation) if name in cls.model_fields else set()
            if isinstance(value, bool) and not kinds & {bool, str} and kinds & {int, float}:
                raise ValueError(f"{name} should be a number (given {value})")
        return values


class RunConfig(Section):
    dir: str
    """Everything the run leaves behind goes here."""
    seed: int = Field(0, ge=0, lt=2**31)
    deterministic: bool = False
    """Refuse nondeterministic kernels (torch.use_deterministic_algorithms); matters on GPUs."""
    device: Literal["auto", "cuda", "xpu", "cpu"] = "auto"
    """What every rank must find, one each (cuda: ROCm's as well); auto: an accelerator where there is one, else the CPU."""
    doctor: bool = False
    """Measure product rate and collectives before the first step, into starts.jsonl and the log."""


class AugmentConfig(Section):
    """On-device augmentation; every choice is a function of (seed, epoch, sample)."""

    symmetries: bool = False
    """The 8 symmetries of the square: imagery seen from above has no up."""
    crop_scale: tuple[float, float] | None = None
    """Random resized crop: range of the area kept, aspect ratio 3/4..4/3 (MAE: [0.2, 1.0])."""

    @field_validator("crop_scale")
    @classmethod
    def _crop(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 < value[0] <= value[1] <= 1:
            raise ValueError("crop_scale is [low, high] with 0 < low <= high <= 1")
        return value


class SyntheticConfig(Section):
    """Images made on the device: one fixed batch a rank, uniform bytes. For studies of speed."""

    channels: int = Field(3, gt=0)
    images: dict[str, tuple[PositiveInt, PositiveInt]] | None = Field(None, min_length=1)
    """Instead of `channels` and data.image_size, for families that take several images a sample: [bands, side in pixels] by column."""
    samples: int = Field(1_000_000, gt=0)
    """Size of an epoch to the sampler."""

    @model_validator(mode="after")
    def _one_shape(self) -> SyntheticConfig:
        if self.images is not None and self.channels != SyntheticConfig.model_fields["channels"].default:
            raise ValueError("data.synthetic.channels has no effect with data.synthetic.images: leave it out")
        return self


class DataConfig(Section):
    shards: str | None = None
    """Folder with manifest.json."""
    synthetic: SyntheticConfig | None = None
    """Instead of `shards`."""
    sources: dict[str, Any] | None = None
    """Instead of `shards`: several folders of shards in one run, by name; what is said of each belongs to the family."""
    mixing: float = Field(0.0, ge=0, le=1)
    """Shares of the sources in a batch, where they give no weight: proportional to samples ** mixing."""
    granule: int | None = Field(None, gt=0)
    """A source's share of a batch is a multiple of this, so that up to so many ranks x micro-batches divide it; default: the
    largest power of two up to 8 that leaves each source one."""
    split: str = "train"
    column: str = "image"
    image_size: int | None = Field(None, gt=0)
    """Side in pixels that the model sees; default: as stored. Another size resizes on the device."""
    workers: int = Field(1, ge=0, le=64)
    """Reader threads of a rank; 0 reads in the training thread."""
    block: int | None = Field(None, gt=0)
    """Consecutive samples read as one piece; default: the largest power of two up to 64 that fits the data."""
    window: int | None = Field(None, gt=0)
    """Global batches mixed together; divides `block`; default: `block`."""
    mean: list[float] | None = None
    std: list[float] | None = None
    """Per band, in stored units; default: from the manifest."""
    stage: str = ""
    """Node-local folder, such as /mnt/bb/$USER, to which each node copies the split's shards before training."""
    stage_gib: float | None = Field(None, gt=0)
    """At most so much a node: the first shards that fit are copied, the others read from `shards`; default: all."""
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="after")
    def _staged(self) -> DataConfig:
        if self.stage_gib is not None and not self.stage:
            raise ValueError("data.stage_gib has no effect without data.stage: leave it out")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        given = [key for key in ("shards", "synthetic", "sources") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of data.shards (a folder), data.sources (several) and data.synthetic (made on the device) "
                f"({' and '.join(given) or 'none'} given)"
            )
        if self.sources is None:
            self.refuse(("mixing", "granule"), "without data.sources")
        elif not self.sources:
            raise ValueError(
                "data.sources is empty: name at least one source, such as {eurosat: {shards: shards/eurosat}}"
            )
        else:
            keys = ("split", "column", "image_size", "block", "window", "mean", "std", "augment")
            self.refuse(keys, "with data.sources, where each source has its own settings")
        if self.synthetic is not None:
            if self.synthetic.images is not None:
                self.refuse(("image_size",), "with data.synthetic.images, which has a side for each")
            elif self.image_size is None:
                raise ValueError("data.synthetic needs data.image_size, the side of the images in pixels: add it")
            self.refuse(("split", "column", "workers", "stage"), "with data.synthetic, which reads nothing")
        return self

    def refuse(self, keys: tuple[str, ...], where: str) -> None:
        """Raises ValueError where one of `keys` is set, which has no effect `where`."""
        for key in keys:
            default = DataConfig.model_fields[key].default
            if getattr(self, key) != default:
                kept = "" if default is None or isinstance(default, Section) else f", or at its default {default!r}"
                raise ValueError(f"data.{key} has no effect {where}: leave it out{kept}")


class ParallelConfig(Section):
    strategy: str = "full_shard"
    tensor: int = Field(1, ge=1)
    """Ranks that compute each block together, composed with any FSDP strategy."""
    sequence_parallel: bool = True
    """Ranks of a tensor group hold different samples between the blocks; false: the same ones."""
    precision: Literal["fp32", "bf16"] = "fp32"
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """full: a block's backward pass recomputes it; selective: all but its matrix products and attention."""
    compile: bool = False
    """torch.compile of every block."""
    prefetch: int = Field(1, ge=0, le=8)
    """Units whose weights are gathered ahead of their use: at most 1 + prefetch are whole at a time."""
    offload: bool = False
    """Between uses, keep on the host: parameters, gradients and optimizer state (FSDP), optimizer state (ZeRO)."""
    timeout_s: int = Field(600, gt=0)
    """Of a collective: how long a dead rank can hold the others."""

    @field_validator("strategy")
    @classmethod
    def _strategy(cls, value: str) -> str:
        if value not in STRATEGIES and not re.fullmatch(r"hybrid_[1-9]\d*", value):
            raise ValueError(f"'{value}' is no strategy: choose {STRATEGY_HELP}")
        return value

    @model_validator(mode="after")
    def _together(self) -> ParallelConfig:
        strategy, zero = self.strategy, self.strategy in ZERO
        if self.tensor > 1 and (zero or strategy == "ddp"):
            other = "no_shard" if strategy == "ddp" else "full_shard or hybrid_<k>"
            raise ValueError(f"parallel.tensor does not compose with strategy {strategy}: use {other}")
        if not self.sequence_parallel and self.tensor == 1:
            raise ValueError("parallel.sequence_parallel=false has no effect without parallel.tensor: leave it out")
        if self.offload and strategy == "ddp":
            raise ValueError("parallel.offload is not possible under strategy ddp: use no_shard")
        if self.compile and zero:
            raise ValueError("parallel.compile is not supported by DeepSpeed's hooks: use full_shard or hybrid_<k>")
        sharded = strategy == "full_shard" or strategy.startswith("hybrid")
        if self.prefetch != 1 and (not sharded or strategy == "hybrid_1"):
            raise ValueError(f"parallel.prefetch has no effect under strategy {strategy}: leave it out")
        return self


class TrainConfig(Section):
    steps: int | None = Field(None, gt=0)
    epochs: float | None = Field(None, gt=0)
    samples: int | None = Field(None, gt=0)
    """Exactly one of steps, epochs, samples says how long to train."""
    start_from: str | None = None
    """A run or checkpoint whose weights to begin with, where names and shapes agree; a run that has checkpoints goes on from those."""
    global_batch: int = Field(gt=0)
    micro_batch: int | None = Field(None, gt=0)
    """Images of a rank in one forward pass, at most its share of the global batch; default: that share. Smaller values accumulate gradients."""
    base_lr: float = Field(1.5e-4, gt=0)
    """The peak learning rate is base_lr x global_batch / 256 (MAE's linear scaling rule)."""
    min_lr: float = Field(0.0, ge=0)
    warmup_steps: int | None = Field(None, ge=0)
    """Default: 5 % of the steps (MAE: 40 of 800 epochs)."""
    weight_decay: float = Field(0.05, ge=0)
    """Not on biases, norms and tokens."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of AdamW: how much of its two running means an update keeps."""
    clip_norm: float | None = Field(None, gt=0)
    spike_factor: float | None = Field(10.0, gt=1)
    """Skip a step whose gradient norm or loss exceeds this many times its median over the last 64 updates."""
    max_skipped: int = Field(20, ge=0)
    """Consecutive skipped steps before the run stops."""

    @field_validator("betas")
    @classmethod
    def _betas(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError(f"betas {list(value)}: both are at least 0 and below 1")
        return value

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        given = [k for k in ("steps", "epochs", "samples") if getattr(self, k) is not None]
        if len(given) != 1:
            told = " and ".join(given) if given else "none"
            raise ValueError(f"give exactly one of train.steps, train.epochs, train.samples ({told} given)")
        if not math.isfinite(self.base_lr * self.global_batch / 256):
            raise ValueError(
                f"train.base_lr={self.base_lr:g} x global_batch / 256 is no finite number: give a smaller one"
            )
        if self.micro_batch and self.global_batch % self.micro_batch:
            raise ValueError(
                f"train.micro_batch={self.micro_batch} does not divide train.global_batch={self.global_batch}"
            )
        return self


class CheckpointConfig(Section):
    every_steps: int | None = Field(None, gt=0)
    """Also saved at the end and on a signal; default: only then."""
    at_end: bool = True
    """false: nothing is left to go on from after the last step (a scaling study's runs)."""
    keep: int = Field(2, ge=1)
    """Newest complete checkpoints that stay."""
    keep_every: int | None = Field(None, gt=0)
    """Checkpoints at multiples of this step stay as well."""
    reserve_s: float | None = Field(30.0, ge=0)
    """Where the end of the job is known: seconds kept free before it, beside a step and a save; null: never stop for it."""
    async_save: bool = True
    """Write in the background while training goes on."""
    writers: int = Field(64, gt=0)
    """Ranks that write, one file each, as long as the copies of the model allow; the parts of one copy are always written."""


class LogConfig(Section):
    every_steps: int = Field(10, gt=0)
    """Steps between log lines on the terminal; metrics.jsonl has every step."""
    ranks_every: int = Field(100, gt=0)
    """Steps between comparisons of the ranks (ranks.jsonl): who computes or reads slower than the others."""
    energy: bool = True
    """Read the machine's energy counters where there are any: energy_j and power_w in metrics.jsonl."""
    progress: Literal["auto", "bar", "lines", "none"] = "auto"
    """auto: a bar on a terminal, lines elsewhere."""
    profile_steps: tuple[int, int] | None = None
    """[first, last] step, counted from 1, of a torch profiler trace: RUN/profile/rank<r>.json.gz."""
    profile_ranks: list[int] = [0]
    memory_snapshot: bool = False
    """Beside the trace, the allocator's record until its last step: RUN/profile/memory_rank<r>.pickle. Accelerators only."""

    @model_validator(mode="after")
    def _profile(self) -> LogConfig:
        if self.profile_steps is None:
            for key in ("profile_ranks", "memory_snapshot"):
                if getattr(self, key) != LogConfig.model_fields[key].default:
                    raise ValueError(f"log.{key} has no effect without log.profile_steps: add it, such as [10, 12]")
        elif not 1 <= self.profile_steps[0] <= self.profile_steps[1]:
            raise ValueError("log.profile_steps is [first, last] with 1 <= first <= last")
        if not self.profile_ranks or min(self.profile_ranks) < 0:
            raise ValueError("log.profile_ranks is a list of one or more ranks, such as [0]")
        return self


class CoreConfig(Section):
    """A whole run; `model` is the family's own section (see `frontier.models.registry`)."""

    run: RunConfig
    model: dict
    data: DataConfig
    parallel: ParallelConfig = ParallelConfig()
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
