"""compare() and the report's two files."""

import io
import json
import posixpath
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions

from adaptkit import DataError, Evaluation, OutputError, compare
from adaptkit.norms import Stored
from adaptkit.report import Report, Row
from adaptkit.shift import symmetric_kl

COLUMNS = ["metric", "scope", "before", "after", "change", "ci_low", "ci_high", "p_value", "n"]
LABELS = np.arange(40) % 4


def evaluation(
    wrong: int, *, labels: np.ndarray | None = LABELS, mean: float = 0.0, n: int = 40
) -> Evaluation:
    predictions = (np.arange(n) % 4).astype(np.int64)
    predictions[:wrong] = (predictions[:wrong] + 1) % 4
    return Evaluation(
        predictions=predictions,
        confidence=np.linspace(0.4, 0.9, n),
        entropy=np.linspace(1.0, 0.2, n) ** (1 + mean),
        labels=labels,
        layers={"bn1": Stored(torch.full((3,), mean), torch.ones(3), 0.0)},
    )


def test_schema_1() -> None:
    frame = compare(evaluation(20), evaluation(5, mean=1.0)).to_frame()
    assert list(frame.columns) == COLUMNS
    assert frame[["metric", "scope"]].values.tolist() == [
        *([name, "all"] for name in ("accuracy", "balanced_accuracy", "macro_f1")),
        *([name, "all"] for name in ("ece", "ece_equal_mass")),
        *(["recall", f"class:{k}"] for k in range(4)),
        *([name, "all"] for name in ("confidence_mean", "entropy_mean", "agreement")),
        *(["predicted_share", f"class:{k}"] for k in range(4)),
        *(
            [name, scope]
            for name in ("symmetric_kl", "mean_shift", "log_var_shift")
            for scope in ("all", "layer:bn1")
        ),
    ]
    accuracy = frame.iloc[0]
    assert (accuracy.before, accuracy.after, accuracy.change, accuracy.n) == (0.5, 0.875, 0.375, 40)
    assert accuracy.p_value == pytest.approx(2 * 0.5**15)
    rows: dict[Any, Any] = {
        (r.metric, r.scope): (r.before, r.after, r.change) for r in frame.itertuples()
    }
    assert rows["symmetric_kl", "all"] == (1.0, 0.0, -1.0)
    assert rows["mean_shift", "layer:bn1"] == (1.0, 0.0, -1.0)
    assert rows["log_var_shift", "all"] == (0.0, 0.0, 0.0)
    assert rows["balanced_accuracy", "all"][2] == pytest.approx(0.375)
    assert rows["agreement", "all"][1] == pytest.approx(1 - 15 / 40)
    assert rows["recall", "class:0"] == (0.5, 0.8, pytest.approx(0.3))


def test_csv_is_tidy_and_an_unknown_is_empty(tmp_path: Path) -> None:
    report = compare(evaluation(20), evaluation(5, mean=1.0))
    text = report.to_csv()
    assert text is not None
    lines = text.splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert "symmetric_kl,layer:bn1,1.0,0.0,-1.0,,,," in lines
    back = pd.read_csv(io.StringIO(text))
    pd.testing.assert_frame_equal(back, report.to_frame(), check_dtype=False)
    assert report.to_csv(tmp_path / "r.csv") is None
    assert (tmp_path / "r.csv").read_text(encoding="utf-8") == text
    with pytest.raises(OutputError, match="cannot write"):
        report.to_csv(tmp_path / "missing" / "r.csv")


def test_json_holds_details_and_rows(tmp_path: Path) -> None:
    report = compare(evaluation(1), evaluation(1), details={"seed": 3})
    report.to_json(tmp_path / "r.json")
    record = json.loads((tmp_path / "r.json").read_text())
    assert (record["schema"], record["seed"]) == (1, 3)
    rows = {row["metric"]: row for row in record["rows"]}
    assert [*rows][:2] == ["accuracy", "balanced_accuracy"]
    assert rows["confidence_mean"]["p_value"] is None  # the confidence did not change at all


HOSTILE = ("a/../b", "<script>alert(1)</script>", "a_b_2", "a?b", "a*b", "naïve 猫", "." * 3)


def named(*classes: str) -> Report:
    return Report(tuple(Row("recall", f"class:{name}", 0.5, 1.0, 0.5) for name in classes))


def test_a_flat_dict_has_names_that_loggers_take() -> None:
    """MLflow takes letters, digits, "_-. " and "/", and no path that has a shorter way."""
    rows = (Row("accuracy", "all", 0.5, 0.75, 0.25, n=8), Row("ece", "all", None, 0.1, None))
    found = Report((*rows, *named(*HOSTILE).rows)).to_dict()
    assert found["accuracy/before"] == 0.5
    assert found["accuracy/change"] == 0.25
    assert [name for name in found if name.startswith("ece")] == ["ece/after"]
    assert "recall/class_naïve 猫/after" in found
    assert found["recall/class_a_b/before"] == found["recall/class_a_b_3/before"] == 0.5
    assert len(found) == 4 + 3 * len(HOSTILE)
    for name in found:
        assert re.fullmatch(r"[/\w.\- ]+", name)
        assert posixpath.normpath(name) == name


def test_a_summary_writer_gets_every_figure() -> None:
    seen: list[tuple[str, float, int | None]] = []

    class Writer:
        def add_scalar(self, tag: str, value: float, global_step: int | None) -> None:
            seen.append((tag, value, global_step))

    report = named("a", "b")
    report.log_to(Writer(), step=7)
    assert seen == [(name, value, 7) for name, value in report.to_dict().items()]


def test_tensorboard_takes_them(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    with tensorboard.SummaryWriter(tmp_path) as writer:
        named(*HOSTILE).log_to(writer)
    assert list(tmp_path.iterdir())


def test_a_notebook_shows_the_whole_set_figures() -> None:
    rows = (Row("accuracy", "all", 0.5, 0.75, 0.25, n=8), Row("<b>", "all", 1.0, None, None))
    page = Report((*rows, *named(*HOSTILE).rows))._repr_html_()
    assert "<td>accuracy</td>" in page
    assert "<td>0.75</td>" in page
    assert "&lt;b&gt;" in page
    assert "script" not in page
    assert "7 more rows in to_frame()" in page
    assert "more rows" not in Report(rows)._repr_html_()


def test_what_is_not_finite_is_unknown() -> None:
    report = Report((Row("a", "all", float("nan"), float("inf"), 1.0),))
    assert report.to_csv() == ",".join(COLUMNS) + "\na,all,,,1.0,,,,\n"
    text = report.to_json()
    assert text is not None
    assert json.loads(text)["rows"][0]["after"] is None


def test_without_labels_there_are_no_accuracy_rows() -> None:
    report = compare(evaluation(3, labels=None), evaluation(5, labels=None))
    assert report.row("accuracy") is None
    assert report.row("entropy_mean") is not None


def test_unlike_evaluations_are_refused() -> None:
    with pytest.raises(DataError, match="the same samples, got 40 and 20"):
        compare(evaluation(3), evaluation(3, labels=LABELS[:20], n=20))
    with pytest.raises(DataError, match="different labels: does the loader shuffle"):
        compare(evaluation(3), evaluation(3, labels=LABELS[::-1]))
    with pytest.raises(DataError, match="different labels"):
        compare(evaluation(3), evaluation(3, labels=None))
    four = replace(evaluation(3), classes=4)
    with pytest.raises(DataError, match="the names of 4 classes, got 2"):
        compare(four, four, classes=["a", "b"])


def test_samples_without_a_figure_are_left_out_of_the_means() -> None:
    before, after = evaluation(3), evaluation(3)
    after.confidence[0] = np.nan
    row = compare(before, after).row("confidence_mean")
    assert row is not None
    assert row.n == 39
    assert row.before == pytest.approx(before.confidence[1:].mean())


@given(st.lists(st.tuples(*[st.floats(-5, 5), st.floats(0.01, 9)] * 2), min_size=1, max_size=6))
def test_symmetric_kl_is_the_sum_of_both_divergences(
    channels: list[tuple[float, float, float, float]],
) -> None:
    mean_a, var_a, mean_b, var_b = torch.tensor(channels, dtype=torch.float64).T
    a = distributions.Normal(mean_a, var_a.sqrt())
    b = distributions.Normal(mean_b, var_b.sqrt())
    both = distributions.kl_divergence(a, b) + distributions.kl_divergence(b, a)
    result = symmetric_kl(mean_a, var_a, mean_b, var_b)
    assert (result.p_value, result.n, result.m) == (None, len(mean_a), len(mean_a))
    found = float(result)
    assert found == pytest.approx(both.mean().item(), rel=1e-9, abs=1e-9)
    assert found == pytest.approx(float(symmetric_kl(mean_b, var_b, mean_a, var_a)))
    assert found == float(symmetric_kl(*(v.numpy() for v in (mean_a, var_a, mean_b, var_b))))
    assert found >= 0


def test_symmetric_kl_refuses() -> None:
    one = torch.ones(2)
    with pytest.raises(DataError, match="four vectors of one length"):
        symmetric_kl(one, one, one, torch.ones(3))
    with pytest.raises(DataError, match="four vectors of one length"):
        symmetric_kl([], [], [], [])
    with pytest.raises(DataError, match="positive variances"):
        symmetric_kl(one, one * 0, one, one)
    with pytest.raises(DataError, match="finite means and variances"):
        symmetric_kl(one * torch.nan, one, one, one)
    with pytest.raises(DataError, match="mean_a to be an array of real numbers"):
        symmetric_kl(["a"], one, one, one)
