"""Moments against numpy, and their algebra."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

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
    # How many threads share the sums decides their last digits: 1.2e-6 on one, less on more.
    assert ((m.mean - mean).abs() / variance.sqrt()).max() < 5e-6
    assert (m.variance().log() - variance.log()).abs().max() < 5e-6


def test_no_values_and_one_value() -> None:
    assert Moments.of(torch.empty(0, 2)).count == 0
    assert Moments.of(torch.empty(3, 2, 0, 5)).count == 0
    one = Moments.of(torch.tensor([[4.0, -1.0]]))
    assert (one.count, one.mean.tolist(), one.m2.tolist()) == (1, [4.0, -1.0], [0.0, 0.0])
    with pytest.raises(ValueError, match="two values or more for the variance, got 1"):
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


# Weights and standard errors.


@given(seeds, st.lists(st.integers(0, 4), min_size=2, max_size=12))
def test_a_whole_weight_is_a_repetition(seed: int, repeats: list[int]) -> None:
    x, times = sample(seed, len(repeats), 2, 3), torch.tensor(repeats)
    if times.sum() < 2:
        return
    weighted = Moments.of(x, weight=times.double())
    repeated = Moments.of(x.repeat_interleave(times, 0))
    torch.testing.assert_close(weighted.mean, repeated.mean)
    torch.testing.assert_close(weighted.m2, repeated.m2)
    assert weighted.weight == repeated.count


@given(seeds, splits, st.floats(0.1, 10))
def test_only_the_ratio_of_weights_matters_and_they_merge(
    seed: int, sizes: list[int], scale: float
) -> None:
    n = sum(sizes)
    x, w = sample(seed, n, 2, 3, loc=4), sample(seed + 1, n).square() + 0.1
    whole = Moments.of(x, weight=w)
    parts = [Moments.of(a, weight=b) for a, b in zip(x.split(sizes), w.split(sizes), strict=True)]
    merged = sum(parts[1:], parts[0])
    assert_same(merged, whole)
    torch.testing.assert_close(merged.scatter, whole.scatter, rtol=1e-8, atol=1e-8)
    if n > 1:
        torch.testing.assert_close(Moments.of(x, weight=w * scale).variance(), whole.variance())
        for a, b in zip(
            Moments.of(x, weight=w * scale).standard_error(), merged.standard_error(), strict=True
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("weight", [torch.ones(3), -torch.ones(4), torch.full((4,), torch.inf)])
def test_bad_weights(weight: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="4 finite numbers of 0 or more, one a sample"):
        Moments.of(torch.zeros(4, 2), weight=weight)


def test_without_clusters_the_errors_are_the_textbooks() -> None:
    x = sample(5, 400, 3, scale=2)
    mean, log_variance = Moments.of(x).standard_error()
    np.testing.assert_allclose(mean, x.numpy().std(0, ddof=1) / 20)
    kurtosis = stats.kurtosis(x.numpy(), fisher=False)
    np.testing.assert_allclose(log_variance, np.sqrt((kurtosis - 1) / 399), rtol=1e-6)


def test_the_errors_are_those_of_the_jackknife_over_samples() -> None:
    x = sample(6, 60, 2, 5, loc=3) * torch.linspace(0.5, 2, 60).view(-1, 1, 1)
    leave_one_out = [Moments.of(torch.cat([x[:i], x[i + 1 :]])) for i in range(60)]
    means = np.stack([m.mean.numpy() for m in leave_one_out])
    logs = np.stack([m.variance().log().numpy() for m in leave_one_out])
    found = Moments.of(x).standard_error()
    for error, values in zip(found, (means, logs), strict=True):
        np.testing.assert_allclose(error, values.std(0) * np.sqrt(59), rtol=0.06)


@pytest.mark.parametrize("images", [64, 256])
def test_the_intervals_cover_at_their_level(images: int) -> None:
    """Pixels of one image share a brightness and a contrast, so they are far from independent."""
    rng = np.random.default_rng(images)
    channels, pixels = 400, 49
    brightness = rng.normal(0, 1, (images, channels, 1))
    contrast = np.exp(rng.normal(0, 0.3, (images, channels, 1)))
    x = torch.from_numpy(brightness + contrast * rng.normal(0, 1, (images, channels, pixels)))
    m = Moments.of(x)
    mean_error, log_error = m.standard_error()
    truth = np.log(1 + np.exp(2 * 0.3**2))
    inside_mean = (m.mean.abs() < 1.96 * mean_error).double().mean()
    inside_log = ((m.variance().log() - truth).abs() < 1.96 * log_error).double().mean()
    assert 0.91 < inside_mean < 0.98
    assert 0.90 < inside_log < 0.98
    naive = m.variance().sqrt() / (images * pixels) ** 0.5
    assert (m.mean.abs() < 1.96 * naive).double().mean() < 0.5  # as if pixels were independent


def test_errors_that_are_not_known() -> None:
    one = Moments.of(torch.randn(1, 2, 5)).standard_error()
    assert all(bool(e.isnan().all()) for e in one)
    mean, log_variance = Moments.of(torch.ones(4, 1, 3)).standard_error()
    assert mean.item() == 0
    assert log_variance.isnan().all()
