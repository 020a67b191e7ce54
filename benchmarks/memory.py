"""How much memory estimation and the pairwise metrics take: within their bounds.

`python -m benchmarks.memory CASE N` measures one case once.
"""

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click
import pandas as pd
import torch
from torch import Tensor
from torchvision.models import densenet121, resnet18, resnet50

from adaptkit import estimate
from adaptkit.shift import mmd2
from benchmarks import figures
from benchmarks.fresh import in_fresh_process, measured
from benchmarks.machine import described, device

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MODELS = {"resnet50": resnet50, "resnet18": resnet18, "densenet121": densenet121}
MIB = 2**20


def run(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure peaks of resident memory above what there was before, each in a fresh process."""
    allowed = (512,) if quick else (512, 1024, 2048)
    rows = []
    for model in _MODELS:
        for mib in allowed:
            rows.append(_row("exact", model, mib))
    for images in (2_000,) if quick else (5_000, 50_000):
        rows.append(_row("stream", "resnet18", images))
    for images in (2_000,) if quick else (10_000, 50_000):
        rows.append(_row("mmd2", "2,048 features", images))
    frame = pd.DataFrame(rows)
    return frame.assign(**described()), frame


def _row(mode: str, model: str, size: int) -> dict[str, object]:
    found = in_fresh_process("benchmarks.memory", mode, model, size)
    limit = {"exact": size, "stream": 300, "mmd2": 500}[mode]
    about = {"case": f"limit {limit} MiB", "method": mode, "architecture": model}
    row = {**about, "limit MiB": limit, **found}
    click.echo(str(row), err=True)
    return row


def exact(name: str, mib: int) -> dict[str, float]:
    """More images of 224 px than fit into `memory=mib`: the peak must keep within it."""
    torch.manual_seed(0)
    model = _MODELS[name]().eval().to(device())
    images = (torch.randn(16, 3, 224, 224) for _ in range(64))
    with torch.no_grad():
        model(torch.randn(2, 3, 224, 224).to(device()))
    samples = []
    found = measured(
        lambda: samples.append(
            estimate(model, images, samples="all", memory=mib * MIB, precision="fp32").samples
        )
    )
    return {"samples": samples[0], **found}


def stream(name: str, count: int) -> dict[str, float]:
    """Many small images, none of them kept by the loader."""
    torch.manual_seed(0)
    model = _MODELS[name]().eval().to(device())

    def images() -> Iterator[Tensor]:
        for _ in range(count // 50):
            yield torch.randn(50, 3, 32, 32)

    with torch.no_grad():
        model(torch.randn(50, 3, 32, 32).to(device()))
    samples = []
    found = measured(
        lambda: samples.append(estimate(model, images(), mode="stream", samples="all").samples)
    )
    return {"samples": samples[0], **found}


def metric(_: str, count: int) -> dict[str, float]:
    """Two samples of `count` rows of 2,048 features."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(count, 2048, generator=generator).to(device()) for _ in range(2))
    mmd2(x[:100], y[:100])
    found = measured(lambda: mmd2(x, y))
    return {"samples": count, **found}


def figure(frame: pd.DataFrame) -> "Figure":
    """Draw each peak beside its limit."""
    parts = (frame["method"], frame["architecture"], frame["samples"].astype(str))
    names = [", ".join(words) for words in zip(*parts, strict=True)]
    rows = pd.concat(
        frame.assign(what=what, run=names, MiB=frame[f"{what} MiB"]) for what in ("limit", "peak")
    )
    title = "memory above what there was before, by method, model and samples"
    return figures.bars(rows, rows="run", value="MiB", label="MiB", title=title, by="what")


if __name__ == "__main__":
    case = {"exact": exact, "stream": stream, "mmd2": metric}[sys.argv[1]]
    print(json.dumps(case(sys.argv[2], int(sys.argv[3]))))
