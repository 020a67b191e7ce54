"""When the target has not the source's mix of classes, with and without corruption."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptkit.plotting import new_figure
from benchmarks import figures, harness, tabulated
from benchmarks.harness import Row, Target
from benchmarks.images import CLASSES, named
from benchmarks.nets import IBN, PLAIN, QUICK_STEPS, STEPS, trained
from benchmarks.spoiling import corrupt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLEAN, SEVERITY = "clean", 3
BALANCED, DIRICHLET = "10 classes", "Dirichlet 0.5"
# Column `classes`, in the order of the tables.
MIXES = (BALANCED, DIRICHLET, "5 classes", "3 classes", "2 classes", "1 class")


@dataclass(frozen=True)
class Job:
    """One training, the mixes of classes and the corruptions that its targets have."""

    images: str
    architecture: str
    seed: int
    steps: int
    count: int
    corruptions: tuple[str, ...]


def run(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cross six mixes of classes with clean images and sixteen corruptions of severity 3."""
    there = harness.available("MNIST", "Fashion-MNIST")
    every = harness.corruptions()
    if not there:
        there = ["digits"]
    seeds, steps, count = (1, QUICK_STEPS, 60) if quick else (3, STEPS, 192)
    jobs = [
        Job(images, architecture, seed, steps, count, every[:1] if quick else every)
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
    found = []
    for mix in MIXES:
        x, y = harness.taken(images, drawn(images.test_y, mix, job.count, job.seed))
        for name in (CLEAN, *job.corruptions):
            spoilt = corrupt(x, name, 0 if name == CLEAN else SEVERITY)
            about = {"images": job.images, "classes": mix, "corruption": name}
            found += harness.rows(source, Target(job.images, spoilt, y, about))
    return [{"seed": job.seed, "architecture": job.architecture, **row} for row in found]


def drawn(labels: Tensor, mix: str, count: int, seed: int) -> Tensor:
    """Return which images make a target of such a mix, in random order, none twice.

    Of "3 classes" each of three that are drawn at random is as likely; Dirichlet 0.5 draws the
    shares of all ten.
    """
    return of_mix(labels, mix, count, np.random.default_rng([seed, MIXES.index(mix)]))


def of_mix(labels: Tensor, mix: str, count: int, rng: np.random.Generator) -> Tensor:
    """Return the same as it is drawn from `rng`; a class of few images gives what it has."""
    if mix == DIRICHLET:
        shares = rng.dirichlet([0.5] * CLASSES)
    else:
        present = int(mix.split()[0])
        shares = np.zeros(CLASSES)
        shares[rng.permutation(CLASSES)[:present]] = 1 / present
    return of_shares(labels, shares, count, rng)


def of_shares(
    labels: Tensor, shares: NDArray[np.float64], count: int, rng: np.random.Generator
) -> Tensor:
    """Return the same for classes of these shares, (K,), of which each image is drawn."""
    members = [rng.permutation(np.flatnonzero(labels.numpy() == k)) for k in range(len(shares))]
    wanted = np.minimum(rng.multinomial(count, shares), [len(m) for m in members])
    chosen = np.concatenate([m[:n] for m, n in zip(members, wanted, strict=True)])
    return torch.from_numpy(rng.permutation(chosen))


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return accuracies, a row a method, a column a mix; with harm and the worst change."""
    table = tabulated.means(frame, rows="method", across="classes")
    return tabulated.harm(table, frame)


def on_clean(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the same of clean images alone: nothing has changed but the mix."""
    return summary(frame[frame["corruption"] == CLEAN])


def no_gain(frame: pd.DataFrame) -> pd.DataFrame:
    """Return where exact statistics do not help."""
    rows = ["images", "architecture", "classes"]
    return tabulated.without_gain(frame, rows=rows, of="corruption")


def figure(frame: pd.DataFrame) -> "Figure":
    """Draw accuracy against the mix, a panel for clean and for corrupted images."""
    panels = new_figure(11, 5.5)
    every = panels.subplots(1, 2, sharey=True)
    clean = frame["corruption"] == CLEAN
    for axes, part, title in zip(
        every,
        (frame[clean], frame[~clean]),
        ("clean images", "mean over corruptions, severity 3"),
        strict=True,
    ):
        figures.lines(axes, part, x="classes")
        axes.set(title=title, xlabel="classes in the target")
        axes.tick_params(axis="x", rotation=20)
    every[0].set_ylabel("accuracy, %")
    figures.legend_below(panels, every[0])
    return panels
