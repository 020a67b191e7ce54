"""What a file holds, whatever its kind: nested dicts with a state dict somewhere in them."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from adaptkit.checkpoint import nesting

FORMAT = "adaptkit/1"
STATE_DICT = "state_dict"
_TRAINING, _PATH = "training", "path"  # in a header: what stands beside a state dict, and where
_OURS = "adaptkit"  # what we say in a file of others: beside a state dict, or in its _metadata

_BESIDE = ("transform", "calibration")  # in the record of adapting

Kind = Literal["torch", "legacy torch", "safetensors", "sharded safetensors", "program"]


@dataclass(frozen=True)
class Content:
    """A file's content.

    Args:
        kind: of the file. "legacy torch" is what torch wrote before 1.6.
        tree: everything that the file holds, as its reader gave it.
        path: the keys that lead to the state dict in `tree`; () where it is all there is.
        metadata: what others wrote into the header of a safetensors file.
        origin: what its kind needs to be written anew: of a sharded file the layout, of a program
            its bytes.
    """

    kind: Kind
    tree: Any
    path: nesting.Path
    metadata: Mapping[str, Any] = field(default_factory=dict)
    origin: Any = None

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The tensors as found."""
        found: dict[str, Tensor] = nesting.leaf(self.tree, self.path)
        return found

    @property
    def is_ours(self) -> bool:
        """Whether the file is of format adaptkit/1."""
        return self.path == (STATE_DICT,) and is_our_format(self.tree.get("format"))

    @property
    def fields(self) -> dict[str, Any]:
        """What the file says in our terms; of others' files only what we added."""
        if self.is_ours:
            return {k: v for k, v in self.tree.items() if k != STATE_DICT}
        beside = self.tree if self.path else getattr(self.tree, "_metadata", {})
        record = beside.get(_OURS)
        if not isinstance(record, dict):
            return {}
        adapted = {k: v for k, v in record.items() if k not in _BESIDE}
        return _added({**record, "adapted": adapted})

    def changed(
        self,
        state_dict: Mapping[str, Tensor],
        adapted: Mapping[str, Any] | None = None,
        transform: Mapping[str, Any] | None = None,
        calibration: str | None = None,
    ) -> "Content":
        """Return the same content with another state dict and a record of what was done.

        Args:
            state_dict: with the keys of the one it replaces.
            adapted: see `Checkpoint.adapted`; None leaves what there is.
            transform: from an image to the model's input, where adapting changed it.
            calibration: see `Checkpoint.calibration`; None leaves what there is.
        """
        added = _added({"adapted": adapted, "transform": transform, "calibration": calibration})
        said = {**self.fields, **added}
        if not self.path:
            return replace(self, tree=_plain(state_dict, said))
        tree = nesting.with_leaf(self.tree, self.path, state_dict)
        tree.update(added if self.is_ours else _record(said))
        return replace(self, tree=tree)

    def header(self) -> dict[str, Any]:
        """Return all but the state dict, for files that keep it apart from the tensors."""
        if self.is_ours or not self.path:
            return self.fields
        others = nesting.with_leaf(self.tree, self.path, None)
        beside = {k: v for k, v in others.items() if k != _OURS}
        return {**self.fields, _TRAINING: beside, _PATH: list(self.path)}

    @classmethod
    def of_header(
        cls,
        kind: Kind,
        header: Mapping[str, Any],
        state_dict: dict[str, Tensor],
        metadata: Mapping[str, Any],
        origin: Any = None,
    ) -> "Content":
        """Put together what `header` took apart.

        Raises:
            KeyError, TypeError: the header is not what `header` returns.
        """
        path: nesting.Path = ()
        if "format" in header:
            path, tree = (STATE_DICT,), {**header, STATE_DICT: state_dict}
        elif _TRAINING in header:
            path = tuple(map(str, header[_PATH]))
            tree = nesting.with_leaf(header[_TRAINING], path, state_dict)
            tree.update(_record(_added(header)))
        else:
            tree = _plain(state_dict, _added(header))
        return cls(kind, tree, path, metadata, origin)


def is_our_format(name: Any) -> bool:
    """Whether a file's "format" is one of adaptkit's, of whatever version; others have that too.

    >>> is_our_format("adaptkit/1"), is_our_format("pt"), is_our_format(None)
    (True, False, False)
    """
    return isinstance(name, str) and name.startswith("adaptkit/")


def _added(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that we add to a file of others."""
    found = {name: record.get(name) for name in ("adapted", *_BESIDE)}
    return {name: value for name, value in found.items() if value}


def _record(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return those fields as one, under a key that nobody else has; {} where nothing is said."""
    record = {**(fields.get("adapted") or {})}
    record |= {name: fields[name] for name in _BESIDE if fields.get(name)}
    return {_OURS: record} if record else {}


def _plain(state_dict: Mapping[str, Tensor], fields: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a state dict that says of itself what `fields` has, where torch keeps versions."""
    tree = OrderedDict(state_dict)
    versions = {**getattr(state_dict, "_metadata", {}), **_record(fields)}
    tree._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
    return tree
