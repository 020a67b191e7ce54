"""What drawings have in common: sizes, grounds, and turning one drawer into labelled images."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.images import SIZE, Images

TRAIN, TEST = 3000, 2000
LARGE = 2 * SIZE  # pixels that a drawing has before it is brought down
Pixels = NDArray[np.float64]  # of 0 to 1; shape (H, W), or (C, H, W)
Point = tuple[float, float]


def drawn(name: str, draw: Callable[[np.random.Generator, int], Pixels], classes: int) -> Images:
    """Return images of classes that are as likely, each drawn by itself.

    Args:
        name: of them.
        draw: makes one of a class, shape (C, 28, 28), of 0 to 1.
        classes: how many.
    """
    parts = []
    for seed, count in enumerate((TRAIN, TEST)):
        rng = np.random.default_rng(seed)
        y = rng.integers(classes, size=count)
        x = np.stack([draw(rng, int(k)) for k in y])
        pixels = np.round(255 * x.clip(0, 1)).astype(np.uint8)
        parts += [torch.from_numpy(pixels), torch.from_numpy(y)]
    return Images(name, *parts)


def sheet() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Return a black sheet of `LARGE` to draw on, and a pen for it."""
    image = Image.new("L", (LARGE, LARGE))
    return image, ImageDraw.Draw(image)


def brought_down(image: Image.Image) -> Pixels:
    """Return it at 28 px, of 0 to 1."""
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX)) / 255


def at(radius: float, angle: float, middle: Point = (SIZE, SIZE)) -> Point:
    """Return the point of a sheet that lies there, seen from the middle."""
    x, y = middle
    return x + radius * float(np.cos(angle)), y + radius * float(np.sin(angle))


def box(radius: float, middle: Point = (SIZE, SIZE)) -> tuple[float, float, float, float]:
    """Return the square around a circle."""
    return middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius


def soft(rng: np.random.Generator, cells: int) -> Pixels:
    """Return a grey ground of soft blotches, so many along a side, shape (28, 28)."""
    small = Image.fromarray((255 * rng.random((cells, cells))).astype(np.uint8))
    return np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) / 255


def fading(rng: np.random.Generator) -> Pixels:
    """Return a ground of any colour that fades along any direction, shape (3, 28, 28)."""
    along = np.linspace(0, 1, SIZE)
    slope = np.cos(rng.uniform(0, 6)) * along[:, None] + np.sin(rng.uniform(0, 6)) * along
    base, other = rng.random((2, 3, 1, 1))
    ground: Pixels = (0.7 * base + 0.3 * other * slope).clip(0, 1)
    return ground


def laid_on(ground: Pixels, shape: Pixels, colour: Pixels) -> Pixels:
    """Return a ground (3, H, W) with a shape (H, W) on it, in a colour (3,)."""
    mixed: Pixels = ground * (1 - shape) + colour[:, None, None] * shape
    return mixed


def moved(shape: Pixels, rng: np.random.Generator, by: int) -> Pixels:
    """Return it moved by up to so many pixels each way."""
    return np.roll(shape, rng.integers(-by, by + 1, 2), (0, 1))


def noised(image: Pixels, rng: np.random.Generator, spread: float) -> Pixels:
    """Return it under Gaussian noise."""
    return image + rng.normal(0, spread, image.shape)
