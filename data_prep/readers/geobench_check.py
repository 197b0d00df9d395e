"""Comparing a copy of GEO-Bench with the statistics that it brings along, band_stats.json."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.readers.geobench_file import open_sample, stored_bands
from data_prep.readers.geobench_probe import sample_path
from frontier.errors import UserError

SAMPLES = 100


def band_sums(folder: Path, name: str) -> dict[str, tuple[int, float]]:
    """(values, their sum) of one sample by band, dates together."""
    out: dict[str, tuple[int, float]] = {}
    with open_sample(sample_path(folder, name)) as (_, datasets):
        for name_in_file, stored in stored_bands(datasets).items():
            values = datasets[name_in_file][()].astype(np.float64)
            values = values[np.isfinite(values)]
            count, total = out.get(stored.band, (0, 0.0))
            out[stored.band] = count + values.size, total + float(values.sum())
    return out


def compare_statistics(folder: Path, names: Sequence[str], share_out: Callable[..., list[Any]]) -> dict[str, Any]:
    """How far the bands' means over the first `SAMPLES` of `names` are from the published ones, in their standard deviations.

    Published are the means over at most 1000 training samples, so some tenths are to be expected; 1 and more is not.
    `share_out` as `Request.map`. Raises `UserError` where band_stats.json is not there or not of its form.
    """
    path = folder / "band_stats.json"
    try:
        published = json.loads(path.read_bytes())
        wanted = {str(band): (float(told["mean"]), float(told["std"])) for band, told in published.items()}
        if not all(math.isfinite(number) for pair in wanted.values() for number in pair):
            raise ValueError("not finite")
    except FileNotFoundError:
        raise UserError(f"--set check=band_stats: no {path}: leave the check out, or unzip the task again") from None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: not statistics by band ({type(error).__name__}): fetch it again") from None
    taken = sorted(names)[:SAMPLES]
    sums: dict[str, tuple[int, float]] = {}
    for part in share_out(partial(band_sums, folder), taken):
        for band, (count, total) in part.items():
            before = sums.get(band, (0, 0.0))
            sums[band] = before[0] + count, before[1] + total
    apart = {}
    for band in sorted(sums.keys() & wanted.keys()):
        mean, std = wanted[band]
        count, total = sums[band]
        # A band that is the same everywhere has no deviation to measure by; a distance from it is still a large number.
        apart[band] = round(abs(total / max(count, 1) - mean) / max(std, 1e-6 * max(1.0, abs(mean))), 3)
    return {
        "band_stats_samples": len(taken),
        "band_stats_bands": len(apart),
        "band_stats_largest_distance_in_std": max(apart.values(), default=None),
        "band_stats_farthest_band": max(apart, key=lambda band: apart[band], default=None),
    }
