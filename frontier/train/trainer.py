"""The training loop: one readable function from plan to exit code."""

from __future__ import annotations

import math
import sys
import textwrap
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch import Tensor

from frontier.config.schema import ZERO
from frontier.data.feed import Loaders
from frontier.data.loader import Batch, Supply
from frontier.data.stage import stage_root
from frontier.energy.job import JobEnergy
from frontier.errors import EXIT_OK, EXIT_REQUEUE, RankError, UserError
from frontier.launch.doctor import examine, lines
from frontier.launch.host_memory import settle_objects
from frontier.launch.job import Job, current_job
from frontier.launch.ranks import Ranks
from frontier.models.cpu.build import unavailable
from frontier.models.peers import ComparesSamples
from frontier.parallel.engine import Engine, TorchEngine, Update
from frontier.parallel.peers import DataRanks
from frontier.train.checkpoint import Checkpoints, check_parameters, writing_ranks
from frontier.train.comparison import RankComparison
from frontier.train.guards import Guard
from frontier.train.metrics import (
    Console,
    MetricsLog,
    amend_start,
    device_name,
    hms,
    memory_gib,
    memory_row,
    peak_tflops,
    resident_gib,
    write_start,
)
from frontier.train.plan import FINGERPRINT, RunPlan
from frontier.train.preemption import StopFlag
from frontier.train.profiler import StepProfiler
from frontier.train.staging import shares_of_stage, stage_on_every_node
from frontier.train.startup import Startup
from frontier.train.startup import line as startup_line
from frontier.train.timing import StepClock
from frontier.train.waits import Waits, way
from frontier.train.walltime import Walltime, assumed_save_s


@dataclass
class StepResult:
    """What one step came to: the update, loss over the global batch and its parts, whether a rank was asked to stop or could
    not write a checkpoint, what the nodes' energy meters sent, seconds by part, and those of them that communication was waited for.
    """

    update: Update
    loss: float
    terms: dict[str, float]
    stop: bool
    save_failed: bool
    energy: list[float]
    parts: dict[str, float]
    exposed: dict[str, float | None]


class Stepper:
    """One training step: batch, forward and backward passes by micro-batches, update."""

    def __init__(self, plan: RunPlan, ranks: Ranks, device: torch.device) -> None:
        self.plan, self.ranks, self.device = plan, ranks, device
        self.engine = build_engine(plan, device)
        config = plan.config
        if isinstance(self.engine.module, ComparesSamples):
            self.engine.module.peers = DataRanks(plan.dims, ranks.rank)
        self.reader = plan.feed.reader(device, config.run.seed)
        self.waits = Waits(way(device, config.parallel), getattr(self.engine, "model", None))
        self.clock = StepClock(device, self.waits)

    def step(
        self,
        batches: Any,
        lr: float,
        limits: tuple[float, float],
        stop: bool,
        save_failed: bool,
        energy: list[float],
    ) -> StepResult:
        """One optimizer step over the next global batch; left out where gradient norm or loss are beyond `limits`."""
        plan, clock, engine = self.plan, self.clock, self.engine
        clock.start()
        try:
            batch: dict[str, Batch] = next(batches)
        except UserError as error:
            raise RankError(f"rank {self.ranks.rank}: {error}") from None
        clock.mark("data_s")
        placed = self.reader.place(batch)
        sums: dict[str, Tensor] = {}
        times = plan.batch.accumulation
        further = self._compare(placed, times)
        for turn in range(times):
            inputs = self.reader.inputs(engine.module, placed, turn, times) | further[turn]
            losses = engine.forward(inputs, last=turn == times - 1)
            clock.mark("forward_s")
            engine.backward(losses["loss"], times)
            if turn == times - 1:
                self.waits.backward_ended()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / times
            clock.mark("backward_s")
        loss = sums.pop("loss")
        told = torch.tensor([float(stop), float(save_failed), *energy], device=self.device)
        update = engine.update(torch.stack([loss, *told, *sums.values()]), lr, *limits)
        clock.mark("optimizer_s")
        total, stops, failures, *rest = update.sums
        joules, totals = rest[: len(energy)], rest[len(energy) :]
        world = plan.dims.world_size
        terms = {name: value / world for name, value in zip(sums, totals, strict=True)}
        return StepResult(update, total / world, terms, stops > 0, failures > 0, joules, clock.parts(), clock.exposed())

    @torch.no_grad()
    def _compare(self, placed: Any, times: int) -> list[dict[str, Any]]:
        """Further keyword arguments of each micro-batch, where the loss compares samples across them."""
        module = self.engine.module
        if times == 1 or not isinstance(module, ComparesSamples):
            return [{}] * times
        each = (self.reader.inputs(module, placed, turn, times) for turn in range(times))
        return module.compare([self.engine.forward(inputs | {"embed_only": True}, last=False) for inputs in each])


def build_engine(plan: RunPlan, device: torch.device) -> Engine:
    """The engine of the plan's strategy. Collective."""
    parallel, train_config = plan.config.parallel, plan.config.train
    if parallel.strategy in ZERO:
        from frontier.parallel.zero import ZeroEngine

        return ZeroEngine(plan.model, parallel, train_config, plan.batch, device, plan.config.run.seed)
    return TorchEngine(plan.model, parallel, train_config, plan.dims, device, plan.config.run.seed)


def _record(plan: RunPlan, ranks: Ranks, step: int, guard: Guard) -> dict[str, Any]:
    return {
        "samples": step * plan.batch.global_batch,
        "guard": guard.state(),
        "fixed": plan.fixed(),
        "config": plan.config.as_dict(),
        "config_hash": plan.config.hash(),
        "parameters": plan.parameter_shapes,
        "world_size": ranks.world_size,
    }


def check_record(plan: RunPlan, record: dict[str, Any]) -> None:
    """Raises UserError where the run cannot go on from a checkpoint with this record."""
    where = plan.run_dir / "checkpoints" / f"step_{record['step']:08d}"
    check_parameters(record, plan.parameter_shapes, where)
    now, then = plan.fixed(), dict(record["fixed"])
    for key in now.keys() - then.keys():  # recorded by a version that did not ask for it
        then[key] = _at(record["config"], key)
    if plan.family.fixed is not None:
        now |= plan.family.fixed(plan.config.model)
        then |= plan.family.fixed(plan.family.config.model_validate(record["config"]["model"]))
    for key, value in now.items():
        before = then.get(key)
        if before != value:
            old, new = (textwrap.shorten(str(shown), 160, placeholder=" …") for shown in (before, value))
            shards = key != FINGERPRINT and then.get(FINGERPRINT) != now[FINGERPRINT]
            other = f" ({FINGERPRINT} differs as well: other shards)" if shards else ""
            raise UserError(
                f"{where} was made with {key}={old}, now it is {new}{other}: the run would not go on "
                "where it stopped; set it back, or give another run.dir"
            )


def _at(config: dict[str, Any], key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    found: Any = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _facts(plan: RunPlan, ranks: Ranks, device: torch.device, resumed: int | None) -> dict[str, Any]:
    parallel = plan.config.parallel
    return {
        "device": device_name(device),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "cpu_operators": (unavailable() or "compiled") if device.type == "cpu" else None,
        "launcher": ranks.source,
        "world_size": ranks.world_size,
        "nodes": ranks.nodes,
        "mesh": plan.dims.as_dict(),
        "micro_batch": plan.batch.micro_batch,
        "accumulation": plan.batch.accumulation,
        "strategy": parallel.strategy,
        "precision": parallel.precision,
        "compile": parallel.compile,
        "activation_checkpointing": parallel.activation_checkpointing,
        "parameters": plan.parameters,
        "encoder_parameters": plan.family.encoder_parameters(plan.model),
        "flops_per_image": plan.flops_per_image,
        "hardware_flops_per_image": plan.hardware_flops_per_image,
        "peak_tflops": peak_tflops(device, parallel.precision),
        "exposed_from": way(device, parallel),
        "rss_before_model_gib": resident_gib()[0],
        "resumed_from": resumed,
    }


def train(
    plan: RunPlan,
    ranks: Ranks,
    device: torch.device,
    stop: StopFlag,
    job: Job | None = None,
    startup: Startup | None = None,
) -> int:
    """Run `plan` to its end, until `stop` is set on some rank, or until the job has no time for more. Collective; needs a
    process group. `job`: by default, what the environment tells; `startup`: with the marks of what was before.

    Returns:
        EXIT_OK when all steps are done, EXIT_REQUEUE when stopped on request after a checkpoint.

    Raises:
        UserError: a checkpoint that does not fit or cannot be written; too many skipped steps in a row.
    """
    config, run_dir = plan.config, plan.run_dir
    torch.use_deterministic_algorithms(config.run.deterministic)
    if ranks.is_main:
        stop.watch(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    job, startup = job or current_job(), startup or Startup()
    past = job.end is not None and job.end <= time.time()
    if past:
        job = replace(job, end=None)
    facts = _facts(plan, ranks, device, None) | job.facts()
    energy = JobEnergy(ranks, device, config.log.energy)
    facts |= energy.facts
    if config.run.doctor:
        facts["doctor"] = examine(device)
    profiler = StepProfiler(run_dir, config.log, ranks.rank, device)
    stepper = Stepper(plan, ranks, device)
    saving = config.checkpoint
    writing = writing_ranks(saving.writers, plan.dims.replicate, plan.dims.shard * plan.dims.tensor)
    checkpoints = Checkpoints(
        run_dir / "checkpoints", saving.keep, saving.keep_every, saving.async_save, writing, device
    )
    step, guard = 0, Guard(config.train.spike_factor, config.train.max_skipped)
    engine = stepper.engine
    record, passed_over = checkpoints.restore(engine.state(), lambda found: check_record(plan, found), engine.replicas)
    if record:
        step = record["step"]
        guard.restore(record["guard"])
        engine.restored(guard.updates)
        facts["resumed_from"] = step
    begun = None
    if record is None and config.train.start_from:
        begun = checkpoints.begin_from(config.train.start_from, engine.state(), engine.replicas)
        engine.restored(0)
        facts["start_from"] = str(begun[0])
    console = Console(config.log.progress if ranks.is_main else "none", plan.steps, step, config.log.every_steps)
    log, start = None, 0
    if ranks.is_main:
        (run_dir / "config.yaml").write_text(yaml.safe_dump(config.as_dict(), sort_keys=False))
        log, start = MetricsLog(run_dir, step), write_start(run_dir, facts)
        for line in passed_over:
            console.say(f"passed over: {line}")
        if begun:
            console.say(_begun(*begun))
        if past:
            console.say("the job's end (FRONTIER_JOB_END, else SLURM_JOB_END_TIME) is in the past: left out of account")
        console.say("\n".join([_banner(plan, ranks, facts), *(lines(facts["doctor"]) if config.run.doctor else [])]))
    if config.data.stage:
        limit = None if config.data.stage_gib is None else int(config.data.stage_gib * 2**30)
        root, timeout = stage_root(config.data.stage), config.parallel.timeout_s
        for shards, part in shares_of_stage(plan.feed.streams, limit):
            stage_on_every_node(shards, root, part, ranks, device, timeout, console.say if ranks.is_main else _warn)
    place = plan.dims.data_rank(ranks.rank), plan.dims.data_ranks
    loader = Loaders(plan.feed.streams, *place, config.data.workers, device, config.run.seed)
    comparison = RankComparison(run_dir, ranks, device, config.log.ranks_every, plan.steps)
    walltime = Walltime(job.end, saving.reserve_s, assumed_save_s(12 * plan.parameters, writing))
    stopped, held = False, 0.0
    try:
        batches = loader.batches(step)
        before = time.perf_counter()
        energy.start()
        settle_objects()
        startup.mark("ready")
        while step < plan.steps and not stopped:
            lr = plan.schedule.lr(step)
            profiled = profiler.before(step + 1)
            if ranks.is_main and (why := walltime.why_to_stop()):
                stop.ask(why)
            with stepper.waits.counting():
                result = stepper.step(batches, lr, guard.limits(), bool(stop), checkpoints.failed(), energy.values())
            step += 1
            joules, watts = energy.step(result.energy)
            written = profiler.after(step)
            if written:
                _warn(written)
            if result.save_failed:
                checkpoints.wait()  # raises on all ranks
            why = guard.judge(step, result.update.made, result.update.norm, result.loss)
            if why:
                console.say(f"step {step} skipped: {why}")
            stopped = result.stop
            result.parts["checkpoint_s"] = held
            compared = comparison.step(step, result.parts, result.exposed["exposed_s"], memory_gib(device)[0])
            for line in [*compared, *energy.notes()]:
                _warn(line)
            if "first_step" not in startup.marks:
                startup.mark("first_step")
                found = startup.gather(ranks, device)
                if ranks.is_main:
                    amend_start(run_dir, start, {"startup_s": found})
                    console.say(startup_line(found))
            now = time.perf_counter()
            walltime.step(now - before)
            walltime.saved(checkpoints.save_s)
            if log is not None:
                row = _row(plan, step, guard, result, lr, now - before, facts, device, start)
                row |= {"energy_j": joules, "power_w": watts, "profiled": profiled}
                row["checkpoint_write_s"] = checkpoints.written()
                row["data_supply_ratio"] = supply_ratio(loader.supply(), plan.batch.local_batch, row)
                row |= {"restarts": job.restarts, "steps_that_fit": walltime.steps_that_fit()}
                log.write(row)
                console.step(row)
            before = now
            # After the row: a checkpoint without the row of its step would leave a gap that no later start fills. What the save
            # holds training up counts in the next step's row.
            if saving.every_steps and step % saving.every_steps == 0 and step < plan.steps and not stopped:
                checkpoints.save(step, engine.state(), _record(plan, ranks, step, guard))
            held = time.perf_counter() - now
        if checkpoints.last_step != step and (saving.at_end or step < plan.steps):
            checkpoints.save(step, engine.state(), _record(plan, ranks, step, guard))
        checkpoints.wait()
    finally:
        profiler.close()
        loader.close()
        checkpoints.close()
        energy.close()
        console.close()
        if log is not None:
            log.close()
    dist.barrier()  # all leave together: a launcher may end those that stay behind (srun --wait)
    if ranks.is_main:
        where = run_dir / "checkpoints" / f"step_{step:08d}"
        if stopped and step < plan.steps:
            console.say(
                f"asked to stop ({stop.reason or 'another rank'}) after step {step}: saved {where}, exit {EXIT_REQUEUE}"
            )
        else:
            saved = (
                f"saved {where}" if checkpoints.last_step == step else "no checkpoint at the end (checkpoint.at_end)"
            )
            console.say(f"done: {step} steps, {guard.skipped} skipped, {saved}")
    return EXIT_REQUEUE if stopped and step < plan.steps else EXIT_OK


def _begun(checkpoint: Path, loaded: list[str], left: list[str]) -> str:
    """What `train.start_from` came to."""
    own = f"; {len(left)} begin anew: {', '.join(sorted(left)[:4])}{', …' if len(left) > 4 else ''}" if left else ""
    return f"start from {checkpoint}: {len(loaded)} parameters{own}"


def _warn(text: str) -> None:
    """Said by the rank that it is about."""
    print(text, file=sys.stderr, flush=True)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def supply_ratio(supply: Supply, local_batch: int, row: dict[str, Any]) -> float | None:
    """Samples a second that this rank's reader threads give, over those that its model takes where it need not wait.

    Above 1 the data keep up. The first is measured from the threads' own work since the start; the second from this step
    without its wait for data and checkpoint. None before anything was read.
    """
    working = row["step_s"] - row["data_s"] - row["checkpoint_s"]
    given = supply.samples_per_s
    return given * working / local_batch if given is not None and working > 0 else None


def _row(
    plan: RunPlan,
    step: int,
    guard: Guard,
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
    again = facts["hardware_flops_per_image"]
    hardware = None if again is None else tflops * again / plan.flops_per_image
    peak = facts["peak_tflops"]
    memory, kind = memory_gib(device)
    samples = step * plan.batch.global_batch
    return {
        "step": step,
        "epoch": samples / plan.epoch_samples,
        "samples": samples,
        "loss": _finite(result.loss),
        **{name: _finite(value) for name, value in result.terms.items()},
        "lr": lr,
        "grad_norm": _finite(result.update.norm),
        "images_per_s": images_per_s,
        "step_s": step_s,
        **result.parts,
        "other_s": max(0.0, step_s - sum(result.parts.values())),
        **result.exposed,
        "memory_gib": memory,
        "memory_kind": kind,
        **memory_row(device),
        "model_tflops": tflops,
        "hardware_tflops": hardware,
        "mfu": tflops / peak if peak else None,
        "hfu": hardware / peak if peak and hardware is not None else None,
        "skipped": guard.skipped,
        "spikes": guard.spikes,
        "time": time.time(),
        "start": start,
    }


def _banner(plan: RunPlan, ranks: Ranks, facts: dict[str, Any]) -> str:
    c, mesh = plan.config, plan.dims
    lines = [
        f"{c.model.family} {getattr(c.model, 'preset', '')}: {plan.parameters / 1e6:.2f} M parameters "
        f"({facts['encoder_parameters'] / 1e6:.2f} M encoder), {plan.flops_per_image / 1e9:.2f} GFLOP an image",
        f"{ranks.world_size} ranks on {ranks.nodes} node(s) by {ranks.source}, {facts['device']}, {c.parallel.strategy} "
        f"= replicate {mesh.replicate} x shard {mesh.shard} x tensor {mesh.tensor}, {c.parallel.precision}",
        f"global batch {plan.batch.global_batch} = {mesh.data_ranks} data ranks x {plan.batch.accumulation} x {plan.batch.micro_batch}, "
        f"{plan.steps} steps",
        *(
            f"data {s.name + ': ' if s.name else ''}{len(s.shards)} samples in {s.shards.path}, {s.sampler.global_batch} a batch, "
            f"blocks of {s.sampler.block}"
            for s in plan.feed.streams
        ),
        *([_of_job(facts)] if facts["job_id"] or facts["job_end"] else []),
        f"run folder {plan.run_dir}"
        + (f", resumed from step {facts['resumed_from']}" if facts["resumed_from"] is not None else ""),
    ]
    return "\n".join(lines)


def _of_job(facts: dict[str, Any]) -> str:
    name = f"{facts['scheduler']} job {facts['job_id']}, " if facts["job_id"] else ""
    end = facts["job_end"]
    left = f"ends in {hms(max(0.0, end - time.time()))}" if end else "its end is unknown"
    return f"{name}start {facts['restarts'] + 1}, {left}"
