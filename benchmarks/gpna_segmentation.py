"""Field boundaries and areas by GPNA's Fourier queries: what the frequency vectors' region is worth, beside a U-Net.

    python benchmarks/gpna_segmentation.py PICTURES [--work FOLDER] [--seeds 3]

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
from pathlib import Path
from typing import Any

import numpy as np
from gpna_runs import one_thread, pretrain, told

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "jobs" / "configs" / "gpna_fields.yaml"
RESULTS = ROOT / "benchmarks" / "results" / "gpna_segmentation.md"
REGIONS = ("axis", "first", "half_plane")
TASKS = ("boundary", "area")
SHOWN = 8


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
    from gpna import metrics
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
    from PIL import Image

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
    grid = np.concatenate(rows, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid).resize((grid.shape[1] * 3, grid.shape[0] * 3), Image.Resampling.NEAREST).save(path)


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
    parser.add_argument("--unet-steps", type=int, default=300, help="0: no baselines")
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
            f"`python benchmarks/gpna_segmentation.py PICTURES`: {images['train']} training and {images['test']} test images of {given.size} px, jobs/configs/gpna_fields.yaml"
            f"{' with ' + ' '.join(given.set) if given.set else ''}, {parameters:,} parameters, {len(given.seeds)} seeds. Striped: share of the probabilities' detail "
            "that runs along whole rows or columns, less that of the labels."
        )
        lines = table(runs, rows, head)
        print("\n".join(lines))
        given.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
