"""Where in a file's nested dicts the state dict stands, and under which names."""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor

# Where training scripts put a state dict, the averaged weights, which they evaluate with, first.
WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "module",
)
# What wrapping a model puts before its keys: torch.compile, DataParallel, and modules that keep it
# as an attribute. The first two stand in the midst of keys where only a part was wrapped.
_INNER = ("_orig_mod", "module")
_PREFIXES = ("_orig_mod.", "module.", "model.", "backbone.")
# Parts of torchvision's DenseNet and ViT had other names when their published weights were written.
_FORMER = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"\bmlp\.linear_1\."), "mlp.0."),
    (re.compile(r"\bmlp\.linear_2\."), "mlp.3."),
)
_DEEPEST = 8  # dicts within dicts, and prefixes before prefixes
_MOST_NAMINGS = 24
_MOST_PLACES = 8

Path = tuple[str, ...]


def find(tree: Any) -> list[Path]:
    """Return the keys that lead to each state dict, the likeliest first; () where `tree` is one.

    >>> from torch import zeros
    >>> find({"epoch": 3, "net": {"w": zeros(2)}, "ema": {"state_dict": {"w": zeros(2)}}})
    [('ema', 'state_dict'), ('net',)]
    """
    return [*islice(_find(tree, _DEEPEST), _MOST_PLACES)]


def leaf(tree: Any, path: Path) -> Any:
    """Return what stands in `tree` under `path`."""
    for key in path:
        tree = tree[key]
    return tree


def with_leaf(tree: Any, path: Path, value: Any) -> Any:
    """Return a copy of `tree` with `value` under `path`; only the dicts on the way are copied.

    >>> with_leaf({"a": {"b": 1}, "c": 2}, ("a", "b"), 3)
    {'a': {'b': 3}, 'c': 2}
    """
    if not path:
        return value
    copied = copy.copy(tree)
    copied[path[0]] = with_leaf(tree[path[0]], path[1:], value)
    return copied


def is_state_dict(tree: Any) -> bool:
    """Whether `tree` is a dict of named tensors, and not empty."""
    return (
        isinstance(tree, dict)
        and bool(tree)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in tree.items())
    )


def _find(tree: Any, deepest: int) -> Iterator[Path]:
    if is_state_dict(tree):
        yield ()
    elif isinstance(tree, dict) and deepest:
        for key in WRAPPERS:
            for below in _find(tree.get(key), deepest - 1):
                yield (key, *below)


@dataclass(frozen=True)
class Naming:
    """One way to take the keys of a state dict for the names of a model's tensors.

    Args:
        names: key -> name in the model, in the file's order.
        outside: keys that are none of the model's: they lack the prefix that the others have.
        clash: two keys that would have the same name.
    """

    names: dict[str, str]
    outside: tuple[str, ...] = ()
    clash: tuple[str, str] | None = None

    def of(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the model's tensors by their names in it."""
        return {name: state_dict[key] for key, name in self.names.items()}


def namings(keys: Iterable[str]) -> list[Naming]:
    """Return the ways to name a state dict's tensors: as it has them, and without prefixes.

    Known prefixes are taken off one by one, in any order; "module." and "_orig_mod." also within
    the keys. Names that torchvision's models had once become those that they have. The first is
    the keys as they are.

    >>> [list(n.names.values()) for n in namings(["module.model.w", "module.model.b"])]
    [['module.model.w', 'module.model.b'], ['model.w', 'model.b'], ['w', 'b']]
    >>> namings(["model.w", "loss.w"])[1]
    Naming(names={'model.w': 'w'}, outside=('loss.w',), clash=None)
    """
    keys = list(keys)
    found: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    waiting = [{key: key for key in keys}]
    for _ in range(_DEEPEST):
        fresh = [names for names in waiting if tuple(names.items()) not in found]
        found |= {tuple(names.items()): names for names in fresh}
        if len(found) >= _MOST_NAMINGS:
            break
        waiting = [shorter for names in fresh for shorter in _shorter(names)]
    return [_naming(names, keys) for names in [*found.values()][:_MOST_NAMINGS]]


def _shorter(names: Mapping[str, str]) -> Iterator[dict[str, str]]:
    for prefix in _PREFIXES:
        inside = {k: n[len(prefix) :] for k, n in names.items() if n.startswith(prefix)}
        if inside:
            yield inside
    within = {k: ".".join(s for s in n.split(".") if s not in _INNER) for k, n in names.items()}
    if within != names:
        yield within
    former = {key: _renamed(name) for key, name in names.items()}
    if former != names:
        yield former


def _renamed(name: str) -> str:
    for pattern, replacement in _FORMER:
        name = pattern.sub(replacement, name)
    return name


def _naming(names: dict[str, str], keys: list[str]) -> Naming:
    outside = tuple(key for key in keys if key not in names)
    seen = {key: key for key in outside}
    for key, name in names.items():
        if name in seen:
            return Naming(names, outside, (seen[name], key))
        seen[name] = key
    return Naming(names, outside)
