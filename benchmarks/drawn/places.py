"""Pieces of two photographs, to tell the place of."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.drawn.drawing import Pixels, drawn
from benchmarks.images import SIZE, Images

_ROWS, _COLUMNS = 2, 3  # of places in each photograph
_LEAST, _MOST = 70, 150  # pixels that a piece has in a photograph


def places(name: str) -> Images:
    """Return pieces of twelve places, of any size, mirrored or not, in some other light."""
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]

    def draw(rng: np.random.Generator, k: int) -> Pixels:
        which, place = divmod(k, _ROWS * _COLUMNS)
        photograph = photographs[which]
        width, height = photograph.width / _COLUMNS, photograph.height / _ROWS
        row, column = divmod(place, _COLUMNS)
        side = rng.uniform(_LEAST, _MOST)
        left = column * width + rng.uniform(0, width - side)
        top = row * height + rng.uniform(0, height - side)
        area = (left, top, left + side, top + side)
        piece = photograph.resize((SIZE, SIZE), Image.Resampling.BOX, box=area)
        pixels = np.asarray(piece).transpose(2, 0, 1) / 255
        pixels = pixels[:, :, ::-1] if rng.random() < 0.5 else pixels
        light = rng.uniform(0.8, 1.2) * rng.uniform(0.93, 1.07, (3, 1, 1))
        return pixels * light + rng.normal(0, 0.03)

    return drawn(name, draw, len(photographs) * _ROWS * _COLUMNS)
