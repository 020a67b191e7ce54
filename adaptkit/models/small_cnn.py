"""A small BatchNorm net for tiny images; what the demo trains."""

from collections.abc import Mapping

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Four 3x3 convolutions, each with BatchNorm and ReLU, then global pooling and a linear layer.

    Shapes: (N, in_channels, H, W), H and W of 4 or more, to logits (N, num_classes).

    Args:
        in_channels: 1 for grey, 3 for RGB.
        num_classes: logits.
        width: channels of the first two convolutions; the other two have twice as many.

    >>> import torch
    >>> SmallCNN(in_channels=1, num_classes=10)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, width: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(in_channels, width),
            *_block(width, width),
            *_block(width, 2 * width, stride=2),
            *_block(2 * width, 2 * width),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return logits

    @staticmethod
    def arguments_of(state_dict: Mapping[str, Tensor]) -> dict[str, int]:
        """Read the constructor's arguments off a state dict; what it does not show stays out.

        >>> SmallCNN.arguments_of(SmallCNN(in_channels=3, num_classes=5, width=8).state_dict())
        {'width': 8, 'in_channels': 3, 'num_classes': 5}
        """
        found = {}
        first = state_dict.get("features.0.weight")
        last = state_dict.get("classifier.weight")
        if first is not None and first.ndim == 4:
            found["width"], found["in_channels"] = first.shape[:2]
        if last is not None and last.ndim == 2:
            found["num_classes"] = len(last)
        return found


def _block(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
