"""What there is to rebuild in hidden patches, and how much of it is learned with how much training.

    python benchmarks/scale_alibi_reconstruction.py --work DIR --reference-m 8,40     # a kept DIR goes on from there; half an hour a reference

Generates scenes, trains the debug config of Scale-ALiBi for --steps steps with distances in units of each of --reference-m metres (40 is a patch of the
first sensor, the default: the steepest head's bias falls by 1/2 a patch; 8: by 5/2), beside it a plain MAE of the same width, depth, patch and windows on the
optical images alone. Errors are squared, per hidden patch of unit variance: 1 is the mean of each patch, known. Beside them, from the generator:

  colour       what remains where the mean of every band within the patch is known as well
  all but noise    what remains of the images where the scene is known without the sensor's noise and speckle: no model can do better

Both for whole scenes seen in half their pixels and for windows of a quarter of a scene as they are, between which the windows of training lie.
Writes benchmarks/results/scale_alibi_reconstruction.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from experiment_runs import one_thread, pretrain

from data_prep import scenes

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SENSORS = {"radar": ("s1", [0, 1]), "lores": ("s2", [3, 2, 1]), "hires": ("naip_5m", [0, 1, 2])}
PATCH = 4


class Quiet:
    """A generator of random numbers whose sensor noise is 0 and whose speckle is its mean; all else is as drawn."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rng, name)

    def standard_normal(self, size: Any = None, dtype: Any = np.float64) -> Any:
        drawn = self.rng.standard_normal(size, dtype)
        image = isinstance(size, tuple) and len(size) == 3 and size[0] in (4, 12)
        return np.zeros_like(drawn) if image else drawn

    def standard_gamma(self, shape: float, size: Any = None, dtype: Any = np.float64) -> Any:
        return np.full_like(self.rng.standard_gamma(shape, size, dtype), shape)


def images(count: int, quiet: bool) -> dict[str, torch.Tensor]:
    """[count, C, H, W] float32 by sensor."""
    stream = scenes.scene_stream
    if quiet:
        scenes.scene_stream = lambda *key: Quiet(stream(*key))  # type: ignore[assignment, return-value]
    try:
        made = [scenes.make_scene(0, i, 64, [column for column, _ in SENSORS.values()]) for i in range(count)]
    finally:
        scenes.scene_stream = stream
    return {
        name: torch.from_numpy(np.stack([one[column][bands].astype(np.float32) for one in made]))
        for name, (column, bands) in SENSORS.items()
    }


def patches(x: torch.Tensor) -> torch.Tensor:
    """[n, C, H, W] -> [n * patches, C, pixels]."""
    n, c, h, w = x.shape
    return x.view(n, c, h // PATCH, PATCH, w // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, PATCH**2)


def bounds(count: int) -> dict[str, dict[str, float]]:
    """Errors by sensor and kind of knowledge."""
    seen, true = images(count, quiet=False), images(count, quiet=True)
    out: dict[str, dict[str, float]] = {}
    for name in SENSORS:
        mean, deviation = seen[name].mean((0, 2, 3), keepdim=True), seen[name].std((0, 2, 3), keepdim=True)
        a, b = (seen[name] - mean) / deviation, (true[name] - mean) / deviation
        out[name] = {}
        for window, factor in (("native", 1), ("halved", 2)):
            target, known = (patches(F.avg_pool2d(x, factor)) for x in (a, b))
            centre, spread = target.mean((1, 2), keepdim=True), (target.var((1, 2), keepdim=True) + 1e-6).sqrt()
            target = (target - centre) / spread
            known = (known - known.mean((1, 2), keepdim=True)) / spread
            whole = target.square().mean()
            out[name][f"colour, {window}"] = float((target - target.mean(2, keepdim=True)).square().mean() / whole)
            out[name][f"all but noise, {window}"] = float((target - known).square().mean() / whole)
    return out


def errors(run: Path, keys: dict[str, str], around: int) -> dict[str, float]:
    """Medians over 50 steps up to `around`."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if around - 50 < row["step"] <= around]
    return {name: statistics.median(row[key] for row in last) for name, key in keys.items()}


def mae(shards: Path, steps: int) -> dict[str, Any]:
    return {
        "model": {
            "family": "mae",
            "preset": "vit_debug",
            "width": 96,
            "depth": 4,
            "heads": 8,
            "patch": PATCH,
            "decoder": {"width": 64, "depth": 2},
            "mask_ratio": 0.4,
            "norm_pix_loss": True,
        },
        "data": {
            "shards": str(shards),
            "column": "image",
            "image_size": 32,
            "augment": {"symmetries": True, "crop_scale": [0.25, 1.0]},
        },
        "parallel": {"strategy": "no_shard"},
        "train": {"steps": steps, "global_batch": 32, "base_lr": 1.6e-2, "clip_norm": 1.0},
        "log": {"progress": "lines", "every_steps": 50},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="keeps scenes and runs, and goes on from there")
    parser.add_argument("--reference-m", default="8,40")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--scenes", type=int, default=2400)
    args = parser.parse_args()
    one_thread()
    work = args.work or Path(tempfile.mkdtemp(prefix="scale_alibi_reconstruction."))
    shards = work / "scenes"
    if not (shards / "manifest.json").exists():
        command = [sys.executable, "-m", "frontier", "shards", "write", "--scenes", str(args.scenes), "--seed", "0"]
        subprocess.run([*command, "--sensors", "rgb,s2,s1,naip_5m", "--test-fraction", "0.33", str(shards)], check=True)
    ours = ROOT / "jobs" / "configs" / "scale_alibi_debug.yaml"
    words = [f"data.shards={shards}", f"train.steps={args.steps}", "parallel.strategy=no_shard"]
    for metres in args.reference_m.split(","):
        pretrain(ours, work / f"ours_{metres}", *words, f"model.reference_m={metres}")
    pretrain(mae(shards, args.steps), work / "mae")
    rows = [("the mean of each patch", dict.fromkeys(SENSORS, 1.0))]
    known = bounds(200)
    for kind in next(iter(known.values())):
        rows.append((f"known: {kind}", {name: known[name][kind] for name in SENSORS}))
    for step in sorted({args.steps // 25, 2 * args.steps // 5, args.steps}):
        for metres in args.reference_m.split(","):
            found = errors(work / f"ours_{metres}/run", {n: f"loss_{n}" for n in SENSORS}, step)
            rows.append((f"Scale-ALiBi, reference {metres} m, {step} steps", found))
        rows.append((f"MAE of optical images alone, {step} steps", errors(work / "mae/run", {"lores": "loss"}, step)))
    text = (
        f"# Hidden patches: what can be known, and what is learned\n\n`python benchmarks/scale_alibi_reconstruction.py --reference-m {args.reference_m} --steps {args.steps} --scenes {args.scenes}`, "
        f"{date.today()}, PyTorch {torch.__version__}, one thread of a CPU. Squared error of hidden patches of unit variance; of models the median over 50 training "
        "steps of 32 samples, 40 % hidden. The learning rate falls to 0 at the last step.\n\n| | radar | lores | hires |\n|---|---|---|---|\n"
    )
    for told, found in rows:
        text += f"| {told} | " + " | ".join(f"{found[n]:.3f}" if n in found else "" for n in SENSORS) + " |\n"
    (RESULTS / "scale_alibi_reconstruction.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
