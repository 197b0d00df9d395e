"""Published archives of class folders: where the folders lie, whether the copy is whole, and its lists of splits."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.folder import Found, list_images
from data_prep.readers.registry import Request, Setting
from frontier.data.manifest import nearest
from frontier.errors import UserError

PARTIAL = Setting(
    "yes takes a copy that is not whole: missing images, and folders that are not of the archive, are counted in the "
    "notes",
    "no",
    ("no", "yes"),
)
SPLITS = Setting(
    "auto: the one set of split files beside the images, if any (train.csv, validation.csv, test.csv, or "
    "NAME-train.txt, NAME-val.txt, NAME-test.txt); none; csv or a NAME where there are several",
    "auto",
)
_CSV = {"train": ("train.csv",), "val": ("validation.csv", "val.csv"), "test": ("test.csv",)}


@dataclass(frozen=True)
class Layout:
    """How an archive is published. `roots`: where its class folders lie below the folder given, "" that folder itself.

    `classes` in the order of their numbers; `total` images in all; `each`: images of a class, where published.
    """

    roots: tuple[str, ...]
    classes: tuple[str, ...]
    suffix: str
    total: int
    each: Mapping[str, int] = field(default_factory=dict)


def find_root(request: Request, layout: Layout) -> Path:
    """The folder of the class folders: of `layout.roots` the one that holds most of them. Raises `UserError`."""
    request.need(kind="folder")
    counts = {
        root: sum((request.path / root / name).is_dir() for name in layout.classes)
        for root in dict.fromkeys(layout.roots)
    }
    most = max(counts.values())
    best = [root for root, count in counts.items() if count == most]
    if most == 0:
        shown = ", ".join(layout.classes[:3])
        raise UserError(
            f"reader {request.reader.name}: {request.path}: no class folders ({shown}, …) there or below "
            f"{', '.join(root for root in layout.roots if root)}: {request.reader.expects}"
        )
    if len(best) > 1:
        both = " and ".join(str(request.path / root) for root in best)
        raise UserError(f"reader {request.reader.name}: class folders lie in {both}: give one of these with --from")
    return request.path / best[0]


def class_files(request: Request, layout: Layout) -> tuple[Request, list[Found], dict[str, Any]]:
    """The archive's images with class and split, notes of what was left out, and the request moved to their folder.

    Paths, and so the samples' ids, begin with the class, whichever folder was given. Raises `UserError` for another
    layout, for a copy that is not whole unless `partial`, and for lists of splits that do not fit the images.
    """
    root = find_root(request, layout)
    paths, left_out = list_images(root)
    found = [Found(path, path.partition("/")[0] if "/" in path else "", "") for path in paths]
    files = [file for file in found if file.path.lower().endswith(layout.suffix) and file.label in layout.classes]
    others = Counter(file.label for file in found if file.label not in layout.classes)
    wrong = len(found) - len(files) - others.total()
    problems = missing_images(layout, Counter(file.label for file in files))
    if others:
        shown = ", ".join(f"{name or '(none)'} ({count})" for name, count in sorted(others.items())[:5])
        problems.append(f"{others.total()} images in folders that are not of the archive: {shown}")
    if wrong:
        problems.append(f"{wrong} images that do not end in {layout.suffix}")
    splits, split_notes = read_splits(request, root, files)
    problems += split_notes.pop("problems")
    notes = left_out | split_notes | settle_problems(request, root, problems, len(files), layout.total)
    if splits:
        files = [replace(file, split=splits[stem(file.path)]) for file in files if stem(file.path) in splits]
    if not files:
        raise UserError(f"reader {request.reader.name}: {root}: no images to read: {request.reader.expects}")
    return replace(request, path=root, name=request.name or request.reader.name), files, notes


def missing_images(layout: Layout, counts: Counter[str]) -> list[str]:
    """What `counts` of images by class lacks of the published archive, in words."""
    problems = []
    empty = [name for name in layout.classes if not counts[name]]
    if empty:
        shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        problems.append(f"no images of {len(empty)} of {len(layout.classes)} classes ({shown})")
    if counts.total() != layout.total:
        problems.append(f"{counts.total():,} images where {layout.total:,} are published")
    short = [f"{name} {counts[name]} of {n}" for name, n in layout.each.items() if 0 < counts[name] != n]
    if short:
        problems.append(", ".join(short[:5]) + (f" and {len(short) - 5} more classes" if len(short) > 5 else ""))
    return problems


def settle_problems(
    request: Request, root: Path, problems: Sequence[str], found: int, published: int
) -> dict[str, Any]:
    """The notes to keep of a copy that is not as published; `UserError` unless the setting `partial` is yes."""
    if problems and request.settings["partial"] != "yes":
        raise UserError(
            f"reader {request.reader.name}: {root} is not the published archive: {'; '.join(problems)}: complete it "
            f"from {request.reader.homepage}, or pass --set partial=yes to take what is there"
        )
    notes: dict[str, Any] = {"images_found": found, "images_published": published}
    return notes | ({"warning": "not the whole archive: " + "; ".join(problems)} if problems else {})


def stem(path: str) -> str:
    """File name without its ending: what lists of splits agree on, whatever the images' format."""
    return PurePosixPath(path).stem


def read_splits(request: Request, root: Path, files: Sequence[Found]) -> tuple[dict[str, str], dict[str, Any]]:
    """Split (train, val or test) by `stem`, as the setting `splits` asks; {} where the plan is to choose.

    The notes hold "problems": what the lists and the images lack of each other.
    """
    choice = request.settings["splits"]
    if choice == "none":
        return {}, {"problems": []}
    # From the class folders up to the folder that was given: the nearest file of a name counts.
    folders = [folder for folder in (root, *root.parents) if folder.is_relative_to(request.path)]
    known: dict[str, dict[str, Path]] = {}
    for folder in folders:
        for split, names in _CSV.items():
            for name in names:
                if (folder / name).is_file():
                    known.setdefault("csv", {}).setdefault(split, folder / name)
        for split in ("train", "val", "test"):
            for path in sorted(folder.glob(f"*-{split}.txt")):
                known.setdefault(path.name.removesuffix(f"-{split}.txt"), {}).setdefault(split, path)
    stems = Counter(stem(file.path) for file in files)
    if choice == "auto":
        # Lists of another archive in the folder above are none of this one's.
        known = {name: lists for name, lists in known.items() if _read_lists(lists).keys() & stems.keys()}
        if len(known) > 1:
            raise UserError(
                f"reader {request.reader.name}: {request.path}: several sets of split files: choose one with "
                f"--set splits={'|'.join(sorted(known))}, or none"
            )
        choice = next(iter(known), "")
    elif choice not in known:
        raise UserError(
            f"--set splits={choice}: no such split files in {request.path}: {nearest(choice, {*known, 'none'})}"
        )
    if not choice:
        return {}, {"problems": []}
    out = _read_lists(known[choice])
    twice = [name for name, count in stems.items() if count > 1]
    if twice:
        raise UserError(f"{root}: {twice[0]} lies in two classes, which the split files cannot tell: --set splits=none")
    unlisted, absent = stems.keys() - out.keys(), out.keys() - stems.keys()
    problems = []
    if unlisted:
        problems.append(f"{len(unlisted)} images are in none of the {choice} splits (such as {min(unlisted)})")
    if absent:
        problems.append(f"{len(absent)} images of the {choice} splits are not there (such as {min(absent)})")
    notes = {"splits": choice, "in_no_split": len(unlisted), "listed_but_missing": len(absent)}
    return out, notes | {"problems": problems}


def _read_lists(lists: Mapping[str, Path]) -> dict[str, str]:
    """Split by stem. Raises `UserError` for an image in two of them."""
    out: dict[str, str] = {}
    for split, path in lists.items():
        for name in _listed(path):
            if out.setdefault(name, split) != split:
                raise UserError(
                    f"{path}: {name} is also in the {out[name]} split: mend the lists, or pass --set splits=none"
                )
    return out


def _listed(path: Path) -> list[str]:
    """Stems of the images that a list names: one a line, or the column Filename of a CSV file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{path}: cannot be read ({reason}): restore it, or pass --set splits=none") from None
    if path.suffix == ".txt":
        return [stem(line.strip()) for line in text.splitlines() if line.strip()]
    try:
        rows = list(csv.reader(text.splitlines()))
    except csv.Error as error:
        raise UserError(f"{path}: cannot be read ({error}): restore it, or pass --set splits=none") from None
    header = [name.strip().lower() for name in rows[0]] if rows else []
    if "filename" not in header:
        raise UserError(
            f"{path}: no column Filename among {', '.join(header) or 'none'}: restore it, or --set splits=none"
        )
    column = header.index("filename")
    short = [number for number, row in enumerate(rows, 1) if row and len(row) <= column]
    if short:
        raise UserError(f"{path}: line {short[0]} has no Filename: restore it, or pass --set splits=none")
    return [stem(row[column].strip()) for row in rows[1:] if row]
