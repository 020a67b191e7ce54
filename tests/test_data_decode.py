"""decode() on every mode that Pillow writes, and on files that are broken."""

import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adaptkit import DataError, Transform, image_folder
from adaptkit.data import decode

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (6, 9), dtype=np.uint8)


def saved(folder: Path, image: Image.Image, suffix: str = ".png", **options: Any) -> Path:
    path = folder / f"image{suffix}"
    image.save(path, **options)
    return path


def test_grey_and_rgb_are_left_alone(tmp_path: Path) -> None:
    for pixels, mode in ((GREY, "L"), (RGB, "RGB")):
        image = decode(saved(tmp_path, Image.fromarray(pixels)))
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_are_scaled_not_cut(tmp_path: Path, suffix: str) -> None:
    deep = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    image = decode(saved(tmp_path, Image.fromarray(deep), suffix))
    assert image.mode == "L"
    assert np.asarray(image).tolist() == [[0, 1, 128, 255]]


def test_twelve_bits_are_scaled_from_their_own_range(tmp_path: Path) -> None:
    packed = sum(value << 12 * i for i, value in enumerate((4095, 2048, 16, 0))).to_bytes(6, "big")
    tags = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 6}
    entries = [struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items()]
    head = b"II*\0" + struct.pack("<I", 14) + packed + struct.pack("<H", len(tags))
    path = tmp_path / "image.tif"
    path.write_bytes(head + b"".join(entries) + bytes(4))
    assert np.asarray(decode(path)).tolist() == [[0, 1, 128, 255]]


def test_sixteen_bits_in_either_byte_order(tmp_path: Path) -> None:
    deep = np.array([[0, 257, 32768, 65535]], dtype=">u2")
    path = saved(tmp_path, Image.frombytes("I;16B", (4, 1), deep.tobytes()), ".tif")
    with Image.open(path) as stored:
        assert stored.mode == "I;16B"
    assert np.asarray(decode(path)).tolist() == [[0, 1, 128, 255]]


@pytest.mark.parametrize(("colour", "mode"), [(RGB, "RGB"), (GREY, "L")])
def test_transparency_is_laid_on_white(tmp_path: Path, colour: np.ndarray, mode: str) -> None:
    image = decode(saved(tmp_path, Image.fromarray(np.dstack([colour, ALPHA]))))
    assert image.mode == mode
    share = (ALPHA / 255)[..., None] if mode == "RGB" else ALPHA / 255
    expected = colour * share + 255 * (1 - share)
    assert np.abs(np.asarray(image) - expected).max() <= 1.01


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_a_see_through_colour_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    black = (0, 0, 0) if mode == "RGB" else 0
    picture = Image.new(mode, (2, 1), "white")
    picture.putpixel((0, 0), black)
    assert np.asarray(decode(saved(tmp_path, picture))).min() == 0
    image = decode(saved(tmp_path, picture, transparency=black))
    assert image.mode == ("RGB" if mode == "RGB" else "L")
    assert (np.asarray(image) == 255).all()


def test_a_palette_with_alpha(tmp_path: Path) -> None:
    picture = Image.fromarray(GREY).convert("PA")
    picture.putalpha(Image.fromarray(ALPHA))
    assert picture.mode == "PA"
    image = decode(saved(tmp_path, picture, ".tif"))
    share = (ALPHA / 255)[..., None]
    expected = GREY[..., None] * share + 255 * (1 - share)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image) - expected).max() <= 1.01


def test_palettes(tmp_path: Path) -> None:
    picture = Image.fromarray(RGB).quantize(16)
    image = decode(saved(tmp_path, picture))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(picture.convert("RGB")))
    see_through = decode(saved(tmp_path, picture, transparency=0))
    hidden = np.asarray(picture) == 0
    assert hidden.any()
    assert (np.asarray(see_through)[hidden] == 255).all()


def test_one_bit_and_cmyk(tmp_path: Path) -> None:
    image = decode(saved(tmp_path, Image.fromarray(GREY > 99)))
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image) == 255, GREY > 99)
    flat = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    red = np.asarray(decode(saved(tmp_path, flat, ".jpg")))
    assert np.abs(red.mean((0, 1)) - [255, 0, 0]).max() < 3


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image = decode(saved(tmp_path, Image.fromarray(RGB), exif=exif))
    np.testing.assert_array_equal(np.asarray(image), np.rot90(RGB, -1))


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), value) for value in (50, 200)]
    image = decode(saved(tmp_path, frames[0], ".gif", save_all=True, append_images=frames[1:]))
    assert set(np.asarray(image.convert("L")).ravel()) == {50}


def bomb() -> bytes:
    """Write a PNG of a few bytes that declares 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def half(folder: Path, suffix: str) -> bytes:
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = saved(folder, Image.fromarray(noise), suffix).read_bytes()
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("text", "not an image"),
        ("empty", "not an image"),
        ("bomb", "too many pixels"),
        ("missing", "not there any more"),
        ("folder", "not a regular file"),
        ("pipe", "not a regular file"),
        ("circle", "Too many levels"),
        ("postscript", "not an image"),
        (".jpg", "truncated"),
        (".png", "truncated"),
        ("float", "no defined range"),
        ("integer", "no defined range"),
    ],
)
def test_what_cannot_be_read_has_a_reason_in_one_line(
    tmp_path: Path, kind: str, reason: str
) -> None:
    path = tmp_path / "bad.png"
    if kind in ("pipe", "circle") and sys.platform == "win32":
        pytest.skip("named pipes and free links are not on Windows")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "postscript":
        saved(tmp_path, Image.fromarray(RGB), ".eps").rename(path)
    elif kind in ("float", "integer"):
        values = np.full((2, 2), -1, dtype=np.float32 if kind == "float" else np.int32)
        path = saved(tmp_path, Image.fromarray(values), ".tif")
    elif kind != "missing":
        content = {"text": b"hello", "empty": b"", "bomb": bomb()}
        path.write_bytes(content[kind] if kind in content else half(tmp_path, kind))
    with pytest.raises(DataError, match=reason) as caught:
        decode(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(PermissionError(13, "Permission denied", "x.png"), "Permission denied"), (MemoryError(), "")],
)
def test_what_the_system_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    path = saved(tmp_path, Image.fromarray(GREY))

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Image, "open", refuse)  # root, as whom CI may run, is refused nothing
    with pytest.raises(DataError, match=f"^{reason or 'MemoryError'}$"):
        decode(path)


def photograph(folder: Path, size: tuple[int, int], orientation: int = 1) -> Path:
    """A smooth picture with some detail, as JPEG."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (50, 60, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = folder / f"{size[0]}-{orientation}.jpg"
    noise.resize(size, Image.Resampling.BICUBIC).save(path, quality=92, exif=exif)
    return path


CROP = Transform((112, 112), resize="crop", resize_size=128)


@pytest.mark.parametrize(
    ("transform", "size", "orientation", "expected"),
    [
        (CROP, (2000, 1500), 1, (500, 375)),
        (CROP, (2048, 1024), 1, (512, 256)),
        (CROP, (2046, 1022), 1, (1023, 511)),
        (CROP, (2000, 1500), 6, (375, 500)),
        (CROP, (1000, 500), 1, (1000, 500)),
        (Transform((100, 50)), (2000, 1500), 1, (500, 375)),
        (Transform((100, 50)), (2000, 1500), 6, (188, 250)),
        (Transform((100, 50), interpolation="nearest"), (2000, 1500), 1, (2000, 1500)),
    ],
)
def test_large_jpegs_are_decoded_at_a_scale_that_leaves_twice_of_what_is_needed(
    tmp_path: Path,
    transform: Transform,
    size: tuple[int, int],
    orientation: int,
    expected: tuple[int, int],
) -> None:
    path = photograph(tmp_path, size, orientation)
    whole, scaled = decode(path), decode(path, transform.needed)
    assert whole.size == (size if orientation == 1 else size[::-1])
    assert scaled.size == expected
    least = min(s / w for s, w in zip(scaled.size, transform.resized(whole.size), strict=True))
    assert least >= 2 or scaled.size == whole.size
    apart = transform.pixels(scaled).int() - transform.pixels(whole).int()
    assert apart.abs().double().mean() < 4  # turned the wrong way it would be 80


def test_what_is_no_jpeg_is_decoded_whole(tmp_path: Path) -> None:
    Image.new("L", (1000, 800)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", CROP.needed).size == (1000, 800)


def test_images_are_decoded_whole_unless_asked_otherwise(tmp_path: Path) -> None:
    path = photograph(tmp_path, (2048, 1024))
    plain, fast = (image_folder(tmp_path, transform=CROP, fast_jpeg=how) for how in (False, True))
    assert torch.equal(next(iter(plain))[0], CROP(decode(path)))
    assert torch.equal(next(iter(fast.subset([0])))[0], CROP(decode(path, CROP.needed)))
    assert not torch.equal(next(iter(fast)), next(iter(plain)))
