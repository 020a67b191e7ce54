"""The norm benchmark: what micro-batches can and cannot change, its data, and its tables."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from adaptkit.layers import BatchRenorm2d
from benchmarks import norms
from benchmarks.images import named
from benchmarks.norm_data import CORRUPTIONS
from benchmarks.norm_net import ResidualNet, placements
from benchmarks.norm_tables import by_condition, by_corruption, figure, jacobians, summary
from benchmarks.norm_training import BATCH, _drawn, accumulate
from benchmarks.tables import as_markdown

NORMS = placements(1)


def gradient(norm: str, micro: int) -> Tensor:
    """The gradient of a training step, in float64, of all parameters in one vector."""
    torch.manual_seed(0)
    net = ResidualNet(NORMS[norm]).double()
    x = torch.randn(8, 1, 28, 28, dtype=torch.float64)
    accumulate(net, x, torch.arange(8), micro)
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


@pytest.mark.parametrize("norm", NORMS)
def test_micro_batches_change_only_what_norms_over_the_batch_do(norm: str) -> None:
    whole = gradient(norm, 8)
    assert len(whole) == sum(p.numel() for p in ResidualNet(NORMS[norm]).parameters())
    for micro in (4, 2, 3):
        distance = float((gradient(norm, micro) - whole).norm() / whole.norm())
        assert distance > 0.1 if NORMS[norm].couples else distance < 1e-12


def test_each_norm_stands_in_its_place() -> None:
    def names(norm: str, kind: type[nn.Module]) -> list[str]:
        modules = ResidualNet(NORMS[norm]).named_modules()
        return [name for name, module in modules if isinstance(module, kind)]

    everywhere = names("BN", nn.BatchNorm2d)
    assert len(everywhere) == 9  # stem, two a block, two ways round
    for norm, kind in (
        ("Batch Renorm", BatchRenorm2d),
        ("IN", nn.InstanceNorm2d),
        ("GN", nn.GroupNorm),
        ("LN", nn.GroupNorm),
    ):
        assert names(norm, kind) == everywhere
    assert names("IBN-a", nn.InstanceNorm2d) == ["body.3.first.1.IN", "body.4.first.1.IN"]
    assert names("IBN-b", nn.InstanceNorm2d) == ["body.1", "body.3.after", "body.4.after"]
    assert names("IBN-b", nn.BatchNorm2d) == everywhere[1:]
    normalised = [n for n in names("WN", nn.Module) if n.endswith("parametrizations.weight.0")]
    weighted = (*names("BN", nn.Conv2d), *names("BN", nn.Linear))
    assert len(normalised) == len(weighted) == 10


def test_corruptions_change_images_and_are_the_same_each_time() -> None:
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    kept = x.clone()
    for corrupt in CORRUPTIONS.values():
        once, again = corrupt(x), corrupt(x)
        torch.testing.assert_close(once, again, rtol=0, atol=0)
        assert once.shape == x.shape
        assert once.min() >= 0
        assert once.max() <= 1
        assert ((once - x).abs().mean((1, 2, 3)) > 0.02).all()
    torch.testing.assert_close(x, kept, rtol=0, atol=0)


def test_two_classes_a_batch_and_other_ones_each_time() -> None:
    labels = torch.arange(10).repeat(30)
    pairs = set()
    for index in _drawn(labels, True, 20, seed=0):
        found, counts = labels[index].unique(return_counts=True)
        assert counts.tolist() == [BATCH // 2] * 2
        pairs.add(tuple(found.tolist()))
    assert len(pairs) > 10
    assert {label for pair in pairs for label in pair} == set(range(10))


def test_an_epoch_is_drawn_without_repeats() -> None:
    steps = list(_drawn(torch.zeros(300), False, 8, seed=0))
    assert [len(index) for index in steps] == [BATCH] * 8
    for epoch in (steps[:4], steps[4:]):
        assert len(torch.cat(epoch).unique()) == 4 * BATCH
    assert not torch.equal(steps[0], steps[4])
    again = list(_drawn(torch.zeros(300), False, 8, seed=0))
    assert all(torch.equal(a, b) for a, b in zip(steps, again, strict=True))


@pytest.mark.parametrize(
    ("norm", "condition"),
    [("BN", "micro-batch 4"), pytest.param("GN", "batch 64", marks=pytest.mark.slow)],
)
def test_one_run(norm: str, condition: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "images", lambda: (named("digits"), ""))
    job = norms.Job(norm, condition, seed=1, steps=2, test_images=50, jacobian_images=1)
    found = pd.DataFrame(norms._reported(job, norms.one(job)))
    accuracies = found[found["samples"].notna()]
    cases = ["clean", *CORRUPTIONS]
    assert (found["trained_as"] == condition).all()
    assert accuracies["before"].between(0, 1).all()
    if norm == "BN":
        assert accuracies["case"].tolist() == cases == found["case"].tolist()
        change = accuracies["after"] - accuracies["before"]
        np.testing.assert_allclose(accuracies["change"], change)
        assert accuracies["change"].between(accuracies["ci_low"], accuracies["ci_high"]).all()
        return
    assert accuracies["case"].tolist() == cases * 3
    conditions = ["batch 64", "micro-batch 4", "micro-batch 2"]
    assert accuracies["condition"].unique().tolist() == conditions
    assert "after" not in found
    assert found["case"][6:10].tolist() == [
        f"{part}, {when}" for when in ("initial", "trained") for part in ("layer", "body")
    ]
    spectra = found.loc[6:9, ["singular_5%", "singular_50%", "singular_95%"]]
    assert (spectra.diff(axis=1).iloc[:, 1:] > 0).all(axis=None)


def rows() -> pd.DataFrame:
    """Two norms and two seeds; of B there is nothing to adapt."""
    cases = ["clean", "noise", "blur", "layer, initial", "layer, trained", "body, initial"]
    cases.append("body, trained")
    found = []
    for norm in ("A", "B"):
        for condition in ("batch 64", "micro-batch 2"):
            for seed in (0, 1):
                for number, case in enumerate(cases if condition == "batch 64" else cases[:3]):
                    accuracy = number < 3
                    found.append(
                        {
                            "norm": norm,
                            "condition": condition,
                            "seed": seed,
                            "case": case,
                            "before": 0.8 - 0.1 * number + 0.02 * seed if accuracy else None,
                            "after": 0.9 if accuracy and norm == "A" else None,
                            **{f"singular_{q}%": None if accuracy else q / 50 for q in (5, 50, 95)},
                        }
                    )
    return pd.DataFrame(found)


def test_tables() -> None:
    first, second = as_markdown(summary(rows())).splitlines()[2:]
    assert first == "| A | 81.0 ± 1.0 | 81.0 ± 1.0 | 66 | 90 |"
    assert second == "| B | 81.0 ± 1.0 | 81.0 ± 1.0 | 66 |  |"
    spectra = jacobians(rows()).iloc[1].tolist()
    assert spectra == ["B", *["1 (0.1 to 1.9)"] * 4]
    table = by_condition(rows())
    assert table.iloc[1].tolist() == ["A", "micro-batch 2", 81.0, 90.0, 66.0, 90.0]
    assert by_corruption(rows()).to_dict("list") == {
        "norm": ["A", "B"],
        "clean": ["81.0 → 90.0", "81.0"],
        "noise": ["71.0 → 90.0", "71.0"],
        "blur": ["61.0 → 90.0", "61.0"],
    }


def _heights(axes: Any) -> list[float]:
    return [bar.get_height() for bar in axes.patches]


def test_figure() -> None:
    pytest.importorskip("matplotlib")
    drawn = figure(rows())
    drawn.canvas.draw()
    clean, corrupted, layer, body = drawn.axes
    assert _heights(clean) == pytest.approx([81] * 4)
    assert _heights(corrupted) == pytest.approx([66, 66, 90, np.nan], nan_ok=True)
    assert layer.get_yscale() == body.get_yscale() == "log"
