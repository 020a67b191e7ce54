"""Whether bfloat16 statistics make the same model: predictions of a trained net on real images."""

from typing import TYPE_CHECKING

import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.models import resnet18

from adaptkit import adapt, certify, evaluate
from benchmarks import figures
from benchmarks.machine import described, device

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = 64  # pixels
PRECISIONS = ("fp32", "bf16")


def run(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train a ResNet-18 on 900 digits; adapt to the others under five shifts, in both.

    Quick: to 128 of them under one.
    """
    digits = load_digits()
    small = torch.from_numpy(digits.images / 16).float().unsqueeze(1)
    x = nn.functional.interpolate(small, size=SIZE, mode="bilinear").expand(-1, 3, -1, -1)
    y = torch.from_numpy(digits.target)
    model = _trained(x[:900], y[:900], epochs=1 if quick else 4)
    rows = []
    noise = torch.randn(x[900:].shape, generator=torch.Generator().manual_seed(0))
    targets = {
        "clean": x[900:],
        "contrast 0.6 + noise 0.1": 0.5 + 0.6 * (x[900:] - 0.5) + 0.1 * noise,
        "brightness +0.4": (x[900:] + 0.4).clamp(0, 1),
        "blur": nn.functional.avg_pool2d(x[900:], 9, stride=1, padding=4),
        "inverted": 1 - x[900:],
    }
    cases, images = ([*targets][1:2], 128) if quick else ([*targets], len(x) - 900)
    for name in cases:
        target, labels = targets[name][:images], y[900 : 900 + images]
        batches = list(zip(target.split(32), labels.split(32), strict=True))
        found = {p: adapt(model, batches, precision=p) for p in PRECISIONS}
        scores = {p: evaluate(net, batches) for p, net in found.items()}
        before = evaluate(model, batches).accuracy
        for p in PRECISIONS:
            agree = float((scores["fp32"].predictions == scores[p].predictions).mean())
            off = certify(found[p], batches).worst
            row = {"case": name, "method": p, "before": before, "after": scores[p].accuracy}
            rows.append(row | {"agreement": agree, "statistics off by": off})
    frame = pd.DataFrame(rows)
    frame = frame.assign(architecture="resnet18", seed=0, samples=images, **described())
    return frame, summary(frame)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row a target: accuracies, how many predictions agree, and the certificates."""
    wide = frame.pivot(index="case", columns="method").loc[frame["case"].unique()]
    percent = (100 * wide[["before", "after", "agreement"]]).round(2)
    table = {
        "source %": percent["before", "fp32"],
        **{f"{p} %": percent["after", p] for p in PRECISIONS},
        "agreement %": percent["agreement", "bf16"],
        **{f"certificate {p}": wide["statistics off by", p] for p in PRECISIONS},
        "images": wide["samples", "fp32"],
    }
    return pd.DataFrame(table).rename_axis("target").reset_index()


def _trained(x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    """On the CPU, so that every machine has the same net."""
    torch.manual_seed(0)
    model: nn.Module = resnet18(num_classes=10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(model(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval().to(device())


def figure(frame: pd.DataFrame) -> "Figure":
    """Draw the accuracies on each target."""
    source = frame[frame["method"] == PRECISIONS[0]].assign(method="source", after=frame["before"])
    rows = pd.concat([source, frame])
    return figures.bars(
        rows.assign(accuracy=100 * rows["after"]),
        rows="case",
        value="accuracy",
        label="accuracy, %",
        title="statistics estimated in float32 and in bfloat16",
        by="method",
    )
