"""A router and its domains' statistics as one file: safetensors, with domain packs inside."""

import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from adaptkit.domains.first_layer import FirstLayer
from adaptkit.domains.router import Router
from adaptkit.domains.tree import DomainTree
from adaptkit.errors import CheckpointError, EstimationError, shown
from adaptkit.estimation import Statistics

FORMAT = "adaptkit-domains/1"


def dumps(router: Router, statistics: Mapping[str, Statistics]) -> bytes:
    """Return a file of the router, in float64, and of a domain pack (`Statistics`) a domain.

    Args:
        router: from an image to the number of its domain.
        statistics: name -> of each domain, in the router's order.
    """
    tensors = {
        "mean": router.layer.mean,
        "variance": router.layer.variance,
        "weights": router.tree.weights,
        "thresholds": router.tree.thresholds,
    }
    for number, of_domain in enumerate(statistics.values()):
        pack = bytearray(of_domain.to_bytes())
        tensors[f"domain {number}"] = torch.frombuffer(pack, dtype=torch.uint8)
    header = {
        "format": FORMAT,
        "layer": router.layer.name,
        "after": router.tree.after,
        "domains": list(statistics),
    }
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(contiguous, {"adaptkit": json.dumps(header)})


def loads(content: bytes) -> tuple[Router, dict[str, Statistics]]:
    """Read what `dumps` wrote, which may be from anywhere; no code in it runs.

    Raises:
        CheckpointError: it is broken, or not such a file.
    """
    try:
        tensors = safetensors.torch.load(content)
        text = content[8 : 8 + int.from_bytes(content[:8], "little")]
        header = json.loads(json.loads(text)["__metadata__"]["adaptkit"])
        kind = header["format"]
    except Exception:  # noqa: BLE001  a broken file makes the readers raise anything
        raise CheckpointError("the content is broken or not that of a routed model") from None
    if kind != FORMAT:
        raise CheckpointError(f"the content is of format {shown(kind)}; expected {FORMAT}")
    try:
        router = _router(header, tensors)
        names = _names(header["domains"], router.domains)
        packs = [_typed(tensors[f"domain {n}"], torch.uint8) for n in range(len(names))]
    except (KeyError, TypeError, ValueError, RuntimeError, EstimationError):
        raise CheckpointError("the content has no router, or not its domains") from None
    statistics = {
        name: Statistics.from_bytes(pack.numpy().tobytes(), f"the pack of '{name}'")
        for name, pack in zip(names, packs, strict=True)
    }
    if not all(_is_plain(layer) for found in statistics.values() for layer in found):
        raise CheckpointError("the content names layers that no model has")
    return router, statistics


def _router(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Router:
    mean, variance, weights, thresholds = (
        _typed(tensors[name], torch.float64)
        for name in ("mean", "variance", "weights", "thresholds")
    )
    after = tuple((low, high) for low, high in header["after"])
    if not all(type(place) is int for pair in after for place in pair):
        raise TypeError("cuts go on to whole numbers")
    (layer,) = _names([header["layer"]], 1)
    return Router(FirstLayer(layer, mean, variance), DomainTree(weights, thresholds, after))


def _names(found: Any, count: int) -> list[str]:
    """Return names, `count` of them, all different, that can stand in a line."""
    if len(set(found)) != count or len(found) != count or not all(map(_is_plain, found)):
        raise ValueError("these are no names")
    return list(found)


def _is_plain(name: Any) -> bool:
    return isinstance(name, str) and name.isprintable() and len(name) < 200


def _typed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.dtype != dtype:
        raise TypeError(f"Expected {dtype}, got {tensor.dtype}")
    return tensor
