"""Operations that stand for a layer of torch.nn, and the layers for which they stand."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from adaptkit.errors import CheckpointError

_BATCH = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_INSTANCE = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
NORMS = frozenset(
    {
        "_batch_norm_no_update",
        "_batch_norm_with_update",
        "_batch_norm_with_update_functional",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_functional",
        "_native_batch_norm_legit_no_training",
        "batch_norm",
        "cudnn_batch_norm",
        "instance_norm",
        "miopen_batch_norm",
        "native_batch_norm",
    }
)
_UPDATING = frozenset({"_batch_norm_with_update", "_batch_norm_with_update_functional"})
OF_BATCH = "torch.ops.aten.batch_norm.default"
TRAINING = "is of a model in training mode: export model.eval()"


@dataclass(frozen=True)
class Layer:
    """A layer to be built, under its first name in the model."""

    name: str
    kind: type[nn.Module]
    options: tuple[tuple[str, Any], ...]

    def build(self) -> nn.Module:
        """Return the layer without values in it."""
        return self.kind(**dict(self.options), device="meta")


def norm(name: str, packet: str, given: dict[str, Any], channels: int, rank: int) -> Layer:
    """Return the layer that a normalisation by stored statistics stands for.

    Args:
        name: of the layer.
        packet: which operation it is.
        given: its arguments.
        channels: of its statistics.
        rank: how many dimensions its input has.

    Raises:
        CheckpointError: it normalises by the statistics of the batch, and updates the stored ones.
    """
    instances = packet == "instance_norm"
    by_batch = given.get("use_input_stats" if instances else "training", packet in _UPDATING)
    if by_batch:
        raise CheckpointError(TRAINING)
    kinds = _INSTANCE if instances else _BATCH
    if rank not in kinds:
        raise CheckpointError(f"is broken: norm layer '{name}' gets an input of {rank} dimensions")
    options = {
        "num_features": channels,
        "eps": given.get("eps", given.get("epsilon")),
        "momentum": given.get("momentum", given.get("exponential_average_factor")),
        "affine": given.get("weight") is not None,
        "track_running_stats": True,
    }
    return Layer(name, kinds[rank], tuple(options.items()))


def linear(name: str, given: dict[str, Any], shape: tuple[int, ...]) -> Layer:
    """Return the layer that a product with a stored matrix stands for.

    Args:
        name: of the layer.
        given: its arguments.
        shape: of its weight.
    """
    bias = given.get("bias") is not None
    options = {"in_features": shape[1], "out_features": shape[0], "bias": bias}
    return Layer(name, nn.Linear, tuple(options.items()))


def by_batch(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a batch norm without stored statistics in the form that checks them.

    Args:
        given: the arguments in any other form.
    """
    return {
        "input": given["input"],
        "weight": given.get("weight"),
        "bias": given.get("bias"),
        "running_mean": None,
        "running_var": None,
        "training": given.get("training", True),
        "momentum": given["momentum"],
        "eps": given["eps"],
        "cudnn_enabled": True,
    }
