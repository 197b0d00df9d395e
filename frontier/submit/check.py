"""What a job would find wrong in its first minutes, found before it is queued."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from frontier.config.load import load_config
from frontier.config.schema import ZERO
from frontier.errors import UserError
from frontier.submit.render import hms
from frontier.submit.site import Site
from frontier.train.checkpoint import CorruptCheckpoint, read_record, step_folder, steps_in
from frontier.train.dry_run import estimate
from frontier.train.plan import RunPlan, resolve
from frontier.train.trainer import check_record

TIGHT = 0.9
"""Of a device's memory: the allocator's fragments, workspaces and collectives' buffers need the rest."""
SURE = 1.05
"""The prediction is within 5 % of what is measured: beyond this it cannot fit."""


@dataclass(frozen=True)
class Outlook:
    """Of a run that is fit to be queued: `figures` as of `frontier pretrain --dry-run`, the step that it goes on from."""

    plan: RunPlan
    figures: dict[str, Any]
    from_step: int
    memory_gib: float
    warnings: list[str]


def check_run(config: str, overrides: list[str], ranks: int, device_gib: float | None) -> Outlook:
    """Resolve the run on so many ranks, as `frontier pretrain` does when it starts.

    Raises:
        UserError: it could not start, go on from its checkpoint, or fit the device.
    """
    plan = resolve(load_config(config, overrides), ranks)
    if plan.config.parallel.strategy in ZERO:
        from frontier.parallel.zero import check_installed

        check_installed()
    from_step = _resumes_from(plan)
    figures = estimate(plan)
    peak, warnings = figures["memory_gib"]["peak"], []
    if device_gib:
        what = f"{peak:.1f} GiB a rank predicted, the device has {device_gib:.1f}"
        less = "a smaller train.micro_batch, parallel.activation_checkpointing=full, or a strategy that shards more (`frontier plan --config` ranks them)"
        if peak > SURE * device_gib:
            raise UserError(f"memory: {what}: use {less}")
        if peak > TIGHT * device_gib:
            warnings.append(f"memory: {what}: it may not fit; if it does not, use {less}")
    return Outlook(plan, figures, from_step, peak, warnings)


def _resumes_from(plan: RunPlan) -> int:
    """The newest complete checkpoint's step, 0 without one."""
    folder = plan.run_dir / "checkpoints"
    for step in steps_in(folder):
        try:
            record = read_record(step_folder(folder, step))
        except CorruptCheckpoint:
            continue
        check_record(plan, record)
        if step >= plan.steps:
            raise UserError(
                f"{plan.run_dir} has all its {plan.steps} steps: ask for more (train.steps) or give another run.dir"
            )
        return step
    return 0


def check_time(site: Site, nodes: int, partition: str | None, seconds: int) -> None:
    """Raises UserError for more nodes or time than the site's partition gives."""
    hours = site.longest(nodes, partition)
    if hours is not None and seconds > 3600 * hours:
        name = partition or site.partition or ""
        raise UserError(
            f"--time {hms(seconds)}: partition {name} of {site.name} runs {nodes} node(s) for at most {hms(3600 * hours)} "
            f"({site.partitions[name].source}): pass that; the run goes on in the next job by itself"
        )
