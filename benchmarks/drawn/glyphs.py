"""Signs of a made-up script, written by hand as it were."""

from functools import partial

import numpy as np
from PIL import Image
from scipy.interpolate import CubicSpline

from benchmarks.drawn.drawing import (
    LARGE,
    Pixels,
    brought_down,
    drawn,
    laid_on,
    moved,
    sheet,
    soft,
)
from benchmarks.images import SIZE, Images

_POINTS = 4  # that a stroke goes through


def glyphs(name: str, signs: int, seed: int) -> Images:
    """Return signs in white, in the middle, of two or three strokes each."""
    return drawn(name, partial(_sign, _script(signs, seed), 0), signs)


def coloured_glyphs(name: str, signs: int, seed: int) -> Images:
    """Return signs in any colour, not in the middle, on soft blotches of other colours."""
    script = _script(signs, seed)

    def draw(rng: np.random.Generator, k: int) -> Pixels:
        ground = np.stack([soft(rng, 5) for _ in range(3)])
        mean = ground.mean((1, 2))
        colour = (mean + rng.uniform(0.4, 0.6, 3)) % 1
        return laid_on((ground + mean[:, None, None]) / 2, _sign(script, 3, rng, k)[0], colour)

    return drawn(name, draw, signs)


def _script(signs: int, seed: int) -> list[Pixels]:
    """Return the points of every sign's strokes, (strokes, points, 2), of -1 to 1."""
    rng = np.random.default_rng(seed)
    return [rng.uniform(-1, 1, (rng.integers(2, 4), _POINTS, 2)) for _ in range(signs)]


def _sign(script: list[Pixels], by: int, rng: np.random.Generator, k: int) -> Pixels:
    image, pen = sheet()
    width = int(rng.integers(3, 6))
    stretch = rng.uniform(0.8, 1.1, 2)
    for stroke in script[k]:
        written = (stroke + rng.normal(0, 0.09, stroke.shape)) * stretch
        fine = CubicSpline(np.arange(_POINTS), written)(np.linspace(0, _POINTS - 1, 20))
        places = [(SIZE + 0.32 * LARGE * float(x), SIZE + 0.32 * LARGE * float(y)) for x, y in fine]
        pen.line(places, fill=255, width=width, joint="curve")
    turned = image.rotate(float(rng.normal(0, 6)), Image.Resampling.BILINEAR)
    return moved(brought_down(turned), rng, by)[None]
