"""Statistics corrected for the target's mix of classes, against what the definition says."""

from typing import Any

import digits
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import inputs_seen
from torch import Tensor, nn

from adaptkit import DataError, EstimationError, Moments, adapt, estimate, evaluate
from adaptkit.guard import ClassMix, ClassMoments, class_moments
from adaptkit.norms import norm_layers, read

K = 3


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(4, 6, bias=False),
        nn.BatchNorm1d(6),
        nn.Tanh(),
        nn.Linear(6, 5),
        nn.BatchNorm1d(5),
        nn.Linear(5, K),
    )


def source(n: int = 300) -> tuple[Tensor, Tensor]:
    """Three classes that lie apart."""
    labels = torch.arange(n) % K
    centres = torch.tensor([[3.0, 0, 0, 1], [0, -3, 0, 1], [0, 0, 4, 1]])
    return centres[labels] + torch.randn(n, 4), labels


def batches(x: Tensor, y: Tensor, size: int = 32) -> list[Any]:
    return list(zip(x.split(size), y.split(size), strict=True))


def trained(x: Tensor) -> nn.Module:
    """A net that stores the very moments of the source."""
    return adapt(net(), [x], samples="all")


@pytest.mark.parametrize("size", [1, 7, 300])
def test_moments_of_classes_are_those_of_their_samples(size: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    read(model[1]).mean.fill_(1000)  # far off, where squares would cancel
    x, y = torch.randn(60, 2, 6, 5) + torch.arange(60).view(-1, 1, 1, 1) % K, torch.arange(60) % K
    found = class_moments(model, batches(x, y, size), classes=K)
    seen = inputs_seen(model.eval(), ["1", "3"], x)
    for name, value in seen.items():
        for k in range(K):
            of_class = value[y == k].double().transpose(0, 1).flatten(1).numpy()
            np.testing.assert_allclose(found.mean[name][k], of_class.mean(1), atol=1e-5)
            np.testing.assert_allclose(found.variance[name][k], of_class.var(1), rtol=1e-5)
    assert found.counts.tolist() == [20, 20, 20]


@given(st.lists(st.floats(0.01, 1), min_size=K, max_size=K), st.integers(0, 99))
def test_a_mix_has_the_moments_of_so_many_samples(weights: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = np.maximum((np.array(weights) * 40).astype(int), 2)
    parts = [rng.normal(k, 1 + k, (n, 2)) for k, n in enumerate(counts)]
    moments = ClassMoments(
        {"bn": torch.from_numpy(np.stack([p.mean(0) for p in parts]))},
        {"bn": torch.from_numpy(np.stack([p.var(0) for p in parts]))},
        torch.from_numpy(counts).double(),
    )
    whole = np.concatenate(parts)
    mean, variance = moments.mixed("bn", moments.shares)
    np.testing.assert_allclose(mean, whole.mean(0), atol=1e-12)
    np.testing.assert_allclose(variance, whole.var(0), rtol=1e-10)


def test_with_the_sources_own_mix_it_is_plain_adabn() -> None:
    x, y = source()
    model = trained(x)
    moments = class_moments(model, batches(x, y), classes=K)
    target = [3 * source()[0] + 1]
    plain = adapt(model, target, samples="all")
    corrected = adapt(model, target, samples="all", correction=ClassMix(moments, moments.shares))
    for name, layer in norm_layers(plain).items():
        other = read(norm_layers(corrected)[name])
        torch.testing.assert_close(other.mean, read(layer).mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(other.variance, read(layer).variance, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gain", [1.0, 0.25, 5.0])
@pytest.mark.parametrize("present", [[0], [0, 2], [1, 1, 1, 2]])
def test_a_mix_without_and_with_a_gain_gives_back_the_sources_statistics(
    gain: float, present: list[int]
) -> None:
    """The same images, so that nothing but the mix and the gain has changed."""
    x, y = source(3000)
    model = trained(x)
    moments = class_moments(model, batches(x, y), classes=K)
    chosen = torch.cat([x[y == k] for k in present])
    shares = torch.bincount(torch.tensor(present), minlength=K) / len(present)
    mix = ClassMix(moments, shares)
    corrected = adapt(model, [gain * chosen], samples="all", correction=mix)
    plain = adapt(model, [gain * chosen], samples="all")
    # The second layer sees the source again, since the first takes the gain out.
    stored, back, moved = (read(norm_layers(m)["4"]) for m in (model, corrected, plain))
    assert worst(back, stored) < 0.01
    assert worst(moved, stored) > 0.15
    first = read(norm_layers(corrected)["1"])
    torch.testing.assert_close(first.mean, gain * read(norm_layers(model)["1"]).mean, **LOOSE)


LOOSE: dict[str, Any] = {"rtol": 1e-2, "atol": 1e-2}


def worst(a: Any, b: Any) -> float:
    of_mean = ((a.mean - b.mean) / b.variance.sqrt()).abs().max()
    return float(torch.maximum(of_mean, (a.variance / b.variance).log().abs().max()))


def test_what_is_estimated_is_the_target_and_what_is_applied_is_corrected() -> None:
    x, y = source()
    model = trained(x)
    moments = class_moments(model, batches(x, y), classes=K)
    mix = ClassMix(moments, torch.tensor([1.0, 0, 0]))
    only = [x[y == 0]]
    statistics = estimate(model, only, samples="all", correction=mix)
    seen = inputs_seen(model, ["1"], x[y == 0])["1"]
    np.testing.assert_allclose(statistics["1"].mean, seen.mean(0), atol=1e-5)
    applied = statistics.corrected(mix)
    mean, variance = mix("1", statistics["1"])
    torch.testing.assert_close(applied["1"].mean, mean)
    torch.testing.assert_close(applied["1"].variance(), variance)
    assert all(np.isnan(error) for error in applied.errors().values())


def test_layers_that_the_source_was_not_measured_at_get_the_targets() -> None:
    x, y = source()
    model = trained(x)
    moments = class_moments(model, batches(x, y), classes=K, layers="1")
    mix = ClassMix(moments, torch.tensor([1.0, 0, 0]))
    statistics = estimate(model, [x], samples="all", correction=mix)
    assert mix("4", statistics["4"])[0] is statistics["4"].mean


def test_two_of_ten_digits_at_low_contrast() -> None:
    """What AdaBN does to two classes, and what the same does that knows of them."""
    model = digits.net()
    x, y = digits.images()
    x = 2 * x - 1
    moments = class_moments(model, batches(x[:900], y[:900]), classes=10)
    two = torch.isin(y[900:], torch.tensor([3, 8]))
    target = batches(0.4 * x[900:][two] + 0.3, y[900:][two])
    shares = torch.zeros(10)
    shares[[3, 8]] = 0.5
    plain = evaluate(adapt(model, target), target).accuracy
    corrected = evaluate(adapt(model, target, correction=ClassMix(moments, shares)), target)
    assert corrected.accuracy is not None
    assert plain is not None
    assert corrected.accuracy > 0.9
    assert corrected.accuracy > plain + 0.3


def test_shares_that_are_none() -> None:
    x, y = source()
    moments = class_moments(trained(x), batches(x, y), classes=K)
    for shares, message in (
        (torch.ones(2) / 2, "the shares of 3 classes"),
        (torch.ones(3), "sum to 1, got a sum of 3"),
        (torch.tensor([1.5, -0.5, 0]), "a least of -0.5"),
        (torch.tensor([float("nan"), 0, 1]), "sum to 1"),
    ):
        with pytest.raises(EstimationError, match=message):
            ClassMix(moments, shares)


def test_source_data_that_will_not_do() -> None:
    x, y = source(30)
    model = trained(x)
    for data, message in (
        ([x], "with labels"),
        ([(x, y + 1)], "from 0 to 2"),
        ([(x, y.float())], "one whole number"),
        ([(x[y != 1], y[y != 1])], "got 0 of class 1"),
    ):
        with pytest.raises(DataError, match=message):
            class_moments(model, data, classes=K)
    with pytest.raises(EstimationError, match="no layer with data-set statistics"):
        class_moments(nn.Linear(4, K), [(x, y)], classes=K)


def test_a_correction_goes_without_stream() -> None:
    x, y = source(30)
    model = trained(x)
    mix = ClassMix(class_moments(model, [(x, y)], classes=K), torch.ones(K) / K)
    with pytest.raises(EstimationError, match="with mode 'exact', got 'stream'"):
        adapt(model, [x], correction=mix, mode="stream")


def test_a_prior_blends_what_a_correction_gives_layer_by_layer() -> None:
    x, y = source(60)
    model = trained(x)
    mix = ClassMix(class_moments(model, [(x, y)], classes=K), torch.tensor([0.6, 0.2, 0.2]))
    target = 3 * x[:20]
    adapted = adapt(model, [target], correction=mix, prior=20)
    stored = {name: read(layer) for name, layer in norm_layers(model).items()}
    for name, value in inputs_seen(adapted, list(stored), target).items():
        mean, variance = mix(name, Moments.of(value))
        found = read(norm_layers(adapted)[name])
        torch.testing.assert_close(
            found.mean, ((stored[name].mean + mean) / 2).float(), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            found.variance, ((stored[name].variance + variance) / 2).float(), rtol=1e-4, atol=1e-5
        )
