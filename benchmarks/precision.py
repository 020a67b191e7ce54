"""Whether bfloat16 statistics make the same model: predictions of a trained net on real images."""

from typing import TYPE_CHECKING

import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.models import resnet18

from adaptkit import adapt, certify, evaluate
from benchmarks import figures
from benchmarks.machine import described

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = 64  # pixels


def run(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train a ResNet-18 on 900 digits; adapt to the others under five shifts, in both."""
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
    for name, target in targets.items():
        batches = list(zip(target.split(32), y[900:].split(32), strict=True))
        found = {p: adapt(model, batches, precision=p) for p in ("fp32", "bf16")}
        scores = {p: evaluate(net, batches) for p, net in found.items()}
        agree = float((scores["fp32"].predictions == scores["bf16"].predictions).mean())
        rows.append(
            {
                "target": name,
                "source %": round(100 * (evaluate(model, batches).accuracy or 0), 2),
                "fp32 %": round(100 * (scores["fp32"].accuracy or 0), 2),
                "bf16 %": round(100 * (scores["bf16"].accuracy or 0), 2),
                "agreement %": round(100 * agree, 2),
                "certificate fp32": f"{certify(found['fp32'], batches).worst:.1e}",
                "certificate bf16": f"{certify(found['bf16'], batches).worst:.1e}",
            }
        )
    frame = pd.DataFrame(rows)
    return frame.assign(images=len(x) - 900, **described()), frame


def _trained(x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = resnet18(num_classes=10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(model(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    return model


def figure(frame: pd.DataFrame) -> "Figure":
    """Draw the accuracies on each target."""
    kinds = ["source %", "fp32 %", "bf16 %"]
    rows = frame.melt("target", kinds, var_name="statistics", value_name="accuracy")
    return figures.bars(
        rows,
        rows="target",
        value="accuracy",
        label="accuracy, %",
        title="statistics estimated in float32 and in bfloat16",
        by="statistics",
    )
