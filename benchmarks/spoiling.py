"""Sixteen ways to spoil images of 28 px, each at five severities, after ImageNet-C and MNIST-C.

torchvision's v2 transforms where they have it, scikit-image's noises for the rest. The strengths
are ours: those of ImageNet-C (Hendrycks & Dietterich 2019, arXiv 1903.12261) are for 224 px.
"""

import io
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

SEVERITIES = (1, 2, 3, 4, 5)
_OF_SKIMAGE = ("impulse noise", "speckle noise")
HINT = 'scikit-image is missing: pip install -e ".[bench]"'
_BILINEAR = v2.InterpolationMode.BILINEAR


def installed() -> tuple[str, ...]:
    """Return the names of corruptions whose packages are there."""
    there = find_spec("skimage") is not None
    return tuple(name for name in CORRUPTIONS if there or name not in _OF_SKIMAGE)


def corrupt(x: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    """Return images spoilt, the same in every call; severity 0 leaves them as they are.

    Args:
        x: shape (N, 1, H, W), of 0 to 1, float32.
        name: of `CORRUPTIONS`.
        severity: 0 to 5.
        seed: of what is random in it.
    """
    if severity == 0:
        return x
    apply, strengths = CORRUPTIONS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return apply(x, strengths[severity - 1]).clamp(0, 1)


def _skimage_noise(x: Tensor, mode: str, **how: float) -> Tensor:
    from skimage.util import random_noise

    rng = np.random.default_rng(torch.initial_seed())
    return torch.from_numpy(random_noise(x.numpy(), mode, rng=rng, **how)).float()


def _shot_noise(x: Tensor, photons: float) -> Tensor:
    """Poisson noise, white being so many photons; of float images skimage has no such scale."""
    return torch.poisson(x * photons) / photons


def _blur(x: Tensor, sigma: float) -> Tensor:
    width = 2 * int(3 * sigma + 1) + 1
    blurred: Tensor = F.gaussian_blur(x, [width, width], [sigma, sigma])
    return blurred


def _moved(x: Tensor, angle: float = 0, shift: float = 0, scale: float = 1) -> Tensor:
    """Turn by degrees, shift along (1, 1)/√2 by pixels of up to a whole, and scale, about 0."""
    moved: Tensor = F.affine(
        x, angle, [round(0.7 * shift), round(0.7 * shift)], scale, [0.0, 0.0], _BILINEAR
    )
    return moved


def _motion_blur(x: Tensor, reach: float) -> Tensor:
    """Take the mean over a way of `reach` pixels along the diagonal."""
    steps = torch.arange(-reach / 2, reach / 2 + 0.1, 1.42)  # a pixel along each axis
    return torch.stack([_moved(x, shift=float(step)) for step in steps]).mean(0)


def _zoom_blur(x: Tensor, most: float) -> Tensor:
    scales = torch.linspace(1, most, 8)
    return torch.stack([_moved(x, scale=float(scale)) for scale in scales]).mean(0)


def _fog(x: Tensor, strength: float) -> Tensor:
    """Lay a bright veil over them that is thicker in some places, random for each."""
    veil = torch.zeros(len(x), 1, *x.shape[2:])
    for cells in (2, 4, 8):
        field = torch.rand(len(x), 1, cells, cells) / cells
        veil += F.resize(field, [*x.shape[2:]], v2.InterpolationMode.BICUBIC, antialias=True)
    return (x + strength * veil) / (1 + strength * 0.5)


def _pixelate(x: Tensor, side: float) -> Tensor:
    small = F.resize(x, [int(side), int(side)], _BILINEAR, antialias=True)
    large: Tensor = F.resize(small, [*x.shape[2:]], v2.InterpolationMode.NEAREST)
    return large


def _jpeg(x: Tensor, quality: float) -> Tensor:
    """By Pillow: torchvision's own is deprecated since 0.29."""
    return torch.stack([_through_jpeg(image, int(quality)) for image in x])


def _through_jpeg(image: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    F.to_pil_image(image).save(file, "JPEG", quality=quality)
    found: Tensor = F.to_dtype(F.pil_to_tensor(Image.open(file)), torch.float32, scale=True)
    return found


def _elastic(x: Tensor, alpha: float) -> Tensor:
    bend = v2.ElasticTransform(alpha=alpha, sigma=4.0, interpolation=_BILINEAR)
    return torch.stack([bend(image) for image in x])


def _rotation(x: Tensor, angle: float) -> Tensor:
    """Half of the images to the left, half to the right."""
    left = (torch.arange(len(x)) % 2 == 0).view(-1, 1, 1, 1)
    return torch.where(left, _moved(x, angle), _moved(x, -angle))


Strengths = tuple[float, float, float, float, float]

# What it is called -> how it is done, and how strongly at each severity.
CORRUPTIONS: dict[str, tuple[Callable[[Tensor, float], Tensor], Strengths]] = {
    "gaussian noise": (lambda x, s: F.gaussian_noise(x, sigma=s), (0.05, 0.1, 0.2, 0.3, 0.4)),
    "shot noise": (_shot_noise, (40, 20, 10, 5, 3)),
    "impulse noise": (lambda x, s: _skimage_noise(x, "s&p", amount=s), (0.02, 0.05, 0.1, 0.2, 0.3)),
    "speckle noise": (
        lambda x, s: _skimage_noise(x, "speckle", var=s * s),
        (0.2, 0.3, 0.5, 0.7, 1),
    ),
    "gaussian blur": (_blur, (0.7, 1.0, 1.5, 2.0, 2.5)),
    "motion blur": (_motion_blur, (3, 5, 7, 9, 11)),
    "zoom blur": (_zoom_blur, (1.1, 1.2, 1.35, 1.5, 1.7)),
    "fog": (_fog, (0.3, 0.6, 1.0, 1.5, 2.0)),
    "brightness": (lambda x, s: x + s, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "darkness": (lambda x, s: x - s, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (lambda x, s: 0.5 + s * (x - 0.5), (0.9, 0.75, 0.6, 0.45, 0.3)),
    "pixelate": (_pixelate, (20, 14, 10, 8, 6)),
    "jpeg": (_jpeg, (40, 20, 10, 6, 3)),
    "elastic": (_elastic, (20, 40, 60, 80, 100)),
    "rotation": (_rotation, (10, 20, 30, 40, 50)),
    "solarise": (lambda x, s: F.solarize(x, s), (0.9, 0.7, 0.5, 0.3, 0.0)),
}
