"""Four kinds of things: cells under a microscope, flags, faces, clocks."""

import numpy as np
from PIL import Image

from benchmarks.drawn.drawing import (
    LARGE,
    Pixels,
    Point,
    at,
    box,
    brought_down,
    drawn,
    fading,
    laid_on,
    moved,
    noised,
    sheet,
    soft,
)
from benchmarks.images import SIZE, Images


def cells(name: str) -> Images:
    """Return stained cells of five kinds: one lobe of nucleus, two, three; grains; none at all."""

    def draw(rng: np.random.Generator, k: int) -> Pixels:
        middle: Point = (float(SIZE + rng.normal(0, 4)), float(SIZE + rng.normal(0, 4)))
        radius = float(rng.uniform(15, 21))
        stain = rng.uniform(0.6, 1.2) * np.array([0.45, 0.6, 0.25]) + rng.normal(0, 0.04, 3)
        mixed = 0.9 - 0.08 * soft(rng, 4) * rng.uniform(0.5, 1.5, (3, 1, 1))
        body, pen = sheet()
        pen.ellipse(box(radius, middle), fill=255)
        pale = (0.9 - 0.35 * stain).clip(0, 1)
        mixed = laid_on(mixed, brought_down(body), pale)
        nucleus, pen = sheet()
        lobes, turn = (1, 2, 3, 9, 0)[k], rng.uniform(0, 6.28)
        for lobe in range(lobes):
            away = (0.0, 0.42, 0.5)[lobes - 1] if lobes < 4 else rng.uniform(0.2, 0.8)
            size = {1: 0.6, 2: 0.4, 3: 0.32}.get(lobes, 0.14) * rng.uniform(0.85, 1.15)
            place = at(away * radius, turn + 6.28 * lobe / lobes, middle)
            pen.ellipse(box(float(size * radius), place), fill=255)
        mixed = laid_on(mixed, brought_down(nucleus), (0.9 - stain).clip(0, 1))
        return noised(mixed, rng, 0.03)

    return drawn(name, draw, 5)


_RED, _WHITE, _BLUE, _GREEN = (0.8, 0.1, 0.15), (0.95,) * 3, (0.1, 0.2, 0.6), (0.05, 0.5, 0.25)
_YELLOW, _BLACK = (0.95, 0.8, 0.1), (0.05,) * 3
# Colours, and whether their stripes stand.
_FLAGS = (
    ((_BLUE, _WHITE, _RED), True),
    ((_GREEN, _WHITE, _RED), True),
    ((_BLACK, _YELLOW, _RED), True),
    ((_BLUE, _YELLOW, _RED), True),
    ((_RED, _WHITE, _RED), True),
    ((_GREEN, _WHITE, _GREEN), True),
    ((_RED, _WHITE, _BLUE), False),
    ((_BLACK, _RED, _YELLOW), False),
    ((_WHITE, _BLUE, _RED), False),
    ((_RED, _WHITE, _GREEN), False),
    ((_BLUE, _YELLOW), False),
    ((_WHITE, _RED), False),
    ((_RED, _YELLOW, _RED), False),
    ((_YELLOW, _GREEN, _RED), False),
)


def flags(name: str) -> Images:
    """Return fourteen flags of stripes, faded, in folds, before any sky."""

    def draw(rng: np.random.Generator, k: int) -> Pixels:
        colours, stand = _FLAGS[k]
        row, column = np.mgrid[:SIZE, :SIZE] / SIZE
        top, left = rng.uniform(0, 0.25, 2)
        height, width = 0.75 - rng.uniform(0, 0.2), 0.75 - rng.uniform(0, 0.1)
        fold = np.sin(rng.uniform(4, 9) * column + rng.uniform(0, 6.28))
        down, along = (row - top - 0.04 * fold) / height, (column - left) / width
        inside = (down >= 0) & (down < 1) & (along >= 0) & (along < 1)
        stripe = np.floor(len(colours) * (along if stand else down)).clip(0, len(colours) - 1)
        faded = np.array(colours) + rng.normal(0, 0.06, (len(colours), 3))
        cloth = faded[stripe.astype(int)].transpose(2, 0, 1) * (0.9 + 0.15 * fold)
        mixed = np.where(inside, rng.uniform(0.6, 1.1) * cloth, fading(rng))
        return noised(mixed, rng, 0.05)

    return drawn(name, draw, len(_FLAGS))


def faces(name: str) -> Images:
    """Return faces of any colour with one of six looks, by mouth and brows."""

    def draw(rng: np.random.Generator, k: int) -> Pixels:
        head, pen = sheet()
        pen.ellipse((8, 4, LARGE - 8, LARGE - 4), fill=255)
        look, pen = sheet()
        for side in (-1, 1):
            x = SIZE + side * float(rng.normal(9, 1))
            pen.ellipse(box(float(rng.uniform(1.5, 3)), (x, 24)), fill=255)
            tilt = side * (0, 0, 0, 4, -4, 0)[k] + float(rng.normal(0, 0.7))
            pen.line([(x - 5, 16 + tilt * 0.8), (x + 5, 16 - tilt * 0.8)], fill=255, width=2)
        bend, y = (7, -7, 0, -5, 5, 0)[k] + float(rng.normal(0, 0.8)), 39 + float(rng.normal(0, 1))
        if k == 5:  # astonished
            pen.ellipse(box(float(rng.uniform(4, 6)), (SIZE, y)), outline=255, width=3)
        else:
            across = np.linspace(-1, 1, 15)
            mouth = [(SIZE + 11 * float(x), y + bend * float(0.5 - x * x)) for x in across]
            pen.line(mouth, fill=255, width=3, joint="curve")
        size = float(rng.uniform(0.75, 1.0))
        turn = float(rng.normal(0, 8))
        parts = []
        for image in (head, look):
            turned = image.rotate(turn, Image.Resampling.BILINEAR)
            away = LARGE / size
            area = (SIZE - away / 2, SIZE - away / 2, SIZE + away / 2, SIZE + away / 2)
            parts.append(turned.transform((LARGE, LARGE), Image.Transform.EXTENT, area))
        step = rng.integers(-2, 3, 2)
        shape, lines = (np.roll(brought_down(part), step, (0, 1)) for part in parts)
        skin = rng.uniform(0.35, 0.95, 3)
        mixed = laid_on(laid_on(fading(rng), shape, skin), lines, 0.35 * skin)
        return noised(mixed, rng, 0.03)

    return drawn(name, draw, 6)


def clocks(name: str, hours: int) -> Images:
    """Return clocks in grey, at any minute of so many hours."""

    def draw(rng: np.random.Generator, k: int) -> Pixels:
        dial, pen = sheet()
        radius = float(rng.uniform(22, 26))
        pen.ellipse(box(radius), fill=200, outline=255, width=2)
        minute = rng.random()
        for length, width, turn in ((0.55, 6, (k + minute) / hours), (0.85, 2, minute)):
            tip = at(length * radius, 2 * np.pi * float(turn) - np.pi / 2)
            pen.line([(SIZE, SIZE), tip], fill=0, width=width)
        ground = 0.5 * soft(rng, 5)
        shown = moved(brought_down(dial), rng, 2)
        mixed = np.where(shown > 0, shown * rng.uniform(0.6, 1.0), ground)
        return noised(mixed, rng, 0.04)[None]

    return drawn(name, draw, hours)
