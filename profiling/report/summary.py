"""A run's numbers: robust statistics over logged steps, each with its unit and where it comes from.

Statistics of speed and memory are medians with the 10th and 90th percentile over the logged steps that remain
after the warm-up of every start is dropped; a single step is never quoted as the speed of a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from frontier_profiling.report.read import Run
from frontier_profiling.report.wording import plural

PARTS = ("data", "forward", "backward", "optimizer", "checkpoint", "other")
FAMILY_NAMES = {"mae": "MAE", "scale_alibi": "Scale-ALiBi", "gpna": "GPNA"}
WARMUP_LINES = 5
FINAL_SHARE, FINAL_MOST = 0.05, 50


@dataclass(frozen=True)
class Spread:
    """Median, 10th and 90th percentile of the finite values; nan where there is none."""

    median: float
    p10: float
    p90: float

    @property
    def known(self) -> bool:
        return math.isfinite(self.median)


def spread(values: np.ndarray) -> Spread:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Spread(math.nan, math.nan, math.nan)
    p10, median, p90 = np.percentile(finite, [10, 50, 90])
    return Spread(float(median), float(p10), float(p90))


def warmed_up(run: Run) -> tuple[np.ndarray, str]:
    """(mask of the logged steps that count for speed, the sentence that states the rule).

    Of every start the first min(5, a fifth, rounded up) logged steps are dropped: compilation, cold file
    caches and memory that is still growing. Where nothing would remain, nothing is dropped.
    """
    start = np.nan_to_num(run.columns["start"], nan=0.0)
    keep = np.ones(len(run), dtype=bool)
    for value in np.unique(start):
        lines = np.flatnonzero(start == value)
        keep[lines[: min(WARMUP_LINES, math.ceil(len(lines) / 5))]] = False
    if not keep.any():
        return np.ones(
            len(run), dtype=bool
        ), f"all {plural(len(run), 'logged step')} counted, too few to drop a warm-up"
    dropped = int((~keep).sum())
    starts = plural(len(np.unique(start)), "start")
    return keep, (
        f"{plural(int(keep.sum()), 'logged step')} counted; the first {WARMUP_LINES} of each start "
        f"(at most a fifth) dropped as warm-up, {dropped} over {starts}"
    )


def step_time(run: Run, keep: np.ndarray | None = None) -> dict[str, Spread]:
    """Seconds of a step: `step` and each of `PARTS`."""
    keep = warmed_up(run)[0] if keep is None else keep
    return {part: spread(run.columns[f"{part}_s"][keep]) for part in ("step", *PARTS)}


def skipped_steps(run: Run) -> np.ndarray:
    """Logged steps at which the run's count of skipped steps (`skipped`, cumulative) rose: no optimizer
    update there.
    """
    total = np.nan_to_num(run.columns["skipped"])
    return run.columns["step"][np.diff(total, prepend=0.0) > 0].astype(int)


def not_finite(run: Run) -> np.ndarray:
    """Logged steps without a finite loss."""
    return run.columns["step"][~np.isfinite(run.columns["loss"])].astype(int)


def restarts(run: Run) -> list[tuple[int, int | None, int | None]]:
    """(index of the start, step it resumed from, step at which to draw it) of every start after the first.

    A start resumed from a checkpoint is drawn at that checkpoint's step; one that began anew, at its first
    logged step.
    """
    found: list[tuple[int, int | None, int | None]] = []
    for index, start in enumerate(run.starts):
        resumed = start.get("resumed_from")
        resumed = int(resumed) if isinstance(resumed, int | float) and math.isfinite(resumed) else None
        if index == 0 and resumed is None:
            continue
        own = run.columns["step"][run.columns["start"] == index]
        found.append((index, resumed, resumed if resumed is not None else int(own[0]) if own.size else None))
    return found


def planned_steps(run: Run) -> int | None:
    """Steps that the config asks for, where it says so in steps or in samples."""
    steps, samples, batch = (run.setting(f"train.{key}") for key in ("steps", "samples", "global_batch"))
    if isinstance(steps, int):
        return steps
    if isinstance(samples, int) and isinstance(batch, int) and batch > 0:
        return math.ceil(samples / batch)
    return None


def progress(run: Run) -> tuple[str, str]:
    """(complete | unfinished | unknown | no step logged, the sentence)."""
    if not len(run):
        return "no step logged", "No step has been logged yet."
    last, planned = int(run.columns["step"][-1]), planned_steps(run)
    epochs, epoch = run.setting("train.epochs"), run.columns["epoch"][-1]
    if planned is None and isinstance(epochs, int | float) and math.isfinite(epoch):
        done = epoch >= epochs - 1e-6
        if done:
            return "complete", f"All {epochs:g} planned epochs are logged."
        return "unfinished", f"Epoch {epoch:.2f} of {epochs:g} planned: still running, or stopped."
    if planned is None:
        return "unknown", f"{last:,} steps are logged; the config does not tell how many were planned."
    if last >= planned:
        return "complete", f"All {planned:,} planned steps are logged."
    return "unfinished", f"Step {last:,} of {planned:,} planned: still running, or stopped."


def final_loss(run: Run, images: float | None = None) -> tuple[float | None, int]:
    """(median loss of the last steps, how many): 5 % of the logged steps with a finite loss, from 1 to 50 of them.

    With `images`, of the steps logged until that many images were seen.
    """
    losses = run.columns["loss"]
    return last_median(losses if images is None else losses[run.columns["samples"] <= images])


def last_median(losses: np.ndarray) -> tuple[float | None, int]:
    """(median of the last of the finite values, how many): see `final_loss`."""
    losses = losses[np.isfinite(losses)]
    if not losses.size:
        return None, 0
    window = min(FINAL_MOST, max(1, round(FINAL_SHARE * losses.size)))
    return float(np.median(losses[-window:])), window


def common_images(runs: Sequence[Run]) -> int | None:
    """Images that all runs have seen, where some have seen more: there their losses compare."""
    seen = [float(np.nanmax(run.columns["samples"], initial=0.0)) for run in runs]
    return int(min(seen)) if min(seen) > 0 and max(seen) > min(seen) else None


def training_seconds(run: Run) -> tuple[float | None, float | None, float | None]:
    """(seconds, device-seconds, images/s over them), from the first to the last logged step of every start.

    Holds checkpoints and stalls, not launch, compilation before the first step, or steps lost to a restart.
    """
    seconds = device_seconds = images = 0.0
    devices_known = bool(run.starts)
    for value in np.unique(run.columns["start"][np.isfinite(run.columns["start"])]).astype(int):
        own = run.columns["start"] == value
        time, samples = run.columns["time"][own], run.columns["samples"][own]
        if own.sum() < 2 or not np.isfinite(time[[0, -1]]).all():
            continue
        span = float(time[-1] - time[0])
        seconds += span
        images += float(samples[-1] - samples[0])
        world = run.starts[value].get("world_size") if 0 <= value < len(run.starts) else None
        devices_known = devices_known and isinstance(world, int)
        device_seconds += span * world if isinstance(world, int) else 0.0
    if seconds <= 0:
        return None, None, None
    return (
        seconds,
        device_seconds if devices_known else None,
        images / seconds if math.isfinite(images) else None,
    )


def model_name(run: Run) -> str:
    """What the config calls the model: its family and its preset."""
    family, preset = run.setting("model.family"), run.setting("model.preset")
    family = FAMILY_NAMES.get(family, family)
    return " ".join(str(part) for part in (family, preset) if part) or "model of unknown name"


def facts(run: Run) -> dict[str, Any]:
    """What tells one run from another; None is "not recorded"."""
    mesh = run.fact("mesh")
    return {
        "model": model_name(run),
        "strategy": run.fact("strategy", run.setting("parallel.strategy")),
        "precision": run.fact("precision", run.setting("parallel.precision")),
        "compile": run.fact("compile", run.setting("parallel.compile")),
        "activation_checkpointing": run.fact(
            "activation_checkpointing", run.setting("parallel.activation_checkpointing")
        ),
        "device": run.fact("device"),
        "energy_source": run.fact("energy_source"),
        "world_size": run.fact("world_size"),
        "nodes": run.fact("nodes"),
        "mesh": " × ".join(f"{key} {value}" for key, value in mesh.items()) if isinstance(mesh, dict) else mesh,
        "global_batch": run.setting("train.global_batch"),
        "micro_batch": run.setting("train.micro_batch"),
        "image_size": run.setting("data.image_size"),
        "seed": run.setting("run.seed"),
        "git": run.fact("git"),
    }
