"""What readers share in taking their settings and finding their files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from data_prep.listing import files_below
from data_prep.readers.registry import Request
from frontier.errors import UserError


def number(settings: Mapping[str, str], name: str, kind: type = float, low: float = 0, high: float = math.inf) -> Any:
    """A setting as int or float within [low, high]; `UserError` else."""
    text = settings[name]
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        most = "" if high == math.inf else f" to {high:g}"
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"--set {name}={text}: give {what} from {low:g}{most or ' up'}")
    return value


def words(text: str) -> tuple[str, ...]:
    """The comma-separated parts of a setting."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def find_files(request: Request, extensions: tuple[str, ...], what: str) -> list[str]:
    """Files of the request, itself a file or a folder of any depth, relative to it, in the order of their paths' bytes.

    In a folder, those whose names end in one of `extensions`; names that begin with a dot, and links that lead out of
    the folder, are left out. Raises `UserError` where there is none of `what`.
    """
    root = request.need()
    if root.is_file():
        return [root.name]
    found = files_below(root, extensions)
    if not found:
        raise UserError(f"--from {root}: no {what}: expected files ending in {', '.join(extensions)}")
    return found
