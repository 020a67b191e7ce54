"""Adaptive Instance Normalization against the paper's formula."""

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adaptkit import DataError
from adaptkit.layers import AdaptiveInstanceNorm, Style, adaptive_instance_norm, restyle


def data(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64) * 2 + 1


def by_formula(x: np.ndarray, y: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    def flat(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        over = tuple(range(2, a.ndim))
        return a.mean(over, keepdims=True), np.sqrt(a.var(over, keepdims=True) + eps)

    (mean_x, std_x), (mean_y, std_y) = flat(x), flat(y)
    shape = (*mean_y.shape[:2], *[1] * (x.ndim - 2))
    found: np.ndarray = std_y.reshape(shape) * (x - mean_x) / std_x + mean_y.reshape(shape)
    return found


@pytest.mark.parametrize("space", [(7,), (5, 6), (3, 2, 4)])
@pytest.mark.parametrize("styles", [1, 4])
def test_it_is_the_papers(space: tuple[int, ...], styles: int) -> None:
    x, y = data(4, 3, *space), data(styles, 3, *(n + 1 for n in space), seed=1) * 3
    expected = by_formula(x.numpy(), y.numpy())
    np.testing.assert_allclose(adaptive_instance_norm(x, y).numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(AdaptiveInstanceNorm(3)(x, y).numpy(), expected, rtol=1e-10)


@settings(deadline=None, max_examples=25)
@given(
    gain=st.floats(0.1, 10),
    offset=st.floats(-10, 10),
    n=st.integers(1, 4),
    side=st.integers(2, 5),
)
def test_it_undoes_a_gain_and_an_offset(gain: float, offset: float, n: int, side: int) -> None:
    x = data(n, 3, side, side)
    torch.testing.assert_close(adaptive_instance_norm(x, x), x)
    again = adaptive_instance_norm(gain * x + offset, x, eps=0.0)
    torch.testing.assert_close(again, x, rtol=1e-8, atol=1e-8)


def test_a_style_is_the_mean_over_images_in_any_batches() -> None:
    x = data(10, 3, 4, 5)
    style = Style.of(x)
    np.testing.assert_allclose(style.mean.numpy(), x.numpy().mean((2, 3)).mean(0), rtol=1e-6)
    std = np.sqrt(x.numpy().var((2, 3)) + 1e-5).mean(0)
    np.testing.assert_allclose(style.std.numpy(), std, rtol=1e-6)
    parts = Style.of(iter(x.split([1, 4, 5])))
    torch.testing.assert_close(parts.mean, style.mean)
    torch.testing.assert_close(parts.std, style.std)
    # Each image by itself then has that style, whatever it had.
    y = restyle(data(6, 3, 8, 8, seed=2) * (0.5 + torch.rand(6, 1, 1, 1)) + 5, style)
    for image in y:
        mean, std = image.mean((1, 2)), image.var((1, 2), correction=0).sqrt()
        torch.testing.assert_close(mean.float(), style.mean)
        torch.testing.assert_close(std.float(), style.std, rtol=1e-3, atol=0)
    torch.testing.assert_close(AdaptiveInstanceNorm.towards(style)(x), restyle(x, style))


def test_one_image_and_a_batch_are_alike() -> None:
    style = Style.of(data(5, 3, 4, 4))
    x = data(6, 3, 4, 4, seed=1)
    torch.testing.assert_close(restyle(x, style)[2:3], restyle(x[2:3], style))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_maps_of_one_value_and_constant_ones_become_the_styles_mean(dtype: torch.dtype) -> None:
    style = Style(torch.tensor([0.5, 2.0]), torch.tensor([1.0, 3.0]))
    for x in (torch.full((2, 2, 1, 1), 7.0, dtype=dtype), torch.full((2, 2, 4, 4), 7.0).to(dtype)):
        y = restyle(x, style)
        assert y.dtype == dtype
        torch.testing.assert_close(y, style.mean.to(dtype).view(1, 2, 1, 1).expand_as(x))


def test_gradients() -> None:
    x, y = data(2, 2, 3, 3).requires_grad_(), data(2, 2, 4, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(adaptive_instance_norm, (x, y))
    assert torch.autograd.gradcheck(AdaptiveInstanceNorm(2, dtype=torch.float64), (x,))


def test_copies_files_layouts_and_other_formats() -> None:
    layer = AdaptiveInstanceNorm.towards(Style.of(data(4, 3, 5, 5)))
    x = data(2, 3, 4, 6).float()
    expected = layer(x)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.load(buffer, weights_only=False)(x), expected)
    torch.testing.assert_close(copy.deepcopy(layer)(x), expected)
    torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(layer(x.transpose(2, 3)), expected.transpose(2, 3))
    torch.testing.assert_close(layer(x.bfloat16()).float(), expected, atol=0.05, rtol=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), expected)
    assert layer(x[:0]).shape == (0, 3, 4, 6)
    assert layer(x[..., :0]).shape == (2, 3, 4, 0)
    again = AdaptiveInstanceNorm(3)
    again.load_state_dict(layer.state_dict())
    torch.testing.assert_close(again(x), expected)
    assert repr(again) == "AdaptiveInstanceNorm(3, eps=1e-05)"


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_it_scripts() -> None:
    layer = AdaptiveInstanceNorm.towards(Style.of(data(4, 3, 5, 5)))
    x, y = data(2, 3, 4, 6).float(), data(2, 3, 5, 5, seed=1).float()
    scripted = torch.jit.script(layer)
    torch.testing.assert_close(scripted(x), layer(x))
    torch.testing.assert_close(scripted(x, y), layer(x, y))


def test_bad_input() -> None:
    style = Style.of(data(4, 3, 5, 5))
    with pytest.raises(ValueError, match=r"Expected floating x of shape \(N, 3, ...\)"):
        restyle(data(2, 4, 5, 5), style)
    with pytest.raises(ValueError, match="with spatial dimensions"):
        restyle(data(2, 3), style)
    with pytest.raises(ValueError, match="with spatial dimensions"):
        restyle(torch.ones(2, 3, 4, 4, dtype=torch.int64), style)
    with pytest.raises(ValueError, match="as many samples or one"):
        adaptive_instance_norm(data(4, 3, 2, 2), data(3, 3, 2, 2))
    with pytest.raises(ValueError, match="with values to take a style from"):
        adaptive_instance_norm(data(4, 3, 2, 2), data(4, 3, 0, 2))
    with pytest.raises(DataError, match="no sample"):
        Style.of([])
    with pytest.raises(DataError, match="finite"):
        Style.of(torch.full((1, 3, 2, 2), torch.nan))
    with pytest.raises(DataError, match="one shape"):
        Style(torch.zeros(3), torch.zeros(2))
