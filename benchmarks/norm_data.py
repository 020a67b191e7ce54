"""Real images for the norm benchmark, and five ways to spoil them."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

FASHION = Path("/usr/share/datasets/fashion-mnist")
HINT = f"{FASHION} is missing, taking scikit-learn's digits: apt-get install dataset-fashion-mnist"
SIZE = 28  # pixels
CLASSES = 10


@dataclass(frozen=True)
class Images:
    """Grey images (N, 1, 28, 28) of 0 to 255, as uint8, and their labels (N,), int64."""

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the first test images, of 0 to 1, and their labels."""
        return self.test_x[:count].float() / 255, self.test_y[:count]

    def standardised(self, pixels: Tensor) -> Tensor:
        """Return pixels of 0 to 1 as a net gets them: by the training images' mean and spread."""
        mean, std = _mean_and_std(self)
        return (pixels - mean) / std


@cache
def _mean_and_std(images: Images) -> tuple[float, float]:
    pixels = images.x.float() / 255
    return float(pixels.mean()), float(pixels.std())


@cache
def images() -> Images:
    """Return Debian's Fashion-MNIST, 60,000 and 10,000 images; without it, digits."""
    if not FASHION.is_dir():
        return _digits()
    x, test_x = (_idx(f"{part}-images-idx3-ubyte") for part in ("train", "t10k"))
    y, test_y = (_idx(f"{part}-labels-idx1-ubyte").long() for part in ("train", "t10k"))
    return Images("Fashion-MNIST", x.unsqueeze(1), y, test_x.unsqueeze(1), test_y)


def _idx(name: str) -> Tensor:
    """Read an IDX file of bytes: two zeros, a type, the number of dimensions, their sizes, data."""
    data = gzip.decompress((FASHION / f"{name}.gz").read_bytes())
    dimensions = data[3]
    shape = np.frombuffer(data, ">i4", count=dimensions, offset=4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    return torch.from_numpy(values.reshape(shape).copy())


def _digits() -> Images:
    digits = load_digits()
    small = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    x = functional.interpolate(small, size=SIZE, mode="bilinear").mul(255).round().byte()
    y = torch.from_numpy(digits.target).long()
    return Images("digits", x[:1200], y[:1200], x[1200:], y[1200:])


def _noise(x: Tensor) -> Tensor:
    return x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


def _blur(x: Tensor) -> Tensor:
    blurred: Tensor = v2.functional.gaussian_blur(x, [9, 9], [1.5, 1.5])
    return blurred


def _rotation(x: Tensor) -> Tensor:
    """Half of the images to the left, half to the right."""
    turned = [v2.functional.rotate(x, angle, v2.InterpolationMode.BILINEAR) for angle in (25, -25)]
    left = (torch.arange(len(x)) % 2 == 0).view(-1, 1, 1, 1)
    return torch.where(left, turned[0], turned[1])


# Each takes and gives pixels of 0 to 1, and is the same in every run.
CORRUPTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "noise": lambda x: _noise(x).clamp(0, 1),
    "blur": _blur,
    "low contrast": lambda x: 0.5 + 0.4 * (x - 0.5),
    "brightness": lambda x: (x + 0.3).clamp(0, 1),
    "rotation": _rotation,
}
