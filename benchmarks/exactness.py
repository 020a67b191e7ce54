"""What exactness buys: the same images in other batches and orders."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch

from adaptkit.plotting import new_figure
from benchmarks import figures, harness, tabulated
from benchmarks.harness import Row, Target
from benchmarks.images import named
from benchmarks.methods import EXACT, PRECISE_BN, UPDATE_BN
from benchmarks.nets import IBN, PLAIN, QUICK_STEPS, STEPS, trained
from benchmarks.spoiling import corrupt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCHES = (1, 4, 16, 64, 256)
SHUFFLED, SORTED = "shuffled", "sorted by class"
# Source images, target images, how they are spoilt and how severely.
CASES = (
    ("digits", "digits", "gaussian noise", 3),
    ("digits", "cropped MNIST", "clean", 0),
    ("Fashion-MNIST", "Fashion-MNIST", "gaussian noise", 3),
    ("Fashion-MNIST", "Fashion-MNIST", "contrast", 3),
)


@dataclass(frozen=True)
class Job:
    """One training and the batches in which its target comes."""

    source: str
    target: str
    corruption: str
    severity: int
    architecture: str
    seed: int
    steps: int
    count: int
    batches: tuple[int, ...]


def run(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cut each target into batches of five sizes, shuffled and sorted by class."""
    there = harness.available("digits", "cropped MNIST", "Fashion-MNIST")
    batches = BATCHES[1::2] if quick else BATCHES
    seeds, steps, count = (1, QUICK_STEPS, 128) if quick else (3, STEPS, 500)
    jobs = [
        Job(source, target, corruption, severity, architecture, seed, steps, count, batches)
        for seed in range(seeds)
        for source, target, corruption, severity in CASES
        for architecture in (PLAIN, IBN)
        if source in there and target in there
    ]
    frame = harness.run_all(jobs, one)
    return frame, summary(frame)


def one(job: Job) -> list[Row]:
    """Train one net and run every method on the same images in every way to cut them."""
    source = trained(job.architecture, named(job.source), job.seed, job.steps)
    images = named(job.target)
    x, y = harness.taken(images, harness.shuffled(len(images.test_x), job.seed)[: job.count])
    x = corrupt(x, job.corruption, job.severity)
    case = f"{job.source} to {job.target}"
    if job.severity:
        case = f"{job.target}, {job.corruption}"
    found = []
    for order, index in ((SHUFFLED, torch.arange(len(y))), (SORTED, y.argsort(stable=True))):
        for batch in job.batches:
            target = Target(case, x[index], y[index], {"order": order, "batch": batch}, batch)
            found += harness.rows(source, target, more=harness.certificate)
    return [{"seed": job.seed, "architecture": job.architecture, **row} for row in found]


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row a method: accuracy by batch size and order, and its spread over them.

    The spread is the range over all batch sizes and orders of one net and target, mean over these.
    """
    part = frame.assign(way=frame["order"] + ", " + frame["batch"].astype(str))
    table = tabulated.means(part, rows="method", across="way")
    by_net = part.groupby(["method", "case", "architecture", "seed"], sort=False)["after"]
    spread = (by_net.max() - by_net.min()).groupby("method").mean()
    table["spread, points"] = (100 * table["method"].map(spread)).round(1)
    return table


def errors(frame: pd.DataFrame) -> pd.DataFrame:
    """Return how far the stored statistics lie from what the net sees, median and worst.

    Of the methods that pool all images: the worst channel's error in standard deviations (mean) or
    e-folds (variance), by `adaptkit.certify`.
    """
    known = frame[frame["method"].isin([UPDATE_BN, PRECISE_BN, EXACT])]
    part = known.assign(way=known["order"] + ", " + known["batch"].astype(str))
    table = part.pivot_table(
        index="method", columns="way", values="statistics off by", aggfunc="median", sort=False
    )
    table = table[list(part["way"].unique())]
    table["worst"] = part.groupby("method")["statistics off by"].max()
    return table.map(lambda value: f"{value:.2g}").rename_axis(columns=None).reset_index()


def figure(frame: pd.DataFrame) -> "Figure":
    """Draw accuracy against the batch size, a panel an order, a line a method."""
    drawn = new_figure(11, 5.5)
    every = drawn.subplots(1, 2, sharey=True)
    for axes, order in zip(every, (SHUFFLED, SORTED), strict=True):
        figures.lines(axes, frame[frame["order"] == order], x="batch")
        axes.set(title=order, xlabel="images in a batch", xscale="log")
        axes.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
    every[0].set_ylabel("accuracy, mean over nets and targets, %")
    figures.legend_below(drawn, every[0])
    return drawn
