"""How few images are enough, and whether the stated standard error predicts it."""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from adaptkit import Statistics, estimate
from adaptkit.moments import Moments
from adaptkit.plotting import new_figure
from benchmarks import figures, harness, methods, tabulated
from benchmarks.harness import Row, Target
from benchmarks.images import Images, named
from benchmarks.machine import device
from benchmarks.methods import EXACT, NONE, PRECISE_BN, UPDATE_BN, Method
from benchmarks.nets import IBN, PLAIN, QUICK_STEPS, STEPS, Source, trained
from benchmarks.spoiling import corrupt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 5000, 10000)
# Kept from training, to adapt to, of Fashion-MNIST's 60,000 and of the 1,200 digits.
POOLS = {"Fashion-MNIST": 10_000, "digits": 256}
TARGETS = (("clean", 0), ("gaussian noise", 3), ("gaussian blur", 3), ("contrast", 3))
PRIORS = (2, 4, 8, 16, 64)
MOST_WITH_PRIOR = 256  # images: with more of them a prior hardly counts


def _methods(size: int) -> dict[str, Method]:
    chosen = methods.installed(NONE, UPDATE_BN, PRECISE_BN, EXACT)
    if size <= MOST_WITH_PRIOR:
        chosen |= {f"adaptkit exact, prior {n}": partial(methods.exact, n) for n in PRIORS}
    return chosen


@dataclass(frozen=True)
class Job:
    """One training and the sizes of its targets."""

    images: str
    architecture: str
    seed: int
    steps: int
    scored: int
    sizes: tuple[int, ...]
    targets: tuple[tuple[str, int], ...]


def run(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Adapt to ever more images, each time the first of one random order; score on others."""
    there = harness.available(*POOLS)
    sizes, targets = ((8, 64, 256), TARGETS[2:]) if quick else (SIZES, TARGETS)
    seeds, steps, scored = (1, QUICK_STEPS, 200) if quick else (3, STEPS, 1000)
    jobs = [
        Job(images, architecture, seed, steps, scored, sizes, targets)
        for seed in range(seeds)
        for images in there
        for architecture in (PLAIN, IBN)
    ]
    frame = harness.run_all(jobs, one)
    return frame, summary(frame)


def one(job: Job) -> list[Row]:
    """Train one net, apart from the pool to adapt to, and go through the sizes."""
    every = named(job.images)
    kept = len(every.x) - POOLS[job.images]
    source = trained(job.architecture, _first(every, kept), job.seed, job.steps)
    order = harness.shuffled(len(every.x) - kept, job.seed)
    pool = every.x[kept:][order].float() / 255
    x, y = every.first(job.scored)
    found = []
    for name, severity in job.targets:
        spoilt, scored = corrupt(pool, name, severity, seed=1), corrupt(x, name, severity)
        whole = _estimated(source, spoilt)
        for size in [n for n in job.sizes if n <= len(pool)]:
            about = {"images": job.images, "corruption": name, "size": size}
            target = Target(job.images, scored, y, about, to_adapt=spoilt[:size])
            rows = harness.rows(source, target, _methods(size))
            part = _estimated(source, spoilt[:size])
            errors = {"stated error": _rms([*part.errors().values()])}
            errors["actual error"] = distance(part, whole)
            errors["share of pool"] = size / len(pool)
            found += [row | errors if row["method"] == EXACT else row for row in rows]
    return [{"seed": job.seed, "architecture": job.architecture, **row} for row in found]


def _first(images: Images, count: int) -> Images:
    return replace(images, x=images.x[:count], y=images.y[:count])


def _estimated(source: Source, x: Tensor) -> Statistics:
    batches = source.images.standardised(x).to(device()).split(harness.BATCH)
    return estimate(source.model, batches, samples="all", memory=methods.MEMORY)


def distance(part: Statistics, whole: Statistics) -> float:
    """How far statistics lie from those of all images, in the unit of `Statistics.errors`.

    A layer's is the larger of two root mean squares over channels: of the means' differences in
    standard deviations, and of the log-variances'. Of the layers, again the root mean square.
    """
    return _rms([_layer_distance(part[name], whole[name]) for name in whole])


def _layer_distance(part: Moments, whole: Moments) -> float:
    variance = whole.variance()
    varies = (variance > 0) & (part.variance() > 0)
    in_std = ((part.mean - whole.mean) / variance.sqrt())[varies]
    in_log = (part.variance().log() - variance.log())[varies]
    return float(torch.stack([in_std.square().mean(), in_log.square().mean()]).max().sqrt())


def _rms(values: list[float]) -> float:
    return float(torch.tensor(values).square().mean().sqrt())


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return accuracies on other images, a row a method, a column a size of the target."""
    return tabulated.means(_large(frame), rows="method", across="size")


def _large(frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out sets whose pool is too small for all sizes, as they would mix other nets in."""
    sizes = frame.groupby("images")["size"].max()
    return frame[frame["images"].isin(sizes[sizes == sizes.max()].index)]


def by_target(frame: pd.DataFrame) -> pd.DataFrame:
    """Return accuracies by exact statistics, a row a target, a column a size; "before" first."""
    part = frame[frame["method"] == EXACT]
    rows = ["images", "corruption"]
    table = tabulated.means(part, rows=rows, across="size")
    before = (100 * part.groupby(rows, sort=False)["before"].mean()).round(1)
    table.insert(2, "before", before.to_numpy())
    return table


def errors(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the stated standard error beside the error that there was, a row a size.

    A part of the pool lies nearer to it than to the domain: the stated error is brought to that by
    √(1 − n/N).
    """
    part = _large(frame[frame["method"] == EXACT])
    part = part[part["share of pool"] < 1]
    expected = part["stated error"] * (1 - part["share of pool"]).pow(0.5)
    part = part.assign(expected=expected, ratio=part["actual error"] / expected)
    found = []
    for size, rows in part.groupby("size", sort=False):
        found.append(
            {
                "images": size,
                "stated error, %": round(100 * rows["stated error"].median(), 2),
                "of a part of the pool, %": round(100 * rows["expected"].median(), 2),
                "actual error, %": round(100 * rows["actual error"].median(), 2),
                "actual / stated": round(rows["ratio"].median(), 2),
                "5% to 95% of runs": " to ".join(
                    f"{rows['ratio'].quantile(q):.2f}" for q in (0.05, 0.95)
                ),
                "accuracy, %": round(100 * rows["after"].mean(), 1),
            }
        )
    return pd.DataFrame(found)


def figure(frame: pd.DataFrame) -> "Figure":
    """Draw accuracy, and the stated and the actual error, against the size of the target."""
    drawn = new_figure(11, 5.5)
    accuracy, precision = drawn.subplots(1, 2)
    part = _large(frame)
    figures.lines(accuracy, part, x="size")
    accuracy.set(
        title="accuracy on other images", xlabel="images adapted to", ylabel="%", xscale="log"
    )
    part = part[(part["method"] == EXACT) & (part["share of pool"] < 1)]
    for number, name in enumerate(("stated error", "actual error")):
        mean = part.groupby("size")[name].mean() * 100
        precision.plot(mean.index, mean.to_numpy(), label=name, **figures.style(number))
    precision.set(
        title="error of the statistics",
        xlabel="images adapted to",
        ylabel="% of a standard deviation",
        xscale="log",
        yscale="log",
    )
    precision.grid(alpha=0.3)
    precision.legend()
    figures.legend_below(drawn, accuracy, 3)
    return drawn
