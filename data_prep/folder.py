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
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.images import Probe, decode, load_image
from data_prep.listing import leads_out
from data_prep.readers.registry import Reader, Request
from data_prep.scan import probe_files
from data_prep.source import Band, ImageColumn, Listing, Source
from frontier.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLIT_NAMES |= {"test": "test", "testing": "test"}


@dataclass(frozen=True)
class Found:
    """One image file: path relative to the folder, class name or "", split or ""."""

    path: str
    label: str
    split: str


class ImageSource(Source):
    """Image files, one column "image" [C, N, N], uint8 or uint16. Build it with `image_source`."""

    def __init__(
        self,
        request: Request,
        files: list[Found],
        probes: list[Probe],
        notes: dict[str, Any],
        classes: Sequence[str],
    ) -> None:
        """`files` and `probes` go together; all probes are of images that decode."""
        self.root = request.path
        self.name = request.name or request.path.resolve().name
        self.license = request.license or request.reader.license
        self.citation = request.citation or request.reader.citation
        self.homepage = request.reader.homepage
        self._files = files
        self._hashes = [found.sha256 for found in probes]
        self._request = request
        self._notes = notes
        self._classes = tuple(classes)
        column = picture_column(request, probes)
        self._deep = column.dtype == "uint16"
        self._shape = (column.shape[0], column.shape[1], column.shape[2])
        self.images = {"image": column}

    def describe(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for file, content in zip(self._files, self._hashes, strict=True):
            digest.update(f"{file.path}\0{content}\n".encode("utf-8", "surrogateescape"))
        return {
            "kind": self._request.reader.name,
            "folder": self.root.resolve().name,
            "files": len(self._files),
            "content_sha256": digest.hexdigest(),
            "image_size": self._request.image_size,
            "fit": self._request.fit,
            "channels": self._request.channels,
            "gsd_m": self._request.gsd_m,
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
            out[place] = load_image(image, self._shape, self._request.fit, self._deep)
        return {"image": out}


def scan_folder(request: Request) -> ImageSource:
    """Find, decode and hash every image of the folder. Raises `UserError`, see `find_images` and `image_source`."""
    check_size(request)
    files, notes = find_images(request.path)
    return image_source(request, files, notes)


def image_source(
    request: Request, files: list[Found], notes: dict[str, Any], classes: Sequence[str] | None = None
) -> ImageSource:
    """Decode and hash every one of `files`; `classes` fixes the order of the class names (default: sorted).

    Files that do not decode are dealt with by `request.settle`. Raises `UserError` for them with "stop", or for
    several sizes where no `image_size` is asked.
    """
    check_size(request)
    least = request.image_size if request.image_size is not None and request.fit == "crop" else 1
    probes = probe_files(request, [file.path for file in files], least)
    bad = [(file.path, found.error) for file, found in zip(files, probes, strict=True) if found.error]
    notes = notes | request.settle(bad, len(files), "images")
    good = [(file, found) for file, found in zip(files, probes, strict=True) if not found.error]
    copies = Counter(found.sha256 for _, found in good)
    given: dict[str, set[str]] = {}
    for file, found in good:
        given.setdefault(found.sha256, set()).add(file.split)
    notes |= {
        "duplicates": sum(count - 1 for count in copies.values()),
        "duplicates_across_given_splits": sum(1 for splits in given.values() if len(splits) > 1),
    }
    names = classes if classes is not None else sorted({file.label for file, _ in good} - {""})
    return ImageSource(request, [file for file, _ in good], [found for _, found in good], notes, names)


def picture_column(request: Request, probes: Sequence[Probe]) -> ImageColumn:
    """The column that holds pictures of these kinds and sizes as `request` asks: [C, H, W], uint16 where all are deep.

    Raises `UserError` for several sizes where no `image_size` is asked.
    """
    grey = request.channels == "grey" or (request.channels == "auto" and all(found.grey for found in probes))
    size = request.image_size if request.image_size is not None else _common_size(request.path, probes)
    names = ("grey",) if grey else ("red", "green", "blue")
    height, width = (size, size) if isinstance(size, int) else size
    return ImageColumn(
        (len(names), height, width),
        "uint16" if all(found.deep for found in probes) else "uint8",
        tuple(Band(name, common_name=None if grey else name) for name in names),
        gsd_m=request.gsd_m,
        units="digital number",
    )


def check_size(request: Request) -> None:
    """Raise `UserError` for an `image_size` that is no size."""
    if request.image_size is not None and request.image_size < 1:
        raise UserError(f"--image-size {request.image_size}: give 1 or more pixels")


def list_images(root: Path) -> tuple[list[str], dict[str, Any]]:
    """Paths of the image files below `root` in the order of their bytes, and counts of what was left out."""
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
            elif leads_out(path, inside):
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
    return sorted(paths, key=os.fsencode), left_out


def find_images(root: Path) -> tuple[list[Found], dict[str, Any]]:
    """Image files of `root` with their class and split, in the order of their paths' bytes; counts as `list_images`."""
    paths, left_out = list_images(root)
    parts = [path.split("/") for path in paths]
    splits = [""] * len(paths)
    if all(len(part) > 1 and part[0].lower() in SPLIT_NAMES for part in parts):
        splits = [SPLIT_NAMES[part[0].lower()] for part in parts]
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


def _common_size(root: Path, probes: Sequence[Probe]) -> tuple[int, int]:
    sizes = Counter(found.size for found in probes)
    if len(sizes) > 1:
        shown = ", ".join(f"{w}x{h} ({n})" for (h, w), n in sizes.most_common(3))
        raise UserError(
            f"{root}: images of {len(sizes)} different sizes: {shown}: choose one with --image-size N (and --fit)"
        )
    return next(iter(sizes))


FOLDER = Reader(
    name="folder",
    summary="JPEG, PNG or TIFF images, in class folders or flat",
    expects="a folder of images or of class folders, optionally below train, val and test",
    open=scan_folder,
    uses=frozenset({"image_size", "fit", "channels", "gsd_m", "on_error", "license", "citation"}),
)
READERS = (FOLDER,)
