"""AdaBN as a scikit-learn estimator: a trained torch classifier, fitted to a domain by its inputs.

The estimator passes scikit-learn's own checks but for those in `INAPPLICABLE_CHECKS`.
"""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adaptkit import norms
from adaptkit.adaptation import adapt
from adaptkit.batches import device_of
from adaptkit.errors import DataError, EstimationError, ModelError
from adaptkit.evaluation import logits_of
from adaptkit.guard import Calibration

_UNREAD = "`fit` does not read y, which may be of any form: "

# Of scikit-learn's estimator checks, those that suppose that `fit` learns classes from y, and one
# that cannot be told of a torch module. A model of any number of features passes all others:
# `check_estimator(AdaBNClassifier(model), expected_failed_checks=INAPPLICABLE_CHECKS)`.
INAPPLICABLE_CHECKS = {
    "check_classifiers_classes": "the classes are the model's outputs, not the labels in y",
    "check_classifiers_one_label": "the model keeps its classes where y has but one",
    "check_classifiers_train": "the model has as many classes for two labels in y as for three, "
    "and the length of a y that is not read does not matter",
    "check_classifiers_regression_target": _UNREAD + "numbers are not refused",
    "check_supervised_y_2d": _UNREAD + "nobody is warned of a column",
    "check_supervised_y_no_nan": _UNREAD + "NaN, for samples without labels, is welcome",
    "check_estimators_overwrite_params": "it compares joblib's hashes, which differ between any "
    "two copies of a tensor; that `model` stays as it is, adaptkit's own tests check",
}


class AdaBNClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # untyped
    """A trained torch classifier whose normalisation statistics `fit` takes from unlabelled data.

    For pipelines, cross-validation and searches; what `fit` does is `adaptkit.adapt`. The weights
    stay, and the statistics always start from `model`'s, so fitting again forgets the first fit.
    `score` is the accuracy. In cross-validation the statistics come from the training folds and
    the score from samples that had no part in them. All parameters are checked by `fit`.

    Args:
        model: trained on the source; gives logits of shape (N, K). It is never changed.
        classes: what its K outputs stand for, in their order; by default 0 to K − 1.
        prior: how many samples the source's own statistics count for, as for `adapt`.
        guard: "auto" lets `adaptkit.guard.decide` choose the statistics, maybe the source's own.
        calibration: of the model (`adaptkit.calibrate`), for the guard.
        samples: how many samples to fit at most, drawn at random, the same ones each time; or
            "all".
        batch_size: samples in one forward of `predict` and `predict_proba`.

    Attributes:
        model_: the adapted model, in eval mode, where `model` is.
        classes_: shape (K,), sorted, as scikit-learn's metrics expect.
        n_features_in_: X.shape[1] in `fit`; of images their channels.
        feature_names_in_: the columns' names, of a table that has them.

    Source: AdaBN, Li et al. 2016, arXiv 1603.04779.

    >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False))
    >>> _ = nn.init.eye_(net[1].weight)
    >>> x = np.array([[7.0, 5.0], [8.0, 6.0], [7.0, 6.0], [8.0, 5.0]])
    >>> AdaBNClassifier(net, classes=["left", "right"]).fit(x).predict(x[:2]).tolist()
    ['left', 'left']
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        classes: Sequence[Any] | NDArray[Any] | None = None,
        prior: float = 0,
        guard: Literal["off", "auto"] = "off",
        calibration: Calibration | None = None,
        samples: int | Literal["all"] = 1024,
        batch_size: int = 64,
    ) -> None:
        self.model = model
        self.classes = classes
        self.prior = prior
        self.guard = guard
        self.calibration = calibration
        self.samples = samples
        self.batch_size = batch_size

    def fit(self, X: ArrayLike, y: object = None) -> "AdaBNClassifier":  # noqa: N803, ARG002
        """Re-estimate the model's normalisation statistics on the samples of a new domain.

        Args:
            X: shape (N, D) or (N, C, ...), finite numbers, taken as the model's floating dtype.
            y: not read; there for pipelines and cross-validation, which pass it.

        Returns:
            The estimator itself.

        Raises:
            ValueError, TypeError: X is not such an array (scikit-learn's own words).
            ModelError: `model` is not a torch module.
            DataError: the model does not take samples like X's, its output is not (N, K) logits,
                or `classes` does not name these.
            EstimationError: as of `adaptkit.adapt`.
        """
        if not isinstance(self.model, nn.Module):
            raise ModelError(
                f"Expected model to be a trained torch.nn.Module, got {_kind(self.model)}"
            )
        batch_size = self._batch_size()
        rows = self._rows(X, self.model, reset=True)
        model = copy.deepcopy(self.model)
        classes, columns = _sorted(self.classes, _probabilities(model, rows[:1], 1).shape[1])
        self.model_ = adapt(
            model,
            DataLoader(TensorDataset(rows), batch_size=batch_size),
            prior=_plain(self.prior),
            guard=self.guard,
            calibration=self.calibration,
            inplace=True,
            samples=_plain(self.samples),
            on_bad="raise",
        ).eval()
        self.classes_, self._columns = classes, columns
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Return the softmax of the adapted model's logits.

        Args:
            X: as for `fit`.

        Returns:
            Shape (N, K), float64, columns as in `classes_`.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError, TypeError: X is not such an array (scikit-learn's own words).
            DataError: the model fails on X, or gives NaN.
        """
        check_is_fitted(self)
        rows = self._rows(X, self.model_, reset=False)
        return _probabilities(self.model_, rows, self._batch_size())[:, self._columns]

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """Return the most probable class of each sample.

        Args:
            X: as for `fit`.

        Returns:
            Shape (N,), of the dtype of `classes_`.

        Raises:
            NotFittedError, ValueError, TypeError, DataError: as `predict_proba`.
        """
        probabilities = self.predict_proba(X)
        predictions: NDArray[Any] = self.classes_[probabilities.argmax(1)]
        return predictions

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        tags.input_tags.three_d_array = True
        tags.classifier_tags.poor_score = True  # on data that the model was not trained for
        return tags

    def _batch_size(self) -> int:
        size = _plain(self.batch_size)
        if not isinstance(size, int) or size < 1:
            raise EstimationError(f"Expected batch_size to be 1 or more, got {size!r}")
        return size

    def _rows(self, array: ArrayLike, model: nn.Module, *, reset: bool) -> Tensor:
        """Return a checked array as a tensor of the model's dtype, in the same memory if it can."""
        tensors = (*model.parameters(), *model.buffers())
        dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
        wide = np.float64 if dtype == torch.float64 else np.float32
        x = validate_data(self, array, dtype=wide, allow_nd=True, reset=reset)
        # torch takes no negative strides, and warns of memory that is read-only.
        return torch.from_numpy(np.require(x, requirements=["C", "W"])).to(dtype)


def _probabilities(model: nn.Module, rows: Tensor, batch_size: int) -> NDArray[np.float64]:
    """Return the softmax of a model's logits, (N, K), in the order of its outputs."""
    where = device_of(model)
    found = []
    with norms.evaluating(model), torch.no_grad():
        for piece in rows.split(batch_size):
            # A copy, as a model may work in place, and the memory is the caller's.
            logits = logits_of(_output(model, piece.to(where, copy=True)))
            found.append(logits.cpu().double().softmax(1))
    probabilities: NDArray[np.float64] = torch.cat(found).numpy()
    bad = int(np.isnan(probabilities).any(axis=1).sum())
    if bad:
        raise DataError(
            f"the model gives NaN for {bad} of {len(rows)} samples: is X scaled as in training?"
        )
    return probabilities


def _output(model: nn.Module, piece: Tensor) -> Any:
    try:
        return model(piece)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        why = str(error).strip().split("\n")[0]
        raise DataError(
            f"Expected X to be what the model takes; it fails on samples of shape "
            f"{tuple(piece.shape[1:])}: {why}"
        ) from error


def _sorted(classes: ArrayLike | None, outputs: int) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Return the classes in order, and the model's output for each."""
    names = np.arange(outputs) if classes is None else np.asarray(classes)
    found, columns = np.unique(names, return_index=True)
    if names.shape != (outputs,) or len(found) != outputs:
        raise DataError(
            f"Expected classes to name each of the model's {outputs} outputs, each once, got "
            f"{len(found)} different names in an array of shape {names.shape}"
        )
    return found, columns


def _plain(value: Any) -> Any:
    """Return a numpy scalar, as searches pass them, as what Python has for it."""
    return value.item() if isinstance(value, np.generic) else value


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
