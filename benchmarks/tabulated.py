"""Tables that several benchmarks make of their rows; accuracies in %."""

from collections.abc import Callable, Sequence

import pandas as pd

from benchmarks.methods import EXACT

Maker = Callable[[pd.DataFrame], pd.DataFrame]
HARM = 0.01  # of accuracy below the source: what counts as harm


def means(
    frame: pd.DataFrame, *, rows: str | Sequence[str], across: str, value: str = "after"
) -> pd.DataFrame:
    """Return mean accuracies, in the order in which rows and columns come; failed runs are out."""
    keys = [rows] if isinstance(rows, str) else list(rows)
    table = frame.pivot_table(index=keys, columns=across, values=value, sort=False, observed=True)
    order = frame[across].drop_duplicates()
    table = (100 * table).round(1).reindex(columns=order).reset_index()
    table.columns = [str(column) for column in table.columns]
    return table


def spreads(frame: pd.DataFrame, *, across: str, rows: str = "method") -> pd.DataFrame:
    """Return mean accuracies (lowest to highest over seeds), in the order in which they come."""
    found = {}
    for (row, column), values in frame.groupby([rows, across], sort=False)["after"]:
        found[row, column] = (
            f"{100 * values.mean():.1f} ({100 * values.min():.1f} to {100 * values.max():.1f})"
        )
    table = pd.Series(found).unstack(sort=False)
    return table.rename_axis(rows).reset_index()


def verdicts(frame: pd.DataFrame, *, rows: str = "method") -> pd.DataFrame:
    """Return one row a method: its mean accuracy, how often it harms, and how far at worst.

    "Harm" is an accuracy more than a point below the source net's, on the same images.
    """
    found = []
    for name, part in frame.groupby(rows, sort=False):
        known = part[part["after"].notna()]
        found.append(
            {
                rows: name,
                "accuracy, %": round(100 * known["after"].mean(), 1),
                "harm, % of targets": round(100 * (known["change"] < -HARM).mean(), 1),
                "worst change, points": round(100 * known["change"].min(), 1),
                "best change, points": round(100 * known["change"].max(), 1),
                "targets": len(known),
                "failed": int(part["after"].isna().sum()),
            }
        )
    return pd.DataFrame(found)


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
    with that change in points, and a * where its 95% interval is below 0. The interval is of the
    mean, from those of the seeds.
    """
    found = []
    for keys, part in frame[frame["method"] == EXACT].groupby(list(rows), sort=False):
        lost = []
        groups = part.groupby(of, sort=False)
        for value, runs in groups:
            change = 100 * runs["change"].mean()
            if change <= 0:
                half = 50 * (runs["ci_high"] - runs["ci_low"]).pow(2).sum() ** 0.5 / len(runs)
                lost.append(f"{value} {change:+.1f}{'*' if change + half < 0 else ''}")
        row = dict(zip(rows, keys, strict=True))
        row |= {"no gain": f"{len(lost)} of {len(groups)}", "which, points": ", ".join(lost)}
        found.append(row)
    return pd.DataFrame(found)
