"""Every method on the same weights, images and order; a row for each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click
import pandas as pd
import torch
from torch import Tensor

from adaptkit import AdaptkitError, certify
from adaptkit.paired import proportion_change
from benchmarks import images, methods, precise_bn, spoiling
from benchmarks.fresh import measured
from benchmarks.images import Images
from benchmarks.machine import described, device
from benchmarks.methods import Batches, Method, Outcome
from benchmarks.nets import Source
from benchmarks.pool import run_on_cores, say

BATCH = 64
Row = dict[str, Any]
Job = TypeVar("Job")


@dataclass(frozen=True)
class Target:
    """Images of a target domain, of 0 to 1, and their labels, in the order in which they come.

    Args:
        case: what it is, in a few words.
        x: shape (N, 1, H, W).
        y: shape (N,), for the score alone.
        about: more columns that tell it from others.
        batch: images in a batch.
        to_adapt: other images to adapt to, shape (M, 1, H, W); by default those that are scored.
    """

    case: str
    x: Tensor
    y: Tensor
    about: Mapping[str, object] = field(default_factory=dict)
    batch: int = BATCH
    to_adapt: Tensor | None = None


def taken(images: Images, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return these test images, of 0 to 1, and their labels."""
    return images.test_x[index].float() / 255, images.test_y[index]


def shuffled(count: int, seed: int) -> Tensor:
    """Return 0 … count − 1 in a random order."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def rows(
    source: Source,
    target: Target,
    chosen: Mapping[str, Method] | None = None,
    more: Callable[[Outcome, Batches], Row] = lambda _, __: {},
) -> list[Row]:
    """Run methods on a target and return a row for each.

    Where a method raises, its row has the reason in `failed` and no accuracy.

    Args:
        source: trained on another domain, or the same.
        target: to adapt to and to score.
        chosen: methods by name; by default all that are installed.
        more: gives further columns, of what a method found and the batches that it adapted to.
    """
    to_score = _batches(source, target.x, target.batch)
    to_adapt = to_score
    if target.to_adapt is not None:
        to_adapt = _batches(source, target.to_adapt, target.batch)
    before = _correct(methods.none(source, to_adapt, to_score), target.y)
    found: list[Row] = []
    for name, method in (methods.installed() if chosen is None else chosen).items():
        row: Row = {"case": target.case, "method": name, **target.about}
        row |= {"before": float(before.mean()), "samples": len(target.x)}
        try:
            outcome, cost = _measured(method, source, to_adapt, to_score)
        except (RuntimeError, ValueError, AssertionError, AdaptkitError) as error:
            found.append(row | {"failed": str(error).partition("\n")[0] or type(error).__name__})
            continue
        after = _correct(outcome, target.y)
        change = proportion_change(before, after)
        row |= {"after": float(after.mean()), "change": change.change}
        row |= {"ci_low": change.ci_low, "ci_high": change.ci_high}
        row |= {"seconds": cost["seconds"], "peak MiB": cost["peak MiB"]}
        found.append(row | more(outcome, to_adapt))
    return found


def _measured(
    method: Method, source: Source, to_adapt: Batches, to_score: Batches
) -> tuple[Outcome, dict[str, float]]:
    outcomes: list[Outcome] = []
    cost = measured(lambda: outcomes.append(method(source, to_adapt, to_score)))
    return outcomes[0], cost


def certificate(outcome: Outcome, to_adapt: Batches) -> Row:
    """How far the statistics that the net stores lie from what it sees; empty without such a net.

    The largest error of a channel, in standard deviations for means, in e-folds for variances.
    """
    if outcome.model is None:
        return {}
    return {"statistics off by": certify(outcome.model, to_adapt, samples="all").worst}


def _batches(source: Source, x: Tensor, batch: int) -> Batches:
    return source.images.standardised(x).to(device()).split(batch)  # type: ignore[no-any-return]


def _correct(outcome: Outcome, labels: Tensor) -> Any:
    return (outcome.logits.argmax(1) == labels).numpy()


def available(*names: str) -> list[str]:
    """Return which of these images are on this machine; say which are not, and how to get them."""
    there = []
    for name in names:
        try:
            images.named(name)
        except images.MissingDataError as error:
            click.echo(f"skipped {name}: {error}", err=True)
        else:
            there.append(name)
    if methods.PRECISE_BN not in methods.installed():
        click.echo(f"skipped {methods.PRECISE_BN}: {precise_bn.HINT}", err=True)
    return there


def corruptions() -> tuple[str, ...]:
    """Return the corruptions that can be made here; say which cannot."""
    there = spoiling.installed()
    missing = [name for name in spoiling.CORRUPTIONS if name not in there]
    if missing:
        click.echo(f"skipped {', '.join(missing)}: {spoiling.HINT}", err=True)
    return there


def run_all(jobs: Sequence[Job], one: Callable[[Job], list[Row]]) -> pd.DataFrame:
    """Run jobs as `every` does; return what `rows` gave them, and the machine.

    Raises:
        MissingDataError: there is no job, as the images for it are missing.
    """
    frame = _frame(every(jobs, one))
    return frame if device().type == "cuda" else frame.assign(threads="1")


def every(jobs: Sequence[Job], one: Callable[[Job], list[Row]]) -> list[Row]:
    """Run jobs on all cores, or on a GPU one after the other; return the rows in the jobs' order.

    Raises:
        MissingDataError: there is no job, as the images for it are missing.
    """
    if not jobs:
        raise images.MissingDataError("nothing to run: all images for this are missing")
    found: dict[Job, list[Row]] = {}
    if device().type == "cuda":
        for count, job in enumerate(jobs, 1):
            found[job] = one(job)
            say(count, len(jobs), job)
    else:
        found.update(run_on_cores(jobs, one))
    return [row for job in jobs for row in found[job]]


_FIRST = ("case", "method", "seed", "architecture")
_LAST = ("before", "after", "change", "ci_low", "ci_high", "samples", "seconds", "peak MiB")


def _frame(found: Sequence[Row]) -> pd.DataFrame:
    """Return all rows: what a run is, then what it gave, then the machine."""
    frame = pd.DataFrame(found)
    frame["failed"] = frame.get("failed", None)
    factors = [c for c in frame.columns if c not in (*_FIRST, *_LAST, "failed")]
    frame = frame[[*_FIRST, *factors, *_LAST, "failed"]]
    return frame.assign(**described())
