"""How fast statistics are re-estimated, side by side with what people use today, in one run."""

import copy
import time
from collections.abc import Callable

import click
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torchvision.models import resnet50

from adaptkit import estimate
from benchmarks.machine import described

BATCH = 16
_Method = Callable[[], object]


def run(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Time ResNet-50 at 224 px, the methods in turn, five rounds after one to warm up."""
    images, rounds = (32, 1) if quick else (256, 5)
    torch.manual_seed(0)
    model = resnet50().eval()
    batches = list(torch.randn(images, 3, 224, 224).split(BATCH))
    methods = _methods(model, batches)
    rows = []
    for number in range(rounds + 1):
        for name, method in methods.items():
            start = time.perf_counter()
            method()
            seconds = time.perf_counter() - start
            if number:  # the first round warms up
                rows.append({"method": name, "round": number, "seconds": round(seconds, 3)})
            click.echo(f"{name:<36} {seconds:7.2f} s", err=True)
    frame = pd.DataFrame(rows).assign(
        case="resnet50 224px", images=images, batch=BATCH, **described()
    )
    return frame, _summary(frame)


def _methods(model: nn.Module, batches: list[Tensor]) -> dict[str, _Method]:
    theirs = copy.deepcopy(model)
    last = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]

    def forward(data: list[Tensor], bf16: bool) -> None:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            for batch in data:
                model(batch)

    methods: dict[str, _Method] = {
        "torch update_bn": lambda: update_bn(batches, theirs),
        "eval forward, fp32": lambda: forward(batches, False),
        "eval forward, fp32, channels-last": lambda: forward(last, False),
        "eval forward, bf16, channels-last": lambda: forward(last, True),
        "adaptkit exact, fp32": lambda: estimate(model, batches, samples="all", precision="fp32"),
        "adaptkit exact, bf16": lambda: estimate(model, batches, samples="all", precision="bf16"),
    }
    try:
        from fvcore.nn.precise_bn import update_bn_stats
    except ImportError:
        click.echo("fvcore is not installed (pip install fvcore): left out", err=True)
    else:
        other = copy.deepcopy(model).train()
        methods["fvcore PreciseBN"] = lambda: update_bn_stats(other, batches, len(batches))
    return methods


def _summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Medians over rounds: seconds, and speed relative to update_bn."""
    medians = frame.groupby("method", sort=False)["seconds"].median().rename("median s")
    table = medians.to_frame()
    table["speed, update_bn = 1"] = (medians["torch update_bn"] / medians).round(2)
    plain = {
        "adaptkit exact, fp32": "eval forward, fp32, channels-last",
        "adaptkit exact, bf16": "eval forward, bf16, channels-last",
    }
    table["time, plain forward = 1"] = [
        round(medians[name] / medians[plain[name]], 2) if name in plain else None
        for name in medians.index
    ]
    return table.reset_index()
