"""Peers' methods do what their papers say, and every method is treated alike."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from adaptkit import adapt
from benchmarks import harness, methods, target_size
from benchmarks.harness import Target
from benchmarks.images import named
from benchmarks.methods import METHODS, NONE
from benchmarks.nets import ARCHITECTURES, PLAIN, Source, trained

Tensors = list[Tensor]


@pytest.fixture(scope="module")
def source() -> Source:
    """A net whose statistics fit its training images, after a little training."""
    images = named("digits")
    found = trained(PLAIN, images, seed=0, steps=8)
    x = images.standardised(images.x[:200].float() / 255)
    return Source(adapt(found.model, [x]), images, found.style)


@pytest.fixture
def batches(source: Source) -> Tensors:
    x = source.images.first(48)[0]
    return list(source.images.standardised(0.4 * x + 0.5).split(16))


def test_tent_norm_is_a_forward_in_train_mode(source: Source, batches: Tensors) -> None:
    found = methods.tent_norm(source, [], batches).logits
    model = copy.deepcopy(source.model).train()
    with torch.no_grad():
        expected = torch.cat([model(batch) for batch in batches])
    torch.testing.assert_close(found, expected)


def test_blending_by_batch(source: Source, batches: Tensors) -> None:
    """On a single batch it is what a prior is elsewhere in this project, by other code."""
    x = torch.cat(batches)
    model = adapt(source.model, [x], prior=16)
    found = methods.blended(16, source, [], [x]).logits
    with torch.no_grad():
        torch.testing.assert_close(found, model(x), rtol=1e-3, atol=1e-3)
    far = methods.blended(1e9, source, [], batches).logits
    unchanged = methods.none(source, [], batches).logits
    torch.testing.assert_close(far, unchanged, rtol=1e-3, atol=1e-3)
    own = methods.blended(0, source, [], batches).logits
    tent = methods.tent_norm(source, [], batches).logits  # biased variances
    assert (own.argmax(1) == tent.argmax(1)).float().mean() > 0.9


def test_peers_agree_where_they_have_to(source: Source, batches: Tensors) -> None:
    """The first layer of one batch; fvcore's variance is E[x²] − E[x]² in float32."""
    pytest.importorskip("fvcore")
    whole = [torch.cat(batches)]
    stored = []
    for name in (methods.UPDATE_BN, methods.PRECISE_BN, methods.EXACT):
        model = METHODS[name](source, whole, whole).model
        assert model is not None
        first = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        stored.append((first.running_mean, first.running_var))
    for mean, variance in stored[1:]:
        torch.testing.assert_close(mean, stored[0][0])
        torch.testing.assert_close(variance, stored[0][1], rtol=1e-3, atol=1e-4)


def test_adain_undoes_a_gain_and_an_offset(source: Source, batches: Tensors) -> None:
    images = source.images
    clean = list(images.standardised(images.first(48)[0]).split(16))
    bright, plain = (methods.adain(source, [], x).logits for x in (batches, clean))
    torch.testing.assert_close(bright, plain, rtol=1e-2, atol=1e-2)
    unchanged = methods.none(source, [], batches).logits
    assert (unchanged - plain).abs().max() > 0.5


def test_the_entropy_guard_keeps_or_adapts(source: Source, batches: Tensors) -> None:
    own, exact = methods.none(source, [], batches), methods.exact(0, source, batches, batches)
    adapts = methods._entropy(exact.logits) < methods._entropy(own.logits)
    found = methods.if_entropy_falls(source, batches, batches)
    expected = exact if adapts else own
    torch.testing.assert_close(found.logits, expected.logits)
    assert methods._entropy(torch.zeros(3, 10)) == pytest.approx(np.log(10))


@pytest.mark.parametrize("name", methods.METHODS | methods.GUARDED)
def test_methods_leave_the_source_and_keep_the_order(
    source: Source, batches: Tensors, name: str
) -> None:
    if name in METHODS and name not in methods.installed():
        pytest.skip("its package is missing")
    before = {key: value.clone() for key, value in source.model.state_dict().items()}
    outcome = methods.installed(name)[name](source, batches, batches)
    assert outcome.logits.shape == (48, 10)
    assert outcome.logits.isfinite().all()
    assert not source.model.training
    for key, value in source.model.state_dict().items():
        assert torch.equal(value, before[key])
    if outcome.model is not None:
        with torch.no_grad():
            last = outcome.model(batches[-1])
        torch.testing.assert_close(outcome.logits[-16:], last)


def test_rows(source: Source) -> None:
    x, y = source.images.first(60)
    target = Target("dark", (x - 0.3).clamp(0, 1), y, {"kind": 1}, batch=20)
    chosen = [NONE, methods.EXACT, methods.UPDATE_BN, "TENT norm"]
    rows = harness.rows(source, target, methods.installed(*chosen), more=harness.certificate)
    assert [row["method"] for row in rows] == chosen
    frame = pd.DataFrame(rows).set_index("method")
    assert (frame["before"] == frame.loc[NONE, "after"]).all()
    assert frame.loc[NONE, "change"] == 0
    np.testing.assert_allclose(frame["change"], frame["after"] - frame["before"])
    assert frame["change"].between(frame["ci_low"], frame["ci_high"]).all()
    assert (frame["samples"] == 60).all()
    assert (frame["seconds"] > 0).all()
    off = frame["statistics off by"]
    assert off[methods.EXACT] < 1e-3
    assert off[methods.UPDATE_BN] > 0.01
    assert np.isnan(off["TENT norm"])


def test_other_images_can_be_scored(source: Source) -> None:
    x, y = source.images.first(40)
    elsewhere = Target("", x[:20], y[:20], to_adapt=1 - x[20:])
    here = Target("", x[:20], y[:20])
    far, near = (
        harness.rows(source, t, methods.installed(methods.EXACT))[0]["after"]
        for t in (elsewhere, here)
    )
    assert far < near


def test_what_raises_is_a_row(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> methods.Outcome:
        raise ValueError("Expected more than 1 value\nper channel")

    chosen = {"broken": broken, NONE: methods.none}
    monkeypatch.setattr(methods, "installed", lambda: chosen)
    x, y = source.images.first(4)
    first, second = harness.rows(source, Target("", x, y))
    assert first["failed"] == "Expected more than 1 value"
    assert "after" not in first
    assert "failed" not in second
    frame = harness._frame([{"seed": 0, "architecture": "net", **first}, second])
    assert frame["after"].isna().tolist() == [True, False]
    assert frame["failed"].isna().tolist() == [False, True]
    assert {"torch", "processor", "device", "date"} < set(frame.columns)


def test_batches_come_in_the_order_of_the_images(source: Source) -> None:
    x, y = source.images.first(10)
    sizes: list[int] = []

    def method(_: Source, to_adapt: methods.Batches, to_score: methods.Batches) -> methods.Outcome:
        sizes.extend(map(len, to_adapt))
        whole = torch.cat(list(to_score))
        torch.testing.assert_close(whole, source.images.standardised(x))
        return methods.Outcome(nn.functional.one_hot(y, 10).float())

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(methods, "installed", lambda: {"labels": method})
        (row,) = harness.rows(source, Target("", x, y, batch=4))
    assert sizes == [4, 4, 2]
    assert row["after"] == 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_seed_makes_a_net(architecture: str) -> None:
    images = named("digits")
    nets = [trained(architecture, images, seed, 2) for seed in (0, 0, 1)]
    first, same, other = ([*net.model.parameters()] for net in nets)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert nets[0].style.mean.shape == (1,)


def test_the_distance_of_statistics(source: Source) -> None:
    """By numpy: the larger of two root mean squares a layer, and the root mean square of layers."""
    x = source.images.first(60)[0]
    part, whole = (target_size._estimated(source, x[:n]) for n in (20, 60))
    layers = []
    for name in whole:
        variance = np.asarray(whole[name].variance())
        in_std = (part[name].mean.numpy() - whole[name].mean.numpy()) / np.sqrt(variance)
        in_log = np.log(np.asarray(part[name].variance()) / variance)
        layers.append(max(np.mean(in_std**2), np.mean(in_log**2)))
    assert target_size.distance(part, whole) == pytest.approx(np.sqrt(np.mean(layers)), rel=1e-6)
    assert target_size.distance(whole, whole) == 0
