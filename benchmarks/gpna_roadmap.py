"""Steps 4 and 5 of GPNA's roadmap as experiments on generated scenes.

    frontier shards write --scenes 600 --sensors s2,s1 --size 64 --seed 0 shards/gpna_scenes
    python benchmarks/gpna_roadmap.py bands shards/gpna_scenes      # step 5: a band that was never seen, told by its wavelength
    python benchmarks/gpna_roadmap.py texts shards/gpna_scenes      # step 4: classes that were never seen, told by descriptions

Tables go to the terminal and into benchmarks/results/gpna_roadmap.md. Intervals: Student's t over seeds (or over pairs of classes x seeds).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from experiment_runs import one_thread, pretrain, told

from frontier.errors import UserError

RESULTS = Path(__file__).resolve().parent / "results" / "gpna_roadmap.md"
HELD_OUT_BANDS = ("B04", "B07")
"""Red, and the end of the red edge: bright in one is bare, bright in the other is green."""
QUARTER = 32
"""Side of the samples in pixels."""
SOURCE, COLUMN = "scenes", "s2"
TRAIN = {"global_batch": 16, "clip_norm": 1.0}


# ---------------------------------------------------------------- step 5


def quarters(shards: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(images [n, bands, 32, 32] cut from the scenes of a split, the class of each one's scene)."""
    from frontier.data.shards import ShardSet

    stored, side = ShardSet(shards, split), QUARTER
    images = stored.read(COLUMN, 0, len(stored))
    n, count, rows, columns = images.shape
    cut = images.reshape(n, count, rows // side, side, columns // side, side).transpose(0, 2, 4, 1, 3, 5)
    each = (rows // side) * (columns // side)
    return cut.reshape(-1, count, side, side).copy(), np.repeat(stored.column("label"), each)


def write_quarters(shards: Path, folder: Path, splits: Mapping[str, tuple[np.ndarray, str, np.ndarray]]) -> Path:
    """Shards like those of the scenes, of images [n, bands, 32, 32] and one column of labels (its name, its values) a split."""
    manifest = json.loads((shards / "manifest.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    listed, names, columns = [], {}, {}
    for split, (images, column, labels) in splits.items():
        path = folder / f"{split}-00000.h5"
        with h5py.File(path, "w", libver=("v110", "v110")) as file:
            file.create_dataset(COLUMN, data=images)
            file.create_dataset(column, data=labels)
        entry = {"file": path.name, "split": split, "samples": len(images), "bytes": path.stat().st_size}
        listed.append(entry | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
        names[split], columns[column] = {"samples": len(images), "shards": [path.name]}, labels.dtype.name
    entry = manifest["images"][COLUMN]
    manifest |= {
        "samples": sum(one["samples"] for one in listed),
        "fingerprint": hashlib.sha256("".join(one["sha256"] for one in listed).encode()).hexdigest(),
        "splits": names,
        "shards": listed,
        "images": {COLUMN: {**entry, "shape": [len(entry["bands"]), QUARTER, QUARTER]}},
        "columns": columns,
        "targets": {},
        "classes": [],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def one_band_set(shards: Path, folder: Path, held_out: Sequence[str], seed: int = 0) -> Path:
    """Quarters of the scenes with their mean NDVI as `greenness`.

    Of a training sample one band is there, drawn among all that are not `held_out`; the others are nodata. Test samples have all bands.
    """
    names = [band["name"] for band in json.loads((shards / "manifest.json").read_text())["images"][COLUMN]["bands"]]
    splits = {}
    for split in ("train", "test"):
        images, _ = quarters(shards, split)
        red, infrared = (images[:, names.index(name)].astype(np.float64) for name in ("B04", "B08"))
        greenness = ((infrared - red) / np.maximum(infrared + red, 1)).mean((1, 2)).astype(np.float32)
        if split == "train":
            trained = [names.index(name) for name in names if name not in held_out]
            kept = np.random.default_rng(seed).choice(trained, len(images))
            images *= (np.arange(len(names)) == kept[:, None])[..., None, None].astype(images.dtype)
        splits[split] = images, "greenness", greenness
    return write_quarters(shards, folder, splits)


def band_config(
    shards: Path, held_out: Sequence[str], seed: int, epochs: float, stem: str = "generated"
) -> dict[str, Any]:
    """Greenness from whatever band is there; some bands are never."""
    names = [band["name"] for band in json.loads((shards / "manifest.json").read_text())["images"][COLUMN]["bands"]]
    inputs = {COLUMN: {"bands": [name for name in names if name not in held_out], "footprint": 8}}
    tokens = {
        "stem": stem,
        "hidden": [8, 16],
        "position": 32,
        "highest": 2,
        "spectral": 32,
        "highest_spectral": 2,
        "place": 2,
        "time": 2,
        "gsd": 0,
    }
    task = {"head": "regression", "source": SOURCE, "target": "greenness"}
    return {
        "run": {"seed": seed},
        "model": {"family": "gpna", "preset": "gpna_debug", "width": 64, "heads": 4, "token_width": 64}
        | {"tokens": tokens, "tasks": {"greenness": task}},
        "data": {"sources": {SOURCE: {"shards": str(shards), "symmetries": True, "inputs": inputs}}},
        "train": {**TRAIN, "epochs": epochs, "base_lr": 1.6e-2},
        "log": {"every_steps": 100},
    }


def only(section: Any, band: str) -> Any:
    """A source's section with one band alone."""
    given = section.model_dump(exclude={"inputs"}, exclude_none=True)
    return type(section).model_validate({**given, "inputs": {COLUMN: {"bands": [band], "footprint": 8}}})


def from_one_band(
    module: Any, config: Mapping[str, Any], band: str, wavelengths: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """r2 of the greenness of the test samples, predicted from `band` alone, by name of `wavelengths`: the (centre, width) in nm that
    the model is told of it. Values are normalised by the band's own mean and deviation."""
    from frontier import metrics
    from frontier.config.load import validate
    from gpna.predict import open_split, stored_batches
    from gpna.reader import GPNAReader, packed
    from gpna.sources import open_source

    section = validate(dict(config)).model
    known = open_split(config, SOURCE, "test")
    alone = open_source(SOURCE, only(known.section, band), {}, check=False)
    spec = alone.inputs[COLUMN]
    inputs = {}
    for name, (centre, width) in wavelengths.items():
        told_as = replace(spec.bands[0], centre_nm=centre, width_nm=width)
        inputs[f"{band}:{name}/{COLUMN}"] = replace(spec, bands=(told_as,))
    module.tokenizer.extend(inputs)
    reader = GPNAReader(section, {SOURCE: alone}, torch.device("cpu"), 0, training=False)
    head, found = module.heads["greenness"], {name: [] for name in wavelengths}
    for batch in stored_batches(alone, 120):
        seen = reader.place({SOURCE: batch})[SOURCE]
        count = len(batch.members)
        rows = list(np.arange(count * spec.tokens).reshape(count, -1))
        given = {"values": seen.values, "place": seen.place, "time": seen.time}
        clusters = packed(rows, section.batching, "cpu")
        with torch.inference_mode():
            for name in wavelengths:
                found[name].append(head.predict(head(module.encode({f"{band}:{name}": given}, clusters)))[:, 0].numpy())
    truth = known.shards.column("greenness")
    return {name: metrics.regression(np.concatenate(parts), truth, resamples=0)["r2"] for name, parts in found.items()}


def refusal(shards: Path, band: str) -> str:
    """What `stem: band` says to a band that it has no convolutions for."""
    from frontier.config.load import validate
    from frontier.models.init import initialise
    from gpna.family import build
    from gpna.feed import open_feed
    from gpna.model import SourceShape
    from gpna.sources import open_source

    config = band_config(shards, HELD_OUT_BANDS, 0, 1, stem="band")
    feed = open_feed(validate({**config, "run": {"dir": "unused"}}), False, None)
    with torch.device("meta"):
        module = build(feed.model, {SOURCE: SourceShape(feed.sources[SOURCE].inputs, TRAIN["global_batch"])})
    module.to_empty(device="cpu")
    initialise(module, 0)
    section = only((feed.data.sources or {})[SOURCE], band)
    try:
        module.tokenizer.extend({f"new/{COLUMN}": open_source(SOURCE, section, {}, check=False).inputs[COLUMN]})
    except UserError as error:
        return str(error)
    raise AssertionError("stem: band took a band that it has no convolutions for")


def bands(shards: Path, work: Path, seeds: int, epochs: float) -> list[str]:
    entry = json.loads((shards / "manifest.json").read_text())["images"][COLUMN]
    all_bands = {band["name"]: (band["centre_nm"], band["width_nm"]) for band in entry["bands"]}
    made = one_band_set(shards, work / "one_band", HELD_OUT_BANDS)
    found: dict[str, list[dict[str, float]]] = {band: [] for band in (*HELD_OUT_BANDS, "B05", "B08")}
    parameters = 0
    for seed in range(seeds):
        module, config = pretrain(band_config(made, HELD_OUT_BANDS, seed, epochs), work / f"bands_{seed}")
        parameters = sum(p.numel() for p in module.parameters())
        for band, scores in found.items():
            scores.append(from_one_band(module, config, band, all_bands))
            print(
                seed, band, {name: round(value, 3) for name, value in scores[-1].items()}, file=sys.stderr, flush=True
            )
    lines = [
        "## Step 5: a band that was never seen",
        "",
        f"`stem: generated`, {parameters:,} parameters. Training: quarters of 64 px scenes, each with one of {len(all_bands) - len(HELD_OUT_BANDS)} Sentinel-2 bands (never "
        f"{' or '.join(HELD_OUT_BANDS)}) and its mean NDVI; {epochs:g} epochs, {seeds} seeds. Test: one band alone;",
        "r2 of the NDVI by the wavelength that the model is told (0 = as good as the mean).",
        "",
        "| given | in training | told its own wavelength | told another band's, mean of 11 | own less mean of others |",
        "|---|---|---|---|---|",
    ]
    for band, scores in found.items():
        own = [one[band] for one in scores]
        others = [float(np.mean([v for name, v in one.items() if name != band])) for one in scores]
        gain = [a - b for a, b in zip(own, others, strict=True)]
        seen = "never" if band in HELD_OUT_BANDS else "yes"
        lines.append(f"| {band} | {seen} | {told(own)} | {told(others)} | {told(gain)} |")
    heads = " | ".join(f"{name} {centre:.0f} nm" for name, (centre, _) in all_bands.items())
    lines += [
        "",
        "r2 by the wavelength told, mean over the seeds:",
        "",
        f"| given | {heads} |",
        "|---" * (len(all_bands) + 1) + "|",
    ]
    for band, scores in found.items():
        lines.append(
            f"| {band} | " + " | ".join(f"{np.mean([one[name] for one in scores]):.2f}" for name in all_bands) + " |"
        )
    lines += ["", f"`stem: band` refuses: `{refusal(made, HELD_OUT_BANDS[0])}`", ""]
    return lines


# ---------------------------------------------------------------- step 4

ATTRIBUTES = ("water", "trees", "herbs", "ploughed", "buildings", "roads", "mineral", "rows", "houses", "large")
DESCRIPTIONS = {
    #            water trees herbs plough build roads mineral rows houses large
    "water": (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5),
    "forest": (0.0, 1.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5),
    "grassland": (0.0, 0.1, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5),
    "cropland": (0.0, 0.0, 0.6, 0.7, 0.0, 0.1, 0.0, 0.7, 0.0, 1.0),
    "orchard": (0.0, 0.5, 0.4, 0.2, 0.0, 0.1, 0.0, 1.0, 0.0, 0.5),
    "residential": (0.0, 0.3, 0.4, 0.0, 0.6, 0.6, 0.0, 0.5, 1.0, 0.0),
    "industrial": (0.0, 0.0, 0.1, 0.0, 1.0, 0.7, 0.2, 0.3, 0.0, 1.0),
    "bare": (0.0, 0.0, 0.1, 0.1, 0.0, 0.0, 1.0, 0.0, 0.0, 0.5),
}
"""What the scenes' painters put there: a stand-in for the vectors of a language model, of which nothing is bundled."""
PAIRS = (("forest", "industrial"), ("grassland", "residential"), ("orchard", "bare"), ("water", "cropland"))
"""Held out together; each class once."""


def seen_set(shards: Path, folder: Path, unseen: Sequence[str]) -> Path:
    """Quarters of the scenes with a column `seen`: the number of their class among those that are not `unseen`, which training lacks.

    In the test split it is the number among all classes.
    """
    names = json.loads((shards / "manifest.json").read_text())["classes"]
    order = [names.index(name) for name in names if name not in unseen]
    images, labels = quarters(shards, "train")
    kept = np.isin(labels, order)
    train = images[kept], "seen", np.searchsorted(order, labels[kept]).astype(np.int32)
    images, labels = quarters(shards, "test")
    return write_quarters(shards, folder, {"train": train, "test": (images, "seen", labels.astype(np.int32))})


def text_config(shards: Path, vectors: Path, classes: Sequence[str], seed: int, epochs: float) -> dict[str, Any]:
    inputs = {COLUMN: {"bands": ["B02", "B04", "B08", "B11"], "footprint": 8}}
    tokens = {"hidden": [8, 16], "position": 32, "highest": 2, "place": 2, "time": 2, "gsd": 0}
    task = {"head": "text", "source": SOURCE, "target": "seen", "vectors": str(vectors), "texts": list(classes)}
    return {
        "run": {"seed": seed},
        "model": {"family": "gpna", "preset": "gpna_debug", "latents": 16, "width": 64, "heads": 4, "token_width": 64}
        | {"tokens": tokens, "tasks": {"scene": task}},
        "data": {"sources": {SOURCE: {"shards": str(shards), "symmetries": True, "inputs": inputs}}},
        "train": {**TRAIN, "epochs": epochs, "base_lr": 1.6e-2},
        "log": {"every_steps": 100},
    }


def asked(module: Any, config: Mapping[str, Any], vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scores [n, K] of the test scenes for any descriptions, labels [n])."""
    from frontier.config.load import validate
    from gpna.heads.text import scaled
    from gpna.predict import encoded, open_split

    source = open_split(config, SOURCE, "test")
    section, texts = validate(dict(config)).model, torch.from_numpy(scaled(vectors))
    scores = []
    for latents, _ in encoded(module, section, source, torch.device("cpu"), 40):
        with torch.inference_mode():
            scores.append(module.heads["scene"](latents, texts).numpy())
    return np.concatenate(scores), source.shards.column("seen")


def texts(shards: Path, work: Path, seeds: int, epochs: float) -> list[str]:
    names = json.loads((shards / "manifest.json").read_text())["classes"]
    described = np.array([DESCRIPTIONS[name] for name in names], np.float32)
    vectors = work / "descriptions.npz"
    work.mkdir(parents=True, exist_ok=True)
    np.savez(vectors, names=np.array(names), vectors=described)
    rows: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for pair in PAIRS:
        copy = seen_set(shards, work / f"without_{'_'.join(pair)}", pair)
        seen = [name for name in names if name not in pair]
        new = [names.index(name) for name in pair]
        kept = rows.setdefault(pair, {"seen": [], "two": [], "all": []})
        for seed in range(seeds):
            module, config = pretrain(
                text_config(copy, vectors, seen, seed, epochs), work / f"texts_{'_'.join(pair)}_{seed}"
            )
            scores, labels = asked(module, config, described)
            old = ~np.isin(labels, new)
            order = [names.index(name) for name in seen]
            kept["seen"].append(float(np.mean(np.take(order, scores[old][:, order].argmax(1)) == labels[old])))
            kept["two"].append(float(np.mean(np.take(new, scores[~old][:, new].argmax(1)) == labels[~old])))
            kept["all"].append(float(np.mean(scores[~old].argmax(1) == labels[~old])))
            print(
                pair, seed, {name: round(values[-1], 3) for name, values in kept.items()}, file=sys.stderr, flush=True
            )
    lines = [
        "## Step 4: classes that were never seen",
        "",
        f"Text head on vectors of {len(ATTRIBUTES)} attributes ({', '.join(ATTRIBUTES)}), four Sentinel-2 bands, {epochs:g} epochs, {seeds} seeds a pair; two classes a run",
        "are not in training. Accuracy on quarters of test scenes.",
        "",
        "| held out | seen classes, among 6 | held-out classes, between the two (chance 0.500) | held-out classes, among all 8 (chance 0.125) |",
        "|---|---|---|---|",
    ]
    for pair, kept in rows.items():
        lines.append(f"| {', '.join(pair)} | " + " | ".join(told(kept[name]) for name in ("seen", "two", "all")) + " |")
    means = {name: [float(np.mean(kept[name])) for kept in rows.values()] for name in ("seen", "two", "all")}
    lines.append(
        "| all, interval over pairs | " + " | ".join(told(means[name]) for name in ("seen", "two", "all")) + " |"
    )
    return lines


def record(path: Path, parts: Sequence[list[str]]) -> None:
    """Write sections into the results file, each in place of its older self."""
    old = path.read_text() if path.exists() else "# GPNA: steps of the roadmap\n"
    sections = {part.splitlines()[0]: part.rstrip() for part in ("\n" + old).split("\n## ")[1:]}
    for lines in parts:
        part = "\n".join(lines).removeprefix("## ")
        sections[part.splitlines()[0]] = part.rstrip()
    head = old.split("\n## ")[0].rstrip()
    path.write_text(head + "\n\n" + "\n\n".join(f"## {sections[name]}" for name in sorted(sections)) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("bands", "texts", "both"))
    parser.add_argument("shards", type=Path)
    parser.add_argument("--work", type=Path, help="keeps runs, and goes on from them (default: a temporary folder)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, help="default: 10 for bands, 12 for texts")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    one_thread()
    parts = []
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        if given.which in ("bands", "both"):
            parts.append(bands(given.shards.resolve(), work, given.seeds, given.epochs or 10))
        if given.which in ("texts", "both"):
            parts.append(texts(given.shards.resolve(), work, given.seeds, given.epochs or 12))
    for lines in parts:
        print("\n".join(lines) + "\n")
    record(given.out, parts)


if __name__ == "__main__":
    main()
