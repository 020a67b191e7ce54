"""Rows that several comparisons share: means over samples, and the scopes of classes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adaptkit.paired import mean_change
from adaptkit.report.table import Row


def class_scope(k: int, classes: Sequence[str] | None) -> str:
    """Return the scope of a class's rows."""
    return f"class:{classes[k] if classes else k}"


def mean_row(metric: str, before: NDArray[np.float64], after: NDArray[np.float64]) -> Row:
    """Compare two means over the same samples, of those known in both."""
    known = np.isfinite(before) & np.isfinite(after)
    if not known.any():
        return Row(metric, "all", None, None, None, n=0)
    before, after = before[known], after[known]
    change = mean_change(before, after)
    return Row(metric, "all", float(before.mean()), float(after.mean()), *change, n=len(before))
