"""Two real sets of handwritten digits, each way, by three nets and five trainings of each.

What a net gains depends on its recipe and on how the images are prepared: digits fill their frame,
and MNIST's leave a margin, which is cut off in a third set. All is reported, the own domain too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from benchmarks import harness, tabulated
from benchmarks.figures import paired_dots
from benchmarks.harness import Row, Target
from benchmarks.images import named
from benchmarks.nets import ARCHITECTURES, QUICK_STEPS, STEPS, trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What a net is trained on -> what it adapts to.
TARGETS = {
    "digits": ("digits", "MNIST", "cropped MNIST"),
    "MNIST": ("MNIST", "digits"),
    "cropped MNIST": ("cropped MNIST", "digits"),
}


@dataclass(frozen=True)
class Job:
    """One training and its targets."""

    source: str
    targets: tuple[str, ...]
    architecture: str
    seed: int
    steps: int
    images: int


def run(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train on each of the sets and adapt to each, with every method."""
    there = harness.available(*TARGETS)
    seeds, steps, images = (1, QUICK_STEPS, 300) if quick else (5, STEPS, 2000)
    jobs = [
        Job(source, tuple(targets), architecture, seed, steps, images)
        for source, targets in _there(there).items()
        for architecture in ARCHITECTURES
        for seed in range(seeds)
    ]
    frame = harness.run_all(jobs, one)
    return frame, summary(frame)


def _there(there: Sequence[str]) -> dict[str, list[str]]:
    """Return `TARGETS` of the sets that are on this machine."""
    return {
        source: [name for name in TARGETS[source] if name in there]
        for source in TARGETS
        if source in there
    }


def one(job: Job) -> list[Row]:
    """Train one net and run every method on every target."""
    source = trained(job.architecture, named(job.source), job.seed, job.steps)
    found = []
    for name in job.targets:
        images = named(name)
        index = harness.shuffled(len(images.test_x), job.seed)[: job.images]
        target = Target(f"{job.source} to {name}", *harness.taken(images, index))
        found += harness.rows(source, target)
    return [{"seed": job.seed, "architecture": job.architecture, **row} for row in found]


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return accuracies in %, one row a method: mean over seeds (lowest to highest)."""
    cases = frame["case"] + ", " + frame["architecture"]
    return tabulated.spreads(frame.assign(group=cases), across="group")


def seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what exact statistics change in each training by itself."""
    return tabulated.seed_by_seed(frame, rows=["case", "architecture"])


def no_gain(frame: pd.DataFrame) -> pd.DataFrame:
    """Return where exact statistics do not help."""
    return tabulated.without_gain(frame, rows=["case"], of="architecture")


def summary_of(case: str) -> tabulated.Maker:
    """Return what makes the table of one case, a column for each net."""

    def table(frame: pd.DataFrame) -> pd.DataFrame:
        return tabulated.spreads(frame[frame["case"] == case], across="architecture")

    return table


def figure(frame: pd.DataFrame) -> "Figure":
    """Draw each training's accuracy before and after, by case and net."""
    return paired_dots(frame, panel="case", group="architecture")
