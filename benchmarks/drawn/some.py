"""Some classes of a set of images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.images import Images


def some(name: str, images: Images, classes: Sequence[int]) -> Images:
    """Return the images of these classes alone, which count from 0 in this order."""
    number = torch.full((images.classes,), -1)
    number[list(classes)] = torch.arange(len(classes))

    def kept(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        of = number[y] >= 0
        return x[of], number[y[of]]

    return Images(name, *kept(images.x, images.y), *kept(images.test_x, images.test_y))
