"""Report schema 1: one row a figure, before and after, as a DataFrame, CSV and JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from adaptkit.errors import DataError
from adaptkit.estimation import Statistics
from adaptkit.evaluation import Evaluation
from adaptkit.files import write_files
from adaptkit.norms import Stored
from adaptkit.paired import Change, mean_change, proportion_change
from adaptkit.quality import quality, quality_intervals
from adaptkit.shift import symmetric_kl

SCHEMA = 1
# Below this a variance counts as this, where a layer has no eps of its own.
_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True)
class Row:
    """A figure before and after; ci and p-value are of the change; None is unknown, never 0."""

    metric: str
    scope: str
    before: float | None
    after: float | None
    change: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    p_value: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Report:
    """Figures before and after adapting, and everything needed to repeat the run.

    Args:
        rows: one a figure.
        details: what the JSON file holds beside the rows: versions, arguments, counts.
    """

    rows: tuple[Row, ...]
    details: Mapping[str, Any] = field(default_factory=dict)

    def row(self, metric: str, scope: str = "all") -> Row | None:
        """Return the row of a metric and scope, or None where that is unknown."""
        return next((r for r in self.rows if (r.metric, r.scope) == (metric, scope)), None)

    def to_frame(self) -> pd.DataFrame:
        """Return a DataFrame with the columns of schema 1; an unknown is missing."""
        frame = pd.DataFrame([asdict(row) for row in self.rows], columns=list(Row.__annotations__))
        return frame.astype({"n": "Int64"} | dict.fromkeys(_NUMBERS, "float64"))

    def to_csv(self, path: str | Path | None = None) -> str | None:
        """Write UTF-8 CSV of schema 1 to `path`, whole or not at all; without it, return the text.

        Raises:
            OutputError: `path` cannot be written.
        """
        text = self.to_frame().to_csv(index=False, lineterminator="\n")
        if path is None:
            return text
        write_files({Path(path): text.encode()})
        return None

    def to_json(self, path: str | Path | None = None) -> str | None:
        """Write the details and rows as JSON to `path`; without it, return the text.

        Raises:
            OutputError: `path` cannot be written.
        """
        record = {"schema": SCHEMA, **self.details, "rows": [asdict(row) for row in self.rows]}
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if path is None:
            return text
        write_files({Path(path): text.encode()})
        return None


_NUMBERS = ("before", "after", "change", "ci_low", "ci_high", "p_value")


def compare(
    before: Evaluation,
    after: Evaluation,
    *,
    statistics: Statistics | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    details: Mapping[str, Any] | None = None,
) -> Report:
    """Compare two evaluations of the same samples in the same order.

    Rows with labels: accuracy, top5_accuracy (more than ten classes) and recall of each class
    (Newcombe's paired interval, McNemar's exact p-value); balanced_accuracy, macro_f1, nll, brier,
    ece and ece_equal_mass (see `adaptkit.quality.quality`; intervals from a paired bootstrap).
    Without: mean confidence and mean entropy in nats (paired t), the predicted share of each class,
    and agreement, the share of samples on which both models predict the same.
    For every norm layer, and as a mean over them: symmetric_kl in nats between what the model
    stores and the target's statistics, mean_shift, the root mean square over channels of
    (mean_target − mean) / σ_model, and log_var_shift, that of log(σ²_target / σ²_model).

    Args:
        before: of the source model.
        after: of the adapted model.
        classes: names of the classes, for the rows of each; by default their numbers.
        seed: of the bootstrap.
        statistics: the target's; by default those that `after` stores, which are the same thing
            after plain AdaBN. With them, their relative standard errors are reported as
            "statistic_se" (see `Statistics.errors`).
        details: kept as the report's own.

    Raises:
        DataError: the evaluations are not of the same samples.

    >>> import torch, adaptkit
    >>> net = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    >>> data = [(torch.tensor([[1.0, 9.0], [3.0, 8.0]]), torch.tensor([0, 1]))]
    >>> before = adaptkit.evaluate(net, data)
    >>> after = adaptkit.evaluate(adaptkit.adapt(net, data), data)
    >>> frame = compare(before, after).to_frame()
    >>> frame[["metric", "before", "after"]].head(1).values.tolist()
    [['accuracy', 0.5, 0.0]]
    """
    _check_same_samples(before, after)
    rows = [
        *_accuracy(before, after),
        *_quality(before, after, seed),
        *_recalls(before, after, classes),
        _mean("confidence_mean", before.confidence, after.confidence),
        _mean("entropy_mean", before.entropy, after.entropy),
        _agreement(before, after),
        *_predicted_shares(before, after, classes),
        *layer_rows(before.layers, after.layers, target_of(after.layers, statistics)),
        *error_rows(statistics),
    ]
    return Report(tuple(rows), dict(details or {}))


def _check_same_samples(before: Evaluation, after: Evaluation) -> None:
    if len(before) != len(after):
        raise DataError(
            f"Expected two evaluations of the same samples, got {len(before)} and {len(after)}"
        )
    same = (
        before.labels is after.labels
        if before.labels is None or after.labels is None
        else np.array_equal(before.labels, after.labels)
    )
    if not same:
        raise DataError(
            "Expected two evaluations of the same samples in the same order, got different labels: "
            "does the loader shuffle?"
        )


def _accuracy(before: Evaluation, after: Evaluation) -> Iterator[Row]:
    if before.correct is None or after.correct is None:
        return
    change = proportion_change(before.correct, after.correct)
    yield Row("accuracy", "all", before.accuracy, after.accuracy, *change, n=len(before))


def _quality(before: Evaluation, after: Evaluation, seed: int) -> Iterator[Row]:
    if before.labels is None or after.labels is None:
        return
    if before.top5 is not None and after.top5 is not None and (before.classes or 0) > 10:
        change = proportion_change(before.top5, after.top5)
        shares = float(before.top5.mean()), float(after.top5.mean())
        yield Row("top5_accuracy", "all", *shares, *change, n=len(before))
    first, second = quality(before), quality(after)
    intervals = quality_intervals(before, after, seed=seed)
    for name in first:
        if name in second:
            low, high = intervals.get(name, (None, None))
            change = Change(second[name] - first[name], low, high, None)
            yield Row(name, "all", first[name], second[name], *change, n=len(before))


def _recalls(before: Evaluation, after: Evaluation, classes: Sequence[str] | None) -> Iterator[Row]:
    if before.labels is None or before.correct is None or after.correct is None:
        return
    for k in np.unique(before.labels):
        here = before.labels == k
        a, b = before.correct[here], after.correct[here]
        change = proportion_change(a, b)
        yield Row("recall", _class(k, classes), float(a.mean()), float(b.mean()), *change, n=len(a))


def _agreement(before: Evaluation, after: Evaluation) -> Row:
    same = float((before.predictions == after.predictions).mean())
    return Row("agreement", "all", None, same, None, n=len(before))


def _predicted_shares(
    before: Evaluation, after: Evaluation, classes: Sequence[str] | None
) -> Iterator[Row]:
    ever = np.unique(np.concatenate([before.predictions, after.predictions]))
    for k in range(before.classes or int(ever.max(initial=-1)) + 1):
        a, b = before.predictions == k, after.predictions == k
        change = proportion_change(a, b)
        scope = _class(k, classes)
        yield Row("predicted_share", scope, float(a.mean()), float(b.mean()), *change, n=len(a))


def _class(k: int, classes: Sequence[str] | None) -> str:
    return f"class:{classes[k] if classes else k}"


def _mean(metric: str, before: NDArray[np.float64], after: NDArray[np.float64]) -> Row:
    known = np.isfinite(before) & np.isfinite(after)
    if not known.any():
        return Row(metric, "all", None, None, None, n=0)
    before, after = before[known], after[known]
    change = mean_change(before, after)
    return Row(metric, "all", float(before.mean()), float(after.mean()), *change, n=len(before))


def layer_rows(
    before: Mapping[str, Stored], after: Mapping[str, Stored], target: Mapping[str, Stored]
) -> Iterator[Row]:
    """Yield how far each layer's statistics lie from the target's, before and after."""
    names = [name for name in target if name in before and name in after]
    if not names:
        return
    for metric, of in _MOVES.items():
        pairs = {n: (of(before[n], target[n]), of(after[n], target[n])) for n in names}
        first, second = (float(np.mean(values)) for values in zip(*pairs.values(), strict=True))
        yield Row(metric, "all", first, second, second - first, n=len(pairs))
        for name, (a, b) in pairs.items():
            yield Row(metric, f"layer:{name}", a, b, b - a)


def target_of(after: Mapping[str, Stored], statistics: Statistics | None) -> Mapping[str, Stored]:
    """Return the target's statistics, rounded as a model stores them."""
    if statistics is None:
        return after
    return {
        name: Stored(
            moments.mean.to(after[name].mean),
            moments.variance().to(after[name].mean),
            after[name].eps,
        )
        for name, moments in statistics.items()
    }


def error_rows(statistics: Statistics | None) -> Iterator[Row]:
    """Yield the relative standard errors of the target's statistics."""
    if statistics is None:
        return
    errors = {name: value for name, value in statistics.errors().items() if isfinite(value)}
    if errors:
        worst, n = max(errors.values()), statistics.samples
        yield Row("statistic_se", "all", None, worst, None, n=n)
        for name, value in errors.items():
            yield Row("statistic_se", f"layer:{name}", None, value, None, n=n)


def _divergence(stored: Stored, target: Stored) -> float:
    """In the units in which the layer divides: with its eps, which also covers dead channels."""
    a, b = _variances(stored, target)
    return symmetric_kl(stored.mean, a, target.mean, b)


def _mean_shift(stored: Stored, target: Stored) -> float:
    a, _ = _variances(stored, target)
    moved = (target.mean.double().cpu() - stored.mean.double().cpu()) / a.double().cpu().sqrt()
    return float(moved.square().mean().sqrt())


def _log_var_shift(stored: Stored, target: Stored) -> float:
    a, b = (variance.double().cpu() for variance in _variances(stored, target))
    return float((b.log() - a.log()).square().mean().sqrt())


def _variances(stored: Stored, target: Stored) -> tuple[Tensor, Tensor]:
    eps = max(stored.eps, _LEAST_VARIANCE)
    return stored.variance + eps, target.variance + eps


_MOVES = {
    "symmetric_kl": _divergence,
    "mean_shift": _mean_shift,
    "log_var_shift": _log_var_shift,
}
