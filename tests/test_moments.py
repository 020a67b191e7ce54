"""Moments against numpy, and their algebra."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptkit.moments import Moments

splits = st.lists(st.integers(0, 40), min_size=1, max_size=6)
seeds = st.integers(0, 2**32 - 1)


def sample(
    seed: int, *shape: int, loc: float = 0.0, scale: float = 1.0, dtype: type = np.float64
) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(loc, scale, shape).astype(dtype))


def assert_same(a: Moments, b: Moments, rtol: float = 1e-10) -> None:
    assert a.count == b.count
    torch.testing.assert_close(a.mean, b.mean, rtol=rtol, atol=1e-12)
    torch.testing.assert_close(a.m2, b.m2, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("shape", [(7, 3), (1, 3), (5, 3, 4), (5, 3, 4, 6), (2, 3, 2, 3, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_of_is_numpys_mean_and_variance(shape: tuple[int, ...], dtype: type) -> None:
    x = sample(1, *shape, loc=3, scale=2, dtype=dtype)
    m = Moments.of(x)
    flat = np.moveaxis(x.numpy().astype(np.float64), 1, 0).reshape(3, -1)
    assert m.count == flat.shape[1]
    assert m.mean.dtype == m.m2.dtype == torch.float64
    np.testing.assert_allclose(m.mean, flat.mean(1), rtol=1e-6)
    np.testing.assert_allclose(m.m2, flat.var(1) * flat.shape[1], rtol=1e-5, atol=1e-12)
    if m.count > 1:
        np.testing.assert_allclose(m.variance(), flat.var(1, ddof=1), rtol=1e-5)


@given(seeds, splits)
def test_any_split_merges_to_the_whole(seed: int, sizes: list[int]) -> None:
    x = sample(seed, sum(sizes), 3, loc=5, scale=0.5)
    parts = [Moments.of(part) for part in x.split(sizes)]
    assert_same(sum(parts[1:], parts[0]), Moments.of(x))


@given(seeds, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_merging_is_commutative_and_associative(seed: int, i: int, j: int, k: int) -> None:
    a, b, c = (Moments.of(part) for part in sample(seed, i + j + k, 2).split([i, j, k]))
    assert_same(a + b, b + a)
    assert_same((a + b) + c, a + (b + c))


@given(seeds, st.floats(-1e3, 1e3), st.floats(0.01, 100))
def test_shift_moves_the_mean_and_scale_squares_into_m2(
    seed: int, shift: float, scale: float
) -> None:
    x = sample(seed, 20, 2)
    m, moved = Moments.of(x), Moments.of(x * scale + shift)
    torch.testing.assert_close(moved.mean, m.mean * scale + shift, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved.m2, m.m2 * scale**2, rtol=1e-6, atol=1e-9)


def test_nothing_cancels_far_from_zero() -> None:
    # E[x²] − E[x]² in float32 gives 0.06 for this variance of 1e-4.
    x = sample(0, 4096, 1, loc=1000, scale=0.01).float()
    m = sum((Moments.of(part) for part in x.split(64)), Moments.empty(1))
    exact = x.double().var(0)
    torch.testing.assert_close(m.variance(), exact, rtol=1e-9, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_float32_feature_maps_keep_five_digits(memory_format: torch.memory_format) -> None:
    x = sample(3, 16, 8, 112, 112, loc=1, scale=3).float()
    m = Moments.of(x.to(memory_format=memory_format))
    variance, mean = torch.var_mean(x.double(), [0, 2, 3])
    assert ((m.mean - mean).abs() / variance.sqrt()).max() < 1e-6
    assert (m.variance().log() - variance.log()).abs().max() < 1e-6


def test_no_values_and_one_value() -> None:
    assert Moments.of(torch.empty(0, 2)).count == 0
    assert Moments.of(torch.empty(3, 2, 0, 5)).count == 0
    one = Moments.of(torch.tensor([[4.0, -1.0]]))
    assert (one.count, one.mean.tolist(), one.m2.tolist()) == (1, [4.0, -1.0], [0.0, 0.0])
    with pytest.raises(ValueError, match="more than 1 values for the variance, got 1"):
        one.variance()


def test_a_constant_channel_has_no_variance() -> None:
    assert Moments.of(torch.full((10, 2, 3), 7.25)).m2.tolist() == [0.0, 0.0]


def test_not_finite_is_noticed() -> None:
    x = torch.zeros(4, 2)
    assert Moments.of(x).is_finite()
    x[1, 1] = float("nan")
    assert not Moments.of(x).is_finite()


def test_the_input_and_its_graph_are_left_alone() -> None:
    x = sample(0, 4, 2).float().requires_grad_()
    before = x.detach().clone()
    assert not Moments.of(x).mean.requires_grad
    assert torch.equal(x, before)


@pytest.mark.parametrize("x", [torch.zeros(3), torch.zeros(2, 3, dtype=torch.long)])
def test_wrong_input_is_named(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"floating of shape \(N, C, \.\.\.\), got"):
        Moments.of(x)


def test_channels_must_agree() -> None:
    with pytest.raises(ValueError, match=r"same channels, got \(2,\) and \(3,\)"):
        Moments.empty(2) + Moments.empty(3)
