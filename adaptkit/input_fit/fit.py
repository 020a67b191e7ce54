"""A gain and an offset of the model's input that bring a target back to the source."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor, nn

from adaptkit import norms
from adaptkit.batches import device_of, inputs_of, to_device
from adaptkit.distributed import one_process
from adaptkit.errors import DataError, EstimationError
from adaptkit.input_fit.misfit import EPS, misfit
from adaptkit.input_fit.stem import Floats, Response, ResponseSums, Stem
from adaptkit.moments import Moments

_APART = 16  # input channels, up to which each has a gain and an offset of its own
_STARTS = (0.25, 1.0, 4.0)  # times the gain that the variances suggest
_TIE = 0.03  # weight of the difference of channels' log gains and offsets
_ROBUST = 0.5  # residual from which a channel counts by less than its square
_NEAR = 0.1  # misfit of a target that is left as it is; mixes of classes alone reach it
_LEFT = 1 / 3  # of the misfit, that may remain with a fit that is taken
_INVERTED = 0.6  # of the misfit of the best g > 0, that may remain for g < 0 to be taken
_NOTHING = 1e-3  # misfit, of which less is no difference


@dataclass(frozen=True)
class InputFit:
    """A change of a model's input, x' = g·x + b, channel by channel.

    Args:
        gain: shape (C,), float64, g, of one sign in all channels; negative undoes an inversion.
        offset: shape (C,), float64, b, in the unit of the model's input.
        before: the mean squared misfit of the norm layers (`misfit`) for x.
        after: the same for x'.

    >>> fit = InputFit(torch.tensor([-2.0]), torch.tensor([1.0]), 0.9, 0.1)
    >>> fit.apply(torch.tensor([[[3.0, 0.0]]])).tolist(), fit.changes
    ([[[-5.0, 1.0]]], True)
    """

    gain: Tensor
    offset: Tensor
    before: float
    after: float

    @property
    def changes(self) -> bool:
        """Whether it is anything but g = 1 and b = 0."""
        return bool((self.gain != 1).any() or (self.offset != 0).any())

    def apply(self, x: Tensor) -> Tensor:
        """Return g·x + b, of the shape (N, C, …), the dtype and the device of `x`.

        Raises:
            DataError: `x` has other channels.
        """
        if x.ndim < 2 or x.shape[1] != len(self.gain):
            raise DataError(
                f"Expected inputs of shape (N, {len(self.gain)}, ...), got {tuple(x.shape)}"
            )
        shape = [1, -1] + [1] * (x.ndim - 2)
        return self.gain.to(x).view(shape) * x + self.offset.to(x).view(shape)


def fit_input(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> InputFit:
    """Find the gain and offset of the input with which the norm layers see what they store.

    Undoes what contrast, brightness, darkness and inversion do, without labels and with the model
    as it is. It is not AdaBN, may come before it, and like it can take a mix of classes for a
    change of brightness. For each sign of g the moments at the first norm layer are fitted,

        min over g, b of Σ_c ρ((m_c − m_s)/√(v_s + ε)) + ρ(log (v_c + ε)/(v_s + ε))

    with m_c and v_c as `Response` gives them of (g, b), m_s and v_s stored, and ρ a square that
    grows no faster than linearly beyond ½, for what no gain explains. Variances do not see the sign
    and means hardly do, so forwards of the whole model decide between g > 0, g < 0 and no change,
    by the misfit over all norm layers. Either change has to leave a third of it or less, g < 0 also
    0.6 or less of what g > 0 does, and g > 0 is not taken where it is below 0.1 to begin with, as
    it is where only the mix of classes changed. Input channels that the first layer cannot tell
    apart get about one gain and offset in common, and so do all of an input with more than 16.

    What is lost does not come back: images darkened until much of them is black can fit well and be
    recognised worse than before.

    Args:
        model: with its source statistics, run in eval mode on its own device and left as it was.
        loader: of unlabelled target data, gone through four times: batches as for `estimate`.
        progress: called as ``progress("measuring the input", done, None)``.

    Raises:
        DataError: there is no data, or it is not finite, or one value throughout.
        EstimationError: the model has no norm layer of data-set statistics or one of statistics
            that are not finite, what comes before the first is not linear, or the loader can be
            gone through only once.

    Source: own; ρ is the soft L1 of scipy's `least_squares`.

    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> fit = fit_input(net, [torch.tensor([[5.0], [15.0]]), torch.tensor([[10.0]])])
    >>> round(fit.gain.item(), 3), round(fit.offset.item(), 3), round(fit.after, 3)
    (0.2, -2.0, 0.0)
    """
    one_process("fit_input")
    layers = {
        name: layer
        for name, layer in norms.norm_layers(model).items()
        if not norms.averages_instances(layer)  # its variance is not that of all values
    }
    if not layers:
        raise EstimationError(
            f"the model has no layer with data-set statistics: {norms.why_nothing_to_adapt(model)}"
        )
    if isinstance(loader, Iterator):
        raise EstimationError(
            "an input fit goes through the data several times: pass a list or a loader"
        )
    inner, where = norms.unwrap(model), device_of(model)
    with norms.evaluating(model):
        response, of_input, stem = _measured(inner, layers, _inputs(loader, where, progress))
        stored = norms.read(stem.layer)
        if not bool(stored.mean.isfinite().all() and stored.variance.isfinite().all()):
            raise EstimationError(f"norm layer '{stem.name}' stores statistics that are not finite")
        found = [_fitted(response, stored, of_input, sign) for sign in (1, -1)]
        channels = len(of_input.mean)
        ones = np.ones(channels)
        candidates = [(ones, 0 * ones), *((ones * gain, ones * offset) for gain, offset in found)]
        fits = [InputFit(torch.from_numpy(g), torch.from_numpy(b), 0, 0) for g, b in candidates]
        misfits = [
            misfit(inner, layers, map(fit.apply, _inputs(loader, where, None))) for fit in fits
        ]
    best = _chosen(misfits)
    return InputFit(fits[best].gain, fits[best].offset, misfits[0], misfits[best])


def _chosen(misfits: list[float]) -> int:
    """Return which is taken of no change, g > 0 and g < 0, by their misfits."""
    before, upright, inverted = misfits
    if inverted + _NOTHING <= min(_INVERTED * upright, _LEFT * before):
        return 2
    return 1 if before > _NEAR and upright <= _LEFT * before else 0


def _inputs(
    loader: Iterable[Any],
    where: torch.device,
    progress: Callable[[str, int, int | None], None] | None,
) -> Iterator[Tensor]:
    """Yield the model's inputs that are not empty.

    Raises:
        DataError: there is none, or one is not finite.
    """
    done = 0
    for batch in loader:
        x = inputs_of(to_device(batch, where))
        if x.ndim < 2 or not x.is_floating_point():
            raise DataError(
                f"Expected floating inputs of shape (N, C, ...), got {x.dtype} {tuple(x.shape)}"
            )
        if not bool(x.isfinite().all()):
            raise DataError(
                f"Expected finite inputs, got NaN or infinity in samples {done + 1} to "
                f"{done + len(x)}"
            )
        if x.numel():
            done += len(x)
            yield x
        if progress:
            progress("measuring the input", done, None)
    if not done:
        raise DataError("Expected target data to fit a gain and an offset to, got no sample")


def _measured(
    model: nn.Module, layers: dict[str, nn.Module], inputs: Iterator[Tensor]
) -> tuple[Response, Moments, Stem]:
    """Return the response of the model's stem, the moments of its input, and the stem."""
    first = next(inputs)
    stem = Stem.of(model, layers, first)
    stem.check_linear(first)
    sums = ResponseSums(stem, apart=first.shape[1] <= _APART)
    sums.add(first)
    of_input = Moments.of(first)
    for x in inputs:
        sums.add(x)
        of_input = of_input + Moments.of(x)
    response = sums.response()
    if not bool((of_input.m2 > 0).any()):
        raise DataError("Expected target data that varies, got one value throughout")
    return response, of_input, stem


def _fitted(
    response: Response, stored: norms.Stored, of_input: Moments, sign: int
) -> tuple[Floats, Floats]:
    """Return the gain and offset, each of shape (K,), that fit best with one sign of the gain."""
    mean, variance = (v.double().cpu().numpy() for v in (stored.mean, stored.variance))
    sd, parts = np.sqrt(variance + EPS), response.parts
    unit = float((of_input.m2 / of_input.weight).mean().sqrt())  # of the offset

    def residuals(p: Floats) -> Floats:
        m, v = response.moments(sign * np.exp(p[:parts]), p[parts:])
        apart = [p[:parts] - p[:parts].mean(), (p[parts:] - p[parts:].mean()) / unit]
        spread = np.log((v + EPS) / (variance + EPS))
        return np.concatenate([(m - mean) / sd, spread, *(_TIE * v for v in apart)])

    def start(gain: float) -> Floats:
        gains = np.full(parts, gain)
        left = mean - response.moments(sign * gains, np.zeros(parts))[0]
        offsets = np.linalg.lstsq(response.mean[:, parts:-1] / sd[:, None], left / sd)[0]
        return np.concatenate([np.log(gains), offsets])

    own = response.moments(np.ones(parts), np.zeros(parts))[1]
    likely = float(np.exp(np.median(np.log((variance + EPS) / (own + EPS))) / 2))
    tried = [
        scipy.optimize.least_squares(
            residuals, start(likely * factor), loss="soft_l1", f_scale=_ROBUST, x_scale="jac"
        )
        for factor in _STARTS
    ]
    p = min(tried, key=lambda result: float(result.cost)).x
    return sign * np.exp(p[:parts]), p[parts:]
