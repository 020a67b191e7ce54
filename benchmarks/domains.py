"""How adapting to many domains scales with processes, and with threads in one process."""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from typing import TYPE_CHECKING

import click
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import resnet18

from adaptkit import estimate
from adaptkit.plotting import new_figure
from benchmarks.machine import described

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = 64  # pixels
BATCH = 64
MEMORY = 2**30  # of one estimation: the same for all, whatever the others leave free
AGREE = 1e-5  # standard deviations
SETTINGS = [(method, workers) for method in ("processes", "threads") for workers in (1, 2, 4)]
_STYLES = {"processes": ("#0072B2", "o"), "threads": ("#D55E00", "s")}  # Okabe and Ito's colours

_held: list[tuple[nn.Module, Tensor]] = []  # of a worker: the model, and the images by domain


def run(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Time a ResNet-18 adapted to many domains on the CPU, the settings in turn.

    Raises:
        RuntimeError: a setting finds other statistics than the first one did.
    """
    domains, images, rounds = (4, 64, 1) if quick else (8, 1024, 3)
    rows = []
    expected: NDArray[np.float64] | None = None
    for number in range(1, rounds + 1):
        for method, workers in SETTINGS:
            processes, threads = (workers, 1) if method == "processes" else (1, workers)
            seconds, found = adapted(domains, images, processes=processes, threads=threads)
            expected = found if expected is None else expected
            apart = difference(found, expected)
            rows.append(
                {
                    "case": f"{domains} domains of {images:,} images, {SIZE} px",
                    "architecture": "resnet18",
                    "method": method,
                    "workers": workers,
                    "round": number,
                    "samples": domains * images,
                    "seconds": round(seconds, 3),
                    "largest difference": apart,
                    **described(),
                    "device": "cpu",
                    "threads": str(threads),
                }
            )
            click.echo(f"{workers} {method:<10} {seconds:7.2f} s", err=True)
            if not apart <= AGREE:  # NaN too
                raise RuntimeError(
                    f"{workers} {method} found statistics {apart:.1e} deviations apart"
                )
    frame = pd.DataFrame(rows)
    return frame, summary(frame)


def adapted(
    domains: int, images: int, *, processes: int, threads: int
) -> tuple[float, NDArray[np.float64]]:
    """Estimate statistics on each domain, in processes of so many threads.

    Returns:
        Seconds from when all processes are warm, and (domains, 2, channels of all layers): means
        and standard deviations.
    """
    context = get_context("spawn")
    shared = threads, domains, images, context.Barrier(processes)
    with ProcessPoolExecutor(processes, context, _warm_up, shared) as pool:
        # One starts for each of these, and none ends before all processes are warm.
        list(pool.map(_is_warm, range(processes)))
        start = time.perf_counter()
        found = list(pool.map(_statistics, range(domains)))
        seconds = time.perf_counter() - start
    return seconds, np.stack(found)


def _warm_up(threads: int, domains: int, images: int, all_warm: Barrier) -> None:
    """Make what a worker needs, and wait for the others."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = resnet18().eval()
    x = torch.stack([_domain(number, images) for number in range(domains)])
    with torch.no_grad():
        model(x[0, :2].float())
    _held.append((model, x))
    all_warm.wait()


def _is_warm(_: int) -> bool:
    return bool(_held)


def _domain(number: int, images: int) -> Tensor:
    """Return images (N, 3, 64, 64), uint8: noise in patches of 1, 2, 4 or 8 px."""
    patch = 2 ** (number % 4)
    generator = torch.Generator().manual_seed(number)
    shape = images, 3, SIZE // patch, SIZE // patch
    small = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return small.repeat_interleave(patch, 2).repeat_interleave(patch, 3)


def _statistics(domain: int) -> NDArray[np.float64]:
    """Return the means and standard deviations of all layers, one after the other."""
    model, x = _held[-1]
    batches = (part.float() / 255 for part in x[domain].split(BATCH))
    found = estimate(model, batches, samples="all", memory=MEMORY)
    if found.samples < x.shape[1]:
        raise RuntimeError(f"memory allowed {found.samples} of {x.shape[1]} images only")
    means = [moments.mean for moments in found.values()]
    variances = [moments.variance() for moments in found.values()]
    # Not as tensors, which would come through shared memory and its open files.
    return torch.stack([torch.cat(means), torch.cat(variances).sqrt()]).numpy()


def difference(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Return the largest difference of a mean or a standard deviation, in standard deviations."""
    return float((np.abs(found - expected) / expected[:, 1:]).max())


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row a method and number of workers, from the medians over rounds.

    Efficiency is the speed, one worker being 1, over the cores that the workers can have.
    """
    groups = frame.groupby(["method", "workers"], sort=False)
    table = groups[["seconds"]].median().reset_index()
    samples = groups["samples"].first().to_numpy()
    table["images per second"] = (samples / table["seconds"]).round(1)
    speed = _speed(table)
    cores = int(frame["cores"].iloc[0])
    table["speed, 1 worker = 1"] = speed.round(2)
    table["efficiency"] = (speed / table["workers"].clip(upper=cores)).round(2)
    table["largest difference"] = groups["largest difference"].max().to_numpy()
    return table


def _speed(table: pd.DataFrame) -> "pd.Series[float]":
    alone = table[table["workers"] == 1].set_index("method")["seconds"]
    return table["method"].map(alone) / table["seconds"]


def figure(frame: pd.DataFrame) -> "Figure":
    """Draw the speed, one worker being 1, against the number of workers.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    drawn = new_figure(7, 5)
    axes = drawn.subplots()
    table = frame.groupby(["method", "workers"], sort=False)["seconds"].median().reset_index()
    table["speed"] = _speed(table)
    workers = sorted(table["workers"].unique())
    cores = int(frame["cores"].iloc[0])
    axes.plot(workers, workers, "--", color="grey", label="ideal")
    axes.axvline(cores, linestyle=":", color="black", label=f"cores of this machine: {cores}")
    for method, part in table.groupby("method", sort=False):
        colour, marker = _STYLES[str(method)]
        axes.plot(part["workers"], part["speed"], color=colour, marker=marker, label=str(method))
    axes.set(xlabel="workers (processes or threads)", ylabel="speed, one worker = 1")
    axes.set_xticks(workers)
    axes.set_ylim(bottom=0)
    axes.set_title(f"{frame['case'].iloc[0]}: speed against workers")
    axes.grid(alpha=0.3)
    axes.legend()
    return drawn
