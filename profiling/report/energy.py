"""A run's joules from its rows: `energy_j` adds up over rows, and a row without a reading (nan) is covered by the next one that has one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from frontier_profiling.report.read import Run


@dataclass(frozen=True)
class Energy:
    """None is "not measured". Rates hold between the first and the last reading after the warm-up of every start."""

    joules: float | None
    """Of all logged steps."""
    joules_per_image: float | None
    watts: float | None
    readings: int
    source: str | None
    note: str


def energy(run: Run, keep: np.ndarray) -> Energy:
    """`keep` masks the logged steps that count for speed.

    A reading closes the stretch since the one before it, so joules, images and seconds are all taken from reading to reading: a counter slower than
    a step, or one that lags behind it, shifts both ends alike.
    """
    used, start = run.columns["energy_j"], np.nan_to_num(run.columns["start"])
    read = np.isfinite(used)
    joules = images = seconds = 0.0
    for value in np.unique(start):
        ends = np.flatnonzero(read & keep & (start == value))
        if ends.size < 2:
            continue
        first, last = int(ends[0]), int(ends[-1])
        joules += float(np.nansum(used[first + 1 : last + 1]))
        images += float(run.columns["samples"][last] - run.columns["samples"][first])
        seconds += float(run.columns["time"][last] - run.columns["time"][first])
    sources = list(dict.fromkeys(s["energy_source"] for s in run.starts if isinstance(s.get("energy_source"), str)))
    metered = sum(bool((read & (start == value)).any()) for value in np.unique(start))
    note = ", then ".join(sources)
    if 0 < metered < len(np.unique(start)):
        note += f"; {metered} of {len(np.unique(start))} starts had a meter"
    if not read.any():
        note = str(run.fact("energy_why_not", ""))
    return Energy(
        joules=float(used[read].sum()) if read.any() else None,
        joules_per_image=joules / images if images > 0 else None,
        watts=joules / seconds if seconds > 0 else None,
        readings=int(read.sum()),
        source=note if read.any() else None,
        note=note,
    )


def training_seconds_at(run: Run) -> np.ndarray:
    """Seconds in training at every logged step, what lies between two starts left out."""
    out, before = np.full(len(run), np.nan), 0.0
    start = np.nan_to_num(run.columns["start"])
    for value in np.unique(start):
        own = np.flatnonzero(start == value)
        time = run.columns["time"][own]
        out[own] = before + time - time[0]
        before = float(np.nanmax(out[own], initial=before))
    return out
