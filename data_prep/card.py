"""The dataset card: a Markdown page after the questions of Datasheets for Datasets (Gebru et al. 2021).

It is a function of the shards alone: no date, machine or path goes into it, and what is not known is said to be so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.contents import contents, spread
from data_prep.croissant import FINGERPRINT, croissant
from data_prep.shard_file import temporary_name
from data_prep.source import AXES
from frontier.data.manifest import full_statistics, load_manifest

CARD, CROISSANT = "README.md", "croissant.json"
CARDS = (CARD, CROISSANT)
UNKNOWN = "not recorded"
MARK = "<!-- made by `frontier shards`: delete this line to keep a text of your own -->"
_PACKING = ("shard_bytes", "samples_per_shard", "compression")
"""Options of writing that matter where splits and order are those of the shards that were repacked."""
_NOTES = {
    "skipped": "inputs left out because they could not be used",
    "duplicates": "samples that are copies of another",
    "duplicates_across_given_splits": "samples whose copies the publisher put into several splits",
    "other_files": "files of other kinds that were passed over",
    "links_not_followed": "links out of the folder that were not followed",
}


def write_cards(directory: str | Path) -> list[Path]:
    """Write README.md and croissant.json into a shard directory, each only where it differs. Returns those written.

    A file of these names that no earlier call wrote is somebody's own and stays.
    """
    directory = Path(directory)
    written = []
    for name, text in zip(CARDS, card_texts(directory), strict=True):
        path = directory / name
        try:
            there = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            there = None
        except UnicodeDecodeError:
            there = ""
        mark = MARK if name == CARD else FINGERPRINT
        if there == text or (there is not None and mark not in there):
            continue
        write_text(path, text)
        written.append(path)
    return written


def card_texts(directory: str | Path) -> tuple[str, str]:
    """(Markdown card, GeoCroissant JSON-LD) of a shard directory."""
    manifest = load_manifest(directory)
    found = contents(directory, manifest)
    described = croissant(manifest, found, sampling=_sampling(manifest, found), gaps=gaps(manifest, found))
    texts = (card(manifest, found), json.dumps(described, indent=1, ensure_ascii=False) + "\n")
    # Names that are not UTF-8 come from the file system as lone surrogates.
    markdown, document = (text.encode("utf-8", "backslashreplace").decode() for text in texts)
    return markdown, document


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically: temporary name, sync, rename."""
    temporary = temporary_name(path)
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def card(manifest: dict[str, Any], found: dict[str, Any]) -> str:
    """The Markdown card; `found` is what `contents` returns."""
    parts = [
        _what(manifest),
        _origin(manifest),
        _splits(manifest),
        *_targets(manifest, found),
        *_inputs(manifest),
        *_arrays(manifest),
        ["## Columns", "", "One value a sample.", "", *_table(("column", "type"), manifest["columns"].items())],
        _extent(found["extent"]),
        _making(manifest, found),
        ["## Known gaps", "", *(f"- {line}" for line in gaps(manifest, found) or [UNKNOWN])],
        [
            "## Not told here",
            "",
            "Why and by whom the data were collected and labelled, consent and personal data, and who keeps them up: "
            + (f"see {manifest['homepage']}." if manifest.get("homepage") else f"{UNKNOWN}."),
        ],
        _loading(manifest),
        [MARK],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def gaps(manifest: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What is known to be missing, one line each; empty where nothing is known either way."""
    notes = manifest.get("notes") or {}
    lines = []
    for key, value in notes.items():
        if value or key == "skipped":
            lines.append(f"{_NOTES.get(key, key.replace('_', ' '))}: {_value(value)}")
    for name, splits in found["targets"].items():
        counts = [counted for counted in splits.values() if counted is not None]
        missing = sum(counted["missing"] for counted in counts)
        if missing:
            total = missing + sum(counted["labelled"] for counted in counts)
            lines.append(f"target {name}: {missing:,} of {total:,} labels are missing")
    where = found["extent"]
    if where["box"] and where["placed"] < where["samples"]:
        lines.append(f"{where['samples'] - where['placed']:,} of {where['samples']:,} samples have no place")
    if where["time"] and where["dated"] < where["samples"]:
        lines.append(f"{where['samples'] - where['dated']:,} of {where['samples']:,} samples have no time")
    return lines


def _what(manifest: dict[str, Any]) -> list[str]:
    total = sum(shard["bytes"] for shard in manifest["shards"])
    return [
        f"# {_cell(manifest['name'])}",
        "",
        *([str(manifest["description"]), ""] if manifest.get("description") else []),
        f"{manifest['samples']:,} samples in {len(manifest['shards']):,} HDF5 shards ({total / (1 << 20):,.1f} MiB), "
        f"schema `{manifest['schema']}`. A sample is {_and(manifest['images'])}"
        + (f" with {_and(manifest['arrays'])}" if manifest["arrays"] else "")
        + f", and {len(manifest['columns'])} values.",
    ]


def _origin(manifest: dict[str, Any]) -> list[str]:
    return [
        "## Where it is from",
        "",
        f"- Homepage: {_cell(manifest.get('homepage') or UNKNOWN)}",
        f"- Licence: {_cell(manifest.get('license') or UNKNOWN)}",
        f"- Citation: {_cell(manifest.get('citation') or UNKNOWN)}",
        f"- Written by: {manifest.get('created_by') or UNKNOWN}",
        f"- Fingerprint: `{manifest['fingerprint']}`",
    ]


def _splits(manifest: dict[str, Any]) -> list[str]:
    rows = [
        (name, f"{split['samples']:,}", f"{split['samples'] / manifest['samples']:.1%}", f"{len(split['shards']):,}")
        for name, split in manifest["splits"].items()
    ]
    return ["## Splits", "", *_table(("split", "samples", "share", "shards"), rows)]


def _targets(manifest: dict[str, Any], found: dict[str, Any]) -> list[list[str]]:
    out = []
    for name, target in manifest["targets"].items():
        missing = "none" if target["missing"] is None else f"`{target['missing']}`"
        lines = [
            f"## Target: {name}",
            "",
            f"{target['kind'].capitalize()}, column `{target['column']}`, units: {target['units'] or UNKNOWN}, "
            f"marker of a missing label: {missing}, metric: {target['metric'] or UNKNOWN}.",
            "",
        ]
        splits = {split: counts for split, counts in found["targets"][name].items() if counts is not None}
        if not splits:
            lines.append("Labels by split: not counted.")
        elif target["kind"] == "regression":
            keys = ("labelled", "missing", "mean", "min", "max")
            lines += _table(("split", *keys), [(s, *(_number(c[key]) for key in keys)) for s, c in splits.items()])
        else:
            what = {"segmentation": "pixels", "multilabel": "samples that have it"}.get(target["kind"], "samples")
            rows = [
                (label, *(f"{c['classes'][k]:,}" for c in splits.values())) for k, label in enumerate(target["classes"])
            ]
            rows.append(("(missing)", *(f"{c['missing']:,}" for c in splits.values())))
            lines += _table((f"class ({what})", *splits), rows)
        out.append(lines)
    return out


def _inputs(manifest: dict[str, Any]) -> list[list[str]]:
    out = []
    for name, spec in manifest["images"].items():
        gsd = f"{_number(spec['gsd_m'])} m" if spec.get("gsd_m") else UNKNOWN
        nodata = "none" if spec.get("nodata") is None else f"`{spec['nodata']:g}`"
        mask = f"`{spec['mask']}` (1 = valid)" if spec.get("mask") else "none"
        stored = ", ".join(spec.get("filters") or ["uncompressed"])
        found = full_statistics(spec)
        lines = [
            f"## Input: {name}",
            "",
            f"- Sensor: {spec.get('sensor') or UNKNOWN}",
            f"- Stored: {spec['dtype']} {_shape(spec)}, {spec.get('layout') or 'layout ' + UNKNOWN} ({stored})",
            f"- Ground sampling distance: {gsd}",
            f"- Units: {spec.get('units') or UNKNOWN}; physical value = stored x {_number(spec.get('scale', 1))} + "
            f"{_number(spec.get('offset', 0))}",
            f"- No data: {nodata}; mask: {mask}",
            "",
            "Statistics are of the train split, as stored, without what is missing."
            if found
            else "No statistics, for want of a train split.",
            "",
        ]
        keys = ("mean", "std", "min", "max")
        rows = []
        for k, band in enumerate(spec["bands"]):
            light = [_number(band.get(key)) if band.get(key) else UNKNOWN for key in ("centre_nm", "width_nm")]
            numbers = [_number(found[key][k]) for key in keys] if found else ["-"] * len(keys)
            rows.append((band["name"], *light, band.get("common_name") or UNKNOWN, *numbers))
        lines += _table(("band", "centre (nm)", "width (nm)", "common name", *keys), rows)
        percentiles = (found or {}).get("percentiles")
        if percentiles:
            rows = [(b["name"], *(_number(v[k]) for v in percentiles.values())) for k, b in enumerate(spec["bands"])]
            lines += ["", *_table(("percentile", *percentiles), rows)]
        out.append(lines)
    return out


def _arrays(manifest: dict[str, Any]) -> list[list[str]]:
    if not manifest["arrays"]:
        return []
    masked: dict[str, list[str]] = {}
    for name, spec in manifest["images"].items():
        if spec["mask"] is not None:
            masked.setdefault(spec["mask"], []).append(name)
    rows = [
        (
            name,
            str(spec.get("role")) + (f" of {', '.join(masked[name])}" if name in masked else ""),
            f"{spec['dtype']} {_shape(spec)}",
            spec.get("units") or UNKNOWN,
            ", ".join(spec.get("names") or []) or "-",
        )
        for name, spec in manifest["arrays"].items()
    ]
    return [["## Masks and other arrays", "", *_table(("array", "role", "stored", "units", "entries"), rows)]]


def _extent(where: dict[str, Any]) -> list[str]:
    box, time, codes, gsd = where["box"], where["time"], where["crs_epsg"], where["gsd_m"]
    lines = ["## Extent", ""]
    if box is None:
        lines.append(f"- Place: {UNKNOWN}")
    else:
        cells = where["cells"]
        lines += [
            f"- Place: longitude {box['west']:g} to {box['east']:g}, latitude {box['south']:g} to {box['north']:g} "
            f"degrees (centres of {where['placed']:,} samples)",
            f"- Spread: {spread(cells)}",
        ]
    lines.append(
        f"- Time: {time['start']} to {time['end']} ({where['dated']:,} samples)" if time else f"- Time: {UNKNOWN}"
    )
    shown = UNKNOWN
    if codes:
        shown = ", ".join(f"EPSG:{code} ({n:,})" for code, n in list(codes.items())[:20])
        shown += f" and {len(codes) - 20} more" if len(codes) > 20 else ""
    lines.append(f"- Coordinate reference systems: {shown}")
    sizes = UNKNOWN if gsd is None else f"{_number(gsd['min'])} m"
    if gsd is not None and gsd["min"] != gsd["max"]:
        sizes = f"{_number(gsd['min'])} to {_number(gsd['max'])} m"
    return [*lines, f"- Ground sampling distance, by sample: {sizes}"]


def _making(manifest: dict[str, Any], found: dict[str, Any]) -> list[str]:
    source, steps, options, check = _history(manifest, found)
    lines = ["## How it was made", "", f"Reader: {source.get('kind') or UNKNOWN}."]
    settings = [(key, _value(value)) for key, value in source.items() if key != "kind"]
    if settings:
        lines += ["", *_table(("setting", "value"), settings)]
    lines += ["", f"Splits: {_split_text(options)}.", *(f"\n{step}" for step in steps)]
    effective = found["options"] or {}
    if steps and manifest["source"].get("splits") == "keep" and manifest["source"].get("order") == "keep":
        effective = {key: value for key, value in effective.items() if key in _PACKING}
    if effective:
        lines += ["", *_table(("option of writing", "value"), [(k, _value(v)) for k, v in effective.items()])]
    lines += ["", "Check for leaks between splits" + (":" if check else f": {UNKNOWN}.")]
    if check:
        lines.append("")
        for key, value in check.items():
            if isinstance(value, dict):
                lines += [f"- {name}: {_told(one)}" for name, one in value.items()]
            else:
                lines.append(f"- {key.replace('_', ' ')}: {_value(value)}")
    return lines


def _told(found: Any) -> str:
    if not isinstance(found, dict):
        return _value(found)
    return ", ".join(f"{key.replace('_', ' ')} {_value(value)}" for key, value in found.items())


def _history(manifest: dict[str, Any], found: dict[str, Any]) -> tuple[dict[str, Any], list[str], Any, Any]:
    """(the first source's settings, repackings since, options that made the splits, check of the splits)."""
    source, options, check = manifest.get("source") or {}, found["options"], manifest.get("split_check")
    steps = []
    while source.get("kind") == "shards" and isinstance(source.get("input"), dict):
        before = source["input"]
        steps.append(
            f"Repacked from shards {before.get('name')}, fingerprint `{source.get('fingerprint')}`: columns "
            f"{', '.join(source.get('columns') or [])}; splits: {source.get('splits')}; order: {source.get('order')}."
        )
        if source.get("splits") == "keep":
            options, check = before.get("options"), before.get("split_check") or check
        source = before.get("source") or {}
    return source, steps[::-1], options, check


def _split_text(options: dict[str, Any] | None) -> str:
    if not options:
        return UNKNOWN
    by = {"place": "by whole blocks of ground", "class": "class by class"}
    how = options.get("split_by") or "class"
    return (
        f"those that the source gives are kept; the other samples are drawn {by.get(how, how)}, val "
        f"{_value(options.get('val_fraction'))}, test {_value(options.get('test_fraction'))}, seed "
        f"{_value(options.get('seed'))}; samples of one group stay together"
    )


def _sampling(manifest: dict[str, Any], found: dict[str, Any]) -> str:
    """How the samples were selected and built, in one paragraph."""
    source, steps, options, _ = _history(manifest, found)
    settings = ", ".join(f"{key} {_value(value)}" for key, value in source.items() if key != "kind")
    told = f"Reader: {source.get('kind') or UNKNOWN}" + (f" ({settings})" if settings else "")
    return " ".join([f"{told}. Splits: {_split_text(options)}.", *steps])


def _loading(manifest: dict[str, Any]) -> list[str]:
    split = next(iter(manifest["splits"]))
    count = min(8, manifest["splits"][split]["samples"])
    lines = [
        "## How to load it",
        "",
        "```python",
        "from frontier.data.shards import ShardSet",
        "",
        f'samples = ShardSet(".", split="{split}")  # the folder that holds this file',
    ]
    stored = list(manifest["images"].items())[:1] + [
        (name, spec) for name, spec in manifest["arrays"].items() if spec.get("role") == "target"
    ]
    for name, spec in stored:
        shape = ", ".join(map(str, [count, *spec["shape"]]))
        lines.append(f'{_variable(name)} = samples.read("{name}", 0, {count})  # {spec["dtype"]} [{shape}]')
    wanted = {target["column"] for target in manifest["targets"].values()} & manifest["columns"].keys()
    lines += [f'{_variable(name)} = samples.column("{name}")[:{count}]' for name in sorted(wanted)]
    for name, spec in list(manifest["images"].items())[:1]:
        if spec.get("statistics"):
            lines.append(f'mean, std = samples.statistics("{name}")  # of the train split, by band')
    return [*lines, "```", "", "Or with h5py alone: each shard is a flat HDF5 file with one dataset a column."]


def _variable(name: str) -> str:
    return name if name.isidentifier() and name not in ("samples", "mean", "std") else "values"


def _shape(spec: dict[str, Any]) -> str:
    named = [f"{AXES.get(axis, axis)} {size}" for axis, size in zip(spec["axes"], spec["shape"], strict=True)]
    return f"[{', '.join(named)}]"


def _and(names: Any) -> str:
    shown = [f"`{name}`" for name in names]
    return "".join(shown) if len(shown) < 2 else ", ".join(shown[:-1]) + f" and {shown[-1]}"


def _number(value: Any) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _value(value: Any) -> str:
    """A setting's value: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|") or "-"


def _table(head: Sequence[str], rows: Any) -> list[str]:
    lines = [f"| {' | '.join(map(_cell, head))} |", "|" + "---|" * len(head)]
    return lines + [f"| {' | '.join(map(_cell, row))} |" for row in rows]
