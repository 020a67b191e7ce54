"""The target's class shares and accuracy, estimated without its labels from the source's."""

import numpy as np
import scipy
from numpy.typing import NDArray

from adaptkit.errors import DataError
from adaptkit.evaluation import Evaluation
from adaptkit.shift.mmd import median_distance, regrouped
from adaptkit.shift.pairs import p_value
from adaptkit.shift.result import Sample, checked

Floats = NDArray[np.float64]

PERMUTATIONS = 199
_SIGNIFICANT = 0.05
_APART = 0.1  # total variation between the target's shares and the source's
_LEFT = 0.4  # of the domains' MMD², that may remain with equal shares
_RARE = 0.02  # share below which a class may lack images
_LEAST = 10  # images to compare


def class_shares(source: Evaluation, target: Evaluation) -> Floats:
    """Estimate the target's class shares from its predictions (black-box shift estimation).

    If only the shares moved and images of a class look the same in both domains, the target's
    predicted shares are q = Cᵀ·π, with C[i, j] the probability that an image of class i is
    predicted as j, known from the labelled source. π is the least-squares solution that is not
    negative, scaled to sum to 1.

    Args:
        source: of the source model, with labels.
        target: of the same model on the target; labels are not read.

    Returns:
        Shape (K,), float64. Classes that the source data lacks get 0.

    Raises:
        DataError: the source has no labels.

    Source: Lipton, Wang & Smola 2018, arXiv 1802.03916.

    >>> labels = np.repeat([0, 1], 50)
    >>> def of(p, labels=None):
    ...     return Evaluation(p, p * 0.0 + 1, p * 0.0, labels, {}, classes=2)
    >>> class_shares(of(labels, labels), of(np.repeat([0, 1], [90, 10]))).round(3).tolist()
    [0.9, 0.1]
    """
    labels = _labels(source)
    k = max(_width(source), _width(target))
    rates = np.zeros((k, k))
    for i in np.unique(labels):
        rates[i] = _shares(source.predictions[labels == i], k)
    found, _ = scipy.optimize.nnls(rates.T, _shares(target.predictions, k))
    total = found.sum()
    return np.asarray(found / total if total > 0 else found, dtype=np.float64)


def only_shares_moved(
    source: Evaluation,
    target: Evaluation,
    of_source: Sample,
    of_target: Sample,
    *,
    seed: int = 0,
) -> float | None:
    """Say whether a target is its source with other class shares, judged by MMD² of features.

    Source images are drawn, without replacement, by the shares that `class_shares` estimates. The
    shares alone have moved if the target differs from the source as it is (p < 0.05) but not from
    the images drawn (p of 0.05 or more), and by so little that what could have gone unnoticed, 95%
    of the regroupings' MMD², leaves less than two fifths of the difference. So a target of few
    images, in which nothing could be noticed, does not pass for one whose images stayed.

    Args:
        source: of the source model, with labels.
        target: of the same model on the target; labels are not read.
        of_source: shape (N, D), features of the source's images in the order of `source`.
        of_target: shape (M, D), of the target's.
        seed: decides which images are drawn, and the regroupings.

    Returns:
        The total variation, 0.1 to 1, between the target's shares and the source's if those alone
        seem to have moved, else None.

    Raises:
        DataError: the source has no labels, or the features are not two finite tables of as many
            columns.

    O((N + M)²·D) time.
    """
    shares = class_shares(source, target)
    counts = np.bincount(_labels(source), minlength=len(shares))
    apart = float(np.abs(shares - counts / len(source)).sum() / 2)
    rows = _drawn(_labels(source), counts, shares, seed)
    if apart < _APART or min(len(rows), len(target)) < _LEAST:
        return None
    x, y = checked(of_source, of_target)
    width = median_distance(x, y, seed)
    as_it_is, within = regrouped(x, y, width, permutations=PERMUTATIONS, seed=seed)
    if (p_value(as_it_is, within) or 0.0) >= _SIGNIFICANT:
        return None
    alike, within = regrouped(x[rows], y, width, permutations=PERMUTATIONS, seed=seed)
    unnoticed = max(float(alike[0]), 0.0) + float(alike[1:].quantile(1 - _SIGNIFICANT))
    same = (p_value(alike, within) or 0.0) >= _SIGNIFICANT
    return apart if same and unnoticed < _LEFT * float(as_it_is[0]) else None


def _drawn(
    labels: NDArray[np.int64], counts: NDArray[np.int64], shares: Floats, seed: int
) -> NDArray[np.int64]:
    """Return rows of which each class has its share, as many as there are."""
    wanted = shares >= _RARE
    if not wanted.any():
        return np.zeros(0, dtype=np.int64)
    total = (counts[wanted] / shares[wanted]).min()
    most = np.minimum(np.round(total * shares), counts).astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [order[labels[order] == k][:n] for k, n in enumerate(most)]
    return np.sort(np.concatenate(chosen))


def thresholded_confidence(source: Evaluation, target: Evaluation) -> float:
    """Estimate the target's accuracy as the share of confidences above a threshold (ATC).

    The threshold is where the source's share of confidences above it is the source's accuracy.

    Raises:
        DataError: the source has no labels.

    Source: Garg et al. 2022, arXiv 2201.04234 (with maximum confidence).

    >>> conf = np.array([0.9, 0.8, 0.6, 0.5])
    >>> p = np.zeros(4, dtype=np.int64)
    >>> source = Evaluation(p, conf, conf, np.array([0, 0, 1, 1]), {}, classes=2)
    >>> thresholded_confidence(source, Evaluation(p, conf - 0.15, conf, None, {}, classes=2))
    0.25
    """
    accuracy = _accuracy(source)
    ordered = np.sort(source.confidence[np.isfinite(source.confidence)])
    wrong = round((1 - accuracy) * len(ordered))
    if wrong >= len(ordered):
        return 0.0
    # Between the last that is to fall below and the first that is to stay above.
    below = ordered[wrong - 1] if wrong else 0.0
    threshold = (below + ordered[wrong]) / 2
    return float(np.mean(np.nan_to_num(target.confidence, nan=0.0) >= threshold))


def difference_of_confidences(source: Evaluation, target: Evaluation) -> float:
    """Estimate the target's accuracy as the source's less the fall of the mean confidence (DoC).

    Clipped to 0 to 1.

    Raises:
        DataError: the source has no labels.

    Source: Guillory et al. 2021, arXiv 2107.03315.

    >>> p = np.zeros(4, dtype=np.int64)
    >>> conf = np.full(4, 0.75)
    >>> source = Evaluation(p, conf, conf, np.array([0, 0, 0, 1]), {}, classes=2)
    >>> difference_of_confidences(source, Evaluation(p, conf - 0.25, conf, None, {}, classes=2))
    0.5
    """
    fall = np.nanmean(source.confidence) - np.mean(np.nan_to_num(target.confidence, nan=0.0))
    return float(np.clip(_accuracy(source) - fall, 0, 1))


def _labels(source: Evaluation) -> NDArray[np.int64]:
    if source.labels is None:
        raise DataError("Expected a source evaluation with labels")
    return source.labels


def _accuracy(source: Evaluation) -> float:
    if source.accuracy is None or not np.isfinite(source.confidence).any():
        raise DataError("Expected a source evaluation with labels and finite confidences")
    return source.accuracy


def _width(evaluation: Evaluation) -> int:
    labels = [] if evaluation.labels is None else [int(evaluation.labels.max()) + 1]
    return max(evaluation.classes or 0, int(evaluation.predictions.max()) + 1, *labels, 1)


def _shares(predictions: NDArray[np.int64], k: int) -> Floats:
    known = predictions[predictions >= 0]
    return np.bincount(known, minlength=k) / max(len(known), 1)
