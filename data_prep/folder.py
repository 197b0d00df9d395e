"""A folder of JPEG, PNG or TIFF images as a source; its sub-folders are the classes.

```
FOLDER/river/1.jpg            class "river" (images deeper down belong to the first folder's class)
FOLDER/1.jpg                  a flat folder: no labels
FOLDER/train/river/1.jpg      only train, val and test at the top: these are the splits
```
Every file is decoded once before anything is written, so a damaged one is known in time. Identical files (by
sha256) form a group and never land in different splits. Links to files outside the folder, and links to folders,
are not followed; names that begin with a dot are left out.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.images import Fit, Probe, decode, load_image, probe
from data_prep.source import Band, ImageColumn, Listing
from frontier.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
REPORT = "unreadable.tsv"
_SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
_SPLIT_NAMES |= {"test": "test", "testing": "test"}
_IN_PROCESS = 2000


@dataclass(frozen=True)
class FolderOptions:
    """`size` None keeps the images' own common size. `channels`: auto | rgb | grey. `on_error`: stop | skip."""

    size: int | None = None
    fit: Fit = "resize_crop"
    channels: str = "auto"
    on_error: str = "stop"
    gsd_m: float | None = None
    name: str | None = None
    license: str | None = None
    citation: str | None = None


@dataclass(frozen=True)
class Found:
    """One image file: path relative to the folder, class name or "", split or ""."""

    path: str
    label: str
    split: str


class FolderSource:
    """Images of a folder, one column "image" [C, N, N], uint8 or uint16. Build it with `scan_folder`."""

    def __init__(
        self,
        root: Path,
        files: list[Found],
        probes: list[Probe],
        options: FolderOptions,
        notes: dict[str, Any],
    ) -> None:
        """`files` and `probes` go together; all probes are of images that decode."""
        self.root = root
        self.name = options.name or root.resolve().name
        self.license = options.license
        self.citation = options.citation
        self._files = files
        self._hashes = [found.sha256 for found in probes]
        self._options = options
        self._notes = notes
        self._classes = tuple(sorted({file.label for file in files} - {""}))
        grey = options.channels == "grey" or (options.channels == "auto" and all(found.grey for found in probes))
        self._deep = all(found.deep for found in probes)
        size = options.size if options.size is not None else _common_size(root, probes)
        names = ("grey",) if grey else ("red", "green", "blue")
        self.images = {
            "image": ImageColumn(
                (len(names), *((size, size) if isinstance(size, int) else size)),
                "uint16" if self._deep else "uint8",
                tuple(Band(name) for name in names),
                gsd_m=options.gsd_m,
                units="digital number",
            )
        }
        self.columns: dict[str, str] = {}

    def describe(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for file, content in zip(self._files, self._hashes, strict=True):
            digest.update(f"{file.path}\0{content}\n".encode("utf-8", "surrogateescape"))
        return {
            "kind": "folder",
            "folder": self.root.resolve().name,
            "files": len(self._files),
            "content_sha256": digest.hexdigest(),
            "image_size": self._options.size,
            "fit": self._options.fit,
            "channels": self._options.channels,
            "gsd_m": self._options.gsd_m,
        }

    def listing(self) -> Listing:
        number = {name: index for index, name in enumerate(self._classes)}
        return Listing(
            ids=[os.fsencode(file.path) for file in self._files],
            labels=np.array([number.get(file.label, -1) for file in self._files], np.int32),
            groups=[bytes.fromhex(content) for content in self._hashes],
            splits=[file.split for file in self._files],
            classes=self._classes,
            notes=self._notes,
        )

    def load(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        column = self.images["image"]
        out = np.empty((len(rows), *column.shape), column.dtype)
        for place, row in enumerate(rows):
            path = self.root / self._files[row].path
            try:
                data = path.read_bytes()
            except OSError as error:
                raise UserError(f"{path}: cannot be read any more ({error.strerror}): restore it") from None
            if hashlib.sha256(data).hexdigest() != self._hashes[row]:
                raise UserError(f"{path}: changed while it was read: run the same command again")
            image = decode(data)
            out[place] = load_image(image, column.shape, self._options.fit, self._deep)
        return {"image": out}


def scan_folder(
    root: str | Path, options: FolderOptions, *, workers: int = 1, report: Path | None = None
) -> FolderSource:
    """Find, decode and hash every image of `root`.

    Files that do not decode are listed in `report` (path, tab, reason), and left out with `on_error="skip"`.
    Raises `UserError` for such files with `on_error="stop"`, for a folder without images, with images both beside
    and inside class folders, or with several sizes where `options.size` is None.
    """
    root = Path(root)
    if options.size is not None and options.size < 1:
        raise UserError(f"--image-size {options.size}: give 1 or more pixels")
    files, notes = find_images(root)
    probes = _probe_all(root, [file.path for file in files], options, workers)
    bad = [(file, found.error) for file, found in zip(files, probes, strict=True) if found.error]
    if bad:
        if report is not None:
            report.parent.mkdir(parents=True, exist_ok=True)
            lines = [f"{file.path}\t{reason}\n" for file, reason in bad]
            report.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
        if options.on_error == "stop":
            shown = "; ".join(f"{file.path} ({reason})" for file, reason in bad[:3])
            more = f"; all of them in {report}" if report is not None else ""
            raise UserError(
                f"{root}: {len(bad)} of {len(files)} images cannot be used: {shown}{more}: "
                "mend or remove them, or pass --on-error skip"
            )
    elif report is not None:
        report.unlink(missing_ok=True)
    good = [(file, found) for file, found in zip(files, probes, strict=True) if not found.error]
    if not good:
        raise UserError(f"{root}: none of {len(files)} images can be used: {bad[0][0].path} ({bad[0][1]})")
    copies = Counter(found.sha256 for _, found in good)
    given: dict[str, set[str]] = {}
    for file, found in good:
        given.setdefault(found.sha256, set()).add(file.split)
    notes |= {
        "skipped": len(bad),
        "duplicates": sum(count - 1 for count in copies.values()),
        "duplicates_across_given_splits": sum(1 for splits in given.values() if len(splits) > 1),
    }
    return FolderSource(root, [file for file, _ in good], [found for _, found in good], options, notes)


def find_images(root: Path) -> tuple[list[Found], dict[str, Any]]:
    """Image files of `root` in the order of their paths' bytes, and counts of what was left out."""
    if not root.is_dir():
        state = "is not a directory" if root.exists() else "does not exist"
        raise UserError(f"--from {root}: {state}: give a folder of images or of class folders")
    inside = root.resolve()
    paths: list[str] = []
    other = links = 0
    for folder, names, members in os.walk(root):
        links += sum(os.path.islink(os.path.join(folder, name)) for name in names)
        names[:] = [name for name in names if not name.startswith(".")]
        for member in members:
            path = Path(folder, member)
            if member.startswith("."):
                continue
            if not member.lower().endswith(EXTENSIONS):
                other += 1
            elif path.is_symlink() and not path.resolve().is_relative_to(inside):
                links += 1
            else:
                paths.append(path.relative_to(root).as_posix())
    left_out = {"other_files": other, "links_not_followed": links}
    if not paths:
        seen = f" ({other} other files, {links} links not followed)" if other or links else ""
        raise UserError(
            f"--from {root}: no images{seen}: expected files ending in {', '.join(EXTENSIONS)}, in class folders or "
            "directly in the folder"
        )
    paths.sort(key=os.fsencode)
    parts = [path.split("/") for path in paths]
    splits = [""] * len(paths)
    if all(len(part) > 1 and part[0].lower() in _SPLIT_NAMES for part in parts):
        splits = [_SPLIT_NAMES[part[0].lower()] for part in parts]
        parts = [part[1:] for part in parts]
    flat = [len(part) == 1 for part in parts]
    if any(flat) and not all(flat):
        raise UserError(
            f"--from {root}: {sum(flat)} images lie beside the class folders (such as {paths[flat.index(True)]}): "
            "move them into a class folder"
        )
    return [
        Found(path, "" if alone else part[0], split)
        for path, part, alone, split in zip(paths, parts, flat, splits, strict=True)
    ], left_out


def _probe_all(root: Path, paths: list[str], options: FolderOptions, workers: int) -> list[Probe]:
    least = options.size if options.size is not None and options.fit == "crop" else 1
    arguments = [(str(root / path), least) for path in paths]
    if workers <= 1 or len(paths) < _IN_PROCESS:
        return [probe(argument) for argument in arguments]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(probe, arguments, chunksize=256))


def _common_size(root: Path, probes: list[Probe]) -> tuple[int, int]:
    sizes = Counter(found.size for found in probes)
    if len(sizes) > 1:
        shown = ", ".join(f"{w}x{h} ({n})" for (h, w), n in sizes.most_common(3))
        raise UserError(
            f"{root}: images of {len(sizes)} different sizes: {shown}: choose one with --image-size N (and --fit)"
        )
    return next(iter(sizes))
