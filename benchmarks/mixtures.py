"""A target that mixes domains: two and four kinds of images in one folder."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from adaptkit.plotting import new_figure
from benchmarks import figures, harness, methods, tabulated
from benchmarks.harness import Row, Target
from benchmarks.images import named
from benchmarks.methods import EXACT
from benchmarks.nets import IBN, PLAIN, QUICK_STEPS, STEPS, trained
from benchmarks.spoiling import corrupt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Column `mixture`: its domains, equal parts of the images, as corruption and severity.
MIXTURES: dict[str, tuple[tuple[str, int], ...]] = {
    "clean": (("clean", 0),),
    "clean + brightness": (("clean", 0), ("brightness", 3)),
    "contrast + brightness": (("contrast", 3), ("brightness", 3)),
    "noise + blur": (("gaussian noise", 3), ("gaussian blur", 3)),
    "contrast, brightness, noise, blur": (
        ("contrast", 3),
        ("brightness", 3),
        ("gaussian noise", 3),
        ("gaussian blur", 3),
    ),
    "clean, darkness, fog, jpeg": (("clean", 0), ("darkness", 4), ("fog", 3), ("jpeg", 3)),
}
APART = "adaptkit exact, each domain by itself"


@dataclass(frozen=True)
class Job:
    """One training and the mixtures that it meets."""

    images: str
    architecture: str
    seed: int
    steps: int
    count: int
    mixtures: tuple[str, ...]


def run(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Adapt to mixtures as if they were one domain, and to each domain by itself."""
    there = harness.available("digits", "Fashion-MNIST")
    every = tuple(MIXTURES)
    if quick:
        seeds, steps, count, mixtures = 1, QUICK_STEPS, 200, every[2:3]
    else:
        seeds, steps, count, mixtures = 3, STEPS, 1000, every
    jobs = [
        Job(images, architecture, seed, steps, count, mixtures)
        for seed in range(seeds)
        for images in there
        for architecture in (PLAIN, IBN)
    ]
    frame = harness.run_all(jobs, one)
    return frame, summary(frame)


def one(job: Job) -> list[Row]:
    """Train one net and run every method on every mixture, in random order."""
    images = named(job.images)
    source = trained(job.architecture, images, job.seed, job.steps)
    x, y = harness.taken(images, harness.shuffled(len(images.test_x), job.seed)[: job.count])
    found, alone = [], methods.installed(EXACT)
    for name in job.mixtures:
        mixed, domain = mix(x, MIXTURES[name])
        about = {"images": job.images, "mixture": name, "domains": len(MIXTURES[name])}
        found += harness.rows(source, Target(job.images, mixed, y, about))
        parts = [
            harness.rows(source, Target(job.images, mixed[where], y[where], about), alone)[0]
            for where in (domain == number for number in range(len(MIXTURES[name])))
        ]
        found.append(_together(parts))
    return [{"seed": job.seed, "architecture": job.architecture, **row} for row in found]


def mix(x: Tensor, domains: tuple[tuple[str, int], ...]) -> tuple[Tensor, Tensor]:
    """Spoil every image in one of the ways, in turn; return them and which way each got."""
    domain = torch.arange(len(x)) % len(domains)
    mixed = x.clone()
    for number, (name, severity) in enumerate(domains):
        mixed[domain == number] = corrupt(x[domain == number], name, severity)
    return mixed, domain


def _together(parts: list[Row]) -> Row:
    """One row of the domains' rows; the interval is of the sum, the parts being independent."""
    failed = [part for part in parts if "failed" in part]
    if failed:
        return {**failed[0], "method": APART}
    samples = sum(part["samples"] for part in parts)
    shares = [part["samples"] / samples for part in parts]

    def mean(column: str) -> float:
        return sum(float(s * part[column]) for s, part in zip(shares, parts, strict=True))

    change = mean("change")
    low, high = (
        sum((s * (part[side] - part["change"])) ** 2 for s, part in zip(shares, parts, strict=True))
        for side in ("ci_low", "ci_high")
    )
    return {
        **parts[0],
        "method": APART,
        "samples": samples,
        **{column: mean(column) for column in ("before", "after")},
        "change": change,
        "ci_low": change - low**0.5,
        "ci_high": change + high**0.5,
        "seconds": sum(part["seconds"] for part in parts),
        "peak MiB": max(part["peak MiB"] for part in parts),
    }


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return accuracies, a row a method, a column a mixture."""
    return tabulated.means(frame, rows="method", across="mixture")


def no_gain(frame: pd.DataFrame) -> pd.DataFrame:
    """Return where exact statistics do not help."""
    return tabulated.without_gain(frame, rows=["images", "architecture"], of="mixture")


def figure(frame: pd.DataFrame) -> "Figure":
    """Draw accuracy by mixture, a dot a method."""
    drawn = new_figure(11, 5.5)
    axes = drawn.subplots()
    figures.lines(axes, frame, x="mixture")
    axes.set_ylabel("accuracy, mean over sets and nets, %")
    axes.tick_params(axis="x", rotation=12)
    axes.set_title("targets that mix domains in equal parts")
    figures.legend_below(drawn, axes)
    return drawn
