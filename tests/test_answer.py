"""What a report comes to in words: right for each kind of run, and no more than is known."""

from typing import Any

import pytest

from adaptkit.report import Report, Row
from adaptkit.report.answer import decision, headline
from adaptkit.report.charts import Chart
from adaptkit.report.page import render, run_page

ENTROPY = Row("entropy_mean", "all", 0.9, 0.4, -0.5, -0.6, -0.4, 0.0001, 200)
ESTIMATE = Row("accuracy_atc", "all", 0.6, 0.9, 0.3, n=200)


def report(*rows: Row, **details: Any) -> Report:
    about = {
        "method": "adabn",
        "outputs": {"kind": "classes"},
        "samples": {"images": 2000, "estimated": 1024},
        "layers": {"adapted": ["a", "b"]},
    }
    return Report((*rows, ENTROPY), {**about, **details})


def accuracy(change: float, p: float) -> Row:
    return Row("accuracy", "all", 0.5, 0.5 + change, change, change - 0.01, change + 0.01, p, 200)


def iou(low: float, high: float) -> Row:
    return Row("mean_iou", "all", 0.2, 0.2 + (low + high) / 2, (low + high) / 2, low, high, n=9)


def test_measured_and_estimated_accuracy_stand_beside_each_other() -> None:
    assert headline(report(accuracy(0.25, 0.001), ESTIMATE)) == (
        "Adapted 2 norm layers on 1,024 of 2,000 images, without labels. Accuracy estimated from "
        "labelled source images: 60% → 90% (a guess, not a measurement). Measured accuracy: 50.0% "
        "→ 75.0% (+25.0 points, 95% interval +24.0 to +26.0)."
    )
    assert "Measured" not in headline(report(ESTIMATE))
    assert "not known" not in headline(report(ESTIMATE))


def test_without_labels_it_says_why_nothing_is_known() -> None:
    assert headline(report()).endswith("there are no labels of the model's classes.")
    assert headline(report(outputs={"kind": "other"})).endswith("cannot be scored.")
    assert headline(report(method="adain")).startswith("Restyled 2,000 images to the source's")


@pytest.mark.parametrize(
    ("row", "ending"),
    [
        (accuracy(0.25, 0.001), "By the labels adapting is better."),
        (accuracy(-0.25, 0.001), "By the labels the source is better."),
        (accuracy(0.25, 0.2), "By the labels the two are not told apart."),
        (iou(0.01, 0.02), "By the labels adapting is better."),
        (iou(-0.02, -0.01), "By the labels the source is better."),
        (iou(-0.01, 0.02), "By the labels the two are not told apart."),
        (ESTIMATE, "without labels no figure here proves it better."),
    ],
)
def test_the_decision_goes_by_the_labels_that_there_are(row: Row, ending: str) -> None:
    assert decision(report(row)).endswith(ending)


def test_the_decision_says_what_was_written() -> None:
    assert decision(report()).startswith("The adapted model was written")
    packed = report(arguments={"stats_only": True})
    assert decision(packed).startswith("The target's statistics were written")
    assert decision(report(method="adain")).startswith("The source model was written with a")


def test_the_page_promises_only_what_it_shows() -> None:
    nothing = render(run_page(report(outputs={"kind": "other"})))
    assert "Cannot be known: whether the accuracy" in nothing
    assert "Can be seen" not in nothing
    assert "shares of the predictions" not in nothing
    layers = Chart("layers", "Layers", "layer", "How far.")
    found = run_page(Report((ENTROPY,), report().details, (layers,)))
    said = next(section for section in found.sections if section.title == "Without labels").items
    assert said[-1].startswith("Can be seen: how far the domain moved")
    assert "predictions changed" not in said[-1]
    assert not any("AdaBN assumes" in line for line in run_items(report(method="adain")))


def run_items(of: Report) -> list[str]:
    return [line for section in run_page(of).sections for line in section.items]
