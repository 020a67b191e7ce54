"""The definition, computed the slow way, to hold the real thing against."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

Found = dict[str, tuple[np.ndarray, np.ndarray]]


def inputs_seen(model: nn.Module, names: Sequence[str], x: Tensor) -> dict[str, Tensor]:
    """Return what each named layer gets in one forward of all of `x` in eval mode."""
    seen: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    hooks = [
        modules[name].register_forward_pre_hook(
            lambda _, args, name=name: seen.__setitem__(name, args[0].detach().clone())
        )
        for name in names
    ]
    model.eval()
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return seen


def channel_statistics(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and unbiased variance over all but dimension 1, in float64."""
    flat = np.moveaxis(x.double().numpy(), 1, 0).reshape(x.shape[1], -1)
    return flat.mean(1), flat.var(1, ddof=1)


def by_definition(model: nn.Module, names: Sequence[str], x: Tensor) -> Found:
    """Estimate layer by layer on the giant batch: one whole forward for every layer."""
    model = copy.deepcopy(model)
    found: Found = {}
    for name in names:
        mean, variance = channel_statistics(inputs_seen(model, names, x)[name])
        layer = model.get_submodule(name)
        layer.running_mean.copy_(torch.from_numpy(mean))  # type: ignore[operator]
        layer.running_var.copy_(torch.from_numpy(variance))  # type: ignore[operator]
        found[name] = mean, variance
    return found


def worst_error(found: Found, truth: Found) -> tuple[float, float]:
    """Return the largest error of a mean in standard deviations, and of a log-variance."""
    means = [abs(found[k][0] - truth[k][0]) / np.sqrt(truth[k][1]) for k in truth]
    logs = [abs(np.log(found[k][1]) - np.log(truth[k][1])) for k in truth]
    return float(np.concatenate(means).max()), float(np.concatenate(logs).max())
