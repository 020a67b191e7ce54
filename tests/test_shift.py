"""Shift metrics against scipy, scikit-learn, closed forms, and what statistics promises."""

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import linalg, ndimage, optimize, stats
from scipy.spatial import distance
from sklearn.datasets import load_digits
from sklearn.metrics.pairwise import rbf_kernel
from torch import Tensor, nn

from adaptkit import DataError
from adaptkit.demo import TRANSFORM, _train
from adaptkit.features import features
from adaptkit.shift import (
    ShiftResult,
    c2st_auc,
    coral,
    energy,
    frechet,
    ks_fraction,
    mmd2,
    proxy_a_distance,
    sliced_wasserstein,
    symmetric_kl,
)
from adaptkit.shift.classifier import _together

Array = NDArray[np.float64]
Metric = Callable[..., ShiftResult]
ALL: list[Metric] = [
    mmd2,
    energy,
    sliced_wasserstein,
    frechet,
    coral,
    proxy_a_distance,
    c2st_auc,
    ks_fraction,
]


def normal(n: int, d: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> Array:
    return np.random.default_rng(seed).normal(mean, scale, (n, d))


@pytest.fixture(scope="module")
def digits() -> Array:
    return np.asarray(load_digits().data, dtype=np.float64)


@pytest.fixture(scope="module")
def net(digits: Array) -> nn.Module:
    return _train(digits[:300].reshape(-1, 8, 8) / 16, load_digits().target[:300], 0, None)


def pooled(net: nn.Module, images: Array) -> Array:
    """Features of images of 8 x 8 pixels from 0 to 1."""
    (mean,), (std,) = TRANSFORM.mean, TRANSFORM.std
    x = torch.from_numpy((images.clip(0, 1) - mean) / std).float()
    return np.asarray(features(net, [x[:, None]]), dtype=np.float64)


@pytest.fixture(params=["random", "pixels", "features"])
def pair(request: pytest.FixtureRequest, digits: Array, net: nn.Module) -> tuple[Array, Array]:
    """Two samples of unlike sizes; the pixels are constant in some places."""
    if request.param == "random":
        return normal(40, 5, 0), normal(57, 5, 1, 0.3, 1.4)
    if request.param == "pixels":
        return digits[:70], digits[300:350]
    images = digits.reshape(-1, 8, 8) / 16
    return pooled(net, images[300:390]), pooled(net, 0.3 + 0.6 * images[400:470])


# Against independent implementations.


def naive_mmd2(x: Array, y: Array, bandwidth: float) -> float:
    gamma = 1 / (2 * bandwidth**2)
    xx, yy, xy = rbf_kernel(x, x, gamma), rbf_kernel(y, y, gamma), rbf_kernel(x, y, gamma)
    n, m = len(x), len(y)
    within = (xx.sum() - n) / (n * (n - 1)) + (yy.sum() - m) / (m * (m - 1))
    return float(within - 2 * xy.mean())


@pytest.mark.parametrize("rows", [7, 1024])
def test_mmd2(pair: tuple[Array, Array], rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptkit.shift.pairs._ROWS", rows)
    x, y = pair
    median = float(np.median(distance.pdist(np.vstack([x, y]))))
    assert float(mmd2(x, y, bandwidth=3.0)) == pytest.approx(naive_mmd2(x, y, 3.0), abs=1e-12)
    assert float(mmd2(x, y)) == pytest.approx(naive_mmd2(x, y, median), rel=1e-3)
    as_float32 = mmd2(torch.tensor(x, dtype=torch.float32), torch.tensor(y), bandwidth=3.0)
    assert float(as_float32) == pytest.approx(naive_mmd2(x, y, 3.0), abs=1e-6)


@pytest.mark.parametrize("rows", [7, 1024])
def test_energy(pair: tuple[Array, Array], rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptkit.shift.pairs._ROWS", rows)
    x, y = pair
    naive = (
        2 * distance.cdist(x, y).mean() - distance.cdist(x, x).mean() - distance.cdist(y, y).mean()
    )
    assert float(energy(x, y)) == pytest.approx(naive, abs=1e-6)
    one = stats.energy_distance(x[:, 2], y[:, 2]) ** 2
    assert float(energy(x[:, 2:3], y[:, 2:3])) == pytest.approx(one, abs=1e-6)


def test_regroupings_of_many_blocks_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(30, 2, 0), normal(20, 2, 1, 0.6)
    whole = mmd2(x, y, bandwidth=1.0, permutations=50), energy(x, y, permutations=50)
    monkeypatch.setattr("adaptkit.shift.pairs._ROWS", 8)
    pieces = mmd2(x, y, bandwidth=1.0, permutations=50), energy(x, y, permutations=50)
    assert [r.p_value for r in whole] == [r.p_value for r in pieces]


def test_permuted_statistics_are_those_of_regrouped_rows() -> None:
    from adaptkit.shift.pairs import _groupings, pair_sums

    x, y = normal(6, 2, 0), normal(9, 2, 1)
    rows = np.vstack([x, y])
    groups = _groupings(6, 15, 4, seed=3).numpy()
    sums = pair_sums(torch.tensor(x), torch.tensor(y), lambda d: d.sqrt(), permutations=4, seed=3)
    apart = distance.cdist(rows, rows)
    for column, group in enumerate(groups.T):
        assert sums.within_x[column].item() == pytest.approx(apart[group][:, group].sum())
        assert sums.within_y[column].item() == pytest.approx(apart[~group][:, ~group].sum())
        assert sums.between[column].item() == pytest.approx(apart[group][:, ~group].sum())


def wasserstein_2(x: Array, y: Array) -> float:
    """Squared, in one dimension, as an assignment of as many copies of each."""
    x, y = np.repeat(x, len(y)), np.repeat(y, len(x))
    cost = distance.cdist(x[:, None], y[:, None], "sqeuclidean")
    rows, columns = optimize.linear_sum_assignment(cost)
    return float(cost[rows, columns].mean())


@pytest.mark.parametrize(("n", "m"), [(8, 8), (6, 9), (1, 5)])
def test_sliced_wasserstein_is_the_optimal_transport_of_each_projection(n: int, m: int) -> None:
    x, y = normal(n, 1, 0), normal(m, 1, 1, 1.0, 2.0)
    expected = wasserstein_2(x[:, 0], y[:, 0]) ** 0.5
    assert float(sliced_wasserstein(x, y, projections=3)) == pytest.approx(expected)


def test_sliced_wasserstein_is_pots(pair: tuple[Array, Array]) -> None:
    ot = pytest.importorskip("ot")
    x, y = pair
    theta = torch.randn(
        x.shape[1], 40, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    theta /= theta.norm(dim=0)
    expected = ot.sliced_wasserstein_distance(x, y, projections=theta.numpy(), p=2)
    assert float(sliced_wasserstein(x, y, projections=40, seed=3)) == pytest.approx(expected)


def test_projections_in_pieces_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(30, 4, 0), normal(20, 4, 1, 1.0)
    whole = float(sliced_wasserstein(x, y, projections=20))
    monkeypatch.setattr("adaptkit.shift.wasserstein._AT_A_TIME", 7)
    assert float(sliced_wasserstein(x, y, projections=20)) == pytest.approx(whole, rel=1e-12)


def test_sliced_wasserstein_of_a_shifted_sample() -> None:
    x = normal(50, 10, 0)
    found = float(sliced_wasserstein(x, x + 2.0, projections=4000))
    assert found == pytest.approx(2.0, rel=0.05)  # |shift| / √D


def test_frechet(pair: tuple[Array, Array]) -> None:
    x, y = pair
    a, b = np.cov(x.T), np.cov(y.T)
    eps = 1e-9 * np.eye(len(a))  # sqrtm needs full rank, which the real ones lack
    root = np.real(linalg.sqrtm((a + eps) @ (b + eps)))
    naive = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b - 2 * root)
    assert float(frechet(x, y)) == pytest.approx(naive, rel=1e-4)


class Same(nn.Module):
    """What torchmetrics takes for a feature extractor."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("rows", [None, 9])  # nine are fewer than the features
def test_frechet_is_that_of_torchmetrics_and_pot(
    pair: tuple[Array, Array], rows: int | None
) -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    x, y = (sample[:rows] for sample in pair)
    theirs = fid.FrechetInceptionDistance(feature=Same(x.shape[1])).set_dtype(torch.float64)
    theirs.update(torch.from_numpy(x), real=True)
    theirs.update(torch.from_numpy(y), real=False)
    assert float(frechet(x, y)) == pytest.approx(theirs.compute().item(), rel=1e-5)
    if len(x) > x.shape[1] and not (x.std(0) * y.std(0) == 0).any():  # POT wants full rank
        ot = pytest.importorskip("ot")
        covariances = np.cov(x.T), np.cov(y.T)
        bures = ot.gaussian.bures_wasserstein_distance(x.mean(0), y.mean(0), *covariances)
        assert float(frechet(x, y)) == pytest.approx(bures**2, rel=1e-6)


def test_frechet_with_fewer_rows_than_features() -> None:
    x, y = normal(5, 40, 0), normal(7, 40, 1)
    assert float(frechet(x, x)) == pytest.approx(0, abs=1e-9)
    assert 0 < float(frechet(x, y)) < 200
    assert float(frechet(x, x + 1.0)) == pytest.approx(40)


def test_frechet_of_gaussians_in_closed_form() -> None:
    x, y = normal(200_000, 2, 0), normal(200_000, 2, 1, 1.0, 3.0)
    assert float(frechet(x, y)) == pytest.approx(2 * (1 + 4), rel=0.02)


def mean_kernel(bandwidth: float, variance: float, mean: float, d: int) -> float:
    """E k(X, Y) for X − Y normal with this mean and variance in each of d dimensions."""
    wide = bandwidth**2 + variance
    return float((bandwidth**2 / wide) ** (d / 2) * np.exp(-d * mean**2 / (2 * wide)))


def mean_distance(mean: float, sd: float) -> float:
    """E|Z| for Z normal."""
    folded = sd * np.sqrt(2 / np.pi) * np.exp(-(mean**2) / (2 * sd**2))
    return float(folded + mean * (1 - 2 * stats.norm.cdf(-mean / sd)))


def test_gaussians_in_closed_form() -> None:
    x, y = normal(4000, 3, 0), normal(4000, 3, 1, 0.7, 1.5)
    within = mean_kernel(1.2, 2.0, 0.0, 3) + mean_kernel(1.2, 2 * 1.5**2, 0.0, 3)
    expected = within - 2 * mean_kernel(1.2, 1 + 1.5**2, 0.7, 3)
    assert float(mmd2(x, y, bandwidth=1.2)) == pytest.approx(expected, abs=0.005)
    one = energy(x[:, :1], y[:, :1])
    across = 2 * mean_distance(0.7, (1 + 1.5**2) ** 0.5)
    apart = across - mean_distance(0.0, 2**0.5) - mean_distance(0.0, 1.5 * 2**0.5)
    assert float(one) == pytest.approx(apart, abs=0.02)
    # W2 of normals in one dimension: the means' and the standard deviations' distance.
    w2 = (0.7**2 + 0.5**2) ** 0.5
    assert float(sliced_wasserstein(x[:, :1], y[:, :1])) == pytest.approx(w2, abs=0.05)
    assert float(coral(x, y)) == pytest.approx(3 * 1.25**2 / (4 * 9), rel=0.1)
    moments = x.mean(0), x.var(0), y.mean(0), y.var(0)
    kl = (1 + 0.49) / (2 * 2.25) + (2.25 + 0.49) / 2 - 1
    assert float(symmetric_kl(*moments)) == pytest.approx(kl, abs=0.1)


def test_coral(pair: tuple[Array, Array]) -> None:
    x, y = pair
    naive = np.square(np.cov(x.T) - np.cov(y.T)).sum() / (4 * x.shape[1] ** 2)
    assert float(coral(x, y)) == pytest.approx(naive)


def test_ks_fraction(digits: Array) -> None:
    x, y = digits[:120], digits[400:560] * 0.8
    p = np.array([stats.ks_2samp(x[:, i], y[:, i], method="asymp").pvalue for i in range(64)])
    order = np.sort(p)
    below = np.flatnonzero(order <= 0.05 * np.arange(1, 65) / 64)
    expected = (below.max() + 1) / 64 if len(below) else 0.0
    result = ks_fraction(x, y)
    assert float(result) == expected
    assert 0 < expected < 1
    assert result.p_value == pytest.approx(min(1, (order * 64 / np.arange(1, 65)).min()))


def test_ks_of_what_scipy_cannot_do_exactly() -> None:
    x = np.arange(7.0)[:, None]  # interleaved: the p-value is 1 but for rounding
    assert ks_fraction(x, x + 0.5).p_value == pytest.approx(1, abs=1e-4)


def test_classifiers_come_near_the_bayes_error() -> None:
    x, y = normal(2000, 1, 0), normal(2000, 1, 1, 1.5)
    error = stats.norm.cdf(-0.75)
    assert float(proxy_a_distance(x, y)) == pytest.approx(2 * (1 - 2 * error), abs=0.05)
    assert float(c2st_auc(x, y)) == pytest.approx(stats.norm.cdf(1.5 / 2**0.5), abs=0.02)


def test_classifiers_see_a_change_of_variance() -> None:
    x, y = normal(300, 3, 0), normal(300, 3, 1, 0.0, 2.0)
    assert float(proxy_a_distance(x, y)) > 0.8
    assert float(c2st_auc(x, y)) > 0.8


def test_the_sizes_of_the_domains_do_not_matter_to_the_a_distance() -> None:
    x = normal(50, 2, 0)
    found = [float(proxy_a_distance(x, normal(450, 2, seed))) for seed in range(1, 7)]
    assert abs(np.mean(found)) < 0.2  # a majority vote would score 1.6


def test_values_that_repeat_are_learnt_row_by_row() -> None:
    """Rows of one value in one fold would be tested against what is left: an AUC of 0."""
    five = normal(5, 4, 0)
    x = np.repeat(five, [21, 1, 1, 1, 1], 0)
    y = np.repeat(five + 1.0, [21, 1, 1, 1, 1], 0)
    assert float(c2st_auc(x, y)) > 0.8
    assert float(proxy_a_distance(x, y)) > 1
    counts = np.random.default_rng(0).poisson(5, (60, 1)).astype(float)
    assert len(np.unique(_together(torch.tensor(counts), torch.tensor(counts), 0)[2])) == 120
    twins = torch.tensor(normal(60, 3, 0))
    assert len(np.unique(_together(twins, twins, 0)[2])) == 60


def test_few_rows_of_many_features_are_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptkit.shift.classifier._MOST_NUMBERS", 6000)
    x = torch.zeros(800, 10)
    assert _together(x, x[:550], 0)[0].shape == (600 + 550, 10)
    monkeypatch.setattr("adaptkit.shift.classifier._MOST_NUMBERS", 60)
    assert _together(x, x[:550], 0)[0].shape == (500 + 500, 10)


def test_identical_data_is_at_no_distance(digits: Array) -> None:
    x = digits[:150]
    assert float(mmd2(x, x)) <= 0
    for metric in (energy, sliced_wasserstein, frechet, coral, ks_fraction):
        assert float(metric(x, x)) == pytest.approx(0, abs=1e-6)
    assert abs(float(proxy_a_distance(x, x))) < 0.2
    assert float(c2st_auc(x, x)) == pytest.approx(0.5, abs=0.05)


# What statistics promises.


@pytest.mark.parametrize(
    "test",
    [
        lambda x, y, seed: mmd2(x, y, permutations=99, seed=seed),
        lambda x, y, seed: energy(x, y, permutations=99, seed=seed),
        lambda x, y, seed: c2st_auc(x, y, seed=seed),
    ],
    ids=["mmd2", "energy", "c2st_auc"],
)
def test_p_values_are_uniform_without_a_shift(test: Metric) -> None:
    p: list[float] = [
        test(normal(24, 3, 2 * i), normal(36, 3, 2 * i + 1), i).p_value or 0.0 for i in range(200)
    ]
    assert min(p) > 0
    # Discrete in steps of 1/100 (or of the Mann-Whitney statistic's), hence the small allowance.
    assert stats.kstest(p, "uniform").statistic < 1.63 / 200**0.5 + 0.01


@pytest.mark.parametrize("seed", [14, 16, 18])
def test_ties_count_as_ties(seed: int) -> None:
    """Of two values many regroupings give the same statistic; rounding must not tell them apart."""
    from adaptkit.shift.pairs import _groupings

    n, m, rng = 300, 350, np.random.default_rng(seed)
    ones = np.concatenate([rng.random(n) < 0.5, rng.random(m) < 0.5])

    def exact(group: NDArray[np.bool_]) -> tuple[Fraction, Fraction]:
        """MMD² but for a positive factor, and energy distance."""
        k, j = int(ones[group].sum()), int(ones[~group].sum())
        unlike = Fraction(2 * k * (n - k), n * (n - 1)) + Fraction(2 * j * (m - j), m * (m - 1))
        across = Fraction(2 * (k * (m - j) + j * (n - k)), n * m)
        return across - unlike, (Fraction(k, n) - Fraction(j, m)) ** 2

    found = [exact(group) for group in _groupings(n, n + m, 199, seed).numpy().T]
    expected = [
        (sum(one >= first for one in others) + 1) / 200
        for first, *others in zip(*found, strict=True)
    ]
    x, y = np.split(0.1 + 0.3 * ones[:, None], [n])
    assert mmd2(x, y, bandwidth=0.3, permutations=199, seed=seed).p_value == expected[0]
    assert energy(x, y, permutations=199, seed=seed).p_value == expected[1]


def test_false_discoveries_are_rare() -> None:
    wrong = [float(ks_fraction(normal(40, 20, i), normal(40, 20, 999 + i))) > 0 for i in range(200)]
    assert np.mean(wrong) < 0.09


def test_the_unbiased_ones_average_zero_without_a_shift() -> None:
    pairs = [(normal(30, 2, 2 * i), normal(30, 2, 2 * i + 1)) for i in range(60)]
    for metric in (mmd2, proxy_a_distance):
        found = np.array([float(metric(x, y)) for x, y in pairs])
        assert abs(found.mean()) < 3 * found.std() / 60**0.5


def test_power() -> None:
    x, y = normal(80, 5, 0), normal(80, 5, 1, 0.6)
    assert (mmd2(x, y, permutations=199).p_value or 1) < 0.01
    assert (energy(x, y, permutations=199).p_value or 1) < 0.01
    assert (c2st_auc(x, y).p_value or 1) < 0.01
    assert (ks_fraction(x, y).p_value or 1) < 0.01
    assert mmd2(x, y).p_value is None


CORRUPTIONS: dict[str, Callable[[Array, float], Array]] = {
    "noise": lambda x, s: x + s * 0.4 * np.random.default_rng(0).normal(size=x.shape),
    "contrast": lambda x, s: 0.5 + (1 - 0.8 * s) * (x - 0.5),
    "brightness": lambda x, s: x + 0.6 * s,
    "blur": lambda x, s: ndimage.gaussian_filter(x, (0, 1.5 * s, 1.5 * s)),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_every_metric_grows_with_a_corruption_of_images(
    corruption: str, digits: Array, net: nn.Module
) -> None:
    images = digits.reshape(-1, 8, 8) / 16
    x = pooled(net, images[300:480])
    strengths = (0.0, 0.45, 0.9)
    ys = [pooled(net, CORRUPTIONS[corruption](images[600:780], s)) for s in strengths]
    for metric in ALL:
        found = [float(metric(x, y)) for y in ys]
        least = found[0] + 0.01 * abs(found[0])
        # Those that can reach their end (1 for a share or an AUC, 2) stay there.
        rises = [b > a or b >= 0.97 for a, b in pairwise(found)]
        assert all(rises), (metric, found)
        assert found[-1] > least, (metric, found)


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 12), st.integers(3, 12), st.integers(1, 4), st.integers(0, 10_000))
def test_order_and_place_do_not_matter(n: int, m: int, d: int, seed: int) -> None:
    x, y = normal(n, d, seed), normal(m, d, seed + 1, 0.5)
    for metric in (mmd2, energy, frechet, coral, sliced_wasserstein):
        kwargs = {"bandwidth": 1.0} if metric is mmd2 else {}
        value = float(metric(x, y, **kwargs))
        assert float(metric(y, x, **kwargs)) == pytest.approx(value, rel=1e-6, abs=1e-7)
        assert float(metric(x[::-1].copy(), y, **kwargs)) == pytest.approx(value, abs=1e-7)
        moved = float(metric(x + 1000, y + 1000, **kwargs))
        assert moved == pytest.approx(value, rel=1e-5, abs=1e-5)
        assert np.isfinite(value)


# Bad input.


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((20, 2)), np.zeros((20, 3)), "same number of features, got 2 and 3"),
        (np.zeros(20), np.zeros((20, 3)), r"x of shape \(N, D\), got \(20,\)"),
        (np.zeros((20, 3)), np.full((20, 3), np.nan), "y to hold finite numbers"),
        (np.zeros((0, 3)), np.zeros((20, 3)), "x to have .* rows? or more, got 0"),
        (np.zeros((20, 3)), [["a"]], "y to be an array of real numbers, got <U1"),
        (np.zeros((20, 3)), np.zeros((20, 3)) + 1j, "y to be an array of real numbers, got comp"),
        (torch.zeros(20, 3) + 1j, np.zeros((20, 3)), "x to be an array of real numbers, got torch"),
        ([[1.0], [1.0, 2.0]], np.zeros((20, 3)), "x to be an array of numbers"),
        (None, np.zeros((20, 3)), "x to be an array of real numbers, got object"),
        (np.zeros((20, 0)), np.zeros((20, 0)), r"x of shape \(N, D\), got \(20, 0\)"),
        (np.zeros((20, 3)), np.full((20, 3), 1e61), "y to hold numbers within ±1e\\+60"),
    ],
)
def test_bad_input(metric: Metric, x: object, y: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        metric(x, y)


@pytest.mark.parametrize("metric", [mmd2, frechet, coral, proxy_a_distance, c2st_auc])
def test_one_row_is_too_few(metric: Metric) -> None:
    with pytest.raises(DataError, match="rows or more, got 1"):
        metric(np.zeros((1, 2)), np.zeros((20, 2)))


def test_arguments_out_of_range() -> None:
    x = normal(20, 2, 0)
    for bandwidth in (-1.0, 0.0, 1e-200, np.inf, np.nan):
        with pytest.raises(DataError, match="bandwidth to be above 0 and finite"):
            mmd2(x, x, bandwidth=bandwidth)
    for metric in (mmd2, energy):
        with pytest.raises(DataError, match="permutations to be 0 or more, got -1"):
            metric(x, x, permutations=-1)
    with pytest.raises(DataError, match="projections to be 1 or more"):
        sliced_wasserstein(x, x, projections=0)
    with pytest.raises(DataError, match="level to be between 0 and 1"):
        ks_fraction(x, x, level=1.0)


@pytest.mark.parametrize("metric", ALL)
def test_constant_features(metric: Metric) -> None:
    same = float(metric(np.ones((20, 2)), np.ones((30, 2))))
    assert same == (0.5 if metric is c2st_auc else 0.0)
    apart = float(metric(np.ones((20, 2)), np.full((30, 2), 3.0)))
    assert np.isfinite(apart)
    assert apart > 0 or metric is coral  # blind to the mean


def read_only(x: Array) -> Array:
    x = x.copy()
    x.flags.writeable = False
    return x


FORMS: dict[str, Callable[[Array], Any]] = {
    "list": lambda x: x.tolist(),
    "list of tensors": lambda x: [*torch.tensor(x)],
    "whole numbers": lambda x: x.astype(np.int16),
    "uint8": lambda x: x.astype(np.uint8),
    "float16": lambda x: x.astype(np.float16),
    "bfloat16": lambda x: torch.tensor(x).bfloat16(),
    "long double": lambda x: x.astype(np.longdouble),
    "big-endian": lambda x: x.astype(">f4"),
    "backwards": lambda x: x[::-1].copy()[::-1],
    "transposed": lambda x: torch.tensor(x.T.copy()).T,
    "read-only": read_only,
    "with a gradient": lambda x: torch.tensor(x, requires_grad=True),
    "sparse": lambda x: torch.tensor(x).to_sparse(),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_input(form: str, digits: Array) -> None:
    """Pixels are whole numbers from 0 to 16, which every form holds exactly."""
    x, y = digits[:12, 18:30], digits[20:34, 18:30]
    for metric in (mmd2, sliced_wasserstein, frechet, c2st_auc, ks_fraction):
        assert float(metric(FORMS[form](x), FORMS[form](y))) == float(metric(x, y)), metric


@pytest.mark.parametrize("metric", ALL)
def test_switches_are_0_or_1(metric: Metric, digits: Array) -> None:
    x, y = digits[:12, 18:30] > 8, digits[20:34, 18:30] > 4
    assert float(metric(x, y)) == float(metric(x.astype(float), y.astype(float)))
    assert float(metric(torch.tensor(x), torch.tensor(y))) == float(metric(x, y))


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_scale(scale: float) -> None:
    x, y = normal(30, 4, 0), normal(25, 4, 1, 0.5)
    powers = {mmd2: 0, energy: 1, sliced_wasserstein: 1, frechet: 2, coral: 4}
    for metric in ALL:
        expected = float(metric(x, y)) * scale ** powers.get(metric, 0)
        assert float(metric(x * scale, y * scale)) == pytest.approx(expected, rel=1e-6), metric


def test_what_is_too_small_for_its_square_is_no_distance() -> None:
    x, y = normal(30, 4, 0) * 1e-200, normal(25, 4, 1, 0.5) * 1e-200
    for metric in (mmd2, energy, sliced_wasserstein, frechet, coral):
        assert float(metric(x, y)) == 0


def test_domains_far_apart_keep_their_digits() -> None:
    """About a common centre, all distances within a domain would be lost to rounding."""
    x = normal(40, 3, 0)
    y = x + 2.0**26
    expected = 2 * (rbf_kernel(x, x, 0.5).sum() - 40) / (40 * 39)
    assert float(mmd2(x, y, bandwidth=1.0)) == pytest.approx(expected, abs=1e-6)


def test_p_values_are_never_0() -> None:
    x = normal(2500, 1, 0)
    for result in (
        ks_fraction(x, x + 100),
        c2st_auc(x, x + 100),
        mmd2(x[:9], x[:9] + 9, permutations=9),
    ):
        assert result.p_value is not None
        assert 0 < result.p_value <= 0.1
