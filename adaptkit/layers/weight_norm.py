"""Weight Normalization in a whole model and out of it again; the layer is torch's own."""

import copy
from collections import Counter

from torch import nn
from torch.nn.utils import parametrizations, parametrize

from adaptkit.layers.conversion import Conversion

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


def add_weight_norm(model: nn.Module, *, inplace: bool = False) -> Conversion:
    """Reparametrise the weight of every convolution and linear layer by length and direction.

        w = g·v / ‖v‖        with the norm of each output channel's own weights

    The outputs stay what they were. g and v are trained in place of w; see
    `torch.nn.utils.parametrizations.weight_norm`. A layer that has an all-zero output channel (no
    direction), a weight that others share, or a parametrization already, is left as it is, and the
    conversion says so.

    Args:
        model: with any nn.Linear, nn.Conv or nn.ConvTranspose layers.
        inplace: change `model` itself; by default a deep copy.

    Source: Salimans & Kingma 2016, arXiv 1602.07868.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    >>> x = torch.randn(5, 3)
    >>> converted = add_weight_norm(net)
    >>> torch.allclose(converted.model(x), net(x), atol=1e-6), converted.changes
    (True, {'0': 'Linear: weight = g·v/‖v‖'})
    """
    model = model if inplace else copy.deepcopy(model)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, _WEIGHTED)}
    owners = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    )
    changes, left = {}, {}
    for name, layer in layers.items():
        kind = type(layer).__mro__[1 if parametrize.is_parametrized(layer) else 0].__name__
        if parametrize.is_parametrized(layer, "weight"):
            left[name] = f"{kind}: its weight is parametrized already"
        elif owners[id(layer.weight)] > 1:
            left[name] = f"{kind}: its weight is shared with another layer"
        else:
            dim = 1 if isinstance(layer, _TRANSPOSED) else 0
            over = [i for i in range(layer.weight.ndim) if i != dim]
            if not bool(layer.weight.detach().square().sum(over).all()):
                left[name] = f"{kind}: an output channel's weights are all 0, without direction"
                continue
            parametrizations.weight_norm(layer, dim=dim)
            changes[name] = f"{kind}: weight = g·v/‖v‖"
    return Conversion(model, changes, left)


def remove_weight_norm(model: nn.Module, *, inplace: bool = False) -> Conversion:
    """Give every weight-normalised layer its plain weight back, at the value that it has now.

    >>> net = nn.Sequential(nn.Linear(3, 2))
    >>> back = remove_weight_norm(add_weight_norm(net).model)
    >>> back.changes, list(back.model.state_dict())
    ({'0': 'Linear: plain weight'}, ['0.weight', '0.bias'])
    """
    model = model if inplace else copy.deepcopy(model)
    changes = {}
    for name, layer in model.named_modules():
        if isinstance(layer, _WEIGHTED) and _is_weight_normed(layer):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
            for key in [k for k in layer._parameters if k != "weight"]:  # back to their order
                layer._parameters[key] = layer._parameters.pop(key)
            changes[name] = f"{type(layer).__name__}: plain weight"
    return Conversion(model, changes, {})


def _is_weight_normed(layer: nn.Module) -> bool:
    if not parametrize.is_parametrized(layer, "weight"):
        return False
    steps = layer.parametrizations["weight"]  # type: ignore[index]
    names = [type(step).__name__ for step in steps]
    return names == [parametrizations._WeightNorm.__name__]
