"""A trained model on held-out samples: do the sensors find each other, and what is known of hidden patches?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations, permutations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from frontier.config.schema import AugmentConfig
from frontier.metrics.bootstrap import RESAMPLES, Values, with_intervals
from frontier.models.vit import patchify
from scale_alibi.contrast import scale_of
from scale_alibi.decoder import known_patches, targets
from scale_alibi.held_out import HeldOut
from scale_alibi.model import ScaleALiBi
from scale_alibi.reconstruct import predict, squared_errors
from scale_alibi.retrieval import chance, found_in, nearer

Row = dict[str, Any]
TOPS = (1, 5)
GALLERIES = (64, 256)
"""Sizes at which figures of different splits compare, beside all samples."""


@dataclass
class Seen:
    """What the model said of n samples.

    Attributes:
        whole, masked: unit vectors [n, S, D] of images with all patches, and with those that training keeps.
        errors: by sensor [n, 2], mean squared errors over hidden patches: of the model, of the mean of the visible patches.
    """

    whole: list[Tensor] = field(default_factory=list)
    masked: list[Tensor] = field(default_factory=list)
    errors: dict[str, list[Tensor]] = field(default_factory=dict)


@torch.inference_mode()
def look(
    model: ScaleALiBi,
    held_out: HeldOut,
    crop_scale: tuple[float, float] | None,
    device: str,
    batch: int,
    seed: int,
) -> Seen:
    """Every sample once: whole or cropped by a window of its own, hidden patches by the seed."""
    config, seen = model.config, Seen()
    reader = held_out.reader(device, seed, AugmentConfig(crop_scale=crop_scale))
    for placed in held_out.placed(reader, batch):
        given = reader.inputs(model, placed, 0, 1)
        images, gsd = given["images"], given["gsd"]
        masked = model.encode_masked(images, gsd, given["noise"])
        if model.projections is not None:
            everything = {name: model.encode(name, images[name], gsd[name]) for name in config.sensors}
            for kept, streams in ((seen.whole, everything), (seen.masked, masked.streams)):
                kept.append(model.projections({n: model.summarise(n, t.x) for n, t in streams.items()})[0])
        if model.decoder is not None:
            known = known_patches(config, images, given["known"])
            wanted = targets(config, {name: patchify(images[name], config.patch) for name in config.sensors}, known)
            for name, guess in predict(model, masked).items():
                both = squared_errors(config, masked.order[name], name, guess, wanted[name], known.get(name))
                seen.errors.setdefault(name, []).append(torch.stack(both, 1))
    return seen


def measure(
    model: ScaleALiBi,
    held_out: HeldOut,
    *,
    global_batch: int,
    crop_scale: tuple[float, float] | None = None,
    device: str = "cpu",
    batch: int = 32,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Row]:
    """Rows {method, sensors, gallery, batch, crop_scale, n, value, ci95, chance}.

    Methods: retrieval_top1 and retrieval_top5 of `sensors` (from, to) in a `gallery` of so many samples, without masks;
    loss_contrastive with negatives from `batch` samples; loss_reconstruction and variance_explained of one sensor's hidden
    patches. Intervals resample samples as queries; galleries and batches stay.
    """
    seen = look(model.to(device), held_out, crop_scale, device, batch, seed)
    rows: list[Row] = []
    about = {"crop_scale": None if crop_scale is None else list(crop_scale)}

    def add(method: str, sensors: list[str], measured: dict[str, Any], **more: Any) -> None:
        known = {"gallery": None, "batch": None, "chance": None} | more
        found = {"n": measured["n"], "value": measured["value"], "ci95": measured["value_ci95"]}
        rows.append({"method": method, "sensors": sensors, **found, **known, **about})

    def mean_of(values: NDArray[np.float64]) -> dict[str, Any]:
        sums = np.stack([values, np.ones(len(values))], 1)
        return with_intervals(sums, _ratio, None, seed, resamples)

    names = list(model.config.sensors)
    if model.projections is not None:
        whole, masked = torch.cat(seen.whole), torch.cat(seen.masked)
        n = len(whole)
        pairs = list(permutations(range(len(names)), 2))
        ranks = {(a, b): nearer(whole[:, a], whole[:, b]) for a, b in pairs}
        for top in TOPS:
            for gallery in sorted({n, *(g for g in GALLERIES if g < n)}):
                for a, b in pairs if top < gallery else ():
                    found = mean_of(found_in(ranks[a, b], gallery, top))
                    where = {"gallery": gallery, "chance": chance(gallery, top)}
                    add(f"retrieval_top{top}", [names[a], names[b]], found, **where)
        size = min(global_batch, n)
        scale = scale_of(model.projections.log_scale.detach())
        terms = [contrastive_terms(part, scale) for part in batches_of(masked, size, seed)]
        add(
            "loss_contrastive",
            names,
            mean_of(torch.cat(terms).cpu().double().numpy()),
            batch=size,
            chance=math.log(size),
        )
    errors = {name: torch.cat(parts).cpu().double().numpy() for name, parts in seen.errors.items()}
    for name, both in errors.items():
        add("loss_reconstruction", [name], mean_of(both[:, 0]))
    for name, both in errors.items():
        add("variance_explained", [name], with_intervals(both, _explained, None, seed, resamples))
    return rows


def _ratio(sums: NDArray[np.float64]) -> Values:
    return {"value": sums[:, 0] / sums[:, 1]}


def _explained(sums: NDArray[np.float64]) -> Values:
    return {"value": 1 - sums[:, 0] / sums[:, 1]}


def batches_of(z: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Whole batches of rows in an order drawn by the seed; what does not fill one is left out."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(z))).to(z.device)
    for start in range(0, len(z) - size + 1, size):
        yield z[order[start : start + size]]


def contrastive_terms(z: Tensor, scale: Tensor) -> Tensor:
    """[B]: each sample's part of the loss of `scale_alibi.contrast`, whose mean it is, for unit vectors z [B, S, D]."""
    own = torch.arange(len(z), device=z.device)
    pairs = list(combinations(range(z.shape[1]), 2))
    total = z.new_zeros(len(z))
    for a, b in pairs:
        cosines = scale * (z[:, a] @ z[:, b].T)
        total += F.cross_entropy(cosines, own, reduction="none") + F.cross_entropy(cosines.T, own, reduction="none")
    return total / (2 * len(pairs))
