"""Shift metrics against scipy, scikit-learn, closed forms, and what statistics promises."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import linalg, optimize, stats
from scipy.spatial import distance
from sklearn.datasets import load_digits
from sklearn.metrics.pairwise import rbf_kernel

from adaptkit import DataError
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
)

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


@pytest.fixture(params=["random", "real"])
def pair(request: pytest.FixtureRequest, digits: Array) -> tuple[Array, Array]:
    """Two samples of unlike sizes; the real one has constant features."""
    if request.param == "random":
        return normal(40, 5, 0), normal(57, 5, 1, 0.3, 1.4)
    return digits[:70], digits[300:350]


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


def test_frechet_with_fewer_rows_than_features() -> None:
    x, y = normal(5, 40, 0), normal(7, 40, 1)
    assert float(frechet(x, x)) == pytest.approx(0, abs=1e-9)
    assert 0 < float(frechet(x, y)) < 200
    assert float(frechet(x, x + 1.0)) == pytest.approx(40)


def test_frechet_of_gaussians_in_closed_form() -> None:
    x, y = normal(200_000, 2, 0), normal(200_000, 2, 1, 1.0, 3.0)
    assert float(frechet(x, y)) == pytest.approx(2 * (1 + 4), rel=0.02)


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


def test_classifiers_come_near_the_bayes_error() -> None:
    x, y = normal(4000, 1, 0), normal(4000, 1, 1, 1.5)
    error = stats.norm.cdf(-0.75)
    assert float(proxy_a_distance(x, y)) == pytest.approx(2 * (1 - 2 * error), abs=0.05)
    assert float(c2st_auc(x, y)) == pytest.approx(stats.norm.cdf(1.5 / 2**0.5), abs=0.02)


def test_classifiers_see_a_change_of_variance() -> None:
    x, y = normal(300, 3, 0), normal(300, 3, 1, 0.0, 2.0)
    assert float(proxy_a_distance(x, y)) > 0.8
    assert float(c2st_auc(x, y)) > 0.8


def test_the_sizes_of_the_domains_do_not_matter_to_the_a_distance() -> None:
    x = normal(50, 2, 0)
    found = [float(proxy_a_distance(x, normal(950, 2, seed))) for seed in range(1, 11)]
    assert abs(np.mean(found)) < 0.2  # a majority vote would score 1.8


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


@pytest.mark.parametrize("metric", ALL)
def test_every_metric_grows_with_a_corruption(metric: Metric, digits: Array) -> None:
    x, y = digits[:600], digits[600:1200]
    noise = normal(600, 64, 0)
    found = [float(metric(x, y + strength * noise)) for strength in (0.0, 2.0, 4.0, 8.0)]
    rises = np.diff(found)
    # Those that can reach their end (1 for a share or an AUC, 2) stay there.
    assert all(rise > 0 or value >= 0.97 for rise, value in zip(rises, found[1:], strict=True))


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
        (np.zeros((0, 3)), np.zeros((20, 3)), "x to have .* rows or more, got 0"),
        (np.zeros((20, 3)), [["a"]], "y to be an array of numbers"),
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
    with pytest.raises(DataError, match="bandwidth to be above 0"):
        mmd2(x, x, bandwidth=-1.0)
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
