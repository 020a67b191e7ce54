"""What adapting costs against the size of the target: flat in it, or in proportion to it.

`python -m benchmarks.cost METHOD IMAGES` measures one method once.
"""

import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, Dataset

from adaptkit import estimate
from adaptkit.plotting import new_figure
from benchmarks import machine, precise_bn
from benchmarks.figures import style
from benchmarks.fresh import in_fresh_process, measured
from benchmarks.norm_net import ResidualNet, placements

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 64
USUAL = 200  # batches, PreciseBN's default
METHODS = (
    "adaptkit exact",
    "adaptkit exact, tolerance 5%",
    "adaptkit stream, all",
    "torch update_bn",
    "fvcore PreciseBN, all",
    f"fvcore PreciseBN, {USUAL} batches",
    "eval forward",
)
_OPTIONS: dict[str, dict[str, Any]] = {
    "adaptkit exact": {},
    "adaptkit exact, tolerance 5%": {"tolerance": 0.05},
    "adaptkit stream, all": {"mode": "stream", "samples": "all"},
}


class Images(Dataset[Tensor]):
    """Grey images of 28 px, noise with a brightness and contrast of their own.

    Each is made from its index when it is asked for, so that a million take no memory; `made`
    counts them.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.made = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.count:
            raise IndexError(index)
        self.made += 1
        generator = torch.Generator().manual_seed(index)
        brightness, contrast = torch.rand(2, generator=generator).tolist()
        return torch.randn(1, 28, 28, generator=generator).mul_(contrast).add_(brightness)


def run(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Time each method on ever larger targets, in turn, each time in a fresh process.

    Three rounds, but one of the sizes that take minutes.
    """
    rounds = {500: 1, 2_000: 1} if quick else {1_000: 3, 10_000: 3, 100_000: 1, 1_000_000: 1}
    methods = precise_bn.those_installed(METHODS)
    rows = []
    for images, times in rounds.items():
        for number in range(1, times + 1):
            for method in methods:
                found = in_fresh_process("benchmarks.cost", method, images)
                rows.append({"method": method, "round": number, "images": images, **found})
                click.echo(f"{method:<30}{images:>10,} images {found['seconds']:8.2f} s", err=True)
    frame = pd.DataFrame(rows)
    frame.insert(0, "case", "synthetic 28 px")
    frame.insert(1, "architecture", "residual net, BN")
    frame = frame.assign(**machine.described())
    return frame, summary(frame)


def one(method: str, images: int) -> dict[str, float]:
    """Measure one method in this process, after a forward of one batch to warm up."""
    model = net()
    loader = DataLoader(Images(images), BATCH)
    with torch.no_grad():
        model(next(iter(loader)).to(machine.device()))
    used: list[int] = []
    work = adapting(method, model, loader)
    found = measured(lambda: used.append(work()))
    return {"samples": used[0], **found}


def net() -> nn.Module:
    """Return the model, of random weights, in eval mode and where benchmarks compute."""
    torch.manual_seed(0)
    return ResidualNet(placements(1)["BN"]).eval().to(machine.device())


def adapting(method: str, model: nn.Module, loader: DataLoader[Tensor]) -> Callable[[], int]:
    """Return what adapts the model in place and returns how many images it used.

    Of "eval forward", which is there for scale: what passes all images and adapts nothing.
    """
    images = len(loader.dataset)  # type: ignore[arg-type]
    if method in _OPTIONS:

        def work() -> int:
            statistics = estimate(model, loader, **_OPTIONS[method])
            statistics.apply(model)
            return statistics.samples

    elif method == "torch update_bn":

        def work() -> int:
            update_bn(loader, model, device=machine.device())
            return images

    elif method.startswith("fvcore PreciseBN"):
        update_bn_stats = precise_bn.update_bn_stats()
        batches = len(loader) if method.endswith("all") else min(USUAL, len(loader))
        model.train()

        def work() -> int:
            update_bn_stats(model, _there(loader), batches)
            return min(batches * BATCH, images)

    else:

        @torch.no_grad()
        def work() -> int:
            return sum(len(model(batch)) for batch in _there(loader))

    return work


def _there(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
    return (batch.to(machine.device()) for batch in loader)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row a method: median seconds by size, and the largest over the smallest.

    What is flat in the size ends in 1, what is linear in the sizes' own ratio.
    """
    table = _medians(frame)
    sizes = [int(size) for size in table.columns]
    ratio = (table.iloc[:, -1] / table.iloc[:, 0]).round(1)
    table.columns = pd.Index([f"{size:,} images, s" for size in sizes])
    table[f"x{sizes[-1] / sizes[0]:,.0f} costs"] = ratio
    return table.reset_index()


def _medians(frame: pd.DataFrame) -> pd.DataFrame:
    """Return seconds, one row a method in the frame's order, one column a size."""
    medians = frame.groupby(["method", "images"])["seconds"].median().unstack()
    return medians.reindex(frame["method"].unique()).rename_axis("method")


def figure(frame: pd.DataFrame) -> "Figure":
    """Draw seconds against the size of the target, one line a method.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    drawn = new_figure(10, 5)
    axes = drawn.subplots()
    table = _medians(frame)
    for method, seconds in table.iterrows():
        look = style(METHODS.index(str(method)))  # the same without fvcore
        axes.plot(table.columns, seconds, label=str(method), **look)
    axes.set(xscale="log", yscale="log", xlabel="images in the target", ylabel="time, s (median)")
    axes.set_xticks(list(table.columns), [f"{size:,}" for size in table.columns])
    axes.set_xticks([], minor=True)
    axes.set_title("What adapting costs against the size of the target")
    axes.grid(alpha=0.3)
    drawn.legend(loc="outside right upper")
    return drawn


if __name__ == "__main__":
    print(json.dumps(one(sys.argv[1], int(sys.argv[2]))))
