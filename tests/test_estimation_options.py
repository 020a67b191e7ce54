"""What estimate() takes: layers, weights, tolerance, streaming, precision, all kinds of norms."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from reference import by_definition, channel_statistics, inputs_seen, worst_error
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adaptkit import EstimationError, Statistics, adapt, certify, estimate, norms
from adaptkit.norms import norm_layers, without_statistics


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
        nn.BatchNorm1d(4),
    )


def images(n: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    brightness = torch.randn(n, 1, 1, 1, generator=g)
    return torch.randn(n, 3, 10, 10, generator=g) + brightness


def arrays(statistics: Statistics) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {k: (m.mean.numpy(), m.variance().numpy()) for k, m in statistics.items()}


# Which layers.


def test_layers_by_name_glob_and_predicate() -> None:
    model, x = net(), images(40)
    assert list(estimate(model, [x], layers="4")) == ["4"]
    assert list(estimate(model, [x], layers=["1", "9*"])) == ["1", "9"]
    by_kind = estimate(model, [x], layers=lambda _, layer: isinstance(layer, nn.BatchNorm1d))
    assert list(by_kind) == ["9"]
    with pytest.raises(EstimationError, match=r"no norm layer is named 'layer1\.\*': there are 1"):
        estimate(model, [x], layers=["1", "layer1.*"])
    with pytest.raises(EstimationError, match="chooses none"):
        estimate(model, [x], layers=lambda *_: False)


def test_layers_left_out_keep_their_statistics_in_the_estimate_too() -> None:
    model, x = net(), images(40)
    found = estimate(model, x.split(7), layers=["4", "9"])
    truth = by_definition(model, ["4", "9"], x)  # layer 1 still normalises by the source's
    assert max(worst_error(arrays(found), truth)) < 1e-5


def test_tracked_instance_norm_gets_the_means_over_instances() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
    )
    x = images(50)
    found = estimate(model, x.split(8))
    seen = inputs_seen(model, ["1"], x)["1"].double()
    np.testing.assert_allclose(found["1"].mean, seen.mean((2, 3)).mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found["1"].variance(), seen.var((2, 3)).mean(0), rtol=1e-5)
    # It is what torch's own training would tend to: momentum=None averages over batches.
    theirs = nn.InstanceNorm2d(4, track_running_stats=True, momentum=1.0)
    theirs(seen.float())
    assert theirs.running_var is not None
    np.testing.assert_allclose(found["1"].variance(), theirs.running_var, rtol=1e-4)
    adapted = adapt(model, x.split(8))
    assert certify(adapted, x.split(8)).worst < 1e-5


def test_sync_batchnorm_on_one_process() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(net())
    x = images(30)
    truth = by_definition(net(), ["1", "4", "9"], x)
    assert max(worst_error(arrays(estimate(model, x.split(8))), truth)) < 1e-5


def test_a_subclass_keeps_its_activation() -> None:
    class BatchNormAct(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    model = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct(4), nn.Conv2d(4, 4, 3), BatchNormAct(4))
    x = images(30)
    truth = by_definition(model, ["1", "3"], x)
    assert max(worst_error(arrays(estimate(model, x.split(8))), truth)) < 1e-5
    assert bool((adapt(model, [x])(x) >= 0).all())


def test_timm_norms_keep_their_activation() -> None:
    layers = pytest.importorskip("timm.layers")
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), layers.BatchNormAct2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
    )
    x = images(30)
    truth = by_definition(model, ["1", "3"], x)
    assert max(worst_error(arrays(estimate(model, x.split(8))), truth)) < 1e-5
    seen = nn.Sequential(*list(adapt(model, [x]).children())[:2])(x)
    assert bool((seen >= 0).all())
    assert bool((seen == 0).any())


def test_a_registered_class_counts() -> None:
    @norms.register
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(3))
            self.register_buffer("running_var", torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            shape = (-1, 1, 1)
            out: Tensor = (x - self.running_mean.view(shape)) / self.running_var.view(shape).sqrt()  # type: ignore[operator]
            return out

    model, x = nn.Sequential(Own(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), images(30)
    truth = by_definition(model, ["0", "2"], x)
    assert max(worst_error(arrays(estimate(model, x.split(8))), truth)) < 1e-5


def test_what_needs_no_adapting_is_named() -> None:
    model = nn.Sequential(
        nn.BatchNorm2d(2), nn.BatchNorm2d(2, track_running_stats=False), nn.GroupNorm(1, 2)
    )
    assert without_statistics(model) == {
        "1": "has track_running_stats=False and so uses each batch's own statistics",
        "2": "normalises each sample by itself",
    }
    assert list(norm_layers(model)) == ["0"]


def test_lazy_layers_after_their_first_forward() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    with pytest.raises(EstimationError, match="pass one batch through the model first"):
        estimate(model, [images(8)])
    model(images(2))
    assert list(estimate(model, [images(8)])) == ["1"]


def test_a_norm_layer_at_the_root() -> None:
    x = torch.randn(20, 3, 7) * 2 + 1  # (N, C, L)
    model = nn.BatchNorm1d(3)
    found = arrays(estimate(model, x.split(6)))
    truth = {"": channel_statistics(x)}
    assert max(worst_error(found, truth)) < 1e-6


# Weights.


def test_weights_balance_classes() -> None:
    """Ninety samples of one class and ten of another, weighted, are fifty and fifty."""
    x = torch.cat([torch.randn(90, 2), torch.randn(10, 2) + 5])
    label = torch.tensor([0] * 90 + [1] * 10)
    share = torch.tensor([1 / 90, 1 / 10])
    batches = [(x[i : i + 7], label[i : i + 7]) for i in range(0, 100, 7)]
    found = estimate(nn.BatchNorm1d(2), batches, weight=lambda batch: share[batch[1]])[""]
    np.testing.assert_allclose(found.mean, (x[:90].mean(0) + x[90:].mean(0)) / 2, rtol=1e-5)
    expected = np.average((x - found.mean) ** 2, axis=0, weights=share[label]) * 100 / 99
    np.testing.assert_allclose(found.variance(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (lambda _: torch.ones(3), r"tensor of shape \(20,\), got \(3,\)"),
        (lambda _: [1.0] * 20, "got list"),
        (lambda _: -torch.ones(20), "finite numbers of 0 or more"),
    ],
)
def test_bad_weights(weight: Any, message: str) -> None:
    with pytest.raises(EstimationError, match=message):
        estimate(net(), [images(20)], weight=weight)


def test_weights_that_a_layer_cannot_tell_apart() -> None:
    model = nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm1d(7))
    with pytest.raises(EstimationError, match="sees 60 rows for 20 samples"):
        estimate(model, [torch.randn(20, 3, 7)], weight=lambda b: torch.ones(len(b)))


# Tolerance and standard errors.


class Counting(TensorDataset):
    """Counts what is read."""

    read = 0

    def __getitem__(self, index: int) -> Any:
        self.read += 1
        return super().__getitem__(index)  # type: ignore[no-untyped-call]


def test_a_tolerance_reads_no_more_than_it_needs() -> None:
    data = Counting(images(4000))
    loader = DataLoader(data, batch_size=64)
    found = estimate(net(), loader, tolerance=0.08)
    assert max(found.errors().values()) <= 0.08
    assert found.samples in (256, 512, 1024)
    assert found.available == 4000
    assert data.read <= found.samples + 64
    before = estimate(net(), loader, samples=found.samples // 2)
    assert max(before.errors().values()) > 0.08  # half as many were too few


def test_a_tolerance_that_the_data_cannot_meet_says_what_was_reached() -> None:
    found = estimate(net(), [images(150)], tolerance=1e-3)
    assert found.samples == 150
    assert 1e-3 < max(found.errors().values()) < 1
    assert estimate(net(), [images(150)], tolerance=1e-3, samples=100).samples == 100


@pytest.mark.parametrize("tolerance", [0, -1])
def test_tolerance_out_of_range(tolerance: float) -> None:
    with pytest.raises(EstimationError, match="tolerance to be above 0"):
        estimate(net(), [images(8)], tolerance=tolerance)


def test_the_stated_error_is_the_spread_over_samples() -> None:
    """Of 40 estimates from different images, the first layer's means scatter as stated."""
    found = [estimate(net(), [images(64, seed=s)], layers="1") for s in range(40)]
    means = torch.stack([f["1"].mean for f in found])
    logs = torch.stack([f["1"].variance().log() for f in found])
    stated = [torch.stack([f.standard_errors()["1"][i] for f in found]).mean(0) for i in (0, 1)]
    assert bool(((means.std(0) / stated[0] - 1).abs() < 0.35).all())
    assert bool(((logs.std(0) / stated[1] - 1).abs() < 0.4).all())


# Streaming.


def test_streaming_pools_chunks_and_says_that_it_approximates() -> None:
    model, x = net(), images(1000)
    exact = estimate(model, x.split(50), samples="all")
    stream = estimate(model, x.split(50), samples="all", mode="stream")
    assert (exact.mode, stream.mode, stream.samples) == ("exact", "stream", 1000)
    # The first layer has nothing upstream, so there streaming is exact.
    torch.testing.assert_close(stream["1"].mean, exact["1"].mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(stream["1"].m2, exact["1"].m2, rtol=1e-6, atol=0)
    means, logs = worst_error(arrays(stream), arrays(exact))
    assert 0 < max(means, logs) < 0.1


@pytest.mark.parametrize("n", [1, 255, 257, 513])
def test_streaming_any_number(n: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    found = estimate(model, images(n).split(10), mode="stream")
    assert found["1"].samples == n  # a last one alone goes with those before it
    assert found["1"].count == found["1"].samples * 64


def test_streaming_keeps_a_random_order_of_sorted_data() -> None:
    x = torch.arange(2000.0).view(-1, 1)
    found = estimate(
        nn.BatchNorm1d(1), DataLoader(TensorDataset(x), batch_size=8), mode="stream", samples=500
    )
    assert found.samples == 500
    assert 850 < found[""].mean.item() < 1150


def test_mode_out_of_range() -> None:
    with pytest.raises(EstimationError, match="mode to be 'exact' or 'stream', got 'fast'"):
        estimate(net(), [images(8)], mode="fast")  # type: ignore[arg-type]
    with pytest.raises(EstimationError, match="tolerance to be above 0, with mode 'exact'"):
        estimate(net(), [images(8)], mode="stream", tolerance=0.1)


# Precision.


class Watching(nn.Module):
    """Notes the dtype that passes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add(x.dtype)
        return x


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)],
)
def test_precision_is_that_of_the_forward_pass(precision: Any, dtype: torch.dtype) -> None:
    watching = Watching()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), watching, nn.BatchNorm2d(4))
    found = estimate(model, [images(20)], precision=precision)
    assert watching.seen == {dtype}
    assert found["2"].mean.dtype == torch.float64
    exact = arrays(estimate(model, [images(20)], precision="fp32"))
    assert max(worst_error(arrays(found), exact)) < 0.02


def test_an_autocast_of_the_caller_is_kept_by_auto_and_ended_by_fp32() -> None:
    for precision, dtype in (("auto", torch.bfloat16), ("fp32", torch.float32)):
        watching = Watching()
        model = nn.Sequential(nn.Conv2d(3, 4, 3), watching, nn.BatchNorm2d(4))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            estimate(model, [images(20)], precision=precision)  # type: ignore[arg-type]
        assert watching.seen == {dtype}


def test_precision_out_of_range() -> None:
    with pytest.raises(EstimationError, match="auto, fp32, bf16 or fp16, got 'int8'"):
        estimate(net(), [images(8)], precision="int8")  # type: ignore[arg-type]


# The certificate.


@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_the_certificate_holds_for_adapted_models_only(batch_size: int) -> None:
    model, batches = net(), images(60).split(batch_size)
    adapted = adapt(model, batches)
    found = certify(adapted, batches)
    assert found.worst < 1e-5
    assert list(found.mean) == list(found.log_variance) == ["1", "4", "9"]
    assert certify(model, batches).worst > 0.1
    adapted[4].running_var[2] *= 1.001  # type: ignore[index]
    assert certify(adapted, batches).log_variance["4"] == pytest.approx(0.001, rel=0.02)


def test_the_certificate_draws_the_sample_of_the_estimate() -> None:
    loader = DataLoader(TensorDataset(images(300)), batch_size=16)
    adapted = adapt(net(), loader, samples=100, seed=7)
    assert certify(adapted, loader, samples=100, seed=7).worst < 1e-5
    assert certify(adapted, loader, samples=100, seed=8).worst > 1e-3


def test_a_constant_channel_is_certified_too() -> None:
    x = torch.cat([torch.randn(20, 1), torch.ones(20, 1)], dim=1)
    adapted = adapt(nn.BatchNorm1d(2), [x])
    assert certify(adapted, [x]).worst < 1e-5
    assert certify(nn.BatchNorm1d(2), [x]).worst == math.inf
