"""Internal covariate shift: how the inputs of layers drift while the layers before them train."""

import contextlib
import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call

from adaptkit import norms
from adaptkit.batches import Forward, call, device_of, to_device
from adaptkit.diagnostics.inputs import channels_second, chosen
from adaptkit.diagnostics.untouched import (
    as_in_training,
    check_has_weights,
    copied_buffers,
    same_randomness,
)
from adaptkit.errors import ModelError
from adaptkit.moments import Moments
from adaptkit.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_EPS = 1e-5  # of layers that have none; as in torch's norm layers
_NAMED = 12  # layers that a legend can hold
_PANELS = {
    "mean_drift": "drift of the mean\n(standard deviations)",
    "variance_drift": "drift of the log-variance",
}


def internal_covariate_shift(
    model: nn.Module,
    probe: Any,
    *,
    layers: norms.Select = None,
    every: int = 1,
    forward: Forward | None = None,
) -> "InternalCovariateShift":
    """Start recording how far the inputs of a model's layers drift from training step to step.

    Call `step()` after each step of the optimiser; `frame` then has a row for each step and layer:

        mean_drift      √ mean_c (μ_t − μ_s)² / (σ²_s + ε)
        variance_drift  √ mean_c (log((σ²_t + ε) / (σ²_s + ε)))²

    where μ and σ² (biased) are those of channel c of the layer's *input*, after step t and after
    the measured step s before it, s = t − `every`; ε is the layer's own, or 1e-5. Both are without
    unit: standard deviations, and nats. Each is measured on the same probe batch, so that what
    drifts is the weights' doing and not the data's.

    The probe passes in training mode, without gradients: norm layers on the way normalise by its
    own statistics, as they do in a training step, and layers that are frozen stay so. Dropout drops
    the same units each time. A measurement costs one forward, and leaves parameters, buffers,
    training flags, hooks and torch's random state as they were.

    Channels are the second dimension, (N, C, …); of a linear layer the last one, and of a
    LayerNorm or RMSNorm the first of those over which it normalises. A layer that a forward visits
    several times pools its visits; one that it does not visit has no rows.

    Args:
        model: any module; it is only read, so the same object can go on training.
        probe: a batch as the training loader gives it, of which a copy is kept. 64 samples or more
            steady the figures, and batch norm needs two.
        layers: names or globs of modules (as in `model.named_modules()`), or a predicate of name
            and module. By default the norm layers or, where a model has none, convolutions and
            linear layers.
        every: how many steps lie between two measurements.
        forward: called as ``forward(model, batch)``, for batches of any other form.

    Raises:
        ModelError: a name or glob matches nothing, no chosen layer is visited, a chosen layer's
            input is not a floating tensor of two dimensions or more, `every` is below 1, or a lazy
            layer has no weights yet.
        DataError: the probe is of a form that only `forward` could handle.

    Source: Ioffe & Szegedy 2015, arXiv 1502.03167, section 2, defines internal covariate shift as
    the change in the distribution of a layer's inputs while the layers before it train; the two
    moments stand for the distribution.

    >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    >>> _ = nn.init.ones_(net[0].weight)
    >>> drift = internal_covariate_shift(net, torch.tensor([[-1.0], [3.0]]))  # mean 1, variance 4
    >>> with torch.no_grad():
    ...     _ = net[0].weight.mul_(2)  # mean 2, variance 16
    >>> drift.step()
    >>> drift.frame.round(3).to_dict("records")
    [{'step': 1, 'layer': '1', 'mean_drift': 0.5, 'variance_drift': 1.386}]

    A loop that cannot be edited calls it by way of the optimiser:
    ``optimizer.register_step_post_hook(lambda *_: drift.step())``.
    """
    if every < 1:
        raise ModelError(f"Expected every of 1 or more steps, got {every}")
    return InternalCovariateShift(model, probe, layers=layers, every=every, forward=forward)


class InternalCovariateShift:
    """The drift of a model's layer inputs so far; made by `internal_covariate_shift`."""

    def __init__(
        self,
        model: nn.Module,
        probe: Any,
        *,
        layers: norms.Select,
        every: int,
        forward: Forward | None,
    ) -> None:
        self._model = norms.unwrap(model)
        check_has_weights(self._model)
        self._layers = chosen(self._model, layers)
        self._probe, self._every = copy.deepcopy(probe), every
        self._forward = forward or call
        self._steps = 0
        self._rows: list[tuple[int, str, float, float]] = []
        self._before = self._measured()

    def step(self) -> None:
        """Count a training step, and measure where `every` says so."""
        self._steps += 1
        if self._steps % self._every:
            return
        now = self._measured()
        for name in (name for name in self._layers if name in now and name in self._before):
            drift = _drift(self._before[name], now[name], _eps(self._layers[name]))
            self._rows.append((self._steps, name, *drift))
        self._before = now

    @property
    def frame(self) -> pd.DataFrame:
        """One row a measured step and layer: step, layer, mean_drift, variance_drift.

        Steps count from 1, the first after recording began; layers are in model order.
        """
        return pd.DataFrame(self._rows, columns=["step", "layer", *_PANELS])

    def plot(self) -> "Figure":
        """Draw both drifts over the steps, one line a layer, from the first (dark) to the last.

        Returns:
            A matplotlib figure: ``figure.savefig("drift.png")``.

        Raises:
            DependencyError: matplotlib is not installed.
            ModelError: nothing has been measured yet.
        """
        frame = self.frame
        if frame.empty:
            raise ModelError("there is no drift to plot yet: call step() after a training step")
        figure = new_figure(8, 6)
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, (column, label) in zip((upper, lower), _PANELS.items(), strict=True):
            _draw(axes, frame, column)
            axes.set_ylabel(label)
        lower.set_xlabel("training step")
        names = frame["layer"].unique()
        if len(names) <= _NAMED:
            figure.legend(*upper.get_legend_handles_labels(), loc="outside right upper")
        else:
            upper.set_title(f"{len(names)} layers, from {names[0]} (dark) to {names[-1]} (light)")
        return figure

    def _measured(self) -> dict[str, Moments]:
        """Return the moments of each visited layer's input on the probe."""
        found: dict[str, Moments] = {}

        def record(
            name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> None:
            tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            moments = Moments.of(channels_second(name, module, tensors))
            found[name] = found[name] + moments if name in found else moments

        where = device_of(self._model)
        with contextlib.ExitStack() as undo:
            for name, module in self._layers.items():
                hook = module.register_forward_pre_hook(partial(record, name), with_kwargs=True)
                undo.callback(hook.remove)
            undo.enter_context(as_in_training(self._model))
            undo.enter_context(same_randomness(where))
            undo.enter_context(torch.no_grad())
            # A copy, since a model may begin with an operation that works in place.
            batch = to_device(copy.deepcopy(self._probe), where)
            calling = _Calling(self._model, self._forward)
            functional_call(calling, copied_buffers(calling), (batch,))
        if not found:
            raise ModelError(
                f"the probe visits none of the chosen layers ({', '.join([*self._layers][:6])}): "
                f"choose others with layers="
            )
        return found


class _Calling(nn.Module):
    """A model behind a `forward` function, as `functional_call` wants it."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model, self._call = model, forward

    def forward(self, batch: Any) -> Any:
        return self._call(self.model, batch)


def _drift(before: Moments, now: Moments, eps: float) -> tuple[float, float]:
    a, b = (moments.m2 / moments.weight + eps for moments in (before, now))
    mean = ((now.mean - before.mean).square() / a).mean().sqrt()
    return float(mean), float((b / a).log().square().mean().sqrt())


def _eps(layer: nn.Module) -> float:
    eps = getattr(layer, "eps", None)
    return eps if isinstance(eps, float) and eps > 0 else _EPS


def _draw(axes: "Axes", frame: pd.DataFrame, column: str) -> None:
    from matplotlib import colormaps

    names = list(frame["layer"].unique())
    for number, name in enumerate(names):
        of_layer = frame[frame["layer"] == name]
        colour = colormaps["viridis"](0.9 * number / max(len(names) - 1, 1))
        axes.plot(of_layer["step"], of_layer[column], color=colour, label=name)
    if (frame[column] > 0).any():
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
