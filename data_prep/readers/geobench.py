"""GEO-Bench v1.0: six tasks of classification and six of segmentation, with their official splits.

```
GEO_BENCH_DIR/classification_v1.0/m-eurosat/id_0001.hdf5 …         a file a sample
                                            default_partition.json  {"train": [ids], "valid": [ids], "test": [ids]}
                                            0.01x_train_partition.json … 1.00x_train_partition.json
                                            task_specs.pkl, label_map.json   names of the classes; labels again
GEO_BENCH_DIR/segmentation_v1.0/m-nz-cattle/…
```
Columns: "image", and further inputs where a task has other sensors or resolutions (geobench_tasks.py); "label", or "labels"
[classes] of 0 and 1 (m-bigearthnet), or "segmentation" [H, W] with 255 where no class is given. Where any sample has them:
lon, lat, crs_epsg and transform; time_start and time_end, the end not included (the smallest int64, numpy's NaT, where
unknown); cloud_fraction. Where a sample has several dates the inputs are [T, C, H, W], with a mask [T, C] of the bands
that a date has, and "dates" [T] in Unix seconds.

Metadata is pickled in the files; data_prep/safe_pickle.py reads it without running it. The manifest's statistics are
computed from what is written; those in band_stats.json are only compared, and only with `check=band_stats`.
"""

from __future__ import annotations

import datetime
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_prep.readers.geobench_check import SAMPLES, compare_statistics
from data_prep.readers.geobench_file import dataset_name, label_of, open_sample, seconds
from data_prep.readers.geobench_probe import NOT_A_TIME, Found, Job, probe_sample, sample_path
from data_prep.readers.geobench_tasks import (
    ALIASES,
    CITATION,
    FOLDERS,
    HOMEPAGE,
    PARTITIONS,
    TASKS,
    Input,
    TaskFacts,
    inputs_of,
)
from data_prep.readers.registry import Reader, Request, Setting
from data_prep.records import Record, RecordSource, file_token, inputs_digest
from data_prep.safe_pickle import Stub, load
from data_prep.source import ArrayColumn, ImageColumn, Target
from frontier.errors import UserError

MISSING_PIXEL = 255
_SPLITS = {"train": "train", "valid": "val", "test": "test"}
_TREE = "GEO_BENCH_DIR, which holds classification_v1.0/m-eurosat/… and segmentation_v1.0/m-nz-cattle/…"


class GeobenchSource(RecordSource):
    """The samples of one partition of one task. Build it with `open_geobench`."""

    def __init__(
        self,
        request: Request,
        folder: Path,
        task: str,
        inputs: Mapping[str, Input],
        classes: Sequence[str],
        found: Sequence[tuple[str, str, Found]],
        settings: Mapping[str, Any],
        digest: str,
        notes: Mapping[str, Any],
    ) -> None:
        """`found`: (id, split, what its file holds); all agree in their shapes."""
        facts = TASKS[task]
        single = facts.target == "classification"
        super().__init__(
            [
                Record(
                    name.encode("utf-8", "surrogateescape"),
                    (name, probe),
                    probe.label,
                    _group(facts, name),
                    split,
                    probe.lon,
                    probe.lat,
                )
                for name, split, probe in found
            ],
            settings=settings,
            inputs=digest,
            classes=classes if single else (),
            notes=notes,
        )
        self.name = request.name or task
        self.license = request.license or facts.license
        self.citation = request.citation or CITATION
        self.homepage = HOMEPAGE
        self.description = f"GEO-Bench v1.0, {task}, partition {settings['partition']}"
        self._folder, self._inputs_of, self._count = folder, dict(inputs), len(classes)
        self._ignored = facts.no_data if settings["no_data"] == "ignore" else None
        probes = [probe for *_, probe in found]
        self._steps = max(len(probe.dates) for probe in probes)
        self.images = {
            column: _image_column(column, given, probes[0].shapes[at], {p.dtypes[at] for p in probes}, self._steps)
            for at, (column, given) in enumerate(inputs.items())
        }
        self.arrays = self._arrays(facts, classes, probes)
        self.columns = {"gsd_m": "float32"} | self._known_columns(probes)
        self.targets = {
            _target_name(facts): Target(
                facts.target, _target_name(facts), tuple(classes), None, _missing(facts), facts.metric
            )
        }

    def _arrays(self, facts: TaskFacts, classes: Sequence[str], probes: list[Found]) -> dict[str, ArrayColumn]:
        out: dict[str, ArrayColumn] = {}
        if facts.target == "multilabel":
            out["labels"] = ArrayColumn((len(classes),), "uint8", "K", "target", tuple(classes))
        if facts.target == "segmentation":
            out["segmentation"] = ArrayColumn(probes[0].shapes[0], "uint8", "HW", "target")
        if self._steps > 1:
            for column, spec in self.images.items():
                out[f"{column}_mask"] = ArrayColumn((self._steps, len(spec.bands)), "uint8", "TC", "mask")
            out["dates"] = ArrayColumn((self._steps,), "int64", "T", "other", units="Unix seconds")
        if any(math.isfinite(probe.transform[0]) for probe in probes):
            out["transform"] = ArrayColumn((6,), "float64", "K", "other", tuple("abcdef"))
        return out

    @staticmethod
    def _known_columns(probes: list[Found]) -> dict[str, str]:
        out: dict[str, str] = {}
        if any(math.isfinite(probe.lon) for probe in probes):
            out |= {"lon": "float64", "lat": "float64"}
        if any(probe.epsg for probe in probes):
            out["crs_epsg"] = "int32"
        if any(probe.span[0] != NOT_A_TIME for probe in probes):
            out |= {"time_start": "int64", "time_end": "int64"}
        if any(math.isfinite(probe.cloud) for probe in probes):
            out["cloud_fraction"] = "float32"
        return out

    def load_one(self, record: Record) -> dict[str, Any]:
        name, probe = record.payload
        path = sample_path(self._folder, name)
        if not path.is_file() or file_token(path) != probe.token:
            raise UserError(f"{path}: changed while it was read: run the same command again")
        out: dict[str, Any] = {
            "gsd_m": next(iter(self._inputs_of.values())).gsd_m,
            "lon": probe.lon,
            "lat": probe.lat,
            "crs_epsg": probe.epsg,
            "transform": np.array(probe.transform),
            "time_start": probe.span[0],
            "time_end": probe.span[1],
            "cloud_fraction": probe.cloud,
            "labels": np.array(probe.labels, np.uint8),
        }
        with open_sample(path) as (_, datasets):
            for column, given in self._inputs_of.items():
                out[column], out[f"{column}_mask"] = self._read_input(datasets, column, given, probe.dates)
            if "segmentation" in self.arrays:
                out["segmentation"] = self._read_label(datasets, path)
        dates = [seconds(datetime.date.fromisoformat(date)) if date else NOT_A_TIME for date in probe.dates]
        out["dates"] = np.array(dates + [NOT_A_TIME] * (self._steps - len(dates)), np.int64)
        return out

    def _read_input(
        self, datasets: Mapping[str, h5py.Dataset], column: str, given: Input, dates: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The values of one input, of its column's shape, and the mask [T, C] of the bands that are there."""
        spec = self.images[column]
        height, width = spec.shape[-2:]
        values = np.zeros((self._steps, len(spec.bands), height, width), spec.dtype)
        there = np.zeros((self._steps, len(spec.bands)), np.uint8)
        for step, date in enumerate(dates):
            for place, (band, _) in enumerate(given.bands):
                name = dataset_name(band, date)
                if name in datasets:
                    planes = datasets[name][()].reshape(height, width, given.planes)
                    # `planes` is above 1 only where it is the one dataset of its input.
                    values[step, place : place + given.planes] = np.moveaxis(planes, 2, 0)
                    there[step, place : place + given.planes] = 1
        return (values if self._steps > 1 else values[0]), there

    def _read_label(self, datasets: Mapping[str, h5py.Dataset], path: Path) -> np.ndarray:
        """Class of every pixel, 255 where none is given: stored as 255 or below 0, or as the class to be ignored."""
        label = label_of(datasets)
        assert label is not None  # probing has seen it
        stored = label[()]
        with np.errstate(invalid="ignore"):  # not a number is not whole
            found = stored.astype(np.int64).reshape(stored.shape[:2])
        if stored.dtype.kind == "f" and not np.array_equal(found, stored.reshape(found.shape)):
            raise UserError(f"{path}: its label holds numbers that are not whole: fetch it again")
        known = (found >= 0) & (found < self._count)
        foreign = np.unique(found[~known & (found >= 0) & (found != MISSING_PIXEL)])
        if len(foreign):
            raise UserError(
                f"{path}: its label holds {', '.join(map(str, foreign[:5]))}, of {self._count} classes: fetch it again"
            )
        if self._ignored is not None:
            known &= found != self._ignored
        return np.where(known, found, MISSING_PIXEL).astype(np.uint8)


def _image_column(column: str, given: Input, shape: tuple[int, int], dtypes: set[str], steps: int) -> ImageColumn:
    bands = tuple(band for _, band in given.bands)
    if given.planes > 1:
        bands = tuple(replace(bands[0], name=f"{bands[0].name}_{number:03d}") for number in range(given.planes))
    return ImageColumn(
        (*((steps,) if steps > 1 else ()), len(bands), *shape),
        np.result_type(*sorted(dtypes)).name,
        bands,
        given.gsd_m,
        None,
        given.units,
        given.scale,
        axes="TCHW" if steps > 1 else "CHW",
        mask=f"{column}_mask" if steps > 1 else None,
        sensor=given.sensor,
    )


def _target_name(facts: TaskFacts) -> str:
    return {"classification": "label", "multilabel": "labels", "segmentation": "segmentation"}[facts.target]


def _missing(facts: TaskFacts) -> int | None:
    return {"classification": -1, "segmentation": MISSING_PIXEL}.get(facts.target)


def _group(facts: TaskFacts, name: str) -> bytes:
    """Samples of one place, where ids tell it; b"" else."""
    match = re.fullmatch(facts.group, name) if facts.group else None
    return b"place:" + match.group(1).encode("utf-8", "surrogateescape") if match else b""


def open_geobench(request: Request) -> GeobenchSource:
    """Look through every sample of a partition. Raises `UserError` for what is missing, wrong or refused."""
    folder, task = find_task(request)
    facts = TASKS[task]
    partition, ignore = request.settings["partition"], request.settings["no_data"] == "ignore"
    if ignore and facts.no_data is None:
        raise UserError(f"--set no_data=ignore: has no effect with {task}, which has no class for missing data")
    splits = read_partition(folder, partition)
    fixed = request.settings["band_fix"] == "yes"
    inputs = inputs_of(task, fixed)
    classes, named = class_names(folder, facts)
    job = Job(folder, task, inputs, fixed and bool(facts.as_named), len(classes))
    outcomes = request.map(partial(probe_sample, job), list(splits))
    mapped = read_label_map(folder, classes) if facts.target == "classification" else {}
    bad: list[tuple[str, str]] = []
    good: list[tuple[str, str, Found]] = []
    for (name, split), outcome in zip(splits.items(), outcomes, strict=True):
        reason = outcome if isinstance(outcome, str) else _disagrees(outcome, mapped.get(name))
        if isinstance(outcome, str) or reason:
            bad.append((f"{name}.hdf5", reason))
        else:
            good.append((name, split, outcome))
    common = Counter(probe.shapes for *_, probe in good).most_common(1)
    for name, _, probe in good:
        if probe.shapes != common[0][0]:
            bad.append((f"{name}.hdf5", f"is {probe.shapes[0]} pixels, most are {common[0][0][0]}"))
    good = [entry for entry in good if entry[2].shapes == common[0][0]]
    notes = request.settle(bad, len(splits), "samples")
    if request.settings["check"] == "band_stats":
        training = [name for name, split, _ in good if split == "train"]
        notes |= compare_statistics(folder, training or [name for name, *_ in good], request.map)
    files = [f"{partition}_partition.json", "task_specs.pkl", "label_map.json"]
    tokens = [(file, file_token(folder / file)) for file in files if (folder / file).is_file()]
    tokens += [(f"{name}.hdf5", probe.token) for name, _, probe in good]
    return GeobenchSource(
        request,
        folder,
        task,
        inputs,
        classes,
        good,
        {"kind": "geobench", "task": task, **{k: request.settings[k] for k in ("partition", "band_fix", "no_data")}},
        inputs_digest(tokens),
        notes | {"class_names": named} | _notes(folder, task, partition, splits, good),
    )


def find_task(request: Request) -> tuple[Path, str]:
    """The task's folder and name: `request.path` is that folder, the benchmark's or GEO_BENCH_DIR."""
    request.need(kind="folder")
    asked = request.settings["task"]
    task = ALIASES.get(asked, asked)
    own = request.path.resolve().name
    if any(request.path.glob("*_partition.json")):
        task = task or ALIASES.get(own, own)
        if task not in TASKS:
            raise UserError(f"{request.path}: no task of GEO-Bench v1.0 is called {own!r}: pass --set task=NAME")
        return request.path, task
    names = {name: (name, *facts.aliases) for name, facts in TASKS.items()}
    there = {
        name: place
        for name, spelt in names.items()
        for part in (FOLDERS[TASKS[name].kind], ".")
        for one in spelt
        if (place := request.path / part / one).is_dir()
    }
    if not task:
        found = f"there are {', '.join(there)}" if there else request.reader.expects
        raise UserError(f"reader geobench: {request.path}: which task? pass --set task=NAME: {found}")
    return there.get(task) or request.need(FOLDERS[TASKS[task].kind], task, kind="folder"), task


def read_partition(folder: Path, partition: str) -> dict[str, str]:
    """Split (train, val, test) by sample id, in the file's order. Raises `UserError`."""
    path = folder / f"{partition}_partition.json"
    if "/" in partition or not path.is_file():
        there = sorted(file.name.removesuffix("_partition.json") for file in folder.glob("*_partition.json"))
        raise UserError(
            f"--set partition={partition}: no {path.name} in {folder}: there are {', '.join(there) or 'none'}: "
            "choose one, or unzip the task again"
        )
    given = _read_json(path)
    if not isinstance(given, dict) or not given or not set(given) <= set(_SPLITS):
        raise UserError(f"{path}: not a partition of train, valid and test: fetch it again")
    out: dict[str, str] = {}
    for split, names in given.items():
        if not isinstance(names, list):
            raise UserError(f"{path}: {split} is not a list of sample ids: fetch it again")
        for name in names:
            # An id becomes a file's name: it must not lead out of the folder.
            if not isinstance(name, str) or not name or any(bad in name for bad in "/\\\0\n"):
                shown = repr(name[:80]) if isinstance(name, str) else f"a {type(name).__name__}"
                raise UserError(f"{path}: {shown} cannot be a sample's id: fetch it again")
            if name in out:
                raise UserError(f"{path}: sample {name!r} is listed twice: fetch it again")
            out[name] = _SPLITS[split]
    if not out:
        raise UserError(f"{path}: lists no samples: fetch it again")
    return out


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}): fetch it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): mend the access rights") from None


def class_names(folder: Path, facts: TaskFacts) -> tuple[tuple[str, ...], str]:
    """Names of the classes, and where they are from: task_specs.pkl, else the table, else numbers."""
    path = folder / "task_specs.pkl"
    count = facts.count
    if path.is_file():
        specs = load(path.read_bytes(), str(path)) if path.stat().st_size <= 1 << 24 else None
        kind = specs.get("label_type") if isinstance(specs, Stub) else None
        if not isinstance(kind, Stub):
            raise UserError(f"{path}: holds no task specifications with a type of label: fetch it again")
        told = kind.get("n_classes")
        names = kind.get("_class_names") or kind.get("class_name")
        if type(told) is not int or not 2 <= told <= MISSING_PIXEL:
            raise UserError(f"{path}: its number of classes is not one of 2 to {MISSING_PIXEL}: fetch it again")
        count = told
        if isinstance(names, (list, tuple)) and len(names) == count and all(isinstance(n, str) for n in names):
            return tuple(names), path.name
    if not isinstance(facts.classes, int) and len(facts.classes) == count:
        return facts.classes, "published list"
    return tuple(f"class {number}" for number in range(count)), "none published"


def read_label_map(folder: Path, classes: Sequence[str]) -> dict[str, int]:
    """Class by sample id as label_map.json has it ({class number or name: [ids]}); empty where there is none."""
    path = folder / "label_map.json"
    if not path.is_file():
        return {}
    given = _read_json(path)
    if not isinstance(given, dict):
        raise UserError(f"{path}: not a list of samples by class: fetch it again")
    number = {name: index for index, name in enumerate(classes)} | {str(n): n for n in range(len(classes))}
    out: dict[str, int] = {}
    for key, names in given.items():
        if key not in number:
            raise UserError(f"{path}: {key!r:.60} is none of the {len(classes)} classes: fetch it again")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{path}: {key!r:.60} is not a list of sample ids: fetch it again")
        out |= dict.fromkeys(names, number[key])
    return out


def _disagrees(found: Found, mapped: int | None) -> str:
    if mapped is not None and mapped != found.label:
        return f"its label is {found.label}, in label_map.json {mapped}"
    return ""


def _notes(
    folder: Path, task: str, partition: str, splits: dict[str, str], good: list[tuple[str, str, Found]]
) -> dict[str, Any]:
    """How the copy compares with the published one, and what was left unread."""
    facts = TASKS[task]
    listed = Counter(splits.values())
    found = {split: listed[split] for split in _SPLITS.values()}
    expected = dict(zip(_SPLITS.values(), facts.sizes, strict=True))
    share = re.fullmatch(r"(\d\.\d\d)x_train", partition)
    if share:
        expected["train"] = int(expected["train"] * float(share.group(1)))
    groups: dict[bytes, set[str]] = {}
    for name, split, _ in good:
        groups.setdefault(_group(facts, name) or name.encode("utf-8", "surrogateescape"), set()).add(split)
    out: dict[str, Any] = {
        "complete": found == expected if partition in PARTITIONS else None,
        "places_across_given_splits": sum(len(parts) > 1 for parts in groups.values()),
        "samples_without_a_date": sum(probe.span[0] == NOT_A_TIME for *_, probe in good),
        "samples_without_a_place": sum(not math.isfinite(probe.lon) for *_, probe in good),
    }
    if out["complete"] is False:
        out["samples_published"], out["samples_listed"] = expected, found
        out["samples_published_are_verified"] = facts.kind == "classification"
        here, there = (", ".join(f"{n} {split}" for split, n in counts.items()) for counts in (found, expected))
        print(f"{task}, partition {partition}: lists {here} samples; {there} are published", file=sys.stderr)
    pixels = good[0][2].shapes[0]
    if pixels != (facts.pixels, facts.pixels):
        out["pixels_published"], out["pixels_found"] = facts.pixels, list(pixels)
    unread = sorted({band for *_, probe in good for band in probe.unread})
    if unread:
        out["datasets_not_read"] = [name[:80] for name in unread[:20]]
    stray = sum(1 for file in folder.glob("*.hdf5") if file.name.removesuffix(".hdf5") not in splits)
    if stray:
        out["samples_not_in_partition"] = stray
    return out


GEOBENCH = Reader(
    name="geobench",
    summary="GEO-Bench v1.0: 12 tasks of classification and segmentation, official splits",
    expects=f"download the task's zip from huggingface.co/datasets/recursix/geo-bench-1.0 and unzip it under {_TREE}",
    open=open_geobench,
    uses=frozenset({"on_error", "license", "citation"}),
    settings={
        "task": Setting("which task; not needed where PATH is its folder", "", (*TASKS, *ALIASES)),
        "partition": Setting("which of the task's partitions, as 0.01x_train", "default"),
        "band_fix": Setting(
            "mend the band names that are known to be wrong, or keep the files' names", "yes", ("yes", "no")
        ),
        "no_data": Setting(
            "what becomes of a class for missing data: stays a class, or 255", "class", ("class", "ignore")
        ),
        "check": Setting(
            f"band_stats: note how far the bands' means over {SAMPLES} samples are from the published ones",
            "none",
            ("none", "band_stats"),
        ),
    },
    citation=CITATION,
    homepage=HOMEPAGE,
)
READERS = (GEOBENCH,)
