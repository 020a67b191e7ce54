"""What one process of a job measures, and all report together; started by `benchmarks.scaling`.

`torchrun --standalone --nproc-per-node N -m benchmarks.scaling_job FOLDER [--quick]`
"""

import json
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18, resnet50

from adaptkit import Statistics, Transform, estimate, evaluate, norms
from adaptkit.batches import call
from adaptkit.data import image_folder, list_images
from adaptkit.distributed import World
from adaptkit.distributed.launch import joined
from adaptkit.estimation.probe import probe
from benchmarks.traffic import Traffic, counted

Row = dict[str, Any]

MODELS: dict[str, Callable[[], nn.Module]] = {"resnet18": resnet18, "resnet50": resnet50}
CHANNELS = (64, 128, 256, 512, 1024, 2048)  # of a ResNet-50's norm layers
BATCH = 64
MEMORY = 3 * 2**30  # of one process's estimation: the same for all, and enough for all images
MORE = 4  # times as many images as another process has, where they are dealt out unevenly
TIMEOUT = 120.0
ORDERED = 10_000_000
EVENLY, UNEVENLY = "evenly", f"one has {MORE} times the others'"


@dataclass(frozen=True)
class Case:
    """Some work on one target, of which each process does its part."""

    method: str  # "exact" and "stream" estimate, "evaluate" scores
    architecture: str
    pixels: int
    images: int
    dealt: str = EVENLY
    dtype: torch.dtype = torch.float32
    # How far statistics may lie from those of one process, in standard deviations. A ResNet-50 of
    # random weights makes 2e-5 of float32's rounding, of one process too where it cuts its
    # micro-batches otherwise; the case in float64 shows that nothing else is in it.
    agree: float = 1e-6

    @property
    def name(self) -> str:
        """In a few words."""
        words = [f"{self.images:,} images", f"{self.pixels} px"]
        words += [self.dealt] * (self.dealt != EVENLY)
        words += ["float64"] * (self.dtype == torch.float64)
        return ", ".join(words)


CASES = (
    Case("exact", "resnet18", 64, 2048),
    Case("exact", "resnet18", 64, 2048, UNEVENLY),
    Case("exact", "resnet18", 64, 64),
    Case("exact", "resnet50", 224, 128, agree=1e-4),
    Case("exact", "resnet50", 64, 64, dtype=torch.float64, agree=1e-10),
    Case("stream", "resnet50", 64, 512),
    Case("evaluate", "resnet18", 64, 1024),
)
QUICK_CASES = (
    Case("exact", "resnet18", 64, 64),
    Case("exact", "resnet18", 64, 64, UNEVENLY),
    Case("exact", "resnet50", 64, 16, agree=1e-4),
    Case("exact", "resnet50", 64, 8, dtype=torch.float64, agree=1e-10),
    Case("stream", "resnet50", 64, 16),
    Case("evaluate", "resnet18", 64, 64),
)


class Images(Dataset[tuple[Tensor, int]]):
    """Noise in patches of 8 px, each image with a brightness and a contrast of its own; labels."""

    def __init__(self, count: int, pixels: int, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(count, 3, pixels // 8, pixels // 8, generator=generator)
        light = torch.rand(2, count, 1, 1, 1, generator=generator)
        small = noise * light[0] + light[1] * (1 - light[0])
        whole = small.repeat_interleave(8, 2).repeat_interleave(8, 3)
        self.pixels = whole.mul(255).round().byte()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pixels[index].to(self.dtype) / 255, index % 1000


def loader(case: Case, images: Images, world: World) -> Iterable[Any]:
    """Return the same loader for all processes, or for each its own of unlike parts."""
    if case.dealt == EVENLY:
        return DataLoader(images, BATCH)
    sizes = shares(len(images), world.size)
    own = images.pixels.split(sizes)[world.rank]
    return [part.to(case.dtype) / 255 for part in own.split(BATCH)]


def shares(count: int, size: int) -> list[int]:
    """Return how many images each process has if the first has `MORE` times the others'.

    >>> shares(70, 4)
    [40, 10, 10, 10]
    """
    other = count // (size - 1 + MORE)
    return [count - other * (size - 1)] + [other] * (size - 1)


def ran(case: Case, world: World, place: Path) -> Row:
    """Do one case's work; the statistics that it found go to `place`.

    Returns:
        Seconds from when all processes start until all are done, and of what each handed over that
        of the process that handed over most. "waiting %" is the processes' mean.
    """
    torch.manual_seed(0)
    model = MODELS[case.architecture]().eval().to(case.dtype)
    images = Images(case.images, case.pixels, case.dtype)
    with torch.no_grad():
        model(images[0][0][None])
    batches = loader(case, images, world)
    world.gather(None)  # all are warm
    start = time.perf_counter()
    with counted() as traffic:
        found = _done(case, model, batches)
    seconds = time.perf_counter() - start
    row: Row = {
        "case": case.name,
        "architecture": case.architecture,
        "method": case.method,
        "samples": case.images,
        **_together(world.gather((seconds, traffic))),
    }
    if found is None:
        return row
    if world.rank == 0:
        np.save(place, flat(found))
    return row | {"standard error": max(found.errors().values()), "agree": case.agree}


def _together(every: list[tuple[float, Traffic]]) -> Row:
    waiting = [100 * traffic.waited / seconds for seconds, traffic in every]
    most = max((traffic for _, traffic in every), key=lambda traffic: traffic.bytes_handed)
    return {
        "seconds": max(seconds for seconds, _ in every),
        "operations": most.operations,
        "all-reduces": most.all_reduces,
        "bytes all-reduced": most.bytes_all_reduced,
        "bytes handed": most.bytes_handed,
        "waiting %": sum(waiting) / len(waiting),
        "longest waiting %": max(waiting),
    }


def _done(case: Case, model: nn.Module, batches: Iterable[Any]) -> Statistics | None:
    if case.method == "evaluate":
        evaluate(model, batches)
        return None
    mode: Any = case.method
    found = estimate(model, batches, mode=mode, samples="all", memory=MEMORY)
    if found.samples < case.images:
        raise RuntimeError(f"{found.samples} of {case.images} images were used only")
    return found


def flat(found: Statistics) -> np.ndarray:
    """Return (2, channels of all layers): means and standard deviations."""
    means = [moments.mean for moments in found.values()]
    variances = [moments.variance() for moments in found.values()]
    return torch.stack([torch.cat(means), torch.cat(variances).sqrt()]).numpy()


def latencies(world: World, repeats: int) -> list[Row]:
    """Time one all-reduce at each size of layers, and one gather of a few bytes: medians."""
    found = []
    for channels in CHANNELS:
        sums = torch.zeros(5 + 8 * channels, dtype=torch.float64)
        seconds = _median(lambda sums=sums: world.sum(sums), repeats)  # type: ignore[misc]
        row = {"case": f"{channels} channels", "method": "all-reduce", "bytes handed": sums.nbytes}
        found.append(row | {"seconds": seconds})
    seconds = _median(lambda: world.gather(0), repeats // 10)
    return [*found, {"case": "a few bytes", "method": "gather", "seconds": seconds}]


def _median(work: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats + repeats // 10):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds[repeats // 10 :])


def decoding(world: World, folder: Path) -> list[Row]:
    """Time reading each folder of photographs, in all processes at the same time."""
    found = []
    for place in sorted(folder.glob("photographs-*")):
        batches = image_folder(place, transform=Transform((224, 224)), batch_size=BATCH)
        world.gather(None)
        start = time.perf_counter()
        count = sum(len(batch) for batch in batches)
        seconds = max(world.gather(time.perf_counter() - start))
        case = f"JPEG files of {place.name.split('-')[1]} px to 224 px"
        found.append({"case": case, "method": "decode", "samples": count, "seconds": seconds})
    return found


def in_one_process(folder: Path) -> list[Row]:
    """Measure what needs no others: bytes that wait, and what choosing among samples costs."""
    found = []
    for architecture, make in MODELS.items():
        model = make().eval()
        rows = torch.zeros(2, 3, 224, 224)
        seen = probe(model, norms.norm_layers(model), rows, call)
        each = (seen.waiting + rows.nbytes) // len(rows)
        row = {"case": "float32, 224 px", "architecture": architecture, "bytes a sample": each}
        found.append(row | {"method": "waiting activations", "visits": len(seen.visits)})
    start = time.perf_counter()
    count = len(list_images(folder / "many").paths)
    seconds = time.perf_counter() - start
    tracemalloc.start()
    kept = list_images(folder / "many")
    each = tracemalloc.get_traced_memory()[0] // len(kept.paths)
    tracemalloc.stop()
    row = {"case": "names of files", "method": "list", "samples": count, "seconds": seconds}
    found.append(row | {"bytes a sample": each})
    start = time.perf_counter()
    order = torch.randperm(ORDERED)
    seconds = time.perf_counter() - start
    row = {"case": "a random order", "method": "draw", "samples": ORDERED, "seconds": seconds}
    return [*found, row | {"bytes a sample": order.element_size()}]


def measured(folder: Path, cases: Iterable[Case], repeats: int) -> list[Row]:
    """Measure everything in the job that this process is in; the same rows in each."""
    with joined(TIMEOUT, "cpu") as world:
        rows = [ran(c, world, folder / f"found-{n}.npy") for n, c in enumerate(cases)]
        rows += latencies(world, repeats) if world.size > 1 else in_one_process(folder)
        rows += decoding(world, folder)
        return rows if world.rank == 0 else []


if __name__ == "__main__":
    quick = "--quick" in sys.argv
    of_all = measured(Path(sys.argv[1]), QUICK_CASES if quick else CASES, 20 if quick else 300)
    if of_all:
        print(json.dumps(of_all))
