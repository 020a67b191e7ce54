"""One DICOM file to pixels: 8-bit grey or RGB, as a viewer first shows it."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adaptkit.errors import DataError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

DICOM = (".dcm", ".dicom")  # how such files are named
_DEFLATED = "1.2.840.10008.1.2.1.99"
_MOST_PIXELS = 2 * 89_478_485  # Pillow's own limit

Floats = NDArray[np.float64]
Stored = NDArray[Any]  # as in the file: integers, seldom floats
Bools = NDArray[np.bool_]


def is_dicom(path: str | Path | BinaryIO) -> bool:
    """Whether a file, by its path or open, says of itself that it is DICOM."""
    if isinstance(path, (str, Path)):
        with Path(path).open("rb") as file:
            return is_dicom(file)
    path.seek(0)
    return path.read(132)[128:] == b"DICM"


def decode_dicom(path: str | Path | BinaryIO) -> Image.Image:
    """Read the first frame of a DICOM file, by its path or open, into mode "L" or "RGB".

    Grey goes the standard's way (PS3.3 C.11.1 and C.11.2) from what is stored:

    - modality: value·slope + intercept, or a look-up table;
    - values of interest: a look-up table, else the first window, by its function LINEAR (the
      default), LINEAR_EXACT or SIGMOID. Without either, up to 8 bits keep their range, and more are
      stretched so that the least value is black and the largest white;
    - MONOCHROME1 is inverted. Padding is black, and no part of a range.

    Slopes and windows of enhanced files are the first frame's, or those of all. Colour, also in YBR
    or by a palette, becomes RGB.

    Raises:
        DataError: the file holds no image, or one that is too large, or pydicom (or what it needs
            for this compression) is not installed. The message is the reason alone, without the
            path. pydicom raises other errors on a broken file.
    """
    if not isinstance(path, (str, Path)):  # of which pydicom would not read the header alone
        with tempfile.NamedTemporaryFile() as copy:
            path.seek(0)
            shutil.copyfileobj(path, copy)
            copy.flush()
            return decode_dicom(copy.name)
    try:
        from pydicom.errors import InvalidDicomError
        from pydicom.filereader import dcmread, read_file_meta_info
        from pydicom.pixels.processing import apply_color_lut
        from pydicom.pixels.utils import pixel_array
    except ImportError:
        raise DataError(
            'a DICOM file, which needs pydicom: pip install "adaptkit[dicom]"'
        ) from None
    try:
        syntax = read_file_meta_info(path).get("TransferSyntaxUID")
    except InvalidDicomError:
        raise DataError("not a DICOM file") from None
    if syntax == _DEFLATED:  # which pydicom would inflate to any size
        raise DataError("a deflated DICOM file, which is not supported")
    with Path(path).open("rb") as file:
        header = dcmread(file, stop_before_pixels=True)
        _check(header, syntax)
        try:
            stored = pixel_array(file, index=0)
        except ValueError as error:
            raise DataError(f"a DICOM file whose header does not fit its pixels: {error}") from None
    if header.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(stored, header)
        return Image.fromarray(_to_8_bits(colours / np.iinfo(colours.dtype).max))
    if stored.ndim == 3:
        return Image.fromarray(_to_8_bits(stored / (2**header.BitsStored - 1)))
    return Image.fromarray(_to_8_bits(_shown(stored, header)))


def dicom_size(path: str | Path) -> tuple[int, int] | None:
    """Return a DICOM image's (width, height) in pixels from its header; None if it has none."""
    from pydicom.filereader import dcmread, read_file_meta_info

    if read_file_meta_info(path).get("TransferSyntaxUID") == _DEFLATED:
        return None
    header = dcmread(path, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
    return (int(header.Columns), int(header.Rows)) if "Rows" in header else None


def _check(header: "Dataset", syntax: Any) -> None:
    """Refuse what has no image, too large a one, or one that nothing here can decompress."""
    from pydicom.pixels.decoders.base import get_decoder

    if not header.get("Rows") or not header.get("Columns"):
        raise DataError("a DICOM file without an image")
    if (size := header.Rows * header.Columns) > _MOST_PIXELS:
        raise DataError(f"refused, too many pixels: {size:,}, more than {_MOST_PIXELS:,}")
    if "SegmentedRedPaletteColorLookupTableData" in header:  # a few bytes that stand for millions
        raise DataError("a DICOM file with a segmented palette, which is not supported")
    try:
        decoder = get_decoder(syntax)
    except (NotImplementedError, AttributeError, ValueError):
        raise DataError(f"a DICOM file of an unknown transfer syntax ({syntax})") from None
    if not decoder.is_available:
        raise DataError(
            f"a DICOM file compressed as {decoder.UID.name}, for which a decoder is missing: "
            f'pip install "pylibjpeg[all]"'
        )


def _shown(stored: Stored, header: "Dataset") -> Floats:
    """Return how bright grey pixels are shown, 0 (black) to 1."""
    padding = _padding(stored, header)
    values = _of_modality(stored, header)
    shown = _of_interest(values, header)
    if shown is None:
        small = header.BitsStored <= 8 and stored.dtype.kind == "u"
        if small and np.array_equal(values, stored):
            shown = values / (2**header.BitsStored - 1)
        else:
            shown = _stretched(values, ~padding)
    if header.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    return np.where(padding, 0.0, shown)


def _padding(stored: Stored, header: "Dataset") -> Bools:
    """Return where pixels are not of the image."""
    first = header.get("PixelPaddingValue")
    if first is None:
        return ~np.isfinite(stored)
    # Some files write a negative number as the unsigned one of the same bits.
    first, last = (
        np.array(int(value)).astype(stored.dtype)
        for value in (first, header.get("PixelPaddingRangeLimit", first))
    )
    return (stored >= min(first, last)) & (stored <= max(first, last)) | ~np.isfinite(stored)


def _of_modality(stored: Stored, header: "Dataset") -> Floats:
    if tables := header.get("ModalityLUTSequence"):
        return _looked_up(stored, tables[0], header)[0]
    group = _of_first_frame(header, "PixelValueTransformationSequence")
    slope, intercept = _number(group, "RescaleSlope"), _number(group, "RescaleIntercept")
    scaled = stored.astype(np.float64) * (1.0 if slope is None else slope)
    return scaled + (intercept or 0.0)


def _of_interest(values: Floats, header: "Dataset") -> Floats | None:
    """Apply a look-up table or a window, if there is one."""
    if tables := header.get("VOILUTSequence"):
        found, most = _looked_up(values, tables[0], header)
        return found / most
    group = _of_first_frame(header, "FrameVOILUTSequence")
    centre, width = _number(group, "WindowCenter"), _number(group, "WindowWidth")
    if centre is None or width is None:
        return None
    return windowed(values, centre, width, str(group.get("VOILUTFunction") or "LINEAR"))


def windowed(values: Floats, centre: float, width: float, function: str = "LINEAR") -> Floats:
    """Return how bright values are in a window, 0 to 1.

    With c the centre and w the width:

        LINEAR:        (v − (c − 0.5)) / (w − 1) + 0.5, cut off at 0 and 1
        LINEAR_EXACT:  (v − c) / w + 0.5, cut off at 0 and 1
        SIGMOID:       1 / (1 + exp(−4·(v − c) / w))

    Raises:
        DataError: the width is too small, or there is no such function.

    Source: DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3.

    >>> windowed(np.array([-160.0, 39.5, 300.0]), 40, 400).tolist()
    [0.0, 0.5, 1.0]
    """
    function = function.upper()
    if width < 1 if function == "LINEAR" else width <= 0:
        raise DataError(f"a DICOM file with a window of width {width:g}")
    if function == "SIGMOID":
        # By tanh, which never overflows.
        return np.asarray(0.5 + 0.5 * np.tanh(2 * (values - centre) / width))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    elif function != "LINEAR_EXACT":
        raise DataError(f"a DICOM file with an unknown window function ({function:.40})")
    if not width:
        return (values > centre).astype(np.float64)
    return np.clip((values - centre) / width + 0.5, 0, 1)


def _stretched(values: Floats, inside: Bools) -> Floats:
    if not inside.any():
        return np.zeros_like(values)
    low, high = float(values[inside].min()), float(values[inside].max())
    return np.asarray(np.clip((values - low) / (high - low or 1), 0, 1))


def _looked_up(values: NDArray[Any], item: "Dataset", header: "Dataset") -> tuple[Floats, float]:
    """Return what a look-up table has for each value, and the most that it can have."""
    count, first, bits = map(int, item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        count = count or 2**16
        order = "<" if header.original_encoding[1] else ">"
        data = np.frombuffer(data, np.uint8 if len(data) < 2 * count else f"{order}u2")
    table = np.asarray(data, dtype=np.float64)
    found = table[np.clip(np.rint(values) - first, 0, len(table) - 1).astype(np.int64)]
    return found, float(2**bits - 1)


def _of_first_frame(header: "Dataset", name: str) -> "Dataset":
    """Return where an enhanced file has its first frame's values; the file itself if it is none."""
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        if (every := header.get(groups)) and (found := every[0].get(name)):
            return found[0]  # type: ignore[no-any-return]
    return header


def _number(group: "Dataset", name: str) -> float | None:
    """Return a value, the first one of several."""
    value = group.get(name)
    if isinstance(value, (str, int, float)) or value is None:
        return None if value is None or value == "" else float(value)
    return float(value[0]) if len(value) else None


def _to_8_bits(shares: Floats) -> NDArray[np.uint8]:
    return np.rint(255 * np.clip(shares, 0, 1)).astype(np.uint8)
