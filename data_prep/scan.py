"""Looking at every image of an archive before anything is written, in pieces that outlive a killed run.

What a file showed is kept in OUT/.scan.jsonl until the shards are complete; a second call believes it where the file's
size and time of change are still the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.images import Probe, probe
from data_prep.readers.registry import Request

SCAN = ".scan.jsonl"
_PIECE = 20_000
"""Files between two writes of what is known: a minute or so of one process."""


def probe_files(request: Request, paths: Sequence[str], least: int) -> list[Probe]:
    """`images.probe` of every path (relative to `request.path`), shared over all ranks and workers."""
    store = request.report.with_name(SCAN) if request.report is not None else None
    known = _load(store, least) if store is not None else {}
    out: list[Probe] = []
    for start in range(0, len(paths), _PIECE):
        piece = paths[start : start + _PIECE]
        found = request.map(_look, [(str(request.path), path, least, known.get(path)) for path in piece])
        fresh = [line for line, path in zip(found, piece, strict=True) if line != known.get(path)]
        # A run that one piece covers has nothing to gain.
        if store is not None and fresh and len(paths) > _PIECE:
            store.parent.mkdir(parents=True, exist_ok=True)
            with open(store, "a", encoding="utf-8") as file:
                file.writelines(
                    json.dumps({"path": p, "least": least, **line}) + "\n" for p, line in zip(piece, found, strict=True)
                )
                file.flush()
                os.fsync(file.fileno())
        out += [_probe(line["probe"]) for line in found]
    return out


def _look(asked: tuple[str, str, int, dict[str, Any] | None]) -> dict[str, Any]:
    root, path, least, known = asked
    full = os.path.join(root, path)
    try:
        state = os.stat(full)
    except OSError as error:
        return {"size": -1, "mtime_ns": 0, "probe": asdict(Probe(error=error.strerror or "cannot be read"))}
    if known is not None and (known["size"], known["mtime_ns"]) == (state.st_size, state.st_mtime_ns):
        return known
    return {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "probe": asdict(probe((full, least)))}


def _probe(fields: dict[str, Any]) -> Probe:
    height, width = fields["size"]
    return Probe(**{**fields, "size": (height, width)})


def _load(store: Path, least: int) -> dict[str, dict[str, Any]]:
    """What is known, by path; a torn last line, which a kill leaves, is passed over."""
    out: dict[str, dict[str, Any]] = {}
    try:
        lines = store.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return out
    for line in lines:
        try:
            entry = json.loads(line)
            if entry["least"] == least and _probe(entry["probe"]) is not None:
                out[entry["path"]] = {key: entry[key] for key in ("size", "mtime_ns", "probe")}
        except (ValueError, KeyError, TypeError):
            continue
    return out
