"""IBN against its definition in numpy, in both forms, on all the input that a layer meets."""

import copy
import io
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import by_definition, worst_error
from torch import Tensor, nn

from adaptkit import AdaptkitError, adapt, estimate
from adaptkit.layers import IBN
from adaptkit.norms import norm_layers, without_statistics

FORMS = pytest.mark.parametrize("instance_first", [True, False])


def data(*shape: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=g, dtype=torch.float64) * 2 + 1


def filled(layer: IBN) -> IBN:
    """Give it weights and statistics that are not the neutral ones."""
    g = torch.Generator().manual_seed(1)
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape, generator=g, dtype=tensor.dtype) + 0.5
    return layer


def defined(layer: IBN, x: Tensor) -> np.ndarray:
    """The definition in numpy: each channel by itself, in a loop."""
    state = {k: v.double().numpy() for k, v in layer.state_dict().items()}
    instances = len(state["IN.weight"])
    start = 0 if layer.instance_first else layer.num_features - instances
    values = x.detach().double().numpy()
    y = np.empty_like(values)
    for channel in range(layer.num_features):
        mine, i = values[:, channel], channel - start
        if 0 <= i < instances:
            part = "IN"
            mean, variance = mine.mean((1, 2), keepdims=True), mine.var((1, 2), keepdims=True)
        else:
            part, i = "BN", channel if start else channel - instances
            mean, variance = state["BN.running_mean"][i], state["BN.running_var"][i]
            if layer.training:
                mean, variance = mine.mean(), mine.var()
        normal = (mine - mean) / np.sqrt(variance + 1e-5)
        y[:, channel] = normal * state[f"{part}.weight"][i] + state[f"{part}.bias"][i]
    return y


@pytest.mark.parametrize(
    ("channels", "ratio", "instance_first", "instances"),
    [
        (64, 0.5, True, 32),
        (7, 0.5, True, 3),
        (5, 0.9, True, 4),
        (2, 0.5, True, 1),
        (9, 0.12, True, 1),
        (64, 0.4, False, 26),  # int(64 · 0.6) = 38 for batch norm
        (7, 0.4, False, 3),
        (3, 0.6, False, 2),
        (20, 0.9, False, 19),  # 1 − 0.9 is a little less than 0.1
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_it_is_the_definition(
    channels: int, ratio: float, instance_first: bool, instances: int, training: bool
) -> None:
    layer = IBN(channels, ratio, instance_first=instance_first, dtype=torch.float64)
    filled(layer).train(training)
    assert (layer.IN.num_features, layer.BN.num_features) == (instances, channels - instances)
    x = data(4, channels, 3, 5)
    expected = defined(layer, x)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-9, atol=1e-12)


@FORMS
def test_training_moves_the_statistics_of_the_batch_norm_half(instance_first: bool) -> None:
    layer = IBN(4, momentum=0.25, instance_first=instance_first, dtype=torch.float64)
    x = data(3, 4, 2, 5)
    layer(x)
    half = x[:, 2:] if instance_first else x[:, :2]
    flat = half.numpy().swapaxes(0, 1).reshape(2, -1)
    state = layer.state_dict()
    np.testing.assert_allclose(state["BN.running_mean"].numpy(), 0.25 * flat.mean(1))
    np.testing.assert_allclose(state["BN.running_var"].numpy(), 0.75 + 0.25 * flat.var(1, ddof=1))
    assert list(state) == [
        *("IN.weight", "IN.bias", "BN.weight", "BN.bias"),
        *("BN.running_mean", "BN.running_var", "BN.num_batches_tracked"),
    ]


@given(st.integers(2, 300), st.floats(0.001, 0.999), st.booleans())
def test_every_channel_is_in_one_part(channels: int, ratio: float, instance_first: bool) -> None:
    share = ratio if instance_first else 1 - ratio
    if 1 <= math.floor(channels * share) < channels:
        layer = IBN(channels, ratio, instance_first=instance_first, device="meta")
        widths = [layer.IN.num_features, layer.BN.num_features]
        assert sum(widths) == channels
        assert widths[not instance_first] == math.floor(channels * share)
    else:
        with pytest.raises(AdaptkitError, match=r"bring the ratio nearer to 0\.5"):
            IBN(channels, ratio, instance_first=instance_first)


@FORMS
@pytest.mark.parametrize("training", [True, False])
def test_gradients(instance_first: bool, training: bool) -> None:
    layer = filled(IBN(3, instance_first=instance_first, momentum=0.0, dtype=torch.float64))
    layer.train(training)
    x = data(2, 3, 2, 3).requires_grad_()
    names, values = zip(*layer.named_parameters(), strict=True)

    def forward(x: Tensor, *values: Tensor) -> Tensor:
        named = dict(zip(names, values, strict=True))
        y: Tensor = torch.func.functional_call(layer, named, (x,))
        return y

    assert torch.autograd.gradcheck(forward, (x, *values))


# Input of every kind.


@FORMS
def test_one_image_and_other_strides(instance_first: bool) -> None:
    layer = filled(IBN(6, instance_first=instance_first)).eval()
    x = data(3, 6, 4, 4).float()
    expected = layer(x)
    torch.testing.assert_close(layer(x[:1]), expected[:1])
    torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(
        layer(x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)), expected
    )
    torch.testing.assert_close(layer(torch.cat([x, x], 1)[:, 3:9][:, [3, 4, 5, 0, 1, 2]]), expected)
    wide = x[:1].expand(3, 6, 4, 4)
    torch.testing.assert_close(layer(wide), expected[:1].expand(3, 6, 4, 4))
    assert filled(IBN(6, instance_first=instance_first))(x[:1]).isfinite().all()


@FORMS
def test_an_empty_batch_is_empty_and_moves_nothing(instance_first: bool) -> None:
    layer = filled(IBN(4, instance_first=instance_first))
    before = copy.deepcopy(layer.state_dict())
    for shape in ((0, 4, 3, 3), (2, 4, 0, 3)):
        x = torch.zeros(shape, requires_grad=True)
        y = layer(x)
        y.sum().backward()
        assert y.shape == shape
        assert x.grad is not None
        assert layer.eval()(x).shape == shape
        layer.train()
    for key in ("BN.running_mean", "BN.running_var"):
        assert torch.equal(layer.state_dict()[key], before[key])


@FORMS
def test_a_map_of_one_value(instance_first: bool) -> None:
    layer = filled(IBN(4, instance_first=instance_first, dtype=torch.float64)).eval()
    x = data(3, 4, 1, 1)
    np.testing.assert_allclose(layer(x).detach().numpy(), defined(layer, x), rtol=1e-9)
    part = slice(0, 2) if instance_first else slice(2, 4)
    assert torch.equal(layer(x)[1, part, 0, 0], layer.IN.bias)
    x[0, part] = torch.nan
    assert layer(x)[0, part].isnan().all()
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match="more than 1 spatial element when training"):
        layer.train()(data(3, 4, 1, 1))
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


@FORMS
def test_narrow_dtypes(instance_first: bool) -> None:
    layer = filled(IBN(4, instance_first=instance_first))
    x = data(2, 4, 3, 3).float()
    for training in (True, False):
        expected = copy.deepcopy(layer).train(training)(x)
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype=dtype):
                found = copy.deepcopy(layer).train(training)(x.to(dtype))
            assert found.dtype == dtype
            torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.eval()(x[:, :, :1, :1].bfloat16()).dtype == torch.bfloat16


# Copies and other forms.


@FORMS
def test_copies_and_files(instance_first: bool) -> None:
    layer = filled(IBN(5, 0.4, instance_first=instance_first))
    x = data(2, 5, 4, 4).float()
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    others = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(buffer, weights_only=False),
    ]
    expected = layer(x)
    for other in others:
        assert torch.equal(other(x), expected)
        assert all(torch.equal(v, layer.state_dict()[k]) for k, v in other.state_dict().items())
    assert "5, ratio=0.4" in repr(layer)


@FORMS
def test_exported_with_any_batch_and_map(instance_first: bool) -> None:
    layer = filled(IBN(5, instance_first=instance_first)).eval()
    any_size = torch.export.Dim.AUTO
    exported = torch.export.export(
        layer,
        (data(3, 5, 4, 6).float(),),
        dynamic_shapes=({0: any_size, 2: any_size, 3: any_size},),
    ).module()
    for shape in ((3, 5, 4, 6), (7, 5, 3, 2)):
        torch.testing.assert_close(exported(data(*shape).float()), layer(data(*shape).float()))


@FORMS
def test_scripted(instance_first: bool) -> None:
    layer = filled(IBN(5, instance_first=instance_first))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it; files made with it are still served
        scripted = torch.jit.script(copy.deepcopy(layer))
    x = data(2, 5, 3, 3).float()
    torch.testing.assert_close(scripted(x), layer(x))
    for x in (data(2, 5, 3, 3), data(2, 5, 1, 1), data(0, 5, 3, 3)):
        torch.testing.assert_close(scripted.eval()(x.float()), layer.eval()(x.float()))
    with pytest.raises(torch.jit.Error, match=r"Expected input of shape \(N, 5, H, W\)"):
        scripted(torch.zeros(2, 4, 3, 3))


# What it refuses.


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 2.0, math.nan])
def test_ratios_out_of_range(ratio: float) -> None:
    with pytest.raises(AdaptkitError, match="Expected a ratio between 0 and 1, got"):
        IBN(8, ratio)


@pytest.mark.parametrize(("channels", "ratio"), [(1, 0.5), (3, 0.3), (0, 0.5), (-4, 0.5)])
def test_too_few_channels(channels: int, ratio: float) -> None:
    with pytest.raises(AdaptkitError, match=rf"got {ratio} of {channels}: bring the ratio nearer"):
        IBN(channels, ratio)


@pytest.mark.parametrize("shape", [(2, 5, 4, 4), (4, 4, 4), (2, 4), (2, 4, 3, 3, 3)])
def test_input_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Expected input of shape \(N, 4, H, W\), got \[\d"):
        IBN(4)(torch.zeros(shape))


# Adapting it.


def test_only_the_batch_norm_half_is_adapted() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 5, 3), IBN(5), nn.ReLU()),
        *(nn.Conv2d(5, 6, 3), IBN(6, 0.4, instance_first=False), nn.ReLU(), nn.Conv2d(6, 4, 1)),
        nn.BatchNorm2d(4),
    )
    assert list(norm_layers(net)) == ["1.BN", "4.BN", "7"]
    assert set(without_statistics(net)) == {"1.IN", "4.IN"}
    x = data(30, 3, 8, 8).float() * 3
    truth = by_definition(net, list(norm_layers(net)), x)
    found = estimate(net, x.split(7))
    as_arrays = {k: (m.mean.numpy(), m.variance().numpy()) for k, m in found.items()}
    assert max(worst_error(as_arrays, truth)) < 1e-5
    before = copy.deepcopy(net.state_dict())
    after = adapt(net, x.split(7)).state_dict()
    changed = {k for k, v in after.items() if not torch.equal(v, before[k])}
    assert changed == {f"{n}.running_{k}" for n in norm_layers(net) for k in ("mean", "var")}
