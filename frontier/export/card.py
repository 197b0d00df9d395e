"""The model card: what the weights are, what they were trained on and how they load. Only what is recorded or measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from frontier.errors import UserError
from frontier.export.layout import Layout, Source

WINDOWS = 5
"""Rows of the table of losses: equal pieces of the training."""
UNKNOWN = "not known"


def model_card(source: Source, layout: Layout, folder: str, digest: str) -> str:
    """README.md of the exported folder called `folder`, whose weights have the sha256 `digest`."""
    from frontier import __version__

    model, record = source.config["model"], source.record
    name = " ".join(str(model[key]) for key in ("family", "preset") if model.get(key))
    tags = {**layout.tags, "tags": f"[geospatial, remote-sensing, {source.family}]"}
    parts = [
        "\n".join(("---", *(f"{key}: {value}" for key, value in tags.items()), "---")),
        f"# {name}, step {record['step']:,}",
        f"Exported by `frontier export` {__version__}.",
        "## Load",
        f"```python\n{layout.usage.replace('FOLDER', folder)}```",
        *(note.replace("FOLDER", folder) for note in layout.notes),
        "## Weights",
        _table(_weights(source, layout, digest)),
        *_history(source),
        *_probe(source),
        "## Not stated",
        "The licence of these weights: whoever shares them adds it, and checks it against that of the data.",
    ]
    return "\n\n".join(parts) + "\n"


def _history(source: Source) -> list[str]:
    """What the weights were trained on and how; of weights from elsewhere, where they come from."""
    origin = source.record.get("origin")
    if origin is None:
        return ["## Trained on", *_data(source), "## Training", _table(_training(source)), *_losses(source)]
    rows = [(key, value) for key, value in origin.items()]
    said = "Not trained here. Nothing is recorded of their training; the shards below gave sizes and statistics alone."
    return ["## Origin of the weights", _table(rows), said, *_data(source)]


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _table(rows: Sequence[Sequence[Any]], head: Sequence[str] = ("what", "value")) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _weights(source: Source, layout: Layout, digest: str) -> list[tuple[str, Any]]:
    count = sum(tensor.numel() for tensor in layout.tensors.values())
    data = source.config["data"]
    rows: list[tuple[str, Any]] = [
        ("part", {"all": "the whole model", "encoder": "the encoder"}[layout.part]),
        ("values", f"{count:,} in {len(layout.tensors)} tensors, float32"),
        (f"sha256 of {layout.weights}", digest),
    ]
    if data.get("image_size") and data.get("mean"):
        rows += [
            ("images", f"{len(data['mean'])} bands, {data['image_size']} x {data['image_size']} pixels"),
            ("mean by band, stored units", ", ".join(f"{value:.6g}" for value in data["mean"])),
            ("standard deviation by band, stored units", ", ".join(f"{value:.6g}" for value in data["std"])),
            ("missing values", "0 after normalising"),
        ]
    return rows


def _named(config: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every text under `key` of a config, at any depth, and the section that it stands in."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            if name == key and isinstance(value, str):
                yield value, config
            else:
                yield from _named(value, key)
    elif isinstance(config, list):
        for value in config:
            yield from _named(value, key)


def _data(source: Source) -> list[str]:
    from frontier.data.manifest import load_manifest

    recorded = {key: str(value) for key, value in source.record["fixed"].items() if "fingerprint" in key}
    rows, bands = [], []
    folders = [(folder, str(section.get("split", "train"))) for folder, section in _named(source.config, "shards")]
    for folder, split in dict.fromkeys(folders):
        try:
            manifest = load_manifest(folder)
        except UserError:
            rows.append((Path(folder).name, split, UNKNOWN, UNKNOWN, UNKNOWN, "no longer where they were"))
            continue
        same = any(manifest["fingerprint"] in value for value in recorded.values())
        facts = (manifest.get("license") or UNKNOWN, manifest.get("citation") or UNKNOWN)
        state = "as in training" if same else "others than in training lie there now"
        count = manifest["splits"].get(split, {}).get("samples", UNKNOWN)
        rows.append((manifest["name"], split, count, *facts, state))
        # Of several sources every input is read; else the columns that are named.
        columns = (
            None if source.config["data"].get("sources") else {name for name, _ in _named(source.config, "column")}
        )
        for name, image in manifest["images"].items():
            if same and (columns is None or name in columns):
                bands += [
                    (manifest["name"], band["name"], band.get("centre_nm"), band.get("width_nm"), image.get("units"))
                    for band in image["bands"]
                ]
    parts = []
    if rows:
        parts.append(_table(rows, ("shards", "split", "samples", "licence", "citation", "state")))
    if source.config["data"].get("synthetic"):
        parts.append("Random bytes made on the device: the weights mean nothing.")
    if recorded:
        parts.append("\n".join(f"- {key}: `{value}`" for key, value in recorded.items()))
    if bands:
        none = [tuple(UNKNOWN if value is None else value for value in band) for band in bands]
        parts.append(_table(none, ("shards", "band", "centre, nm", "width, nm", "units")))
    return parts or ["Nothing is recorded."]


def _training(source: Source) -> list[tuple[str, Any]]:
    config, record = source.config, source.record
    train, guard = config["train"], record.get("guard", {})
    machines = dict.fromkeys(
        f"{start['world_size']} x {start['device']}"
        for start in _rows(source.run, "starts.jsonl")
        if "world_size" in start and "device" in start
    )
    begun = [("weights to begin with", train["start_from"])] if train.get("start_from") else []
    return [
        ("steps", f"{record['step']:,}"),
        *begun,
        ("samples seen", f"{record['samples']:,}"),
        ("steps left out as not finite or wild", guard.get("skipped", UNKNOWN)),
        ("global batch", train["global_batch"]),
        ("base learning rate, for 256 samples", train["base_lr"]),
        ("weight decay", train["weight_decay"]),
        ("precision", config["parallel"]["precision"]),
        ("seed", config["run"]["seed"]),
        ("ranks and devices", ", ".join(machines) or UNKNOWN),
        ("config hash", record["config_hash"]),
    ]


def _rows(run: Path | None, name: str) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file of the run; none where there is no such file."""
    rows = []
    try:
        lines = [] if run is None else (run / name).read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a run that was killed
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _losses(source: Source) -> list[str]:
    """Mean loss over equal pieces of the training, from metrics.jsonl."""
    last = source.record["step"]
    found = {}
    for row in _rows(source.run, "metrics.jsonl"):
        step, loss = row.get("step"), row.get("loss")
        if isinstance(step, int) and isinstance(loss, float) and math.isfinite(loss) and 1 <= step <= last:
            found[step] = loss
    if not found:
        return ["The losses of the run are not at hand (no metrics.jsonl beside the checkpoint)."]
    edges = [round(i * last / WINDOWS) for i in range(WINDOWS + 1)]
    rows = []
    for low, high in pairwise(edges):
        values = [loss for step, loss in found.items() if low < step <= high]
        if values:
            rows.append((f"{low + 1:,} to {high:,}", f"{sum(values) / len(values):.4f}", len(values)))
    return ["Loss, measured (`metrics.jsonl`):", _table(rows, ("steps", "mean loss", "steps counted"))]


def _probe(source: Source) -> list[str]:
    """The rows of RUN/probe.json that belong to this checkpoint."""
    try:
        rows = [] if source.run is None else json.loads((source.run / "probe.json").read_text())
        rows = [row for row in rows if row.get("checkpoint") == source.checkpoint.name]
        if not rows:
            return []
        from frontier.probe.table import table

        first = rows[0]
        pooled = f", pooling {first['pooling']}" if first.get("pooling") else ", grid of tokens"
        return [
            "## Probe, measured",
            f"Frozen features of this checkpoint on {first['data']}: {first['n_train']} training and {first['n_test']} test "
            f"samples of {first['classes']} classes{pooled}.",
            f"```\n{table(rows)}\n```",
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []
