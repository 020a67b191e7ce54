"""How fast statistics are re-estimated, side by side with what people use today.

`python -m benchmarks.throughput METHOD IMAGES` measures one method once.
"""

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click
import pandas as pd
import torch
from torch.optim.swa_utils import update_bn
from torchvision.models import resnet50

from adaptkit import estimate
from benchmarks import figures, precise_bn
from benchmarks.fresh import in_fresh_process, measured
from benchmarks.machine import described, device

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 16
METHODS = (
    "torch update_bn",
    "torch update_bn, channels-last",
    "fvcore PreciseBN",
    "fvcore PreciseBN, channels-last",
    "eval forward, fp32",
    "eval forward, fp32, channels-last",
    "eval forward, bf16, channels-last",
    "adaptkit exact, fp32",
    "adaptkit exact, bf16",
)
# In a process that has done the same before, whose allocator may still hold the memory.
WARM = tuple(
    f"{method}, again"
    for method in METHODS
    if method.startswith(("torch", "adaptkit")) or "channels-last" in method
)
_PLAIN = {
    f"adaptkit exact, {how}{again}": f"eval forward, {how}, channels-last{again}"
    for how in ("fp32", "bf16")
    for again in ("", ", again")
}


def run(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Time ResNet-50 at 224 px, the methods in turn, each time in a fresh process."""
    return _run(METHODS, quick)


def run_warm(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Time the second run in each process."""
    return _run(WARM, quick)


def _run(methods: Sequence[str], quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    images, rounds = (8, 1) if quick else (256, 5)
    methods = precise_bn.those_installed(methods)
    if quick:  # bf16 takes seven times as long on processors that have to emulate it
        methods = [method for method in methods if "bf16" not in method]
    rows = []
    for number in range(1, rounds + 1):
        for method in methods:
            found = in_fresh_process("benchmarks.throughput", method, images)
            rows.append({"method": method, "round": number, **found})
            click.echo(f"{method:<36} {found['seconds']:7.2f} s", err=True)
    frame = pd.DataFrame(rows).assign(
        case="224 px", architecture="resnet50", samples=images, batch=BATCH, **described()
    )
    return frame, summary(frame)


def one(method: str, images: int) -> dict[str, float]:
    """Measure one method in this process, after a forward of one batch to warm up."""
    torch.manual_seed(0)
    model = resnet50().eval().to(device())
    batches = list(torch.randn(images, 3, 224, 224).to(device()).split(BATCH))
    if "channels-last" in method:
        batches = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]
    bf16 = "bf16" in method
    with torch.no_grad(), torch.autocast(device().type, dtype=torch.bfloat16, enabled=bf16):
        model(batches[0])
        work = _work(method, model, batches)
        if method.endswith("again"):
            work()
        return measured(work)


def _work(method: str, model: torch.nn.Module, batches: list[torch.Tensor]) -> Callable[[], object]:
    if method.startswith("torch update_bn"):
        return lambda: update_bn(batches, model)
    if method.startswith("fvcore PreciseBN"):
        update_bn_stats = precise_bn.update_bn_stats()
        model.train()
        return lambda: update_bn_stats(model, batches, len(batches))
    if method.startswith("eval forward"):
        return lambda: [len(model(batch)) for batch in batches]
    return lambda: estimate(model, batches, samples="all")  # in the autocast around it


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Medians over rounds: seconds, and speed relative to update_bn."""
    medians = frame.groupby("method", sort=False)[["seconds", "peak MiB"]].median()
    seconds = medians["seconds"]
    medians["speed, update_bn = 1"] = (seconds.filter(like="update_bn").iloc[0] / seconds).round(2)
    medians["time, plain forward = 1"] = [
        round(seconds[name] / seconds[_PLAIN[name]], 2) if name in _PLAIN else None
        for name in medians.index
    ]
    return medians.reset_index()


def figure(frame: pd.DataFrame) -> "Figure":
    """Draw the seconds of each method."""
    what, images = frame["architecture"].iloc[0], frame["samples"].iloc[0]
    title = f"{what}, {frame['case'].iloc[0]}, {images} images: median of rounds"
    return figures.bars(frame, rows="method", value="seconds", label="time, s", title=title)


if __name__ == "__main__":
    print(json.dumps(one(sys.argv[1], int(sys.argv[2]))))
