"""Does the guard keep people from harm, and what of the gain? Its constants were chosen on half."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptkit.plotting import new_figure
from benchmarks import figures, harness, methods
from benchmarks.drawn.some import some
from benchmarks.harness import Row, Target
from benchmarks.images import Images, named
from benchmarks.label_shift import BALANCED, CLEAN, DIRICHLET, of_mix, of_shares
from benchmarks.methods import CALIBRATED, ENTROPY, EXACT, GUARD, NONE
from benchmarks.nets import PLAIN, QUICK_STEPS, SMALL, STEPS, trained
from benchmarks.spoiling import corrupt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The images that the guard's constants were chosen on, and those that it is judged by.
CHOSEN_ON, REPORTED = ("MNIST", "digits"), ("Fashion-MNIST", "colour digits")
# Nets of a few classes of those that it is judged by: of what, and which classes.
FEW = {
    "two of Fashion-MNIST": ("Fashion-MNIST", (0, 6)),
    "three of Fashion-MNIST": ("Fashion-MNIST", (0, 3, 4)),
    "two of colour digits": ("colour digits", (2, 5)),
    "three of colour digits": ("colour digits", (0, 1, 6)),
}
INVERT = "invert"
# Gains and offsets, with what of them clips, then what is neither.
CORRUPTIONS = (
    CLEAN,
    "contrast",
    "brightness",
    "darkness",
    INVERT,
    "fog",
    "gaussian noise",
    "impulse noise",
    "gaussian blur",
    "jpeg",
    "elastic",
)
MIXES = (BALANCED, "7 classes", "5 classes", "3 classes", "2 classes", "1 class", DIRICHLET)
ALIKE, ALONE = "all classes", "1 class"
MIXES_OF_FEW = (ALIKE, ALONE, DIRICHLET)
SIZES = (32, 200, 1500)
SEVERITIES = (2, 3, 4, 5)
SEEDS_OF_FEW = 2
TRUE = "corrected for the true shares"
Floats = NDArray[np.float64]
HARM, MUCH = 0.01, 0.05  # of accuracy below the source's


@dataclass(frozen=True)
class Job:
    """One training, and how many of all targets it meets, drawn at random."""

    images: str
    architecture: str
    seed: int
    steps: int
    targets: int


def run(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw targets from 11 corruptions x 7 mixes of classes x 3 sizes for 24 nets.

    And from 11 x 3 x 3 for 16 nets of two or three classes.
    """
    there = harness.available(*CHOSEN_ON, *REPORTED)
    if quick:
        jobs = [Job("digits", SMALL, 0, QUICK_STEPS, 4)]
    else:
        jobs = [
            Job(images, architecture, seed, STEPS, 18)
            for seed in range(3)
            for images in (*there, *(few for few, (of, _) in FEW.items() if of in there))
            for architecture in (PLAIN, SMALL)
            if images in there or seed < SEEDS_OF_FEW
        ]
    frame = harness.run_all(jobs, one)
    return frame, summary(frame)


def one(job: Job) -> list[Row]:
    """Train one net and let every method choose on every target."""
    images = _images(job.images)
    source = trained(job.architecture, images, job.seed, job.steps)
    rng = np.random.default_rng([job.seed, (PLAIN, SMALL).index(job.architecture)])
    mixes = MIXES_OF_FEW if job.images in FEW else MIXES
    pairs = [(corruption, mix) for corruption in CORRUPTIONS for mix in mixes]
    found = []
    for number in rng.permutation(len(pairs))[: job.targets]:
        corruption, mix = pairs[number]
        size, severity = int(rng.choice(SIZES)), int(rng.choice(SEVERITIES))
        index = (_of_few if job.images in FEW else of_mix)(images.test_y, mix, size, rng)
        x, y = harness.taken(images, index)
        spoilt = (
            1 - x
            if corruption == INVERT
            else corrupt(x, corruption, 0 if corruption == CLEAN else severity, seed=int(number))
        )
        shares = torch.bincount(y, minlength=images.classes).double() / len(y)
        chosen = methods.installed(NONE, EXACT, ENTROPY, GUARD, CALIBRATED)
        chosen[TRUE] = partial(methods.corrected, shares.tolist())
        about = {
            "images": job.images,
            "half": _half(job.images),
            "corruption": corruption,
            "severity": severity if corruption not in (CLEAN, INVERT) else 0,
            "classes": mix,
            "size": size,
        }
        target = Target(job.images, spoilt, y, about)
        found += harness.rows(source, target, chosen, lambda out, _: {"choice": out.choice})
    return [{"seed": job.seed, "architecture": job.architecture, **row} for row in found]


def _images(name: str) -> Images:
    if name not in FEW:
        return named(name)
    of, classes = FEW[name]
    return some(name, named(of), classes)


def _half(name: str) -> str:
    if name in FEW:
        return "reported, few classes"
    return "reported" if name in REPORTED else "chosen on"


def _of_few(labels: Tensor, mix: str, count: int, rng: np.random.Generator) -> Tensor:
    k = int(labels.max()) + 1
    shares = {
        ALIKE: np.full(k, 1 / k),
        ALONE: rng.permutation(np.eye(k)[0]),
        DIRICHLET: rng.dirichlet([0.5] * k),
    }
    return of_shares(labels, shares[mix], count, rng)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return, for each half and method, accuracy, harm, regret, and what is kept of the gain.

    Harm is an accuracy more than one point below the source net's on that target. Regret is against
    the better of source and plain AdaBN on each target, below 0 where a method is better than that.
    Kept is the share of plain AdaBN's gain, summed over balanced corrupted targets.
    """
    return _table(frame, ["half"])


def by_images(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the same for each set of images."""
    return _table(frame, ["half", "images"])


def _table(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    found = []
    for values, part in frame.groupby(keys, sort=False):
        for method, rows in part.groupby("method", sort=False):
            found.append(
                {**dict(zip(keys, values, strict=True)), "method": method, **_figures(rows, part)}
            )
    return pd.DataFrame(found)


_TARGET = ["images", "architecture", "seed", "corruption", "severity", "classes", "size"]


def _figures(rows: pd.DataFrame, every: pd.DataFrame) -> Row:
    after = rows.set_index(_TARGET)["after"]
    exact = every[every["method"] == EXACT].set_index(_TARGET)["after"]
    before = rows.set_index(_TARGET)["before"]
    level = after.index.get_level_values
    even = level("classes").isin([BALANCED, ALIKE]) & ~np.isin(level("corruption"), [CLEAN])
    full = exact.reindex(before.index)
    return figures_of(before.to_numpy(), after.to_numpy(), full.to_numpy(), np.asarray(even))


def figures_of(before: Floats, after: Floats, full: Floats, even: NDArray[np.bool_]) -> Row:
    """Return what `summary` says of targets, of accuracies on each.

    Args:
        before: of the source.
        after: of what is judged.
        full: of plain AdaBN.
        even: which targets are corrupted and have all classes alike.
    """
    change, regret = after - before, np.maximum(before, full) - after
    gain = (full - before)[even].sum()
    return {
        "accuracy, %": round(100 * float(after.mean()), 1),
        "harm, %": round(100 * float((change < -HARM - 1e-9).mean()), 1),
        "over 5 points, %": round(100 * float((change < -MUCH - 1e-9).mean()), 1),
        "worst, points": round(100 * float(change.min()), 1),
        "regret, points": round(100 * float(regret.mean()), 1),
        "kept, %": round(100 * float(change[even].sum() / gain), 1) if gain > 0 else None,
        "targets": len(after),
    }


def harmed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return every target that is reported and that a guard harmed by more than a point."""
    bad = frame["method"].isin([GUARD, CALIBRATED]) & frame["half"].str.startswith("reported")
    found = frame[bad & (frame["change"] < -HARM - 1e-9)].sort_values("change")
    columns = ["method", "images", "architecture", "seed", "corruption", "severity", "classes"]
    shown = found[[*columns, "samples", "choice"]].copy()
    for name in ("before", "after"):
        shown[f"{name}, %"] = (100 * found[name]).round(1)
    return shown


def figure(frame: pd.DataFrame) -> "Figure":
    """Draw the change against the source, target by target in order, a line a method."""
    drawn_ = new_figure(11, 5)
    every = drawn_.subplots(1, 2, sharey=True)
    for axes, half in zip(every, ("chosen on", "reported"), strict=True):
        part = frame[frame["half"] == half]
        for name, rows in part[part["method"] != NONE].groupby("method", sort=False):
            change = 100 * rows["change"].sort_values().to_numpy()
            axes.plot(np.linspace(0, 100, len(change)), change, label=name)
        axes.axhline(0, color="grey", linewidth=1)
        axes.set(title=f"images that constants were {half}" if half == "chosen on" else half)
        axes.set_xlabel("share of targets, %")
    every[0].set_ylabel("change against the source, points")
    figures.legend_below(drawn_, every[0])
    return drawn_
