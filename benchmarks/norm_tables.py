"""What the norm benchmark's rows come to: tables for the page, and a figure."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from adaptkit.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WHOLE = "batch 64"
_FLOOR = 1e-4


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row a norm: accuracy on clean images (%) in each condition, mean ± half range.

    Then, trained in whole batches, accuracy (%) on the corrupted images before and after AdaBN,
    mean over corruptions and seeds.
    """
    rows = []
    for norm, of_norm in frame.groupby("norm", sort=False):
        row: dict[str, object] = {"norm": norm}
        clean = of_norm[of_norm["case"] == "clean"]
        for condition, of_condition in clean.groupby("condition", sort=False):
            row[f"{condition}, %"] = _spread(of_condition["before"])
        corrupted = _corrupted(of_norm[of_norm["condition"] == _WHOLE])
        row["corrupted, %"] = _percent(corrupted["before"])
        row["corrupted, AdaBN, %"] = _percent(corrupted["after"])
        rows.append(row)
    return pd.DataFrame(rows)


def jacobians(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row a norm: the median singular value (5% to 95%), mean over seeds.

    Of one convolution and its norm ("layer"), and from the image to the features ("body"), before
    training and after it.
    """
    cases = [f"{module}, {when}" for module in ("layer", "body") for when in ("initial", "trained")]
    rows = []
    for norm, of_norm in frame.groupby("norm", sort=False):
        found = {case: _interval(of_norm[of_norm["case"] == case]) for case in cases}
        rows.append({"norm": norm, **found})
    return pd.DataFrame(rows)


def by_condition(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row a norm and condition: accuracies (%) before and after AdaBN, over seeds."""
    rows = []
    for (norm, condition), part in frame.groupby(["norm", "condition"], sort=False):
        clean, corrupted = part[part["case"] == "clean"], _corrupted(part)
        rows.append(
            {
                "norm": norm,
                "condition": condition,
                "clean, %": _percent(clean["before"]),
                "clean, AdaBN, %": _percent(clean["after"]),
                "corrupted, %": _percent(corrupted["before"]),
                "corrupted, AdaBN, %": _percent(corrupted["after"]),
            }
        )
    return pd.DataFrame(rows)


def by_corruption(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row a norm trained in whole batches: accuracy (%), before → after AdaBN."""
    whole = frame[(frame["condition"] == _WHOLE) & frame["before"].notna()]
    rows = []
    for norm, of_norm in whole.groupby("norm", sort=False):
        row: dict[str, object] = {"norm": norm}
        for case, part in of_norm.groupby("case", sort=False):
            before, after = _percent(part["before"]), _percent(part["after"])
            row[str(case)] = f"{before}" if after is None else f"{before} → {after}"
        rows.append(row)
    return pd.DataFrame(rows)


def figure(frame: pd.DataFrame) -> "Figure":
    """Draw the accuracies and the singular values.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    drawn = new_figure(12, 8)
    (clean, corrupted), (layer, body) = drawn.subplots(2, 2)
    names = list(frame["norm"].unique())
    of_clean = frame[frame["case"] == "clean"]
    groups = {str(c): part["before"] for c, part in of_clean.groupby("condition", sort=False)}
    _bars(clean, frame, names, groups)
    clean.set_title("clean images, by how the net was trained")
    spoilt = _corrupted(frame[frame["condition"] == _WHOLE])
    _bars(corrupted, frame, names, {"before AdaBN": spoilt["before"], "after": spoilt["after"]})
    corrupted.set_title("corrupted images, mean of five corruptions")
    for axes, name, title in (
        (layer, "layer", "singular values of a convolution and its norm"),
        (body, "body", "singular values from the image to the features"),
    ):
        _intervals(axes, frame, names, name)
        axes.set_title(title)
    return drawn


def _bars(
    axes: "Axes", frame: pd.DataFrame, names: list[str], groups: Mapping[str, "pd.Series[float]"]
) -> None:
    """Draw a bar for the mean of each norm and group, and a dot for each of its seeds."""
    width = 0.8 / len(groups)
    for number, (label, values) in enumerate(groups.items()):
        rows = frame.loc[values.index].assign(percent=100 * values)
        seeds = rows.groupby(["norm", "seed"], as_index=False)["percent"].mean()
        shift = (number - (len(groups) - 1) / 2) * width
        places = {norm: place + shift for place, norm in enumerate(names)}
        means = seeds.groupby("norm")["percent"].mean().reindex(names)
        axes.bar([*places.values()], means, width, label=label, alpha=0.7)
        axes.plot(seeds["norm"].map(places), seeds["percent"], "k.", markersize=3)
    axes.set_xticks(range(len(names)), names, rotation=20)
    axes.set(ylabel="accuracy, %", ylim=(0, 110), yticks=range(0, 101, 20))
    axes.legend(fontsize="small", loc="upper center", ncols=len(groups))


def _intervals(axes: "Axes", frame: pd.DataFrame, names: list[str], module: str) -> None:
    """Draw the median and the 5% to 95% of singular values, before and after training.

    Values below `_FLOOR` stand there, as a logarithm has no place for 0.
    """
    for shift, when in ((-0.12, "initial"), (0.12, "trained")):
        columns = [f"singular_{q}%" for q in (5, 50, 95)]
        part = frame[frame["case"] == f"{module}, {when}"]
        found = part.groupby("norm")[columns].mean().reindex(names).clip(lower=_FLOOR)
        low, median, high = (found[column].to_numpy() for column in columns)
        axes.errorbar(
            [i + shift for i in range(len(names))],
            median,
            yerr=[median - low, high - median],
            fmt="o",
            capsize=3,
            label=when,
        )
    axes.axhline(1, color="grey", linewidth=1)
    axes.set_xticks(range(len(names)), names, rotation=20)
    axes.set_yscale("log")
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top * (top / bottom) ** 0.15)  # room for the legend
    axes.legend(fontsize="small", loc="upper center", ncols=2)


def _corrupted(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["before"].notna() & (frame["case"] != "clean")]


def _percent(values: "pd.Series[float]") -> float | None:
    return None if values.isna().all() else round(100 * float(values.mean()), 1)


def _spread(values: "pd.Series[float]") -> str:
    half = 50 * (values.max() - values.min())
    return f"{100 * values.mean():.1f} ± {half:.1f}"


def _interval(rows: pd.DataFrame) -> str:
    low, median, high = (rows[f"singular_{q}%"].mean() for q in (5, 50, 95))
    return f"{median:.2g} ({low:.2g} to {high:.2g})"
