"""Decoding one image file and fitting it to a fixed shape. Pure functions of the file's bytes."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    EXTRASAMPLES,
    PHOTOMETRIC_INTERPRETATION,
    SAMPLESPERPIXEL,
    TiffImageFile,
)

from frontier.errors import UserError

Fit = Literal["resize", "crop", "resize_crop"]
_COLOURS = {2: 3, 5: 4, 6: 3, 8: 3}
"""Bands of a colour by a TIFF's photometric interpretation: RGB, CMYK, YCbCr, CIELAB; of all others one."""
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_MORE = (struct.error, zlib.error, AttributeError, OverflowError, ZeroDivisionError, RuntimeError, MemoryError)
"""What pillow's parsers let through of a damaged file, besides what it says it raises."""
_GREY_MODES = ("1", "L", "LA", "La", *_DEEP_MODES)


@dataclass(frozen=True)
class Probe:
    """What decoding a file showed: (height, width), one band or more, 16 bits or 8; or why it cannot be used."""

    size: tuple[int, int] = (0, 0)
    grey: bool = False
    deep: bool = False
    sha256: str = ""
    error: str = ""


def probe(argument: tuple[str, int]) -> Probe:
    """Decode the file wholly. `argument` = (path, smallest side in pixels that will do)."""
    path, least = argument
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for without end
            return Probe(error="not a regular file")
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        return Probe(error=error.strerror or "cannot be read")
    return probe_bytes(data, least)


def probe_bytes(data: bytes, least: int = 1) -> Probe:
    """`probe` of the bytes of a file."""
    try:
        image = decode(data)
    except UserError as error:
        return Probe(error=str(error))
    if min(image.size) < least:
        return Probe(error=f"{image.width}x{image.height} is smaller than the crop of {least}")
    return Probe(
        size=(image.height, image.width),
        grey=image.mode in _GREY_MODES,
        deep=image.mode in _DEEP_MODES,
        sha256=hashlib.sha256(data).hexdigest(),
    )


def decode(data: bytes) -> Image.Image:
    """The decoded image, pixels as stored (no EXIF rotation, no colour profile).

    Raises `UserError` with the reason where pillow cannot decode it, or would silently lose depth, bands or pages.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tags that pillow passes over
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "TIFF"))
            pages = getattr(image, "n_frames", 1)
            if pages > 1:
                raise UserError(f"holds {pages} pages, one is expected")
            if image.format == "PNG" and data[24] == 16 and data[25] in (2, 4, 6):
                raise UserError("16-bit colour or alpha PNG, which pillow would cut to 8 bits")
            if image.format == "TIFF":
                _check_bands(image)
            image.load()
    except UnidentifiedImageError:
        raise UserError("not a JPEG, PNG or TIFF that pillow reads") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError("has more pixels than pillow's safety limit") from None
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, IndexError, EOFError, KeyError, TypeError, *_MORE) as error:
        raise UserError(f"does not decode: {str(error).splitlines()[0] if str(error) else 'damaged'}") from None
    if image.mode in ("I", "F"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise UserError("has 32-bit pixels, 8 or 16 bits are expected")
        return Image.fromarray(values.astype(np.uint16))
    return image


def _check_bands(image: Image.Image) -> None:
    """Raise `UserError` for a TIFF of whose bands pillow would keep only some, or only the upper 8 bits of each."""
    tags = cast(TiffImageFile, image).tag_v2
    bands, bits = int(tags.get(SAMPLESPERPIXEL, 1)), tags.get(BITSPERSAMPLE, (1,))
    extra = tags.get(EXTRASAMPLES, ())
    alpha = len(extra) == 1 and extra[0] in (1, 2)
    kept = _COLOURS.get(int(tags.get(PHOTOMETRIC_INTERPRETATION, 1)), 1) + alpha
    if bands > kept:
        raise UserError(f"holds {bands} bands, of which pillow would keep {kept}: try --reader geotiff")
    if bands > 1 and max(bits) > 8:
        raise UserError(f"{max(bits)}-bit TIFF of {bands} bands, of which pillow takes 8 bits: try --reader geotiff")


def load_image(image: Image.Image, shape: tuple[int, int, int], fit: Fit, deep: bool) -> np.ndarray:
    """The image as an array of `shape` (C, H, W): uint16 where `deep`, else uint8.

    Bands: one band asked gives luma (ITU-R 601), three repeat a grey image; alpha is dropped, not blended; a 16-bit
    image among 8-bit ones is divided by 256. Where the size differs from (H, W):

    - `resize`: the whole image is scaled to H x W, aspect not kept (bicubic, antialiased when shrinking);
    - `crop`: the centre H x W at native resolution, rounded towards the top left;
    - `resize_crop`: scaled so that the shorter side fits, aspect kept, then the centre is cropped.
    """
    bands, height, width = shape
    planes: list[Image.Image]
    if image.mode in _DEEP_MODES:
        values = np.asarray(image).astype(np.uint16)
        if deep:
            planes = [Image.fromarray(values.astype(np.float32))]
        else:
            planes = [Image.fromarray((values >> 8).astype(np.uint8))] * bands
    else:
        planes = list(image.convert("RGB" if bands == 3 else "L").split())
    if fit == "resize_crop":
        scale = max(height / image.height, width / image.width)
        size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    else:
        size = (width, height) if fit == "resize" else image.size
    out = np.empty(shape, np.uint16 if deep else np.uint8)
    for band in range(bands):
        plane = planes[band if len(planes) > 1 else 0]
        if plane.size != size:
            plane = plane.resize(size, Image.Resampling.BICUBIC)
        left, top = (plane.width - width) // 2, (plane.height - height) // 2
        pixels = np.asarray(plane.crop((left, top, left + width, top + height)))
        if deep:
            pixels = np.clip(np.rint(pixels), 0, 65535)
        out[band] = pixels
    return out
