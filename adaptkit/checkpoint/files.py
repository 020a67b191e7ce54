"""Reading the bytes of checkpoints: one file, or the shards that an index names."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from adaptkit.checkpoint import archive
from adaptkit.checkpoint.content import Content
from adaptkit.errors import CheckpointError, OutputError, few, shown

INDEX = ".safetensors.index.json"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # of which a path keeps one slash


def read(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        CheckpointError: there is none, it is no file but a folder, a pipe or such, it is empty,
            larger than the memory, or may not be read.
    """
    try:
        if not path.exists():
            if path.is_symlink():
                raise CheckpointError(f"{path} leads nowhere: it is a link")
            if url := _URL.match(str(path)):  # of which the rest may hold a password
                raise CheckpointError(
                    f"expected a checkpoint on this machine, got a URL ({url[1]}): download it "
                    f"first, and give the file"
                )
            raise CheckpointError(f"there is no checkpoint {path}")
        if not path.is_file():
            raise CheckpointError(f"{path} is not a file: give a .pt, .pth or .safetensors file")
        size = path.stat().st_size
        if size > _memory():
            raise CheckpointError(
                f"{path} of {size / 2**30:,.0f} GiB is larger than the memory of this machine"
            )
        content = path.read_bytes()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot read {path}: {reason}") from None
    except MemoryError:
        raise CheckpointError(f"{path} is larger than the memory of this machine") from None
    if not content:
        raise CheckpointError(f"{path} is empty")
    return content


def is_index(path: Path) -> bool:
    """Whether a name is that of the index of a sharded safetensors checkpoint."""
    return path.name.endswith(INDEX)


@dataclass(frozen=True)
class _Layout:
    """How a sharded checkpoint lies in its files: shard -> its keys, and its own metadata."""

    index: dict[str, Any]
    shards: dict[str, list[str]]
    metadata: dict[str, dict[str, str]]

    def renamed(self, stem: str) -> dict[str, str]:
        """Return the shards' names for an index that begins with `stem`, by their old ones."""
        count = len(self.shards)
        return {
            name: f"{stem}-{number:05}-of-{count:05}.safetensors"
            for number, name in enumerate(self.shards, start=1)
        }


def parse_index(path: Path, content: bytes) -> tuple[Content, str, int]:
    """Return what the shards that an index names hold together, and the files' SHA-256 and size.

    Args:
        path: of the index; the shards lie beside it.
        content: of the index.

    Raises:
        CheckpointError: the index or a shard is missing, broken, or does not fit the others.
    """
    index = _index(path, content)
    weight_map: dict[str, str] = index["weight_map"]
    layout = _Layout(index, {name: [] for name in sorted(set(weight_map.values()))}, {})
    digest, size = hashlib.sha256(content), 0
    found: dict[str, Tensor] = {}
    for name in layout.shards:
        shard = read(path.with_name(name))
        digest.update(shard)
        size += len(shard)
        try:
            tensors, metadata, _ = archive.read_safetensors(shard)
        except Exception as error:  # noqa: BLE001  a broken file makes the reader raise anything
            raise CheckpointError(
                f"{path.with_name(name)} is broken or no safetensors file: {shown(str(error))}"
            ) from None
        listed = {key for key, where in weight_map.items() if where == name}
        if listed != tensors.keys():
            raise CheckpointError(
                f"{path} does not fit {name}: it lists {len(listed)} tensors in it, which holds "
                f"{len(tensors)} ({few(sorted(listed ^ tensors.keys()))} in one only)"
            )
        layout.shards[name].extend(tensors)
        layout.metadata[name] = metadata
        found |= tensors
    return _content(path, index, found, layout), digest.hexdigest(), size


def to_shards(path: Path, content: Content) -> dict[Path, bytes]:
    """Return a content as an index at `path` and its shards beside it, as they were before.

    Raises:
        OutputError: the content was not sharded.
    """
    layout, names = _sharded(path, content)
    tensors = content.state_dict
    metadata = {**content.metadata, **({"adaptkit": h} if (h := content.header()) else {})}
    weight_map = {key: names[shard] for key, shard in layout.index["weight_map"].items()}
    index = {**layout.index, "metadata": metadata, "weight_map": weight_map}
    files = {path: (json.dumps(index, indent=2) + "\n").encode()}
    for shard, keys in layout.shards.items():
        files[path.with_name(names[shard])] = safetensors.torch.save(
            {key: tensors[key].contiguous() for key in keys}, layout.metadata[shard]
        )
    return files


def shards_of(path: Path, content: Content) -> list[Path]:
    """Return where `to_shards` puts the shards of a content whose index goes to `path`.

    Raises:
        OutputError: the content was not sharded.
    """
    return [path.with_name(name) for name in _sharded(path, content)[1].values()]


def read_from(path: Path, content: Content) -> list[Path]:
    """Return the files that a content was read from: that at `path`, and shards if it has some."""
    layout = content.origin
    return [path, *(map(path.with_name, layout.shards) if isinstance(layout, _Layout) else ())]


def _sharded(path: Path, content: Content) -> tuple[_Layout, dict[str, str]]:
    """Return how a content was sharded, and by their old names what its shards will be called."""
    layout = content.origin
    if not isinstance(layout, _Layout):
        raise OutputError(f"cannot write {path}: only a sharded checkpoint is written as one")
    return layout, layout.renamed(path.name.removesuffix(INDEX))


def _memory() -> int:
    """Return how many bytes of memory this machine has, used or not."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return 2**62
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _index(path: Path, content: bytes) -> dict[str, Any]:
    try:
        index = json.loads(content)
        weight_map = index["weight_map"]
        names = [*weight_map, *weight_map.values()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        names = [None]
    if not all(isinstance(name, str) for name in names) or not names:
        raise CheckpointError(
            f"{path} is broken: expected an object with a 'weight_map' from tensors to files"
        )
    for name in set(weight_map.values()):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{path} names {shown(name)} as a shard: expected a .safetensors file beside it"
            )
    found: dict[str, Any] = index
    return found


def _content(
    path: Path, index: Mapping[str, Any], tensors: dict[str, Tensor], layout: _Layout
) -> Content:
    metadata = index.get("metadata") or {}
    header = metadata.get("adaptkit", {}) if isinstance(metadata, dict) else None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is broken: expected its 'metadata' to be an object")
    others = {k: v for k, v in metadata.items() if k != "adaptkit"}
    return archive.with_header(path, "sharded safetensors", header, tensors, others, layout)
