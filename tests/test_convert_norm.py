"""Conversions from batch norm and back, each held against what the new layer should compute."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.ops import FrozenBatchNorm2d

from adaptkit import EstimationError, ModelError, adapt, norms
from adaptkit.layers import IBN, BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, convert_norm

STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def filled(layer: nn.Module, seed: int = 1) -> nn.Module:
    g = torch.Generator().manual_seed(seed)
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.is_floating_point():
            tensor.data.copy_(torch.rand(tensor.shape, generator=g) + 0.5)
        else:
            tensor.data.fill_(7)
    return layer


def affine(layer: nn.Module) -> dict[str, Any]:
    return {name: layer.get_parameter(name) for name in ("weight", "bias")}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        filled(nn.BatchNorm2d(8, eps=1e-3, momentum=0.03)),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(8, 12, 3), filled(nn.BatchNorm2d(12, affine=False))),
    )


@pytest.mark.parametrize(
    ("norm", "renorm", "shape"),
    [
        (nn.BatchNorm1d, BatchRenorm1d, (4, 6)),
        (nn.BatchNorm1d, BatchRenorm1d, (4, 6, 5)),
        (nn.BatchNorm2d, BatchRenorm2d, (4, 6, 5, 5)),
        (nn.BatchNorm3d, BatchRenorm3d, (4, 6, 3, 3, 3)),
    ],
)
def test_batch_renorm_there_and_back_changes_nothing_in_inference(
    norm: type[nn.Module], renorm: type[nn.Module], shape: tuple[int, ...]
) -> None:
    layer = filled(norm(6, eps=1e-3, momentum=0.03, dtype=torch.float64)).eval()
    there = convert_norm(nn.Sequential(layer), "batchrenorm")
    new = there.model.get_submodule("0")
    assert type(new) is renorm
    assert [getattr(new, n) for n in ("eps", "momentum", "training")] == [1e-3, 0.03, False]
    assert there.changes == {
        "0": f"{norm.__name__}(6) -> {renorm.__name__}(6): the same in inference"
    }
    back = convert_norm(there.model, "batch").model.get_submodule("0")
    assert type(back) is norm
    x = torch.randn(shape, dtype=torch.float64)
    for one in (new, back):
        torch.testing.assert_close(one(x), layer(x))
        for key in STATE:
            torch.testing.assert_close(one.state_dict()[key], layer.state_dict()[key])


@pytest.mark.parametrize("groups", [1, 4, 8, 32])
def test_group(groups: int) -> None:
    source = net()
    converted = convert_norm(source, "group", groups=groups)
    first, second = (converted.model.get_submodule(n) for n in ("1", "3.1"))
    expected = nn.GroupNorm(min(groups, 8), 8, 1e-3)
    expected.load_state_dict({k: source[1].state_dict()[k] for k in ("weight", "bias")})
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(first(x), expected(x))
    assert second.num_groups == {1: 1, 4: 4, 8: 4, 32: 4}[groups]  # which divide 12
    assert not list(second.parameters())
    assert isinstance(source[1], nn.BatchNorm2d)  # the source is left alone


def test_layer_is_over_channels_and_space() -> None:
    converted = convert_norm(net(), "layer").model
    x = torch.randn(2, 8, 4, 5)
    layer = converted.get_submodule("1")
    plain = nn.functional.layer_norm(x, [8, 4, 5], eps=1e-3)
    weight, bias = (layer.get_parameter(n).view(1, 8, 1, 1) for n in ("weight", "bias"))
    torch.testing.assert_close(layer(x), plain * weight + bias)


def test_instance() -> None:
    source = net()
    converted = convert_norm(source, "instance", layers="1").model
    x = torch.randn(2, 8, 4, 5)
    expected = nn.functional.instance_norm(x, **affine(source[1]), eps=1e-3)
    torch.testing.assert_close(converted.get_submodule("1")(x), expected)
    assert isinstance(converted.get_submodule("3.1"), nn.BatchNorm2d)
    one = convert_norm(nn.Sequential(nn.BatchNorm1d(4)), "instance")
    assert "needs (N, C, L) input" in one.changes["0"]


@pytest.mark.parametrize(("ratio", "half"), [(0.5, 4), (0.25, 2), (0.4, 3)])
def test_ibn_a(ratio: float, half: int) -> None:
    source = net().eval()
    converted = convert_norm(source, "ibn-a", layers="1", ratio=ratio)
    layer = converted.model.get_submodule("1")
    assert isinstance(layer, IBN)
    assert converted.changes["1"].startswith(f"BatchNorm2d(8) -> IBN({half} + {8 - half}): {half}")
    x = torch.randn(2, 8, 4, 5)
    first = {name: value[:half] for name, value in affine(source[1]).items()}
    instance = nn.functional.instance_norm(x[:, :half], **first, eps=1e-3)
    expected = torch.cat([instance, source[1](x)[:, half:]], 1)
    torch.testing.assert_close(layer(x), expected)
    assert layer.BN.momentum == 0.03
    assert list(norms.norm_layers(converted.model)) == ["1.BN", "3.1"]
    adapted = adapt(converted.model, [torch.randn(8, 3, 9, 9)])
    assert not torch.equal(adapted.get_submodule("1.BN").running_mean, layer.BN.running_mean)  # type: ignore[arg-type]


def test_back_to_batch_norm_where_that_is_exact() -> None:
    frozen = FrozenBatchNorm2d(6, eps=1e-3)
    for buffer in frozen.buffers():
        buffer.copy_(torch.rand(6) + 0.5)
    model = nn.Sequential(
        frozen,
        nn.SyncBatchNorm(6).eval(),
        filled(nn.InstanceNorm2d(6, affine=True, track_running_stats=True)).eval(),
        nn.InstanceNorm2d(6),
        filled(nn.BatchNorm2d(6)),
    ).eval()
    converted = convert_norm(model, "batch")
    assert list(converted.changes) == ["0", "1", "2"]
    assert converted.left == {
        "3": "InstanceNorm2d(6): it normalises each sample by itself, which no batch norm does",
        "4": "BatchNorm2d(6): it is batch norm already",
    }
    assert [type(m) for m in converted.model.children()][:3] == [nn.BatchNorm2d] * 3
    assert not converted.model.get_parameter("0.weight").requires_grad
    assert converted.model.get_parameter("1.weight").requires_grad
    x = torch.randn(3, 6, 4, 4)
    torch.testing.assert_close(converted.model(x), model(x))
    with pytest.raises(ModelError, match=r"cannot convert '3', a InstanceNorm2d, to batch"):
        convert_norm(model, "batch", layers=["3"])


def test_resnet18_in_inference() -> None:
    source = filled(resnet18(num_classes=5)).eval()
    x = torch.rand(2, 3, 32, 32)
    there = convert_norm(source, "batchrenorm")
    assert len(there.changes) == 20
    torch.testing.assert_close(there.model(x), source(x))
    back = convert_norm(there.model, "batch", inplace=True)
    assert back.model is there.model
    assert str(back.model) == str(source)
    assert list(back.model.state_dict()) == list(source.state_dict())


def test_activations_of_timms_norms_are_kept() -> None:
    timm = pytest.importorskip("timm.layers")
    layer = filled(timm.BatchNormAct2d(6, act_layer=nn.GELU)).eval()
    model = nn.Sequential(layer)
    x = torch.randn(2, 6, 4, 4)
    converted = convert_norm(model, "batchrenorm").model
    assert isinstance(converted.get_submodule("0.act"), nn.GELU)
    torch.testing.assert_close(converted(x), model(x))


def test_a_forward_of_its_own_is_not_lost() -> None:
    class Scaled(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return 2 * super().forward(input)

    class Named(nn.BatchNorm1d):
        pass

    with pytest.raises(ModelError, match="'0' is a Scaled, whose forward is its own"):
        convert_norm(nn.Sequential(Scaled(3)), "group")
    assert type(convert_norm(nn.Sequential(Named(3)), "batch").model[0]) is nn.BatchNorm1d  # type: ignore[index]


def test_shared_layers_stay_shared_and_a_lone_one_is_replaced() -> None:
    shared = nn.BatchNorm1d(4)
    model = convert_norm(nn.ModuleList([shared, nn.ReLU(), shared]), "group").model
    assert model[0] is model[2]  # type: ignore[index]
    assert isinstance(convert_norm(shared, "layer").model, nn.GroupNorm)


def test_places_types_and_flags_are_kept() -> None:
    model = net().double()
    model[1].weight.requires_grad_(False)
    model[3].eval()
    for to in ("batchrenorm", "group", "layer", "instance", "ibn-a"):
        new = convert_norm(model, to).model
        tensors = (*new.parameters(), *new.buffers())
        assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float64}
        flags = {n: m.training for n, m in new.named_modules() if n in ("1", "3.1")}
        assert flags == {"1": True, "3.1": False}
        weight = new.get_submodule("1.IN" if to == "ibn-a" else "1").get_parameter("weight")
        assert not weight.requires_grad
    meta = convert_norm(copy.deepcopy(model).to("meta"), "group").model
    assert {p.device.type for p in meta.parameters()} == {"meta"}


def test_without_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False))
    converted = convert_norm(model, "batchrenorm")
    assert "it had no statistics, which begin at 0 and 1" in converted.changes["0"]
    assert converted.model.get_submodule("0").get_buffer("running_var").eq(1).all()


def test_bad_arguments() -> None:
    with pytest.raises(ModelError, match="Expected to be one of batchrenorm, group"):
        convert_norm(net(), "batch renorm")
    with pytest.raises(ModelError, match="groups to be 1 or more"):
        convert_norm(net(), "group", groups=0)
    with pytest.raises(EstimationError, match="no norm layer is named 'bn1'"):
        convert_norm(net(), "group", layers="bn1")
    assert str(convert_norm(nn.Sequential(nn.ReLU()), "group")) == "nothing to convert"
    with pytest.raises(ModelError, match="IBN takes 2d input"):
        convert_norm(nn.Sequential(nn.BatchNorm1d(4)), "ibn-a", layers="0")
