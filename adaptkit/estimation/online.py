"""Adapting to a stream, batch by batch or image by image: in goes an input, out come logits."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit import norms
from adaptkit.batches import Forward, call, device_of, to_device
from adaptkit.errors import EstimationError
from adaptkit.moments import Moments, PerSample


class OnlineAdapter:
    """A model whose statistics follow a stream of batches, of one sample or more.

    At each norm layer the moments of the stream so far, of weight n, are merged with this batch's
    and blended with the source's, before the batch is normalised:

        (prior·source + n·stream) / (prior + n), for mean and for variance

    With `window`, what was seen k samples ago weighs exp(−k / window), so that n tends to about
    `window`: the effective sample size, `effective_samples`.

    Args:
        model: its own statistics are the source's; it is left as it is between calls.
        prior: how many samples the source's statistics count for, above 0.
        window: in samples; None never forgets.
        layers: names, globs or a predicate, as for `estimate`; by default all.
        forward: called as ``forward(model, batch)``, for batches of any other form.

    Raises:
        EstimationError: an argument is out of its range, or the model has no such layer.

    Source: prior blending: Schneider et al. 2020, arXiv 2006.16971.

    >>> net = nn.BatchNorm1d(1, affine=False, eps=0.0)
    >>> adapter = OnlineAdapter(net, prior=1)
    >>> [round(adapter(torch.tensor([[4.0]])).item(), 3) for _ in range(3)]
    [2.828, 2.309, 2.0]
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        prior: float = 16,
        window: float | None = None,
        layers: norms.Select = None,
        forward: Forward | None = None,
    ) -> None:
        if not prior > 0 or (window is not None and not window > 0):
            raise EstimationError(
                f"Expected prior and window to be above 0, got {prior} and {window}"
            )
        self.model = norms.unwrap(model)
        self.prior, self.window = prior, window
        self._layers = norms.norm_layers(self.model, layers)
        if not self._layers:
            raise EstimationError(
                f"the model has no layer with data-set statistics to adapt: "
                f"{norms.why_nothing_to_adapt(self.model)}"
            )
        self._source = {name: norms.read(layer) for name, layer in self._layers.items()}
        self._forward = forward or call
        self._stream: dict[str, Moments] = {}
        self._visits: dict[str, int] = {}  # of one forward, to layers that it passes several times
        self._batch = self.samples = 0
        self.effective_samples = 0.0

    def __call__(self, batch: Any) -> Any:
        """Return the model's output for a batch, after its statistics have moved to it.

        Raises:
            EstimationError: the batch makes a layer's input infinite or NaN; nothing has moved.
        """
        seen: dict[str, Moments] = {}
        visits: Counter[str] = Counter()
        self._batch = 0  # the samples in this batch, as the layers see them
        hooks = [
            layer.register_forward_pre_hook(
                partial(self._arrive, seen, visits, name), with_kwargs=True
            )
            for name, layer in self._layers.items()
        ]
        try:
            with norms.evaluating(self.model), torch.no_grad():
                output = self._forward(self.model, to_device(batch, device_of(self.model)))
        finally:
            for hook in hooks:
                hook.remove()
        self._stream |= seen
        self._visits |= visits
        kept = self._kept(self._batch)
        self.effective_samples = self.effective_samples * kept + self._batch
        self.samples += self._batch
        return output

    def reset(self) -> None:
        """Forget the stream; the next batch starts from the source's statistics again."""
        self._stream.clear()
        self.samples, self.effective_samples = 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the stream's moments; with `load_state_dict`, a stream goes on exactly."""
        return {
            "samples": self.samples,
            "effective_samples": self.effective_samples,
            "visits": dict(self._visits),
            "stream": {
                name: {f.name: getattr(moments, f.name) for f in fields(moments)}
                for name, moments in self._stream.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the adapter that gave `state` was.

        Raises:
            EstimationError: it names a layer that this model lacks.
        """
        unknown = [name for name in state["stream"] if name not in self._layers]
        if unknown:
            raise EstimationError(f"the model has no norm layer '{unknown[0]}' to resume")
        self._stream = {name: Moments(**values) for name, values in state["stream"].items()}
        self._visits = dict(state.get("visits", {}))
        self.samples = state["samples"]
        self.effective_samples = state["effective_samples"]

    def _arrive(
        self,
        seen: dict[str, Moments],
        visits: Counter[str],
        name: str,
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        here = Moments.pooled([PerSample.of(x)], within=norms.averages_instances(layer))
        self._batch = max(self._batch, here.samples)
        if not here.is_finite():
            raise EstimationError(f"norm layer '{name}' sees values that are not finite")
        if name in seen:  # a shared layer, visited before in this very forward
            moments = seen[name] + here
        elif name in self._stream:
            moments = _faded(self._stream[name], self._kept(here.samples)) + here
        else:
            moments = here
        seen[name] = moments
        visits[name] += 1
        source = self._source[name]
        # An image counts once, however often it passes a shared layer.
        passes = max(visits[name], self._visits.get(name, 1))
        effective = moments.weight / (moments.count / moments.samples) / passes
        share = effective / (effective + self.prior)
        biased = moments.m2 / moments.weight
        bessel = 1 if moments.within else moments.count / max(moments.count - 1, 1)
        norms.replace(layer, *source.towards(moments.mean, biased * bessel, share))

    def _kept(self, samples: int) -> float:
        """Return what share of its weight the stream keeps after so many more samples."""
        if self.window is None:
            return 1.0
        return float(torch.tensor(-samples / self.window, dtype=torch.float64).exp())


def _faded(moments: Moments, share: float) -> Moments:
    return replace(
        moments,
        weight=moments.weight * share,
        m2=moments.m2 * share,
        scatter=moments.scatter * share**2,
    )
