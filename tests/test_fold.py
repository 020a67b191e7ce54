"""Folded models compute what the adapted ones did, without their batch norms."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import densenet121, mobilenet_v3_small, resnet18
from torchvision.ops import FrozenBatchNorm2d

from adaptkit import ModelError, adapt, norms
from adaptkit.layers import BatchRenorm2d, fold_batchnorm


@pytest.mark.parametrize("make", [resnet18, mobilenet_v3_small, densenet121])
def test_outputs_are_equal_after_adapting(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 64, 64) * 2 + 1
    model = adapt(make(num_classes=10), [x]).eval()
    folded = fold_batchnorm(model)
    with torch.no_grad():
        expected, found = model(x), folded.model(x)
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) <= 1e-5 * max(scale, 1)
    left = sum(isinstance(m, nn.BatchNorm2d) for m in folded.model.modules())
    whole = len(norms.norm_layers(model))
    assert len(folded.changes) + len(folded.left) == whole
    if make is not densenet121:  # whose norms come before the convolutions, for the most part
        assert left == len(folded.left) == 0
    else:
        assert left == len(folded.left) == 62
        assert "feeds it alone" in folded.left["features.denseblock1.denselayer1.norm1"]
    assert len(norms.norm_layers(model)) == whole  # the model itself is left alone


def test_kin_of_batch_norm_is_folded_too() -> None:
    torch.manual_seed(0)
    frozen = FrozenBatchNorm2d(6)
    frozen.running_var.fill_(4.0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), BatchRenorm2d(6), nn.Conv2d(6, 6, 3), frozen),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4), nn.BatchNorm1d(4)),
    ).eval()
    model[1].get_buffer("running_mean").normal_()
    folded = fold_batchnorm(model)
    assert list(folded.changes) == ["1", "3", "7"]
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(folded.model(x), model(x))
    assert not list(norms.norm_layers(folded.model))


def test_what_cannot_be_folded_is_said() -> None:
    class Scaled(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return 2 * super().forward(input)

    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        *(nn.Conv2d(4, 4, 1), Scaled(4), nn.ReLU(), nn.BatchNorm2d(4)),
    )
    folded = fold_batchnorm(model)
    assert not folded.changes
    assert {k: v.split(": ")[1] for k, v in folded.left.items()} == {
        "1": "it uses each batch's own statistics",
        "3": "a subclass, which may do more than normalise",
        "5": "no convolution or linear layer feeds it alone",
    }
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(folded.model(x), model.eval()(x))


def test_a_convolution_called_twice_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(self.conv(self.a(self.conv(x))))
            return y

    with pytest.raises(ModelError, match="'conv' is called 2 times in one forward"):
        fold_batchnorm(Twice())


def test_a_model_that_cannot_be_traced() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match=r"torch.fx cannot trace Branches"):
        fold_batchnorm(Branches())
