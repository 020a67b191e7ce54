"""Segmentation: pixels and intersections over unions, against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor, nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from adaptkit import DataError, DenseEvaluation, adapt, compare, evaluate, evaluate_dense
from adaptkit.dense import dense_intervals


def data(n: int, seed: int, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (n, 6, 5), generator=g)
    logits = torch.randn(n, 4, 6, 5, generator=g)  # the fourth class never occurs
    logits.scatter_add_(1, labels[:, None], torch.full((n, 1, 6, 5), strength))
    labels[torch.rand(labels.shape, generator=g) < 0.2] = 255
    return logits, labels


def evaluated(logits: Tensor, labels: Tensor | None) -> DenseEvaluation:
    batches = [logits] if labels is None else [*zip(logits.split(2), labels.split(2), strict=True)]
    return evaluate_dense(nn.Identity(), batches)


def test_figures_are_those_of_scikit_learn() -> None:
    logits, labels = data(7, 0)
    found = evaluated(logits, labels)
    known = (labels != 255).numpy()
    truth, said = labels.numpy()[known], logits.argmax(1).numpy()[known]
    assert found.pixel_accuracy == pytest.approx(metrics.accuracy_score(truth, said))
    iou = metrics.jaccard_score(truth, said, average=None, labels=range(4), zero_division=0)
    assert found.iou is not None
    np.testing.assert_allclose(found.iou, iou)
    assert found.mean_iou == pytest.approx(iou.mean())
    assert found.predicted.sum() == labels.numel()
    p = logits.double().softmax(1)
    np.testing.assert_allclose(found.confidence, p.amax(1).mean((1, 2)), rtol=1e-5)


def test_a_class_that_is_nowhere_does_not_count() -> None:
    logits, labels = torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)
    logits[:, 0] = 1
    found = evaluated(logits, labels)
    assert (found.pixel_accuracy, found.mean_iou) == (1.0, 1.0)
    assert found.iou is not None
    assert np.isnan(found.iou).tolist() == [False, True, True]


def test_compare() -> None:
    worse, labels = data(30, 0, 0.5)
    better, _ = data(30, 0, 2.0)
    report = compare(evaluated(worse, labels), evaluated(better, labels), classes=list("abcd"))
    for metric in ("pixel_accuracy", "mean_iou"):
        row = report.row(metric)
        assert row is not None
        assert row.ci_low is not None
        assert row.change is not None
        assert row.ci_high is not None
        assert 0 < row.ci_low < row.change < row.ci_high
    assert report.row("iou", "class:b") is not None
    assert report.to_json()
    without = compare(evaluated(worse, None), evaluated(better, None))
    assert without.row("mean_iou") is None
    assert without.row("confidence_mean") is not None


def test_a_torchvision_segmentation_model_from_end_to_end() -> None:
    torch.manual_seed(0)
    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    x, y = torch.randn(4, 3, 64, 64), torch.randint(4, (4, 64, 64))
    batches = [*zip(x.split(2), y.split(2), strict=True)]
    adapted = adapt(model, batches)
    before, after = evaluate_dense(model, batches), evaluate_dense(adapted, batches)
    report = compare(before, after)
    assert report.row("mean_iou") is not None
    first = report.row("symmetric_kl")
    assert first is not None
    assert first.after == 0


def test_bad_input() -> None:
    logits, labels = data(2, 0)
    with pytest.raises(DataError, match=r"logits of shape \(N, K, H, W\)"):
        evaluate_dense(nn.Identity(), [torch.zeros(2, 3)])
    with pytest.raises(DataError, match="labels of shape"):
        evaluated(logits, labels[:, :3])
    with pytest.raises(DataError, match="labels from 0 to 3 or 255, got 9"):
        evaluated(logits, labels.clamp(max=3).fill_(9))
    with pytest.raises(DataError, match="the loader is empty"):
        evaluate_dense(nn.Identity(), [])
    with pytest.raises(DataError, match="others have none"):
        evaluate_dense(nn.Identity(), [(logits, labels), logits])
    with pytest.raises(DataError, match="evaluate_dense for segmentation"):
        evaluate(nn.Identity(), [logits])
    other = evaluated(*data(3, 1))
    with pytest.raises(DataError, match="same images"):
        compare(evaluated(logits, labels), other)
    with pytest.raises(DataError, match="of the same kind"):
        compare(other, evaluate(nn.Identity(), [torch.zeros(3, 2)]))


def test_a_pixel_of_nan_is_a_wrong_answer_of_unknown_confidence() -> None:
    logits, labels = torch.zeros(2, 3, 2, 2), torch.zeros(2, 2, 2, dtype=torch.int64)
    logits[:, 0] = 1
    logits[0, :, 0, 0] = torch.nan
    found = evaluated(logits, labels)
    assert found.pixel_accuracy == 7 / 8
    assert found.mean_iou == 7 / 8
    assert found.predicted.tolist() == [[3, 0, 0], [4, 0, 0]]
    assert np.isnan(found.confidence).tolist() == [True, False]
    row = compare(found, found).row("confidence_mean")
    assert row is not None
    assert row.n == 1
    nothing = evaluated(torch.full((2, 3, 2, 2), torch.nan), labels)
    assert (nothing.pixel_accuracy, nothing.mean_iou) == (0.0, 0.0)
    assert compare(nothing, found).to_json()


def test_images_of_ignored_pixels_alone_have_no_figures() -> None:
    logits, labels = data(2, 0)
    found = evaluated(logits, torch.full_like(labels, 255))
    assert np.isnan(list(found.figures().values())).all()
    assert dense_intervals(found, found) == {}
    report = compare(found, found)
    assert report.row("mean_iou") is None
    assert report.row("confidence_mean") is not None


def test_minus_one_is_a_label_only_where_that_is_the_ignored_one() -> None:
    logits, labels = data(2, 0)
    minus = labels.masked_fill(labels == 255, -1)
    with pytest.raises(DataError, match="labels from 0 to 3 or 255, got -1"):
        evaluated(logits, minus)
    found = evaluate_dense(nn.Identity(), [(logits, minus)], ignored=-1)
    assert found.figures() == evaluated(logits, labels).figures()


def test_intervals_are_those_of_resampled_images() -> None:
    worse, labels = data(9, 0, 0.5)
    before, after = evaluated(worse, labels), evaluated(data(9, 0, 2.0)[0], labels)
    drawn = np.random.default_rng(5).integers(9, size=(40, 9))
    changes = []
    for rows in drawn:
        first, second = (
            DenseEvaluation(e.predicted[rows], e.confusion[rows], e.confidence, e.entropy, {})
            for e in (before, after)
            if e.confusion is not None
        )
        assert first.mean_iou is not None
        assert second.mean_iou is not None
        changes.append(second.mean_iou - first.mean_iou)
    expected = np.percentile(changes, [2.5, 97.5])
    found = dense_intervals(before, after, resamples=40, seed=5)["mean_iou"]
    assert found == pytest.approx(tuple(expected))
    with pytest.raises(DataError, match="the same images"):
        dense_intervals(before, evaluated(*data(3, 1)))
