"""The training loop: one readable function from plan to exit code."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn

from frontier.data.loader import Batch, Loader
from frontier.data.transforms import augment, normalise, resize
from frontier.errors import EXIT_OK, EXIT_REQUEUE, RankError, UserError
from frontier.launch.ranks import Ranks
from frontier.parallel.apply import parallelise, scale_gradients, set_gradient_sync, total_norm, unwrap
from frontier.train.checkpoint import Checkpoints, check_parameters
from frontier.train.metrics import Console, MetricsLog, device_name, memory_gib, peak_tflops, write_start
from frontier.train.optimizer import build_adamw, named_state, set_lr, set_updates
from frontier.train.plan import RunPlan
from frontier.train.preemption import StopFlag
from frontier.train.timing import StepClock


@dataclass
class Progress:
    """Where the run stands; the whole of its host-side state."""

    step: int = 0
    updates: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0


@dataclass
class StepResult:
    """What one step came to: loss over the global batch and its parts, gradient norm, whether a rank was asked to stop."""

    loss: float
    terms: dict[str, float]
    grad_norm: float
    stop: bool
    parts: dict[str, float]


def prepare(plan: RunPlan, batch: Batch, device: torch.device, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Stored integers -> (images [B, C, S, S] float32 normalised and augmented, members [B, 2]), on the device."""
    members = batch.members.to(device, non_blocking=True)
    images = normalise(batch.images.to(device, non_blocking=True), mean, std)
    images = augment(images, members, plan.config.data.augment, plan.config.run.seed)
    return resize(images, plan.config.data.image_size or images.shape[-1]), members


class Engine:
    """Model, optimizer and data of this rank, and one step of them."""

    def __init__(self, plan: RunPlan, ranks: Ranks, device: torch.device) -> None:
        self.plan, self.ranks, self.device = plan, ranks, device
        config = plan.config
        self.model = parallelise(plan.model, config.parallel, plan.dims, device, config.run.seed)
        self.module: nn.Module = unwrap(self.model)
        self.optimizer = build_adamw(self.module, config.train)
        assert config.data.mean and config.data.std
        self.mean = torch.tensor(config.data.mean, device=device)
        self.std = torch.tensor(config.data.std, device=device)
        self.autocast = (
            torch.autocast(device.type, torch.bfloat16)
            if config.parallel.precision == "bf16" and config.parallel.strategy == "ddp"
            else contextlib.nullcontext()
        )
        self.clock = StepClock(device)

    def step(self, batches: Any, lr: float, stop: bool) -> StepResult:
        """One optimizer step over the next global batch; skipped where the gradient is not finite."""
        plan, clock = self.plan, self.clock
        clock.start()
        try:
            batch: Batch = next(batches)
        except UserError as error:
            raise RankError(f"rank {self.ranks.rank}: {error}") from None
        clock.mark("data_s")
        images, members = prepare(plan, batch, self.device, self.mean, self.std)
        sums: dict[str, Tensor] = {}
        micro, times = plan.batch.micro_batch, plan.batch.accumulation
        for turn in range(times):
            part = slice(turn * micro, (turn + 1) * micro)
            set_gradient_sync(self.model, turn == times - 1)
            inputs = plan.family.inputs(self.module, images[part], members[part], plan.config.run.seed)
            with self.autocast:
                losses = self.model(**inputs)
            clock.mark("forward_s")
            (losses["loss"] / times).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / times
            clock.mark("backward_s")
        norm = total_norm(self.module)
        shared = torch.stack([torch.tensor(float(stop), device=self.device), *sums.values()])
        dist.all_reduce(shared)
        grad_norm, stops, *totals = torch.cat([norm.reshape(1), shared]).tolist()
        means = {name: total / plan.dims.data_ranks for name, total in zip(sums, totals, strict=True)}
        if math.isfinite(grad_norm):
            clip = plan.config.train.clip_norm
            if clip is not None and grad_norm > clip:
                scale_gradients(self.module, clip / (norm + 1e-6))
            set_lr(self.optimizer, lr)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        clock.mark("optimizer_s")
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        return StepResult(means.pop("loss"), means, grad_norm, stops > 0, clock.parts())

    def state(self) -> dict[str, Tensor]:
        return named_state(self.module, self.optimizer)


def _record(plan: RunPlan, ranks: Ranks, progress: Progress) -> dict[str, Any]:
    return {
        "samples": progress.step * plan.batch.global_batch,
        "updates": progress.updates,
        "skipped": progress.skipped,
        "fixed": plan.fixed(),
        "config": plan.config.as_dict(),
        "config_hash": plan.config.hash(),
        "parameters": plan.parameter_shapes,
        "world_size": ranks.world_size,
    }


def _check_record(plan: RunPlan, record: dict[str, Any]) -> None:
    where = plan.run_dir / "checkpoints" / f"step_{record['step']:08d}"
    check_parameters(record, plan.parameter_shapes, where)
    for key, value in plan.fixed().items():
        if record["fixed"].get(key) != value:
            raise UserError(
                f"{where} was made with {key}={record['fixed'].get(key)}, now it is {value}: the samples would not go on "
                "where they stopped; set it back, or give another run.dir"
            )


def _facts(plan: RunPlan, ranks: Ranks, device: torch.device, resumed: int | None) -> dict[str, Any]:
    parallel = plan.config.parallel
    return {
        "device": device_name(device),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "launcher": ranks.source,
        "world_size": ranks.world_size,
        "nodes": ranks.nodes,
        "mesh": plan.dims.as_dict(),
        "strategy": parallel.strategy,
        "precision": parallel.precision,
        "compile": parallel.compile,
        "activation_checkpointing": parallel.activation_checkpointing,
        "parameters": plan.parameters,
        "encoder_parameters": plan.family.encoder_parameters(plan.model),
        "flops_per_image": plan.flops_per_image,
        "peak_tflops": peak_tflops(device, parallel.precision),
        "resumed_from": resumed,
    }


def train(plan: RunPlan, ranks: Ranks, device: torch.device) -> int:
    """Run `plan` to its end or until asked to stop. Collective; needs a process group.

    Returns:
        EXIT_OK when all steps are done, EXIT_REQUEUE when stopped on request after a checkpoint.

    Raises:
        UserError: a checkpoint that does not fit or cannot be written; too many skipped steps in a row.
    """
    config, run_dir = plan.config, plan.run_dir
    torch.use_deterministic_algorithms(config.run.deterministic)
    stop = StopFlag(run_dir, ranks.is_main)
    if ranks.is_main:
        run_dir.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    facts = _facts(plan, ranks, device, None)
    engine = Engine(plan, ranks, device)
    checkpoints = Checkpoints(
        run_dir / "checkpoints",
        config.checkpoint.keep,
        config.checkpoint.keep_every,
        config.checkpoint.async_save,
        dist.new_group(backend="gloo"),
    )
    progress = Progress()
    record, passed_over = checkpoints.restore(engine.state(), lambda found: _check_record(plan, found))
    if record:
        progress = Progress(record["step"], record["updates"], record["skipped"])
        set_updates(engine.optimizer, progress.updates)
        facts["resumed_from"] = progress.step
    console = Console(
        config.log.progress if ranks.is_main else "none", plan.steps, progress.step, config.log.every_steps
    )
    log, start = None, 0
    if ranks.is_main:
        (run_dir / "config.yaml").write_text(yaml.safe_dump(config.as_dict(), sort_keys=False))
        log, start = MetricsLog(run_dir, progress.step), write_start(run_dir, facts)
        for line in passed_over:
            console.say(f"passed over: {line}")
        console.say(_banner(plan, ranks, facts))
    loader = Loader(plan.shards, config.data.column, plan.sampler, ranks.rank, ranks.world_size, config.data.workers)
    stopped = False
    try:
        batches = loader.batches(progress.step)
        before = time.perf_counter()
        while progress.step < plan.steps and not stopped:
            lr = plan.schedule.lr(progress.step)
            result = engine.step(batches, lr, bool(stop))
            _count(progress, result, config.train.max_skipped, console)
            stopped = result.stop
            checkpoints.poll()
            every = config.checkpoint.every_steps
            if every and progress.step % every == 0 and progress.step < plan.steps and not stopped:
                checkpoints.save(progress.step, engine.state(), _record(plan, ranks, progress))
            now = time.perf_counter()
            if log is not None:
                row = _row(plan, progress, result, lr, now - before, facts, device, start)
                log.write(row)
                console.step(row)
            before = now
        if checkpoints.last_step != progress.step:
            checkpoints.save(progress.step, engine.state(), _record(plan, ranks, progress))
        checkpoints.wait()
    finally:
        loader.close()
        console.close()
        if log is not None:
            log.close()
        stop.close()
    if ranks.is_main:
        where = run_dir / "checkpoints" / f"step_{progress.step:08d}"
        if stopped and progress.step < plan.steps:
            console.say(
                f"asked to stop ({stop.reason or 'another rank'}) after step {progress.step}: saved {where}, exit {EXIT_REQUEUE}"
            )
        else:
            console.say(f"done: {progress.step} steps, {progress.skipped} skipped, saved {where}")
    return EXIT_REQUEUE if stopped and progress.step < plan.steps else EXIT_OK


def _count(progress: Progress, result: StepResult, max_skipped: int, console: Console) -> None:
    progress.step += 1
    if math.isfinite(result.grad_norm):
        progress.updates += 1
        progress.skipped_in_a_row = 0
        return
    progress.skipped += 1
    progress.skipped_in_a_row += 1
    console.say(f"step {progress.step} skipped: the gradient is not finite (loss {result.loss})")
    if progress.skipped_in_a_row > max_skipped:
        raise UserError(
            f"{progress.skipped_in_a_row} steps in a row had no finite gradient (train.max_skipped={max_skipped}), the last is "
            f"step {progress.step}: lower train.base_lr, set train.clip_norm, or look at the data"
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _row(
    plan: RunPlan,
    progress: Progress,
    result: StepResult,
    lr: float,
    step_s: float,
    facts: dict[str, Any],
    device: torch.device,
    start: int,
) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    images_per_s = plan.batch.global_batch / step_s
    tflops = images_per_s * plan.flops_per_image / facts["world_size"] / 1e12
    memory, kind = memory_gib(device)
    samples = progress.step * plan.batch.global_batch
    return {
        "step": progress.step,
        "epoch": samples / plan.sampler.epoch_samples,
        "samples": samples,
        "loss": _finite(result.loss),
        **{name: _finite(value) for name, value in result.terms.items()},
        "lr": lr,
        "grad_norm": _finite(result.grad_norm),
        "images_per_s": images_per_s,
        "step_s": step_s,
        **result.parts,
        "other_s": max(0.0, step_s - sum(result.parts.values())),
        "memory_gib": memory,
        "memory_kind": kind,
        "model_tflops": tflops,
        "mfu": tflops / facts["peak_tflops"] if facts["peak_tflops"] else None,
        "power_w": None,
        "skipped": progress.skipped,
        "time": time.time(),
        "start": start,
    }


def _banner(plan: RunPlan, ranks: Ranks, facts: dict[str, Any]) -> str:
    c, mesh = plan.config, plan.dims
    lines = [
        f"{c.model.family} {getattr(c.model, 'preset', '')}: {plan.parameters / 1e6:.2f} M parameters "
        f"({facts['encoder_parameters'] / 1e6:.2f} M encoder), {plan.flops_per_image / 1e9:.2f} GFLOP an image",
        f"{ranks.world_size} ranks on {ranks.nodes} node(s) by {ranks.source}, {facts['device']}, {c.parallel.strategy} "
        f"= replicate {mesh.replicate} x shard {mesh.shard}, {c.parallel.precision}",
        f"global batch {plan.batch.global_batch} = {ranks.world_size} ranks x {plan.batch.accumulation} x {plan.batch.micro_batch}, "
        f"{plan.steps} steps, {len(plan.shards)} samples in {Path(c.data.shards)}, blocks of {plan.sampler.block}",
        f"run folder {plan.run_dir}"
        + (f", resumed from step {facts['resumed_from']}" if facts["resumed_from"] is not None else ""),
    ]
    return "\n".join(lines)
