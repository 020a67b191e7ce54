"""Sixteen corruptions at five severities: two sets of images, a plain net and an IBN-Net."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from adaptkit.plotting import new_figure
from benchmarks import figures, harness, tabulated
from benchmarks.harness import Row, Target
from benchmarks.images import named
from benchmarks.methods import EXACT
from benchmarks.nets import IBN, PLAIN, QUICK_STEPS, STEPS, trained
from benchmarks.spoiling import SEVERITIES, corrupt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLEAN = "clean"


@dataclass(frozen=True)
class Job:
    """One training and the ways to spoil its test images."""

    images: str
    architecture: str
    seed: int
    steps: int
    count: int
    corruptions: tuple[str, ...]
    severities: tuple[int, ...]


def run(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Adapt to the net's own test images, clean and spoilt, with every method."""
    there = harness.available("digits", "Fashion-MNIST")
    every = harness.corruptions()
    corruptions, severities = (every[::4], (3,)) if quick else (every, SEVERITIES)
    seeds, steps, count = (1, QUICK_STEPS, 200) if quick else (3, STEPS, 500)
    jobs = [
        Job(images, architecture, seed, steps, count, corruptions, severities)
        for seed in range(seeds)
        for images in there
        for architecture in (PLAIN, IBN)
    ]
    frame = harness.run_all(jobs, one)
    return frame, summary(frame)


def one(job: Job) -> list[Row]:
    """Train one net and run every method on every target."""
    images = named(job.images)
    source = trained(job.architecture, images, job.seed, job.steps)
    index = harness.shuffled(len(images.test_x), job.seed)[: job.count]
    x, y = harness.taken(images, index)
    found = []
    for name, severity in [(CLEAN, 0)] + [(c, s) for c in job.corruptions for s in job.severities]:
        about = {"images": job.images, "corruption": name, "severity": severity}
        found += harness.rows(source, Target(job.images, corrupt(x, name, severity), y, about))
    return [{"seed": job.seed, "architecture": job.architecture, **row} for row in found]


def _nets(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(net=frame["images"] + ", " + frame["architecture"])


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return accuracies, a row a method, mean over all corruptions and severities."""
    spoilt = _nets(frame[frame["corruption"] != CLEAN])
    clean = frame[frame["corruption"] == CLEAN].groupby("method")["after"].mean()
    table = tabulated.means(spoilt, rows="method", across="net")
    table.insert(1, "clean, all nets", (100 * table["method"].map(clean)).round(1))
    return table


def by_severity(frame: pd.DataFrame) -> pd.DataFrame:
    """Return accuracies, a row a method, a column a severity; with harm and the worst change."""
    spoilt = frame[frame["corruption"] != CLEAN]
    table = tabulated.means(spoilt, rows="method", across="severity")
    table.columns = ["method", *(f"severity {c}" for c in table.columns[1:])]
    return tabulated.harm(table, spoilt)


def by_corruption(frame: pd.DataFrame) -> pd.DataFrame:
    """Return before → after exact statistics, a row a corruption, mean over severities."""
    every = _nets(frame)
    part = every[every["method"] == EXACT]
    found = []
    for name, rows in part.groupby("corruption", sort=False):
        row: dict[str, object] = {"corruption": name}
        for net, values in rows.groupby("net", sort=False):
            before, after = (100 * values[column].mean() for column in ("before", "after"))
            row[str(net)] = f"{before:.1f} → {after:.1f}"
        found.append(row)
    return pd.DataFrame(found)


def no_gain(frame: pd.DataFrame) -> pd.DataFrame:
    """Return where exact statistics do not help."""
    severity = frame["severity"].astype(str)
    which = frame["corruption"] + (" " + severity).where(frame["severity"] > 0, "")
    return tabulated.without_gain(
        frame.assign(which=which), rows=["images", "architecture"], of="which"
    )


def figure(frame: pd.DataFrame) -> "Figure":
    """Draw accuracy against severity, a panel a set and net, a line a method."""
    part = _nets(frame[frame["corruption"] != CLEAN])
    nets = part["net"].unique()
    drawn = new_figure(4 * len(nets), 5)
    every = drawn.subplots(1, len(nets), sharey=True, squeeze=False)[0]
    for axes, net in zip(every, nets, strict=True):
        figures.lines(axes, part[part["net"] == net], x="severity")
        axes.set(title=net, xlabel="severity", xticks=SEVERITIES)
    every[0].set_ylabel("accuracy, mean over corruptions, %")
    figures.legend_below(drawn, every[0])
    return drawn
