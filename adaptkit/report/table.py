"""Report schema 1: one row a figure, before and after, as a DataFrame, CSV and JSON."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from adaptkit.errors import DataError
from adaptkit.estimation import Statistics
from adaptkit.evaluation import Evaluation
from adaptkit.files import write_files
from adaptkit.norms import Stored
from adaptkit.paired import mean_change, proportion_change
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
    details: Mapping[str, Any] | None = None,
) -> Report:
    """Compare two evaluations of the same samples in the same order.

    Rows: accuracy (with labels; Newcombe's paired interval, McNemar's exact p-value), mean
    confidence and mean entropy in nats (paired t), and for every norm layer the symmetric KL
    divergence in nats between what the model stores and the target's statistics, with their mean.

    Args:
        before: of the source model.
        after: of the adapted model.
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
        _mean("confidence_mean", before.confidence, after.confidence),
        _mean("entropy_mean", before.entropy, after.entropy),
        *_divergences(before.layers, after.layers, _target(after.layers, statistics)),
        *_standard_errors(statistics),
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


def _mean(metric: str, before: NDArray[np.float64], after: NDArray[np.float64]) -> Row:
    known = np.isfinite(before) & np.isfinite(after)
    if not known.any():
        return Row(metric, "all", None, None, None, n=0)
    before, after = before[known], after[known]
    change = mean_change(before, after)
    return Row(metric, "all", float(before.mean()), float(after.mean()), *change, n=len(before))


def _divergences(
    before: Mapping[str, Stored], after: Mapping[str, Stored], target: Mapping[str, Stored]
) -> Iterator[Row]:
    pairs = {
        name: (_divergence(before[name], target[name]), _divergence(after[name], target[name]))
        for name in target
        if name in before and name in after
    }
    if not pairs:
        return
    first, second = (float(np.mean(values)) for values in zip(*pairs.values(), strict=True))
    yield Row("symmetric_kl", "all", first, second, second - first, n=len(pairs))
    for name, (a, b) in pairs.items():
        yield Row("symmetric_kl", f"layer:{name}", a, b, b - a)


def _target(after: Mapping[str, Stored], statistics: Statistics | None) -> Mapping[str, Stored]:
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


def _standard_errors(statistics: Statistics | None) -> Iterator[Row]:
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
    eps = max(stored.eps, _LEAST_VARIANCE)
    return symmetric_kl(stored.mean, stored.variance + eps, target.mean, target.variance + eps)
