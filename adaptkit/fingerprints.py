"""What tells architectures apart: a digest and a sketch of a state dict's keys and shapes."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import blake2b
from importlib.resources import files
from typing import Any

TABLE = "fingerprints.json"  # written by tests/make_fingerprints.py
_SKETCHED = 64  # hashes that a sketch keeps

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Fingerprint:
    """How a state dict of an architecture looks, whatever the number of classes.

    Args:
        arch: such as "torchvision:resnet18".
        kwargs: of the constructor, where the architecture has several forms.
        heads: the keys whose first dimension is the number of classes.
        digest: see `digest`.
        sketch: see `sketch`; hexadecimal.
    """

    arch: str
    kwargs: dict[str, Any]
    heads: tuple[str, ...]
    digest: str
    sketch: tuple[str, ...]

    @classmethod
    def of(
        cls, arch: str, kwargs: Mapping[str, Any], shapes: Shapes, heads: Iterable[str]
    ) -> "Fingerprint":
        """Take the fingerprint of a state dict's shapes."""
        heads = tuple(sorted(heads))
        return cls(arch, dict(kwargs), heads, digest(shapes, heads), sketch(shapes))

    def likeness(self, other: Iterable[str]) -> float:
        """Estimate the Jaccard index of what two sketches were taken of, from 0 to 1.

        Source: Broder 1997, On the resemblance and containment of documents.
        """
        own, theirs = set(self.sketch), set(other)
        lowest = set(sorted(own | theirs)[:_SKETCHED])
        return len(lowest & own & theirs) / len(lowest)


def digest(shapes: Shapes, heads: Iterable[str] = ()) -> str:
    """Hash all keys and shapes, leaving out the first dimension of `heads`.

    >>> one, other = {"fc.bias": (10,)}, {"fc.bias": (7,)}
    >>> digest(one) == digest(other), digest(one, ["fc.bias"]) == digest(other, ["fc.bias"])
    (False, True)
    """
    heads = set(heads)
    lines = sorted(f"{k!r} {('*', *v[1:]) if k in heads else v}" for k, v in shapes.items())
    return _hash("\n".join(lines), 16)


def sketch(shapes: Shapes) -> tuple[str, ...]:
    """Return the lowest hashes of the keys and of the keys with their shapes: a MinHash.

    So a model with other widths still resembles the one whose names it has.
    """
    every = {_hash(text, 3) for k, v in shapes.items() for text in (repr(k), f"{k!r} {v}")}
    return tuple(sorted(every)[:_SKETCHED])


@cache
def table() -> dict[str, Fingerprint]:
    """Return the fingerprints of all known architectures, by their digests.

    >>> len({known.arch for known in table().values()}) > 90
    True
    """
    return loads(files("adaptkit").joinpath(TABLE).read_text(encoding="utf-8"))


def loads(text: str) -> dict[str, Fingerprint]:
    """Read what `dumps` wrote."""
    known: dict[str, Fingerprint] = {}
    for row in json.loads(text)["fingerprints"]:
        hashes, width = row.pop("sketch"), 6
        parts = tuple(hashes[i : i + width] for i in range(0, len(hashes), width))
        known[row["digest"]] = Fingerprint(**{**row, "heads": tuple(row["heads"]), "sketch": parts})
    return known


def dumps(known: Iterable[Fingerprint], version: str) -> str:
    """Return the table as JSON, a line each, with the version of torchvision that it is of."""
    rows = [json.dumps({**asdict(each), "sketch": "".join(each.sketch)}) for each in known]
    return (
        f'{{"torchvision": {json.dumps(version)}, "fingerprints": [\n' + ",\n".join(rows) + "\n]}\n"
    )


def _hash(text: str, size: int) -> str:
    return blake2b(text.encode(), digest_size=size).hexdigest()
