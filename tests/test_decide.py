"""What the guard decides on digits that it can judge, and that no label has a say in it."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import digits
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from adaptkit import Calibration, EstimationError, adapt, calibrate, evaluate
from adaptkit.estimation.trial import Trial
from adaptkit.guard import Decision, calibrated, decide, decided_statistics, guarded_statistics
from adaptkit.guard.calibrated import LEAST, decide_calibrated
from adaptkit.guard.fixed_point import fixed_point
from adaptkit.guard.forecast import Outlook
from adaptkit.guard.view import View
from adaptkit.guard.ways import Balanced, Early, Full, Source
from adaptkit.norms import norm_layers, read


@cache
def net() -> nn.Module:
    return digits.net()


@cache
def known() -> Calibration:
    x, y = digits.images()
    return calibrate(net(), [(2 * x[:400] - 1, y[:400])])


def target(classes: list[int] | None = None, gain: float = 1.0, count: int = 897) -> list[Any]:
    """Return digits that the net has not seen, of these classes, of this contrast about grey."""
    x, y = digits.images()
    x, y = gain * (2 * x[900:] - 1), y[900:]
    if classes:
        kept = torch.isin(y, torch.tensor(classes))
        x, y = x[kept], y[kept]
    return list(zip(x[:count].split(100), y[:count].split(100), strict=True))


def accuracy(decision: Decision, data: list[Any]) -> float:
    _, statistics = decided_statistics(decision, net(), data, samples="all")
    model = net() if statistics is None else statistics.apply(digits_copy())
    return evaluate(model, data).accuracy or 0.0


def digits_copy() -> nn.Module:
    import copy

    return copy.deepcopy(net())


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("classes", [None, [3, 8], [1]])
def test_clean_images_keep_the_source_whatever_their_classes(
    calibrated: bool, classes: list[int] | None
) -> None:
    decision = decide(net(), target(classes), calibration=known() if calibrated else None)
    assert decision.choice == "source"
    assert not decision.adapts
    assert decision.calibrated == calibrated
    assert decision.grounds


@pytest.mark.parametrize("calibrated", [True, False])
def test_low_contrast_of_all_classes_is_adapted_to(calibrated: bool) -> None:
    data = target(gain=0.3)
    decision = decide(net(), data, calibration=known() if calibrated else None)
    plain = evaluate(adapt(net(), data, samples="all"), data).accuracy or 0.0
    assert decision.adapts
    assert accuracy(decision, data) > plain - 0.02
    assert plain > 0.9


def test_low_contrast_of_two_classes_is_corrected_for() -> None:
    data = target([3, 8], gain=0.3)
    decision = decide(net(), data, calibration=known())
    plain = evaluate(adapt(net(), data, samples="all"), data).accuracy or 0.0
    assert decision.choice == "corrected"
    assert decision.shares is not None
    assert decision.shares[[3, 8]].sum() > 0.7
    assert accuracy(decision, data) > max(plain + 0.2, 0.85)


def test_inverted_digits_are_left_alone_by_the_sign_of_the_gain() -> None:
    decision = decide(net(), target(gain=-1.0), calibration=known())
    assert decision.choice == "source"
    assert (decision.figures["map_gain"] or 0) < 0


def two_classes() -> tuple[nn.Module, Calibration]:
    """Return the net with its outputs for 4 and 9 alone, and a calibration."""
    model = digits_copy()
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    last.weight = nn.Parameter(last.weight[[4, 9]])
    last.bias = nn.Parameter(last.bias[[4, 9]])
    x, y = digits.images()
    kept = torch.isin(y[:400], torch.tensor([4, 9]))
    return model, calibrate(model, [(2 * x[:400][kept] - 1, (y[:400][kept] == 9).long())])


def test_of_two_classes_that_are_both_there_none_is_missing() -> None:
    model, own = two_classes()

    def grounds(classes: list[int], gain: float = 1.0) -> str:
        return " ".join(decide(model, target(classes, gain), calibration=own).grounds)

    assert "few classes" not in grounds([4, 9])
    assert "few classes" in grounds([4])
    assert "light and dark" in grounds([4, 9], gain=-1.0)


def test_with_a_calibration_too_models_of_few_classes_have_to_gain_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gain = (LEAST.few + LEAST.ten) / 2
    told = SimpleNamespace(outlook=lambda _: {"all": Outlook(gain, 0.0), "early": Outlook(0, 0.0)})
    monkeypatch.setattr(calibrated, "learned", lambda calibrated: told)
    model, own = two_classes()
    few = decide(model, target([4, 9]), calibration=replace(own, maps=None))
    ten = decide(net(), target(), calibration=replace(known(), maps=None))
    assert (few.choice, ten.choice) == ("source", "balanced")


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("classes", [None, [0, 4, 6]])
def test_labels_have_no_say(calibrated: bool, classes: list[int] | None) -> None:
    data = target(classes, gain=0.4)
    order = torch.randperm(sum(len(y) for _, y in data))
    labels = torch.cat([y for _, y in data])[order].split(100)
    permuted = [(x, y) for (x, _), y in zip(data, labels, strict=True)]
    calibration = known() if calibrated else None
    found = [
        decide(net(), each, calibration=calibration)
        for each in (data, permuted, [x for x, _ in data])
    ]
    assert len({d.choice for d in found}) == 1
    assert found[0].figures == found[1].figures == found[2].figures
    models = [
        adapt(net(), each, guard="auto", calibration=calibration) for each in (data, permuted)
    ]
    first, second = ([read(m).mean for m in norm_layers(model).values()] for model in models)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_without_maps_the_predictions_decide() -> None:
    blind = replace(known(), maps=None)
    data = target([3, 8], gain=0.3)
    decision = decide(net(), data, calibration=blind)
    assert decision.choice == "corrected"
    assert decision.figures["forecast_corrected"] is not None
    assert accuracy(decision, data) > 0.85
    assert decide(net(), target([3, 8]), calibration=blind).choice == "source"
    assert decide(net(), target(gain=-1.0), calibration=replace(blind, features=None)).choice


def test_a_fixed_point_reproduces_itself() -> None:
    trial = Trial(net(), target([2, 5, 7], gain=0.4), samples="all")
    way = fixed_point(trial, known().moments)
    assert abs(way.run(trial).shares - way.shares).sum() < 0.05
    assert way.shares[[2, 5, 7]].sum() > 0.8


def test_shares_that_are_known_are_used_and_weighed() -> None:
    shares = torch.zeros(10)
    shares[[3, 8]] = 0.5
    data = target([3, 8], gain=0.3)
    decision = decide(net(), data, calibration=known(), shares=shares)
    assert decision.choice == "corrected"
    assert decision.shares is not None
    assert decision.shares.tolist() == shares.tolist()
    wrong = torch.zeros(10)
    wrong[1] = 1.0
    assert decide(net(), target(), calibration=known(), shares=wrong).choice == "source"


def test_early_and_balanced_ways_are_what_they_say() -> None:
    trial = Trial(net(), target(gain=0.5))
    early = Early().run(trial)
    names = list(trial.layers)
    for number, name in enumerate(names):
        mean, _ = early.seen.settled[name]
        same = torch.equal(mean, trial.stored[name].mean)
        assert same == (number >= round(0.6 * len(names)))
    balanced = Balanced(1.0, 2).run(trial)
    assert isinstance(balanced, View)
    weighted = balanced.seen.plain["features.1"].mean
    assert not torch.equal(weighted, Full().run(trial).seen.plain["features.1"].mean)


def test_rounds_of_balancing_end_where_predictions_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(net(), target(gain=0.5))
    run, runs = trial.run, 0

    def counted(*args: Any, **named: Any) -> Any:
        nonlocal runs
        runs += 1
        return run(*args, **named)

    monkeypatch.setattr(trial, "run", counted)
    long = Balanced(1.0, 40).run(trial)
    assert runs < 20
    done = runs
    again = Balanced(1.0, 39, 0.001).run(trial)  # a floor that lifts no class
    assert runs == done
    assert again is long


def test_the_guard_within_adapt() -> None:
    kept = adapt(net(), target([1]), guard="auto")
    for name, layer in norm_layers(kept).items():
        assert torch.equal(read(layer).mean, read(norm_layers(net())[name]).mean)
    moved = adapt(net(), target(gain=0.3), guard="auto", prior=8, layers="features.*")
    assert not torch.equal(
        read(norm_layers(moved)["features.1"]).mean, read(norm_layers(net())["features.1"]).mean
    )
    x = [x for x, _ in target(gain=0.3)]
    with pytest.raises(EstimationError, match="an iterator can be read once"):
        adapt(net(), iter(x), guard="auto")
    alike = adapt(net(), x, guard="auto", weight=lambda b: torch.ones(len(b)))
    for name, layer in norm_layers(adapt(net(), x, guard="auto")).items():
        torch.testing.assert_close(read(norm_layers(alike)[name]).mean, read(layer).mean)
    with pytest.raises(EstimationError, match="'off' or 'auto', got 'on'"):
        adapt(net(), x, guard="on")  # type: ignore[arg-type]


def test_streams_and_tolerances_are_for_plain_adabn() -> None:
    data = target(gain=0.3)
    how: dict[str, Any] = {"samples": None, "tolerance": None, "mode": "stream"}
    whole = Decision(Full(), "full", ("",), {}, None, False, 1)
    seen, applied = decided_statistics(whole, net(), data, **how)
    assert seen.mode == "stream"
    assert applied is seen
    trial = Trial(net(), target([3, 8], 0.3))
    corrected = decide_calibrated(trial, known(), Source().run(trial))
    seen, applied = decided_statistics(corrected, net(), data, **how)
    assert seen.mode == "exact"
    assert applied is not None
    kept = Decision(Source(), "source", ("",), {}, None, False, 1)
    assert decided_statistics(kept, net(), data)[1] is None


class _Counted(Dataset[Tensor]):
    def __init__(self, x: Tensor) -> None:
        self.x, self.read = x, 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Tensor:
        self.read += 1
        return self.x[index]


@pytest.mark.parametrize(("classes", "prior"), [(None, 0), ([3, 8], 16), ([1], 0)])
@pytest.mark.parametrize(
    ("samples", "count", "again"), [(256, 897, False), (None, 120, False), (64, 897, True)]
)
def test_what_was_run_to_decide_is_not_run_again(
    classes: list[int] | None,
    prior: float,
    samples: int | None,
    count: int,
    again: bool,  # the samples are others
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = _Counted(torch.cat([x for x, _ in target(classes, 0.3, count)]))
    data = DataLoader(images, batch_size=50)
    how: dict[str, Any] = {"samples": samples, "prior": prior}
    decision = decide(net(), data, prior=prior)
    expected = decided_statistics(decision, net(), data, **how)
    images.read, runs, run = 0, 0, Trial.run

    def counted(*args: Any, **named: Any) -> Any:
        nonlocal runs
        runs += 1
        return run(*args, **named)

    monkeypatch.setattr(Trial, "run", counted)
    found, *statistics = guarded_statistics(net(), data, **how)
    n = len(images)
    assert images.read == min(256, n) + (64 if again and n > 64 else 0)
    assert runs <= 10 + again * 6  # source, full, early, and rounds of balancing, 2 + 5
    assert (found.choice, found.figures) == (decision.choice, decision.figures)
    for mine, theirs in zip(statistics, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is None or theirs is None:
            continue
        assert (mine.samples, mine.available) == (theirs.samples, theirs.available)
        for name in theirs:
            torch.testing.assert_close(mine[name].mean, theirs[name].mean)
            torch.testing.assert_close(mine[name].variance(), theirs[name].variance())
    assert statistics[0] is not None
    assert statistics[0].errors() == pytest.approx(expected[0].errors(), rel=1e-4)


def test_models_that_give_no_classes_are_judged_by_their_images() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.body(x)
            return out

    x = [x for x, _ in target()]
    model = adapt(Dense(), x, samples="all")
    assert decide(model, x).choice == "source"
    far = [3 * part for part in x]
    assert decide(model, far).choice == "full"
    _, seen, applied = guarded_statistics(model, far, samples=256)
    assert applied is seen


def test_a_calibration_of_another_model_is_refused() -> None:
    other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    with pytest.raises(EstimationError, match="no norm layer"):
        decide(other, target(), calibration=known())


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_few_images_of_the_source_change_nothing(count: int) -> None:
    for calibration in (None, known()):
        decision = decide(net(), [target()[0][0][:count]], calibration=calibration)
        assert (decision.samples, decision.choice) == (count, "source")


def test_typical_statistics_do_not_hide_predictions_that_are_not_adabns() -> None:
    """Brightness that clips moves the statistics no farther than a mix of classes would."""
    bright = [((x + 0.8).clamp(max=1), y) for x, y in target()]
    decision = decide(net(), bright)
    before = evaluate(net(), bright).accuracy or 0.0
    assert accuracy(decision, bright) > before + 0.3


def test_a_calibration_of_other_classes_is_refused() -> None:
    other = digits_copy()
    other.classifier = nn.Linear(64, 5)
    with pytest.raises(EstimationError, match=r"calibration of 5 classes.*got one of 10"):
        decide(other, target(), calibration=known())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("calibrated", [True, False])
def test_the_gpu_decides_as_the_cpu(calibrated: bool) -> None:
    data = target([3, 8], gain=0.3)
    model = digits_copy().to("cuda")
    x, y = digits.images()
    there = calibrate(model, [(2 * x[:400] - 1, y[:400])]) if calibrated else None
    found = decide(model, data, calibration=there)
    here = decide(net(), data, calibration=known() if calibrated else None)
    assert found.choice == here.choice
    for name, value in here.figures.items():
        assert found.figures[name] == pytest.approx(value, rel=1e-2)
