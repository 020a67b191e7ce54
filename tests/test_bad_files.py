"""A folder with one of each kind of bad file beside good ones, through the whole command."""

import ctypes
import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from adaptkit import Transform, image_folder, load_checkpoint, save_checkpoint
from adaptkit.data import decode, listing
from adaptkit.data.cache import PixelCache
from adaptkit.models import SmallCNN
from adaptkit.norms import norm_layers, read
from cli import main

ROOT = Path(__file__).parent.parent
COLOUR = Transform(image_size=(8, 8), channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)


def bomb() -> bytes:
    """Write a PNG of a few bytes that declares 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def odd(folder: Path) -> dict[str, Any]:
    """Write good images of odd kinds; return their RGB pixels, worked out without Pillow."""
    cmyk = RNG.integers(0, 256, (8, 8, 4), dtype=np.uint8)
    deep = RNG.integers(0, 65536, (8, 8), dtype=np.uint16)
    grey = np.repeat((deep / 257).round()[..., None], 3, axis=2)
    ink, black = 255.0 - cmyk[..., :3], 255.0 - cmyk[..., 3:]
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter clockwise
    for suffix in (".gif", ".webp", ".png"):
        options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
        options |= {"save_all": True, "append_images": frames[1:]}
        frames[0].save(folder / f"animated{suffix}", **options)
    Image.frombytes("CMYK", (8, 8), cmyk.tobytes()).save(folder / "cmyk.tif")
    Image.fromarray(NOISE).save(folder / "turned.png", exif=turned)
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(deep).save(folder / "deep.tiff")
    Image.fromarray(NOISE).save(folder / "a PNG by content.jpg", format="PNG")
    Image.fromarray(NOISE).save(folder / "UPPER.BMP")
    red = np.broadcast_to([255.0, 0, 0], (8, 8, 3))
    return {
        **{f"animated{suffix}": red for suffix in (".gif", ".webp", ".png")},
        "cmyk.tif": ink * black / 255,
        "turned.png": np.rot90(NOISE, -1),
        "deep.png": grey,
        "deep.tiff": grey,
        "a PNG by content.jpg": NOISE,
        "UPPER.BMP": NOISE,
    }


BAD = {
    "bomb.png": "too many pixels",
    "circle.png": "Too many levels of symbolic links",
    "cut.jpg": "truncated",
    "cut.png": "truncated",
    "empty.jpg": "not an image that can be identified",
    "forbidden.png": "Permission denied",
    "gone.png": "not there any more",
    "pipe.png": "not a regular file",
    "text.jpg": "not an image that can be identified",
    "[red]two\nlines.png": "not an image that can be identified",
    os.fsdecode(b"not UTF-8 \xff.png"): "not an image that can be identified",
}


def spoil(folder: Path) -> None:
    """Put the bad files beside the good ones."""
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for suffix in ("jpg", "png"):
        path = folder / f"cut.{suffix}"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "empty.jpg").touch()
    (folder / "forbidden.png").touch(mode=0)
    os.mkfifo(folder / "pipe.png")
    for name in BAD:
        if not (folder / name).is_symlink() and not (folder / name).exists():
            (folder / name).write_bytes(b"hello")
    (folder / ".hidden.png").write_bytes(b"hello")
    (folder / "up").symlink_to(folder)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """source.pt, and the same good images in good/ and in mixed/, where the bad ones are too."""
    torch.manual_seed(0)
    save_checkpoint(
        tmp_path / "source.pt",
        SmallCNN(in_channels=3, num_classes=3),
        arch="adaptkit:small_cnn",
        arch_kwargs={"in_channels": 3, "num_classes": 3},
        transform=COLOUR,
    )
    for name in ("good", "mixed"):
        folder = tmp_path / name
        folder.mkdir()
        rng = np.random.default_rng(1)
        for i in range(20):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:03}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Take from root, as whom CI may run, what lets it read everything: of this thread alone."""
    if sys.platform != "linux" or os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, own = struct.pack("Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    assert libc.capget(header, own) == 0
    effective, *rest = struct.unpack("6I", own.raw)
    less = struct.pack("6I", effective & ~0b110, *rest)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, less) == 0
    try:
        yield
    finally:
        assert libc.capset(header, own.raw) == 0


def adapt(target: str, out: str, *args: str) -> Result:
    line = ["adapt", "--source", "source.pt", "--target", target, "--out", out, "--device", "cpu"]
    return CliRunner().invoke(main, [*line, "--guard", "off", *args])


def statistics(path: str) -> list[torch.Tensor]:
    layers = map(read, norm_layers(load_checkpoint(path).model).values())
    return [value for layer in layers for value in (layer.mean, layer.variance)]


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes, free links or modes")
@pytest.mark.parametrize("workers", ["0", "2"])
def test_bad_files_are_named_and_change_nothing(here: Path, workers: str) -> None:
    odd(here / "good")
    good = adapt("good", "good.pt")
    assert good.exit_code == 0, good.output
    assert "Skipped" not in good.stdout
    for path in (here / "good").iterdir():
        path.rename(here / "mixed" / path.name)
    spoil(here / "mixed")
    with bound_by_permissions():
        stopped = adapt("mixed", "out.pt", "--workers", workers)
        mixed = adapt("mixed", "out.pt", "--workers", workers, "--skip-bad", "--batch-size", "7")
    assert stopped.exit_code == 1
    assert stopped.output.startswith("Error: 11 of 40 images cannot be read, the first being ")
    assert stopped.output.count("\n") == 1
    assert "--skip-bad" in stopped.output

    assert mixed.exit_code == 0, mixed.output
    found = json.loads(Path("out.json").read_text(encoding="utf-8"))
    assert found["skipped"].keys() == BAD.keys()
    for name, reason in BAD.items():
        assert reason in found["skipped"][name], name
    assert found["samples"]["images"] == 40
    assert found["samples"]["evaluated"] == found["samples"]["estimated"] == 29
    assert "Adapted 4 norm layers on 29 of 40 images" in mixed.stdout
    assert "\nSkipped 11 that cannot be read:\n" in mixed.stdout
    assert "  bomb.png: refused, too many pixels" in mixed.stdout
    torch.testing.assert_close(statistics("out.pt"), statistics("good.pt"), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_odd_images_are_read_as_they_look(tmp_path: Path, workers: int) -> None:
    expected = odd(tmp_path)
    loader = image_folder(tmp_path, transform=COLOUR, batch_size=4, workers=workers)
    images = torch.cat(list(loader)).numpy()
    assert not loader.skipped
    assert [path.name for path in loader.paths()] == sorted(expected)
    for image, name in zip(images, sorted(expected), strict=True):
        shown = np.moveaxis(image, 0, 2) * 0.25 + 0.5
        np.testing.assert_allclose(shown, expected[name] / 255, atol=1.01 / 255, err_msg=name)


def test_an_image_may_vanish_at_any_time(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it goes before a run's first pass over the images, or between two of its passes."""
    reads = 0

    def vanishing(path: Path, *more: Any) -> Image.Image:
        nonlocal reads
        reads += 1
        if reads == when:
            (here / "mixed" / "007.png").unlink()
        return decode(path, *more)

    monkeypatch.setattr(listing, "decode", vanishing)
    monkeypatch.setattr(PixelCache, "put", lambda *_: None)  # as where there is no room for them
    for when in (1, 21, 41):
        Image.fromarray(NOISE).save(here / "mixed" / "007.png")
        reads = 0
        run = adapt("mixed", f"out-{when}.pt")
        assert run.exit_code == 0, run.output
        assert reads > when
        found = json.loads(Path(f"out-{when}.json").read_text(encoding="utf-8"))
        assert found["skipped"] == {"007.png": "not there any more"}


def test_where_nothing_can_be_read_the_first_reason_is_told(here: Path) -> None:
    for path in (here / "good").iterdir():
        path.write_bytes(b"hello")
    run = adapt("good", "out.pt", "--skip-bad")
    assert run.exit_code == 1
    assert run.output == (
        "Error: none of the 20 images in good can be read, the first being 000.png (not an image "
        "that can be identified)\n"
    )
    assert not Path("out.pt").exists()


DYING = """
import multiprocessing, os, signal
from adaptkit.data import listing
good = listing.decode

def decode(path, *more):
    if path.name == "013.png" and multiprocessing.parent_process():
        os.kill(os.getpid(), signal.{})
    return good(path, *more)

listing.decode = decode
from cli import main
main(prog_name="adaptkit")
"""


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or sys.version_info >= (3, 14),
    reason="a worker sees what a test replaced only where it is forked",
)
@pytest.mark.parametrize("end", ["SIGKILL", "SIGBUS"])
def test_a_worker_that_is_killed_ends_the_run_with_one_line(here: Path, end: str) -> None:
    """SIGKILL is how the system ends what takes too much memory; SIGBUS, too much shared memory."""
    before = sorted(here.iterdir())
    options = ["--source", "source.pt", "--target", "mixed", "--device", "cpu", "--workers", "2"]
    run = subprocess.run(
        [sys.executable, "-c", DYING.format(end), "adapt", *options, "--batch-size", "4"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert not run.stdout
    ours = [
        line for line in run.stderr.splitlines() if not line.startswith("ERROR: Unexpected bus")
    ]
    assert len(ours) == 1, run.stderr  # torch's own says of a bus error what it may be
    assert "Error: a process that decodes images ended unexpectedly (out of" in ours[0]
    assert sorted(here.iterdir()) == before
    assert signal.Signals[end].name == end
