"""estimate() against the definition, whatever the batches; and what it leaves behind."""

import copy
import gc
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from greenlet import getcurrent, greenlet
from reference import by_definition, channel_statistics, inputs_seen, worst_error
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)
from torchvision.models import densenet121, resnet18
from torchvision.ops import FrozenBatchNorm2d

from adaptkit import EstimationError, Statistics, adapt, certify, estimate
from adaptkit.estimation.probe import probe
from adaptkit.norms import norm_layers

pytestmark = pytest.mark.filterwarnings("error")


ROWS = 16


@pytest.fixture(autouse=True)
def small_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few images make several."""
    monkeypatch.setattr("adaptkit.estimation.run.MOST_IN_MICRO_BATCH", ROWS)


@pytest.fixture
def time_limit() -> Iterator[None]:
    """End a test that stands still."""

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Residual(nn.Module):
    """Unlike images through convolutions, a skip, BatchNorm in two and one dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, eps=1e-3), nn.ReLU(), nn.Dropout(0.5)
        )
        self.head = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.body(x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def unlike_images(n: int, size: int = 12, seed: int = 0) -> Tensor:
    """Images whose brightness and contrast differ widely, sorted: the worst order for batches."""
    g = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.1, 4, n).view(n, 1, 1, 1)
    return torch.randn(n, 3, size, size, generator=g) * scale + scale


@pytest.fixture
def net() -> Residual:
    torch.manual_seed(0)
    return Residual()


def arrays(statistics: Statistics) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {k: (m.mean.numpy(), m.variance().numpy()) for k, m in statistics.items()}


@pytest.mark.parametrize("batch_size", [1, 7, 32, 64, 150])
def test_it_is_the_definition_for_every_batch_size(net: Residual, batch_size: int) -> None:
    x = unlike_images(150)
    truth = by_definition(net, list(norm_layers(net)), x)
    found = estimate(net, x.split(batch_size))
    assert list(found) == list(truth)
    assert max(worst_error(arrays(found), truth)) < 1e-5


def test_the_order_does_not_matter(net: Residual) -> None:
    x = unlike_images(150)
    truth = by_definition(net, list(norm_layers(net)), x)
    shuffled = x[torch.randperm(150, generator=torch.Generator().manual_seed(1))]
    assert max(worst_error(arrays(estimate(net, shuffled.split(16))), truth)) < 1e-5


def test_resnet18_finds_what_it_stores() -> None:
    """The certificate: the adapted model sees, at every layer, the moments it stores."""
    torch.manual_seed(0)
    model, x = resnet18(num_classes=10), unlike_images(40, size=48)
    adapted = adapt(model, x.split(7))
    names = list(norm_layers(adapted))
    assert len(names) == 20
    stored = {
        k: (m.running_mean.double().numpy(), m.running_var.double().numpy())  # type: ignore[operator]
        for k, m in norm_layers(adapted).items()
    }
    seen = {k: channel_statistics(v) for k, v in inputs_seen(adapted, names, x).items()}
    assert max(worst_error(stored, seen)) < 1e-5


def test_volumes_and_sequences() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.Flatten(2), nn.BatchNorm1d(4)
    )
    x = torch.randn(20, 1, 5, 5, 5) * torch.linspace(1, 5, 20).view(-1, 1, 1, 1, 1)
    truth = by_definition(net, ["1", "4"], x)
    assert max(worst_error(arrays(estimate(net, x.split(3))), truth)) < 1e-5


def test_frozen_batchnorm_is_re_estimated() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4), nn.ReLU())
    x = unlike_images(30)
    truth = by_definition(net, ["1"], x)
    assert max(worst_error(arrays(estimate(net, x.split(8))), truth)) < 1e-5


def test_the_same_call_gives_the_same_bytes(net: Residual) -> None:
    x = unlike_images(100)
    first, second = (estimate(net, x.split(9), samples=50) for _ in range(2))
    for name in first:
        assert torch.equal(first[name].mean, second[name].mean)
        assert torch.equal(first[name].m2, second[name].m2)


def test_the_loader_s_batch_size_does_not_change_a_bit(net: Residual) -> None:
    x = unlike_images(100)
    a, b = estimate(net, x.split(1)), estimate(net, x.split(33))
    assert all(torch.equal(a[k].m2, b[k].m2) for k in a)


# What a loader may be.


def test_labels_are_never_read_and_dicts_work(net: Residual) -> None:
    x = unlike_images(20)
    plain = estimate(net, [x])
    for batch in ((x, torch.zeros(20)), [x, ["?"] * 20], {"image": x, "label": None}, {"scan": x}):
        other = estimate(net, [batch])
        assert all(torch.equal(plain[k].mean, other[k].mean) for k in plain)


def test_forward_takes_any_batch(net: Residual) -> None:
    x = unlike_images(20)
    odd = [{"left": x[:5], "right": x[5:10]}, {"left": x[10:15], "right": x[15:]}]
    found = estimate(net, odd, forward=lambda model, b: model(torch.cat([b["left"], b["right"]])))
    truth = by_definition(net, list(norm_layers(net)), x)
    assert max(worst_error(arrays(found), truth)) < 1e-5


def test_samples_draws_a_random_subset_before_anything_is_read() -> None:
    class Counting(TensorDataset):
        read: list[int] = []  # noqa: RUF012

        def __getitem__(self, index: int) -> Any:
            self.read.append(index)
            return super().__getitem__(index)  # type: ignore[no-untyped-call]

    data = Counting(torch.arange(1000.0).view(-1, 1))
    net = nn.BatchNorm1d(1)
    # drop_last would lose samples, shuffle would draw on the global generator.
    loader = DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
    state = torch.get_rng_state()
    found = estimate(net, loader, samples=100, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert (found.samples, found.available, found.random) == (100, 1000, True)
    assert len(data.read) == 100
    chosen = np.array(data.read)
    assert 350 < chosen.mean() < 650  # not the first hundred
    assert found[""].mean.item() == pytest.approx(chosen.mean())
    data.read.clear()
    estimate(net, loader, samples=100, seed=4)
    assert sorted(data.read) != sorted(chosen)
    assert estimate(net, loader, samples="all").samples == 1000


@pytest.mark.parametrize("order", ["sequential", "subset", "own", "iterable"])
def test_loaders_of_every_make(net: Residual, order: str) -> None:
    class OwnBatches(BatchSampler): ...

    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            return iter(x)

    x = unlike_images(40)
    data = TensorDataset(x)
    loader: DataLoader[Any]
    if order == "iterable":
        loader = DataLoader(Stream(), batch_size=7)
    elif order == "own":
        loader = DataLoader(data, batch_sampler=OwnBatches(SequentialSampler(data), 7, False))
    else:
        indices = range(40) if order == "sequential" else range(10, 30)
        loader = DataLoader(data, batch_sampler=BatchSampler(SubsetRandomSampler(indices), 7, True))
        x = x[list(indices)]
    truth = by_definition(net, list(norm_layers(net)), x)
    found = estimate(net, loader)
    assert found.samples == len(x)
    assert max(worst_error(arrays(found), truth)) < 1e-5


def test_a_plain_iterable_gives_its_first_samples() -> None:
    x = torch.arange(100.0).view(-1, 1)
    found = estimate(nn.BatchNorm1d(1), iter(x.split(8)), samples=20)
    assert (found.samples, found.available, found.random) == (20, None, False)
    assert found[""].mean.item() == x[:20].mean().item()


@pytest.mark.parametrize("samples", [0, -3, 1.5, "most"])
def test_samples_out_of_range(net: Residual, samples: Any) -> None:
    with pytest.raises(EstimationError, match="samples to be 1 or more, or 'all'"):
        estimate(net, [unlike_images(4)], samples=samples)


# What may stand in the data.


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_sample_that_is_not_finite_is_left_out(net: Residual, poison: float) -> None:
    x = unlike_images(30)
    clean = estimate(net, [torch.cat([x[:4], x[5:]])])
    x[4, 1, 2, 3] = poison
    found = estimate(net, x.split(10))
    assert (found.samples, found.dropped) == (29, 1)
    for name in found:
        torch.testing.assert_close(found[name].mean, clean[name].mean, rtol=1e-5, atol=1e-6)
    with pytest.raises(EstimationError, match="batch 0 holds 1 samples with NaN or infinity"):
        estimate(net, x.split(10), on_bad="raise")
    with pytest.raises(EstimationError, match="no data to estimate from: 1 samples were not"):
        estimate(net, [x[4:5]])


def test_no_data(net: Residual) -> None:
    with pytest.raises(EstimationError, match="the loader is empty"):
        estimate(net, [])


def test_one_image_is_enough_only_where_a_layer_sees_more_than_one_value(net: Residual) -> None:
    with pytest.raises(EstimationError, match=r"'head\.1' sees 1 value a channel in all"):
        estimate(net, [unlike_images(1)])
    maps = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert estimate(maps, [unlike_images(1)])["1"].count == 100


def test_overflow_inside_the_model_is_named() -> None:
    net = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    with torch.no_grad():
        net[0].weight.fill_(3e38)  # type: ignore[operator]
    with pytest.raises(EstimationError, match="layer '1' sees values that are not finite"):
        estimate(net, [torch.full((4, 1), 100.0)])


# Which models.


def test_a_model_without_statistics_is_told_why() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False)
    )
    with pytest.raises(
        EstimationError, match=r"1 GroupNorm normalises each sample by itself.*1 Bat"
    ):
        estimate(net, [unlike_images(4)])
    with pytest.raises(EstimationError, match="no normalisation layer at all"):
        estimate(nn.Linear(2, 2), [torch.zeros(4, 2)])


def test_a_layer_that_no_sample_passes_keeps_its_statistics() -> None:
    class Spare(nn.Sequential):
        spare = None

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self[0](x)
            return out

    net = Spare(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    found = estimate(net, [torch.randn(8, 2) + 5])
    assert found.unvisited == ("1",)
    found.apply(net)
    assert net[1].running_mean.tolist() == [0, 0]  # type: ignore[operator]
    assert net[0].running_mean.mean() > 3  # type: ignore[operator]


def test_a_shared_layer_pools_its_visits() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(x) + self.norm(x * 0 + 10)
            return out

    x = torch.tensor([[0.0], [2.0], [4.0], [6.0]])
    found = estimate(Twice(), [x[:1], x[1:]])
    assert (found["norm"].count, found["norm"].mean.item()) == (8, 6.5)


def test_wrapped_models(net: Residual) -> None:
    x = unlike_images(20)
    assert list(estimate(nn.DataParallel(net), [x])) == list(estimate(net, [x]))


@pytest.mark.usefixtures("time_limit")
@pytest.mark.parametrize("branch_at", [0, 40, 79])
def test_batches_that_pass_different_layers_are_refused(branch_at: int) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.BatchNorm1d(1), nn.BatchNorm1d(1)

        def forward(self, x: Tensor) -> Tensor:
            norm = self.a if x[-1].item() < branch_at else self.b
            out: Tensor = norm(x)
            return out

    x = torch.arange(80.0).view(-1, 1)
    if branch_at == 0:  # all go the same way
        assert list(estimate(Branching(), [x])) == ["b"]
        return
    with pytest.raises(EstimationError, match=r"is at layer 'a' where number \d+ is at layer 'b'"):
        estimate(Branching(), [x])
    assert nothing_left()


@pytest.mark.usefixtures("time_limit")
def test_layers_in_another_order_for_some_batches_are_refused() -> None:
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.BatchNorm1d(1), nn.BatchNorm1d(1)

        def forward(self, x: Tensor) -> Tensor:
            first, second = (self.a, self.b) if x[0].item() < 60 else (self.b, self.a)
            out: Tensor = second(first(x))
            return out

    with pytest.raises(EstimationError, match="same layers in the same order"):
        estimate(Either(), [torch.arange(80.0).view(-1, 1)])
    assert nothing_left()


@pytest.mark.usefixtures("time_limit")
def test_branches_that_pass_no_norm_layer_may_depend_on_the_data() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(x.relu() if x.mean() > 40 else x)
            return out

    x = torch.arange(80.0).view(-1, 1)
    assert estimate(Branching(), [x])["norm"].mean.item() == pytest.approx(39.5)


class WithModes(nn.Module):
    """Normalises within modes of torch that it sets itself, and notes those it finds after."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
        self.found: list[object] = []

    def forward(self, x: Tensor) -> Tensor:
        here = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        self.found.append(("outside", torch.is_inference_mode_enabled(), *here))
        x = self.first(x)
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            x = self.norm(x.float())
            self.found.append(("inside", torch.is_inference_mode_enabled()))
            self.found.append(torch.is_autocast_enabled("cpu"))
        with torch.enable_grad():
            out: Tensor = self.norm(self.first(x.clone()).float())
            self.found.append(("grad", torch.is_grad_enabled()))
        return out


def test_modes_that_a_model_sets_are_its_own_in_each_micro_batch() -> None:
    net = WithModes()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        estimate(net, [torch.randn(5 * ROWS, 2)])
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    expected = {("outside", False, True, torch.bfloat16), ("inside", True), False, ("grad", True)}
    assert set(net.found) == expected
    assert net.found.count(("inside", True)) == 1 + 5  # the probe and the micro-batches


# What is left behind.


def running() -> list[object]:
    """Threads, and forwards that stand half way."""
    stacks = [o for o in gc.get_objects() if issubclass(type(o), greenlet)]
    return [*threading.enumerate(), *(s for s in stacks if s and s is not getcurrent())]


@pytest.fixture(autouse=True)
def others() -> Iterator[None]:
    """What other tests keep running in this process, as a browser does, is not ours."""
    _others[:] = running()
    yield
    _others.clear()


_others: list[object] = []


def nothing_left() -> bool:
    """Whether no thread of ours runs, and no forward stands half way."""
    return not [o for o in running() if not any(o is other for other in _others)]


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "state": {k: v.clone() for k, v in model.state_dict(keep_vars=True).items()},
        "objects": {k: id(v) for k, v in model.state_dict(keep_vars=True).items()},
        "training": [m.training for m in model.modules()],
        "hooks": [len(m._forward_pre_hooks) for m in model.modules()],
        "norms": [(m.momentum, m.eps) for m in model.modules() if isinstance(m, nn.BatchNorm2d)],
    }


def assert_untouched(model: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(model)
    state, kept = before.pop("state"), after.pop("state")
    assert all(torch.equal(state[k], kept[k]) for k in state)
    assert before == after
    assert nothing_left()


def test_estimate_leaves_the_model_as_it_was(net: Residual) -> None:
    net.train()
    net.body.eval()
    before = snapshot(net)
    estimate(net, [unlike_images(40)])
    assert_untouched(net, before)


class Fails(nn.Module):
    """Raises on its n-th call, counted over micro-batches."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.at, self.error, self.calls = at, error, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return x


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
@pytest.mark.usefixtures("time_limit")
@pytest.mark.parametrize("at", [1, 2, 9])  # in the probe, the first and the last micro-batch
@pytest.mark.parametrize("place", [0, 2])
def test_an_error_in_the_model_ends_the_run_with_itself(
    error: BaseException, at: int, place: int
) -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.ReLU(), nn.BatchNorm1d(2))
    net.insert(place, Fails(at, error))
    net.train()
    before = snapshot(net)
    with pytest.raises(type(error)) as caught:
        estimate(net, [torch.randn(8 * ROWS, 2)])
    assert caught.value is error
    assert_untouched(net, before)


def test_an_error_in_the_loader_leaves_the_model(net: Residual) -> None:
    def loader() -> Iterator[Tensor]:
        yield unlike_images(4)
        raise OSError("disk gone")

    before = snapshot(net)
    with pytest.raises(OSError, match="disk gone"):
        adapt(net, loader(), inplace=True)
    assert_untouched(net, before)


def test_a_model_cannot_swallow_the_end(net: Residual) -> None:
    class Stubborn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.mean() > 2:  # the brighter half; by then the first one waits at a layer
                raise ValueError("second")
            try:
                out: Tensor = net(x)
            except Exception:  # noqa: BLE001
                out = x
            return out

    stubborn = Stubborn()
    stubborn.net = net
    with pytest.raises(ValueError, match="second"):
        estimate(stubborn, [unlike_images(64)])
    assert nothing_left()


# adapt() and Statistics.apply().


def test_adapt_returns_a_copy_unless_asked(net: Residual) -> None:
    x = unlike_images(40)
    before = snapshot(net)
    adapted = adapt(net, [x])
    assert_untouched(net, before)
    assert adapted is not net
    assert adapt(net, [x], inplace=True) is net
    for a, b in zip(adapted.state_dict().values(), net.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_only_the_statistics_change(net: Residual) -> None:
    net.train()
    adapted = adapt(net, [unlike_images(40)])
    changed = [
        k for k, v in adapted.state_dict().items() if not torch.equal(v, net.state_dict()[k])
    ]
    assert changed == [
        f"{layer}.{name}" for layer in norm_layers(net) for name in ("running_mean", "running_var")
    ]
    assert [m.training for m in adapted.modules()] == [m.training for m in net.modules()]


def test_gradients_flow_through_the_adapted_model(net: Residual) -> None:
    adapted = adapt(net, [unlike_images(40)])
    adapted.train()(unlike_images(4)).sum().backward()
    assert all(p.grad is not None for p in adapted.parameters())


def test_autocast_of_the_caller_holds_in_every_micro_batch() -> None:
    class Kind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.kinds: list[torch.dtype] = []

        def forward(self, x: Tensor) -> Tensor:
            x = self.linear(x)
            self.kinds.append(x.dtype)
            return x

    kind = Kind()
    net = nn.Sequential(kind, nn.BatchNorm1d(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        estimate(net, [torch.randn(8 * ROWS, 2)])
    assert len(kind.kinds) == 9  # a probe and the micro-batches
    assert set(kind.kinds) == {torch.bfloat16}


def test_apply_writes_all_or_nothing(net: Residual) -> None:
    found = estimate(net, [unlike_images(40)])
    other = copy.deepcopy(net)
    other.head[1] = nn.BatchNorm1d(5)
    before = snapshot(other)
    with pytest.raises(EstimationError, match=r"'head\.1' has 5 channels, the statistics 6"):
        found.apply(other)
    assert_untouched(other, before)
    del other.head[1]
    with pytest.raises(EstimationError, match=r"no norm layer 'head\.1'"):
        found.apply(other)


def test_half_precision_that_cannot_hold_the_variance_is_refused() -> None:
    net = nn.BatchNorm1d(1)
    found = estimate(net, [torch.tensor([[0.0], [1000.0]])])
    with pytest.raises(EstimationError, match=r"do not fit into torch\.float16"):
        found.apply(net.half())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_gpu_agrees_with_the_definition(net: Residual) -> None:
    x = unlike_images(150)
    truth = by_definition(net, list(norm_layers(net)), x)
    found = estimate(net, x.split(16), device="cuda")
    on_cpu = {k: (m.mean.cpu().numpy(), m.variance().cpu().numpy()) for k, m in found.items()}
    assert max(worst_error(on_cpu, truth)) < 1e-4


# Memory and work.


def test_memory_limits_the_samples_to_a_random_subset(net: Residual) -> None:
    x = unlike_images(200)
    loader = DataLoader(TensorDataset(x), batch_size=10)
    whole = estimate(net, loader)
    assert not whole.limited
    # A waiting image holds its input (3 maps) and two times eight maps of 12 x 12 floats.
    few = estimate(net, loader, memory=60 * (3 + 16) * 144 * 4)
    assert few.limited
    assert 20 <= few.samples <= 60
    ratio = few["stem.1"].variance() / whole["stem.1"].variance()
    assert bool((ratio > 0.5).all())  # the first of these sorted images have a hundredth
    with pytest.raises(EstimationError, match="memory to be a positive number"):
        estimate(net, loader, memory=0)


def test_nothing_after_the_last_norm_layer_is_computed() -> None:
    tail = Fails(at=2, error=RuntimeError("computed"))  # the probe's own call is the first
    net = nn.Sequential(nn.BatchNorm1d(2), nn.ReLU(), tail)
    estimate(net, [torch.randn(128, 2)])
    assert tail.calls == 1


def test_a_model_that_views_its_maps_as_contiguous_ones() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm1d(400)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(self.conv(x).view(len(x), -1))
            return out

    torch.manual_seed(0)
    model, x = Viewing(), unlike_images(40)
    truth = by_definition(model, ["norm"], x)
    assert max(worst_error(arrays(estimate(model, x.split(7))), truth)) < 1e-5


# Normalising in place, where nobody else reads a layer's input.


class Readers(nn.Module):
    """Layers whose input is also read afterwards, was read as the batch itself, or is their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.read_later, self.own = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.twin_a, self.twin_b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.conv(x)
        x = self.read_later(y) + y.flatten(1).view_as(y)  # a skip, by way of a view
        x = self.own(self.conv(x)).relu()
        z = self.conv(x)
        out: Tensor = self.twin_a(z) + self.twin_b(z)
        return out


def test_only_what_nobody_else_reads_is_overwritten() -> None:
    torch.manual_seed(0)
    model, x = Readers(), unlike_images(40)
    layers = norm_layers(model)
    assert probe(model.eval(), layers, x[:2] + 0, lambda m, b: m(b)).owned == {"own"}
    kept = x.clone()
    found = estimate(model, x.split(7))
    assert torch.equal(x, kept)
    truth = by_definition(model, list(layers), x)
    assert max(worst_error(arrays(found), truth)) < 1e-5
    assert not [m for m in model.modules() if "forward" in m.__dict__]


def test_densenet_whose_features_are_read_again_and_again() -> None:
    torch.manual_seed(0)
    model, x = densenet121(num_classes=5), unlike_images(24, size=64)
    adapted = adapt(model, x.split(7), precision="fp32")
    assert certify(adapted, x.split(7)).worst < 1e-5


def test_a_hook_of_the_users_sees_what_the_layer_got(net: Residual) -> None:
    x, kept = unlike_images(20), []
    hook = net.stem[0].register_forward_hook(lambda _, __, out: kept.append((out, out.clone())))
    estimate(net, [x])
    hook.remove()
    assert kept
    assert all(torch.equal(out, copied) for out, copied in kept)
