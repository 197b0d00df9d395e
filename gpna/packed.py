"""Arrays of float32 as one word of text, so that a resolved config holds the numbers of the files that it names."""

from __future__ import annotations

import base64
import binascii

import numpy as np

from frontier.errors import UserError


def pack(values: np.ndarray) -> str:
    """ "float32:SHAPE:BASE64" of an array, little-endian."""
    shape = "x".join(map(str, values.shape))
    return f"float32:{shape}:{base64.b64encode(values.astype('<f4').tobytes()).decode()}"


def unpack(text: str, where: str) -> np.ndarray:
    """The inverse of `pack`, float32. Raises UserError, which begins with `where`, for what `pack` has not made."""
    try:
        kind, shape, word = text.split(":")
        found = np.frombuffer(base64.b64decode(word, validate=True), "<f4").reshape([int(n) for n in shape.split("x")])
    except (ValueError, binascii.Error):
        kind, found = "", np.empty(0)
    if kind != "float32" or not np.isfinite(found).all():
        raise UserError(f"{where}: is damaged: leave it out, a run fills it in")
    return found.astype(np.float32)
