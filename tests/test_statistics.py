"""Statistics as a thing of its own: blended, saved, banked, followed online."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from adaptkit import (
    CheckpointError,
    DomainBank,
    EstimationError,
    OnlineAdapter,
    OutputError,
    Statistics,
    adapt,
    certify,
    estimate,
)


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).eval()


def images(n: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(n)) * 2 + shift


# Blending.


def test_a_prior_blends_linearly(net: nn.Sequential) -> None:
    found = estimate(net, [images(8, 3)])
    blended = found.blend(net, prior=24)
    for name, moments in blended.items():
        source = net.get_submodule(name)
        mean = (24 * source.running_mean + 8 * found[name].mean) / 32  # type: ignore[operator]
        variance = (24 * source.running_var + 8 * found[name].variance()) / 32  # type: ignore[operator]
        torch.testing.assert_close(moments.mean, mean.double(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(moments.variance(), variance.double(), rtol=1e-6, atol=1e-6)
        assert all(bool(e.isnan().all()) for e in moments.standard_error())
    behind = estimate(net, [images(8, 3)], prior=24)
    applied = behind.blend(net, prior=24).apply(copy.deepcopy(net)).state_dict()
    short = adapt(net, [images(8, 3)], prior=24).state_dict()
    assert all(torch.equal(applied[k], short[k]) for k in applied)


def test_a_prior_holds_before_the_next_layer_sees_the_sample(net: nn.Sequential) -> None:
    """By hand: a layer's moments, blended, normalise what the next one gets."""
    x, expected = images(8, 3), copy.deepcopy(net)
    with torch.no_grad():
        for module in expected[:5]:
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                variance, mean = torch.var_mean(x, (0, 2, 3))
                module.running_mean.copy_((6 * module.running_mean + 8 * mean) / 14)
                module.running_var.copy_((6 * module.running_var + 8 * variance) / 14)
            x = module(x)
    whole, parts = adapt(net, [images(8, 3)], prior=6), images(8, 3).split([1, 3, 4])
    for adapted in (whole, adapt(net, parts, prior=6)):
        for name, value in adapted.state_dict().items():
            torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-5, atol=1e-5)
    later = estimate(net, parts, prior=6)["4"], estimate(net, parts)["4"]
    assert ((later[0].mean - later[1].mean).abs() / later[1].variance().sqrt() > 0.1).any()
    streamed = adapt(net, parts, prior=6, mode="stream").state_dict()
    blended = estimate(net, parts).blend(net, prior=6)
    torch.testing.assert_close(streamed["4.running_mean"], blended["4"].mean.float())


def test_a_prior_is_the_sources_in_every_round_of_a_tolerance(net: nn.Sequential) -> None:
    x = images(600, 3)
    found = estimate(net, x.split(50), tolerance=0.03, prior=200)
    assert found.samples == 256  # the second round
    expected = estimate(net, [x[:256]], samples="all", prior=200)
    for name in found:
        torch.testing.assert_close(found[name].mean, expected[name].mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[name].m2, expected[name].m2, rtol=1e-5, atol=1e-3)


def test_a_blended_model_sees_what_was_estimated_behind_it(net: nn.Sequential) -> None:
    x = images(60, 3).split(7)
    adapted, seen = adapt(net, x, prior=20), estimate(net, x, prior=20)
    assert certify(adapted, x, statistics=seen).worst < 1e-5
    assert certify(adapted, x).worst > 0.1  # it stores the blend


def test_priors_at_the_ends(net: nn.Sequential) -> None:
    found = estimate(net, [images(8, 3)])
    torch.testing.assert_close(found.blend(net, prior=0)["1"].mean, found["1"].mean)
    far = found.blend(net, prior=1e12)["1"]
    np.testing.assert_allclose(far.mean, np.zeros(6), atol=1e-9)
    with pytest.raises(EstimationError, match="prior to be 0 or more, got -1"):
        found.blend(net, prior=-1)
    for bad in (-1, float("nan"), float("inf"), None, "16"):
        with pytest.raises(EstimationError, match="prior to be a number of 0 or more, got"):
            estimate(net, [images(8, 3)], prior=bad)  # type: ignore[arg-type]


# Domain packs.


def test_a_pack_gives_the_same_model(net: nn.Sequential, tmp_path: Path) -> None:
    found = estimate(net, [images(64, 2)])
    path = found.save(tmp_path / "pack.safetensors", base="abc")
    assert path.stat().st_size < 3000
    read = Statistics.load(path)
    assert (read.samples, read.base, list(read)) == (64, "abc", ["1", "4"])
    first, second = (s.apply(copy.deepcopy(net)).state_dict() for s in (found, read))
    assert all(torch.equal(first[k], second[k]) for k in first)
    for name in found:
        for a, b in zip(found[name].standard_error(), read[name].standard_error(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert read.errors() == pytest.approx(found.errors(), rel=1e-4)


def test_a_pack_is_not_overwritten_unasked(net: nn.Sequential, tmp_path: Path) -> None:
    found = estimate(net, [images(8)])
    path = found.save(tmp_path / "pack.safetensors")
    with pytest.raises(OutputError, match="exists already"):
        found.save(path)
    found.save(path, force=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is broken or not a domain pack"),
        (b"text, but no pack", "is broken or not a domain pack"),
        (save({"x": torch.zeros(2)}), "is broken or not a domain pack"),
        (
            save({"x": torch.zeros(2)}, {"adaptkit": '{"format": "adaptkit/1"}'}),
            "expected adaptkit-st",
        ),
        (
            save({"x": torch.zeros(2)}, {"adaptkit": '{"format": "adaptkit-statistics/1"}'}),
            "fields missing",
        ),
    ],
)
def test_files_that_are_no_packs(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Statistics.load(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot read .*: No such file"):
        Statistics.load(tmp_path / "none.safetensors")


# The bank.


def test_a_bank_switches_and_restores(net: nn.Sequential, tmp_path: Path) -> None:
    bank, x = DomainBank(net), images(5)
    source = net(x)
    expected = {}
    for name, shift in (("day", 1.0), ("night", -3.0)):
        found = estimate(net, [images(64, shift)])
        bank.add(name, found.save(tmp_path / f"{name}.safetensors"))
        expected[name] = adapt(net, [images(64, shift)])(x)
    assert (len(bank), list(bank)) == (2, ["day", "night"])
    buffers = [id(b) for b in net.buffers()]
    with bank.domain("day") as model:
        torch.testing.assert_close(model(x), expected["day"])
        with bank.domain("night"):
            torch.testing.assert_close(net(x), expected["night"])
        torch.testing.assert_close(net(x), expected["day"])
    with pytest.raises(RuntimeError, match="inside"), bank.domain("night"):
        raise RuntimeError("inside")
    assert torch.equal(net(x), source)
    assert [id(b) for b in net.buffers()] == buffers


def test_a_bank_refuses(net: nn.Sequential) -> None:
    bank = DomainBank(net)
    with pytest.raises(EstimationError, match="no domain 'dusk'; there are: none yet"):
        bank["dusk"]
    other = nn.Sequential(nn.Identity(), nn.BatchNorm2d(3))
    with pytest.raises(EstimationError, match="'1' has 6 channels, the statistics 3"):
        bank.add("odd", estimate(other, [images(8)]))
    assert not len(bank)


# Online.


def test_online_tends_to_the_target_and_leaves_the_model(net: nn.Sequential) -> None:
    adapter = OnlineAdapter(net, prior=8)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    target = images(600, 4)
    for image in target.split(1):
        assert adapter(image).shape == (1, 3)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert (adapter.samples, adapter.effective_samples) == (600, 600)
    followed, exact = adapter(target[:50]), adapt(net, [target])(target[:50])
    source = net(target[:50])
    assert (followed - exact).abs().mean() < 0.2 * (source - exact).abs().mean()


def test_one_batch_is_the_blend(net: nn.Sequential) -> None:
    x = images(16, 2)
    expected = adapt(net, [x], prior=5)(x)
    torch.testing.assert_close(OnlineAdapter(net, prior=5)(x), expected, rtol=1e-4, atol=1e-5)


def test_an_image_counts_once_however_often_it_passes_a_layer() -> None:
    torch.manual_seed(0)
    norm, x = nn.BatchNorm2d(3), images(16, 2)
    shared = nn.Sequential(norm, nn.ReLU(), nn.Conv2d(3, 3, 1), norm, nn.ReLU(), norm).eval()
    adapter = OnlineAdapter(shared, prior=5)
    expected = adapt(shared, [x], prior=5)
    adapter(x)
    (moments,) = estimate(shared, [x], prior=5).values()
    stored = expected.state_dict()["0.running_mean"]
    torch.testing.assert_close(stored, (16 / 21 * moments.mean).float())
    found = adapter._stream["0"]
    torch.testing.assert_close(found.mean, moments.mean, rtol=1e-5, atol=1e-6)
    assert (adapter.samples, adapter.state_dict()["visits"]) == (16, {"0": 3})
    again = OnlineAdapter(shared, prior=5)
    again.load_state_dict(adapter.state_dict())
    torch.testing.assert_close(again(x), adapter(x))


def test_the_stream_is_pooled_not_averaged(net: nn.Sequential) -> None:
    """At the first layer, any cut of the stream gives the moments of all of it."""
    x = images(30, 2)
    whole = estimate(net, [x])["1"]
    adapter = OnlineAdapter(net)
    for batch in x.split([1, 9, 20]):
        adapter(batch)
    state = adapter.state_dict()["stream"]["1"]
    torch.testing.assert_close(state["mean"], whole.mean)
    torch.testing.assert_close(state["m2"], whole.m2)


def test_a_window_forgets(net: nn.Sequential) -> None:
    adapter = OnlineAdapter(net, window=50)
    for batch in images(400, 5).split(10):
        adapter(batch)
    assert 40 < adapter.effective_samples < 60
    for batch in images(400, -5).split(10):
        adapter(batch)
    now = adapter.state_dict()["stream"]["1"]["mean"]
    recent = estimate(net, [images(400, -5)])["1"]
    assert bool(((now - recent.mean).abs() < 0.2 * recent.variance().sqrt()).all())


def test_a_stream_resumes_exactly(net: nn.Sequential, tmp_path: Path) -> None:
    first, second = images(40, 2).split(20)
    adapter = OnlineAdapter(net, window=30)
    adapter(first)
    torch.save(adapter.state_dict(), tmp_path / "state.pt")
    resumed = OnlineAdapter(net, window=30)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(adapter(second), resumed(second))
    assert adapter.effective_samples == resumed.effective_samples
    adapter.reset()
    assert torch.equal(adapter(first), OnlineAdapter(net, window=30)(first))
    with pytest.raises(EstimationError, match="no norm layer '1' to resume"):
        OnlineAdapter(nn.BatchNorm2d(3)).load_state_dict(resumed.state_dict())


def test_a_bad_batch_moves_nothing(net: nn.Sequential) -> None:
    adapter = OnlineAdapter(net)
    adapter(images(4))
    before = adapter.state_dict()
    with pytest.raises(EstimationError, match="'1' sees values that are not finite"):
        adapter(torch.full((1, 3, 8, 8), torch.nan))
    after = adapter.state_dict()
    assert before["samples"] == after["samples"]
    assert torch.equal(before["stream"]["4"]["mean"], after["stream"]["4"]["mean"])
    assert not [m for m in net.modules() if m._forward_pre_hooks]


def test_online_refuses(net: nn.Sequential) -> None:
    with pytest.raises(EstimationError, match="prior and window to be above 0, got 0"):
        OnlineAdapter(net, prior=0)
    with pytest.raises(EstimationError, match="no normalisation layer at all"):
        OnlineAdapter(nn.Linear(2, 2))
