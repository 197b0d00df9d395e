"""Tar shards in the WebDataset convention: members key.ext, those of one key one after another are a sample.

```
train-000000.tar   a/0001.jpg a/0001.cls a/0001.json a/0002.jpg …
```
The key is the name up to the first dot after the last slash, the rest is the part's name. Shards are taken in the
order of their names' bytes, samples in the order of the shard; an id is SHARD/KEY. Each shard's headers are read
once; then members are read by offset.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tokenize
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import array_input
from data_prep.array_input import class_numbers, input_column, named_bands, parse_axes, to_sample, unusable
from data_prep.folder import SPLIT_NAMES, check_size, picture_column
from data_prep.images import Probe, decode, load_image, probe_bytes
from data_prep.listing import files_below
from data_prep.readers.registry import Reader, Request, Setting
from data_prep.records import Record, RecordSource, inputs_digest
from data_prep.small_geotiff import decode_chip, rasterio_or_error
from data_prep.source import ImageColumn, Source
from data_prep.tar_index import Member, list_members, read_member
from frontier.errors import UserError

_DAMAGED = (ValueError, EOFError, OSError, OverflowError, TypeError, SyntaxError, tokenize.TokenError, MemoryError)
"""What the damaged header of a .npy ends in."""
_PICTURES = ("jpg", "jpeg", "png", "tif", "tiff")
_ENDINGS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")


@dataclass(frozen=True)
class Parts:
    """One sample of a shard: its key, and the members of its parts by name in lower case."""

    key: str
    members: Mapping[str, Member]
    error: str = ""


@dataclass(frozen=True)
class Shard:
    """What the headers of a tar show; `error` where it is no use."""

    samples: tuple[Parts, ...] = ()
    unnamed: int = 0
    special: int = 0
    error: str = ""


@dataclass(frozen=True)
class How:
    """How samples are to be read: the part of the image and its axes (pictures: ""), the label's part and JSON key."""

    image: str
    axes: str
    bands: int | None
    label: str
    label_key: str
    lon: str
    lat: str
    least: int


@dataclass(frozen=True)
class Seen:
    """What reading one sample showed; or why it cannot be used."""

    picture: Probe = field(default_factory=Probe)
    shape: tuple[int, ...] = ()
    dtype: str = ""
    sha256: str = ""
    label: int | str | None = None
    lon: float = float("nan")
    lat: float = float("nan")
    error: str = ""


def index_shard(path: str, unended: bool = False) -> Shard:
    """The samples of one tar; `unended` as in `list_members`."""
    try:
        members, special = list_members(path, unended)
    except UserError as error:
        return Shard(error=str(error))
    samples: dict[str, dict[str, Member]] = {}
    errors: dict[str, str] = {}
    unnamed = 0
    last = ""
    for member in members:
        folder, _, name = member.name.removeprefix("./").rpartition("/")
        base, dot, part = name.partition(".")
        if not dot or not base or not part:
            # Hidden files, and names without an ending, are no part of a sample.
            unnamed += 1
            continue
        key = f"{folder}/{base}" if folder else base
        parts = samples.setdefault(key, {})
        part = part.lower()
        if part in parts:
            errors.setdefault(key, f"has two parts .{part}")
        elif parts and key != last:
            errors.setdefault(key, "occurs again later in the shard: its parts must follow each other")
        parts.setdefault(part, member)
        last = key
    return Shard(tuple(Parts(key, parts, errors.get(key, "")) for key, parts in samples.items()), unnamed, special)


def look(task: tuple[str, Parts, How]) -> Seen:
    """Read and decode one sample."""
    path, parts, how = task
    try:
        member = parts.members[how.image]
        data = read_member(path, member.offset, member.size)
        label = _label(path, parts, how)
        lon, lat = (_place(path, parts, key, limit) for key, limit in ((how.lon, 180), (how.lat, 90)))
        digest = hashlib.sha256(data).hexdigest()
        if not how.axes:
            found = probe_bytes(data, how.least)
            return Seen(found, sha256=digest, label=label, lon=lon, lat=lat, error=found.error)
        array = decode_array(data, how.image)
    except UserError as error:
        return Seen(error=str(error))
    error_text = unusable(array.shape, array.dtype, how.axes, how.bands)
    return Seen(Probe(), array.shape, array.dtype.str, digest, label, lon, lat, error_text)


def decode_array(data: bytes, part: str) -> np.ndarray:
    """The array of a .npy, or the bands [C, H, W] of a GeoTIFF. Raises `UserError`."""
    if not _is_npy(part):
        return decode_chip(data).pixels
    if not data.startswith(b"\x93NUMPY"):
        raise UserError("is not in the .npy format")
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except _DAMAGED as error:
        if "allow_pickle" in str(error):
            raise UserError("holds Python objects, which are never unpickled") from None
        raise UserError(f"does not decode as .npy: {(str(error) or 'damaged').splitlines()[0]}") from None


def _is_npy(part: str) -> bool:
    return part.rpartition(".")[2] == "npy"


def _label(path: str, parts: Parts, how: How) -> int | str | None:
    """The label as it is written: a number, a name, or None for JSON's null."""
    if not how.label:
        return None
    text = _text(path, parts, how.label)
    if not how.label_key:
        if not text.strip():
            raise UserError(f".{how.label} is empty")
        return text.strip()
    value = _json(text, how.label, how.label_key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | str)):
        raise UserError(
            f"{how.label_key} in .{how.label} is {json.dumps(value)[:40]}, a whole number or a name is expected"
        )
    return value


def _place(path: str, parts: Parts, key: str, limit: float) -> float:
    if not key:
        return float("nan")
    if "json" not in parts.members:
        raise UserError("has no .json")
    value = _json(_text(path, parts, "json"), "json", key)
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= limit:
        raise UserError(f"{key} in .json is {json.dumps(value)[:40]}, degrees are expected")
    return float(value)


def _text(path: str, parts: Parts, part: str) -> str:
    member = parts.members[part]
    try:
        return read_member(path, member.offset, member.size).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f".{part} is not UTF-8 text") from None


def _json(text: str, part: str, key: str) -> Any:
    """The value at `key`, whose dots go into objects in objects."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f".{part} is not JSON") from None
    for name in key.split("."):
        if not isinstance(value, dict) or name not in value:
            raise UserError(f".{part} has no {key}")
        value = value[name]
    return value


class TarSource(RecordSource):
    """Records of members; the payload is (shard, offset, size, sha256)."""

    def __init__(
        self, request: Request, root: Path, how: How, column: ImageColumn, records: list[Record], **more: Any
    ) -> None:
        super().__init__(records, **more)
        self.root, self._how, self._fit = root, how, request.fit
        self.name = request.name or request.path.resolve().name
        self.license, self.citation = request.license, request.citation
        self.images = {"image": column}
        if how.lon:
            self.columns = {"lon": "float64", "lat": "float64"}

    def load_one(self, record: Record) -> dict[str, Any]:
        shard, offset, size, sha256 = record.payload
        path = str(self.root / shard)
        data = read_member(path, offset, size)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise UserError(f"{path}: changed while it was read: run the same command again")
        column = self.images["image"]
        if self._how.axes:
            image = to_sample(decode_array(data, self._how.image), self._how.axes)
        else:
            bands, height, width = column.shape
            image = load_image(decode(data), (bands, height, width), self._fit, column.dtype == "uint16")
        return {"image": image, "lon": record.lon, "lat": record.lat}


def open_webdataset(request: Request) -> Source:
    """Index every shard, then read every sample once. Raises `UserError`."""
    request.need()
    check_size(request)
    root, names = _shards(request)
    index = partial(index_shard, unended=request.settings["unended"] == "take")
    shards = request.map(index, [str(root / name) for name in names], costly=True)
    bad = [(name, shard.error) for name, shard in zip(names, shards, strict=True) if shard.error]
    samples = [(name, parts) for name, shard in zip(names, shards, strict=True) for parts in shard.samples]
    if not samples:
        if bad:
            request.settle(bad, len(bad), "shards")
        raise UserError(
            f"reader {request.reader.name}: {request.path}: no samples in the shards: {request.reader.expects}"
        )
    how = _how(request, [parts for _, parts in samples])
    wanted = [part for part in (how.image, how.label, "json" if how.lon else "") if part]
    errors: dict[int, str] = {}
    for row, (_, parts) in enumerate(samples):
        missing = [f".{part}" for part in wanted if part not in parts.members]
        error = parts.error or (f"has no {' and no '.join(missing)}" if missing else "")
        if error:
            errors[row] = error
    good = [row for row in range(len(samples)) if row not in errors]
    looked = request.map(look, [(str(root / samples[row][0]), samples[row][1], how) for row in good])
    seen = dict(zip(good, looked, strict=True))
    errors |= {row: found.error for row, found in seen.items() if found.error}
    kinds = Counter((found.shape, found.dtype) for found in seen.values() if not found.error)
    kind = kinds.most_common(1)[0][0] if kinds else ((), "")
    for row, found in seen.items():
        if not found.error and (found.shape, found.dtype) != kind:
            errors[row] = f"{found.shape} {np.dtype(found.dtype)}, most are {kind[0]} {np.dtype(kind[1])}"
    good = [row for row in good if row not in errors]
    labels, classes = class_numbers([seen[row].label for row in good], request.settings["classes"])
    errors |= {row: label for row, label in zip(good, labels, strict=True) if isinstance(label, str)}
    numbers = {row: label for row, label in zip(good, labels, strict=True) if isinstance(label, int)}
    bad += [("/".join((samples[row][0], samples[row][1].key)), errors[row]) for row in sorted(errors)]
    notes = request.settle(bad, len(samples) + sum(bool(shard.error) for shard in shards), "samples")
    good = list(numbers)
    splits = _splits(names) if request.settings["splits"] == "auto" else {}
    records = []
    for row in good:
        name, parts = samples[row]
        found, member = seen[row], parts.members[how.image]
        records.append(
            Record(
                os.fsencode(f"{name}/{parts.key}"),
                (name, member.offset, member.size, found.sha256),
                numbers[row],
                bytes.fromhex(found.sha256),
                splits.get(name, ""),
                found.lon,
                found.lat,
            )
        )
    copies = Counter(record.group for record in records)
    keys = Counter(samples[row][1].key for row in good)
    notes |= {
        "shards": len(names) - sum(bool(shard.error) for shard in shards),
        "duplicates": copies.total() - len(copies),
        "keys_in_several_shards": sum(count > 1 for count in keys.values()),
        "members_without_ending": sum(shard.unnamed for shard in shards),
        "links_not_followed": sum(shard.special for shard in shards),
    }
    return TarSource(
        request,
        root,
        how,
        _column(request, how, kind, [seen[row].picture for row in good]),
        records,
        settings=_described(request, how, records),
        inputs=inputs_digest((os.fsdecode(record.id), record.group) for record in records),
        classes=classes if how.label else (),
        notes=notes,
    )


def _described(request: Request, how: How, records: Sequence[Record]) -> dict[str, Any]:
    """What the samples depend on besides their images' bytes."""
    values = json.dumps([(record.label, repr(record.lon), repr(record.lat)) for record in records])
    return {
        "kind": request.reader.name,
        "image": how.image,
        "axes": how.axes,
        "image_size": request.image_size,
        "fit": request.fit,
        "channels": request.channels,
        "labels_sha256": hashlib.sha256(values.encode()).hexdigest(),
    }


def _column(request: Request, how: How, kind: tuple[tuple[int, ...], str], pictures: Sequence[Probe]) -> ImageColumn:
    if not how.axes:
        return picture_column(request, pictures)
    return input_column(request.settings, kind[0], how.axes, np.dtype(kind[1]), request.gsd_m)


def _shards(request: Request) -> tuple[Path, list[str]]:
    """The folder, and the tar files in it by name; of a single file, its folder and itself."""
    if request.path.is_file():
        root, names = request.path.parent, [request.path.name]
    else:
        root, names = request.path, files_below(request.path, (".tar", *_ENDINGS))
    compressed = [name for name in names if name.lower().endswith(_ENDINGS)]
    if compressed:
        raise UserError(
            f"{root / compressed[0]}: is compressed, so that no sample can be read alone: unpack it to a plain .tar "
            f"first (gunzip for .tar.gz){f'; {len(compressed)} such shards' if len(compressed) > 1 else ''}"
        )
    if not names:
        raise UserError(f"reader {request.reader.name}: {request.path}: no .tar files: {request.reader.expects}")
    return root, names


def _splits(names: Sequence[str]) -> dict[str, str]:
    """Split by shard, where the first word of every shard's path names one: train/x.tar, val-0001.tar."""
    words = {name: name.lower().replace("/", "-").replace("_", "-").replace(".", "-").split("-")[0] for name in names}
    if not all(word in SPLIT_NAMES for word in words.values()):
        return {}
    return {name: SPLIT_NAMES[word] for name, word in words.items()}


def _how(request: Request, samples: Sequence[Parts]) -> How:
    """The choices of the settings, those of "auto" by what parts there are. Raises `UserError`."""
    settings = request.settings
    there = Counter(part for parts in samples for part in parts.members)
    listed = ", ".join(f".{part} ({count})" for part, count in there.most_common(8))
    image = settings["image"].lower().removeprefix(".")
    if image == "auto":
        images = sorted(part for part in there if part.rpartition(".")[2] in (*_PICTURES, "npy"))
        if len(images) != 1:
            found = ", ".join(f".{part}" for part in images) or "none"
            raise UserError(
                f"{request.path}: parts that may be the image: {found} (there are {listed}): choose with --set image=PART"
            )
        image = images[0]
    elif image not in there:
        raise UserError(f"--set image={settings['image']}: no sample has such a part: there are {listed}")
    elif image.rpartition(".")[2] not in (*_PICTURES, "npy"):
        raise UserError(f"--set image={settings['image']}: give a part that ends in {', '.join(_PICTURES)} or npy")
    label, _, key = settings["label"].partition(":")
    label = label.lower().removeprefix(".")
    if label == "auto":
        label = "cls" if "cls" in there else ""
    elif label == "none":
        label = ""
    elif label not in there:
        raise UserError(f"--set label={settings['label']}: no sample has a part .{label}: there are {listed}")
    if label.rpartition(".")[2] == "json" and not key:
        raise UserError(f"--set label={settings['label']}: say which entry: --set label={label}:KEY")
    if settings["classes"] and not label:
        raise UserError("--set classes: has no effect without labels")
    if bool(settings["lon"]) != bool(settings["lat"]):
        raise UserError("--set lon and --set lat: give both or neither")
    return replace(
        _array_or_picture(request, image), label=label, label_key=key, lon=settings["lon"], lat=settings["lat"]
    )


def _array_or_picture(request: Request, image: str) -> How:
    """.npy, and TIFF whose bands are named, are arrays; the rest are pictures of one or three bands."""
    settings = request.settings
    least = request.image_size if request.image_size is not None and request.fit == "crop" else 1
    how = How(image, "", None, "", "", "", "", least)
    tiff = image.rpartition(".")[2] in ("tif", "tiff")
    if not _is_npy(image) and not (tiff and settings["bands"]):
        for name in ("axes", *array_input.SETTINGS):
            if settings[name] != request.reader.settings[name].default:
                more = ", or name the bands" if tiff else ""
                raise UserError(f"--set {name}: has no effect on .{image} pictures: leave it out{more}")
        return how
    if request.image_size is not None or request.channels != "auto" or request.fit != "resize_crop":
        raise UserError(f"--image-size, --fit and --channels have no effect on arrays (.{image}): leave them out")
    if tiff:
        rasterio_or_error(f"reader {request.reader.name}: .{image} with --set bands")
        if settings["axes"]:
            raise UserError(f"--set axes: has no effect on .{image}, which is CHW: leave it out")
    bands = named_bands(settings)
    axes = parse_axes(settings["axes"] or "CHW", stacked=False)
    return replace(how, axes=axes, bands=None if bands is None else len(bands))


READERS = (
    Reader(
        name="webdataset",
        summary="WebDataset tar shards: key.jpg|png|tif|npy with key.cls, key.txt or key.json",
        expects="a folder of uncompressed .tar shards, or one such file, whose members are KEY.PART with the parts of a "
        "sample one after another",
        open=open_webdataset,
        uses=frozenset({"image_size", "fit", "channels", "gsd_m", "on_error", "license", "citation"}),
        settings={
            "image": Setting("part that is the image, such as jpg or s2.npy; auto: the only one that can be", "auto"),
            "label": Setting(
                "part that is the label, a whole number or a class name: cls, txt, json:KEY (dots go into objects); auto: "
                "cls, if there; none",
                "auto",
            ),
            "classes": Setting("names of the classes in the order of their numbers, comma-separated"),
            "splits": Setting(
                "auto: from the shards' names, if each begins with train, val or test; none: the plan chooses",
                "auto",
                ("auto", "none"),
            ),
            "unended": Setting(
                "shards without the mark of an archive's end, which may have been cut off after a sample: refuse, or take",
                "refuse",
                ("refuse", "take"),
            ),
            "lon": Setting("entry of .json that is the centre's longitude in degrees"),
            "lat": Setting("entry of .json that is the centre's latitude in degrees"),
            "axes": Setting("order of a .npy part's axes, of T time, C band, H row, W column (default: CHW)"),
            **array_input.SETTINGS,
        },
    ),
)
