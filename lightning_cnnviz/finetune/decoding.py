"""Image files, decoded: upright, in the range of their pixels, no larger than needed; and which of them are broken."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps
from tqdm.auto import tqdm

__all__ = ["broken_files", "read_image_file"]

_THREADS = 8
_SLOW = 2.0  # seconds after which a check shows its progress
_AT_ONCE = 1024  # files that threads are given at a time
_LARGE = 12_000_000  # pixels: what has no more is decoded whole, and then resized, as torchvision does it
_MOST_PIXELS = 8_000_000  # of an image that a thread decodes while files are checked; a larger one is decoded alone
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF
_SCALED_TO_16 = ("PNG", "PPM")  # their 16-bit images may come as whole numbers of 32 bits


def read_image_file(file: str, enough: int | None = None) -> Image.Image:
    """Read an image file, upright as its EXIF orientation says, with 8 bits a channel.

    Gray values of 16 bits are divided by 257, of 12 by 16.06: all of the range becomes all of the range. Where a TIFF
    file says that 0 is white, it is.

    Args:
        file: The file.
        enough: So many pixels along the shorter side are enough: of a JPEG of more than 12 megapixels, only a half, a
            quarter or an eighth of the rows and columns is decoded, never fewer than twice `enough`. Other formats
            have no such parts: 4 bytes a pixel while the image is read.

    Raises:
        ValueError: It cannot be read; names it.
        MemoryError: It is too large; names it.
    """
    try:
        with Image.open(file) as opened:
            if enough is not None and opened.width * opened.height > _LARGE:
                opened.draft(None, (2 * enough, 2 * enough))
            opened.load()
            _check_range(opened, opened.format)
            return _in_eight_bits(_upright(opened), *_black_and_white(opened))
    except MemoryError as error:
        raise MemoryError(f"{file}: there is not enough memory to decode it") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as an image ({error})") from error


def broken_files(files: Sequence[str]) -> dict[str, str]:
    """Return which image files cannot be read, and why, in their order.

    Files are decoded, in threads: a header says nothing of a file that ends too early. Of a JPEG all data is read, but
    only an eighth of the pixels is made from it, which takes two thirds of the time. Images of more than 8 megapixels
    are decoded one at a time: memory grows by at most 32 MB a thread (up to 8), and 4 bytes a pixel of the largest.

    Raises:
        MemoryError: There is not enough memory for one of them, which is named.
    """
    broken = {}
    with (
        ThreadPoolExecutor(max(1, min(_THREADS, os.cpu_count() or 1))) as threads,
        tqdm(desc="checking images", total=len(files), delay=_SLOW, leave=False) as bar,
    ):
        for begin in range(0, len(files), _AT_ONCE):
            part = files[begin : begin + _AT_ONCE]
            checked = threads.map(lambda file: _checked(file, _MOST_PIXELS), part)
            for file, (decoded, reason) in zip(part, checked, strict=True):
                if not decoded:  # in this thread: the C library keeps the memory of each thread that has decoded one
                    _, reason = _checked(file)
                if reason is not None:
                    broken[file] = reason
                bar.update()
    return broken


def _checked(file: str, most: float = math.inf) -> tuple[bool, str | None]:
    """Return whether a file was decoded, as far as it has at most so many pixels, and why it cannot be read."""
    try:
        with Image.open(file) as image:
            image.draft("L", (1, 1))
            if image.width * image.height > most:
                return False, None
            image.load()
            _check_range(image, image.format)
    except MemoryError as error:
        raise MemoryError(f"{file}: there is not enough memory to decode it") from error
    except Exception as error:  # decoders raise whatever they please
        return True, str(error).replace(repr(file), "it") or type(error).__name__
    return True, None


def _upright(image: Image.Image) -> Image.Image:
    # In place: without, an image that is upright already is copied.
    with suppress(Exception):  # EXIF data may be damaged where pixels are not
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _black_and_white(image: Image.Image) -> tuple[int, int]:
    """Which values of an image of more than 8 bits are black and white; those of 8 Pillow has turned already."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    bits = tags.get(_BITS, (16,))
    white = 2 ** min(bits if isinstance(bits, int) else bits[0], 16) - 1
    return (white, 0) if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else (0, white)


def _in_eight_bits(image: Image.Image, black: int, white: int) -> Image.Image:
    if image.mode in _SIXTEEN_BITS or image.mode == "I":
        shades = (np.asarray(image).astype(np.float32) - black) / (white - black)
        return Image.fromarray((255 * shades.clip(0, 1) + 0.5).astype(np.uint8))
    return image


def _check_range(image: Image.Image, kind: str | None) -> None:
    if image.mode == "F" or (image.mode == "I" and kind not in _SCALED_TO_16):
        numbers = "fractions" if image.mode == "F" else "whole numbers of 32 bits"
        raise ValueError(
            f"its pixels are {numbers}, and it does not say which of them is white; save it with 8 or 16 bits a channel"
        )
