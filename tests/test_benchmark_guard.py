"""The guard's benchmark: targets as they are drawn, and figures against hand-made rows."""

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import guard
from benchmarks.images import CLASSES, MissingDataError, named
from benchmarks.label_shift import of_mix
from benchmarks.methods import CALIBRATED, EXACT, NONE
from benchmarks.nets import SMALL


@pytest.mark.parametrize(("mix", "present"), [("10 classes", 10), ("3 classes", 3), ("1 class", 1)])
def test_targets_have_so_many_classes_and_no_image_twice(mix: str, present: int) -> None:
    labels = torch.arange(2000) % CLASSES
    index = of_mix(labels, mix, 150, np.random.default_rng(0))
    assert len(index) == len(index.unique()) == 150
    assert len(labels[index].unique()) == present


def test_a_class_of_few_images_gives_what_it_has() -> None:
    index = of_mix(torch.arange(100) % CLASSES, "1 class", 1500, np.random.default_rng(0))
    assert len(index) == 10


def rows(method: str, *after: float) -> list[dict[str, object]]:
    targets = [
        ("contrast", "10 classes", 0.50),
        ("clean", "1 class", 0.90),
        ("fog", "10 classes", 0.20),
    ]
    return [
        {
            "method": method,
            "half": "reported",
            "images": "Fashion-MNIST",
            "architecture": "net",
            "seed": 0,
            "corruption": corruption,
            "severity": 3,
            "classes": classes,
            "size": 200,
            "samples": 200,
            "choice": None,
            "before": before,
            "after": value,
            "change": value - before,
        }
        for (corruption, classes, before), value in zip(targets, after, strict=True)
    ]


def test_figures_are_what_they_are_said_to_be() -> None:
    frame = pd.DataFrame(
        [
            *rows(NONE, 0.5, 0.9, 0.2),
            *rows(EXACT, 0.8, 0.3, 0.6),
            *rows(CALIBRATED, 0.75, 0.88, 0.65),
        ]
    )
    table = guard.summary(frame).set_index("method")
    assert table["harm, %"].tolist() == [0.0, 33.3, 33.3]
    assert table["over 5 points, %"].tolist() == [0.0, 33.3, 0.0]
    assert table["worst, points"].tolist() == [0.0, -60.0, -2.0]
    assert table["kept, %"].tolist() == [0.0, 100.0, 100.0]  # 25 + 45 of 30 + 40 points
    better = [0.8, 0.9, 0.6]
    regret = 100 * (np.mean(better) - np.mean([0.75, 0.88, 0.65]))
    assert table["regret, points"][CALIBRATED] == pytest.approx(regret, abs=0.05)
    failing = guard.harmed(frame)
    assert failing["corruption"].tolist() == ["clean"]
    assert guard.by_images(frame)["images"].unique().tolist() == ["Fashion-MNIST"]
    assert guard.figure(frame.assign(half="chosen on")) is not None


def test_colour_digits_are_colour_and_differ_from_each_other() -> None:
    try:
        images = named("colour digits")
    except MissingDataError:
        pytest.skip("MNIST is missing")
    assert images.channels == 3
    assert images.x.shape == (3000, 3, 28, 28)
    grey = images.x.float().std(1).mean()
    assert grey > 10  # channels differ
    means = images.x[:200].float().mean((2, 3))
    assert means.std(0).min() > 15  # and so do images


def test_nets_of_few_classes_meet_mixes_of_these() -> None:
    try:
        found = pd.DataFrame(guard.one(guard.Job("three of colour digits", SMALL, 0, 5, 2)))
    except MissingDataError:
        pytest.skip("MNIST is missing")
    assert set(found["half"]) == {"reported, few classes"}
    assert set(found["classes"]) <= set(guard.MIXES_OF_FEW)
    assert found.groupby("method").size().unique().tolist() == [2]
    assert "failed" not in found
