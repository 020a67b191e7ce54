"""What a report's charts show, against the definitions, and that papers can have them."""

import builtins
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from adaptkit import DependencyError, Evaluation, adapt, compare, estimate, evaluate_dense
from adaptkit.norms import Stored
from adaptkit.quality import quality
from adaptkit.report import Report, Row
from adaptkit.report.cells import short
from adaptkit.report.charts import (
    Chart,
    Series,
    confusion_chart,
    precision_chart,
    recall_chart,
)
from adaptkit.report.charts.projection import projection_chart
from adaptkit.report.page.spec import spec
from adaptkit.report.pictures import changed

NAMES = ("layers", "channels", "recall", "shares", "reliability", "confusion", "confidence")


def evaluation(
    seed: int, right: float, *, n: int = 400, classes: int = 5, labelled: bool = True
) -> Evaluation:
    """Predictions of which a share is right, more often where the confidence is high."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    confidence = rng.uniform(1 / classes, 1, n)
    hit = rng.random(n) < right * confidence / confidence.mean()
    predictions = np.where(hit, labels, rng.integers(0, classes, n))
    layers = {
        "a": Stored(torch.full((3,), float(seed)), torch.ones(3), 0.0),
        "b": Stored(torch.tensor([0.0, 2.0 * seed]), torch.tensor([1.0, 4.0**seed]), 0.0),
    }
    entropy = rng.uniform(0, np.log(classes), n)
    return Evaluation(
        predictions, confidence, entropy, labels if labelled else None, layers, classes
    )


def charts(report: Report) -> dict[str, Chart]:
    return {chart.name: chart for chart in report.charts}


def both(**options: Any) -> tuple[Evaluation, Evaluation]:
    return evaluation(0, 0.4, **options), evaluation(1, 0.7, **options)


def series(chart: Chart, name: str, panel: int = 0) -> Series:
    return next(s for s in chart.panels[panel].series if s.name == name)


def test_with_labels_and_without_there_is_what_can_be_known() -> None:
    assert set(charts(compare(*both()))) == {*NAMES, "entropy"}
    without = set(charts(compare(*both(labelled=False))))
    assert without == {*NAMES, "entropy"} - {"recall", "reliability"}


def test_reliability_is_confidence_against_accuracy_in_the_bins_of_the_ece() -> None:
    before, after = both()
    chart = charts(compare(before, after))["reliability"]
    for name, found in (("before", before), ("after", after)):
        line = series(chart, name)
        upper = np.arange(1, 16) / 15
        of = np.searchsorted(upper, found.confidence)
        assert found.correct is not None
        want = [
            (found.confidence[of == b].mean(), found.correct[of == b].mean()) for b in np.unique(of)
        ]
        np.testing.assert_allclose(np.stack([line.x, line.y], 1), want)
        assert line.low is not None
        assert line.high is not None
        assert ((line.low <= line.y) & (line.y <= line.high)).all()
        ece = 100 * quality(found)["ece"]
        assert f"{ece:.1f}% {name}" in chart.panels[0].finding
    sizes = [int(label.split()[0].replace(",", "")) for label in series(chart, "after").labels]
    assert sum(sizes) == 400


def test_confusion_is_the_change_of_shares_of_each_class() -> None:
    before, after = both()
    chart = charts(compare(before, after, classes=list("abcde")))["confusion"]
    assert chart.grid is not None
    shares = [confusion_matrix(e.labels, e.predictions, normalize="true") for e in (before, after)]
    np.testing.assert_allclose(chart.grid.values, 100 * (shares[1] - shares[0]), atol=1e-9)
    np.testing.assert_allclose(chart.grid.values.sum(1), 0, atol=1e-9)
    assert list(chart.grid.rows) == list("abcde")
    first = chart.table.iloc[0]
    i, j = "abcde".index(first["class"]), "abcde".index(first["predicted as"])
    assert first["points"] == pytest.approx(chart.grid.values[i, j])
    assert first["images"] == round(0.8 * chart.grid.values[i, j])  # of 80 in each class
    assert abs(first["images"]) == chart.table["images"].abs().max()
    assert f"{first['class']} as {first['predicted as']}, " in chart.finding


def test_without_labels_it_is_where_predictions_moved() -> None:
    before, after = both(labelled=False)
    chart = charts(compare(before, after))["confusion"]
    assert chart.grid is not None
    want = confusion_matrix(before.predictions, after.predictions, normalize="true")
    np.fill_diagonal(want, 0)
    np.testing.assert_allclose(chart.grid.values, 100 * want)
    moved = int((before.predictions != after.predictions).sum())
    assert chart.finding.startswith(f"{moved} of 400 predictions changed")
    assert (chart.table["predicted before"] != chart.table["predicted after"]).all()


def test_of_many_classes_the_confusion_shows_those_that_changed_most() -> None:
    before, after = both(classes=60, n=6000)
    moved = after.predictions.copy()
    assert after.labels is not None
    moved[after.labels == 41] = 52
    after = Evaluation(
        moved, after.confidence, after.entropy, after.labels, after.layers, after.classes
    )
    chart = charts(compare(before, after))["confusion"]
    assert chart.grid is not None
    assert chart.grid.values.shape == (30, 30)
    assert {"41", "52"} <= set(chart.grid.rows)
    assert chart.table.iloc[0][:2].tolist() == ["41", "52"]


def changed_to(evaluation: Evaluation, predictions: Any, **options: Any) -> Evaluation:
    return replace(evaluation, predictions=np.asarray(predictions, dtype=np.int64), **options)


def test_confusions_that_cancel_and_predictions_that_are_none() -> None:
    base = evaluation(0, 1.0, n=4, classes=2)
    swapped = compare(changed_to(base, [0, 0, 1, 1]), changed_to(base, [1, 1, 0, 0]))
    assert charts(swapped)["confusion"].finding == "No class's confusions changed in sum."
    grid = charts(compare(changed_to(base, [0, 1, 0, 1]), changed_to(base, [-1, 1, 0, 1])))[
        "confusion"
    ].grid
    assert grid is not None
    assert list(grid.columns) == ["0", "1", "none"]
    assert grid.values[0].tolist() == [-50, 0, 50]
    same = changed_to(base, [0, 1, 0, 1], labels=None)
    assert charts(compare(same, same))["confusion"].finding == "No prediction changed."


def test_evaluations_that_do_not_know_their_classes() -> None:
    base = evaluation(0, 1.0, n=6, classes=6)
    pair = [changed_to(base, p, classes=None) for p in ([0] * 6, [1] * 6)]
    found = charts(compare(*pair))
    assert found["confusion"].grid is not None
    assert list(found["confusion"].grid.rows) == [*"012345"]
    steps = series(found["entropy"], "after")
    assert steps.x[-1] == pytest.approx(base.entropy.max())
    assert "undecided" not in found["entropy"].caption


def test_memory_of_the_confusions_does_not_grow_with_the_classes() -> None:
    before, after = (evaluation(seed, 0.5, n=500, classes=200_000) for seed in (0, 1))
    chart = confusion_chart(before, after)
    assert chart.grid is not None
    assert chart.grid.values.shape == (30, 30)


def test_layers_are_in_order_of_depth_and_the_channels_start_with_the_one_that_moved_most() -> None:
    found = charts(compare(*both()))
    assert list(found["layers"].ticks) == ["a", "b"]
    means = series(found["layers"], "before", 1)
    np.testing.assert_allclose(means.y, [1.0, 2.0**0.5])  # in standard deviations of the source's
    assert np.abs(series(found["layers"], "after", 1).y).max() == 0
    channels = found["channels"]
    assert channels.panels[channels.first].name == "b"
    mean, log_variance = channels.panels[1].series
    np.testing.assert_allclose(mean.y, [0, 2])
    np.testing.assert_allclose(log_variance.y, [0, np.log(4)])


def test_classes_are_in_order_of_their_change() -> None:
    chart = charts(compare(*both(), classes=list("abcde")))["recall"]
    change = series(chart, "after").y - series(chart, "before").y
    assert (np.diff(change) >= 0).all()
    np.testing.assert_allclose(chart.table["change, points"], change)
    assert list(chart.ticks) == chart.table["class"].tolist()


@pytest.mark.parametrize("name", ["confidence", "entropy"])
def test_distributions_hold_every_image(name: str) -> None:
    before, after = both()
    before.confidence[3] = before.entropy[3] = np.nan
    chart = charts(compare(before, after))[name]
    for role in ("before", "after"):
        steps = series(chart, role)
        assert steps.y[:-1].sum() == pytest.approx(100)
        assert steps.y[-1] == steps.y[-2]  # steps hold up to the last edge


def test_precision_goes_through_what_was_measured_and_falls_by_the_root() -> None:
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3))
    statistics = estimate(net, [torch.randn(50, 3)])
    a, b = both()
    chart = charts(compare(a, b, statistics=None))
    assert "precision" not in chart
    layers = {n: Stored(torch.zeros(3), torch.ones(3), 0.0) for n in ("0", "1")}
    a, b = (
        Evaluation(e.predictions, e.confidence, e.entropy, e.labels, layers, e.classes)
        for e in (a, b)
    )
    found = charts(compare(a, b, statistics=statistics))["precision"]
    at = series(found, "the worst layer, as measured")
    assert at.x.tolist() == [50]
    assert at.y[0] == pytest.approx(100 * max(statistics.errors().values()))
    curve = series(found, "the worst layer, by 1/√n")
    np.testing.assert_allclose(curve.y * np.sqrt(curve.x), at.y[0] * np.sqrt(50))


def test_precision_of_one_layer_and_of_equal_images() -> None:
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    found = precision_chart(estimate(net, [torch.randn(50, 3)]))
    assert found is not None
    assert len(found.panels[0].series) == 2
    assert list(found.table.columns) == ["images", "the worst layer, %"]
    same = torch.randn(1, 3, 4, 4).repeat(6, 1, 1, 1)
    assert precision_chart(estimate(torch.nn.BatchNorm2d(3), [same])) is None
    assert precision_chart(None) is None


def test_a_projection_is_the_sources_principal_components() -> None:
    rng = np.random.default_rng(0)
    source = rng.normal(size=(60, 5)) * [9, 4, 1, 1, 1] + 3
    before, after = source[:40] + 7, source[:40]
    chart = projection_chart(before, after, source)
    assert chart is not None
    centred = source - source.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    for panel, vectors in zip(chart.panels, (before, after), strict=True):
        own, target = panel.series
        want = (vectors - source.mean(0)) @ axes.T
        np.testing.assert_allclose(np.abs(target.x), np.abs(want[:, 0]), rtol=1e-6)
        np.testing.assert_allclose(np.abs(target.y), np.abs(want[:, 1]), rtol=1e-6, atol=1e-9)
        assert len(own.x) == 60
    limits = np.array(chart.limits)
    every = np.concatenate([np.stack([s.x, s.y]) for p in chart.panels for s in p.series], 1)
    assert (limits[:, 0] <= every.min(1)).all()
    assert (limits[:, 1] >= every.max(1)).all()
    assert "principal components (PCA) of the source's images" in chart.caption


def test_there_is_no_projection_where_there_is_nothing_to_see() -> None:
    few = np.ones((2, 4))
    assert projection_chart(few, few) is None
    assert projection_chart(np.ones((9, 4)), np.ones((9, 4))) is None
    assert projection_chart(np.full((9, 4), np.nan), np.ones((9, 4))) is None
    assert projection_chart(np.arange(18.0).reshape(9, 2), np.ones((9, 2))) is None
    without = projection_chart(np.random.default_rng(0).normal(size=(9, 4)), np.ones((9, 4)))
    assert without is not None
    assert "--source-data" in without.caption


def test_best_and_worst_changes() -> None:
    before, after = both()
    best, worst = changed(before, after, 5)
    assert before.correct is not None
    assert after.correct is not None
    assert len(best) == len(worst) == 5
    assert (~before.correct & after.correct)[best].all()
    assert (before.correct & ~after.correct)[worst].all()
    every = after.confidence[~before.correct & after.correct]
    assert after.confidence[best].tolist() == sorted(every, reverse=True)[:5]
    before, after = both(labelled=False)
    best, worst = changed(before, after, 5)
    assert (before.predictions != after.predictions)[[*best, *worst]].all()
    assert (after.confidence > before.confidence)[best].all()
    assert (after.confidence < before.confidence)[worst].all()


def test_figures_are_drawn_for_papers(tmp_path: Any) -> None:
    hostile = ["$\\frac{$", "\u202eb", "long " * 2000, "<b>", "%s"]
    report = compare(*both(), classes=hostile)
    figures = report.figures()
    assert set(figures) == {chart.name for chart in report.charts}
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.pdf")
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert figure.axes[0].get_xlabel()
    assert len(figures["layers"].axes) == 3


def test_figures_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **named)

    report = compare(*both())
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DependencyError, match=r"pip install adaptkit\[plot\]"):
        report.figures()


@given(st.text(), st.integers(1, 50))
def test_short_names_can_be_seen(text: str, most: int) -> None:
    found = short(text, most)
    assert len(found) <= most
    assert found.isprintable()


@given(st.lists(st.text(), min_size=5, max_size=7))
def test_what_the_page_draws_is_json_without_a_tag(names: list[str]) -> None:
    rows = [Row("recall", f"class:{name}", 0.25, 0.5, 0.25, n=3) for name in names]
    for chart in (recall_chart(rows), confusion_chart(*both(), names)):
        assert chart is not None
        found = spec(chart)
        for panel in found["panels"]:
            del panel["finding"]  # which the page sets as text
        text = json.dumps(found, allow_nan=False)
        assert "<" not in text.replace("<extra></extra>", "")


def test_segmentation_has_its_charts() -> None:
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 4, 1))
    batches = [(torch.randn(6, 3, 5, 5) + 1, torch.randint(0, 4, (6, 5, 5)))]
    before, after = evaluate_dense(net, batches), evaluate_dense(adapt(net, batches), batches)
    found = charts(compare(before, after))
    want = {"recall", "shares", "confidence", "entropy", "layers", "channels"}
    assert set(found) == want
    assert "intersection over union" in found["recall"].panels[0].y
    assert set(compare(before, after).figures()) == want
