"""The nets of the accuracy benchmarks, and their training on the source domain."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from adaptkit.layers import Style
from adaptkit.models import SmallCNN
from benchmarks.images import Images
from benchmarks.machine import device
from benchmarks.norm_net import ResidualNet, placements
from benchmarks.norm_training import Condition, train

STEPS = 500  # of 64 images
QUICK_STEPS = 60

# Names in the column `architecture` -> a net for images of so many channels and classes.
ARCHITECTURES: dict[str, Callable[[int, int], nn.Module]] = {
    "residual net, BN": lambda channels, classes: ResidualNet(
        placements(1)["BN"], classes, channels
    ),
    "residual net, IBN-a": lambda channels, classes: ResidualNet(
        placements(1)["IBN-a"], classes, channels
    ),
    "small CNN, BN": lambda channels, classes: SmallCNN(channels, classes, width=16),
}
PLAIN, IBN, SMALL = ARCHITECTURES


@dataclass(frozen=True)
class Source:
    """A trained net, what it was trained on, and the style of that for AdaIN."""

    model: nn.Module
    images: Images
    style: Style


def trained(architecture: str, images: Images, seed: int, steps: int) -> Source:
    """Train a net from `seed` on the CPU, as the pool does on every machine; then move it."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[architecture](images.channels, images.classes)
    train(model, images, Condition(), steps, seed)
    style = Style.of(images.standardised(images.x[:1000].float() / 255))
    return Source(model.to(device()), images, style)
