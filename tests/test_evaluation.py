"""evaluate() against scikit-learn and scipy, and what it refuses."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats
from sklearn.metrics import accuracy_score
from torch import Tensor, nn

from adaptkit import DataError, evaluate


class Echo(nn.Module):
    """Takes its input for the logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x


LOGITS = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3
LABELS = torch.randint(4, (50,), generator=torch.Generator().manual_seed(1))


def test_figures_are_the_libraries() -> None:
    batches = list(zip(LOGITS.split(7), LABELS.split(7), strict=True))
    found = evaluate(Echo(), batches)
    p = special.softmax(LOGITS.double().numpy(), axis=1)
    np.testing.assert_array_equal(found.predictions, p.argmax(1))
    np.testing.assert_allclose(found.confidence, p.max(1), rtol=1e-12)
    np.testing.assert_allclose(found.entropy, stats.entropy(p, axis=1), rtol=1e-9)
    assert found.accuracy == pytest.approx(accuracy_score(LABELS, p.argmax(1)))
    low, high = found.accuracy_interval or (0, 0)
    assert 0 < low < accuracy_score(LABELS, p.argmax(1)) < high < 1
    assert len(found) == 50


def test_without_labels_the_accuracy_is_unknown() -> None:
    found = evaluate(Echo(), [LOGITS])
    assert (found.labels, found.correct, found.accuracy, found.accuracy_interval) == (None,) * 4


def test_certain_logits_have_no_entropy_and_minus_infinity_is_a_class_left_out() -> None:
    found = evaluate(Echo(), [torch.tensor([[1e4, 0.0, 0.0], [0.0, 0.0, -torch.inf]])])
    assert found.entropy.tolist() == pytest.approx([0.0, np.log(2)])


def test_a_nan_is_a_wrong_answer_of_unknown_confidence() -> None:
    batch = torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]), torch.tensor([1, 0])
    found = evaluate(Echo(), [batch])
    assert found.predictions.tolist() == [1, -1]
    assert found.accuracy == 0.5
    assert np.isnan(found.confidence[1])
    assert np.isnan(found.entropy[1])


def test_flags_and_dropout() -> None:
    net = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(4))
    net.train()
    first, second = evaluate(net, [LOGITS]), evaluate(net, [LOGITS])
    np.testing.assert_array_equal(first.confidence, second.confidence)
    assert net.training
    assert net[0].training
    assert list(first.layers) == ["1"]
    assert first.layers["1"].eps == 1e-5


@pytest.mark.parametrize(
    "wrap", [lambda x: {"logits": x}, lambda x: SimpleNamespace(logits=x), lambda x: x]
)
def test_forms_of_output(wrap: Any) -> None:
    found = evaluate(Echo(), [LOGITS], forward=lambda model, batch: wrap(model(batch)))
    np.testing.assert_array_equal(found.predictions, LOGITS.argmax(1))


@pytest.mark.parametrize("labels", [LABELS, LABELS.tolist()])
def test_dicts(labels: Any) -> None:
    found = evaluate(Echo(), [{"x": LOGITS, "y": labels}])
    assert found.accuracy == accuracy_score(LABELS, LOGITS.argmax(1))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "the loader is empty"),
        ([(LOGITS, LABELS + 1)], "labels from 0 to 3, the model's classes, got 4"),
        ([(LOGITS, LABELS - 1)], "labels from 0 to 3, the model's classes, got -1"),
        ([(LOGITS, LABELS.float())], "one whole number a sample as label"),
        ([(LOGITS, LABELS[:9])], r"shape \(50,\), got torch.int64 \(9,\)"),
        ([(LOGITS, LABELS), LOGITS], "some batches have labels and others have none"),
        ([LOGITS, (LOGITS, LABELS)], "some batches have labels and others have none"),
        ([LOGITS[:, :1]], r"logits of shape \(N, K\) with K classes, got \(50, 1\)"),
        ([LOGITS.view(50, 2, 2)], r"got \(50, 2, 2\): pass forward="),
        (["text"], "Expected batches of a tensor.*got str: pass forward="),
        ([{"a": LOGITS, "b": LOGITS}], "got dict with keys 'a', 'b'"),
    ],
)
def test_what_it_refuses(batches: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(Echo(), batches)


class Viewing(nn.Module):
    """Calls view() on its feature maps, as channels that lie last do not allow."""

    def __init__(self, *, views: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.views = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 2), views
        self.layouts: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.layouts.append(x.is_contiguous(memory_format=torch.channels_last))
        y = self.conv(x)
        logits: Tensor = self.head(y.view(len(x), -1) if self.views else y.flatten(1))
        return logits


def test_images_go_in_with_channels_last_where_a_model_can_have_that() -> None:
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    batches = [(part, torch.tensor([0, 1])) for part in x.split(2)]
    able, unable = Viewing(views=False), Viewing(views=True)
    first, second = (evaluate(model, batches).nll for model in (able, unable))
    assert first is not None
    assert second is not None
    assert able.layouts == [True] * 3
    assert unable.layouts == [True, False, False, False]
    np.testing.assert_allclose(first, second, rtol=1e-5)
    expected = -unable(x).log_softmax(1)[torch.arange(6), torch.tensor([0, 1] * 3)]
    np.testing.assert_allclose(second, expected.detach().numpy(), rtol=1e-5)
