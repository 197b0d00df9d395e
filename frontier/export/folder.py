"""Writing an exported folder: whole or not at all, the same bytes for the same checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from frontier.errors import UserError
from frontier.export.layout import WEIGHTS, Layout

CARD = "README.md"
OURS = frozenset(
    {WEIGHTS, "CROMA_like.pt", CARD, "config.json", "frontier_config.json", "preprocessor_config.json"},
)
"""Names that an exported folder may hold; --force replaces a folder of these alone."""


def safetensors_library() -> None:
    """Raises UserError where safetensors is not installed."""
    try:
        import safetensors  # noqa: F401
    except ImportError:
        raise UserError("the package safetensors is missing: pip install safetensors (the extra `export`)") from None


def check_target(folder: Path, force: bool) -> None:
    """Raises UserError where `folder` cannot be written, or is there and may not be replaced."""
    parent = next(path for path in folder.resolve().parents if path.exists())
    if not parent.is_dir():
        raise UserError(f"{parent} is no folder, --out: give another place")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{parent} cannot be written, --out: give another place")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} is there and no folder, --out: give another name")
    if not folder.is_dir():
        return
    held = sorted(path.name for path in folder.iterdir())
    foreign = [name for name in held if name not in OURS]
    if foreign:
        raise UserError(f"{folder} holds {foreign[0]}, which is no part of an export, --out: give another folder")
    if held and not force:
        raise UserError(f"{folder} is there already: give another --out, or replace it by --force")


def write_folder(folder: Path, layout: Layout, card: Callable[[str], str], force: bool = False) -> str:
    """Write `layout`, and `card` of the weights' sha256, under a temporary name, then rename; returns that sha256.

    Raises:
        UserError: no room, or the place cannot be written; nothing is left behind then.
    """
    safetensors_library()
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = folder.resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder.parent} could not be made ({error.strerror}), --out: give another place") from None
    need, free = sum(t.nbytes for t in layout.tensors.values()), shutil.disk_usage(folder.parent).free
    if need > free:
        raise UserError(
            f"{need / 2**30:.2f} GiB are needed, {free / 2**30:.2f} GiB are free in {folder.parent}, --out: free some space"
        )
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        weights = temporary / layout.weights
        if layout.save is not None:
            layout.save(weights)
        else:
            save_file(layout.tensors, weights, metadata=layout.metadata)
            _sort_metadata(weights)
        with open(weights, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        for name, text in {**layout.texts, CARD: card(digest)}.items():
            (temporary / name).write_text(text, encoding="utf-8")
        shutil.copymode(temporary / CARD, weights)  # the library keeps it to its owner
        for path in (*temporary.iterdir(), temporary):
            _fsync(path)
        check_target(folder, force)  # writing took a while
        _rename(temporary, folder)
        _fsync(folder.parent)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{folder} could not be written ({reason}), --out: mend it, or give another place") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return digest


def _sort_metadata(path: Path) -> None:
    """Give the metadata in the header the order of their names: the library's is another each time."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        assert len(text) == length, "the same header in another order"
        file.seek(8)
        file.write(text)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename(temporary: Path, folder: Path) -> None:
    """Put `temporary` in the place of `folder`; what was there comes back where that fails."""
    if not (folder.is_dir() and any(folder.iterdir())):
        os.rename(temporary, folder)
        return
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    os.rename(folder, old)
    try:
        os.rename(temporary, folder)
    except OSError:
        os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
