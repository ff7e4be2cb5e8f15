"""The pixels of a picture file, whatever is in it. No file makes it run a program or fill the memory."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

# Pillow's others run programs, draw what a text says, or are not pictures that people keep.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MOST_PIXELS = 100_000_000
_DEEP = ("I", "F")  # modes of more than 8 bits begin with these
_OVERSHOOT = 0.5  # how far a resize may lead out of 0 to 1


class PictureError(ValueError):
    """A file holds no picture that can be read. The message does not name the file."""


# What reading one file may raise while others can be read. torch raises RuntimeError if memory is short.
UNREADABLE = (PictureError, OSError, MemoryError, RuntimeError)


@contextmanager
def opened_picture(file: Path | str | BinaryIO) -> Iterator[Image.Image]:
    """Open a picture file; only its header is read.

    Raises:
        PictureError: no picture of FORMATS, or more pixels than MOST_PIXELS. OSError: no file that can be read.
    """
    try:
        opened = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise PictureError(f"not a picture in one of the formats {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"more than {MOST_PIXELS:,} pixels") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise PictureError(_said(error)) from error
    except Exception as error:  # readers of damaged headers raise errors of many kinds
        raise PictureError(_said(error)) from error
    with opened:
        if opened.width * opened.height > MOST_PIXELS:
            raise PictureError(f"{opened.width} x {opened.height} pixels, more than {MOST_PIXELS:,}")
        yield opened


def pixels_of(opened: Image.Image) -> Tensor:
    """The pixels of an opened picture: (H, W, 3) in [0, 1], or (H, W, 4) with transparency.

    It is turned as its EXIF data says. Of an animation it is the first frame. Grey of 16 bits keeps them; colours of 16 bits
    have 8 here. Grey of 32 bits is from 0 to 65535, or from 0 to 1 with a point.

    Raises:
        PictureError: damaged, or of numbers whose black and white nobody knows.
    """
    try:
        picture = ImageOps.exif_transpose(opened)
        if picture.mode.startswith(_DEEP):
            return _deep_grey(picture, states_bits=(opened.format, picture.mode) != ("TIFF", "I"))
        transparent = "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info
        pixels = np.array(picture.convert("RGBA" if transparent else "RGB"), dtype=np.float32)
    except (PictureError, MemoryError):
        raise
    except Exception as error:
        raise PictureError(_said(error)) from error
    pixels /= 255
    return torch.from_numpy(pixels)


def _deep_grey(picture: Image.Image, *, states_bits: bool) -> Tensor:
    """A picture of one channel with more than 8 bits; convert would cut off what is above 255.

    Args:
        states_bits: the file says how many bits count. Otherwise a picture that would be black shows that fewer do.
    """
    grey = np.asarray(picture, dtype=np.float32)
    if not np.isfinite(grey).all():
        raise PictureError("its pixels are not finite")
    low, high = float(grey.min()), float(grey.max())
    found = f"its pixels are from {low:g} to {high:g}"
    # numbers with a point are from 0 to 1, others from 0 to 65535
    scale = 65535
    if picture.mode.startswith("F"):
        scale = 1
        if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
            raise PictureError(
                f"{found}, and numbers with a point must be from 0 to 1; save it with 8 or 16 bits"
            )
    elif low < 0 or high > scale or (not states_bits and 0 < high <= 255):
        raise PictureError(f"{found}, and grey of 32 bits must span 0 to {scale}; save it with 8 or 16 bits")
    return torch.from_numpy((grey / scale).clip(0, 1))[..., None].repeat(1, 1, 3)


def read_picture(file: Path | str | BinaryIO) -> Tensor:
    """The pixels of a picture file, as pixels_of gives them.

    Raises:
        PictureError: no picture, a damaged one, or one with more pixels than MOST_PIXELS. OSError: no file that can be read.
    """
    with opened_picture(file) as opened:
        return pixels_of(opened)


def hash_of(file: BinaryIO) -> str:
    """The SHA-256 of an open file's bytes, in hexadecimal; afterwards it is at its beginning again."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    file.seek(0, os.SEEK_SET)
    return digest.hexdigest()


def _said(error: Exception) -> str:
    """What an error says in its first line, or else its kind."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
