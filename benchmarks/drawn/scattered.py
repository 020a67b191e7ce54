"""Grey images made small, anywhere on a soft ground."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.images import SIZE, Images

SMALL = 20  # pixels of what is scattered


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
