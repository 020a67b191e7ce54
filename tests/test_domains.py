"""Targets of several domains: told apart, routed, and adapted to each by itself."""

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import digits
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import inputs_seen
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adaptkit import (
    CheckpointError,
    DataError,
    EstimationError,
    ModelError,
    Statistics,
    Transform,
    adapt,
    estimate,
    image_folder,
    norms,
)
from adaptkit.domains import (
    Domains,
    DomainTree,
    FirstLayer,
    RoutedModel,
    Router,
    adapt_domains,
    split,
)
from adaptkit.domains.cut import best_cut
from adaptkit.domains.first_layer import measure


def noisy(x: Tensor) -> Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    return (x + 0.5 * noise).clamp(-1, 1)


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "clean": lambda x: x,
    "low contrast": lambda x: 0.3 * x,
    "dark": lambda x: x - 1.2,
    "inverted": lambda x: -x,
    "noisy": noisy,
}


@cache
def trained() -> nn.Module:
    """The net, which no test changes."""
    return digits.net()


def unseen(count: int, classes: Iterable[int] = range(10)) -> tuple[Tensor, Tensor]:
    """Images that the net was not trained on, as it takes them."""
    x, y = digits.images()
    x, y = 2 * x[digits.TRAINED_ON :] - 1, y[digits.TRAINED_ON :]
    chosen = torch.isin(y, torch.tensor([*classes]))
    return x[chosen][:count], y[chosen][:count]


def mixed(count: int, *ways: str) -> tuple[Tensor, Tensor, Tensor]:
    """Images spoilt by turns, their labels, and which way each got."""
    x, y = unseen(count)
    domain = torch.arange(len(x)) % len(ways)
    parts = [WAYS[way](x) for way in ways]
    return torch.stack(parts)[domain, torch.arange(len(x))], y, domain


def numbers_of(members: Iterable[list[int]], count: int) -> Tensor:
    numbers = torch.full((count,), -1)
    for number, indices in enumerate(members):
        numbers[indices] = number
    return numbers


def purity(numbers: Tensor, truth: Tensor) -> float:
    """The share of images that are in a group most of which are of their domain."""
    groups = [torch.bincount(truth[numbers == number]).max() for number in numbers.unique()]
    return float(sum(groups)) / len(truth)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model.eval()(x).argmax(1) == y).double().mean())


def routed(model: nn.Module, domains: Domains) -> RoutedModel:
    return RoutedModel(model, domains.router, domains.statistics)


# The first layer.


def test_statistics_are_those_of_each_image() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3))
    norms.overwrite(net[1], torch.tensor(0.2), torch.tensor(2.0))
    x = torch.randn(9, 1, 7, 6)
    layer, found = measure(net, [x[:4], (x[4:], torch.zeros(5))])
    seen = inputs_seen(net, ["1"], x)["1"].double().flatten(2).numpy()
    places = [seen.mean(2), *np.quantile(seen, [0.05, 0.5, 0.95], axis=2)]
    spread = np.sqrt(2 + 1e-5)
    scaled = [(v - float(layer.mean[0])) / spread for v in places]
    log = np.log((seen.var(2) + 1e-5) / (2 + 1e-5))
    expected = np.concatenate([scaled[0], log, *scaled[1:]], 1)
    assert layer.name == "1"
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_first_layer_is_the_first_that_is_reached() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late, self.early = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x: Tensor) -> Tensor:
            self.early(x)
            raise AssertionError("the forward went on")

    net = Odd().train()
    layer, found = measure(net, [torch.zeros(3, 2)])
    assert (layer.name, found.shape, net.early.training) == ("early", (3, 10), True)
    assert not [m for m in net.modules() if m._forward_pre_hooks]


def test_large_images_are_looked_at_in_places() -> None:
    layer = FirstLayer("bn", torch.zeros(2), torch.ones(2))
    x = torch.randn(3, 2, 200, 200)
    found = layer.statistics(x).view(3, 5, 2)[:, 2:]
    exact = np.quantile(x.flatten(2).numpy(), [0.05, 0.5, 0.95], axis=2)
    np.testing.assert_allclose(found, np.moveaxis(exact, 0, 1), atol=0.25)


# The split.


@st.composite
def clouds(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """One to three groups of points that lie far apart, and whose each one is."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    groups, columns = draw(st.integers(1, 3)), draw(st.integers(3, 12))
    sizes = [draw(st.integers(60, 120)) for _ in range(groups)]
    along = draw(st.booleans())
    centres = 40 * (
        np.arange(groups)[:, None] * np.ones(columns) if along else np.eye(groups, columns)
    )
    points = [rng.normal(c, 1, (n, columns)) for c, n in zip(centres, sizes, strict=True)]
    truth = np.repeat(np.arange(groups), sizes)
    return torch.from_numpy(np.concatenate(points)), torch.from_numpy(truth)


@settings(max_examples=25)
@given(clouds(), st.integers(0, 99))
def test_the_order_of_images_does_not_matter(given: tuple[Tensor, Tensor], seed: int) -> None:
    points, truth = given
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(points)))
    numbers = split(points).assign(points)
    assert purity(numbers, truth) == 1
    assert len(numbers.unique()) == len(truth.unique())
    assert torch.equal(split(points[order]).assign(points[order]), numbers[order])


@settings(max_examples=25)
@given(clouds(), st.lists(st.tuples(st.floats(0.5, 9), st.floats(-99, 99)), min_size=12))
def test_another_unit_gives_the_same_split(
    given: tuple[Tensor, Tensor], units: list[tuple[float, float]]
) -> None:
    points, _ = given
    gain, offset = torch.tensor(units[: points.shape[1]], dtype=torch.float64).unbind(1)
    other = gain * points + offset
    numbers, again = split(points).assign(points), split(other).assign(other)
    both = torch.stack([numbers, again]).unique(dim=1)
    assert both.shape[1] == len(numbers.unique()) == len(again.unique())


@pytest.mark.parametrize("columns", [1, 3, 30])
@pytest.mark.parametrize("count", [39, 40, 200, 3000])
def test_one_cloud_is_one_domain(count: int, columns: int) -> None:
    points = torch.randn(count, columns, dtype=torch.float64)
    assert split(points).domains == 1
    cut = best_cut(points[:1000])
    assert cut is None or cut.separation < 6


def test_few_images_are_one_domain() -> None:
    apart = torch.arange(39, dtype=torch.float64)[:, None] % 2 * 100
    assert split(apart).domains == 1
    assert split(torch.cat([apart, apart[1:2]])).domains == 2
    assert split(torch.zeros(0, 4)).domains == 1


def test_what_does_not_vary_is_one_domain() -> None:
    assert split(torch.ones(100, 5)).domains == 1


def test_parts_are_a_tenth_or_more() -> None:
    points = torch.randn(1000, 4, dtype=torch.float64)
    points[:90] += 50
    assert split(points).domains == 1
    points[90:110] += 50
    assert split(points).domains == 2


def test_eight_domains_at_most() -> None:
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 60.0])] * 4).double()
    points = corners.repeat(30, 1) + torch.randn(480, 4)
    assert split(points).domains == 8


def test_rows_that_are_not_finite_are_not_looked_at() -> None:
    points = torch.randn(200, 4, dtype=torch.float64)
    points[:60] += 50
    tree = split(points)
    points[::50] = torch.nan
    assert split(points).domains == tree.domains == 2


def test_of_many_images_some_show_the_domains_of_all() -> None:
    """In the order of the images, so that the first ones would show one domain alone."""
    points = torch.randn(5000, 4, dtype=torch.float64)
    points[3000:] += 50
    numbers = split(points).assign(points)
    assert torch.bincount(numbers).tolist() == [3000, 2000]


def test_domains_along_a_line() -> None:
    """Any two of the three make a part so broad that the third is not far from it."""
    points = torch.randn(300, 3, dtype=torch.float64)
    points += 40.0 * (torch.arange(300) % 3)[:, None]
    cut = best_cut(points)
    assert cut is not None
    assert cut.separation < 5
    assert split(points).assign(points).tolist() == [0, 1, 2] * 100


def test_domains_count_from_the_one_most_like_the_source() -> None:
    points = torch.randn(300, 2, dtype=torch.float64)
    points[:100, 0] -= 90
    points[100:200, 1] += 40
    numbers = split(points).assign(points)
    assert numbers.tolist() == [2] * 100 + [1] * 100 + [0] * 100


def test_trees_that_are_none() -> None:
    one, two = torch.ones(1, 2).double(), torch.ones(2, 2).double()
    for weights, thresholds, after in (
        (one, torch.zeros(1), ((0, -1),)),
        (one, torch.zeros(1), ((-1, -1),)),
        (one, torch.zeros(1), ((-1, -3),)),
        (one, torch.zeros(2), ((-1, -2),)),
        (one[0], torch.zeros(1), ((-1, -2),)),
        (one * torch.nan, torch.zeros(1), ((-1, -2),)),
        (two, torch.zeros(2), ((-1, -2), (1, -3))),
        (two, torch.zeros(2), ((-1, 1), (0, -3))),
    ):
        with pytest.raises(EstimationError, match="lead each image to one domain"):
            DomainTree(weights, thresholds, after)
    with pytest.raises(EstimationError, match="Expected 2 statistics an image, got 3"):
        DomainTree(one, torch.zeros(1), ((-1, -2),)).assign(torch.zeros(5, 3))
    layer = FirstLayer("bn", torch.zeros(1), torch.ones(1))
    with pytest.raises(EstimationError, match="in 5 statistics of an image, got them in 2"):
        Router(layer, DomainTree(one, torch.zeros(1), ((-1, -2),)))
    with pytest.raises(EstimationError, match="a variance of 0 or more"):
        FirstLayer("bn", torch.zeros(1), -torch.ones(1))


# On real images.


@pytest.mark.parametrize("way", ["clean", "low contrast", "dark", "noisy"])
@pytest.mark.parametrize("classes", [range(10), (3, 5, 8)])
def test_one_domain_is_left_whole(way: str, classes: Iterable[int]) -> None:
    x, _ = unseen(400, classes)
    x = WAYS[way](x)
    domains = adapt_domains(trained(), [x])
    assert list(domains.members.values()) == [list(range(len(x)))]
    adapted = adapt(trained(), [x])
    with torch.no_grad():
        torch.testing.assert_close(routed(trained(), domains)(x), adapted(x))


@pytest.mark.parametrize(
    ("ways", "gain"),
    [
        (("clean", "low contrast"), 0.2),
        (("dark", "low contrast"), 0.1),
        (("noisy", "low contrast"), 0.1),
        (("clean", "low contrast", "dark"), 0.1),
    ],
)
def test_domains_are_told_apart_and_run_by_themselves(ways: tuple[str, ...], gain: float) -> None:
    x, y, truth = mixed(897, *ways)
    x, new_x = x[:600], x[600:]
    domains = adapt_domains(trained(), list(x.split(64)))
    numbers = numbers_of(domains.members.values(), len(x))
    assert len(domains.members) == len(ways)
    assert purity(numbers, truth[:600]) > 0.95
    model = routed(trained(), domains)
    names = list(domains.members)
    again = torch.tensor([names.index(name) for name in model.domains_of(x)])
    assert torch.equal(again, numbers)
    of_new = torch.tensor([names.index(name) for name in model.domains_of(new_x)])
    together = purity(torch.cat([numbers, of_new]), truth)
    assert together > 0.95
    pooled = adapt(trained(), [x])
    assert accuracy(model, new_x, y[600:]) > accuracy(pooled, new_x, y[600:]) + gain


@pytest.fixture(scope="module")
def two() -> Domains:
    x, _, _ = mixed(400, "clean", "low contrast")
    return adapt_domains(trained(), [x])


def test_an_images_output_does_not_depend_on_the_batch(two: Domains) -> None:
    x, _, _ = mixed(60, "clean", "low contrast")
    model = routed(trained(), two)
    with torch.no_grad():
        whole = model(x)
        one_by_one = torch.cat([model(image) for image in x.split(1)])
        assert model(x[:0]).shape == (0, 10)
    torch.testing.assert_close(whole, one_by_one, rtol=1e-4, atol=1e-5)


def test_each_domain_runs_with_its_own_images_statistics(two: Domains) -> None:
    x, _, truth = mixed(60, "clean", "low contrast")
    found = routed(trained(), two)(x)
    for name, indices in two.members.items():
        here = truth == indices[0] % 2
        alone = two.statistics[name].apply(copy.deepcopy(trained()))(x[here])
        torch.testing.assert_close(found[here], alone, rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_was(two: Domains) -> None:
    net = copy.deepcopy(trained()).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x, _, _ = mixed(60, "clean", "low contrast")
    model = routed(net, two)
    copied = copy.deepcopy(model)
    torch.testing.assert_close(model(x), copied(x))
    assert copied.bank.model is copied.model is not net
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert not [m for m in net.modules() if m._forward_pre_hooks]


def test_outputs_of_several_tensors(two: Domains) -> None:
    class Both(nn.Module):
        def __init__(self, form: Callable[[Tensor], Any]) -> None:
            super().__init__()
            self.net, self.form = copy.deepcopy(trained()), form

        def forward(self, x: Tensor) -> Any:
            return self.form(self.net(x))

    x, _, _ = mixed(50, "clean", "low contrast")
    expected = routed(trained(), two)(x)
    for form, keys in ((lambda y: {"a": y, "b": [y]}, ("a",)), (lambda y: (y, 2 * y), (0,))):
        both = Both(form)
        domains = adapt_domains(both, [mixed(400, "clean", "low contrast")[0]])
        (key,) = keys
        torch.testing.assert_close(routed(both, domains)(x)[key], expected)
    for bad in (lambda y: y.mean(), lambda y: {"a": y, "n": len(y)}, lambda y: [*y]):
        with pytest.raises(ModelError, match="a row an image"):
            routed(Both(bad), domains)(x)


# What is read.


def test_each_domain_is_estimated_from_its_images_alone() -> None:
    x, y, _ = mixed(300, "clean", "low contrast")
    asked: list[list[Any]] = []

    def one(part: Iterable[Any]) -> Statistics:
        asked.append(list(part))
        return estimate(trained(), part)

    data = TensorDataset(x, y)
    shuffled = DataLoader(data, batch_size=32, shuffle=True, drop_last=True)
    domains = adapt_domains(trained(), shuffled, estimate_one=one)
    assert sorted(i for indices in domains.members.values() for i in indices) == list(range(300))
    for indices, batches in zip(domains.members.values(), asked, strict=True):
        assert torch.equal(torch.cat([images for images, _ in batches]), x[indices])
    listed = adapt_domains(trained(), list(zip(x.split(50), y.split(50), strict=True)))
    assert listed.members == domains.members
    for name, found in domains.statistics.items():
        for layer, moments in found.items():
            other = listed.statistics[name][layer]
            torch.testing.assert_close(moments.mean, other.mean, rtol=1e-4, atol=1e-5)


def test_a_folder_with_images_that_cannot_be_read(tmp_path: Path) -> None:
    x, _, truth = mixed(80, "clean", "low contrast")
    for number, image in enumerate(x):
        digits.write(tmp_path / f"{number:03}.png", (image + 1) / 2)
    for number in (4, 33):
        (tmp_path / f"{number:03}.png").write_text("no image")
    transform = Transform((8, 8), channels=1, mean=(0.5,), std=(0.5,))
    loader = image_folder(tmp_path, transform=transform, batch_size=16)
    domains = adapt_domains(trained(), loader)
    numbers = numbers_of(domains.members.values(), 80)
    assert (numbers == -1).nonzero().flatten().tolist() == [4, 33]
    assert purity(numbers[numbers >= 0], truth[numbers >= 0]) == 1
    assert [len(found.moments) for found in domains.statistics.values()] == [4, 4]
    assert [found.samples for found in domains.statistics.values()] == [39, 39]


def test_images_that_are_not_finite_are_left_out() -> None:
    x, _, _ = mixed(200, "clean", "low contrast")
    x[7] = torch.nan
    domains = adapt_domains(trained(), [x])
    assert sum(found.dropped for found in domains.statistics.values()) == 1
    assert sum(found.samples for found in domains.statistics.values()) == 199


def test_other_batches_by_a_function_of_the_users() -> None:
    x, _, _ = mixed(200, "clean", "low contrast")
    data = [{"left": x[i], "right": x[i]} for i in range(200)]
    loader: Any = DataLoader(data, batch_size=40)  # type: ignore[arg-type]
    domains = adapt_domains(
        trained(), loader, forward=lambda model, batch: model(batch["left"] + 0 * batch["right"])
    )
    assert [len(indices) for indices in domains.members.values()] == [100, 100]


def test_data_that_will_not_do() -> None:
    x, _ = unseen(50)

    def once() -> Iterator[Tensor]:
        yield x

    with pytest.raises(DataError, match=r"a list of batches, .*; got generator"):
        adapt_domains(trained(), once())
    with pytest.raises(DataError, match="the loader is empty"):
        adapt_domains(trained(), [])
    with pytest.raises(EstimationError, match="no layer with data-set statistics"):
        adapt_domains(nn.Linear(2, 2), [x])
    with pytest.raises(EstimationError, match="does forward= use the model"):
        adapt_domains(trained(), [x], forward=lambda model, batch: batch)
    patches = nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Flatten(0, 1), nn.BatchNorm2d(1))
    halves = nn.Sequential(Halved(), nn.BatchNorm2d(1))
    assert measure(patches, [x])[1].shape == (50, 5)
    with pytest.raises(EstimationError, match="sees 100 rows for 50 samples"):
        adapt_domains(halves, [x])


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(x.chunk(2, dim=-1))


def test_statistics_that_do_not_fit(two: Domains) -> None:
    with pytest.raises(EstimationError, match="the statistics of 2 domains, got 1"):
        RoutedModel(trained(), two.router, {"a": two.statistics["domain 1"]})
    with pytest.raises(EstimationError, match=r"no norm layer 'features\.1'"):
        routed(nn.Sequential(nn.BatchNorm2d(1)), two)
    with pytest.raises(EstimationError, match=r"has no norm layer 'features\.1' with"):
        two.router.of_batch(nn.Sequential(nn.BatchNorm2d(1)), torch.zeros(1, 1, 4, 4))
    wide = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(EstimationError, match="expected 1 channels"):
        FirstLayer("0", torch.zeros(1), torch.ones(1)).of_batch(wide, torch.zeros(2, 3, 4, 4))


# Files.


def test_bytes_give_the_same_model(two: Domains) -> None:
    x, _, _ = mixed(60, "clean", "low contrast")
    model = routed(trained(), two)
    content = model.to_bytes()
    again = RoutedModel.from_bytes(content, copy.deepcopy(trained()))
    assert torch.equal(model(x), again(x))
    assert model.domains_of(x) == again.domains_of(x)
    assert again.to_bytes() == content
    single = routed(trained(), adapt_domains(trained(), [unseen(100)[0]]))
    whole = RoutedModel.from_bytes(single.to_bytes(), trained())
    assert torch.equal(single(x), whole(x))


def changed(content: bytes, **header: Any) -> bytes:
    """The same file with other entries in its header, or other tensors by their names."""
    old = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    fields = json.loads(old["adaptkit"])
    tensors = load(content)
    for name, value in header.items():
        (tensors if name in tensors else fields)[name] = value
    return save(tensors, {"adaptkit": json.dumps(fields)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "adaptkit/9\nx"}, "of format 'adaptkit/9.*; expected adaptkit-domains/1"),
        ({"layer": 5}, "no router"),
        ({"layer": "two\nlines"}, "no router"),
        ({"layer": "elsewhere"}, "not of this model: .*'elsewhere'"),
        ({"after": [[0, 0]]}, "no router"),
        ({"after": [[-1.0, -2.0]]}, "no router"),
        ({"after": [[-1, -2, -3]]}, "no router"),
        ({"after": "ab"}, "no router"),
        ({"after": []}, "no router"),
        ({"domains": ["a"]}, "not its domains"),
        ({"domains": ["a", "a"]}, "not its domains"),
        ({"domains": ["a", "b\n"]}, "not its domains"),
        ({"domains": {"a": 1}}, "not its domains"),
        ({"weights": torch.zeros(1, 160)}, "no router"),
        ({"weights": torch.full((1, 160), torch.nan).double()}, "no router"),
        ({"weights": torch.zeros(1, 7).double()}, "no router"),
        ({"variance": -torch.ones(32).double()}, "no router"),
        ({"domain 1": torch.zeros(9, dtype=torch.uint8)}, "pack of 'domain 2' is broken"),
        ({"domain 1": torch.zeros(9)}, "not its domains"),
    ],
)
def test_hostile_files(two: Domains, change: dict[str, Any], message: str) -> None:
    content = changed(routed(trained(), two).to_bytes(), **change)
    with pytest.raises(CheckpointError, match=message) as caught:
        RoutedModel.from_bytes(content, trained())
    assert "\n" not in str(caught.value)


def test_broken_files(two: Domains) -> None:
    content = routed(trained(), two).to_bytes()
    rng = np.random.default_rng(0)
    for broken in (b"", b"text, but no file", content[:-9], content[:300], save({})):
        with pytest.raises(CheckpointError, match="broken or not that of a routed model"):
            RoutedModel.from_bytes(broken, trained())
    for place in rng.integers(0, 1500, 60):  # any byte near the start: refused or harmless
        spoilt = bytearray(content)
        spoilt[place] ^= int(rng.integers(1, 256))
        with suppress(CheckpointError):
            RoutedModel.from_bytes(bytes(spoilt), trained())


def test_packs_inside_that_do_not_fit(two: Domains) -> None:
    other = nn.Sequential(nn.BatchNorm2d(1))
    pack = estimate(other, [torch.randn(9, 1, 3, 3)]).to_bytes()
    raw = torch.frombuffer(bytearray(pack), dtype=torch.uint8)
    content = changed(routed(trained(), two).to_bytes(), **{"domain 1": raw})
    with pytest.raises(CheckpointError, match="not of this model: the model has no norm layer '0'"):
        RoutedModel.from_bytes(content, trained())


@pytest.mark.parametrize("counts", [[0, 0, False], [9, 0, False], [9, "x", False], [1, 1, False]])
def test_packs_of_no_samples(counts: list[Any]) -> None:
    net = nn.Sequential(nn.BatchNorm1d(1))
    content = estimate(net, [torch.randn(9, 1)]).to_bytes()
    assert Statistics.from_bytes(content).samples == 9
    with pytest.raises(CheckpointError, match="the content is a domain pack with fields missing"):
        Statistics.from_bytes(changed(content, counts={"0": counts}))
    with pytest.raises(CheckpointError, match="fields missing"):
        Statistics.from_bytes(changed(content, **{"0": -torch.ones(4, 1)}))
