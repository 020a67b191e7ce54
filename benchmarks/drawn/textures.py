"""What has no shape: patterns, stripes to tell the direction of, and ground seen from above."""

import numpy as np

from benchmarks.drawn.drawing import Pixels, drawn, noised, soft
from benchmarks.images import SIZE, Images

_ROW, _COLUMN = np.mgrid[:SIZE, :SIZE].astype(np.float64)


def patterns(name: str) -> Images:
    """Return ten patterns of any two colours, any size, under noise."""

    def draw(rng: np.random.Generator, k: int) -> Pixels:
        size, phase = rng.uniform(4, 8), rng.uniform(0, 8, 2)
        pattern = _pattern(k, _COLUMN + phase[0], _ROW + phase[1], size, rng)
        one = rng.random(3)
        other = (one + rng.uniform(0.25, 0.5, 3)) % 1
        mixed = one[:, None, None] + (other - one)[:, None, None] * pattern
        return noised(mixed, rng, 0.06)

    return drawn(name, draw, 10)


def _pattern(k: int, x: Pixels, y: Pixels, size: float, rng: np.random.Generator) -> Pixels:
    def wave(along: Pixels) -> Pixels:
        found: Pixels = (np.sin(2 * np.pi * along / size) > 0).astype(np.float64)
        return found

    off_x, off_y = x % size - size / 2, y % size - size / 2
    away = np.hypot(off_x, off_y)
    found = (
        lambda: wave(x),  # stripes that stand, lie, rise and fall
        lambda: wave(y),
        lambda: wave(0.7 * (x + y)),
        lambda: wave(0.7 * (x - y)),
        lambda: abs(wave(x) - wave(y)),  # a chequer
        lambda: away < 0.3 * size,  # dots
        lambda: wave(np.hypot(x - SIZE / 2, y - SIZE / 2)),  # rings
        lambda: (abs(off_y) < 0.15 * size) | (abs(off_x) < 0.15 * size),  # a grid
        lambda: soft(rng, 6) > 0.5,  # blotches
        lambda: wave(x + 2 * abs(off_y)),  # zigzag
    )[k]()
    return np.asarray(found, np.float64)


def stripes(name: str, directions: int) -> Images:
    """Return grey stripes of any width and contrast under noise, to tell the direction of."""

    def draw(rng: np.random.Generator, k: int) -> Pixels:
        angle = np.pi * (k + rng.normal(0, 0.12)) / directions
        along = np.cos(angle) * _COLUMN + np.sin(angle) * _ROW
        wave = np.sin(2 * np.pi * along / rng.uniform(4, 12) + rng.uniform(0, 6.28))
        grey = rng.uniform(0.35, 0.65) + rng.uniform(0.08, 0.3) * wave
        return noised(grey + 0.4 * (soft(rng, 9) - 0.5), rng, 0.08)[None]

    return drawn(name, draw, directions)


# Red, green and blue; how rough; furrows or none.
_LANDS: tuple[tuple[tuple[float, float, float], int, bool], ...] = (
    ((0.10, 0.22, 0.42), 3, False),  # water
    ((0.13, 0.30, 0.12), 12, False),  # forest
    ((0.38, 0.52, 0.22), 4, False),  # meadow
    ((0.45, 0.40, 0.22), 5, True),  # field
    ((0.78, 0.68, 0.48), 4, False),  # sand
    ((0.50, 0.48, 0.46), 14, True),  # town
    ((0.90, 0.92, 0.95), 5, False),  # snow
    ((0.35, 0.30, 0.27), 10, False),  # rock
)


def lands(name: str) -> Images:
    """Return eight kinds of land from above: colours near to their own, rough or smooth."""

    def draw(rng: np.random.Generator, k: int) -> Pixels:
        colour, rough, furrowed = _LANDS[k]
        relief = soft(rng, rough) + 0.5 * soft(rng, min(2 * rough, SIZE)) - 0.75
        if furrowed:
            turn = rng.uniform(0, np.pi)
            along = np.cos(turn) * _COLUMN + np.sin(turn) * _ROW
            relief = 0.5 * relief + 0.4 * np.sign(np.sin(2 * np.pi * along / rng.uniform(4, 7)))
        base = np.array(colour) + rng.normal(0, 0.09, 3) + rng.normal(0, 0.07)
        return noised(base[:, None, None] + 0.25 * relief, rng, 0.03)

    return drawn(name, draw, len(_LANDS))
