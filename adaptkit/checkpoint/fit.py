"""From a state dict and the name of an architecture to a model with those weights."""

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from adaptkit import norms
from adaptkit.architectures import arguments_of, build, without_memory
from adaptkit.checkpoint.nesting import Naming
from adaptkit.errors import CheckpointError, few, shown

_COUNTS = re.compile("depth|layer|block|repeat|stage|stack")  # arguments that say how many parts
_MOST_IN_LIST = 4096
_SPARE = 2**20  # numbers that a model may have beyond those in its file
_COUNTER = "num_batches_tracked"  # inference does not use it, and old files lack it


def built(
    path: Path,
    spec: str,
    kwargs: Mapping[str, Any],
    found: Mapping[str, Tensor],
    ways: list[Naming],
) -> tuple[nn.Module, Naming]:
    """Return a model of an architecture with a state dict's weights, and how that names them.

    Args:
        path: of the file, for messages.
        spec: of the architecture.
        kwargs: for its constructor.
        found: the state dict.
        ways: to take its keys for the model's names; the best is used.

    Raises:
        CheckpointError: there is no such architecture, or the state dict does not fit it.
    """
    # Mostly what all keys begin with was put there by a wrapper, so that is tried first.
    ways = sorted(ways, key=lambda way: (len(way.outside), len("".join(way.names.values()))))
    guess = ways[0]
    model = build(spec, kwargs, guess.of(found))
    own = set(model.state_dict())
    best = min(ways, key=lambda way: _misnamed(own, way))  # of several, the first: the guess
    if best is not guess:
        model = build(spec, kwargs, best.of(found))
    best = _renamed(model, best, found)
    load_weights(path, spec, model, best.of(found))
    if best.clash:
        raise CheckpointError(
            f"{path} holds both '{shown(best.clash[0])}' and '{shown(best.clash[1])}', which would "
            f"be the same tensor of {spec}: leave one of them out"
        )
    return model, best


def check_size(
    path: Path, spec: str, kwargs: Mapping[str, Any], found: Mapping[str, Tensor]
) -> None:
    """Refuse arguments in a file that ask for a model much larger than the file, before it is made.

    Raises:
        CheckpointError: they do.
    """
    for name, value in kwargs.items():
        most = len(found) if _COUNTS.search(name) else _MOST_IN_LIST
        deep = bool(_COUNTS.search(name)) or not isinstance(value, int)
        if deep and any(number > most for number in _numbers(value)):
            raise CheckpointError(
                f"{path} asks for {spec} with '{shown(name)}' beyond what its {len(found)} tensors "
                f"can be of: give --arch {spec} and --arch-arg (arch=, arch_kwargs=)"
            )
    own = without_memory(spec, {**arguments_of(spec, found), **kwargs}).state_dict()
    wanted, there = (sum(v.numel() for v in state.values()) for state in (own, found))
    if wanted > 2 * there + _SPARE:
        raise CheckpointError(
            f"{path} does not fit {spec} with the arguments that it names: they ask for {wanted:,} "
            f"numbers, and it holds {there:,}"
        )


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)):
        yield value


def load_weights(path: Path, spec: str, model: nn.Module, found: Mapping[str, Tensor]) -> None:
    """Load strictly, but for what old files lack or add, none of which inference uses.

    Raises:
        CheckpointError: keys or shapes do not fit.
    """
    own = model.state_dict()
    superfluous = unused(model, found)
    found = {k: v for k, v in found.items() if k not in superfluous}
    misfits = {
        "missing": [k for k in own if k not in found and not k.endswith(_COUNTER)],
        "unexpected": [k for k in found if k not in own],
        "of another shape": [
            f"{shown(k)} {tuple(found[k].shape)} for {tuple(own[k].shape)}"
            for k in found
            if k in own and not is_lazy(own[k]) and found[k].shape != own[k].shape
        ],
    }
    if any(misfits.values()):
        said = "; ".join(f"{len(v)} {name} ({few(v)})" for name, v in misfits.items() if v)
        raise CheckpointError(f"{path} does not fit {spec}: {said}")
    for key, value in found.items():
        if own[key].is_floating_point() and not value.is_floating_point():
            raise CheckpointError(
                f"{path}: '{shown(key)}' is of {value.dtype}, expected floating-point numbers for "
                f"{spec}: save the model before it was quantised"
            )
    # The keys fit the modules as they are, of whatever versions the file says or does not say.
    current: Any = OrderedDict(found)
    current._metadata = own._metadata  # type: ignore[attr-defined]
    try:
        model.load_state_dict(current, strict=False)
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[-1].strip()
        raise CheckpointError(f"{path} cannot be loaded into {spec}: {reason}") from None


def unused(model: nn.Module, found: Mapping[str, Tensor]) -> set[str]:
    """Return the keys of a file of torch 0.3 for what InstanceNorm stored then without using it.

    That such a file is older than torch 0.4.1 shows in its having no `num_batches_tracked`. In a
    later one these keys are of an InstanceNorm that uses them, and do not fit one that does not.
    """
    if any(key.endswith(_COUNTER) for key in found):
        return set()
    return set(found) & {
        f"{name}.{buffer}"
        for name in norms.without_statistics(model)
        if isinstance(model.get_submodule(name), _InstanceNorm)
        for buffer in ("running_mean", "running_var")
    }


def _renamed(model: nn.Module, way: Naming, found: Mapping[str, Tensor]) -> Naming:
    """Let a model's modules rename what they had other names for once, as torchvision's detectors.

    They do so in what `load_state_dict` calls, each for itself, on a dict that they may change.
    """
    if not _misnamed(set(model.state_dict()), way):
        return way
    current = {name: found[key].detach() for key, name in way.names.items()}
    keys = {id(current[name]): key for key, name in way.names.items()}
    with torch.no_grad(), suppress(ValueError, RuntimeError, KeyError):  # of files from elsewhere
        for prefix, module in list(model.named_modules()):
            place = f"{prefix}." if prefix else ""
            module._load_from_state_dict(current, place, {}, False, [], [], [])
    names = {keys[id(value)]: name for name, value in current.items() if id(value) in keys}
    if names.keys() != way.names.keys():  # something was taken out
        return way
    renamed = Naming({key: names[key] for key in way.names}, way.outside, way.clash)
    own = set(model.state_dict())
    return renamed if _misnamed(own, renamed) < _misnamed(own, way) else way


def _misnamed(own: set[str], way: Naming) -> int:
    return sum(not name.endswith(_COUNTER) for name in own ^ set(way.names.values()))
