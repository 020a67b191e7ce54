"""How good a model's predictions are, given the labels, with intervals from a paired bootstrap."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray

from adaptkit.calibration import BINS, equal_mass, equal_width, most_bias
from adaptkit.errors import DataError
from adaptkit.evaluation import Evaluation

Floats = NDArray[np.float64]

RESAMPLES = 1000
_AT_A_TIME = 50  # resamples


def quality(evaluation: Evaluation) -> dict[str, float]:
    """Return the figures of one evaluation with labels.

    - balanced_accuracy: the mean of the recalls of the classes that occur (scikit-learn's).
    - macro_f1: the mean over classes that occur or are predicted of 2·tp / (true + predicted)
      (scikit-learn's).
    - nll: the mean of −log p(label), in nats; brier: the mean of Σ_k (p_k − [k = label])², 0 to 2.
    - ece: Σ_b |Σ_{i in b} (confidence_i − correct_i)| / n over 15 bins of confidence of equal
      width; ece_equal_mass: over 15 bins with as many samples each (equal confidences together).
      0 to 1; biased upwards, the more the fewer samples and the smaller the error.

    Samples whose logits are NaN count as wrong; in the last four they are left out.

    Raises:
        DataError: the evaluation has no labels, or was not made by `evaluate`.

    Source: Guo et al. 2017, arXiv 1706.04599 (ECE); Nixon et al. 2019, arXiv 1904.01685 (of equal
    mass).

    >>> import torch, adaptkit
    >>> logits = torch.tensor([[9.0, 0.0], [0.0, 9.0], [9.0, 0.0]])
    >>> found = adaptkit.evaluate(torch.nn.Identity(), [(logits, torch.tensor([0, 1, 1]))])
    >>> {k: round(v, 3) for k, v in quality(found).items()}["balanced_accuracy"]
    0.75
    """
    from sklearn.metrics import f1_score, recall_score

    labels, predictions = _labels(evaluation), evaluation.predictions
    occurring = np.unique(labels)
    union = np.union1d(labels, predictions[predictions >= 0])
    figures = {
        "balanced_accuracy": float(
            np.mean(
                recall_score(labels, predictions, labels=occurring, average=None, zero_division=0)
            )
        ),
        "macro_f1": float(
            f1_score(labels, predictions, labels=union, average="macro", zero_division=0)
        ),
    }
    once = np.ones((1, len(labels)))
    for name, values in _Tables.of(evaluation, _known(evaluation)).means(once).items():
        if np.isfinite(values[0]):
            figures[name] = float(values[0])
    return figures


def quality_intervals(
    before: Evaluation,
    after: Evaluation,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Return percentile intervals of the changes after − before, from a paired bootstrap.

    Each resample draws samples with replacement, the same ones before and after, so what both have
    in common cancels.

    Calibration errors are biased upwards, and those of a resample more so, so that percentiles
    alone would hold the true change of two calibrated models next to never. Theirs are centred on
    the change as observed, and reach as much further down as `most_bias` allows the second to be
    too high, and further up for the first: then they hold the change in the population, over
    these bins, at their level or more. The bins stay as they are.

    Args:
        before: with labels.
        after: of the same samples in the same order.
        resamples: how many.
        seed: decides them.
        level: of the intervals.

    Raises:
        DataError: the evaluations have no labels, or are not of as many samples.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    if len(before) != len(after):
        raise DataError(
            f"Expected two evaluations of the same samples, got {len(before)} and {len(after)}"
        )
    known = _known(before) & _known(after)
    tables = _Tables.of(before, known), _Tables.of(after, known)
    n = len(before)
    generator = np.random.default_rng(seed)
    changes: dict[str, list[Floats]] = {}
    for start in range(0, resamples, _AT_A_TIME):
        drawn = generator.integers(n, size=(min(_AT_A_TIME, resamples - start), n))
        weights = np.stack([np.bincount(row, minlength=n) for row in drawn]).astype(np.float64)
        first, second = (table.figures(weights) for table in tables)
        for name in first:
            changes.setdefault(name, []).append(second[name] - first[name])
    tail = 100 * (1 - level) / 2
    once = np.ones((1, n))
    observed = [table.means(once) for table in tables]
    intervals: dict[str, tuple[float, float]] = {}
    for name, parts in changes.items():
        values = np.concatenate(parts)
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        low, high = np.percentile(values, [tail, 100 - tail])
        if name in tables[0].bias and values.any():  # else both models say the same
            off = float(observed[1][name][0] - observed[0][name][0] - values.mean())
            low = max(low + off - tables[1].bias[name], -1.0)
            high = min(high + off + tables[0].bias[name], 1.0)
        intervals[name] = float(low), float(high)
    return intervals


def confusion(
    before: Evaluation, after: Evaluation, classes: Mapping[int, str] | None = None
) -> pd.DataFrame:
    """Return how often each label got each prediction, one row a pair that occurs.

    Columns: label, predicted, before, after. A prediction from NaN logits is "none".
    """
    from sklearn.metrics import confusion_matrix

    labels = _labels(before)
    every = [-1, *range(_classes(before, after))]
    counts = [confusion_matrix(labels, e.predictions, labels=every) for e in (before, after)]
    names = {-1: "none"} | {k: (classes or {}).get(k, str(k)) for k in every[1:]}
    rows = [
        (names[every[i]], names[every[j]], int(counts[0][i, j]), int(counts[1][i, j]))
        for i, j in np.argwhere(counts[0] + counts[1])
    ]
    return pd.DataFrame(rows, columns=["label", "predicted", "before", "after"])


@dataclass(frozen=True)
class _Tables:
    """What the figures are sums of, so that many weightings of the samples are one product each."""

    true: "scipy.sparse.csr_matrix"  # (n, K), like the next two
    predicted: "scipy.sparse.csr_matrix"
    hits: "scipy.sparse.csr_matrix"
    known: Floats  # (n,)
    losses: Mapping[str, Floats]  # name -> (n,)
    gaps: Mapping[str, "scipy.sparse.csr_matrix"]  # name -> (n, bins) of confidence − correct
    bias: Mapping[str, float]  # of these

    @classmethod
    def of(cls, evaluation: Evaluation, known: NDArray[np.bool_]) -> "_Tables":
        labels, predictions = _labels(evaluation), evaluation.predictions
        k = _classes(evaluation)
        hit = labels == predictions
        gap = np.where(known, evaluation.confidence - hit, 0.0)
        confidence = np.where(known, evaluation.confidence, 0.0)
        losses = {"nll": evaluation.nll, "brier": evaluation.brier}
        bins = {"ece": equal_width(confidence), "ece_equal_mass": equal_mass(confidence, known)}
        return cls(
            _table(labels, np.ones(len(labels)), k),
            _table(np.maximum(predictions, 0), (predictions >= 0).astype(float), k),
            _table(labels, hit.astype(float), k),
            known.astype(float),
            {name: np.where(known, v, 0.0) for name, v in losses.items() if v is not None},
            {name: _table(columns, gap, BINS) for name, columns in bins.items()},
            {
                name: most_bias(confidence[known], hit[known], columns[known])
                for name, columns in bins.items()
            },
        )

    def figures(self, weights: Floats) -> dict[str, Floats]:
        """Return each figure for each row of `weights`, shape (B, n)."""
        hits, true = weights @ self.hits, weights @ self.true
        return {
            "balanced_accuracy": _mean_ratio(hits, true),
            "macro_f1": _mean_ratio(2 * hits, true + weights @ self.predicted),
            **self.means(weights),
        }

    def means(self, weights: Floats) -> dict[str, Floats]:
        """Return those of them that are means over samples."""
        n = weights @ self.known
        n = np.where(n > 0, n, np.nan)
        found = {name: weights @ values / n for name, values in self.losses.items()}
        for name, gaps in self.gaps.items():
            found[name] = np.abs(weights @ gaps).sum(1) / n
        return found


def _labels(evaluation: Evaluation) -> NDArray[np.int64]:
    if evaluation.labels is None:
        raise DataError("Expected an evaluation with labels")
    return evaluation.labels


def _classes(*evaluations: Evaluation) -> int:
    most = max(max(_labels(e).max(), e.predictions.max()) + 1 for e in evaluations)
    return max(int(most), *(e.classes or 0 for e in evaluations))


def _known(evaluation: Evaluation) -> NDArray[np.bool_]:
    return np.isfinite(evaluation.confidence)


def _table(columns: NDArray[np.int64], values: Floats, width: int) -> "scipy.sparse.csr_matrix":
    rows = np.arange(len(columns))
    return scipy.sparse.csr_matrix((values, (rows, columns)), shape=(len(columns), width))


def _mean_ratio(above: Floats, below: Floats) -> Floats:
    """Mean over classes, without those of which there is nothing."""
    ratio = np.divide(above, below, out=np.zeros_like(below), where=below > 0)
    present = (below > 0).sum(1)
    return np.asarray(ratio.sum(1) / np.maximum(present, 1), dtype=np.float64)
