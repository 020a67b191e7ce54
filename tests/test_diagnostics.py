"""Drift of layer inputs and Jacobian spectra, against closed forms; and that they only look."""

import copy
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from adaptkit.diagnostics import (
    internal_covariate_shift,
    jacobian_singular_values,
    plot_singular_values,
)
from adaptkit.errors import DataError, DependencyError, ModelError
from adaptkit.layers import BatchRenorm2d, RenormSchedule


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        *(nn.Dropout(0.5), nn.Conv2d(4, 3, 3), nn.GroupNorm(1, 3)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)),
    )


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 2, 5, 5, generator=torch.Generator().manual_seed(1)) * 2 + 1


def change(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def traces(model: nn.Module) -> dict[str, Any]:
    """Whatever a look at a model could leave behind in it or in torch."""
    return {
        "values": [t.clone() for t in (*model.parameters(), *model.buffers())],
        "tensors": [id(t) for t in (*model.parameters(), *model.buffers())],
        "versions": [t._version for t in (*model.parameters(), *model.buffers())],
        "flags": [m.training for m in model.modules()],
        "hooks": [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()],
        "gradients": [p.grad for p in model.parameters()],
        "random": torch.get_rng_state(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for key, values in before.items():
        if key in ("values", "random"):
            torch.testing.assert_close(after[key], values, rtol=0, atol=0)
        else:
            assert after[key] == values, key


def train_mode_inputs(model: nn.Module, layers: list[str], x: Tensor) -> dict[str, Any]:
    """Each layer's input in float64, by its own hooks on a copy in training mode."""
    model, found = copy.deepcopy(model).train(), {}
    for name in layers:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: found.update({name: args[0].detach().double().numpy()})
        )
    model(x.clone())
    return found


@pytest.mark.parametrize("training", [True, False])
def test_drift_by_numpy(training: bool) -> None:
    model, x = net(), images()
    model[3] = nn.Dropout(0.0)
    model.train(training)  # it is measured in training mode, whatever it is in
    drift = internal_covariate_shift(model, (x, torch.zeros(6)))
    inputs = [train_mode_inputs(model, ["1", "5"], x)]
    for _ in range(2):
        change(model)
        drift.step()
        inputs.append(train_mode_inputs(model, ["1", "5"], x))
    expected = []
    for step in (1, 2):
        for name in ("1", "5"):
            old, new = inputs[step - 1][name], inputs[step][name]
            over = (0, 2, 3)
            scale = old.var(over) + 1e-5
            mean = np.sqrt(np.mean((new.mean(over) - old.mean(over)) ** 2 / scale))
            ratio = np.log((new.var(over) + 1e-5) / scale)
            expected.append((step, name, mean, np.sqrt(np.mean(ratio**2))))
    columns = ["step", "layer", "mean_drift", "variance_drift"]
    pd.testing.assert_frame_equal(
        drift.frame, pd.DataFrame(expected, columns=columns), rtol=1e-4, check_exact=False
    )
    assert (drift.frame[["mean_drift", "variance_drift"]] > 0).all(axis=None)


def test_without_training_nothing_drifts_not_even_by_dropout() -> None:
    model = net()
    drift = internal_covariate_shift(model, images())
    model(images(20))  # moves running statistics and torch's random state
    drift.step()
    assert drift.frame["layer"].tolist() == ["1", "5"]
    assert (drift.frame[["mean_drift", "variance_drift"]] == 0).all(axis=None)


def test_every_compares_with_the_measurement_before() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.LayerNorm(1, eps=0.5))
    weight = model.get_parameter("0.weight")
    weight.data.fill_(1.0)
    drift = internal_covariate_shift(model, torch.tensor([[0.0], [2.0]]), every=2)
    for value in (9.0, 3.0, 9.0, 1.0, 9.0):
        weight.data.fill_(value)
        drift.step()
    # The mean goes 1, 3, 1 and the variance 1, 9, 1, with ε = 0.5.
    expected = [[2, 2 / 1.5**0.5, np.log(9.5 / 1.5)], [4, 2 / 9.5**0.5, np.log(9.5 / 1.5)]]
    found = drift.frame[["step", "mean_drift", "variance_drift"]].to_numpy()
    np.testing.assert_allclose(found, expected)


def test_training_with_the_recorder_is_training_without() -> None:
    def trained(record: bool) -> nn.Module:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if record:
            drift = internal_covariate_shift(model, images())
            optimizer.register_step_post_hook(lambda *_: drift.step())
        torch.manual_seed(3)
        for _ in range(4):
            optimizer.zero_grad()
            model(images()).square().sum().backward()
            optimizer.step()
        if record:
            assert drift.frame["step"].max() == 4
        return model

    plain, recorded = trained(False), trained(True)
    torch.testing.assert_close(recorded.state_dict(), plain.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("flags", ["train", "eval", "frozen"])
def test_drift_only_looks(flags: str) -> None:
    model, x = net(), images()
    model.train(flags != "eval")
    model[1].train(flags == "train")
    before, kept = traces(model), x.clone()
    loss = model(x).sum()  # a backward pass that waits for the buffers as they are
    after_forward = traces(model)
    drift = internal_covariate_shift(model, x)
    drift.step()
    assert_same(after_forward, traces(model))
    loss.backward()
    assert before["hooks"] == after_forward["hooks"]
    torch.testing.assert_close(x, kept, rtol=0, atol=0)


def test_a_frozen_layer_stays_frozen_while_measured() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1), nn.BatchNorm1d(1))
    x = torch.tensor([[0.0], [2.0]])
    model[0].eval()
    drift = internal_covariate_shift(model, x, layers="1")
    model.get_buffer("0.running_mean").fill_(3.0)  # seen by a frozen layer only
    drift.step()
    # With the stored variance of 1 its output moves by 3, where the standard deviation is 1.
    assert drift.frame["mean_drift"].item() == pytest.approx(3, abs=1e-4)


def test_an_error_leaves_the_model_as_it_was() -> None:
    model = net().eval()
    before = traces(model)
    with pytest.raises(RuntimeError, match="channels"):
        internal_covariate_shift(model, torch.zeros(2, 7, 5, 5))
    assert_same(before, traces(model))


def test_which_layers() -> None:
    model, x = net(), images()

    def layers(model: nn.Module, **options: Any) -> list[str]:
        drift = internal_covariate_shift(model, x, **options)
        drift.step()
        return drift.frame["layer"].tolist()

    assert layers(nn.DataParallel(model)) == ["1", "5"]
    assert layers(model, layers=["4", "[08]"]) == ["0", "4", "8"]
    assert layers(model, layers=lambda _, module: isinstance(module, nn.ReLU)) == ["2"]
    bare = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2))
    assert layers(bare) == ["0", "3"]
    renorm = nn.Sequential(nn.Conv2d(2, 2, 3), BatchRenorm2d(2), nn.InstanceNorm2d(2))
    assert layers(renorm) == ["1", "2"]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False)
        self.norm = nn.LayerNorm(2)
        self.unused = nn.LayerNorm(2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(input=self.norm(self.first(x)) + x)
        return y


def test_visits_are_pooled_with_the_channels_last() -> None:
    model = Twice()
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))

    def pooled() -> Any:
        first: Tensor = model.first(x)
        second: Tensor = model.norm(first) + x
        return torch.cat([first, second]).detach().double().numpy().reshape(-1, 2)

    old = pooled()
    drift = internal_covariate_shift(model, {"image": x})
    change(model)
    drift.step()
    new = pooled()
    mean = np.sqrt(np.mean((new.mean(0) - old.mean(0)) ** 2 / (old.var(0) + 1e-5)))
    assert drift.frame["layer"].tolist() == ["norm"]
    assert drift.frame["mean_drift"].item() == pytest.approx(mean, rel=1e-4)


def test_a_linear_layer_has_its_channels_last() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    drift = internal_covariate_shift(model, x, layers="1")
    old = model[0](x)[..., 0].detach()
    model.get_parameter("0.bias").data[0] += 1  # one feature of two moves
    drift.step()
    expected = np.sqrt(1 / (float(old.var(correction=0)) + 1e-5) / 2)
    assert drift.frame["mean_drift"].item() == pytest.approx(expected, rel=1e-4)


def test_the_probe_stays_what_it_was() -> None:
    class Doubling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2)

    probe = images()
    kept = probe.clone()
    drift = internal_covariate_shift(nn.Sequential(Doubling(), nn.BatchNorm2d(2)), probe)
    drift.step()
    torch.testing.assert_close(probe, kept, rtol=0, atol=0)
    probe.fill_(7)  # as a loader that has one buffer for all batches would
    drift.step()
    assert (drift.frame[["mean_drift", "variance_drift"]] == 0).all(axis=None)


def test_layer_norm_that_moves_its_channels_itself() -> None:
    class LayerNorm2d(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.movedim(1, -1)).movedim(-1, 1)

    model = nn.Sequential(nn.Conv2d(2, 3, 1), LayerNorm2d(3))
    drift = internal_covariate_shift(model, images())
    with torch.no_grad():  # one channel of three moves; by rows all would move by a third
        old = model[0](images())[:, 0]
        model.get_parameter("0.bias")[0] += 1
    drift.step()
    expected = np.sqrt(1 / (float(old.var(correction=0)) + 1e-5) / 3)
    assert drift.frame["mean_drift"].item() == pytest.approx(expected, rel=1e-4)


def test_a_forward_of_ones_own() -> None:
    model, x = net(), images()
    gradients = []

    def forward(model: nn.Module, batch: dict[str, Tensor]) -> None:
        gradients.append(model(batch["b"]).requires_grad)

    drift = internal_covariate_shift(model, {"a": x, "b": x}, forward=forward)
    drift.step()
    assert len(drift.frame) == 2
    assert gradients == [False, False]
    with pytest.raises(DataError, match="pass forward="):
        internal_covariate_shift(model, {"a": x, "b": x})


def test_drift_bad_input() -> None:
    model, x = net(), images()
    with pytest.raises(ModelError, match="every of 1 or more"):
        internal_covariate_shift(model, x, every=0)
    with pytest.raises(ModelError, match="no module is named 'layer9'"):
        internal_covariate_shift(model, x, layers=["1", "layer9"])
    with pytest.raises(ModelError, match="chooses none"):
        internal_covariate_shift(model, x, layers=lambda *_: False)
    with pytest.raises(ModelError, match="no norm, convolution or linear layer"):
        internal_covariate_shift(nn.Sequential(nn.ReLU()), x)
    with pytest.raises(ModelError, match=r"visits none of the chosen layers \(unused\)"):
        internal_covariate_shift(Twice(), torch.randn(2, 2), layers="unused")
    with pytest.raises(ModelError, match=r"layer '0' to get a floating tensor.*int64"):
        internal_covariate_shift(
            nn.Sequential(nn.Embedding(3, 2)), torch.tensor([[0, 1]]), layers="0"
        )
    with pytest.raises(ModelError, match="lazy"):
        internal_covariate_shift(nn.Sequential(nn.LazyLinear(3)), x)
    with pytest.raises(ModelError, match="no drift to plot yet"):
        internal_covariate_shift(model, x).plot()


def values_of(frame: pd.DataFrame, sample: int = 0) -> Any:
    return frame.loc[frame["sample"] == sample, "singular_value"].to_numpy()


def test_singular_values_of_a_linear_layer() -> None:
    layer = nn.Linear(7, 4, dtype=torch.float64)
    found = jacobian_singular_values(layer, torch.randn(3, 7, dtype=torch.float64), chunk_size=3)
    expected = np.linalg.svd(layer.weight.detach().numpy(), compute_uv=False)
    assert found["sample"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found["index"].tolist() == [0, 1, 2, 3] * 3
    for sample in range(3):
        np.testing.assert_allclose(values_of(found, sample), expected)


def test_singular_values_of_batch_norm_in_eval_mode() -> None:
    layer = nn.BatchNorm2d(3, dtype=torch.float64)
    layer.weight.data = torch.tensor([-3.0, 2.0, 0.5], dtype=torch.float64)
    layer.running_var = torch.tensor([4.0, 0.01, 9.0], dtype=torch.float64)
    found = jacobian_singular_values(layer, torch.randn(2, 3, 2, 2, dtype=torch.float64))
    scale = np.abs([-3.0, 2.0, 0.5]) / np.sqrt(np.array([4.0, 0.01, 9.0]) + 1e-5)
    expected = np.sort(np.repeat(scale, 4))[::-1]
    for sample in (0, 1):
        np.testing.assert_allclose(values_of(found, sample), expected)


def test_a_training_step_is_one_function_of_the_batch() -> None:
    layer = nn.BatchNorm1d(2, dtype=torch.float64)
    x = torch.randn(5, 2, dtype=torch.float64)
    before = traces(layer)
    found = jacobian_singular_values(layer, x, training=True, chunk_size=4)
    # Of each channel (I − 1·1ᵀ/N − x̂·x̂ᵀ/N) / σ: 1/σ to the rest, (1 − |x̂|²/N) / σ along x̂.
    variance = x.numpy().var(0)
    sigma = np.sqrt(variance + 1e-5)
    shrunk = (1 - variance / (variance + 1e-5)) / sigma
    expected = np.sort([*np.repeat(1 / sigma, 3), *shrunk, 0, 0])[::-1]
    np.testing.assert_allclose(values_of(found), expected, atol=1e-12)
    assert_same(before, traces(layer))


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(2),
        BatchRenorm2d(2, schedule=RenormSchedule(start=0, r_end=2, d_end=2)),
        nn.InstanceNorm2d(2, affine=True, track_running_stats=True),
        nn.GroupNorm(2, 2),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3)),
        nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5)),
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 2, 3)),
    ],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("training", [False, True])
def test_jacobians_by_finite_differences(layer: nn.Module, training: bool) -> None:
    layer = copy.deepcopy(layer).double()
    x = images(2).double()
    before, kept = traces(layer), x.clone()
    found = jacobian_singular_values(layer, x, training=training)
    assert_same(before, traces(layer))
    torch.testing.assert_close(x, kept, rtol=0, atol=0)
    assert found["singular_value"].max() > 0.1

    def call(flat: Tensor, like: Tensor) -> Tensor:
        fresh = copy.deepcopy(layer).train(training)
        torch.manual_seed(0)  # for the same units to be dropped
        y: Tensor = fresh(flat.view_as(like)).detach().flatten()
        return y

    for sample, part in enumerate([x] if training else x.split(1)):
        flat, step = part.flatten(), 1e-6
        columns = [
            (call(flat + step * e, part) - call(flat - step * e, part)) / (2 * step)
            for e in torch.eye(len(flat), dtype=torch.float64)
        ]
        expected = np.linalg.svd(torch.stack(columns, 1).numpy(), compute_uv=False)
        np.testing.assert_allclose(values_of(found, sample), expected, atol=1e-5, rtol=1e-4)


def test_a_whole_model_in_half_precision() -> None:
    model, x = net(), images(2)
    exact = jacobian_singular_values(model, x)
    rough = jacobian_singular_values(copy.deepcopy(model).bfloat16(), x.bfloat16())
    assert len(exact) == 2 * 2
    np.testing.assert_allclose(rough["singular_value"], exact["singular_value"], rtol=0.1)


def test_nothing_is_kept_for_gradients_of_parameters() -> None:
    class Observed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            wanted.append(self.weight.requires_grad)
            return super().forward(x)

    wanted: list[bool] = []
    layer = Observed(2, 2)
    jacobian_singular_values(layer, torch.ones(1, 2))
    assert wanted == [False]
    assert layer.weight.requires_grad


def test_what_does_not_depend_on_its_input() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(len(x), 2)

    model = net()
    with torch.no_grad():
        jacobian_singular_values(model, images(1))
    with torch.inference_mode():
        found = jacobian_singular_values(Constant(), images(1))
        of_net = jacobian_singular_values(model, images(1))
    assert found["singular_value"].tolist() == [0, 0]
    assert (of_net["singular_value"] > 0).all()


def test_jacobian_bad_input() -> None:
    layer = nn.Linear(3, 3)
    for x in (torch.zeros(3), torch.zeros(0, 3), torch.zeros(2, 3, dtype=torch.int64)):
        with pytest.raises(DataError, match="floating of shape"):
            jacobian_singular_values(layer, x)
    x = torch.zeros(2, 3)
    with pytest.raises(ModelError, match="3 inputs takes 36 bytes, 35 are allowed"):
        jacobian_singular_values(layer, x, memory=35)
    assert len(jacobian_singular_values(layer, x, memory=36)) == 6
    with pytest.raises(ModelError, match="chunk_size of 1 or more"):
        jacobian_singular_values(layer, x, chunk_size=0)
    with pytest.raises(ModelError, match=r"of 1 samples, as x is, got torch.float32 \(3,\)"):
        jacobian_singular_values(nn.Sequential(layer, nn.Flatten(0)), x)
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ModelError, match="batch norm '0' has no running statistics"):
        jacobian_singular_values(model, x)
    with pytest.raises(ModelError, match="lazy"):
        jacobian_singular_values(nn.LazyBatchNorm1d(), x)


def test_plots() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    model = net()
    drift = internal_covariate_shift(model, images())
    for _ in range(3):
        change(model)
        drift.step()
    figure = drift.plot()
    assert isinstance(figure, Figure)
    line = figure.axes[1].lines[1]
    of_layer = drift.frame[drift.frame["layer"] == "5"]
    assert line.get_label() == "5"
    np.testing.assert_array_equal(line.get_ydata(), of_layer["variance_drift"])
    figure.canvas.draw()

    spectrum = jacobian_singular_values(nn.Linear(4, 3), torch.zeros(2, 4))
    figure = plot_singular_values({"linear": spectrum})
    assert isinstance(figure, Figure)
    np.testing.assert_array_equal(figure.axes[0].lines[1].get_ydata(), values_of(spectrum))
    figure.canvas.draw()
    plot_singular_values(spectrum).canvas.draw()


def test_many_layers_need_no_legend() -> None:
    pytest.importorskip("matplotlib")
    deep = nn.Sequential(*(nn.LayerNorm(2) for _ in range(13)))
    drift = internal_covariate_shift(deep, torch.randn(4, 2))
    drift.step()  # nothing drifts, so that there is no logarithm to draw
    figure = drift.plot()
    figure.canvas.draw()
    assert not figure.legends
    assert "13 layers" in figure.axes[0].get_title()


def test_plots_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DependencyError, match=r"pip install adaptkit\[plot\]"):
        plot_singular_values(jacobian_singular_values(nn.Linear(2, 2), torch.zeros(1, 2)))
