"""One image file to pixels: 8-bit grey or RGB, whatever the file holds."""

import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from adaptkit.data.dicom import DICOM, decode_dicom, dicom_size, is_dicom
from adaptkit.errors import DataError

Needed = Callable[[tuple[int, int]], tuple[int, int]]

_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # in EXIF
_BITS_PER_SAMPLE = 258  # in TIFF
# Only what `list_images` looks for. Pillow goes by content, not by name: left to itself it would
# pass an EPS file that is named .png to Ghostscript, which runs it as a program.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")


def decode(path: str | Path | BinaryIO, needed: Needed | None = None) -> Image.Image:
    """Read an image file, by its path or open, into mode "L" or "RGB".

    Grey stays grey. Transparency, by an alpha channel or by one see-through colour, is laid on
    white; palettes and CMYK become RGB; 16-bit values are scaled from 0…65,535 to 0…255 (not cut
    off at 255, as a plain conversion would), those of TIFF files of 12 bits a sample from 0…4,095;
    the EXIF orientation is applied; of an animation the first frame counts. For DICOM see
    `decode_dicom`.

    Nothing else in a file says of 16-bit values that they take less than the whole range: a PNG
    file with significant bits (sBIT) has its values scaled up already, and a TIFF file's
    MaxSampleValue is that of its own pixels and says nothing of how they are to look.

    Args:
        path: of the file.
        needed: from an image's (width, height) to the one that would do, as `Transform.needed`. A
            JPEG file is then decoded at a half, a quarter or an eighth of its size where that is as
            large or larger, which takes a fraction of the time; by default at its own.

    Raises:
        DataError: the file cannot be read. The message is the reason alone, without the path.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGBA", (2, 1), (255, 0, 0, 0)).save(f"{folder}/clear.png")
    ...     image = decode(f"{folder}/clear.png")
    >>> image.mode, image.getpixel((0, 0))
    ('RGB', (255, 255, 255))
    """
    try:
        if not _is_regular(path):  # opening a named pipe would wait for ever
            raise DataError("not a regular file")
        try:
            opened = Image.open(path, formats=_FORMATS)
        except UnidentifiedImageError:
            if is_dicom(path):
                return decode_dicom(path)
            raise
        with opened as image:
            if needed and image.format in ("JPEG", "MPO"):
                _scale(image, needed)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return eight_bit(image, largest=_largest(image))
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError("not an image that can be identified") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"refused, too many pixels: {error}") from None
    except FileNotFoundError:
        raise DataError("not there any more") from None
    except Exception as error:  # noqa: BLE001  Pillow raises anything on a broken file
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(" ".join(reason.split())[:160]) from None


def _scale(image: Image.Image, needed: Needed) -> None:
    """Let the decoder itself scale by its cosine transform, before it has read a JPEG's pixels."""
    turned = image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
    width, height = needed(image.size[::-1] if turned else image.size)
    image.draft(None, (height, width) if turned else (width, height))


def image_size(path: str | Path | BinaryIO) -> tuple[int, int] | None:
    """Return an image file's (width, height) in pixels from its header; None if it has none.

    As stored: before any turn that EXIF asks for.
    """
    try:
        if not _is_regular(path):
            return None
        if isinstance(path, (str, Path)) and Path(path).suffix.lower() in DICOM:
            return dicom_size(path)
        with Image.open(path, formats=_FORMATS) as image:
            return image.size
    except Exception:  # noqa: BLE001  Pillow raises anything; `decode` names such files
        return None


def _is_regular(path: str | Path | BinaryIO) -> bool:
    return not isinstance(path, (str, Path)) or stat.S_ISREG(Path(path).stat().st_mode)


def _largest(image: Image.Image) -> int:
    """Return the largest value that a pixel of more than 8 bits can have."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE)
    return 4095 if bits == (12,) else 65535


def eight_bit(image: Image.Image, largest: int = 65535) -> Image.Image:
    """Return an image in mode "L" or "RGB", as `decode` does.

    Args:
        image: in any mode.
        largest: what is white, where values have more than 8 bits.

    Raises:
        DataError: its pixels have no defined range.
    """
    mode = image.mode
    if mode.startswith("I"):  # I;16, I;16B, and I, as which older PNG readers give 16 bits
        return _from_16_bit(np.asarray(image), largest)
    if mode == "F":
        raise DataError("32-bit float pixels, which have no defined range")
    target = "L" if mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        white = Image.new("RGBA", colour.size, "white")
        image = Image.alpha_composite(white, colour)
    return image if image.mode == target else image.convert(target)  # which would copy


def _from_16_bit(pixels: np.ndarray, largest: int) -> Image.Image:
    if pixels.min() < 0 or pixels.max() > largest:
        raise DataError("32-bit integer pixels, which have no defined range")
    return Image.fromarray(np.round(pixels / (largest / 255)).astype(np.uint8))
