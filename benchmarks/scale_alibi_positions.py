"""What knowing the distance on the ground is worth: Scale-ALiBi beside plain 2D-ALiBi, its Gaussian variant and sinusoidal positions.

    python benchmarks/scale_alibi_positions.py [--work FOLDER] [--seeds 3] [--steps 250] [--scenes 2400]

Generates scenes (640 m, radar and optical at 10 m, high resolution at 5 m), trains every kind of position twice, all else equal: "varied" on windows of 10 to
100 % of a scene's area, so that GSD differs from sample to sample by up to 3.2 times, and "small" on windows of a quarter of it, all at
10 m. Low-resolution encoders see 32 x 32 pixels, the high-resolution one 64 x 64. On held-out scenes:

  varied GSD      linear probe of land use on the mean of an encoder's tokens, and top-1 retrieval of the same place in another sensor among
                  256 (both directions, mean over the three pairs), both on windows as in "varied"; retrieval also where all have one GSD,
                  as different GSDs alone tell samples apart for encoders that know them
  extrapolation   trained "small", the probe fitted on windows as in training and tested on larger images (the whole scene, 64 x 64 at
                  10 m, four times the tokens) and at other GSDs (the whole scene in 32 x 32 at 20 m; a tenth of it at 6.3 m)

  a wrong GSD     how far features of the trained "ground" models move, and what becomes of retrieval, where all samples are told the nominal
                  GSD, or each that of another
  NAME@METRES     with that reference length; "nominal" is "ground" told the GSD of whole images whatever the window, in training and after: what
                  is left of it without the metres

  read            R2 of the logarithm of a window's GSD by ridge regression from features of models trained "varied", held-out samples

Writes benchmarks/results/scale_alibi_positions_patch<n>.md (…_reference.md with NAME@METRES, …_extrapolation.md of "small" alone): means over seeds with 95 % intervals, and differences to "grid" in pairs of seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiment_runs import interval, one_thread, pretrain

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
POSITIONS = ("ground", "grid", "gaussian", "sincos", "sincos_gsd")
VARIED, SMALL = (0.1, 1.0), (0.25, 0.25)
WHOLE, TENTH = (1.0, 1.0), (0.1, 0.1)
GALLERY = 256


def config(
    shards: Path, position: str, crop: tuple[float, float], seed: int, args: argparse.Namespace
) -> dict[str, Any]:
    name, _, metres = position.partition("@")
    return {
        "run": {"seed": seed},
        "model": {
            "family": "scale_alibi",
            "preset": "scale_alibi_tiny",
            "width": 96,
            "heads": args.heads,
            "patch": args.patch,
            "position": "ground" if name == "nominal" else name,
            **({"reference_m": float(metres)} if metres else {}),
            "mask_ratio": 0.5,
            "decoder": {"width": 64},
            "sensors": {
                "radar": {"column": "s1", "size": 32},
                "lores": {"column": "s2", "bands": ["B04", "B03", "B02", "B08"], "size": 32},
                "hires": {"column": "naip_5m", "size": 64},
            },
        },
        "data": {"shards": str(shards), "augment": {"symmetries": True, "crop_scale": list(crop)}},
        "parallel": {"strategy": "no_shard"},
        "train": {"steps": args.steps, "global_batch": 64, "base_lr": 8e-3, "clip_norm": 1.0},
        "log": {"progress": "lines", "every_steps": 50},
    }


@contextmanager
def told_by(position: str) -> Iterator[None]:
    """Every window has the GSD of the whole image where the position is "nominal"."""
    from scale_alibi import reader
    from scale_alibi.augment import View, see_gsd

    if position.startswith("nominal"):
        reader.see_gsd = lambda gsd, stored, size, view: see_gsd(gsd, stored, size, View())  # type: ignore[attr-defined]
    try:
        yield
    finally:
        reader.see_gsd = see_gsd  # type: ignore[attr-defined]


class Seen:
    """Samples of a split as encoders see them through windows of their ground."""

    def __init__(self, settled: dict[str, Any], split: str, seed: int = 1) -> None:
        from frontier.config.load import validate
        from frontier.data.shards import ShardSet

        self.model = validate(settled).model
        self.shards = ShardSet(settled["data"]["shards"], split=split)
        self.labels = self.shards.column("label").astype(np.int64)
        self.seed = seed

    def placed(self, crop: tuple[float, float], times: int = 1, batch: int = 128) -> Iterator[tuple[Any, Any]]:
        """(reader, batch as encoders see it) through windows of a share of the area, images of `times` the size that was trained on."""
        from frontier.config.schema import AugmentConfig
        from frontier.data.loader import Batch
        from scale_alibi.feed import columns_of
        from scale_alibi.reader import ScaleALiBiReader

        sensors = {
            name: s.model_copy(update={"size": s.size * times, "nominal_gsd_m": s.nominal_gsd_m / times})
            for name, s in self.model.sensors.items()
        }
        columns = columns_of(sensors, self.shards)
        cpu, augment = torch.device("cpu"), AugmentConfig(crop_scale=crop)
        reader = ScaleALiBiReader(sensors, self.model.patch, self.shards, augment, cpu, self.seed)
        for start in range(0, len(self.shards), batch):
            stop = min(start + batch, len(self.shards))
            members = torch.stack([torch.zeros(stop - start, dtype=torch.int64), torch.arange(start, stop)], 1)
            stored = {c: torch.from_numpy(self.shards.read(c, start, stop)) for c in columns}
            yield reader, reader.place({"": Batch(stored, members, columns[0])})

    @torch.no_grad()
    def features(
        self, module: Any, crop: tuple[float, float], times: int = 1, told: str = "true"
    ) -> tuple[dict[str, np.ndarray], torch.Tensor]:
        """Mean over tokens by sensor [n, D], and vectors in the common space [n, S, D].

        told: the "true" GSD, the "nominal" one of whole images for all, or that of "another" sample.
        """
        sensors = list(self.model.sensors)
        means: dict[str, list[np.ndarray]] = {name: [] for name in sensors}
        vectors = []
        for _, placed in self.placed(crop, times):
            gsd = {
                "true": placed.gsd,
                "nominal": {n: torch.full_like(g, self.model.sensors[n].nominal_gsd_m) for n, g in placed.gsd.items()},
                "another": {name: value.roll(1, 0) for name, value in placed.gsd.items()},
            }[told]
            tokens = {name: module.encode(name, placed.images[name], gsd[name]).x for name in sensors}
            for name, x in tokens.items():
                means[name].append(x.mean(1).numpy())
            vectors.append(module.projections({name: module.summarise(name, x) for name, x in tokens.items()})[0])
        return {name: np.concatenate(parts) for name, parts in means.items()}, torch.cat(vectors)

    @torch.no_grad()
    def error(self, module: Any, crop: tuple[float, float]) -> float:
        """Mean over samples and sensors of the squared error of normalised hidden patches, masks by the seed."""
        found = []
        for reader, placed in self.placed(crop):
            losses = module(**reader.inputs(module, placed, 0, 1))
            found.append((float(losses["loss_reconstruction"]) / len(self.model.sensors), len(placed.members)))
        return sum(value * count for value, count in found) / sum(count for _, count in found)


def retrieval(z: torch.Tensor) -> float:
    """Share of samples whose own other sensor is the nearest among `GALLERY`, mean over pairs, directions and galleries."""
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))
    found = []
    for first in range(0, len(z) - GALLERY + 1, GALLERY):
        part = z[order[first : first + GALLERY]]
        own = torch.arange(GALLERY)
        for a in range(z.shape[1]):
            for b in range(z.shape[1]):
                if a != b:
                    found.append(float(((part[:, a] @ part[:, b].T).argmax(1) == own).float().mean()))
    return float(np.mean(found))


def linear(train: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray) -> float:
    """Accuracy of a logistic regression on features standardised by the training split."""
    from frontier.probe.logistic import probe
    from frontier.probe.standardise import standardise

    scaled, others = standardise(train, test)
    predicted, _ = probe(scaled, labels, others, 0)
    return float((predicted == truth).mean())


def measure(shards: Path, work: Path, position: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    found: dict[str, float] = {}
    for kind in args.kinds.split(","):
        crop = {"varied": VARIED, "small": SMALL}[kind]
        module, settled = pretrain(config(shards, position, crop, seed, args), work / f"{kind}_{position}_{seed}")
        train, test = Seen(settled, "train"), Seen(settled, "test", seed=2)
        fitted, _ = train.features(module, crop)
        tested: dict[str, tuple[tuple[float, float], int]]
        if kind == "varied":
            tested = {"varied GSD": (VARIED, 1)}
        else:
            tested = {"as trained": (SMALL, 1), "larger": (WHOLE, 2), "20 m": (WHOLE, 1), "6.3 m": (TENTH, 1)}
        for name, (window, times) in tested.items():
            means, z = test.features(module, window, times)
            for sensor in means:
                found[f"{kind}, {name}: probe {sensor}"] = linear(
                    fitted[sensor], train.labels, means[sensor], test.labels
                )
            found[f"{kind}, {name}: retrieval"] = retrieval(z)
            if times == 1:  # the decoder has the grid of training
                found[f"{kind}, {name}: error of hidden patches"] = test.error(module, window)
        if kind == "varied":
            for name, window in (("20 m", WHOLE), ("10 m", SMALL), ("6.3 m", TENTH)):
                found[f"varied, {name}: retrieval"] = retrieval(test.features(module, window)[1])
    return found


def misled(work: Path, position: str, seeds: Sequence[int]) -> str:
    """What models trained with "ground" positions make of a wrong GSD: a row a seed and lie. Features move by |f' - f| as a share of |f - mean f|, over all
    held-out samples on windows as in "varied".
    """
    from frontier.train.checkpoint import load_model

    lines = ["| seed | told GSD | radar moves by | lores | hires | retrieval |", "|---|---|---|---|---|---|"]
    for seed in seeds:
        module, settled, _ = load_model(work / f"varied_{position}_{seed}" / "run")
        test = Seen(settled, "test", seed=2)
        true, z = test.features(module.eval(), VARIED)
        lines.append(f"| {seed} | true | | | | {retrieval(z):.3f} |")
        for told in ("nominal", "another"):
            found, z = test.features(module, VARIED, told=told)
            moved = [np.linalg.norm(found[n] - f) / np.linalg.norm(f - f.mean(0)) for n, f in true.items()]
            lines.append(f"| {seed} | {told} | {' | '.join(f'{m:.4f}' for m in moved)} | {retrieval(z):.3f} |")
    return "\n".join(lines)


def read_gsd(work: Path, seeds: dict[str, Sequence[int]]) -> str:
    """Whether features of models trained "varied" tell the GSD of the window: R2 on held-out samples by sensor, a row a run."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from frontier.train.checkpoint import load_model

    lines = ["| positions | seed | radar | lores | hires |", "|---|---|---|---|---|"]
    for position, own in seeds.items():
        for seed in own:
            module, settled, _ = load_model(work / f"varied_{position}_{seed}" / "run")
            given = []
            for split, drawn in (("train", 1), ("test", 2)):
                seen = Seen(settled, split, seed=drawn)
                gsd = [placed.gsd for _, placed in seen.placed(VARIED, 1)]
                told = "nominal" if position.startswith("nominal") else "true"
                features, _ = seen.features(module.eval(), VARIED, told=told)
                given.append(
                    {n: (x, torch.cat([g[n].log().mean(1) for g in gsd]).numpy()) for n, x in features.items()}
                )
            known, asked = given
            fits = {n: make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 13))).fit(*known[n]) for n in known}
            scores = (f"{fit.score(*asked[name]):.3f}" for name, fit in fits.items())
            lines.append(f"| {position} | {seed} | {' | '.join(scores)} |")
    return "\n".join(lines)


def table(found: dict[str, dict[int, dict[str, float]]], bases: Sequence[str]) -> str:
    """A row a measure: mean ± half-width over seeds of each position; below it the differences to each of `bases` in pairs of seeds."""
    names = list(found)
    heads = [f"{name} ({len(found[name])} seed{'s' * (len(found[name]) > 1)})" for name in names]
    lines = ["| measure | " + " | ".join(heads) + " |", "|---|" + "---|" * len(names)]

    def told(values: Sequence[float], sign: str = "") -> str:
        if not values:
            return ""
        mean, half = interval(values)
        return f"{mean:{sign}.3f} ± {half:.3f}" if len(values) > 1 else f"{mean:{sign}.3f}"

    measured = [run for runs in found.values() for run in runs.values()]
    for measure_name in (name for name in measured[0] if all(name in run for run in measured)):
        values = {name: {seed: run[measure_name] for seed, run in found[name].items()} for name in names}
        lines.append(f"| {measure_name} | " + " | ".join(told(list(values[name].values())) for name in names) + " |")
        for base in (name for name in bases if name in values):
            other = values[base]
            less = {name: [own[s] - other[s] for s in own if s in other] for name, own in values.items()}
            cells = ["" if name == base else told(less[name], "+") for name in names]
            lines.append(f"| - minus {base} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="keeps scenes and runs, and goes on from there")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--scenes", type=int, default=2400)
    parser.add_argument("--positions", default=",".join(POSITIONS), help="NAME:N takes N seeds of that one")
    parser.add_argument("--base", default="grid", help="differences are to this one, or to each of these, with commas")
    parser.add_argument("--kinds", default="varied,small")
    parser.add_argument("--patch", type=int, default=8, help="4: four times the tokens")
    parser.add_argument("--heads", type=int, default=4, help="8: slopes from 1/2 instead of 1/4")
    parser.add_argument(
        "--only", metavar="SEED", type=int, help="measure this seed alone into --work: to run side by side"
    )
    args = parser.parse_args()
    one_thread()
    work = args.work or Path(tempfile.mkdtemp(prefix="scale_alibi_positions."))
    shards = work / "scenes"
    if not (shards / "manifest.json").exists():
        command = [sys.executable, "-m", "frontier", "shards", "write", "--scenes", str(args.scenes), "--seed", "0"]
        subprocess.run([*command, "--sensors", "s2,s1,naip_5m", "--test-fraction", "0.33", str(shards)], check=True)
    found: dict[str, dict[int, dict[str, float]]] = {}
    for asked in args.positions.split(","):
        position, _, own = asked.partition(":")
        seeds = range(int(own or args.seeds)) if args.only is None else [args.only]
        for seed in seeds:
            known = work / f"{position}_{seed}.json"
            if not known.exists():
                with told_by(position):
                    known.write_text(json.dumps(measure(shards, work, position, seed, args)))
            found.setdefault(position, {})[seed] = json.loads(known.read_text())
    if args.only is not None:
        return
    words = [
        f"--{k} {getattr(args, k)}"
        for k in ("seeds", "steps", "scenes", "positions", "base", "kinds", "patch", "heads")
    ]
    text = (
        f"# Kinds of positions in Scale-ALiBi, patches of {args.patch} pixels\n\n`python benchmarks/scale_alibi_positions.py {' '.join(words)}`, "
        f"{date.today()}, PyTorch {torch.__version__}, one thread of a CPU, {args.steps} steps of 64 samples. Means over seeds ± half-widths of 95 % "
        f'intervals; "- minus …": difference in pairs of seeds. Chance: probe 0.125 (8 classes), retrieval {1 / GALLERY:.4f}.\n\n{table(found, args.base.split(","))}\n'
    )
    if "varied" in args.kinds.split(","):
        for name in found:
            if name.startswith("ground"):
                text += (
                    f"\n## Models with {name} that are told a wrong GSD\n\n{misled(work, name, list(found[name]))}\n"
                )
        text += f"\n## GSD of a window, read from features (R2)\n\n{read_gsd(work, {name: list(runs) for name, runs in found.items()})}\n"
    steep = "_reference" if "@" in args.positions else "_extrapolation" if args.kinds == "small" else ""
    (RESULTS / f"scale_alibi_positions_patch{args.patch}{steep}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
