"""Tables that several benchmarks make of their rows; accuracies in %."""

import math
from collections.abc import Callable, Sequence

import pandas as pd
from scipy import stats

from benchmarks.methods import EXACT

Maker = Callable[[pd.DataFrame], pd.DataFrame]
HARM = 0.01  # of accuracy below the source, and beyond chance: what counts as harm


def means(
    frame: pd.DataFrame, *, rows: str | Sequence[str], across: str, value: str = "after"
) -> pd.DataFrame:
    """Return mean accuracies, in the order in which rows and columns come.

    Where a run has failed there is no mean: it would be of other targets than the rest of its row.
    """
    keys = [rows] if isinstance(rows, str) else list(rows)
    groups = frame.groupby([*keys, across], sort=False)[value]
    complete = groups.mean().where(groups.count() == groups.size())
    table = (100 * complete).round(1).unstack(sort=False)
    table = table.reindex(columns=frame[across].unique()).reset_index()
    table.columns = [str(column) for column in table.columns]
    return table


def spreads(frame: pd.DataFrame, *, across: str, rows: str = "method") -> pd.DataFrame:
    """Return mean accuracies (lowest to highest over seeds), in the order in which they come."""
    found = {}
    for (row, column), values in frame.groupby([rows, across], sort=False)["after"]:
        low, mean, high = (100 * figure for figure in (values.min(), values.mean(), values.max()))
        known = values.notna().all()
        found[row, column] = f"{mean:.1f} ({low:.1f} to {high:.1f})" if known else "failed"
    table = pd.Series(found).unstack(sort=False)
    return table.rename_axis(rows).reset_index()


def verdicts(frame: pd.DataFrame, *, rows: str = "method") -> pd.DataFrame:
    """Return one row a method: its mean accuracy, how often it harms, and how far at worst.

    "Harm" is an accuracy more than a point below the source net's on the same images, the 95%
    interval of the paired change being below 0. Failed runs are counted, and in no other figure.
    """
    found = []
    for name, part in frame.groupby(rows, sort=False):
        known = part[part["after"].notna()]
        found.append(
            {
                rows: name,
                "accuracy, %": round(100 * known["after"].mean(), 1),
                "harm, % of targets": round(100 * _harms(known).mean(), 1),
                "worst change, points": round(100 * known["change"].min(), 1),
                "best change, points": round(100 * known["change"].max(), 1),
                "targets": len(known),
                "failed": int(part["after"].isna().sum()),
            }
        )
    return pd.DataFrame(found)


def _harms(frame: pd.DataFrame) -> "pd.Series[bool]":
    return (frame["change"] < -HARM) & (frame["ci_high"] < 0)


def harm(table: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table of methods with how often each harms, how far at worst, and what failed."""
    found = verdicts(frame)[["method", "harm, % of targets", "worst change, points", "failed"]]
    if not found["failed"].any():
        found = found.drop(columns="failed")
    return table.merge(found, on="method")


def seed_by_seed(frame: pd.DataFrame, *, rows: Sequence[str]) -> pd.DataFrame:
    """Return what exact statistics change, in points, in each training by itself."""
    found = []
    for keys, part in frame[frame["method"] == EXACT].groupby(list(rows), sort=False):
        changes = ", ".join(f"{100 * change:+.1f}" for change in part["change"])
        before, after = (round(100 * part[column].mean(), 1) for column in ("before", "after"))
        row = dict(zip(rows, keys, strict=True))
        found.append(row | {"before, %": before, "after, %": after, "each seed, points": changes})
    return pd.DataFrame(found)


def without_gain(frame: pd.DataFrame, *, rows: Sequence[str], of: str) -> pd.DataFrame:
    """Return every condition in which exact statistics do not raise the accuracy.

    A row for each of `rows`; in it, the values of `of` whose mean change over seeds is 0 or less,
    with that change in points, and a * where it is below 0 beyond chance: by the paired 95%
    interval (its mean width over seeds, which share images) and by Student's t over the seeds.
    """
    found = []
    for keys, part in frame[frame["method"] == EXACT].groupby(list(rows), sort=False):
        lost = []
        groups = part.groupby(of, sort=False)
        for value, runs in groups:
            change = runs["change"].mean()
            if change <= 0:
                star = "*" if change + _half_width(runs) < 0 else ""
                lost.append(f"{value} {100 * change:+.1f}{star}")
        row = dict(zip(rows, keys, strict=True))
        row |= {"no gain": f"{len(lost)} of {len(groups)}", "which, points": ", ".join(lost)}
        found.append(row)
    return pd.DataFrame(found)


def _half_width(runs: pd.DataFrame) -> float:
    """Return the larger half width of two intervals of a mean change: of the images, of seeds."""
    known = runs[runs["change"].notna()]
    of_images = float((known["ci_high"] - known["ci_low"]).mean()) / 2
    n = len(known)
    spread = float(known["change"].std(ddof=1)) if n > 1 else 0.0
    return max(of_images, float(stats.t.ppf(0.975, max(n - 1, 1))) * spread / math.sqrt(n))
