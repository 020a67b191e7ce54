"""Batch norm folded into the layer before it, for deployment after adapting."""

from collections import Counter

from torch import fx, nn
from torch.fx.experimental import optimization
from torch.nn.modules.batchnorm import _BatchNorm

from adaptkit.errors import ModelError
from adaptkit.layers.conversion import Conversion
from adaptkit.layers.convert import convert_norm, does_more

_BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batchnorm(model: nn.Module) -> Conversion:
    """Fold every batch norm that follows a convolution or linear layer into that layer's weights.

        W' = W·γ/√(σ² + ε)        b' = (b − μ)·γ/√(σ² + ε) + β

    The result computes what the model does in eval mode, up to rounding, without those layers. It
    cannot be adapted any more, nor trained as batch norm is: fold last. BatchRenorm, SyncBatchNorm
    and FrozenBatchNorm2d are folded too. The fusion is torch.fx's.

    Args:
        model: one that `torch.fx` can trace; left as it was.

    Returns:
        Conversion: a GraphModule in eval mode; the layers that were folded, those that were left.

    Raises:
        ModelError: torch.fx cannot trace the model, or one convolution feeds several batch norms.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> folded = fold_batchnorm(net)
    >>> import torch
    >>> x = torch.randn(2, 3, 8, 8)
    >>> torch.allclose(folded.model(x), net.eval()(x), atol=1e-5), folded.changes
    (True, {'1': 'BatchNorm2d(8) folded into 0'})
    """
    plain = convert_norm(model, "batch", layers=lambda _, m: not does_more(m)).model.eval()
    try:
        traced = fx.GraphModule(plain, _Tracer().trace(plain))
    except Exception as error:
        # A model's own code runs on proxies here and may raise anything.
        raise ModelError(
            f"torch.fx cannot trace {type(model).__name__}, so its batch norms cannot be folded: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
        ) from error
    modules = dict(traced.named_modules())
    pairs = _pairs(traced, modules)
    calls = Counter(str(n.target) for n in traced.graph.nodes if n.op == "call_module")
    for norm, before in pairs.items():
        if calls[before] > 1 or calls[norm] > 1:
            twice = before if calls[before] > 1 else norm
            raise ModelError(
                f"'{twice}' is called {calls[twice]} times in one forward, so '{norm}' cannot be "
                f"folded into '{before}': use one layer for each call"
            )
    changes, left = {}, {}
    for name, module in modules.items():
        if isinstance(module, _BATCH):
            said = f"{type(module).__name__}({module.num_features})"
            if name in pairs:
                changes[name] = f"{said} folded into {pairs[name]}"
            else:
                left[name] = f"{said}: {_why_left(module)}"
    folded = optimization.fuse(traced, inplace=True, no_trace=True)
    return Conversion(folded.eval(), changes, left)


class _Tracer(fx.Tracer):
    """Takes norm layers as a whole: those of others may look at their input's values or shape."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = type(m).__module__.startswith("adaptkit.layers")
        return ours or isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def _pairs(traced: fx.GraphModule, modules: dict[str, nn.Module]) -> dict[str, str]:
    """Return batch norm -> the layer before it, for those that torch.fx will fuse."""
    kinds = {
        nn.BatchNorm1d: (nn.Conv1d, nn.Linear),
        nn.BatchNorm2d: (nn.Conv2d,),
        nn.BatchNorm3d: (nn.Conv3d,),
    }
    found = {}
    for node in traced.graph.nodes:
        if node.op != "call_module" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        norm, before = modules.get(str(node.target)), node.args[0]
        if type(norm) not in kinds or before.op != "call_module" or len(before.users) > 1:
            continue
        if not getattr(norm, "track_running_stats", False):
            continue
        if type(modules.get(str(before.target))) in kinds[type(norm)]:  # type: ignore[index]
            found[str(node.target)] = str(before.target)
    return found


def _why_left(norm: nn.Module) -> str:
    if not getattr(norm, "track_running_stats", True):
        return "it uses each batch's own statistics"
    if type(norm) not in _BATCH:
        return "a subclass, which may do more than normalise"
    return "no convolution or linear layer feeds it alone"
