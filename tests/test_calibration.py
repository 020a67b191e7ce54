"""What a calibration holds, against the data, and in how few bytes; files stay what they are."""

import base64
import json
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import digits
import numpy as np
import pytest
import safetensors.torch
import torch
from reference import inputs_seen
from torch import nn

from adaptkit import (
    Calibration,
    CheckpointError,
    DataError,
    EstimationError,
    Transform,
    calibrate,
    load_checkpoint,
    save_checkpoint,
)
from adaptkit.features import features
from adaptkit.guard.packing import FORMAT
from adaptkit.guard.typicality import AT, severity, spread
from adaptkit.models import SmallCNN
from adaptkit.moments import Moments
from adaptkit.norms import norm_layers, read

COUNT = 400


@cache
def net() -> nn.Module:
    return digits.net()


def pairs(size: int = 128) -> list[Any]:
    x, y = digits.images()
    return list(zip((2 * x[:COUNT] - 1).split(size), y[:COUNT].split(size), strict=True))


@cache
def calibrated() -> Calibration:
    return calibrate(net(), pairs())


def test_it_holds_what_the_model_shows_of_its_source() -> None:
    found, model = calibrated(), net()
    x, y = digits.images()
    x, labels = 2 * x[:COUNT] - 1, y[:COUNT].numpy()
    with torch.no_grad():
        p = model(x).softmax(1).double()
    predicted = p.argmax(1).numpy()
    assert found.classes == 10
    assert found.accuracy == pytest.approx((predicted == labels).mean())
    for i in range(10):
        want = np.bincount(predicted[labels == i], minlength=10)
        assert found.confusion[i].tolist() == want.tolist()
    assert found.confidence == pytest.approx(float(p.max(1).values.mean()), rel=1e-5)
    seen = inputs_seen(model, ["features.4"], x)["features.4"]
    of_three = seen[y[:COUNT] == 3].double().transpose(0, 1).flatten(1)
    np.testing.assert_allclose(found.moments.mean["features.4"][3], of_three.mean(1), atol=1e-5)
    assert list(found.typicality) == sorted(found.typicality)
    assert len(found.typicality) == len(AT)


def test_distances_are_mahalanobis_ones_to_class_means() -> None:
    found = calibrated().features
    assert found is not None
    x, y = digits.images()
    z = features(net(), [2 * x[:COUNT] - 1]).astype(np.float64)
    labels = y[:COUNT].numpy()
    means = np.stack([z[labels == k].mean(0) for k in range(10)])
    covariance = (z - means[labels]).T @ (z - means[labels]) / len(z)
    covariance += 0.01 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    away = z[:20, None] - means
    want = np.einsum("nkd,de,nke->nk", away, np.linalg.inv(covariance), away)
    np.testing.assert_allclose(found.distances(z[:20].astype(np.float32)), want, rtol=1e-4)


def test_axes_that_are_left_out_count_as_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptkit.guard import class_features

    rng = np.random.default_rng(0)
    labels = np.arange(3000) % 3
    scale = np.r_[[5.0, 3.0], np.ones(8)]
    z = (4 * labels[:, None] + rng.normal(size=(3000, 10)) * scale).astype(np.float32)
    whole = class_features.ClassFeatures.of(z, labels, 3)
    monkeypatch.setattr(class_features, "MOST_AXES", 2)
    short = class_features.ClassFeatures.of(z, labels, 3)
    assert short.axes.shape == (10, 2)
    np.testing.assert_allclose(short.distances(z[:50]), whole.distances(z[:50]), rtol=0.15)


def test_calibrating_leaves_the_model_alone_and_batches_do_not_matter() -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    once = calibrate(model, pairs(400))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    for name, mean in calibrated().moments.mean.items():
        torch.testing.assert_close(once.moments.mean[name], mean)
    assert once.typicality == pytest.approx(calibrated().typicality)


class Twice(nn.Module):
    """A net that passes one of its norm layers at two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.BatchNorm2d(1), nn.BatchNorm2d(4)
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, stride=2)
        self.last = nn.Linear(4, 10)

    def visits(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        early = self.a(self.first(x))
        return early, self.b(self.shared(early).relu())

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(self.shared(self.visits(x)[1]).relu().mean((2, 3)))


def test_visits_to_a_layer_count_together() -> None:
    torch.manual_seed(0)
    model = Twice().eval()
    x, y = (
        torch.cat([images for images, _ in pairs()]),
        torch.cat([labels for _, labels in pairs()]),
    )
    with torch.no_grad():
        both = torch.cat([visit.flatten(2) for visit in model.visits(x)], 2).double()
    squares = torch.stack([v.square().flatten(1).mean(1) for v in (x.double(), both)], 1) / (
        1 + 1e-5
    )
    for size in (50, 400):
        found = calibrate(model, pairs(size))
        assert found.typicality == pytest.approx(spread(squares.numpy(), y.numpy()), rel=1e-4)
        of_three = both[y == 3].transpose(0, 1).flatten(1).mean(1)
        torch.testing.assert_close(found.moments.mean["shared"][3], of_three, rtol=1e-5, atol=1e-5)


def test_severity_is_zero_of_the_source_and_large_of_another_domain() -> None:
    x, _ = digits.images()
    model = net()
    stored = {name: read(layer) for name, layer in norm_layers(model).items()}

    def of(inputs: torch.Tensor) -> float:
        seen = inputs_seen(model, list(stored), inputs)
        return severity({name: Moments.of(value) for name, value in seen.items()}, stored)

    assert of(2 * x[900:] - 1) < 0.1
    assert of(2 * (0.5 + 0.3 * (x[900:] - 0.5)) - 1) > 0.5


def test_bytes_give_it_back_within_float16() -> None:
    found, back = calibrated(), Calibration.from_bytes(calibrated().to_bytes())
    assert back.error < 1e-3
    assert back.confusion.tolist() == found.confusion.tolist()
    assert (back.confidence, back.typicality) == (found.confidence, found.typicality)
    assert list(back.moments.mean) == list(found.moments.mean)
    for name, mean in found.moments.mean.items():
        scale = found.moments.mixed(name, found.moments.shares)[1].sqrt()
        assert float(((back.moments.mean[name] - mean) / scale).abs().max()) < 0.01
        kept = found.moments.variance[name] > 1e-3
        torch.testing.assert_close(
            back.moments.variance[name][kept], found.moments.variance[name][kept], rtol=0.02, atol=0
        )
    assert found.features
    assert back.features
    np.testing.assert_allclose(back.features.means, found.features.means, atol=1e-2)
    assert found.maps
    assert back.maps
    np.testing.assert_allclose(back.maps.maps, found.maps.maps, atol=1e-3)
    assert back.maps.error == found.maps.error


def test_a_smaller_budget_is_kept_to_and_its_error_told() -> None:
    sizes = [len(calibrated().to_bytes(budget)) for budget in (21_500, 22_500)]
    assert sizes[0] <= 21_500
    assert sizes[1] <= 22_500
    small, larger = (Calibration.from_bytes(calibrated().to_bytes(b)) for b in (21_500, 22_500))
    assert small.error > larger.error > 1e-4
    name = "features.7"
    worst = (small.moments.mean[name] - calibrated().moments.mean[name]).abs().max()
    assert 0 < float(worst) < 1
    assert small.maps
    without = Calibration.from_bytes(calibrated().to_bytes(14_000))
    assert without.maps is None
    assert without.features
    with pytest.raises(DataError, match="allow more"):
        calibrated().to_bytes(3000)


def test_axes_are_given_up_where_little_is_allowed() -> None:
    least = Calibration.from_bytes(calibrated().to_bytes(9000))
    whole = calibrated().features
    assert least.features
    assert whole
    assert least.features.axes.shape == (64, 8)
    covariance = whole.axes @ np.diag(whole.variances) @ whole.axes.T
    kept = least.features
    trace = kept.variances.sum() + kept.rest * (64 - 8)
    assert trace == pytest.approx(np.trace(covariance), rel=1e-3)


def test_a_thousand_classes_fit_a_twentieth_of_a_checkpoint() -> None:
    """Classes that differ in ten ways are told by a product of rank ten."""
    rng = torch.Generator().manual_seed(0)
    k, c = 300, 200
    ways = torch.randn(k, 10, generator=rng).double()
    moments = calibrated().moments
    found = Calibration(
        type(moments)(
            {"a": ways @ torch.randn(10, c, generator=rng).double()},
            {"a": (0.1 * ways @ torch.randn(10, c, generator=rng).double()).exp()},
            torch.full((k,), 9.0).double(),
        ),
        None,
        None,
        np.eye(k, dtype=np.int64),
        0.9,
        (0.1, 0.2, 0.3, 0.4),
    )
    whole = len(found.to_bytes())
    back = Calibration.from_bytes(found.to_bytes(whole // 5))
    assert back.error < 0.02
    torch.testing.assert_close(back.moments.mean["a"], found.moments.mean["a"], atol=0.3, rtol=0)


def broken() -> list[bytes]:
    whole = calibrated().to_bytes()
    tensors = safetensors.torch.load(whole)
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]

    def changed(said: dict[str, Any] | None = None, **other: torch.Tensor) -> bytes:
        text = json.dumps({**json.loads(header["adaptkit"]), **(said or {})})
        return safetensors.torch.save({**tensors, **other}, {"adaptkit": text})

    nan = tensors["left"].clone()
    nan[0, 0] = torch.nan
    return [
        b"",
        b"nothing of the kind",
        whole[:-10],
        changed({"format": FORMAT + "0"}),
        changed({"widths": {"features.1": 10**9}}),
        changed({"widths": []}),
        changed({"typicality": [0.1]}),
        changed({"confidence": "high"}),
        changed({"error": float("nan")}),
        changed({"rest": 0}),
        changed(left=tensors["left"][:, :-1].contiguous()),
        changed(left=nan),
        changed(counts=torch.zeros(10)),
        changed(counts=torch.ones(9)),
        changed(predicted=torch.tensor([[100], [1]])),
        changed(predicted=torch.tensor([[-1], [1]])),
        changed(maps=tensors["maps"][:9].contiguous()),
        changed(axes=tensors["axes"][:9].contiguous()),
        changed(middle=tensors["middle"][:9].contiguous()),
        changed(middle=tensors["middle"] + 1000),
        changed(variances=-tensors["variances"]),
        changed(scale=-tensors["scale"]),
        changed({"map_scale": 1.7e308}, maps=-10 * tensors["maps"].abs()),
        changed(predicted=torch.zeros(2, 0, dtype=torch.int32)),
    ]


@pytest.mark.parametrize("number", range(24))
def test_what_is_broken_is_refused_in_a_line(number: int) -> None:
    with pytest.raises(DataError, match=r"^it is [^\n]+$"):
        Calibration.from_bytes(broken()[number])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "the loader is empty"),
        ([torch.zeros(4, 1, 8, 8)], "labels"),
        ([(torch.zeros(4, 1, 8, 8), torch.tensor([0, 0, 1, 1]))], "got 0 of class 2"),
        ([(torch.zeros(4, 1, 8, 8), torch.tensor([0, 0, 1, 99]))], "from 0 to 9"),
    ],
)
def test_source_data_that_will_not_do(batches: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        calibrate(net(), batches)


def test_samples_that_are_not_finite_are_left_out_and_such_models_refused() -> None:
    x, y = pairs(COUNT)[0]
    spoilt = torch.cat([x, torch.full_like(x[:1], torch.nan)]), torch.cat([y, y[:1]])
    found = calibrate(net(), [spoilt])
    assert found.confusion.sum() == COUNT
    model = small()
    with torch.no_grad():
        model.classifier.weight[0, 0] = torch.inf
    with pytest.raises(EstimationError, match="not finite on the source images"):
        calibrate(model, pairs())


def test_a_model_without_such_layers_cannot_be_calibrated() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(EstimationError, match="no layer with data-set statistics"):
        calibrate(model, [(torch.zeros(4, 1, 8, 8), torch.tensor([0, 0, 1, 1]))])


def small() -> SmallCNN:
    model = SmallCNN()
    model.load_state_dict(net().state_dict())
    return model.eval()


def test_a_plain_state_dict_stays_one_and_loads_as_before(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "plain.pt")
    checkpoint = load_checkpoint(tmp_path / "plain.pt", arch="adaptkit:small_cnn")
    assert checkpoint.calibration is None
    path = save_checkpoint(
        tmp_path / "known.pt", checkpoint.model, like=checkpoint, calibration=calibrated()
    )
    state = torch.load(path, weights_only=True)
    assert isinstance(state, OrderedDict)
    small().load_state_dict(state, strict=True)
    back = load_checkpoint(path, arch="adaptkit:small_cnn")
    assert back.calibration is not None
    assert back.calibration.accuracy == calibrated().accuracy


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_a_checkpoint_of_ours_holds_it_and_an_adapted_one_keeps_it(
    tmp_path: Path, name: str
) -> None:
    shape: dict[str, Any] = {
        "arch": "adaptkit:small_cnn",
        "transform": Transform((8, 8), channels=1, mean=(0.5,), std=(0.5,)),
    }
    path = save_checkpoint(tmp_path / name, small(), calibration=calibrated(), **shape)
    checkpoint = load_checkpoint(path)
    assert checkpoint.calibration is not None
    again = save_checkpoint(tmp_path / f"adapted-{name}", checkpoint.model, like=checkpoint)
    kept = load_checkpoint(again)
    assert kept.calibration is not None
    assert kept.calibration.typicality == checkpoint.calibration.typicality
    assert kept.transform == shape["transform"]


def test_a_calibration_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EstimationError, match="has 8 channels"):
        save_checkpoint(
            tmp_path / "x.pt",
            SmallCNN(width=8),
            arch="adaptkit:small_cnn",
            arch_kwargs={"width": 8},
            calibration=calibrated(),
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["not base64!", base64.b64encode(b"garbage").decode()])
def test_a_broken_one_in_a_file_is_told_when_it_is_asked_for(tmp_path: Path, text: str) -> None:
    path = save_checkpoint(tmp_path / "x.pt", small(), arch="adaptkit:small_cnn")
    tree = torch.load(path, weights_only=True)
    torch.save({**tree, "calibration": text}, path)
    checkpoint = load_checkpoint(path)
    with pytest.raises(CheckpointError, match="its calibration will not do"):
        _ = checkpoint.calibration
    torch.save({**tree, "calibration": 3}, path)
    with pytest.raises(CheckpointError, match="expected 'calibration' to be a str"):
        load_checkpoint(path)
