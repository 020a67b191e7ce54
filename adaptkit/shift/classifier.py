"""How well a classifier tells two domains apart."""

import warnings
from typing import Any

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptkit.shift.result import LEAST_P, Floats, Sample, ShiftResult, checked, wide

_MOST_ROWS = 5000  # of each domain
_MOST_NUMBERS = 5_000_000  # of each domain, but 500 rows at least
_FOLDS = 5


def proxy_a_distance(x: Sample, y: Sample, *, seed: int = 0) -> ShiftResult:
    """Return the proxy A-distance, from the error of a classifier that tells the domains apart.

        2·(1 − 2·error)

    The error is the mean of both domains' error rates (so their sizes do not matter), in five-fold
    cross-validation, of logistic regression on the standardised features and their squares: a
    linear one alone would be blind to a change of variance. It remains blind to one of correlation
    alone.

    Without unit, −2 to 2: 2 where the domains never mix; 0 in expectation for samples of one
    distribution, around which it varies, so it can be negative. Biased downwards where they differ,
    the more the fewer rows, as no classifier is the best one. Rows that are equal stay in one fold,
    or the twin of a row, with the other domain's name, would push it below 0; except where a domain
    repeats itself, as counts do.

    Args:
        x: shape (N, D), N of 10 or more; an array or a tensor. Of more than 5,000 rows (of 2,048
            features, 2,441) as many are drawn.
        y: shape (M, D), M of 10 or more.
        seed: decides the folds and the draw.

    Raises:
        DataError: the samples are not two finite tables of as many features.

    O((N + M)·D) time for each step of the five fits; less than 500 MB above the input.

    Source: Ben-David et al. 2007, NeurIPS 19; Ganin et al. 2016, arXiv 1505.07818.

    >>> rng = np.random.default_rng(0)
    >>> float(proxy_a_distance(rng.normal(0, 1, (50, 1)), rng.normal(20, 1, (50, 1))))
    2.0
    """
    from sklearn.model_selection import StratifiedGroupKFold

    a, b = checked(x, y, least=2 * _FOLDS)
    rows, domain, same = _together(a, b, seed)
    if not np.ptp(rows, axis=0).any():  # all rows are equal: nothing tells the domains apart
        return ShiftResult(0.0, None, len(a), len(b))
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed % 2**32)
    said = np.full(len(domain), -1)
    for train, test in folds.split(rows, domain, same):
        said[test] = _fitted(rows[train], domain[train]).predict(rows[test])
    errors = [float(np.mean(said[domain == k] != k)) for k in (0, 1)]
    return ShiftResult(2 * (1 - 2 * float(np.mean(errors))), None, len(a), len(b))


def c2st_auc(x: Sample, y: Sample, *, seed: int = 0) -> ShiftResult:
    """Return the area under the ROC curve of a classifier two-sample test, with its p-value.

    Logistic regression on the standardised features and their squares learns the domains on one
    half of the rows; the AUC is that of its scores on the other half, that is the probability that
    it ranks a row of y above one of x. Without unit, 0 to 1: 0.5 in expectation for samples of one
    distribution, 1 where they never mix. Biased downwards where they differ, as no classifier is
    the best one.

    Args:
        x: shape (N, D), N of 10 or more; an array or a tensor. Of more than 5,000 rows (of 2,048
            features, 2,441) as many are drawn.
        y: shape (M, D), M of 10 or more.
        seed: decides the halves and the draw.

    Returns:
        ShiftResult; p_value is the one-sided Mann-Whitney test's on the held-out half, which the
        classifier has not seen, so it is valid whatever it learnt.

    Raises:
        DataError: the samples are not two finite tables of as many features.

    O((N + M)·D) time for each step of the one fit; less than 500 MB above the input.

    Source: Lopez-Paz & Oquab 2017, arXiv 1610.06545; Kim et al. 2021, arXiv 1602.02210 (AUC).

    >>> rng = np.random.default_rng(0)
    >>> result = c2st_auc(rng.normal(0, 1, (50, 1)), rng.normal(20, 1, (50, 1)))
    >>> result.value, result.p_value < 1e-6
    (1.0, True)
    """
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold

    a, b = checked(x, y, least=2 * _FOLDS)
    rows, domain, same = _together(a, b, seed)
    if not np.ptp(rows, axis=0).any():
        return ShiftResult(0.5, 1.0, len(a), len(b))
    halves = StratifiedGroupKFold(2, shuffle=True, random_state=seed % 2**32)
    train, test = next(halves.split(rows, domain, same))
    scores = _fitted(rows[train], domain[train]).decision_function(rows[test])
    of_x, of_y = scores[domain[test] == 0], scores[domain[test] == 1]
    test_result = scipy.stats.mannwhitneyu(of_y, of_x, alternative="greater")
    p_value = max(float(test_result.pvalue), LEAST_P) if np.ptp(scores) > 0 else 1.0
    return ShiftResult(float(roc_auc_score(domain[test], scores)), p_value, len(a), len(b))


def _together(x: Tensor, y: Tensor, seed: int) -> tuple[Floats, NDArray[np.int64], Any]:
    """Return rows, their domains (0 or 1), and for each row a number that only equal rows share.

    Where fewer than half of a domain's rows are unlike each other, each row stands for itself: to
    keep a value's rows together would turn the chance surplus of one domain among those learnt from
    into that of the other among those tested, and a few values could not be cut at all.
    """
    generator = torch.Generator().manual_seed(seed)
    most = min(_MOST_ROWS, max(_MOST_NUMBERS // x.shape[1], 500))
    parts = [
        wide(part[torch.randperm(len(part), generator=generator)[:most].to(part.device)])
        for part in (x, y)
    ]
    rows = torch.cat(parts).numpy()
    domain = np.repeat([0, 1], [len(part) for part in parts])
    _, same = np.unique(rows, axis=0, return_inverse=True)
    same = same.reshape(-1)
    own = [same[domain == k] for k in (0, 1)]
    repeats = any(2 * len(np.unique(part)) < len(part) for part in own)
    return rows, domain, np.arange(len(rows)) if repeats else same


def _fitted(rows: Floats, domain: NDArray[np.int64]) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    model = make_pipeline(
        StandardScaler(),
        FunctionTransformer(_with_squares),
        StandardScaler(),
        LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000),
    )
    with warnings.catch_warnings():
        # The test is valid whatever was learnt, so for one that has not quite settled too.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(rows, domain)


def _with_squares(rows: Floats) -> Floats:
    return np.hstack([rows, np.square(rows)])
