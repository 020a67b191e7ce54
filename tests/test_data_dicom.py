"""DICOM: what pydicom writes, against windows worked out by hand, and broken files."""

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.utils import set_pixel_data
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from adaptkit import DataError
from adaptkit.data import decode, list_images
from adaptkit.data.decode import image_size
from adaptkit.data.dicom import windowed

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
DEEP = RNG.integers(0, 4096, (5, 7), dtype=np.uint16)  # as of a CT: 12 of 16 bits
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def dataset(
    pixels: Any, photometric: str = "MONOCHROME2", *, bits: int | None = None, **tags: Any
) -> Dataset:
    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    found.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    found.SOPClassUID = SecondaryCaptureImageStorage
    found.SOPInstanceUID = found.file_meta.MediaStorageSOPInstanceUID
    set_pixel_data(found, pixels, photometric, bits or (12 if pixels.dtype.itemsize == 2 else 8))
    for name, value in tags.items():
        setattr(found, name, value)
    return found


def written(folder: Path, found: Dataset, name: str = "image.dcm") -> Path:
    path = folder / name
    found.save_as(path, enforce_file_format=True)
    return path


def shown(folder: Path, pixels: Any, photometric: str = "MONOCHROME2", **tags: Any) -> Any:
    image = decode(written(folder, dataset(pixels, photometric, **tags)))
    assert image.mode == ("L" if photometric.startswith("MONOCHROME") else "RGB")
    assert image.size == (7, 5)
    return np.asarray(image)


def to_bytes(share: Any) -> Any:
    return np.rint(255 * np.clip(share, 0, 1))


def test_eight_bits_are_left_alone_and_more_are_stretched(tmp_path: Path) -> None:
    np.testing.assert_array_equal(shown(tmp_path, BYTES // 2), BYTES // 2)
    low, high = int(DEEP.min()), int(DEEP.max())
    expected = to_bytes((DEEP.astype(float) - low) / (high - low))
    np.testing.assert_array_equal(shown(tmp_path, DEEP), expected)
    flat = np.full((5, 7), 9, dtype=np.uint16)
    assert not shown(tmp_path, flat).any()


def test_eight_bits_in_other_units_are_stretched(tmp_path: Path) -> None:
    found = shown(tmp_path, BYTES // 2, RescaleSlope=2, RescaleIntercept=-7)
    half = (BYTES // 2).astype(float)
    expected = to_bytes((half - half.min()) / (half.max() - half.min()))
    np.testing.assert_array_equal(found, expected)


# Of the standard: windows as they would be worked out one pixel at a time.
def linear(v: float, c: float, w: float) -> float:
    if v <= c - 0.5 - (w - 1) / 2:
        return 0
    if v > c - 0.5 + (w - 1) / 2:
        return 1
    return (v - (c - 0.5)) / (w - 1) + 0.5


def linear_exact(v: float, c: float, w: float) -> float:
    if v <= c - w / 2:
        return 0
    return 1 if v > c + w / 2 else (v - c) / w + 0.5


def sigmoid(v: float, c: float, w: float) -> float:
    return float(1 / (1 + np.exp(min(-4 * (v - c) / w, 700))))


FUNCTIONS = {"LINEAR": linear, "LINEAR_EXACT": linear_exact, "SIGMOID": sigmoid, None: linear}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("c", "w"), [(40.0, 400.0), (-600.0, 1500.0), (2000.0, 1.0)])
@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (-0.5, 900)])
def test_windows_over_a_rescale_are_the_standards(
    tmp_path: Path, function: str, c: float, w: float, slope: float, intercept: float
) -> None:
    tags: dict[str, Any] = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    tags |= {"WindowCenter": [c, 1], "WindowWidth": [w, 2]}  # of several the first
    if function:
        tags["VOILUTFunction"] = function
    found = shown(tmp_path, DEEP, **tags)
    value = DEEP.astype(float) * slope + intercept
    expected = np.vectorize(FUNCTIONS[function], otypes=[float])(value, c, w)
    np.testing.assert_array_equal(found, to_bytes(expected))
    inverted = shown(tmp_path, DEEP, "MONOCHROME1", **tags)
    np.testing.assert_array_equal(inverted, to_bytes(1 - expected))


def test_windows_that_cannot_be() -> None:
    assert windowed(np.array([-1e30, 1e30]), 0, 1e-9, "SIGMOID").tolist() == [0, 1]
    for width, function in ((0.5, "LINEAR"), (0, "LINEAR_EXACT"), (-1, "SIGMOID")):
        with pytest.raises(DataError, match="a window of width"):
            windowed(np.zeros(1), 0, width, function)
    with pytest.raises(DataError, match="an unknown window function"):
        windowed(np.zeros(1), 0, 1, "CUBIC")


def test_signed_values(tmp_path: Path) -> None:
    signed = (DEEP.astype(np.int16) - 2048).astype(np.int16)
    found = shown(tmp_path, signed, WindowCenter=0, WindowWidth=1000)
    expected = [[linear(v, 0, 1000) for v in row] for row in signed.tolist()]
    np.testing.assert_array_equal(found, to_bytes(expected))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("stated", [-2000, 63536])  # the same bits
def test_padding_is_black_and_of_no_range(tmp_path: Path, photometric: str, stated: int) -> None:
    signed = DEEP.astype(np.int16)
    signed[0] = -2000
    found = dataset(signed, photometric, bits=16)
    found.add_new("PixelPaddingValue", "SS" if stated < 0 else "US", stated)
    image = np.asarray(decode(written(tmp_path, found)))
    kept = DEEP[1:].astype(float)
    share = (kept - kept.min()) / (kept.max() - kept.min())
    assert not image[0].any()
    np.testing.assert_array_equal(
        image[1:], to_bytes(share if photometric == "MONOCHROME2" else 1 - share)
    )


def test_a_range_of_padding(tmp_path: Path) -> None:
    pixels = DEEP + 100
    pixels[:, 0], pixels[:, 1] = 3, 9
    image = shown(tmp_path, pixels, PixelPaddingValue=9, PixelPaddingRangeLimit=2)
    kept = pixels[:, 2:].astype(float)
    assert not image[:, :2].any()
    expected = to_bytes((kept - kept.min()) / (kept.max() - kept.min()))
    np.testing.assert_array_equal(image[:, 2:], expected)


def table(first: int, values: list[int], bits: int, vr: str = "US") -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values), first, bits])
    data = np.array(values, "<u2").tobytes() if vr == "OW" else values
    item.add_new("LUTData", vr, data)
    return item


@pytest.mark.parametrize("vr", ["US", "OW"])
def test_look_up_tables(tmp_path: Path, vr: str) -> None:
    of_interest = [int(v) for v in RNG.integers(0, 1024, 300)]
    place = np.clip(DEEP.astype(int) // 1 - 1000, 0, 299)
    lut = table(1000, of_interest, 10, vr)
    found = shown(tmp_path, DEEP, VOILUTSequence=[lut], WindowCenter=1, WindowWidth=2)
    np.testing.assert_array_equal(found, to_bytes(np.array(of_interest)[place] / 1023))
    of_modality = [int(v) for v in RNG.integers(0, 65536, 4096)]
    lut = table(0, of_modality, 16, vr)
    found = shown(tmp_path, DEEP, ModalityLUTSequence=[lut], WindowCenter=3e4, WindowWidth=5e4)
    expected = np.vectorize(linear, otypes=[float])(np.array(of_modality)[DEEP], 3e4, 5e4)
    np.testing.assert_array_equal(found, to_bytes(expected))


def test_enhanced_files_have_a_window_for_each_frame_or_all(tmp_path: Path) -> None:
    frames = np.stack([DEEP, DEEP // 2])
    window, scale, shared, first = Dataset(), Dataset(), Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = 100, 300
    scale.RescaleSlope, scale.RescaleIntercept = 0.25, -50
    shared.FrameVOILUTSequence = [window]
    first.PixelValueTransformationSequence = [scale]
    found = dataset(frames, SharedFunctionalGroupsSequence=[shared])
    found.PerFrameFunctionalGroupsSequence = [first, Dataset()]
    image = np.asarray(decode(written(tmp_path, found)))
    expected = np.vectorize(linear, otypes=[float])(DEEP * 0.25 - 50, 100, 300)
    np.testing.assert_array_equal(image, to_bytes(expected))


def test_of_several_frames_the_first_counts(tmp_path: Path) -> None:
    found = dataset(np.stack([BYTES, 255 - BYTES]))
    np.testing.assert_array_equal(np.asarray(decode(written(tmp_path, found))), BYTES)


def test_colour(tmp_path: Path) -> None:
    np.testing.assert_array_equal(shown(tmp_path, RGB, "RGB"), RGB)
    np.testing.assert_array_equal(
        shown(tmp_path, RGB, "RGB", WindowCenter=1, WindowWidth=2), RGB
    )  # windows are for grey
    ybr = np.asarray(Image.fromarray(RGB).convert("YCbCr"))
    assert np.abs(shown(tmp_path, ybr, "YBR_FULL").astype(int) - RGB).max() <= 3


def test_palettes(tmp_path: Path) -> None:
    colours = RNG.integers(0, 65536, (3, 256)).astype("<u2")
    found = dataset(BYTES)
    found.PhotometricInterpretation = "PALETTE COLOR"
    for name, values in zip(("Red", "Green", "Blue"), colours, strict=True):
        setattr(found, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(found, f"{name}PaletteColorLookupTableData", values.tobytes())
    image = np.asarray(decode(written(tmp_path, found)))
    np.testing.assert_array_equal(image, to_bytes(np.moveaxis(colours[:, BYTES], 0, -1) / 65535))
    del found.RedPaletteColorLookupTableData
    found.SegmentedRedPaletteColorLookupTableData = b"\0\0\1\0\0\0"
    refused(written(tmp_path, found), "segmented palette, which is not supported")


def refused(path: Path, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        decode(path)
    assert "\n" not in str(caught.value)
    assert path.name not in str(caught.value)


def test_lossless_compression_and_byte_orders_change_nothing(tmp_path: Path) -> None:
    plain = np.asarray(decode(written(tmp_path, dataset(DEEP))))
    packed = dataset(DEEP)
    packed.compress(RLELossless)
    np.testing.assert_array_equal(np.asarray(decode(written(tmp_path, packed))), plain)
    swapped = dataset(DEEP)
    swapped.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    swapped.PixelData = DEEP.byteswap().tobytes()
    np.testing.assert_array_equal(np.asarray(decode(written(tmp_path, swapped))), plain)


def test_files_of_others_that_pydicom_brings() -> None:
    path = Path(str(get_testdata_file("CT_small.dcm")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored = pydicom.dcmread(path).pixel_array.astype(float)
        image = np.asarray(decode(path))
    assert image.shape == (128, 128)
    high, low = stored.max(), stored.min()
    np.testing.assert_array_equal(image, to_bytes((stored - low) / (high - low)))


def test_they_are_known_by_their_content_and_found_by_their_name(tmp_path: Path) -> None:
    path = written(tmp_path, dataset(BYTES), "renamed.png")
    np.testing.assert_array_equal(np.asarray(decode(path)), BYTES)
    Image.fromarray(RGB).save(tmp_path / "other.jpg", quality=100)
    (tmp_path / "other.jpg").rename(tmp_path / "Other.DCM")
    assert decode(tmp_path / "Other.DCM").mode == "RGB"
    found = list_images(tmp_path)
    assert [path.name for path in found.paths] == ["Other.DCM", "renamed.png"]
    path = written(tmp_path, dataset(BYTES))
    assert image_size(path) == (7, 5)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bomb", "refused, too many pixels: 3,600,000,000"),
        ("no image", "a DICOM file without an image"),
        ("deflated", "a deflated DICOM file, which is not supported"),
        ("truncated", "."),
        ("cut in the header", "."),
        ("short of pixels", "whose header does not fit its pixels: "),
        ("text", "not an image that can be identified"),
        ("unknown", r"unknown transfer syntax \(1\.2\.3\.4\)"),
        ("no syntax", r"unknown transfer syntax"),
        ("JPEG-LS", r'compressed as JPEG-LS .* decoder is missing: pip install "pylibjpeg\[all\]"'),
    ],
)
def test_what_cannot_be_read_has_a_reason_in_one_line(
    tmp_path: Path, kind: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = dataset(DEEP)
    if kind == "bomb":
        found.Rows = found.Columns = 60000
    elif kind == "no image":
        for name in ("Rows", "Columns", "PixelData"):
            delattr(found, name)
    elif kind == "deflated":
        found.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    elif kind == "short of pixels":
        found.Rows = 50
    elif kind == "JPEG-LS":
        for plugin in ("gdcm", "pylibjpeg", "pyjpegls"):
            monkeypatch.setattr(
                f"pydicom.pixels.decoders.{plugin}.is_available", lambda _: False, raising=False
            )
        found.PixelData = (
            b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\2\0\0\0ab\xfe\xff\xdd\xe0\0\0\0\0"
        )
        found["PixelData"].is_undefined_length = True
        found.file_meta.TransferSyntaxUID = JPEGLSLossless
    path = written(tmp_path, found)
    content = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[:-20])
    elif kind == "cut in the header":
        path.write_bytes(content[:200])
    elif kind == "text":
        path.write_bytes(b"hello")
    elif kind in ("unknown", "no syntax"):
        uid = ExplicitVRLittleEndian.encode()
        other = b"1.2.3.4".ljust(len(uid) + 1, b"\0") if kind == "unknown" else b"\0" * len(uid)
        path.write_bytes(
            content.replace(uid + b"\0", other, 1)
            if kind == "unknown"
            else content.replace(uid, other, 1)
        )
    refused(path, reason)


def test_without_pydicom_there_is_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, dataset(BYTES))
    for name in ("errors", "filereader"):
        monkeypatch.setitem(sys.modules, f"pydicom.{name}", None)
    refused(path, r'a DICOM file, which needs pydicom: pip install "adaptkit\[dicom\]"')
    assert image_size(path) is None
