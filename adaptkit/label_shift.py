"""The target's class shares and accuracy, estimated without its labels from the source's."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from adaptkit.errors import DataError
from adaptkit.evaluation import Evaluation

Floats = NDArray[np.float64]


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
    if source.labels is None:
        raise DataError("Expected a source evaluation with labels")
    k = max(_width(source), _width(target))
    rates = np.zeros((k, k))
    for i in np.unique(source.labels):
        rates[i] = _shares(source.predictions[source.labels == i], k)
    found, _ = nnls(rates.T, _shares(target.predictions, k))
    total = found.sum()
    return np.asarray(found / total if total > 0 else found, dtype=np.float64)


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
