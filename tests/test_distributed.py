"""Several processes find what one finds on all of their data."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import Ended, job, values
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

import adaptkit
from adaptkit import Moments, Statistics, norms
from adaptkit.distributed import ALONE, Share, Whole, World, alone, over, world
from adaptkit.domains import adapt_domains
from adaptkit.errors import DistributedError
from adaptkit.estimation import agreement
from adaptkit.features import features
from adaptkit.input_fit import fit_input
from adaptkit.models import SmallCNN

N = 53  # images: a prime, so that nothing divides evenly


@cache
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 3, 9, 9, generator=generator)
    # Domains within, and a mean far from 0, where sums of squares would lose their digits.
    return x * torch.linspace(0.5, 3, N).view(-1, 1, 1, 1) + torch.linspace(900, 1100, N).view(
        -1, 1, 1, 1
    )


def labels() -> Tensor:
    return torch.arange(N) % 4


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        shared = nn.BatchNorm2d(6)  # visited twice
        return nn.Sequential(
            nn.Conv2d(3, 6, 3),
            shared,
            nn.ReLU(),
            nn.Conv2d(6, 6, 3),
            shared,
            nn.InstanceNorm2d(6, track_running_stats=True),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 4),
            nn.BatchNorm1d(4),
        ).eval()


Flat = dict[str, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]


def flat(statistics: Statistics) -> Flat:
    """Return what other processes and the test can compare."""
    return {
        name: (m.mean.numpy(), m.variance().numpy(), torch.stack(m.standard_error()).numpy())
        for name, m in statistics.items()
    }


def assert_same(found: Flat, truth: Flat) -> None:
    """Assert 1e-6, of means in standard deviations."""
    assert list(found) == list(truth)
    for name, (mean, variance, errors) in truth.items():
        std = np.sqrt(variance)
        np.testing.assert_allclose(found[name][0] / std, mean / std, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found[name][1], variance, rtol=1e-6)
        np.testing.assert_allclose(found[name][2], errors, rtol=1e-4)


def parts(size: int) -> list[slice]:
    """Return very unequal parts of the images, the second one without any."""
    ends = [*[0, 7, 7, 40][:size], N]
    return [slice(a, b) for a, b in pairwise(ends)]


def loaders() -> dict[str, Any]:
    """Return what users' jobs have, each holding all images or this process's part."""
    rank, size = dist.get_rank(), dist.get_world_size()
    data = TensorDataset(images(), labels())
    own = images()[parts(size)[rank]]
    sampler: DistributedSampler[Any] = DistributedSampler(data, size, rank)
    return {
        "a data set": DataLoader(data, batch_size=7),
        "shuffled": DataLoader(data, batch_size=7, shuffle=True, drop_last=True),
        "sampler": DataLoader(data, batch_size=7, sampler=sampler),
        "own data sets": DataLoader(TensorDataset(own), batch_size=5),
        "lists": list(own.split(5)) if len(own) else [],
        "iterable": DataLoader(_Stream(own), batch_size=4),
    }


class _Stream(IterableDataset[Tensor]):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.x)


def estimate_all() -> dict[str, tuple[Flat, int, int | None]]:
    found = {}
    for name, loader in loaders().items():
        statistics = adaptkit.estimate(net(), loader, samples="all")
        found[name] = flat(statistics), statistics.samples, statistics.available
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_statistics_are_those_of_one_process_on_all_data(size: int) -> None:
    truth = flat(adaptkit.estimate(net(), [images()], samples="all"))
    found = values(job(size, estimate_all))
    for kind in found[0]:
        first, samples, available = found[0][kind]
        assert samples == N, kind
        assert available in (None, N), kind
        assert_same(first, truth)
        for other, _, __ in (of_rank[kind] for of_rank in found[1:]):  # to the last bit
            for name, arrays in first.items():
                for a, b in zip(arrays, other[name], strict=True):
                    np.testing.assert_array_equal(a, b)


class _Draws(Sampler[int]):
    """Gives the samples that somebody chose."""

    def __init__(self, chosen: Callable[[], NDArray[np.int64]]) -> None:
        self.chosen = chosen

    def __iter__(self) -> Iterator[int]:
        return iter(self.chosen().tolist())

    def __len__(self) -> int:
        return len(self.chosen())


class _Changing(Dataset[tuple[Tensor, int]]):
    """Draws by a generator of its own, which nobody has seeded."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng()

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.from_numpy(self.generator.standard_normal((3, 9, 9))).float()
        return images()[index] + noise, 0


def samplers(rank: int) -> dict[str, DataLoader[Any]]:
    """Return loaders of which each process draws as it likes, and the first as one process does."""
    own = np.random.default_rng(rank)
    weights = torch.arange(N).double().tolist()
    drawn = WeightedRandomSampler(weights, 40, generator=torch.Generator().manual_seed(rank))
    unseeded = _Draws(lambda: np.random.permutation(N)[:30])
    ways: dict[str, Sampler[int]] = {
        "any order": _Draws(partial(own.permutation, N)),
        "weighted": drawn,
        "numpy's": unseeded,
    }
    data = TensorDataset(images())
    return {name: DataLoader(data, batch_size=7, sampler=way) for name, way in ways.items()}


def draw_apart() -> tuple[dict[str, tuple[Flat, int]], list[str]]:
    rank, size = dist.get_rank(), dist.get_world_size()
    np.random.seed(rank)
    found = {}
    every = samplers(rank)
    filled = [*range(N), *range(-N % size)]
    parts = {"parts": range(rank, N, size), "filled up": filled[rank::size]}
    data = TensorDataset(images())
    for name, part in parts.items():
        way = _Draws(partial(np.asarray, list(part)))
        every[name] = DataLoader(data, batch_size=7, sampler=way)
    changing = _Changing()
    dealt: Sampler[int] = DistributedSampler(changing, size, rank)
    every["changing"] = DataLoader(changing, batch_size=7, sampler=dealt)
    for name, loader in every.items():
        statistics = adaptkit.estimate(net(), loader, samples="all")
        found[name] = flat(statistics), statistics.available or 0
    said = []
    subset = _Draws(lambda: np.random.default_rng(rank).choice(N, 30))
    for loader in (
        DataLoader(TensorDataset(images()), batch_size=7, sampler=subset),
        DataLoader(changing, batch_size=7),
    ):
        with pytest.raises(DistributedError) as error:
            adaptkit.estimate(net(), loader)
        said.append(str(error.value))
    return found, said


def test_what_samplers_and_data_sets_draw_by_themselves_counts_once() -> None:
    whole = adaptkit.estimate(net(), [images()], samples="all")
    loaders = samplers(0)
    truth = {name: adaptkit.estimate(net(), of, samples="all") for name, of in loaders.items()}
    truth |= dict.fromkeys(("parts", "filled up", "changing"), whole)
    for found, (overlap, unsure) in values(job(2, draw_apart)):
        for name, (statistics, available) in found.items():
            assert available == truth[name].samples, name
            if name != "changing":
                assert_same(statistics, flat(truth[name]))
        assert "choose 1" in overlap
        assert "seed them alike" in overlap
        assert "come out otherwise each time" in unsure


def options() -> list[dict[str, Any]]:
    return [
        {"samples": 20},
        {"samples": 20, "seed": 4, "prior": 6},
        {"tolerance": 0.35},
        {"samples": "all", "layers": ["1"]},
        {"samples": "all", "weight": _weight},
        {"samples": "all", "correction": _correction},
    ]


def _weight(batch: list[Tensor]) -> Tensor:
    return batch[0].mean((1, 2, 3)) - 800


def _correction(_: str, moments: Moments) -> tuple[Tensor, Tensor]:
    return moments.mean * 1.01, moments.variance() * 1.1


def estimate_with_options() -> list[tuple[Flat, int]]:
    loader = DataLoader(TensorDataset(images()), batch_size=6)
    every = [adaptkit.estimate(net(), loader, **some) for some in options()]
    return [(flat(statistics), statistics.samples) for statistics in every]


def test_options_mean_what_they_do_in_one_process() -> None:
    loader = DataLoader(TensorDataset(images()), batch_size=6)
    truth = [adaptkit.estimate(net(), loader, **some) for some in options()]
    for found in values(job(3, estimate_with_options)):
        for expected, (statistics, samples) in zip(truth, found, strict=True):
            assert samples == expected.samples
            assert_same(statistics, flat(expected))


def stream() -> tuple[Flat, int]:
    own = images()[parts(dist.get_world_size())[dist.get_rank()]]
    batches = list(own.split(4)) if len(own) else []
    found = adaptkit.estimate(net(), batches, mode="stream", samples="all")
    return flat(found), found.samples


def test_streams_are_pooled() -> None:
    found = values(job(3, stream))
    assert [samples for _, samples in found] == [N] * 3
    x = images().double()
    for statistics, _ in found:  # every process pools the streams of all
        assert sorted(statistics) == sorted(norms.norm_layers(net()))
        for name, arrays in statistics.items():
            for one, first in zip(arrays, found[0][0][name], strict=True):
                np.testing.assert_array_equal(one, first)
    for mean, variance in values(job(2, stream_first_layer)):  # before which nothing is normalised
        np.testing.assert_allclose(mean, x.mean((0, 2, 3)), rtol=1e-9)
        np.testing.assert_allclose(variance, x.var((0, 2, 3)), rtol=1e-6)


def stream_first_layer() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    own = images()[dist.get_rank() :: dist.get_world_size()]
    first = nn.Sequential(nn.BatchNorm2d(3))
    found = adaptkit.estimate(first, [own], mode="stream", samples="all")["0"]
    return found.mean.numpy(), found.variance().numpy()


def evaluate_all() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, loader in loaders().items():
        e = adaptkit.evaluate(net(), loader)
        found[name] = e.predictions, e.nll, e.labels, features(net(), loader), e.classes
    certificate = adaptkit.certify(net(), loaders()["a data set"])
    found["certificate"] = certificate.worst
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_evaluations_and_features_are_of_the_whole_in_its_order(size: int) -> None:
    loader = DataLoader(TensorDataset(images(), labels()), batch_size=7)
    truth, vectors = adaptkit.evaluate(net(), loader), features(net(), loader)
    worst = adaptkit.certify(net(), loader).worst
    assert truth.nll is not None
    for found in values(job(size, evaluate_all)):
        for name in ("a data set", "sampler", "own data sets", "lists"):
            predictions, nll, known, seen, classes = found[name]
            np.testing.assert_array_equal(predictions, truth.predictions)
            np.testing.assert_allclose(seen, vectors, rtol=1e-4, atol=1e-5)
            assert classes == 4
            if name in ("a data set", "sampler"):
                np.testing.assert_array_equal(known, truth.labels)
                np.testing.assert_allclose(nll, truth.nll, rtol=1e-5)
            else:
                assert known is nll is None
        assert sorted(found["shuffled"][0]) == sorted(truth.predictions)
        assert found["certificate"] == pytest.approx(worst, rel=1e-3)


def segments() -> tuple[nn.Module, DataLoader[Any]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = nn.Conv2d(3, 4, 1)
    truth = (images()[:, 0] * 10).long() % 4
    return model, DataLoader(TensorDataset(images(), truth), batch_size=7)


def evaluate_pixels() -> tuple[Any, ...]:
    found = adaptkit.evaluate_dense(*segments())
    return found.predicted, found.confusion, found.confidence


def test_segmentations_are_of_the_whole_in_its_order() -> None:
    truth = adaptkit.evaluate_dense(*segments())
    for predicted, confusion, confidence in values(job(3, evaluate_pixels)):
        np.testing.assert_array_equal(predicted, truth.predicted)
        np.testing.assert_array_equal(confusion, truth.confusion)
        np.testing.assert_allclose(confidence, truth.confidence, rtol=1e-5)


def store(model: nn.Module, mean: float) -> None:
    for layer in norms.norm_layers(model).values():
        was = norms.read(layer)
        norms.overwrite(layer, torch.full_like(was.mean, mean), was.variance)


def adapt_after_training() -> tuple[Any, ...]:
    """Adapt a model whose statistics differ from process to process, as after DDP training."""
    rank = dist.get_rank()
    model = net()
    store(model, rank + 1.0)
    wrapped = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    loader = DataLoader(TensorDataset(images()), batch_size=6)
    adapted = adaptkit.adapt(wrapped, loader, prior=30, layers="1")
    state = {name.removeprefix("module."): t.numpy() for name, t in adapted.state_dict().items()}
    kept = float(norms.read(model[1]).mean[0])
    guarded = adaptkit.adapt(model, loader, guard="auto", inplace=True)
    assert guarded is model
    return state, kept, {n: t.numpy() for n, t in guarded.state_dict().items()}


def test_every_process_ends_with_the_same_model() -> None:
    found = values(job(2, adapt_after_training))
    source = net()
    store(source, 1.0)
    loader = DataLoader(TensorDataset(images()), batch_size=6)
    truth = adaptkit.adapt(source, loader, prior=30, layers="1").state_dict()
    guarded = adaptkit.adapt(source, loader, guard="auto").state_dict()
    for rank, (state, kept, chosen) in enumerate(found):
        assert kept == rank + 1  # the caller's own model is as it was
        for name, tensor in truth.items():
            np.testing.assert_allclose(state[name], tensor.numpy(), rtol=1e-5, err_msg=name)
            np.testing.assert_array_equal(state[name], found[0][0][name])
            np.testing.assert_allclose(chosen[name], guarded[name].numpy(), rtol=1e-5)
            np.testing.assert_array_equal(chosen[name], found[0][2][name])


def work_apart() -> tuple[list[float], int]:
    rank = dist.get_rank()
    with alone():
        assert world().size == 1
        own = adaptkit.estimate(net()[:2], [images()[rank : rank + 9]])
    pair = dist.new_group([0, 2])
    both = 0
    if isinstance(pair, dist.ProcessGroup):
        with over(pair) as some:
            assert (some.rank, some.size) == (rank // 2, 2)
            both = adaptkit.estimate(net(), [images()[:5]]).samples
    return own["1"].mean.tolist(), both


def test_alone_and_over_a_group() -> None:
    found = values(job(3, work_apart))
    for rank, (mean, both) in enumerate(found):
        head = net()[:2]
        truth = adaptkit.estimate(head, [images()[rank : rank + 9]])["1"].mean
        np.testing.assert_allclose(mean, truth.numpy(), rtol=1e-12)
        assert both == (0 if rank == 1 else 10)


def on_gpu() -> Flat:
    rank = dist.get_rank()
    where = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(where)
    loader = DataLoader(TensorDataset(images()), batch_size=6)
    adapted = adaptkit.adapt(net(), loader, device=where, samples="all")
    scores = adaptkit.evaluate(adapted, loader)
    assert len(scores) == N
    return flat(adaptkit.estimate(net(), loader, device=where, samples="all").to("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["gloo", "cpu:gloo,cuda:nccl", "nccl"])
def test_processes_on_gpus(backend: str) -> None:
    gpus = torch.cuda.device_count()
    if not gpus or ("nccl" in backend and gpus < 2):
        pytest.skip("needs a GPU; with nccl one for each process")
    truth = flat(adaptkit.estimate(net(), [images()], samples="all"))
    for found in values(job(2, on_gpu, backend=backend)):
        for name, (mean, variance, _) in truth.items():  # convolutions round otherwise there
            np.testing.assert_allclose(found[name][0], mean, rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(found[name][1], variance, rtol=1e-3)


def in_one_process_only() -> list[str]:
    loader = loaders()["a data set"]
    said = []
    for call in (
        lambda: adaptkit.calibrate(net(), loader),
        lambda: adapt_domains(net(), loader),
        lambda: fit_input(net(), loader),
    ):
        with pytest.raises(DistributedError) as error:
            call()
        said.append(str(error.value))
    with alone():
        assert adaptkit.calibrate(SmallCNN(3, 4), loader).classes == 4
    return said


def test_what_works_in_one_process_says_so() -> None:
    for said in values(job(2, in_one_process_only)):
        names = ("calibrate", "adapt_domains", "fit_input")
        for name, text in zip(names, said, strict=True):
            assert text.startswith(f"{name} works in one process")


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        for name in ("scale", "step"):
            self.register_buffer(name, torch.ones(1))

    def forward(self, x: Tensor) -> Any:
        return self.norm(x * self.get_buffer("scale"))


def estimate_with_other(buffer: str) -> Flat:
    scaled = _Scaled()
    scaled.get_buffer(buffer).fill_(dist.get_rank() + 1.0)
    loader = DataLoader(TensorDataset(images()), batch_size=6)
    return flat(adaptkit.estimate(scaled, loader))


def test_buffers_that_no_forward_reads_may_differ() -> None:
    truth = flat(adaptkit.estimate(_Scaled(), [images()]))
    for found in values(job(2, estimate_with_other, "step")):
        assert_same(found, truth)
    for one in job(2, estimate_with_other, "scale"):
        assert one.error is not None
        assert re.search(r"rank 1 differs from rank 0: checksum of scale \d+ for", one.error[1])


# What goes wrong in one process ends in an error in all.


def go_wrong(how: str) -> None:
    rank = dist.get_rank()
    model = net()
    x = images()[rank::2]
    asked: dict[str, Any] = {"samples": "all"}
    batches: Any = list(x.split(5))
    if rank == 1:
        if how == "loader":
            batches = _breaks(batches)
        if how == "forward":
            asked["forward"] = _breaks_forward
        if how == "seed":
            asked["seed"] = 5
        if how == "version":
            vars(agreement)["__version__"] = "0.0.9"
        if how == "weights":
            with torch.no_grad():
                model.get_parameter("9.weight")[0, 0] += 1e-7
        if how == "argument":
            asked["samples"] = 0
        if how == "route":
            model[4] = nn.Identity()
        if how == "infinite":
            asked["on_bad"] = "raise"
            batches[2][0, 0] = torch.nan
        if how in _ENDS:
            _ENDS[how]()
        if how.endswith(" at a layer"):
            asked["forward"] = partial(_ends_at_a_layer, how.removesuffix(" at a layer"), [])
    if how == "infinite":
        asked["on_bad"] = "raise"
    if rank == 0 and (how == "forward" or how.endswith(" at a layer")):
        asked["forward"] = _forward
    before = {name: t.clone() for name, t in model.state_dict().items()}
    try:
        with over(timeout=3 if how == "hang" or how.endswith(" at a layer") else 20):
            adaptkit.estimate(model, batches, **asked)
    finally:
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def _breaks(batches: list[Tensor]) -> Iterator[Tensor]:
    yield from batches[:3]
    raise OSError("the share is gone")


def _forward(model: nn.Module, batch: Tensor) -> Any:
    return model(batch)


def _breaks_forward(model: nn.Module, batch: Tensor) -> Any:
    if len(batch) < 5:  # the last batch
        model.get_submodule("6").register_forward_pre_hook(_refuse)
    return model(batch)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    time.sleep(7)


_ENDS = {"kill": _kill, "hang": _hang}


def _ends_at_a_layer(how: str, calls: list[Tensor], model: nn.Module, batch: Tensor) -> Any:
    calls.append(batch)
    if len(calls) == 3:  # the first one is a look
        _ENDS[how]()
    return model(batch)


def _refuse(*_: object) -> None:
    raise RuntimeError("out of memory, as it were")


def assert_both_say(ended: list[Ended], own: str, other: str) -> None:
    assert [one.code for one in ended] == [0, 0]
    assert ended[1].error is not None
    assert ended[0].error is not None
    assert own in ended[1].error[1]
    assert ended[0].error[0] == "DistributedError"
    assert other in ended[0].error[1]


@pytest.mark.parametrize(
    ("how", "own", "other"),
    [
        ("loader", "the share is gone", "rank 1 of 2 failed: OSError: the share is gone"),
        ("forward", "out of memory", "rank 1 of 2 failed: RuntimeError: out of memory"),
        ("argument", "samples to be 1 or more", "rank 1 of 2 failed: Expected samples"),
        ("infinite", "NaN or infinity", "rank 1 of 2 failed: batch 2 holds 1 samples with NaN"),
        ("seed", "rank 1 differs from rank 0: seed 5 for 0: start all", "seed 5 for 0"),
        ("version", "adaptkit 0.0.9 for", "adaptkit 0.0.9 for"),
        ("weights", "checksum of 9.weight", "checksum of 9.weight"),
    ],
)
def test_an_error_in_one_process_is_one_in_all(how: str, own: str, other: str) -> None:
    assert_both_say(job(2, go_wrong, how), own, other)


def test_processes_whose_batches_pass_other_layers_say_so() -> None:
    for one in job(2, go_wrong, "route"):
        assert one.error is not None
        assert one.error[0] == "EstimationError"
        assert "pass other norm layers" in one.error[1]


@pytest.mark.parametrize("where", [pytest.param("", marks=pytest.mark.slow), " at a layer"])
def test_a_process_that_is_killed_is_named(where: str) -> None:
    start = time.monotonic()
    first, second = job(2, go_wrong, f"kill{where}", timeout=5)
    assert second.code == -signal.SIGKILL
    assert first.error is not None
    assert first.error[0] == "DistributedError"
    assert "rank 1 " in first.error[1]
    assert time.monotonic() - start < 40


@pytest.mark.slow
def test_a_process_that_hangs_is_named() -> None:
    first, _ = job(2, go_wrong, "hang", timeout=5)
    assert first.error is not None
    assert "rank 1 gave no sign of life for 3 s" in first.error[1]
    assert "alone()" in first.error[1]


@pytest.mark.slow
def test_a_process_that_hangs_at_a_layer_is_named() -> None:
    first, _ = job(2, go_wrong, "hang at a layer", timeout=3)
    assert first.error is not None
    assert first.error[0] == "DistributedError"
    assert "rank 1 gave no sign of life for 3 s" in first.error[1]


class _Slow(nn.Module):
    """Takes its time in all processes but the first."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds * dist.get_rank())
        return x


def estimate_slowly() -> Flat:
    slow = nn.Sequential(_Slow(0.2), nn.BatchNorm2d(3), _Slow(0.4), nn.BatchNorm2d(3))
    own = images()[dist.get_rank() :: 2]
    with over(timeout=2):
        return flat(adaptkit.estimate(slow, list(own.split(3)), forward=_forward))


@pytest.mark.slow
def test_who_is_at_work_between_two_layers_is_waited_for() -> None:
    fast = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    truth = flat(adaptkit.estimate(fast, [images()]))
    for found in values(job(2, estimate_slowly, timeout=2.5)):  # shorter than the second stretch
        assert_same(dict(zip(truth, found.values(), strict=True)), truth)


def fail_and_begin_anew(store: str) -> int:
    with over(timeout=0.5) as before:
        before.gather("")
        if before.rank == 0:
            with pytest.raises(DistributedError, match="rank 1 gave no sign of life"):
                before.gather("the other one does not come here")
    dist.destroy_process_group()
    again = dist.FileStore(store, 2)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=again, rank=before.rank, world_size=2)
    with over(timeout=3):
        return adaptkit.estimate(net(), [images()]).samples


def test_a_new_group_knows_nothing_of_one_that_failed(tmp_path: Path) -> None:
    assert values(job(2, fail_and_begin_anew, str(tmp_path / "store"))) == [2 * N] * 2


def no_data_at_all() -> None:
    adaptkit.estimate(net(), [])


def test_no_data_anywhere_is_no_data() -> None:
    for one in job(2, no_data_at_all):
        assert one.error is not None
        assert one.error[0] == "EstimationError"
        assert "there is no data to estimate from" in one.error[1]


# The parts of it, in this process.


def test_one_process_costs_and_changes_nothing() -> None:
    assert world() is ALONE
    x = torch.tensor([1.0])
    assert ALONE.sum(x) is x
    assert ALONE.gather("a") == ["a"]
    assert ALONE.first("a") == "a"
    with pytest.raises(ValueError, match="mine"), ALONE.united():
        raise ValueError("mine")
    batches = [x]
    assert Share.of(batches, ALONE).loader is batches
    assert Whole.of(batches, 0, ALONE).indices is None


@given(st.integers(0, 200), st.integers(1, 9))
def test_parts_are_a_partition(count: int, size: int) -> None:
    assert sum(World(rank, size).part(count) for rank in range(size)) == count


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 1),
    st.floats(-1e3, 1e3),
    st.floats(0.01, 100),
    st.integers(0, 2**31),
    st.booleans(),
)
def test_sums_add_up_to_the_moments_of_all(
    sizes: list[int], mean: float, std: float, seed: int, far: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), 3, 5, generator=generator, dtype=torch.float64) * std + mean
    center = torch.full((3,), mean + (30 * std if far else 0), dtype=torch.float64)
    sums = torch.stack([Moments.of(part).sums(center) for part in x.split(sizes)]).sum(0)
    found, truth = Moments.of_sums(sums, center), Moments.of(x)
    assert (found.count, found.weight, found.samples) == (truth.count, truth.weight, truth.samples)
    np.testing.assert_allclose(found.mean, x.mean((0, 2)), rtol=0, atol=1e-9 * std)
    np.testing.assert_allclose(found.variance(), x.var((0, 2)), rtol=1e-9)
    scale = truth.scatter.abs().amax()
    np.testing.assert_allclose(found.scatter / scale, truth.scatter / scale, atol=1e-6)


def test_what_weighs_nothing_counts_in_no_set() -> None:
    x = torch.tensor([[1.0], [2.0], [6.0], [9.0]])
    weight = torch.tensor([1.0, 2.0, 0.0, 0.0])
    whole = Moments.of(x, weight=weight)
    split = Moments.of(x[:2], weight=weight[:2]) + Moments.of(x[2:], weight=weight[2:])
    assert whole.count == split.count == 2
    assert whole.variance().item() == split.variance().item()


def test_a_constant_channel_has_no_variance() -> None:
    x = torch.full((6, 2), 0.1).double()
    center = torch.tensor([0.3, -7.0]).double()
    first = Moments.of(x[:2]).sums(center) + Moments.of(x[2:]).sums(center)
    near = Moments.of_sums(first, center).mean
    again = Moments.of(x[:2]).sums(near) + Moments.of(x[2:]).sums(near)
    assert Moments.of_sums(again, near).variance().tolist() == [0.0, 0.0]
