"""Every figure of a run in one list, each with its unit and its provenance: the source of table, CSV and
JSON.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from frontier_profiling.report import probes
from frontier_profiling.report.energy import energy
from frontier_profiling.report.read import ProbeRow, Run
from frontier_profiling.report.summary import (
    final_loss,
    last_median,
    not_finite,
    skipped_steps,
    spread,
    step_time,
    training_seconds,
    warmed_up,
)
from frontier_profiling.report.wording import NOT_MEASURED, plural

MEASURED, PREDICTED, PUBLISHED = "measured", "predicted", "published"
MEMORY_KINDS = {"rss": "resident set of rank 0", "device_peak": "peak allocated on the device of rank 0"}


@dataclass(frozen=True)
class Quantity:
    """One figure; `value` None is "not measured". `key` carries the unit, as in the CSV header."""

    key: str
    label: str
    value: float | None
    unit: str
    provenance: str
    note: str = ""

    @property
    def source(self) -> str:
        return self.provenance if self.value is not None else NOT_MEASURED


def _probe_note(row: ProbeRow | None) -> str:
    """The method, and the metric where it is not accuracy."""
    if row is None:
        return ""
    return row.method if row.metric == "accuracy" else f"{row.method}, {probes.metric_name(row)}"


def _finite(value: Any, scale: float = 1.0) -> float | None:
    """A number in the report, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        return None
    return float(value) * scale


def _last(run: Run, column: str) -> float | None:
    values = run.columns[column][np.isfinite(run.columns[column])]
    return float(values[-1]) if values.size else None


def quantities(run: Run) -> list[Quantity]:
    """All figures of one run, in the order of the report and of the CSV."""
    keep, rule = warmed_up(run)
    noun, rate = run.noun, f"{run.noun}s/s"
    speed = spread(run.columns["images_per_s"][keep])
    loss, window = final_loss(run)
    seconds, device_seconds, overall = training_seconds(run)
    used = energy(run, keep)
    world = run.fact("world_size")
    each = speed.median / world if isinstance(world, int) and world > 0 else None
    memory = run.columns["memory_gib"][np.isfinite(run.columns["memory_gib"])]
    logged = len(run) > 0
    top = probes.best(run.probe, probes.PRETRAINED)
    low, high = top.ci95 if top and top.ci95 else (None, None)
    rivals = probes.baselines(run.probe)
    rows = [
        Quantity(
            "parameters",
            "Parameters",
            _finite(run.fact("parameters")),
            "",
            MEASURED,
            "counted in the built model",
        ),
        Quantity(
            "encoder_parameters",
            "Parameters of the encoder",
            _finite(run.fact("encoder_parameters")),
            "",
            MEASURED,
        ),
        Quantity("steps", "Steps", _last(run, "step"), "", MEASURED),
        Quantity("epochs", "Epochs", _last(run, "epoch"), "", MEASURED),
        Quantity("images_seen", f"{noun.capitalize()}s seen", _last(run, "samples"), "", MEASURED),
        Quantity(
            "final_loss",
            "Final loss",
            loss,
            "",
            MEASURED,
            f"median of the last {plural(window, 'logged step')}",
        ),
        *(
            Quantity(f"final_loss_{part}", f"Final loss, {part}", last_median(values)[0], "", MEASURED, "likewise")
            for part, values in run.terms.items()
        ),
        Quantity("last_loss", "Loss of the last step", _last(run, "loss"), "", MEASURED, "one batch, noisy"),
        Quantity("images_per_s_median", "Throughput", _finite(speed.median), rate, MEASURED, rule),
        Quantity("images_per_s_p10", "Throughput, p10", _finite(speed.p10), rate, MEASURED),
        Quantity("images_per_s_p90", "Throughput, p90", _finite(speed.p90), rate, MEASURED),
        Quantity("images_per_s_per_device", "Throughput per device", _finite(each), rate, MEASURED),
        Quantity(
            "images_per_s_overall",
            "Throughput with checkpoints and stalls",
            overall,
            rate,
            MEASURED,
            f"{noun}s over seconds, first to last logged step of every start",
        ),
        Quantity(
            "data_supply_ratio_median",
            "Data supply over demand",
            _finite(spread(run.columns["data_supply_ratio"][keep]).median),
            "",
            MEASURED,
            "samples/s that rank 0's readers give over those that its model takes when it need not wait; above 1 the data keep up",
        ),
    ]
    for part, found in step_time(run, keep).items():
        label = "Step time" if part == "step" else f"Step time, {part}"
        rows.append(Quantity(f"{part}_s_median", label, _finite(found.median), "s", MEASURED))
        rows.append(Quantity(f"{part}_s_p10", f"{label}, p10", _finite(found.p10), "s", MEASURED))
        rows.append(Quantity(f"{part}_s_p90", f"{label}, p90", _finite(found.p90), "s", MEASURED))
    tflops, mfu = spread(run.columns["model_tflops"][keep]), spread(run.columns["mfu"][keep])
    rows += [
        Quantity(
            "memory_gib_max",
            "Memory",
            float(memory.max()) if memory.size else None,
            "GiB",
            MEASURED,
            MEMORY_KINDS.get(run.memory_kind or "", "kind not recorded"),
        ),
        Quantity(
            "flops_per_image",
            f"FLOPs per {noun}",
            _finite(run.fact("flops_per_image")),
            "FLOP",
            PREDICTED,
            "counted from the model's formula; forward and backward, recomputation left out",
        ),
        Quantity(
            "model_tflops_per_device_median",
            "Model FLOP rate per device",
            _finite(tflops.median),
            "TFLOP/s",
            MEASURED,
            "counted FLOPs over measured time",
        ),
        Quantity(
            "peak_tflops_per_device",
            "Peak of the device",
            _finite(run.fact("peak_tflops")),
            "TFLOP/s",
            PUBLISHED,
        ),
        Quantity(
            "mfu_pct_median",
            "MFU",
            _finite(mfu.median, 100.0),
            "%",
            MEASURED,
            "model FLOP rate over the device's published peak",
        ),
        Quantity(
            "energy_j_per_image",
            f"Energy per {noun}",
            _finite(used.joules_per_image),
            "J",
            MEASURED,
            f"{used.note}; between readings after the warm-up" if used.source else used.note,
        ),
        Quantity(
            "power_w",
            "Mean power",
            _finite(used.watts),
            "W",
            MEASURED,
            "of the whole job, between the same readings" if used.source else "",
        ),
        Quantity(
            "energy_kwh",
            "Energy of the run",
            _finite(used.joules, 1 / 3.6e6),
            "kWh",
            MEASURED,
            "of all logged steps; start-up and steps lost to a restart left out" if used.source else "",
        ),
        Quantity(
            "train_h",
            "Time in training",
            _finite(seconds, 1 / 3600),
            "h",
            MEASURED,
            "first to last logged step of every start",
        ),
        Quantity(
            "device_h",
            "Device-hours in training",
            _finite(device_seconds, 1 / 3600),
            "device-hours",
            MEASURED,
        ),
        Quantity("starts", "Starts", float(len(run.starts)) if run.starts else None, "", MEASURED),
        Quantity("skipped_steps", "Skipped steps", float(len(skipped_steps(run))) if logged else None, "", MEASURED),
        Quantity(
            "not_finite_losses",
            "Losses not finite",
            float(len(not_finite(run))) if logged else None,
            "",
            MEASURED,
        ),
        Quantity(
            "probe_accuracy_pct",
            "Best probe, pretrained",
            _finite(top.score if top else None, 100.0),
            "%",
            MEASURED,
            _probe_note(top),
        ),
        Quantity("probe_ci95_low_pct", "Best probe, 95 % interval, low end", _finite(low, 100.0), "%", MEASURED),
        Quantity("probe_ci95_high_pct", "Best probe, 95 % interval, high end", _finite(high, 100.0), "%", MEASURED),
        Quantity(
            "baseline_accuracy_pct",
            "Best baseline",
            _finite(rivals[0].score if rivals else None, 100.0),
            "%",
            MEASURED,
            f"{rivals[0].encoder}, {_probe_note(rivals[0])}" if rivals else "",
        ),
    ]
    return rows
