"""A trial against the estimate that it repeats, and against the adapted model's own outputs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptkit import EstimationError, adapt, estimate
from adaptkit.estimation.run import Engine
from adaptkit.estimation.trial import Trial
from adaptkit.features import features
from adaptkit.norms import norm_layers, read


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(6, 3),
    )


def data() -> list[Tensor]:
    return list((torch.randn(40, 2, 9, 9, generator=torch.Generator().manual_seed(0)) + 1).split(7))


def of(trial: Trial, **how: Any) -> tuple[Any, Tensor]:
    seen = trial.run(**how)
    return seen, torch.cat(seen.outputs)


@pytest.mark.parametrize("prior", [0, 16])
@pytest.mark.parametrize("rows", [256, 6])
def test_a_run_is_an_estimate_and_what_the_adapted_model_gives(
    prior: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Engine.look

    def few(self: Engine, sample: Any) -> Any:
        found = look(self, sample)
        self.rows = min(self.rows, rows)
        return found

    monkeypatch.setattr(Engine, "look", few)
    model = net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trial = Trial(model, data(), prior=prior)
    seen, outputs = of(trial)
    adapted = adapt(model, data(), prior=prior).eval()
    for name, layer in norm_layers(adapted).items():
        mean, variance = seen.settled[name]
        torch.testing.assert_close(mean.float(), read(layer).mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(variance.float(), read(layer).variance, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(outputs, adapted(torch.cat(data())), rtol=1e-4, atol=1e-5)
    assert seen.features == pytest.approx(features(adapted, data()), abs=1e-4)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    again, _ = of(trial)
    assert torch.equal(again.settled["1"][0], seen.settled["1"][0])


def test_the_source_is_the_model_as_it_is() -> None:
    model = net()
    trial = Trial(model, data())
    seen, outputs = of(trial, settle=trial.source)
    with torch.no_grad():
        torch.testing.assert_close(outputs, model.eval()(torch.cat(data())))
        first = model[0](torch.cat(data())).double()
    torch.testing.assert_close(seen.plain["1"].mean, first.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    stored = seen.statistics.apply(net())
    torch.testing.assert_close(read(stored[4]).mean, read(model[4]).mean)


def test_weights_are_those_of_an_estimate() -> None:
    weights = torch.arange(40.0)
    seen, _ = of(Trial(net(), data()), weight=weights)
    parts = iter(weights.split(7))
    want = estimate(net(), data(), weight=lambda _: next(parts))
    for name, moments in want.items():
        torch.testing.assert_close(seen.plain[name].mean, moments.mean)
        torch.testing.assert_close(seen.plain[name].variance(), moments.variance())


def test_only_chosen_layers_change_and_a_sample_is_as_large_as_asked() -> None:
    trial = Trial(net(), data(), samples=10, layers="4")
    seen, outputs = of(trial)
    assert len(trial) == len(outputs) == seen.statistics.samples == 10
    assert list(seen.statistics) == ["4"]


def test_batches_of_any_form_pass_through_forward() -> None:
    batches = [{"left": x[:, :1], "right": x[:, 1:]} for x in data()]

    def forward(model: nn.Module, batch: Any) -> Any:
        return model(torch.cat([batch["left"], batch["right"]], 1))

    _, outputs = of(Trial(net(), batches, forward=forward))
    _, plain = of(Trial(net(), data()))
    torch.testing.assert_close(outputs, plain, rtol=1e-4, atol=1e-5)


def test_a_sample_that_is_not_finite_is_left_out() -> None:
    batches = data()
    batches[0][2, 0, 0, 0] = torch.nan
    trial = Trial(net(), batches)
    assert len(trial) == 39
    assert trial.run().statistics.dropped == 1


@pytest.mark.parametrize(
    ("model", "loader", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), [torch.zeros(3, 2)], "no layer with data-set statistics"),
        (nn.Sequential(nn.BatchNorm1d(2)), [], "the loader is empty"),
        (nn.Sequential(nn.BatchNorm1d(2)), [torch.zeros(1, 2)], "a variance needs two"),
    ],
)
def test_what_will_not_do(model: nn.Module, loader: list[Tensor], message: str) -> None:
    with pytest.raises(EstimationError, match=message):
        Trial(model, loader).run()
