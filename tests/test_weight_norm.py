"""Weight Normalization in and out of models, against w = g·v / ‖v‖."""

import pytest
import torch
from torch import nn

from adaptkit.layers import add_weight_norm, remove_weight_norm


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, groups=3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, stride=2)),
        *(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
    ).eval()


def test_in_and_out_the_outputs_stay() -> None:
    source = net()
    before = {k: v.clone() for k, v in source.state_dict().items()}
    x = torch.randn(4, 3, 8, 8)
    converted = add_weight_norm(source)
    assert list(converted.changes) == ["0", "2", "6"]
    torch.testing.assert_close(converted.model(x), source(x), rtol=1e-5, atol=1e-6)
    assert sum(p.numel() for p in converted.model.parameters()) == 6 + 4 + 2 + sum(
        p.numel() for p in source.parameters()
    )
    back = remove_weight_norm(converted.model)
    assert list(back.model.state_dict()) == list(before)
    for key, value in back.model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(v, before[k]) for k, v in source.state_dict().items())


def test_length_and_direction_of_each_output_channel() -> None:
    model = add_weight_norm(net()).model
    for name, over in (("0", (1, 2, 3)), ("2", (0, 2, 3)), ("6", (1,))):
        layer = model.get_submodule(name)
        g, v = (layer.parametrizations["weight"].get_parameter(f"original{i}") for i in (0, 1))  # type: ignore[index, union-attr]
        expected = g * v / v.square().sum(over, keepdim=True).sqrt()
        torch.testing.assert_close(layer.weight, expected)
        with torch.no_grad():
            g.mul_(3)  # lengthens the weights, and nothing else
        torch.testing.assert_close(layer.weight, 3 * expected)


def test_what_is_left_is_said() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.zero = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
            self.b.weight = self.a.weight
            nn.init.zeros_(self.zero.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.zero(self.b(self.a(x)))
            return y

    model = Tied()
    converted = add_weight_norm(model)
    assert not converted.changes
    assert {k: v.split(": ")[1] for k, v in converted.left.items()} == {
        "a": "its weight is shared with another layer",
        "b": "its weight is shared with another layer",
        "zero": "an output channel's weights are all 0, without direction",
    }
    twice = add_weight_norm(add_weight_norm(net()).model)
    assert not twice.changes
    assert twice.left["0"] == "Conv2d: its weight is parametrized already"


def test_other_parametrizations_stay() -> None:
    model = net()
    nn.utils.parametrizations.spectral_norm(model[6])
    back = remove_weight_norm(add_weight_norm(model, inplace=True).model, inplace=True)
    assert back.model is model
    assert list(back.changes) == ["0", "2"]
    assert nn.utils.parametrize.is_parametrized(model[6])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_and_training_flags(dtype: torch.dtype) -> None:
    model = net().to(dtype).train()
    model[0].eval()
    converted = add_weight_norm(model).model
    assert not converted[0].training  # type: ignore[index]
    assert converted[6].training  # type: ignore[index]
    assert {p.dtype for p in converted.parameters()} == {dtype}
