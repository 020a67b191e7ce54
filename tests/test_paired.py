"""Intervals and tests against scipy, published examples, and simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from adaptkit.paired import mean_change, proportion_change, wilson

bools = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def pairs(both: int, lost: int, won: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Paired outcomes with these counts: right twice, right then wrong, wrong then right, wrong."""
    before = [True] * (both + lost) + [False] * (won + neither)
    after = [True] * both + [False] * lost + [True] * won + [False] * neither
    return np.array(before), np.array(after)


def test_wilson_is_the_root_of_the_score_test() -> None:
    low, high = wilson(37, 120)
    for p in (low, high):  # |p̂ − p| = z·√(p(1−p)/n)
        assert abs(37 / 120 - p) == pytest.approx(1.959964 * np.sqrt(p * (1 - p) / 120), rel=1e-6)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        # Fagerland, Lydersen & Laake 2014, airway hyper-responsiveness (Bentur et al. 2009).
        ((1, 1, 7, 12), 0.026, 0.507),
        # Newcombe 1998, table II, method 10, there with the sign turned.
        ((36, 12, 2, 0), -0.340, -0.057),
        ((54, 0, 0, 0), -0.066, 0.066),
    ],
)
def test_newcombes_interval_is_the_published_one(
    counts: tuple[int, int, int, int], low: float, high: float
) -> None:
    change = proportion_change(*pairs(*counts))
    assert (change.ci_low, change.ci_high) == pytest.approx((low, high), abs=6e-4)


def test_mcnemars_p_value_is_the_exact_binomial() -> None:
    change = proportion_change(*pairs(50, 3, 12, 20))
    tail = stats.binom(15, 0.5).cdf(3)
    assert change.p_value == pytest.approx(2 * tail)
    assert change.change == pytest.approx(9 / 85)
    assert proportion_change(*pairs(5, 0, 0, 5)).p_value == 1.0


@given(bools)
def test_the_interval_holds_the_change_and_mirrors(outcomes: list[tuple[bool, bool]]) -> None:
    before, after = (np.array(side) for side in zip(*outcomes, strict=True))
    there, back = proportion_change(before, after), proportion_change(after, before)
    assert there.ci_low is not None
    assert there.ci_high is not None
    assert -1 <= there.ci_low <= there.change + 1e-12 <= there.ci_high + 2e-12 <= 1 + 3e-12
    assert back.change == pytest.approx(-there.change)
    assert back.ci_low == pytest.approx(-there.ci_high)
    assert back.p_value == pytest.approx(there.p_value)


def test_the_interval_covers_at_its_level() -> None:
    rng = np.random.default_rng(0)
    cells = [0.55, 0.1, 0.2, 0.15]
    hits = 0
    for _ in range(400):
        both, lost, won, neither = rng.multinomial(80, cells)
        change = proportion_change(*pairs(both, lost, won, neither))
        assert change.ci_low is not None
        assert change.ci_high is not None
        hits += change.ci_low <= 0.1 <= change.ci_high
    assert 0.92 <= hits / 400 <= 0.98


def test_mean_change_is_scipys_paired_t() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.normal(0, 1, 40), rng.normal(0.3, 1, 40)
    expected = stats.ttest_rel(after, before)
    interval = expected.confidence_interval()
    change = mean_change(before, after)
    assert change.p_value == pytest.approx(expected.pvalue)
    assert (change.ci_low, change.ci_high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize("n", [1, 5])
def test_no_spread_gives_no_interval(n: int) -> None:
    before = np.linspace(0, 0.1, n)
    change = mean_change(before, before + 0.1)
    assert change.change == pytest.approx(0.1)
    assert change[1:] == (None, None, None)


def test_wilsons_interval_covers_at_its_level() -> None:
    """Exactly, over all outcomes: it holds 95% on average over proportions, not for each."""
    n = 40
    intervals = [wilson(k, n) for k in range(n + 1)]
    shares = np.linspace(0.05, 0.95, 91)
    held = [
        sum(stats.binom.pmf(k, n, p) for k, (low, high) in enumerate(intervals) if low <= p <= high)
        for p in shares
    ]
    assert np.mean(held) == pytest.approx(0.95, abs=0.005)
    assert min(held) > 0.9


def test_mcnemars_p_value_is_valid_without_a_change() -> None:
    """Exactly, over all outcomes: of 12 that changed side, p is below a level at most so often."""
    p_values = np.array([proportion_change(*pairs(5, 12 - k, k, 5)).p_value for k in range(13)])
    chance = stats.binom.pmf(range(13), 12, 0.5)
    for level in (0.01, 0.05, 0.2, 0.5):
        assert chance[p_values <= level].sum() <= level
    assert chance[p_values <= 0.05].sum() > 0.03


def test_the_paired_ts_p_values_are_uniform_and_its_intervals_cover() -> None:
    rng = np.random.default_rng(0)
    p_values, held = [], 0
    for _ in range(400):
        before = rng.normal(size=25)
        change = mean_change(before, before + rng.normal(0, 0.5, 25))
        assert change.ci_low is not None
        assert change.ci_high is not None
        p_values.append(change.p_value or 0.0)
        held += change.ci_low <= 0 <= change.ci_high
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert 0.92 <= held / 400 <= 0.98
