"""Squeeze-and-Excitation: channels weighted by what the whole image holds."""

from torch import Tensor, nn


class SqueezeExcitation(nn.Module):
    """Scale each channel of each sample by a gate between 0 and 1.

        y = x · sigmoid(W₂·relu(W₁·z))        z = mean of x over (H, W)

    with W₁ of shape (C // reduction, C) and W₂ of shape (C, C // reduction), without biases, under
    the keys `fc.0.weight` and `fc.2.weight`.

    Args:
        channels: C.
        reduction: how many times fewer channels there are between the two.

    Shapes: (N, C, H, W) to the same.

    Source: Hu et al. 2018, arXiv 1709.01507.

    >>> import torch
    >>> SqueezeExcitation(32)(torch.randn(2, 32, 4, 4)).shape
    torch.Size([2, 32, 4, 4])
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // reduction, bias=False),
            nn.ReLU(),
            nn.Linear(channels // reduction, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled channels."""
        gate: Tensor = self.fc(x.mean((2, 3)))
        return x * gate[:, :, None, None]
