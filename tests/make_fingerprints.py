"""Writes adaptkit/fingerprints.json, by which architectures are recognised, anew.

python tests/make_fingerprints.py
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torchvision
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

import adaptkit
from adaptkit.architectures import OWN, without_memory
from adaptkit.fingerprints import TABLE, Fingerprint, Shapes, dumps

_PRIMES = 1009, 1013  # numbers of classes that are no model's widths


def names() -> list[str]:
    """Return the architectures whose fingerprints the table holds."""
    modules = torchvision.models, torchvision.models.segmentation
    theirs = [name for m in modules for name in torchvision.models.list_models(module=m)]
    return [*(f"torchvision:{name}" for name in theirs), *(f"ibn:{name}" for name in OWN["ibn"])]


def fingerprints_of(arch: str) -> Iterator[Fingerprint]:
    """Yield those of an architecture's forms: some models come with and without other heads."""
    forms: list[dict[str, Any]] = [{}]
    if arch in ("torchvision:googlenet", "torchvision:inception_v3"):
        forms.append({"aux_logits": False})
    if arch.startswith(("torchvision:fcn_", "torchvision:deeplabv3_")):
        forms.append({"aux_loss": True})
    for kwargs in forms:
        one, other = (without_memory(arch, {**kwargs, "num_classes": n}) for n in _PRIMES)
        first, second = _shapes(one), _shapes(other)
        heads = [key for key, shape in first.items() if second[key] != shape]
        for key in heads:
            assert (first[key][0], second[key][0]) == _PRIMES
            assert first[key][1:] == second[key][1:]
        yield Fingerprint.of(arch, kwargs, first, heads)
        unused = _unused(one)
        if unused:
            yield Fingerprint.of(arch, kwargs, {**first, **unused}, heads)


def _shapes(model: nn.Module) -> Shapes:
    state_dict = model.state_dict()
    return {
        key: tuple(value.shape)
        for key, value in state_dict.items()
        if not key.endswith("num_batches_tracked")
    }


def _unused(model: nn.Module) -> Shapes:
    """Return what InstanceNorm stored in torch 0.3 without using it."""
    return {
        f"{name}.{buffer}": (layer.num_features,)
        for name, layer in model.named_modules()
        if isinstance(layer, _InstanceNorm) and not layer.track_running_stats
        for buffer in ("running_mean", "running_var")
    }


if __name__ == "__main__":
    every = [known for arch in names() for known in fingerprints_of(arch)]
    assert len({known.digest for known in every}) == len(every), "two cannot be told apart"
    path = Path(adaptkit.__file__).parent / TABLE
    path.write_text(dumps(every, torchvision.__version__.split("+")[0]), encoding="utf-8")
