"""A small net trained on real digits in a second, and the digits that it has not seen."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from adaptkit import Transform, save_checkpoint
from adaptkit.models import SmallCNN

TRAINED_ON = 900


@cache
def images() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's 1,797 digits, (N, 1, 8, 8) of 0 to 1, and their labels."""
    digits = load_digits()
    return torch.from_numpy(digits.images / 16).float().unsqueeze(1), torch.from_numpy(
        digits.target
    )


def net(epochs: int = 8) -> nn.Module:
    """Return a net that was trained on the first 900, which takes them as 2·x − 1."""
    x, y = images()
    x = 2 * x - 1
    torch.manual_seed(0)
    model = SmallCNN(in_channels=1, num_classes=10)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for index in torch.randperm(TRAINED_ON).split(64):
            loss = nn.functional.cross_entropy(model(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def save(path: Path, classes: Sequence[str]) -> None:
    """Write the net as a checkpoint that says all of itself."""
    save_checkpoint(
        path,
        net(),
        arch="adaptkit:small_cnn",
        arch_kwargs={"in_channels": 1, "num_classes": 10},
        classes=classes,
        transform=Transform((8, 8), channels=1, mean=(0.5,), std=(0.5,)),
    )


def write(path: Path, image: Tensor) -> None:
    """Write an image of 0 to 1, (1, 8, 8), as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[0].clamp(0, 1).mul(255).round().byte().numpy()).save(path)
