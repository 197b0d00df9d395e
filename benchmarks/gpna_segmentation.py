"""Field boundaries and areas by GPNA's Fourier queries: what the frequency vectors' region is worth, beside a U-Net.

    python benchmarks/gpna_segmentation.py PICTURES [--work FOLDER] [--seeds 3]

Pictures of the head alone (head_alone.png): label, then axis, first, half_plane with 8 latents an image, then with 16.
Generates fields, trains jobs/configs/gpna_fields.yaml with region axis (Eq. 2), first (Eq. 4) and half_plane, everything else equal, fits the
baselines on the same shards, and writes benchmarks/results/gpna_segmentation.md and pictures (image, label, one column a region, U-Net) into PICTURES.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from experiment_runs import one_thread, pretrain, told

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "jobs" / "configs" / "gpna_fields.yaml"
RESULTS = ROOT / "benchmarks" / "results" / "gpna_segmentation.md"
REGIONS = ("axis", "first", "half_plane")
TASKS = ("boundary", "area")
SHOWN = 8


def held(
    region: str, latents: int, seed: int, share: float = 1.0, images: int = 16, size: int = 32, steps: int = 240
) -> dict[str, Any]:
    """What a few latents can hold: the boundary head on free latents of each image, without an encoder.

    The latents of `images` images and one head are fitted to a random `share` of the pixels; `dice` is of the others, or of all where all are shown.
    """
    import torch
    from pydantic import TypeAdapter

    from data_prep.fields import make_fields
    from frontier import metrics
    from frontier.models.init import initialise
    from gpna.head_sections import TaskUnion
    from gpna.heads import build_head

    labels = torch.tensor(
        np.stack([make_fields(1, seed * images + index, size)["boundary"] for index in range(images)])
    )
    settings = {"head": "segmentation", "source": "fields", "target": "boundary", "size": size, "classes": 2}
    settings |= {"features": 128, "highest": 6, "region": region, "loss": "both"}
    head = build_head(TypeAdapter(TaskUnion).validate_python(settings), 48)
    initialise(head, seed)
    draw = torch.Generator().manual_seed(seed)
    free = torch.randn(images, latents, 48, generator=draw).requires_grad_()
    shown = torch.rand(images, size * size, generator=draw).argsort(1)[:, : round(size * size * share)]
    optimizer = torch.optim.Adam([*head.parameters(), free], lr=4e-3)
    for _ in range(steps):
        pixels = shown.gather(1, torch.randint(0, shown.shape[1], (images, 256), generator=draw))
        loss = head.loss(head(free, pixels), labels.flatten(1).gather(1, pixels)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        probability = head.predict(head(free))[:, 1].numpy()
    judged = labels if share == 1 else labels.flatten(1).scatter(1, shown, 255).view_as(labels)
    counts = metrics.segmentation_counts(probability > 0.5, judged, 2)
    dice = metrics.segmentation(counts, resamples=0)["dice"]
    return {
        "dice": dice,
        "probability": probability,
        "labels": labels.numpy(),
        "striped": stripes(probability) - stripes(labels.numpy()),
    }


def make_shards(folder: Path, count: int, size: int) -> Path:
    if not (folder / "manifest.json").exists():
        command = [sys.executable, "-m", "frontier", "shards", "write", "--fields", str(count), "--size", str(size)]
        options = ["--seed", "1", "--test-fraction", "0.1666", str(folder)]
        subprocess.run([*command, *options], check=True, stdout=sys.stderr, cwd=ROOT)
    return folder


def overrides(shards: Path, region: str, seed: int, more: Sequence[str]) -> list[str]:
    regions = [f"model.{place}.region={region}" for place in ("tokens", *(f"tasks.{task}" for task in TASKS))]
    return [f"data.sources.fields.shards={shards}", f"run.seed={seed}", *regions, *more]


def run(work: Path, shards: Path, region: str, seed: int, more: Sequence[str] = ()) -> dict[str, Any]:
    """Of one training: by task the probability of class 1 [n, H, W] of the test images, their labels, and metrics of its argmax."""
    from frontier import metrics
    from gpna.predict import open_split, predict

    folder = work / f"{region}_{seed}"
    module, config = pretrain(CONFIG, folder, *overrides(shards, region, seed, more))
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in module.parameters())}
    for task, given in predict(module, config, open_split(config, "fields", "test")).items():
        answer = given.values.argmax(1)
        counts = metrics.segmentation_counts(answer, given.labels, 2)
        found[task] = metrics.segmentation(counts) | {"probability": given.values[:, 1], "labels": given.labels}
        found[task]["striped"] = stripes(given.values[:, 1]) - stripes(given.labels)
    return found


def stripes(maps: np.ndarray) -> float:
    """Share of the maps' detail that runs along whole rows or columns: 1 = nothing but stripes. Mean over the maps [n, H, W] that vary.

    Detail is what differs from the mean over 9 x 9 pixels, so that blur alone makes no stripes.
    """
    from scipy.ndimage import uniform_filter

    maps = maps.astype(np.float64)
    detail = maps - uniform_filter(maps, (0, 9, 9), mode="nearest")
    total = (detail**2).mean((1, 2))
    along = (detail.mean(1) ** 2).mean(1) + (detail.mean(2) ** 2).mean(1)
    varied = total > 1e-6
    return float((along[varied] / total[varied]).mean()) if varied.any() else float("nan")


def baseline_rows(shards: Path, kept: Path, seed: int, steps: int) -> dict[str, list[dict[str, Any]]]:
    """By task, of the majority, a random forest of pixels and a U-Net; from the file `kept` where it is there."""
    if kept.exists():
        return json.loads(kept.read_text())
    from frontier.data.shards import ShardSet
    from gpna.baselines import Budget, baselines, read_split

    found = {}
    for task in TASKS:
        train, test = (read_split(ShardSet(shards, split), task, place_and_time=False) for split in ("train", "test"))
        budget = Budget(unet_steps=steps, unet_batch=32, pixels=20_000, pixel_trees=20)
        rows = baselines(
            "segmentation",
            train,
            test,
            None,
            seed,
            task=task,
            budget=budget,
            progress=lambda line: print(line, file=sys.stderr),
        )
        found[task] = [row for row in rows if row["model"] in ("majority", "pixel_random_forest", "unet")]
    kept.write_text(json.dumps(found))
    return found


def picture(path: Path, shards: Path, task: str, runs: Mapping[str, Mapping[str, Any]]) -> None:
    """A PNG: one row an image, columns image, label, probability of each region (as it is, and its answer at 1/2)."""
    from frontier.data.shards import ShardSet

    labels = next(iter(runs.values()))[task]["labels"]
    share = labels.mean((1, 2))
    chosen = np.argsort(-np.minimum(share, 0.5 if task == "area" else 1), kind="stable")[: 4 * SHOWN : 4]
    test = ShardSet(shards, "test")
    images = test.take("image", np.sort(chosen)).transpose(0, 2, 3, 1)
    rows = []
    for image, place in zip(images, np.sort(chosen), strict=True):
        maps = [labels[place].astype(float)]
        for given in runs.values():
            maps += [given[task]["probability"][place], given[task]["probability"][place] > 0.5]
        cells = [image, *(np.repeat((np.asarray(one, float) * 255).astype(np.uint8)[..., None], 3, -1) for one in maps)]
        rows.append(np.concatenate([np.pad(cell, ((1, 1), (1, 1), (0, 0)), constant_values=128) for cell in cells], 1))
    save(path, np.concatenate(rows, 0))


def table(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], rows: Mapping[str, Sequence[Mapping[str, Any]]], head: str
) -> list[str]:
    lines = ["# GPNA: segmentation of generated fields", "", head, ""]
    for task in TASKS:
        lines += [
            f"## {task}",
            "",
            "| model | Dice, mean ± 95 % over seeds | Dice of each seed | less axis | striped |",
            "|---|---|---|---|---|",
        ]
        axis = [one[task]["dice"] for one in runs["axis"]]
        for region, found in runs.items():
            dice = [one[task]["dice"] for one in found]
            gain = "" if region == "axis" else told([a - b for a, b in zip(dice, axis, strict=False)])
            each = ", ".join(f"{value:.3f}" for value in dice)
            lines.append(
                f"| GPNA, {region} | {told(dice)} | {each} | {gain} | {np.mean([one[task]['striped'] for one in found]):+.3f} |"
            )
        for row in rows.get(task, ()):
            if "left_out" in row:
                lines.append(f"| {row['model']} | left out: {row['left_out']} | | | |")
                continue
            low, high = row["dice_ci95"]
            lines.append(f"| {row['model']} | {row['dice']:.3f} [{low:.3f}, {high:.3f}] (test images) | | | |")
        lines.append("")
    return lines


def alone(seeds: int, pictures: Path) -> list[str]:
    """Table and picture of `held`."""
    lines = [
        "## The head alone",
        "",
        f"Free latents of 16 images (width 48) and one boundary head (128 columns, 6 cycles), 240 steps, {seeds} draws of images and weights. Dice of all pixels, all shown;",
        "and of the other half of the pixels, half shown.",
        "",
        "| latents an image | region | all shown | less axis | striped | half shown | less axis | striped |",
        "|---|---|---|---|---|---|---|---|",
    ]
    shown: dict[str, dict[str, Any]] = {}
    for latents in (8, 16):
        axis: dict[float, list[float]] = {}
        for region in REGIONS:
            cells = []
            for share in (1.0, 0.5):
                runs = [held(region, latents, seed, share) for seed in range(seeds)]
                if share == 0.5:
                    shown[f"{region}_{latents}"] = runs[0]
                dice = [one["dice"] for one in runs]
                first = axis.setdefault(share, dice)
                gain = "" if first is dice else told([a - b for a, b in zip(dice, first, strict=True)])
                cells += [told(dice), gain, f"{np.mean([one['striped'] for one in runs]):+.3f}"]
            lines.append(f"| {latents} | {region} | {' | '.join(cells)} |")
    rows = []
    for place in range(SHOWN):
        maps = [shown["axis_8"]["labels"][place], *(one["probability"][place] for one in shown.values())]
        rows.append(np.concatenate([np.pad(np.asarray(one, float), 1, constant_values=0.5) for one in maps], 1))
    save(pictures / "head_alone.png", np.repeat((np.concatenate(rows) * 255).astype(np.uint8)[..., None], 3, -1))
    return [*lines, ""]


def save(path: Path, grid: np.ndarray) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid).resize((grid.shape[1] * 3, grid.shape[0] * 3), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument(
        "--work", type=Path, help="keeps shards and runs, and goes on from them (default: a temporary folder)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--regions", nargs="+", choices=REGIONS, default=list(REGIONS))
    parser.add_argument("--count", type=int, default=2400)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--unet-steps", type=int, default=3720, help="as many as the config has; 0: no baselines")
    parser.add_argument("--alone", type=int, default=5, help="draws of the head alone; 0: none")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="changes to the config, of all runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    one_thread()
    with tempfile.TemporaryDirectory() as temporary:
        work = (given.work or Path(temporary)).resolve()
        shards = make_shards(work / f"fields_{given.count}_{given.size}", given.count, given.size)
        runs: dict[str, list[dict[str, Any]]] = {region: [] for region in given.regions}
        for seed in given.seeds:
            for region, found in runs.items():
                found.append(run(work, shards, region, seed, given.set))
                said = {task: round(found[-1][task]["dice"], 3) for task in TASKS}
                print(f"{region} seed {seed}: Dice {said}", file=sys.stderr, flush=True)
        for task in TASKS:
            picture(given.pictures / f"{task}.png", shards, task, {region: found[0] for region, found in runs.items()})
        rows = (
            baseline_rows(shards, work / f"baselines_{given.count}_{given.size}.json", 0, given.unet_steps)
            if given.unet_steps
            else {}
        )
        manifest = json.loads((shards / "manifest.json").read_text())
    if "axis" in runs:
        images = {split: one["samples"] for split, one in manifest["splits"].items()}
        parameters = runs["axis"][0]["parameters"]
        head = (
            f"`python benchmarks/gpna_segmentation.py PICTURES --regions {' '.join(runs)} --alone {given.alone}`, {date.today()}: {images['train']} training and {images['test']} test images of {given.size} px, jobs/configs/gpna_fields.yaml"
            f"{' with ' + ' '.join(given.set) if given.set else ''}, {parameters:,} parameters, {len(given.seeds)} seeds. Striped: share of the probabilities' detail "
            "that runs along whole rows or columns, less that of the labels."
        )
        lines = table(runs, rows, head) + (alone(given.alone, given.pictures) if given.alone else [])
        print("\n".join(lines))
        given.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
