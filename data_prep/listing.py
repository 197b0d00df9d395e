"""The files of a folder that a reader takes: which, and in what order."""

from __future__ import annotations

import os
from pathlib import Path

from frontier.errors import UserError


def leads_out(path: Path, root: Path) -> bool:
    """Whether `path` is a link to what lies outside of `root`, a path without links. One that leads round to itself is none."""
    return path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root)


def files_below(root: Path, extensions: tuple[str, ...]) -> list[str]:
    """Files at any depth whose names end in one of `extensions` (small letters), relative to `root`, in the order of their paths' bytes.

    Names that begin with a dot, and links that lead out of the folder, are left out. Raises `UserError` for a link that leads
    nowhere.
    """
    inside, found = root.resolve(), []
    for folder, names, members in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".")]
        for member in members:
            path = Path(folder, member)
            if member.startswith(".") or not member.lower().endswith(extensions):
                continue
            if path.is_symlink():
                if leads_out(path, inside):
                    continue
                if not path.exists():
                    raise UserError(f"{path}: a link that leads to nothing: remove it")
            found.append(path.relative_to(root).as_posix())
    return sorted(found, key=os.fsencode)
