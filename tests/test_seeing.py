"""What a run sees beside its scores: features in the same pass, and pictures of what changed."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from adaptkit import DataError, Transform, evaluate, image_folder
from adaptkit.data import ImageLoader
from adaptkit.features import NoFeaturesError, Tap, features
from adaptkit.pipeline.opening import Head
from adaptkit.pipeline.pictures import pictures
from adaptkit.pipeline.scoring import score_and_see

CLASSES = Head("classes", 4)


class Net(nn.Module):
    """Gives logits; its last linear layer runs so many times."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.head, self.times = nn.Linear(4, 4), times

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        for _ in range(self.times):
            x = self.head(x)
        return x


@pytest.fixture
def images(tmp_path: Path) -> ImageLoader:
    rng = np.random.default_rng(0)
    for k in range(20):
        size = (8, 8) if k else (300, 200)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(tmp_path / f"{k:02}.png")
    (tmp_path / "07.png").write_bytes(b"broken")
    return image_folder(
        tmp_path, transform=Transform((8, 8), channels=1, mean=(0.5,), std=(0.5,)), batch_size=6
    )


def test_features_come_with_the_scores(images: ImageLoader) -> None:
    net = Net()
    scores, vectors = score_and_see(net, images, CLASSES, most=100, seed=0)
    assert scores is not None
    assert len(scores) == 19
    np.testing.assert_array_equal(vectors, features(net, images))
    np.testing.assert_array_equal(scores.confidence, evaluate(net, images).confidence)
    assert not net.head._forward_pre_hooks


def test_the_same_few_are_taken_each_time(images: ImageLoader) -> None:
    net = Net()
    every = features(net, images)
    few = [score_and_see(net, images, CLASSES, most=5, seed=1)[1] for _ in range(2)]
    assert few[0] is not None
    assert 4 <= len(few[0]) <= 5  # one that was drawn may be the broken one
    np.testing.assert_array_equal(few[0], few[1])
    assert all((every == row).all(1).any() for row in few[0])


def test_a_model_without_one_vector_an_image_is_scored_all_the_same(images: ImageLoader) -> None:
    scores, vectors = score_and_see(Net(times=2), images, CLASSES, most=5, seed=0)
    assert scores is not None
    assert len(scores) == 19
    assert vectors is None
    assert score_and_see(Net(), images, Head("other", None), most=5, seed=0) == (None, None)


class Rows(nn.Module):
    """Passes several rows an image through its linear layer: crops, or time steps first."""

    def __init__(self, steps_first: bool) -> None:
        super().__init__()
        self.head, self.steps_first = nn.Linear(16, 4), steps_first

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.adaptive_avg_pool2d(x, (6, 16)).squeeze(1)  # (N, T, D)
        if self.steps_first:
            x = self.head(x.transpose(0, 1)).mean(0)
        else:
            x = self.head(x.flatten(0, 1)).unflatten(0, (-1, 6)).mean(1)
        return x


@pytest.mark.parametrize("steps_first", [False, True])
def test_rows_that_are_not_images_are_not_taken_for_them(
    images: ImageLoader, steps_first: bool
) -> None:
    """As many time steps as images in a batch (6) would look like one row an image."""
    scores, vectors = score_and_see(Rows(steps_first), images, CLASSES, most=5, seed=0)
    assert scores is not None
    assert len(scores) == 19
    assert vectors is None
    if not steps_first:
        with pytest.raises(NoFeaturesError, match="36 rows for 6 samples"):
            features(Rows(steps_first), images)


def test_what_a_tap_cannot_take() -> None:
    net = Net(times=2)
    with Tap(net) as tap:
        net(torch.zeros(1, 1, 8, 8))
        with pytest.raises(NoFeaturesError, match="2 times"):
            tap.take()
        with pytest.raises(DataError, match="not at all"):
            tap.take()


def test_pictures_are_small_and_named(images: ImageLoader) -> None:
    nets = Net(), Net()
    nets[1].head.weight.data.neg_()
    before, after = (evaluate(net, images) for net in nets)
    found = list(pictures(before, after, images, ["a", "b", "c", "d"]))
    moved = before.predictions != after.predictions
    surer = after.confidence > before.confidence
    for kind, which in (("best", surer), ("worst", ~surer)):
        want = min(int((moved & which).sum()), 12)
        assert sum(p.kind == kind for p in found) == want
    assert found
    paths = [images.paths()[place].as_posix() for place in images.kept()]
    for picture in found:
        place = paths.index(picture.name)
        assert picture.before[0] == "abcd"[before.predictions[place]]
        assert picture.after == ("abcd"[after.predictions[place]], after.confidence[place])
        assert picture.label is None
        large = picture.name == "00.png"
        assert picture.media == ("image/jpeg" if large else "image/png")
        assert picture.data.startswith(b"\xff\xd8" if large else b"\x89PNG")
        assert len(picture.data) < 10_000


def test_pictures_are_of_what_was_read_and_need_no_file(images: ImageLoader) -> None:
    nets = Net(), Net()
    nets[1].head.weight.data.neg_()
    before, after = (evaluate(net, images) for net in nets)
    first = next(iter(pictures(before, after, images, None)))
    Path(str(images.listing.root), first.name).unlink()
    again = next(iter(pictures(before, after, images, None)))
    assert again == first
    seen = Image.open(io.BytesIO(again.data))
    height, width = images.transform.image_size  # type: ignore[union-attr]
    assert seen.size == (width, height)
