"""What a run's last complete checkpoint does to a few samples, as PNG data URIs: its family's own pictures, or of a masked image model
original, masked, predicted, pasted.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from frontier.errors import UserError
from frontier.models.panels import UNKNOWN, Panels
from frontier_profiling.report.read import Run

IMAGES = 6
MASK_SEED = 0
LIMITS = (1.0, 99.0)
"""Percentiles of the originals' shown bands that become black and white, the same for all pictures."""
GREY = 0.5
COLUMNS = ("original", "masked", "reconstruction", "reconstruction + visible")


@dataclass(frozen=True)
class Row:
    """The pictures of one sample, in the order of `Pictures.columns`, as data URIs."""

    title: str
    uris: list[str]


@dataclass(frozen=True)
class Pictures:
    """A group of rows of pictures, or the reason why there are none."""

    rows: list[Row] = field(default_factory=list)
    size: int = 0
    caption: str = ""
    unavailable: str = ""
    title: str = "Sample reconstructions"
    columns: Sequence[str] = COLUMNS


def sample_pictures(run: Run, shards: str | None = None) -> list[Pictures]:
    """Groups of pictures of a few samples of the test split (of the training split where there is no other), made by the run's model.

    `shards` replaces those of the config. Whatever keeps the pictures from being made is told in `unavailable`: a report does not
    fail for want of pictures.
    """
    try:
        return _pictures(run, shards)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, UserError | OSError):
            reason = f"{type(error).__name__}: {reason}"
        return [Pictures(unavailable=reason[:300])]


def _pictures(run: Run, shards: str | None) -> list[Pictures]:
    if not run.checkpoints:
        raise UserError(f"no complete checkpoint in {run.path / 'checkpoints'}")
    check_room(run.fact("parameters"))
    from frontier.models.registry import family
    from frontier.train.checkpoint import load_model

    own = family(run.setting("model.family", "mae")).pictures
    if own is None:
        return [_reconstructions(run, shards)]
    module, config, step = load_model(run.path)
    return [painted(group, step) for group in own(module.eval(), config, shards)]


def _reconstructions(run: Run, shards: str | None) -> Pictures:
    where = shards or run.setting("data.shards")
    if not where:
        raise UserError("the config names no data.shards")
    import torch

    from frontier.data.manifest import split_to_show
    from frontier.data.shards import ShardSet
    from frontier.data.transforms import Normaliser, resize
    from frontier.train.checkpoint import load_model

    shard_set = ShardSet(where, split=split_to_show(where))
    model: Any
    model, config, step = load_model(run.path)
    if not hasattr(model, "reconstruct"):
        raise UserError(f"a {type(model).__name__} does not reconstruct images")
    data = config["data"]
    column = data.get("column", "image")
    chosen = np.unique(np.linspace(0, len(shard_set) - 1, IMAGES).round().astype(int))
    normaliser = Normaliser.of(shard_set, column, mean=data["mean"], std=data["std"])
    mean, std = normaliser.mean, normaliser.std
    stored = {name: torch.from_numpy(shard_set.take(name, chosen)) for name in normaliser.columns}
    size, patch, patches = model.config.image_size, model.config.encoder.patch, model.config.patches
    images = resize(normaliser(stored), size)
    noise = torch.rand(len(chosen), patches, generator=torch.Generator().manual_seed(MASK_SEED))
    with torch.inference_mode():
        prediction, mask = model.reconstruct(images, noise)

    def stored_units(batch: Any) -> np.ndarray:
        return (batch.float() * std.view(-1, 1, 1) + mean.view(-1, 1, 1)).numpy()

    spec = shard_set.manifest["images"][column]
    bands, names = shown_bands(spec.get("bands") or [], int(spec["shape"][0]))
    titles = _titles(shard_set, chosen)
    originals, predictions = stored_units(images)[:, bands], stored_units(prediction)[:, bands]
    hidden = hidden_pixels(mask.numpy(), patch, size)
    ends = limits(originals)
    rows = [
        Row(title, [png_uri(picture) for picture in four_pictures(original, predicted, covered, *ends)])
        for title, original, predicted, covered in zip(titles, originals, predictions, hidden, strict=True)
    ]
    share = float(mask.mean())
    caption = (
        f"Checkpoint of step {step:,}; {len(rows)} images spread evenly over the {shard_set.split} split; "
        f"{100 * share:.0f} % of the {patches} patches of {patch} × {patch} pixels masked at random "
        f"(seed {MASK_SEED}); "
        f"bands {names}, one stretch for all, from the {LIMITS[0]:g}st to the {LIMITS[1]:g}th percentile of the originals. "
        "Reconstruction shows the predicted patches only."
    )
    if getattr(model.config, "norm_pix_loss", False):
        caption += (
            " The model predicts patches normalised by their own mean and deviation; for display they are put back on"
            " those of the true patch: its brightness and contrast are given, its structure and hue are predicted."
        )
    return Pictures(rows=rows, size=size, caption=caption)


def painted(group: Panels, step: int) -> Pictures:
    """A family's own pictures: images with one stretch for all, nothing in grey; class maps in fixed colours."""
    images = [picture for row in group.rows for picture in row.pictures if picture.ndim == 3]
    told = f"Checkpoint of step {step:,}; {group.caption}"
    low, high, bands = 0.0, 1.0, [0, 0, 0]
    if images:
        bands, names = shown_bands(group.bands, len(images[0]))
        low, high = limits(np.concatenate([row.pictures[0][bands].ravel() for row in group.rows]))
        told += f" Bands {names}, one stretch for all, from the {LIMITS[0]:g}st to the {LIMITS[1]:g}th percentile."
    rows = [
        Row(
            row.title,
            [png_uri(class_picture(p) if p.ndim == 2 else _stretched(p[bands], low, high)) for p in row.pictures],
        )
        for row in group.rows
    ]
    size = max((max(picture.shape[-2:]) for row in group.rows for picture in row.pictures), default=0)
    return Pictures(rows, size, told, title=group.title, columns=group.columns)


def _stretched(image: np.ndarray, black: float, white: float) -> np.ndarray:
    """[3, H, W], NaN where nothing is shown -> uint8 [H, W, 3]."""
    shown = np.clip((image - black) / max(white - black, 1e-12), 0.0, 1.0)
    return (255 * np.where(np.isnan(shown), GREY, shown) + 0.5).astype(np.uint8).transpose(1, 2, 0)


def class_picture(classes: np.ndarray) -> np.ndarray:
    """Class numbers [H, W] -> uint8 [H, W, 3]: colours of equal steps around the wheel (the golden angle), unknown in grey."""
    import colorsys

    wheel = [colorsys.hsv_to_rgb((0.13 + 0.618034 * n) % 1, 0.65, 0.9 - 0.25 * (n % 2)) for n in range(256)]
    table = (255 * np.array(wheel) + 0.5).astype(np.uint8)
    table[UNKNOWN] = round(255 * GREY)
    return table[np.where((classes < 0) | (classes > UNKNOWN), UNKNOWN, classes)]


def check_room(parameters: Any) -> None:
    """Raises UserError where the weights in float32, twice while they are read, exceed half of the free
    memory.

    Reports are also made on login nodes, which a model of many billion parameters would bring down.
    """
    if not isinstance(parameters, int):
        return
    import psutil

    need, free = 8 * parameters / 2**30, psutil.virtual_memory().available / 2**30
    if need > free / 2:
        raise UserError(
            f"loading the model takes about {need:.1f} GiB, more than half of the memory that is free on this machine"
        )


def _titles(shard_set: Any, chosen: np.ndarray) -> list[str]:
    """The class of each image where the shards hold labels, and its number in the split."""
    titles = [f"{shard_set.split} image {i:,}" for i in chosen]
    if not shard_set.classes or "label" not in shard_set.manifest["columns"]:
        return titles
    labels = shard_set.column("label")[chosen]
    known = len(shard_set.classes)
    return [
        f"{shard_set.classes[label]} · {title}" if 0 <= label < known else title
        for label, title in zip(labels.tolist(), titles, strict=True)
    ]


def shown_bands(bands: Sequence[dict[str, Any]], channels: int) -> tuple[list[int], str]:
    """(three band indices to show as red, green, blue; their names).

    Bands named red, green, blue or, as on Sentinel-2, B04, B03, B02; else the first three; a single band as
    grey.
    """
    names = [str(band.get("name", i)) for i, band in enumerate(bands)] or [str(i) for i in range(channels)]
    lower = [name.lower() for name in names]
    for triple in (("red", "green", "blue"), ("r", "g", "b"), ("b04", "b03", "b02"), ("b4", "b3", "b2")):
        if all(name in lower for name in triple):
            chosen = [lower.index(name) for name in triple]
            break
    else:
        chosen = [0, 1, 2] if channels >= 3 else [0, 0, 0]
    return chosen, ", ".join(dict.fromkeys(names[i] for i in chosen))


def hidden_pixels(mask: np.ndarray, patch: int, size: int) -> np.ndarray:
    """mask [B, L] of patches, 1 is masked -> bool [B, 1, size, size] of pixels."""
    grid = size // patch
    tiles = mask.reshape(len(mask), 1, grid, grid) > 0.5
    return tiles.repeat(patch, axis=2).repeat(patch, axis=3)


def limits(originals: np.ndarray) -> tuple[float, float]:
    """The values to show as black and white: `LIMITS` of the finite values."""
    finite = originals[np.isfinite(originals)]
    low, high = np.percentile(finite, LIMITS) if finite.size else (0.0, 1.0)
    return float(low), float(high)


def four_pictures(
    original: np.ndarray, predicted: np.ndarray, hidden: np.ndarray, black: float, white: float
) -> list[np.ndarray]:
    """The pictures of `COLUMNS`, uint8 [H, W, 3].

    original, predicted [3, H, W] in stored units; hidden bool [1, H, W]; `black` and `white` in stored units.
    """
    scale = max(white - black, 1e-12)

    def stretch(image: np.ndarray) -> np.ndarray:
        return np.nan_to_num(np.clip((image - black) / scale, 0.0, 1.0), nan=0.0)

    true, guess = stretch(original), stretch(predicted)
    pictures = (
        true,
        np.where(hidden, GREY, true),
        np.where(hidden, guess, GREY),
        np.where(hidden, guess, true),
    )
    return [(255 * picture + 0.5).astype(np.uint8).transpose(1, 2, 0) for picture in pictures]


def png_uri(picture: np.ndarray) -> str:
    """uint8 [H, W, 3] -> data URI of its PNG."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
