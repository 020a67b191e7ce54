"""Figures of predictions against scikit-learn and by hand; their intervals by simulation."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from torch import Tensor

from adaptkit import DataError, Evaluation, evaluate
from adaptkit.calibration import BINS, most_bias
from adaptkit.label_shift import (
    class_shares,
    difference_of_confidences,
    only_shares_moved,
    thresholded_confidence,
)
from adaptkit.quality import _Tables, confusion, quality, quality_intervals


def logits_of(n: int, k: int, seed: int, strength: float = 1.5) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(k, (n,), generator=g)
    logits = torch.randn(n, k, generator=g, dtype=torch.float64)
    logits[torch.arange(n), labels] += strength
    return logits, labels


def evaluated(logits: Tensor, labels: Tensor | None) -> Evaluation:
    batch = logits if labels is None else (logits, labels)
    return evaluate(torch.nn.Identity(), [batch])


@pytest.mark.parametrize(("n", "k"), [(200, 4), (30, 12), (5, 2)])
def test_figures_are_those_of_scikit_learn(n: int, k: int) -> None:
    logits, labels = logits_of(n, k, seed=n)
    labels[labels == k - 1] = 0  # a class that never occurs, but is predicted
    found = quality(evaluated(logits, labels))
    p = logits.softmax(1).numpy()
    y, said = labels.numpy(), p.argmax(1)
    occurring = np.unique(y)
    recalls = metrics.recall_score(y, said, labels=occurring, average="macro")
    assert found["balanced_accuracy"] == pytest.approx(recalls)
    f1 = metrics.f1_score(y, said, average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(f1)
    assert found["nll"] == pytest.approx(metrics.log_loss(y, p, labels=range(k)))
    assert found["brier"] == pytest.approx(np.square(p - np.eye(k)[y]).sum(1).mean())


def test_calibration_errors_by_hand() -> None:
    logits, labels = logits_of(500, 3, seed=1)
    e = evaluated(logits, labels)
    found = quality(e)
    assert e.correct is not None
    edges = np.linspace(0, 1, 16)
    total = 0.0
    for low, high in pairwise(edges):
        here = (e.confidence > low) & (e.confidence <= high)
        if here.any():
            gap = abs(e.confidence[here].mean() - e.correct[here].mean())
            total += here.sum() / 500 * gap
    assert found["ece"] == pytest.approx(total)
    functional = pytest.importorskip("torchmetrics.functional.classification")
    theirs = functional.multiclass_calibration_error(
        logits.softmax(1), labels, num_classes=3, n_bins=15, norm="l1"
    )
    assert found["ece"] == pytest.approx(theirs.item(), abs=1e-6)


def test_calibration_error_of_equal_mass_by_hand() -> None:
    logits, labels = logits_of(1500, 3, seed=1)
    e = evaluated(logits, labels)
    assert e.correct is not None
    order = np.argsort(e.confidence)
    mass = sum(abs((e.confidence[part] - e.correct[part]).sum()) for part in np.split(order, 15))
    assert quality(e)["ece_equal_mass"] == pytest.approx(mass / 1500)
    same = evaluated(torch.tensor([[1.0, 0.0]]).repeat(20, 1), torch.tensor([0, 1]).repeat(10))
    assert quality(same)["ece_equal_mass"] == pytest.approx(quality(same)["ece"])


def test_top_five() -> None:
    logits, labels = logits_of(300, 20, seed=2)
    e = evaluated(logits, labels)
    assert e.top5 is not None
    expected = metrics.top_k_accuracy_score(labels.numpy(), logits.numpy(), k=5, labels=range(20))
    assert e.top5.mean() == pytest.approx(expected)


def test_a_model_that_says_nothing_has_five_classes_in_its_top_five() -> None:
    labels = torch.arange(20)
    e = evaluated(torch.zeros(20, 20), labels)
    assert e.top5 is not None
    assert e.top5.tolist() == [True] * 5 + [False] * 15
    with_nan = evaluated(torch.zeros(20, 20).fill_diagonal_(torch.nan), labels)
    assert with_nan.top5 is not None
    assert not with_nan.top5.any()


def test_a_weighting_is_a_repetition() -> None:
    logits, labels = logits_of(60, 4, seed=3)
    weights = np.random.default_rng(0).integers(0, 4, 60)
    again = torch.tensor(np.repeat(np.arange(60), weights))
    e, repeated = evaluated(logits, labels), evaluated(logits[again], labels[again])
    tables = _Tables.of(e, np.ones(60, dtype=bool))
    found = tables.figures(weights[None].astype(float))
    for name, value in quality(repeated).items():
        if name != "ece_equal_mass":  # whose bins move with the sample
            assert found[name][0] == pytest.approx(value), name


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(2, 8), st.integers(0, 1000))
def test_figures_keep_their_range(n: int, k: int, seed: int) -> None:
    found = quality(evaluated(*logits_of(n, k, seed)))
    for name in ("balanced_accuracy", "macro_f1", "ece", "ece_equal_mass"):
        assert 0 <= found[name] <= 1
    assert 0 <= found["brier"] <= 2
    assert found["nll"] >= 0


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_intervals_cover(temperature: float) -> None:
    """The change of two models is known from a large sample; nine of ten or more hold it.

    The softmax of the first is calibrated at temperature 1 and too sure of itself at 3.
    """

    def both(n: int, seed: int) -> tuple[Evaluation, Evaluation]:
        logits, labels = logits_of(n, 3, seed, 1.0)
        better = logits.clone()
        better[torch.arange(n), labels] += 1.0
        return evaluated(logits * temperature, labels), evaluated(better * 2, labels)

    first, second = (quality(e) for e in both(200_000, 0))
    held = dict.fromkeys(first, 0)
    for seed in range(1, 101):
        for name, (low, high) in quality_intervals(
            *both(150, seed), resamples=200, seed=seed
        ).items():
            held[name] += low <= second[name] - first[name] <= high
    assert all(90 <= held[name] <= 99 for name in first if "ece" not in name), held
    assert all(held[name] >= 95 for name in ("ece", "ece_equal_mass")), held


def test_a_calibration_error_is_biased_by_as_much_as_is_said() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.4, 1.0, 300)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    errors, said = [], []
    for _ in range(200):  # a calibrated model, whose every error is bias
        correct = rng.random(300) < confidence
        gaps = np.bincount(bins, confidence - correct)
        errors.append(np.abs(gaps).sum() / 300)
        said.append(most_bias(confidence, correct, bins))
    assert np.mean(said) == pytest.approx(np.mean(errors), rel=0.05)
    # Beyond doubt there is next to none.
    assert most_bias(confidence, np.zeros(300, dtype=bool), bins) < 0.003
    assert most_bias(confidence[:0], np.zeros(0, dtype=bool), bins[:0]) == 0


def test_intervals_are_repeatable_and_paired() -> None:
    e = evaluated(*logits_of(50, 3, 0))
    other = evaluated(*logits_of(50, 3, 0, 2.0))
    assert quality_intervals(e, other) == quality_intervals(e, other)
    assert set(quality_intervals(e, e).values()) == {(0.0, 0.0)}
    with pytest.raises(DataError, match="the same samples, got 50 and 30"):
        quality_intervals(e, evaluated(*logits_of(30, 3, 0)))


def test_nan_logits_count_as_wrong_and_have_no_loss() -> None:
    logits, labels = logits_of(40, 3, seed=4)
    e = evaluated(logits[1:], labels[1:])
    logits[0] = torch.nan
    with_nan = evaluated(logits, labels)
    found, without = quality(with_nan), quality(e)
    assert found["nll"] == pytest.approx(without["nll"])
    assert found["balanced_accuracy"] < without["balanced_accuracy"]
    every = quality(evaluated(torch.full((4, 2), torch.nan), torch.tensor([0, 1, 0, 1])))
    assert every == {"balanced_accuracy": 0.0, "macro_f1": 0.0}
    rows = confusion(with_nan, with_nan)
    assert rows[rows.predicted == "none"].after.sum() == 1


def test_confusion() -> None:
    logits, labels = logits_of(80, 3, seed=5)
    e = evaluated(logits, labels)
    table = confusion(e, e, {0: "a", 1: "b", 2: "c"})
    matrix = metrics.confusion_matrix(labels.numpy(), logits.argmax(1).numpy())
    wide = table.pivot_table(index="label", columns="predicted", values="after", fill_value=0)
    assert wide.loc[["a", "b", "c"], ["a", "b", "c"]].to_numpy().tolist() == matrix.tolist()
    assert table.before.tolist() == table.after.tolist()


def test_without_labels() -> None:
    e = evaluated(logits_of(10, 3, 0)[0], None)
    with pytest.raises(DataError, match="with labels"):
        quality(e)
    with pytest.raises(DataError, match="with labels"):
        class_shares(e, e)
    with pytest.raises(DataError, match="with labels"):
        thresholded_confidence(e, e)


# Label shift and estimated accuracy.


def shifted(shares: list[float], n: int, seed: int) -> tuple[Tensor, Tensor]:
    logits, labels = logits_of(20 * n, 3, seed)
    generator = np.random.default_rng(seed)
    wanted = generator.multinomial(n, shares)
    chosen = np.concatenate(
        [np.flatnonzero(labels.numpy() == k)[:count] for k, count in enumerate(wanted)]
    )
    return logits[chosen], labels[chosen]


@pytest.mark.parametrize("shares", [[1 / 3, 1 / 3, 1 / 3], [0.8, 0.15, 0.05], [0.0, 0.0, 1.0]])
def test_class_shares_come_back(shares: list[float]) -> None:
    source = evaluated(*logits_of(4000, 3, 0))
    target = evaluated(shifted(shares, 4000, 1)[0], None)
    found = class_shares(source, target)
    assert found.sum() == pytest.approx(1)
    assert np.abs(found - shares).max() < 0.05


def test_estimated_accuracy_without_a_shift_is_the_sources() -> None:
    source = evaluated(*logits_of(5000, 4, 0))
    target = evaluated(*logits_of(5000, 4, 1))
    assert target.accuracy is not None
    for estimate in (thresholded_confidence, difference_of_confidences):
        assert estimate(source, target) == pytest.approx(target.accuracy, abs=0.03)
        assert estimate(source, source) == pytest.approx(source.accuracy, abs=0.001)


def test_estimated_accuracy_of_a_model_always_or_never_right() -> None:
    logits, labels = logits_of(50, 3, 0, strength=100)
    right = evaluated(logits, labels)
    assert thresholded_confidence(right, right) == 1.0
    wrong = evaluated(logits, (labels + 1) % 3)
    assert thresholded_confidence(wrong, wrong) == 0.0


def pictures(
    shares: list[float], n: int, seed: int, moved: float = 0.0
) -> tuple[Evaluation, np.ndarray]:
    """Three clusters of features, and a model that tells them apart fairly well."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2], rng.multinomial(n, shares))
    x = rng.normal(size=(n, 3)) + 3 * np.eye(3)[labels] + moved
    return evaluated(torch.from_numpy(x), torch.from_numpy(labels)), x


EQUAL, SKEWED = [1 / 3, 1 / 3, 1 / 3], [0.85, 0.1, 0.05]


@pytest.mark.parametrize(
    ("shares", "moved", "n", "expected"),
    [
        (SKEWED, 0.0, 200, True),
        (SKEWED, 0.0, 60, True),
        (EQUAL, 0.0, 200, False),
        (EQUAL, 1.0, 200, False),  # every image moved
        (SKEWED, 1.0, 200, False),  # both
        (EQUAL, 0.5, 12, False),  # too few to notice that they moved
        (SKEWED, 0.0, 5, False),  # too few for anything
    ],
)
def test_moved_shares_are_told_from_moved_images(
    shares: list[float], moved: float, n: int, expected: bool
) -> None:
    found = []
    for seed in range(8):
        source, of_source = pictures(EQUAL, 300, 2 * seed)
        target, of_target = pictures(shares, n, 2 * seed + 1, moved)
        found.append(only_shares_moved(source, target, of_source, of_target, seed=seed))
    assert sum(apart is not None for apart in found) == (8 if expected else 0)
    for apart in found:
        assert apart is None or apart == pytest.approx(0.85 - 1 / 3, abs=0.12)


def test_moved_shares_need_labels_and_predictions() -> None:
    source, x = pictures(EQUAL, 60, 0)
    with pytest.raises(DataError, match="with labels"):
        only_shares_moved(evaluated(torch.from_numpy(x), None), source, x, x)
    nothing = evaluated(torch.full((60, 3), torch.nan), None)
    assert only_shares_moved(source, nothing, x, x) is None
    assert class_shares(source, nothing).tolist() == [0, 0, 0]
    assert thresholded_confidence(source, nothing) == 0
    assert difference_of_confidences(source, nothing) < 0.4
