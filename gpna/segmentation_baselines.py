"""Baselines of segmentation: the commonest class, classifiers of single pixels, and a U-Net.

A pixel is described, band by band, by its value, mean and deviation over 3 x 3 and 7 x 7 pixels, and the gradient. The
U-Net is MONAI's `BasicUNet` (extra `baselines`), trained with cross-entropy plus soft Dice on flipped and turned images
for a fixed number of steps; of five states on the way the best on val is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from frontier import metrics
from frontier.errors import UserError
from gpna.baselines import Budget, Row, Split, as_images, hold_out

MISSING = 255
_SMALLEST = 32
"""Side in pixels: halved four times, a U-Net's coarsest grid still has more than one cell to normalise over."""
_STATES = 5


def segmentation_baselines(
    task: str,
    train: Split,
    test: Split,
    val: Split | None,
    seed: int,
    budget: Budget,
    device: str,
    progress: Callable[[str], None],
) -> list[Row]:
    """Rows as of `gpna.baselines.baselines`, labels [n, H, W] with 255 where missing. Raises `UserError`."""
    for which, split in (("training", train), ("test", test)):
        if not (split.labels != MISSING).any():
            raise UserError(
                f"baselines of {task}: no pixel of the {which} split has a label: name another split or target"
            )
    if val is None:
        train, val = hold_out(train, 0.2, seed)
    classes = 1 + int(max(split.labels[split.labels != MISSING].max(initial=1) for split in (train, test, val)))
    images = _standardised([_stack(split) for split in (train, test, val)])
    out: list[Row] = []

    def add(name: str, predict: Callable[[NDArray[np.float32]], NDArray[Any]], chosen: dict[str, Any]) -> None:
        counts = _counts(predict, images[1], test.labels, classes)
        row: Row = {"task": task, "model": name, "kind": "baseline"}
        row |= metrics.segmentation(counts, groups=test.groups, seed=seed, resamples=budget.resamples)
        out.append(row | {"chosen": chosen, "n_train": len(train), "n_test": len(test)})
        progress(f"{task}: {name} {chosen}")

    common = int(np.bincount(train.labels[train.labels != MISSING].astype(np.int64).ravel()).argmax())
    add("majority", lambda x: np.full((len(x), *x.shape[2:]), common), {})
    values, labels = _sample_pixels(images[0], train.labels, budget.pixels, seed)
    for name, candidates in _pixel_models(budget, seed):
        fitted = []
        for settings, model in candidates:
            model.fit(values, labels)
            counts = _counts(_by_pixel(model), images[2], val.labels, classes)
            fitted.append((_quality(counts), settings, model))
        _, settings, model = max(fitted, key=lambda one: one[0])
        add(name, _by_pixel(model), settings)
    try:
        from monai.networks.nets import BasicUNet
    except ImportError as error:
        reason = f"MONAI cannot be imported ({error}): pip install 'frontier-geofm[baselines]'"
        return [*out, {"task": task, "model": "unet", "kind": "baseline", "left_out": reason}]
    side = min(images[0].shape[2:])
    if side < _SMALLEST:
        reason = f"images of {side} pixels, a U-Net needs {_SMALLEST}"
        return [*out, {"task": task, "model": "unet", "kind": "baseline", "left_out": reason}]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = BasicUNet(
            spatial_dims=2, in_channels=images[0].shape[1], out_channels=classes, features=budget.unet_features
        )
    steps = _train(net.to(device), images[0], train.labels, images[2], val.labels, classes, seed, budget, device)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    add("unet", _by_net(net, device), {"steps": steps, "parameters": parameters})
    return out


def _stack(split: Split) -> NDArray[np.float32]:
    """[n, bands, H, W] of all inputs with H and W, resampled to the labels' grid, bands beside bands."""
    shape = split.labels.shape[1:]
    parts = []
    for name, axes in split.axes.items():
        if not {"H", "W"} <= set(axes):
            continue
        images = as_images(split, name)
        if images.shape[2:] != shape:
            images = F.interpolate(torch.from_numpy(images), shape, mode="bilinear", antialias=True).numpy()
        parts.append(images)
    if not parts:
        raise UserError("baselines of segmentation: no input has rows and columns: name one that has")
    return np.concatenate(parts, axis=1)


def _standardised(splits: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Bands with the mean 0 and deviation 1 of the first split."""
    mean = splits[0].mean((0, 2, 3), dtype=np.float64, keepdims=True)[0]
    spread = splits[0].std((0, 2, 3), dtype=np.float64, keepdims=True)[0]
    spread = np.where(spread > 0, spread, 1)
    return [((values - mean) / spread).astype(np.float32) for values in splits]


def pixel_features(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, H, W, 6 C] of images [n, C, H, W]: value, 3 x 3 and 7 x 7 mean and deviation, size of the gradient."""
    from scipy.ndimage import uniform_filter

    parts = [images]
    for side in (3, 7):
        mean = uniform_filter(images, (0, 0, side, side), mode="nearest")
        square = uniform_filter(images * images, (0, 0, side, side), mode="nearest")
        parts += [mean, np.sqrt(np.maximum(square - mean * mean, 0))]
    down, right = np.gradient(images, axis=(2, 3))
    parts.append(np.hypot(down, right))
    return np.concatenate(parts, axis=1).transpose(0, 2, 3, 1)


def _sample_pixels(
    images: NDArray[np.float32], labels: NDArray[Any], most: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(features, classes) of about `most` labelled pixels at random, as many of every image."""
    random = np.random.default_rng(seed)
    each = max(1, -(-most // len(images)))
    values, classes = [], []
    for image, label in zip(images, labels, strict=True):
        known = np.flatnonzero(label != MISSING)
        rows = random.permutation(known)[:each]
        values.append(pixel_features(image[None])[0].reshape(label.size, -1)[rows])
        classes.append(label.reshape(-1)[rows].astype(np.int64))
    return np.concatenate(values), np.concatenate(classes)


def _pixel_models(budget: Budget, seed: int) -> list[tuple[str, list[tuple[dict[str, Any], Any]]]]:
    """Both as they are and with classes weighted alike: a thin boundary is a rare class."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    weights = (None, "balanced")
    forest = {"n_estimators": budget.pixel_trees, "max_depth": 14, "min_samples_leaf": 5, "random_state": seed % 2**32}
    return [
        ("pixel_logistic", [({"class_weight": w}, LogisticRegression(max_iter=300, class_weight=w)) for w in weights]),
        (
            "pixel_random_forest",
            [({"class_weight": w}, RandomForestClassifier(**forest, class_weight=w)) for w in weights],
        ),
    ]


def _by_pixel(model: Any) -> Callable[[NDArray[np.float32]], NDArray[Any]]:
    def predict(images: NDArray[np.float32]) -> NDArray[Any]:
        found = pixel_features(images)
        return model.predict(found.reshape(-1, found.shape[-1])).reshape(found.shape[:3])

    return predict


def _by_net(net: torch.nn.Module, device: str) -> Callable[[NDArray[np.float32]], NDArray[Any]]:
    @torch.no_grad()
    def predict(images: NDArray[np.float32]) -> NDArray[Any]:
        net.eval()
        return net(torch.from_numpy(images).to(device)).argmax(1).cpu().numpy()

    return predict


def _counts(
    predict: Callable[[NDArray[np.float32]], NDArray[Any]],
    images: NDArray[np.float32],
    labels: NDArray[Any],
    classes: int,
    batch: int = 16,
) -> NDArray[np.int64]:
    pieces = [
        metrics.segmentation_counts(predict(images[at : at + batch]), labels[at : at + batch], classes, MISSING)
        for at in range(0, len(images), batch)
    ]
    return np.concatenate(pieces)


def _quality(counts: NDArray[np.int64]) -> float:
    """What is chosen by: Dice of two classes, mean Dice of more; 0 where there is none."""
    found = metrics.segmentation(counts, resamples=0)
    return float(np.nan_to_num(found["dice"] if "dice" in found else found["dice_macro"]))


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus one minus the soft Dice of the classes, over the pixels with a label."""
    known = labels != MISSING
    entropy = F.cross_entropy(logits, labels, ignore_index=MISSING, reduction="sum") / known.sum().clamp(min=1)
    shares = logits.softmax(1) * known[:, None]
    one_hot = F.one_hot(torch.where(known, labels, 0), logits.shape[1]).movedim(-1, 1) * known[:, None]
    both = (shares * one_hot).sum((0, 2, 3))
    total = (shares + one_hot).sum((0, 2, 3))
    return entropy + 1 - ((2 * both + 1) / (total + 1)).mean()


def _train(
    net: torch.nn.Module,
    images: NDArray[np.float32],
    labels: NDArray[Any],
    val_images: NDArray[np.float32],
    val_labels: NDArray[Any],
    classes: int,
    seed: int,
    budget: Budget,
    device: str,
) -> int:
    """Train `net` in place, and leave it in its best state on val; the step of that state."""
    random = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=max(2, budget.unet_steps))
    batch = min(budget.unet_batch, len(images))
    often = max(1, budget.unet_steps // _STATES)
    best: tuple[float, int, dict[str, torch.Tensor]] | None = None
    queue: list[int] = []
    for step in range(1, budget.unet_steps + 1):
        if len(queue) < batch:
            queue += random.permutation(len(images)).tolist()
        rows, queue = queue[:batch], queue[batch:]
        turns, flip = int(random.integers(0, 4)), bool(random.integers(0, 2))
        x, y = np.rot90(images[rows], turns, (2, 3)), np.rot90(labels[rows], turns, (1, 2))
        if flip:
            x, y = x[..., ::-1], y[..., ::-1]
        net.train()
        logits = net(torch.from_numpy(np.ascontiguousarray(x)).to(device))
        loss = _loss(logits, torch.from_numpy(np.ascontiguousarray(y)).long().to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % often == 0 or step == budget.unet_steps:
            quality = _quality(_counts(_by_net(net, device), val_images, val_labels, classes))
            if best is None or quality > best[0]:
                best = quality, step, {name: value.clone() for name, value in net.state_dict().items()}
    if best is None:
        return 0
    net.load_state_dict(best[2])
    return best[1]
