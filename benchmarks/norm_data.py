"""Real images for the norm benchmark, and five ways to spoil them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.images import Images, MissingDataError, named


def images() -> tuple[Images, str]:
    """Return Fashion-MNIST; without it digits, and how to get what is missing."""
    try:
        return named("Fashion-MNIST"), ""
    except MissingDataError as error:
        return named("digits"), f"taking scikit-learn's digits: {error}"


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
