"""The mix of classes that the mean of a target's inputs shows."""

import digits
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptkit.guard.class_maps import ClassMaps, error_of_equal_shares, in_places, mean_map

K = 4


def maps(seed: int = 0) -> ClassMaps:
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(K, 2, 5, 5))
    return ClassMaps(found - found.mean((2, 3), keepdims=True), 0.0)


@given(
    st.lists(st.floats(0.05, 1), min_size=K, max_size=K),
    st.floats(0.1, 10),
    st.sampled_from([1, -1]),
    st.integers(0, 9),
)
def test_a_mix_is_found_whatever_the_gain_and_its_sign(
    weights: list[float], gain: float, sign: int, seed: int
) -> None:
    known, q = maps(seed), np.array(weights) / sum(weights)
    q[q < 0.15 * q.max()] = 0.2 * q.max()  # what is a tenth of the largest or less counts as absent
    q /= q.sum()
    found = known.shares(sign * gain * np.einsum("k,kcij->cij", q, known.maps))
    np.testing.assert_allclose(found.shares, q, atol=1e-8)
    assert found.gain == pytest.approx(sign * gain)
    assert found.explained == pytest.approx(1)


def test_a_class_of_next_to_nothing_is_absent() -> None:
    known = maps()
    q = np.array([0.6, 0.38, 0.02, 0])
    found = known.shares(np.einsum("k,kcij->cij", q, known.maps))
    assert (found.shares > 0).tolist() == [True, True, False, False]


def test_what_no_class_explains_is_not_explained() -> None:
    known = maps()
    assert known.shares(np.zeros((2, 5, 5))).explained == 0
    assert known.shares(np.ones((3, 5, 5))).explained == 0  # of another shape
    other = np.random.default_rng(9).normal(size=(2, 5, 5))
    assert known.shares(other).explained < 0.5


@pytest.mark.parametrize(
    ("shape", "places"),
    [
        ((3, 1, 28, 28), (3, 1, 14, 14)),
        ((3, 2, 8, 30), (3, 2, 8, 14)),
        ((3, 2, 100), (3, 2, 14)),
        ((3, 1, 4, 28, 28), (3, 1, 4, 14, 14)),
    ],
)
def test_inputs_are_averaged_down(shape: tuple[int, ...], places: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    found = in_places(x)
    assert found is not None
    assert found.shape == places
    assert abs(found.mean() - float(x.double().mean())) < 0.05


def test_inputs_without_places_have_no_map() -> None:
    assert in_places(torch.zeros(3, 4)) is None
    assert in_places(torch.zeros(3, 4, 5, dtype=torch.int64)) is None


def test_an_offset_of_a_channel_is_no_part_of_a_map() -> None:
    places = np.random.default_rng(0).normal(size=(6, 2, 3, 3))
    moved = places + np.array([5.0, -2.0])[:, None, None]
    np.testing.assert_allclose(mean_map(moved), mean_map(places), atol=1e-12)


def test_digits_that_lie_alike_show_their_mix_and_rolled_ones_do_not() -> None:
    x, y = digits.images()
    labels = y.numpy()
    places = in_places(x)
    assert places is not None
    known = ClassMaps.of(places[:900], labels[:900], 10)
    assert known.error < 0.5
    target = np.isin(labels[900:], [1, 7])
    found = known.shares(mean_map(-2 * places[900:][target] + 3))
    assert found.gain < 0
    assert found.shares[[1, 7]].sum() > 0.7
    rng = np.random.default_rng(0)
    rolled = np.stack([np.roll(p, rng.integers(0, 8, 2), (1, 2)) for p in places[:900]])
    assert ClassMaps.of(rolled, labels[:900], 10).error > 0.8


def test_the_order_of_samples_and_a_class_without_a_second_sample_do_no_harm() -> None:
    x, y = digits.images()
    places = in_places(x[:200])
    assert places is not None
    labels = y[:200].numpy()
    order = np.random.default_rng(1).permutation(200)
    once = ClassMaps.of(places, labels, 10)
    np.testing.assert_allclose(ClassMaps.of(places[order], labels[order], 10).maps, once.maps)
    first = np.flatnonzero(labels == 0)[0]
    kept = (labels != 0) | (np.arange(200) == first)
    assert np.isfinite(ClassMaps.of(places[kept], labels[kept], 10).error)


@pytest.mark.parametrize("k", [2, 3, 10])
def test_maps_of_images_without_their_class_in_them_tell_nothing(k: int) -> None:
    rng = np.random.default_rng(k)
    labels = rng.integers(0, k, 900)
    noise = rng.normal(size=(900, 1, 8, 8))
    assert not ClassMaps.of(noise, labels, k).tell
    signs = rng.normal(size=(k, 1, 8, 8))
    assert ClassMaps.of(noise + signs[labels], labels, k).tell


@pytest.mark.parametrize(("k", "tells"), [(2, False), (3, False), (10, True)])
def test_the_fewer_the_classes_the_less_may_maps_err(k: int, tells: bool) -> None:
    assert ClassMaps(np.zeros((k, 1, 2, 2)), 0.5).tell == tells


@given(st.integers(2, 40))
def test_equal_shares_are_off_by_what_mixes_at_random_say(k: int) -> None:
    drawn = np.random.default_rng(0).dirichlet(np.full(k, 0.5), 4000)
    off = np.abs(drawn - 1 / k).sum(1)
    assert error_of_equal_shares(k) == pytest.approx(off.mean(), abs=5 * off.std() / 4000**0.5)
