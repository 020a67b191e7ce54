"""A folder of JPEG files to decode: pieces of real photographs, as many as are wanted."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

QUALITY = 90  # of JPEG; a file of 224 px is about 30 kB


def write(folder: Path, count: int, side: int, seed: int = 0) -> None:
    """Write square pieces of the two photographs that scikit-learn ships, at random places.

    A piece is between half of `side` and the whole photograph's height, and brought to `side`, so
    that files hold as much detail as photographs do, and no two are the same.
    """
    folder.mkdir()
    rng = np.random.default_rng(seed)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for number in range(count):
        photograph = photographs[rng.integers(len(photographs))]
        width, height = photograph.size
        piece = int(rng.integers(side // 2, height + 1))
        left, top = int(rng.integers(width - piece + 1)), int(rng.integers(height - piece + 1))
        box = (left, top, left + piece, top + piece)
        cut = photograph.resize((side, side), Image.Resampling.BILINEAR, box=box)
        cut.save(folder / f"{number:06}.jpg", quality=QUALITY)
