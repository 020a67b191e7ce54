"""How long the command takes until it has its first image, and to list a large folder."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.models import get_model

from adaptkit.data import list_images
from benchmarks import figures
from benchmarks.machine import described

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMPORTS = "import torch, torchvision"
ADAPT = "adaptkit adapt, to the first image"
START = "start"
_MODELS = ("resnet18", "resnet50")
_SEEN = 7  # the exit status that says the first image was there
# The first image is decoded when the second file is opened. Nothing is imported to find that out.
_TO_FIRST_IMAGE = f"""
import os, sys
folder, opened = sys.argv.pop(1), set()
def watch(event, arguments):
    if event == "open" and str(arguments[0]).startswith(folder):
        opened.add(arguments[0])
        if len(opened) == 2:
            os._exit({_SEEN})
sys.addaudithook(watch)
from cli import main
main(prog_name="adaptkit")
"""


def run(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Start the command and a bare import in turn; list a folder in turn with torchvision."""
    rounds, files = (1, 2_000) if quick else (7, 100_000)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        rows = _starts(root, rounds)
        rows += _listings(root, rounds, files)
    frame = pd.DataFrame(rows)
    frame = frame.assign(**{**described(), "threads": "1"})
    return frame, summary(frame)


def _starts(root: Path, rounds: int) -> list[dict[str, object]]:
    images = root / "images"
    images.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (8, 256, 256, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(images / f"{number}.jpg")
    commands = {(IMPORTS, "none"): [sys.executable, "-c", IMPORTS]}
    for name in _MODELS:
        torch.save(get_model(name, weights=None).state_dict(), root / f"{name}.pt")
        options = ["--source", root / f"{name}.pt", "--target", images, "--out", root / "out.pt"]
        watched = [sys.executable, "-c", _TO_FIRST_IMAGE, images, "adapt", *options]
        commands[ADAPT, name] = [str(word) for word in watched]
    rows: list[dict[str, object]] = []
    for number in range(rounds + 1):
        for (method, name), command in commands.items():
            found = _timed(command, _SEEN if method == ADAPT else 0)
            if number:  # the first round brings the files into memory
                about = {"case": START, "method": method, "architecture": name, "samples": 0}
                rows.append({**about, "round": number, **found})
                click.echo(f"{method:<38}{name:<10}{found['seconds']:8.2f} s", err=True)
    return rows


def _timed(command: list[str], status: int) -> dict[str, float]:
    """Run a command; return seconds by the clock and of the processor."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)  # noqa: S603
    seconds = time.perf_counter() - start
    if done.returncode != status:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr}")
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = now.ru_utime + now.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(seconds, 3), "processor s": round(used, 3)}


def _listings(root: Path, rounds: int, files: int) -> list[dict[str, object]]:
    for number in range(files):
        path = root / "flat" / f"{number:06}.jpg"
        nested = root / "nested" / f"class-{number % 100:02}" / path.name
        for each in (path, nested):
            each.parent.mkdir(parents=True, exist_ok=True)
            each.touch()
    rows: list[dict[str, object]] = []
    for number in range(1, rounds + 1):
        for case, method, list_all in (
            ("flat folder", "adaptkit list_images", list_images),
            ("100 class folders", "adaptkit list_images", list_images),
            ("100 class folders", "torchvision ImageFolder", ImageFolder),
        ):
            folder = root / ("flat" if case.startswith("flat") else "nested")
            start = time.perf_counter()
            list_all(str(folder))
            seconds = round(time.perf_counter() - start, 3)
            about = {"case": case, "method": method, "architecture": "none", "samples": files}
            rows.append({**about, "round": number, "seconds": seconds})
            click.echo(f"{case:<20}{method:<28}{seconds:8.2f} s", err=True)
    return rows


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return medians over rounds, and those of a start relative to a bare import."""
    names = ["case", "method", "architecture", "samples"]
    table = frame.groupby(names, sort=False)[["seconds", "processor s"]].median().reset_index()
    bare = table[table["method"] == IMPORTS].iloc[0]
    start = table["case"] == START
    for column in ("seconds", "processor s"):
        ratio = (table[column] / bare[column]).round(2)
        table[f"{column}, import = 1"] = ratio.where(start)
    return table.round(2).rename(columns={"samples": "files"})


def figure(frame: pd.DataFrame) -> "Figure":
    """Draw the seconds of each start."""
    starts = frame[frame["case"] == START]
    named = starts["method"] + ", " + starts["architecture"]
    rows = starts.assign(run=named.str.removesuffix(", none"))
    title = "to the first image, beside a bare import: median of rounds"
    return figures.bars(rows, rows="run", value="seconds", label="time, s", title=title)
