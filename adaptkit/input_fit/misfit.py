"""How far what norm layers see lies from what they store, as one number."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit import norms
from adaptkit.moments import Moments

EPS = 1e-5  # added to variances, as batch norm does; dead channels have none


def misfit(model: nn.Module, layers: Mapping[str, nn.Module], inputs: Iterable[Tensor]) -> float:
    """Return the mean squared misfit of the layers of a model that runs by its own statistics.

        mean over layers and their channels of ½·((m − m_s)² / (v_s + ε) + log²((v + ε)/(v_s + ε)))

    with m and v the mean and unbiased variance that a layer sees, m_s and v_s those it stores.

    Args:
        model: in eval mode.
        layers: name -> norm layer; those that a forward does not come to do not count.
        inputs: batches of shape (N, C, …).

    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> x = torch.tensor([[0.0], [1.0], [2.0]])  # a whole standard deviation off, of variance 1
    >>> round(misfit(net.eval(), norms.norm_layers(net), [x]), 3)
    0.5
    """
    seen: dict[str, Moments] = {}

    def note(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        of_batch = Moments.of(args[0] if args else next(iter(kwargs.values())))
        seen[name] = seen[name] + of_batch if name in seen else of_batch

    hooks = [
        layer.register_forward_pre_hook(partial(note, name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            for x in inputs:
                model(x)
    finally:
        for hook in hooks:
            hook.remove()
    of_layers = [
        _of_layer(norms.read(layers[name]), found)
        for name, found in seen.items()
        if found.count > 1  # of one value there is no variance
    ]
    return sum(of_layers) / len(of_layers)


def _of_layer(stored: norms.Stored, seen: Moments) -> float:
    mean, variance = (v.to(seen.mean) for v in (stored.mean, stored.variance))
    off = (seen.mean - mean).square() / (variance + EPS)
    spread = ((seen.variance() + EPS) / (variance + EPS)).log().square()
    return float((off + spread).mean()) / 2
