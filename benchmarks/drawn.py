"""More labelled images, drawn by rule, that the guard's forecast is learned on."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from benchmarks import images
from benchmarks.images import SIZE, Images, MissingDataError

TRAIN, TEST = 3000, 2000
LARGE = 2 * SIZE  # pixels that a drawing has before it is brought down
SMALL = 20  # pixels of what is scattered
# Fonts that matplotlib ships.
FONTS = (
    *(f"DejaVuSans{kind}" for kind in ("", "-Bold", "-Oblique", "Mono", "Mono-Bold")),
    *(f"DejaVuSerif{kind}" for kind in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{kind}" for kind in ("", "Bol", "Italic")),
    *("cmr10", "cmss10", "cmtt10", "cmb10"),
)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Grey = NDArray[np.float64]


@cache
def named(name: str) -> Images:
    """Return the images of `NAMES`, or of `images.NAMES`.

    Raises:
        MissingDataError: they are not on this machine.
    """
    return NAMES[name]() if name in NAMES else images.named(name)


def scattered(name: str, of: Images, margin: int, seed: int) -> Images:
    """Return images made small, anywhere on a ground of soft blotches, in a tone unlike it.

    Args:
        name: of the new images.
        of: grey ones.
        margin: pixels to cut off on every side first.
        seed: of places, grounds and tones.
    """
    x, test_x = _scattered(of.x, margin, seed), _scattered(of.test_x, margin, seed + 1)
    return replace(of, name=name, x=x, test_x=test_x)


def _scattered(x: Tensor, margin: int, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    whole = x[:, :, margin : SIZE - margin, margin : SIZE - margin].float() / 255
    small = functional.interpolate(whole, size=SMALL, mode="bilinear", antialias=True)[:, 0]
    blotches = torch.from_numpy(rng.random((len(x), 1, 5, 5)))
    soft = functional.interpolate(blotches, size=SIZE, mode="bicubic", align_corners=True)
    found = np.empty((len(x), 1, SIZE, SIZE), np.uint8)
    for number, (figure, ground) in enumerate(
        zip(small.numpy(), soft[:, 0].clamp(0, 1).numpy(), strict=True)
    ):
        top, left = rng.integers(0, SIZE - SMALL + 1, 2)
        shape = np.zeros((SIZE, SIZE))
        shape[top : top + SMALL, left : left + SMALL] = figure
        mean = ground.mean()
        tone = (mean + rng.uniform(0.4, 0.6)) % 1
        mixed = (ground + mean) / 2 * (1 - shape) + tone * shape
        found[number] = np.round(255 * mixed)
    return torch.from_numpy(found)


def letters(name: str, alphabet: str) -> Images:
    """Return letters of many fonts, sizes and slants, three in ten of them small."""

    def draw(rng: np.random.Generator, k: int) -> Grey:
        letter = alphabet[k].lower() if rng.random() < 0.3 else alphabet[k]
        font = _font(FONTS[rng.integers(len(FONTS))], int(rng.integers(34, 46)))
        image = Image.new("L", (LARGE, LARGE))
        ImageDraw.Draw(image).text((SIZE, SIZE), letter, fill=255, font=font, anchor="mm")
        turned = image.rotate(float(rng.normal(0, 8)), Image.Resampling.BILINEAR)
        return _brought_down(turned)[None]

    return _drawn(name, draw, len(alphabet))


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    try:
        import matplotlib
    except ImportError:
        hint = 'letters need the fonts of matplotlib: pip install -e ".[bench]"'
        raise MissingDataError(hint) from None
    return ImageFont.truetype(
        Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size
    )


def shapes(name: str, kinds: int) -> Images:
    """Return shapes of any colour, size and turn on grounds of any colour that fade."""

    def draw(rng: np.random.Generator, k: int) -> Grey:
        image = Image.new("L", (LARGE, LARGE))
        _SHAPES[k](ImageDraw.Draw(image), float(rng.uniform(13, 20)), float(rng.uniform(0, 6.28)))
        shape = np.roll(_brought_down(image), rng.integers(-4, 5, 2), (0, 1))
        along = np.linspace(0, 1, SIZE)
        fading = np.cos(rng.uniform(0, 6)) * along[:, None] + np.sin(rng.uniform(0, 6)) * along
        base, other = rng.random((2, 3, 1, 1))
        ground = (0.7 * base + 0.3 * other * fading).clip(0, 1)
        colour = (ground.mean((1, 2)) + rng.uniform(0.3, 0.6, 3)) % 1
        mixed: Grey = ground * (1 - shape) + colour[:, None, None] * shape
        return mixed

    return _drawn(name, draw, kinds)


def _drawn(name: str, draw: Callable[[np.random.Generator, int], Grey], classes: int) -> Images:
    parts = []
    for seed, count in enumerate((TRAIN, TEST)):
        rng = np.random.default_rng(seed)
        y = rng.integers(classes, size=count)
        x = np.stack([draw(rng, int(k)) for k in y])
        parts += [torch.from_numpy(np.round(255 * x).astype(np.uint8)), torch.from_numpy(y)]
    return Images(name, *parts)


def _brought_down(image: Image.Image) -> Grey:
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX)) / 255


_Point = tuple[float, float]


def _corners(count: int, radii: tuple[float, ...], turn: float) -> list[_Point]:
    """Return points around the middle, at radii that take turns."""
    angles = turn + 2 * np.pi * np.arange(count) / count
    return [_at(radii[i % len(radii)], angle) for i, angle in enumerate(angles)]


def _at(radius: float, angle: float) -> _Point:
    return SIZE + radius * float(np.cos(angle)), SIZE + radius * float(np.sin(angle))


def _box(radius: float, middle: _Point = (SIZE, SIZE)) -> tuple[float, float, float, float]:
    return middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius


def _cross(pen: ImageDraw.ImageDraw, radius: float, turn: float) -> None:
    for angle in (turn, turn + np.pi / 2):
        pen.line([_at(-radius, angle), _at(radius, angle)], fill=255, width=9)


def _frame(pen: ImageDraw.ImageDraw, radius: float, turn: float) -> None:
    corners = _corners(4, (radius,), turn)
    pen.line([*corners, corners[0]], fill=255, width=6, joint="curve")


def _bar(pen: ImageDraw.ImageDraw, radius: float, turn: float) -> None:
    ends = [turn - 0.34, turn + 0.34, turn + np.pi - 0.34, turn + np.pi + 0.34]
    pen.polygon([_at(radius, angle) for angle in ends], fill=255)


def _dots(pen: ImageDraw.ImageDraw, radius: float, turn: float) -> None:
    for angle in (turn, turn + np.pi):
        pen.ellipse(_box(0.42 * radius, _at(0.6 * radius, angle)), fill=255)


def _half(pen: ImageDraw.ImageDraw, radius: float, turn: float) -> None:
    start = float(np.degrees(turn))
    pen.pieslice(_box(radius), start, start + 180, fill=255)


# The first three differ most.
_SHAPES: tuple[Callable[[ImageDraw.ImageDraw, float, float], None], ...] = (
    lambda pen, r, _: pen.ellipse(_box(r), fill=255),
    _cross,
    lambda pen, r, turn: pen.polygon(_corners(3, (1.1 * r,), turn), fill=255),
    lambda pen, r, turn: pen.polygon(_corners(4, (r,), turn), fill=255),
    lambda pen, r, turn: pen.polygon(_corners(10, (1.15 * r, 0.5 * r), turn), fill=255),
    lambda pen, r, _: pen.ellipse(_box(r), outline=255, width=6),
    _frame,
    _bar,
    _dots,
    _half,
)

NAMES: dict[str, Callable[[], Images]] = {
    "scattered digits": lambda: scattered("scattered digits", images.named("digits"), 0, 20),
    "scattered MNIST": lambda: scattered("scattered MNIST", images.named("MNIST"), 4, 10),
    "letters": lambda: letters("letters", ALPHABET),
    "scattered letters": lambda: scattered(
        "scattered letters", letters("letters", ALPHABET[:10]), 4, 30
    ),
    "shapes": lambda: shapes("shapes", len(_SHAPES)),
    "three shapes": lambda: shapes("three shapes", 3),
}
