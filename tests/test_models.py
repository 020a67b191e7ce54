"""SmallCNN: its shapes, and that its arguments can be read back from its weights."""

import pytest
import torch
from torch import nn

from adaptkit.models import SmallCNN


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (5, 9), (32, 32)])
def test_any_image_of_four_pixels_or_more(size: tuple[int, int]) -> None:
    net = SmallCNN(in_channels=3, num_classes=5, width=4)
    assert net(torch.zeros(2, 3, *size)).shape == (2, 5)


def test_every_convolution_has_a_batch_norm_and_no_bias() -> None:
    modules = list(SmallCNN().features)
    assert [type(m) for m in modules] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 4
    assert all(m.bias is None for m in modules if isinstance(m, nn.Conv2d))
    assert [m.stride for m in modules if isinstance(m, nn.Conv2d)] == [
        (1, 1),
        (1, 1),
        (2, 2),
        (1, 1),
    ]


def test_arguments_are_read_off_the_weights() -> None:
    arguments = {"in_channels": 3, "num_classes": 5, "width": 6}
    assert SmallCNN.arguments_of(SmallCNN(**arguments).state_dict()) == arguments
    assert SmallCNN.arguments_of({"features.0.weight": torch.zeros(2)}) == {}
