"""Precomputed vectors of texts: class or task descriptions through a language model of the user's choice."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from frontier.errors import UserError
from gpna.head_sections import TextTask
from gpna.packed import unpack


@dataclass(frozen=True)
class TextVectors:
    """Attributes: names [K] and vectors [K, E] float32, one row a text."""

    names: tuple[str, ...]
    vectors: np.ndarray


def vectors_of(task: TextTask) -> TextVectors:
    """Those of a task: what its config has stored, else from its file. Raises `UserError`."""
    if task.stored is None:
        return load_text_vectors(task.vectors, task.texts)
    found = unpack(task.stored, f"task on {task.target}: stored")
    if found.ndim != 2 or len(found) != len(task.texts):
        raise UserError(
            f"task on {task.target}: stored holds vectors {found.shape} for {len(task.texts)} texts: leave it out"
        )
    return TextVectors(tuple(task.texts), found)


def load_text_vectors(path: str | Path, names: Sequence[str] | None = None) -> TextVectors:
    """The vectors of `names` (None: all) from a file.

    A .npz holds the arrays `names` (K strings) and `vectors` [K, E]; a .npy holds `vectors` alone, whose names stand in the file
    of the same name with the ending .txt, one a line. Nothing is unpickled. Raises `UserError` for whatever does not fit.
    """
    path = Path(path)
    if path.suffix not in (".npz", ".npy"):
        raise UserError(
            f"text vectors {path}: give a .npz (arrays names and vectors) or a .npy with names in a .txt beside it"
        )
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                missing = [key for key in ("names", "vectors") if key not in file.files]
                if missing:
                    raise UserError(
                        f"text vectors {path}: no array '{missing[0]}': write names (strings) and vectors [K, E]"
                    )
                found, vectors = [str(name) for name in np.atleast_1d(file["names"])], file["vectors"]
        else:
            vectors = np.load(path, allow_pickle=False)
            found = [line.strip() for line in path.with_suffix(".txt").read_text().splitlines() if line.strip()]
    except OSError as error:
        raise UserError(
            f"text vectors {error.filename or path}: {error.strerror or error}: give a file that can be read"
        ) from None
    except (ValueError, EOFError, BadZipFile) as error:
        raise UserError(
            f"text vectors {path}: {error}: write it anew with numpy.savez, strings and numbers only"
        ) from None
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise UserError(
            f"text vectors {path}: vectors of shape {vectors.shape} and type {vectors.dtype}: they must be floats [K, E]"
        )
    if len(found) != len(vectors):
        raise UserError(f"text vectors {path}: {len(found)} names for {len(vectors)} vectors: give one name a row")
    if len(set(found)) != len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise UserError(f"text vectors {path}: '{twice}' stands there twice: names must differ")
    if not np.isfinite(vectors).all():
        raise UserError(
            f"text vectors {path}: '{found[int(np.argmin(np.isfinite(vectors).all(1)))]}' is not finite: mend its vector"
        )
    if names is not None:
        absent = [name for name in names if name not in found]
        if absent:
            raise UserError(
                f"text vectors {path}: no text '{absent[0]}'; it has {', '.join(found[:8])}{' …' * (len(found) > 8)}"
            )
        vectors, found = vectors[[found.index(name) for name in names]], list(names)
    return TextVectors(tuple(found), np.ascontiguousarray(vectors, dtype=np.float32))
