"""The forecast that the guard goes by without a calibration: inputs, trees, and learning."""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.ensemble import ExtraTreesRegressor
from torch import nn

from adaptkit import estimate
from adaptkit.estimation.trial import Seen, Trial
from adaptkit.guard import uncalibrated
from adaptkit.guard.class_features import ClassFeatures
from adaptkit.guard.evidence import calibrated_evidence, evidence
from adaptkit.guard.forecast import Forecast, Outlook, learned
from adaptkit.guard.uncalibrated import LEAST, decide_uncalibrated
from adaptkit.guard.view import View
from adaptkit.guard.ways import Balanced, Full, Source
from benchmarks import drawn, forecast
from benchmarks.drawn import drawing
from benchmarks.drawn.some import some
from benchmarks.forecast import RESULT, WAYS, held_out, learned_of, names, summary
from benchmarks.guard import CHOSEN_ON, REPORTED
from benchmarks.images import CLASSES


def view(logits: torch.Tensor) -> View:
    seen: Any = Seen(estimate(nn.BatchNorm1d(1), [torch.ones(2, 1)]), {}, [logits], None)
    return View(seen)


def test_evidence_is_what_it_says_it_is() -> None:
    sure, unsure = math.log(9), 0.0  # probabilities of 0.9 and 0.5
    one = view(torch.tensor([[sure, 0.0]] * 3 + [[0.0, sure]]))
    other = view(torch.tensor([[sure, 0.0], [unsure, 1e-9], [0.0, sure], [0.0, sure]]))
    found = evidence({"a": one, "b": other}, 0.5)
    assert found["log samples"] == pytest.approx(math.log(4))
    assert found["severity"] == pytest.approx(math.log(0.53))
    assert found["a = b"] == pytest.approx((2 / 4 - 0.5) / 0.5)
    assert found["a sure"] == pytest.approx(0.8)
    assert found["b sure"] == pytest.approx(0.8 * 3 / 4)
    entropy = -(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1))
    assert found["a unsure"] == pytest.approx(entropy)
    assert found["b unsure"] == pytest.approx(0.75 * entropy + 0.25)
    effective = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert found["a classes"] == pytest.approx(effective / 2)
    assert len(found) == 2 + 1 + 2 * 3


def test_evidence_does_not_hang_on_the_order_of_classes_or_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [5 * torch.randn(50, 7, generator=generator) for _ in range(2)]
    rows, columns = torch.randperm(50), torch.randperm(7)
    before = evidence(dict(zip("ab", map(view, logits), strict=True)), 0.1)
    moved = evidence({n: view(x[rows][:, columns]) for n, x in zip("ab", logits, strict=True)}, 0.1)
    assert moved == pytest.approx(before)


def table(count: int, seed: int = 0) -> pd.DataFrame:
    """Return made-up targets of four sets of images, on which `early` gains by what is sure."""
    rng = np.random.default_rng(seed)
    inputs = pd.DataFrame({name: rng.normal(size=count) for name in learned(True).names})
    before = rng.uniform(0.3, 0.6, count)
    gain = np.where(inputs["source sure"] > 0, 0.2, -0.2)
    about = {
        "case": rng.choice(["a", "b", "c", "d"], count),
        "corruption": rng.choice(["fog", "clean"], count),
        "even": rng.random(count) < 0.5,
        "learned": True,
        "classes": rng.choice([3, 5, CLASSES, 20], count),
        "samples": rng.choice([16, 32], count),
        "present": 1,
        "before": before,
        "full": before + 0.1,
        "all": before - 0.1,
        "early": before + gain,
        "corrected": before - 0.2,
    }
    return pd.DataFrame(about).join(inputs)


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_trees_are_scikit_learns(calibrated: bool) -> None:
    frame = table(300)
    found, inputs = learned_of(frame, calibrated), names(frame, calibrated)
    assert list(found.names) == inputs == list(learned(calibrated).names)
    x = frame[inputs].to_numpy(np.float32)
    changes = frame[list(WAYS[calibrated])].sub(frame["before"], axis=0).to_numpy()
    forest = ExtraTreesRegressor(
        forecast.TREES,
        min_samples_leaf=forecast.LEAF,
        max_features=forecast.FEATURES,
        random_state=0,
    ).fit(x, changes)
    new = table(100, seed=1)[inputs].to_numpy(np.float32)
    trees = np.stack([tree.predict(new) for tree in forest.estimators_], 1)
    np.testing.assert_allclose(found.each_tree(new), trees, atol=1e-6)
    outlook = found.outlook(dict(zip(inputs, map(float, new[0]), strict=True)))
    for number, way in enumerate(found.ways):
        mean, spread = trees[0, :, number].mean(), trees[0, :, number].std()
        assert outlook[way] == pytest.approx(Outlook(mean, spread), abs=1e-6)
    assert outlook["early"].cautious(0.5) == pytest.approx(
        outlook["early"].change - outlook["early"].spread / 2
    )


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_forecasts_that_come_along_are_what_the_committed_targets_teach(
    calibrated: bool,
) -> None:
    frame = pd.read_csv(RESULT)
    again, known = learned_of(frame, calibrated), learned(calibrated)
    assert (again.names, again.ways) == (known.names, known.ways)
    x = frame[list(known.names)].to_numpy()
    mine, theirs = (each.each_tree(x).mean(1) for each in (again, known))
    # Another scikit-learn may draw other trees.
    assert np.abs(mine - theirs).mean() < 0.005
    assert set(frame["case"][frame["learned"]]) == set(forecast.IMAGES)
    assert set(frame["case"]) == set(forecast.EVERY)
    assert not set(REPORTED) & set(forecast.IMAGES)
    assert set(CHOSEN_ON) < set(forecast.IMAGES)


def test_a_set_of_images_is_forecast_by_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = table(1000)
    seen: list[set[str]] = []
    learn = forecast.learned_of

    def noted(part: pd.DataFrame, calibrated: bool, told: tuple[str, ...]) -> Forecast:
        seen.append(set(part["case"]))
        return learn(part, calibrated, told)

    monkeypatch.setattr(forecast, "learned_of", noted)
    told = held_out(frame, calibrated=False)
    assert [len({"a", "b", "c", "d"} - each) for each in seen] == [1] * 4
    assert told.index.equals(frame.index)
    right = (told["early"] > 0) == (frame["early"] > frame["before"])
    assert right.mean() > 0.9


def test_figures_of_limits() -> None:
    frame = table(400)
    found = summary(frame)
    never, always = found.iloc[0], found.iloc[1]
    assert (never["harm, %"], never["kept, %"]) == (0, 0)
    assert (always["harm, %"], always["kept, %"]) == (0, 100)
    assert not found[forecast.ALIKE].equals(found["harm, %"])
    for name, part in found.iloc[2:].groupby("forecast"):
        marked = ", ".join(filter(None, part["the guard's of"]))
        assert sorted(marked.split(", ")) == ["few", "more", "ten"], name
        least, most = part.iloc[-1], part.iloc[0]
        assert least["accuracy, %"] <= most["accuracy, %"]
        assert least["harm, %"] <= most["harm, %"] < 20
        better = 100 * frame["full"].mean()
        assert most["regret, points"] == pytest.approx(better - most["accuracy, %"], abs=0.1)


def test_who_is_told_the_mix_of_classes_keeps_more() -> None:
    frame = table(600)
    frame["early"] = frame["before"] + np.where(frame["even"], 0.2, -0.2)
    told = forecast.bound(frame)
    assert (told["harm, %"] <= [7, 3]).all()
    assert (told["accuracy, %"] > 100 * frame["before"].mean() + 5).all()
    blind = summary(frame).iloc[2:]
    assert told["accuracy, %"].min() > blind["accuracy, %"].max()


class _Told(Forecast):
    """Says the same of every target."""

    def __init__(self, **outlooks: Outlook) -> None:
        object.__setattr__(self, "told", outlooks)

    def outlook(self, _: Any) -> dict[str, Outlook]:
        told: dict[str, Outlook] = self.told  # type: ignore[attr-defined]
        return told


NO = Outlook(-1.0, 0.0)


@pytest.mark.parametrize(
    ("outlooks", "count", "choice"),
    [
        ({"all": Outlook(0.2, 0.1), "early": NO}, 60, "balanced"),
        ({"all": Outlook(0.2, 0.1), "early": NO}, 29, "full"),
        ({"all": Outlook(0.2, 0.2), "early": Outlook(0.19, 0.0)}, 60, "early"),  # less doubt
        ({"all": Outlook(0.2, 0.1), "early": Outlook(0.16, 0.0)}, 60, "balanced"),  # near
        ({"all": Outlook(0.2, 0.8), "early": NO}, 60, "source"),  # too much of it
        ({"all": Outlook(LEAST.ten, 0.0), "early": NO}, 60, "source"),  # too little
        ({"all": Outlook(0.9, 0.0), "early": NO}, 7, "source"),  # too few images
    ],
)
def test_the_better_way_is_taken_where_it_gains_enough_for_its_doubt(
    outlooks: dict[str, Outlook], count: int, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uncalibrated, "learned", lambda calibrated: _Told(**outlooks))
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, CLASSES), nn.BatchNorm1d(CLASSES))
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    trial = Trial(net.eval(), [x])
    decision = decide_uncalibrated(trial, Source().run(trial))
    assert decision.choice == choice
    assert isinstance(decision.way, {"balanced": Balanced, "full": Full}.get(choice, object))
    if count >= 8:
        assert decision.figures["forecast_all"] == outlooks["all"].change
        assert decision.figures["forecast_spread"] is not None


# Of MNIST there is no part to be had quickly.
@pytest.mark.parametrize("name", sorted(set(drawn.NAMES) - {"scattered MNIST"}))
def test_images_that_are_drawn_are_the_same_each_time_and_of_all_classes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "TRAIN", 50)
    monkeypatch.setattr(drawing, "TEST", 150)
    found, again = drawn.NAMES[name](), drawn.NAMES[name]()
    assert found.name == name
    assert torch.equal(found.x, again.x)
    assert torch.equal(found.test_y, again.test_y)
    assert found.x.dtype == torch.uint8
    assert found.x.shape[2:] == (28, 28)
    assert found.test_y.unique().tolist() == list(range(found.classes))
    assert not torch.equal(found.x[:50], found.test_x[:50])
    assert found.x.float().std() > 15


def test_models_of_few_classes_have_to_gain_more(monkeypatch: pytest.MonkeyPatch) -> None:
    told = _Told(all=Outlook((LEAST.few + LEAST.ten) / 2, 0.0), early=NO)
    monkeypatch.setattr(uncalibrated, "learned", lambda calibrated: told)
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    found = []
    for classes in (2, 9, 10, 11):
        trial = Trial(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, classes)).eval(), [x])
        found.append(decide_uncalibrated(trial, Source().run(trial)).choice)
    assert found == ["source", "source", "balanced", "balanced"]


def test_some_classes_of_images_count_from_0() -> None:
    images = drawn.named("digits")
    few = some("two", images, (9, 4))
    assert few.classes == 2
    assert torch.equal(few.test_x[few.test_y == 0], images.test_x[images.test_y == 9])
    assert torch.equal(few.x[few.y == 1], images.x[images.y == 4])
    assert len(few.x) == int(((images.y == 4) | (images.y == 9)).sum())


def test_with_a_calibration_there_is_also_what_the_source_shows_of_itself() -> None:
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(90, 4)), np.arange(90) % 3
    features = ClassFeatures.of(vectors.astype(np.float32), labels, 3)
    own: Any = SimpleNamespace(features=features, confidence=0.8, typicality=(0.1, 0.2, 0.4, 0.5))
    z = rng.normal(3, 1, size=(20, 4)).astype(np.float32)
    logits = torch.from_numpy(rng.normal(size=(20, 3)))
    one = dataclasses.replace(view(logits), seen=dataclasses.replace(view(logits).seen, features=z))
    found = calibrated_evidence({"a": one}, 0.6, own)
    assert found["severity / typical"] == pytest.approx(math.log(0.6 / 0.4 + 0.03))
    sure = logits.softmax(1).max(1).values.mean().item()
    assert found["a sure / expected"] == pytest.approx(sure / 0.8)
    within = vectors - np.stack([vectors[labels == k].mean(0) for k in range(3)])[labels]
    ridge = 0.01 * np.trace(within.T @ within / 90) / 4
    inverse = np.linalg.inv(within.T @ within / 90 + ridge * np.eye(4))
    off = [[d @ inverse @ d for d in x - features.means] for x in z.astype(float)]
    assert found["a far"] == pytest.approx(math.log(np.min(off, axis=1).mean() / 4), rel=1e-6)
    assert set(evidence({"a": one}, 0.6)) < set(found)
