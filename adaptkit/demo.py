"""The embedded example: real digits, a small net trained here, and four synthetic shifts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from adaptkit.checkpoint import save_checkpoint
from adaptkit.errors import OutputError
from adaptkit.layers import Style
from adaptkit.models import SmallCNN
from adaptkit.pipeline import Run, adapt_folder
from adaptkit.pipeline.common import Progress
from adaptkit.transform import Transform

TRAINED_ON = 900  # of scikit-learn's 1,797 images; the rest are the target
EPOCHS = 12
MARKER = ".adaptkit-demo"

Images = NDArray[np.float64]  # (N, 8, 8), 0 to 1


@dataclass(frozen=True)
class Shift:
    """A synthetic change of domain: a line that says what it is, and the change itself."""

    title: str
    apply: Callable[[Images, np.random.Generator], Images]


SHIFTS = {
    "target": Shift(
        "low contrast + noise",
        lambda x, rng: 0.5 + 0.6 * (x - 0.5) + rng.normal(0, 0.1, x.shape),
    ),
    "target-clean": Shift("clean (no shift)", lambda x, _: x),
    "target-bright": Shift("brightness +0.4", lambda x, _: x + 0.4),
    "target-inverted": Shift("inverted", lambda x, _: 1 - x),
}


@dataclass(frozen=True)
class Demo:
    """What the demo made and found: a run for each shift, the first being the main one."""

    folder: Path
    command: str
    runs: dict[str, Run]
    unlabelled: Run


def run_demo(folder: str | Path, *, seed: int = 0, progress: Progress | None = None) -> Demo:
    """Train a source model on real digits, write shifted targets, and adapt to each.

    Writes into `folder`: source.pt; class folders target/ and three others; target-unlabelled/, the
    images of target/ without their classes; and the adapted models and reports.

    Raises:
        OutputError: `folder` holds something that no demo made, or cannot be written.
    """
    folder = Path(folder)
    _claim(folder)
    digits = load_digits()
    images, labels = digits.images / 16, digits.target
    source = folder / "source.pt"
    model = _train(images[:TRAINED_ON], labels[:TRAINED_ON], seed, progress)
    save_checkpoint(
        source,
        model,
        arch="adaptkit:small_cnn",
        arch_kwargs={"in_channels": 1, "num_classes": 10},
        classes=[str(name) for name in digits.target_names],
        transform=TRANSFORM,
        style=Style.of(torch.from_numpy(images[:TRAINED_ON, None])),
        force=True,
    )
    for name, shift in SHIFTS.items():
        rng = np.random.default_rng(seed)
        shifted = shift.apply(images[TRAINED_ON:], rng)
        _write_images(folder / name, shifted, labels[TRAINED_ON:])
        if name == "target":
            _write_images(folder / "target-unlabelled", shifted, None)

    def adapted(name: str) -> Run:
        out = folder / ("source-adapted.pt" if name == "target" else f"source-adapted-{name}.pt")
        return adapt_folder(source, folder / name, out=out, device="cpu", seed=seed, force=True)

    runs = {name: adapted(name) for name in SHIFTS}
    return Demo(
        folder, runs["target"].report.details["command"], runs, adapted("target-unlabelled")
    )


TRANSFORM = Transform(image_size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))


def _claim(folder: Path) -> None:
    """Make the folder ours, or refuse one with somebody else's files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / MARKER).exists():
            raise OutputError(
                f"{folder} is not empty and was not made by the demo: give --out another folder"
            )
        (folder / MARKER).touch()
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror}") from None


def _train(images: Images, labels: Any, seed: int, progress: Progress | None) -> nn.Module:
    """Adam on cross-entropy; a second or two. The global random state is left as it was."""
    pixels = [Image.fromarray(_bytes(image)) for image in images]
    x = torch.stack([TRANSFORM(pixel) for pixel in pixels])
    y = torch.from_numpy(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmallCNN(in_channels=1, num_classes=10)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=1e-4)
        for epoch in range(EPOCHS):
            for index in torch.randperm(len(x)).split(64):
                loss = nn.functional.cross_entropy(model(x[index]), y[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if progress:
                progress("training", epoch + 1, EPOCHS)
    model.eval()
    return model


def _bytes(image: Images) -> NDArray[np.uint8]:
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _write_images(folder: Path, images: Images, labels: Any | None) -> None:
    for number, image in enumerate(images):
        place = folder if labels is None else folder / str(labels[number])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_bytes(image)).save(place / f"digit-{TRAINED_ON + number:04d}.png")
