"""From stored columns to what the module takes: normalised values, Fourier features of place and time, labels, clusters.

Whatever decides how tokens are packed (which are there, which are hidden, how many a sample has) is worked out on the host, so that no step
waits for the device to say it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frontier.data.feed import stream_seed
from frontier.data.loader import Batch
from frontier.data.random import stream_keys, uniform
from frontier.data.transforms import Normaliser, apply_symmetry, draw_symmetries, take_bands
from frontier.errors import UserError
from gpna.batching import cluster, pack
from gpna.config import BatchingSection, GPNASection
from gpna.fourier import place_features, time_features
from gpna.head_sections import DensityTask, PixelTask, RegressionTask, SegmentationTask, Task, TextTask
from gpna.heads.pixels import UNKNOWN, draw_pixels, gather_pixels
from gpna.sensors import InputSpec
from gpna.sources import OpenSource, Times
from gpna.tokenizer import over_values, patches

HIDE_STREAM = 32
"""Stream number of the choice of hidden tokens for `frontier.data.random`."""
NOT_A_TIME = np.iinfo(np.int64).min
FIRST_HOURS_S = 40_000
"""Times in these first hours of 1970 are numbers of days, of a year or since 1970."""


@dataclass(frozen=True)
class Placed:
    """A source's samples of a batch: on the device, but for what packing needs.

    Attributes:
        values: [B, *axes] float32 by column, normalised, 0 where missing.
        pixels: bool, of the same shape: what is there; only where something may be missing.
        tokens: [B, N] bool on the host: which tokens have any pixel; None where all have.
        place: [B, P]; time: [B, T or 1, Q] by column: Fourier features.
        labels: by task, as stored.
        members: [B, 2] int64 on the host.
    """

    values: dict[str, Tensor]
    pixels: dict[str, Tensor | None]
    tokens: dict[str, np.ndarray | None]
    place: Tensor
    time: dict[str, Tensor]
    labels: dict[str, Tensor]
    members: Tensor


class GPNAReader:
    """See `frontier.data.feed.Reader`."""

    def __init__(
        self,
        model: GPNASection,
        sources: Mapping[str, OpenSource],
        device: torch.device,
        seed: int,
        training: bool = True,
    ) -> None:
        """`training` False: no augmentation, no hidden tokens, all pixels of maps."""
        self.model, self.sources, self.device, self.seed, self.training = model, sources, device, seed, training
        self.normalisers = {
            name: {column: normaliser_of(source, column, device) for column in source.inputs}
            for name, source in sources.items()
        }

    def place(self, batches: Mapping[str, Batch]) -> dict[str, Placed]:
        """Normalise, augment and encode each source's samples. Raises UserError for places, times and classes that cannot be."""
        found = {}
        for name, batch in batches.items():
            try:
                found[name] = self._place(self.sources[name], batch)
            except UserError as error:
                raise UserError(f"data.sources.{name}: {error}") from None
        return found

    def _place(self, source: OpenSource, batch: Batch) -> Placed:
        columns, members = picked(source, batch.columns), batch.members
        if self.training and source.section.symmetries:
            columns = turned(source, columns, members, stream_seed(self.seed, source.name))
        values, pixels, tokens, time = {}, {}, {}, {}
        for column, spec in source.inputs.items():
            normaliser = self.normalisers[source.name][column]
            values[column] = normaliser(columns)
            there = normaliser.there(columns)
            there = None if there is None or bool(there.all()) else there
            tokens[column] = None if there is None else tokens_there(there, spec)
            pixels[column] = None if there is None else there.to(self.device)
            time[column] = self._time(source, columns, column, spec, len(members)).to(self.device)
        labels = {}
        for name, target in source.targets.items():
            if self.training:
                check_classes(self.model.tasks[name], target, columns[target])
            labels[name] = columns[target].to(self.device)
        return Placed(
            values, pixels, tokens, self._where(source, columns, len(members)).to(self.device), time, labels, members
        )

    def _where(self, source: OpenSource, columns: Mapping[str, Tensor], count: int) -> Tensor:
        """[B, P] of the ground that a sample covers: its centre, half its extent and the doubt about it."""
        unknown = torch.full((count,), torch.nan, dtype=torch.float64)
        lon, lat = (columns[name].double() if name in columns else unknown for name in ("lon", "lat"))
        extents = []
        for spec in source.inputs.values():
            side = max(spec.sides) if spec.form == "image" else 1
            gsd = columns["gsd_m"].double() if "gsd_m" in columns else torch.full_like(unknown, spec.gsd_m or torch.nan)
            extents.append(gsd * side / 2)
        # Of a resolution that is not known: a point.
        radius = torch.stack(extents).nan_to_num(nan=0.0).amax(0) + source.section.place_uncertainty_m
        return place_features(lon, lat, radius, self.model.tokens.place)

    def _time(
        self, source: OpenSource, columns: Mapping[str, Tensor], column: str, spec: InputSpec, count: int
    ) -> Tensor:
        """[B, T or 1, Q] of the dates of an input: its own, or those of the sample."""
        size = self.model.tokens.time
        if column in source.times:
            start, end = instants(columns, source.times[column])
            return time_features(start, end, size)
        unknown = torch.full((count,), torch.nan, dtype=torch.float64)
        start = plausible(columns, "time_start") if "time_start" in columns else unknown
        end = plausible(columns, "time_end") if "time_end" in columns else start
        end = torch.where(end.isnan(), start, end)
        return undated(start, end, spec.steps, size)

    def inputs(self, module: nn.Module, placed: dict[str, Placed], turn: int, turns: int) -> dict[str, Any]:
        """Keyword arguments of `gpna.model.GPNA.forward` for a micro-batch: its part of every source, packed."""
        sources: dict[str, Any] = {}
        rows: list[np.ndarray] = []
        masked: list[dict[str, Any]] = []
        labels: dict[str, Any] = {}
        first, offset = 0, 0
        for name, whole in placed.items():
            each = len(whole.members) // turns
            part = slice(turn * each, (turn + 1) * each)
            specs = self.sources[name].inputs
            values = {column: stored[part] for column, stored in whole.values.items()}
            shown: list[list[np.ndarray]] = [[] for _ in range(each)]
            for column, spec in specs.items():
                own = whole.tokens[column]
                there = np.ones((each, spec.tokens), bool) if own is None else own[part]
                keep = there
                if self.training and self.model.masked is not None:
                    hide = self._hidden(name, column, whole.members[part], there)
                    keep = there & ~hide
                    # Convolutions look beyond their own footprint: what is hidden must not be seen from next door.
                    seen = over_values(torch.from_numpy(~hide).to(self.device), spec)
                    values[column] = values[column] * seen
                    masked.append(self._asked(name, column, spec, whole, part, hide, first))
                starts = offset + np.arange(each) * spec.tokens
                for sample in range(each):
                    shown[sample].append(np.flatnonzero(keep[sample]) + starts[sample])
                offset += each * spec.tokens
            rows += [np.concatenate(own) for own in shown]
            sources[name] = {
                "values": values,
                "place": whole.place[part],
                "time": {column: time[part] for column, time in whole.time.items()},
            }
            for task in self.sources[name].targets:
                labels[task] = self._labels(self.model.tasks[task], task, name, whole, part)
            first += each
        clusters = packed(rows, self.model.batching, self.device)
        return {"sources": sources, "clusters": clusters, "labels": labels, "masked": masked}

    def _labels(self, task: Task, name: str, source: str, whole: Placed, part: slice) -> dict[str, Tensor]:
        """What the head's loss compares with, and of a map which pixels are asked for."""
        target = whole.labels[name][part]
        if isinstance(task, RegressionTask) or (isinstance(task, TextTask) and task.task == "regression"):
            target = target.float().reshape(len(target), -1)
            return {"target": target if isinstance(task, RegressionTask) else target.squeeze(1)}
        if isinstance(task, PixelTask):
            target = target.float() if isinstance(task, DensityTask) else target
            if task.train_pixels is not None and self.training:
                rows, columns = task.side()
                seed = stream_seed(self.seed, f"{source}/{name}")
                pixels = draw_pixels(task.train_pixels, rows * columns, seed, whole.members[part]).to(self.device)
                return {"target": gather_pixels(target, pixels), "pixels": pixels}
            return {"target": target}
        return {"target": target.long()}

    def _hidden(self, name: str, column: str, members: Tensor, there: np.ndarray) -> np.ndarray:
        """[B, N] the tokens of a sample that are hidden, to be asked for."""
        assert self.model.masked is not None
        # Bands come fastest: with one draw for all of a footprint and date, they are hidden together.
        bands = self.sources[name].inputs[column].grid[-1] if self.model.masked.together else 1
        keys = stream_keys(stream_seed(self.seed, f"{name}/{column}"), HIDE_STREAM, members)
        return drawn(there, self.model.masked.ratio, uniform(keys, there.shape[1] // bands), bands)

    def _asked(
        self, name: str, column: str, spec: InputSpec, whole: Placed, part: slice, hide: np.ndarray, first: int
    ) -> dict[str, Any]:
        """Some of the hidden tokens of an input, the same number of each sample, and what they hold."""
        assert self.model.masked is not None
        count = min(self.model.masked.queries, max(1, int(hide.sum(1).max(initial=1))))
        chosen = spread(hide, count)
        real = np.take_along_axis(hide, chosen, 1)
        index = torch.from_numpy(np.ascontiguousarray(chosen)).to(self.device)
        wanted = torch.from_numpy(np.ascontiguousarray(real)).to(self.device)
        values = take_patches(whole.values[column][part], spec, index)
        pixels = whole.pixels[column]
        known = (
            take_patches(torch.ones_like(whole.values[column][part]), spec, index) > 0
            if pixels is None
            else take_patches(pixels[part].float(), spec, index) > 0
        )
        return {
            "source": name,
            "column": column,
            "tokens": index,
            "values": values,
            "known": known & wanted[..., None],
            "samples": torch.arange(first, first + len(hide), device=self.device),
        }


def packed(rows: Sequence[np.ndarray], batching: BatchingSection, device: torch.device | str) -> list[dict[str, Any]]:
    """The clusters of samples whose tokens have the indices `rows`, as plain tensors."""
    bound = batching.max_padding if batching.max_padding < 1 else int(batching.max_padding)
    lengths = np.array([len(own) for own in rows])
    return pack(rows, cluster(lengths, bound, batching.max_tokens, batching.method)).to(device).plain()


def drawn(there: np.ndarray, share: float, draws: Tensor, bands: int) -> np.ndarray:
    """[B, N] a share of the tokens that are there, those with the highest `draws` [B, N / bands]; the same number of equal samples.

    One token is left, where there is any, and one taken where there are two.
    """
    order = np.where(there, draws.repeat_interleave(bands, 1).numpy(), -1.0)
    count = np.rint(there.sum(1) * share).astype(np.int64)
    most = (there.sum(1) - 1).clip(min=0)
    count = np.clip(count, np.minimum(1, most), most)
    rank = np.argsort(np.argsort(-order, axis=1, kind="stable"), axis=1, kind="stable")
    return rank < count[:, None]


def spread(hide: np.ndarray, count: int) -> np.ndarray:
    """[B, count] hidden tokens of each sample, evenly spread over those it has, then others where it has fewer."""
    order = np.argsort(~hide, axis=1, kind="stable")
    have = np.maximum(hide.sum(1), 1)
    steps = (np.arange(count)[None, :] * have[:, None]) // count
    few = have[:, None] <= count
    steps = np.where(few, np.arange(count)[None, :], steps)
    return np.take_along_axis(order, steps, 1)


def check_classes(task: Task, column: str, labels: Tensor) -> None:
    """Raises UserError for a map with a class that the head has not: labels are not all looked at when a run starts."""
    if not isinstance(task, SegmentationTask):
        return
    found = labels.long()
    wrong = found[(found != UNKNOWN) & ((found < 0) | (found >= (task.classes or 0)))]
    if len(wrong):
        raise UserError(
            f"'{column}' holds class {int(wrong[0])} of {task.classes}: give more classes, or mark unknown pixels {UNKNOWN}"
        )


def normaliser_of(source: OpenSource, column: str, device: torch.device) -> Normaliser:
    """By the statistics of the input's spec, which are in stored units."""
    spec = source.inputs[column]
    return Normaliser.of(source.shards, column, device, list(spec.mean or ()), list(spec.std or ()))


def tokens_there(pixels: Tensor, spec: InputSpec) -> np.ndarray:
    """[B, N] bool: the tokens with at least one pixel that is there."""
    return (patches(pixels.float(), spec).amax(-1) > 0).numpy()


def take_patches(values: Tensor, spec: InputSpec, index: Tensor) -> Tensor:
    """[B, Q, s * s] of the tokens `index` [B, Q]."""
    cut = patches(values, spec)
    return cut.gather(1, index[..., None].expand(-1, -1, cut.shape[-1]))


def seconds(stored: Tensor) -> Tensor:
    """Unix seconds float64, NaN where unknown (0, or numpy's NaT)."""
    out = stored.double()
    return torch.where((stored == 0) | (stored == NOT_A_TIME), torch.nan, out)


def plausible(columns: Mapping[str, Tensor], name: str) -> Tensor:
    """`seconds` of a column. Raises UserError for numbers that are days, days of a year or written-out dates."""
    found = seconds(columns[name])
    known = found[found.isfinite()]
    if len(known):
        days = known[(known > 0) & (known < FIRST_HOURS_S)]
        year, month, day = known // 10_000, known // 100 % 100, known % 100
        written = (year >= 1900) & (year < 2100) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
        if len(days) or bool(written.all()):
            what = "a date such as 20200131" if bool(written.all()) else "a number of days"
            raise UserError(
                f"'{name}' holds {int((days if len(days) else known)[0])}, which looks like {what}: write Unix seconds (UTC), 0 where unknown"
            )
    return found


def undated(start: Tensor, end: Tensor, steps: int, size: int) -> Tensor:
    """[B, steps or 1, size] features of dates that are not known, of samples from `start` to `end` [B].

    Several dates are equal parts of that time, one after the other: their order is what is known of them. Where the sample has no
    time, or no length of it, they are parts of a year, of whose trend nothing is said.
    """
    if steps == 1:
        return time_features(start, end, size)[:, None]
    long = end > start
    parts = torch.arange(steps + 1, dtype=torch.float64) / steps
    first, last = torch.where(long, start, 0.0), torch.where(long, end, 365 * 86_400.0)
    edges = first[:, None] + parts * (last - first)[:, None]
    found = time_features(edges[:, :-1], edges[:, 1:], size)
    waves = size // 2
    found[..., 2 * (waves - waves // 2) :] *= long[:, None, None]
    return found


def instants(columns: Mapping[str, Tensor], times: Times) -> tuple[Tensor, Tensor]:
    """(start, end) [B, T] Unix seconds, NaN where unknown."""
    start = plausible(columns, times.start)
    if start.ndim == 3:
        return start[..., 0], start[..., 1]
    end = start if times.end is None else plausible(columns, times.end)
    return start, torch.where(end.isnan(), start, end)


def picked(source: OpenSource, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The columns, inputs and masks that have bands with the chosen ones alone."""
    manifest, out = source.shards.manifest, dict(columns)
    for name, pick in source.picks.items():
        mask = manifest["images"][name]["mask"]
        axes = {name: manifest["images"][name]["axes"]} | ({mask: manifest["arrays"][mask]["axes"]} if mask else {})
        for column, letters in axes.items():
            out[column] = take_bands(out[column], letters, pick)
    return out


def turned(source: OpenSource, columns: dict[str, Tensor], members: Tensor, seed: int) -> dict[str, Tensor]:
    """The columns with rows and columns of pixels, images, masks and maps alike, under one symmetry of the square a sample."""
    code = draw_symmetries(members, seed)
    manifest = source.shards.manifest
    specs = manifest["images"] | manifest["arrays"]
    out = dict(columns)
    for name, values in columns.items():
        axes = specs[name]["axes"] if name in specs else ""
        if axes.endswith("HW") and values.shape[-1] == values.shape[-2]:
            unsigned = values.dtype in (torch.uint16, torch.uint32, torch.uint64)
            plain = (
                values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.itemsize]) if unsigned else values
            )
            done = apply_symmetry(plain, code)
            out[name] = done.view(values.dtype) if unsigned else done
    return out
