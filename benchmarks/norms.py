"""Eight norms in the same small net: accuracy, before and after AdaBN, and Jacobians.

Batch norm, Batch Renorm, IBN-a and -b make images depend on each other, and are trained in all four
conditions. Instance, group, layer and weight norm treat each image by itself, so that micro-batches
cannot change their training (tests/test_benchmark_norms.py holds that): theirs is the run of "batch
64", as the column `trained_as` says.
"""

import time
from dataclasses import dataclass
from typing import Any

import click
import pandas as pd
import torch
from torch import Tensor

from adaptkit import Evaluation, adapt, evaluate, norms
from adaptkit.diagnostics import jacobian_singular_values
from adaptkit.paired import proportion_change
from benchmarks.images import Images
from benchmarks.machine import described
from benchmarks.methods import EXACT
from benchmarks.norm_data import CORRUPTIONS, images
from benchmarks.norm_net import Placement, ResidualNet, placements
from benchmarks.norm_tables import summary
from benchmarks.norm_training import BATCH, CONDITIONS, train
from benchmarks.pool import run_on_cores

WHOLE = "batch 64"  # the condition in which Jacobians are taken, too
_AT_A_TIME = 250  # images, in evaluation
_FOR_STATISTICS = 512  # training images, for the norm statistics of a net before training


@dataclass(frozen=True)
class Job:
    """One training and its evaluation."""

    norm: str
    condition: str
    seed: int
    steps: int
    test_images: int
    jacobian_images: int


def run(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train each norm in each condition, as many at once as there are cores, each on one thread."""
    data, hint = images()
    if hint:
        click.echo(hint, err=True)
    jobs = _jobs(steps=12, test=250, jacobian=1, seeds=1) if quick else _jobs(500, 2000, 2, 3)
    rows: list[dict[str, object]] = []
    for job, found in run_on_cores(jobs, one):
        rows += _reported(job, found)
    about = {"dataset": data.name, "method": EXACT, "architecture": "residual net"}
    machine = described() | {"threads": "1", "device": "cpu"}
    frame = _sorted(pd.DataFrame(rows)).assign(**about, **machine)
    return frame, summary(frame)


def one(job: Job) -> list[dict[str, Any]]:
    """Train one net and return a row an evaluation, the clean images' first."""
    data, _ = images()
    condition = CONDITIONS[job.condition]
    place = placements(condition.batches(job.steps))[job.norm]
    torch.manual_seed(job.seed)
    model = ResidualNet(place)
    spectra = _spectra(_with_statistics(model, data), data, job, "initial")
    start = time.perf_counter()
    train(model, data, condition, job.steps, job.seed)
    seconds = round(time.perf_counter() - start, 1)
    rows = _accuracies(model, data, job.test_images)
    rows += spectra + _spectra(model, data, job, "trained")
    about = {"norm": job.norm, "condition": job.condition, "seed": job.seed}
    return [{**about, **row, "steps": job.steps, "seconds": seconds} for row in rows]


def _jobs(steps: int, test: int, jacobian: int, seeds: int) -> list[Job]:
    """Return the longest first, so that the cores end together."""
    jobs = [
        Job(norm, condition, seed, steps, test, jacobian)
        for seed in range(seeds)
        for condition in CONDITIONS
        for norm, place in placements(1).items()
        if not _shared(place, condition)
    ]
    return sorted(jobs, key=lambda job: CONDITIONS[job.condition].micro)


def _shared(place: Placement, condition: str) -> bool:
    return not place.couples and CONDITIONS[condition].micro < BATCH


def _reported(job: Job, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a job's rows, and the same for the conditions that could not have changed them."""
    reported = [{**row, "trained_as": job.condition} for row in rows]
    if job.condition == WHOLE:
        reported += [
            {**row, "condition": condition, "trained_as": WHOLE}
            for condition in CONDITIONS
            if _shared(placements(1)[job.norm], condition)
            for row in rows
            if row["samples"] is not None
        ]
    return reported


def _accuracies(model: ResidualNet, data: Images, count: int) -> list[dict[str, Any]]:
    """Accuracy on clean and on corrupted test images, before and after AdaBN on those images."""
    pixels, labels = data.first(count)
    versions: dict[str, Tensor] = {"clean": pixels}
    versions |= {name: corrupt(pixels) for name, corrupt in CORRUPTIONS.items()}
    rows = []
    for case, version in versions.items():
        x = data.standardised(version).split(_AT_A_TIME)
        batches = list(zip(x, labels.split(_AT_A_TIME), strict=True))
        before = evaluate(model, batches)
        row: dict[str, Any] = {"case": case, "samples": len(before), "before": before.accuracy}
        if norms.norm_layers(model):
            after = evaluate(adapt(model, x, samples="all"), batches)
            row |= _change(before, after)
        rows.append(row)
    return rows


def _change(before: Evaluation, after: Evaluation) -> dict[str, float | None]:
    assert before.correct is not None  # noqa: S101  the batches have labels
    assert after.correct is not None  # noqa: S101
    found = proportion_change(before.correct, after.correct)
    return {
        "after": after.accuracy,
        "change": found.change,
        "ci_low": found.ci_low,
        "ci_high": found.ci_high,
    }


def _with_statistics(model: ResidualNet, data: Images) -> ResidualNet:
    """Return a net before training with the statistics of training images.

    Those that it is made with, 0 and 1, are of no data: batch norm would be the identity.
    """
    if not norms.norm_layers(model):
        return model
    x = data.standardised(data.x[:_FOR_STATISTICS].float() / 255)
    adapted = adapt(model, x.split(_AT_A_TIME), samples="all")
    assert isinstance(adapted, ResidualNet)  # noqa: S101
    return adapted


def _spectra(model: ResidualNet, data: Images, job: Job, when: str) -> list[dict[str, Any]]:
    """Singular values over some test images: of one layer, and from the image to the features."""
    if job.condition != WHOLE:
        return []
    x = data.standardised(data.first(job.jacobian_images)[0])
    training = model.training
    with torch.no_grad():
        inner = model.eval().into_layer(x)
    model.train(training)
    rows = []
    for name, module, given in (("layer", model.layer, inner), ("body", model.body, x)):
        values = jacobian_singular_values(module, given)["singular_value"]
        low, median, high = values.quantile([0.05, 0.5, 0.95])
        rows.append(
            {
                "case": f"{name}, {when}",
                "samples": None,
                "singular_5%": low,
                "singular_50%": median,
                "singular_95%": high,
            }
        )
    return rows


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    """In the order of the norms, conditions, seeds and cases, whichever training ended first."""
    frame["norm"] = pd.Categorical(frame["norm"], list(placements(1)))
    frame["condition"] = pd.Categorical(frame["condition"], list(CONDITIONS))
    frame = frame.sort_values(["norm", "condition", "seed"], kind="stable", ignore_index=True)
    frame = frame.astype({"norm": str, "condition": str, "samples": "Int64"})
    return frame[_COLUMNS].round(6)


_COLUMNS = [
    *("norm", "condition", "seed", "case", "before", "after", "change", "ci_low", "ci_high"),
    "samples",
    *("singular_5%", "singular_50%", "singular_95%", "trained_as", "steps", "seconds"),
]
