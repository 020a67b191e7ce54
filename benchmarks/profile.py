"""Where the time of exact estimation goes, beside a plain forward.

`python -m benchmarks.profile METHOD IMAGES` profiles one method once.
"""

import json
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torchvision.models import resnet50

from adaptkit import estimate
from benchmarks import figures
from benchmarks.fresh import in_fresh_process
from benchmarks.machine import described, device

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 16
METHODS = tuple(f"{what}, {how}" for how in ("fp32", "bf16") for what in ("forward", "estimate"))
_PARTS = {
    "convolution": "convolution",
    "batch_norm_update_stats": "moments",
    "var_mean": "moments",
    "batch_norm": "normalising",
    "clamp": "activation, addition, pooling",
    "relu": "activation, addition, pooling",
    "add_": "activation, addition, pooling",
    "pool": "activation, addition, pooling",
    "copy_": "copies and conversions",
}
REST = "all else (Python, switching, merging)"


def run(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Profile ResNet-50 at 224 px, each method in a fresh process."""
    images = 8 if quick else 256
    rows = []
    # bf16 takes seven times as long on processors that have to emulate it.
    methods = [method for method in METHODS if not quick or "fp32" in method]
    for method in methods:
        found = in_fresh_process("benchmarks.profile", method, images)
        rows += [{"method": method, "part": k, "seconds": v} for k, v in found.items()]
    frame = pd.DataFrame(rows)
    frame = frame.assign(case="224 px", architecture="resnet50", samples=images, **described())
    return frame, summary(frame)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return seconds by part and method."""
    table = frame.pivot_table(index="part", columns="method", values="seconds", sort=False)
    return table.fillna(0).round(2).reset_index()


def one(method: str, images: int) -> dict[str, float]:
    """Seconds of the calling thread, or of the GPU, by kind of operation."""
    torch.manual_seed(0)
    model = resnet50().eval().to(device())
    batches = list(torch.randn(images, 3, 224, 224).to(device()).split(BATCH))
    what, how = method.split(", ")
    gpu = device().type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    if what == "forward":
        batches = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]
    bf16 = torch.autocast(device().type, dtype=torch.bfloat16, enabled=how == "bf16")
    with torch.no_grad(), bf16:
        model(batches[0])
        with profile(activities=activities) as profiled, record_function("whole"):
            if what == "forward":
                for batch in batches:
                    model(batch)
            else:
                estimate(model, batches, samples="all")
    parts: Counter[str] = Counter()
    for event in profiled.key_averages():
        if gpu and "CPU" not in str(event.device_type):
            continue  # a kernel: its time is the operation's that launched it
        part = next((part for key, part in _PARTS.items() if key in event.key), REST)
        spent = event.self_device_time_total if gpu else event.self_cpu_time_total
        parts[part] += spent / 1e6
    return {name: round(seconds, 3) for name, seconds in parts.most_common()}


def figure(frame: pd.DataFrame) -> "Figure":
    """Draw the seconds of each part."""
    what, images = frame["architecture"].iloc[0], frame["samples"].iloc[0]
    title = f"{what}, {frame['case'].iloc[0]}, {images} images: where the time goes"
    return figures.bars(
        frame, rows="part", value="seconds", label="time, s", title=title, by="method"
    )


if __name__ == "__main__":
    print(json.dumps(one(sys.argv[1], int(sys.argv[2]))))
