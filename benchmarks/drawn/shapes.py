"""Shapes of any colour on grounds of any colour, to be named or to be counted."""

from collections.abc import Callable

import numpy as np
from PIL import ImageDraw

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
    sheet,
)
from benchmarks.images import Images


def shapes(name: str, kinds: int) -> Images:
    """Return shapes of any colour, size and turn on grounds of any colour that fade."""

    def draw(rng: np.random.Generator, k: int) -> Pixels:
        image, pen = sheet()
        _SHAPES[k](pen, float(rng.uniform(13, 20)), float(rng.uniform(0, 6.28)))
        shape, ground = moved(brought_down(image), rng, 4), fading(rng)
        colour = (ground.mean((1, 2)) + rng.uniform(0.3, 0.6, 3)) % 1
        return laid_on(ground, shape, colour)

    return drawn(name, draw, kinds)


def counted(name: str, most: int) -> Images:
    """Return one disc to `most` of them, apart, in colours and sizes of their own."""

    def draw(rng: np.random.Generator, k: int) -> Pixels:
        mixed = fading(rng)
        places: list[Point] = []
        while len(places) < k + 1:
            x, y = rng.uniform(8, LARGE - 8, 2)
            if all(np.hypot(x - a, y - b) > 13 for a, b in places):
                places.append((float(x), float(y)))
        colour = (mixed.mean((1, 2)) + rng.uniform(0.35, 0.6, 3)) % 1
        for place in places:
            image, pen = sheet()
            pen.ellipse(box(float(rng.uniform(4, 6)), place), fill=255)
            own = (colour + rng.normal(0, 0.05, 3)).clip(0, 1)
            mixed = laid_on(mixed, brought_down(image), own)
        return mixed

    return drawn(name, draw, most)


def _corners(count: int, radii: tuple[float, ...], turn: float) -> list[Point]:
    """Return points around the middle, at radii that take turns."""
    angles = turn + 2 * np.pi * np.arange(count) / count
    return [at(radii[i % len(radii)], angle) for i, angle in enumerate(angles)]


def _cross(pen: ImageDraw.ImageDraw, radius: float, turn: float) -> None:
    for angle in (turn, turn + np.pi / 2):
        pen.line([at(-radius, angle), at(radius, angle)], fill=255, width=9)


def _frame(pen: ImageDraw.ImageDraw, radius: float, turn: float) -> None:
    corners = _corners(4, (radius,), turn)
    pen.line([*corners, corners[0]], fill=255, width=6, joint="curve")


def _bar(pen: ImageDraw.ImageDraw, radius: float, turn: float) -> None:
    ends = [turn - 0.34, turn + 0.34, turn + np.pi - 0.34, turn + np.pi + 0.34]
    pen.polygon([at(radius, angle) for angle in ends], fill=255)


def _dots(pen: ImageDraw.ImageDraw, radius: float, turn: float) -> None:
    for angle in (turn, turn + np.pi):
        pen.ellipse(box(0.42 * radius, at(0.6 * radius, angle)), fill=255)


def _half(pen: ImageDraw.ImageDraw, radius: float, turn: float) -> None:
    start = float(np.degrees(turn))
    pen.pieslice(box(radius), start, start + 180, fill=255)


# The first three differ most.
_SHAPES: tuple[Callable[[ImageDraw.ImageDraw, float, float], None], ...] = (
    lambda pen, r, _: pen.ellipse(box(r), fill=255),
    _cross,
    lambda pen, r, turn: pen.polygon(_corners(3, (1.1 * r,), turn), fill=255),
    lambda pen, r, turn: pen.polygon(_corners(4, (r,), turn), fill=255),
    lambda pen, r, turn: pen.polygon(_corners(10, (1.15 * r, 0.5 * r), turn), fill=255),
    lambda pen, r, _: pen.ellipse(box(r), outline=255, width=6),
    _frame,
    _bar,
    _dots,
    _half,
)
