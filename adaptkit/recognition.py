"""From the keys and shapes of a state dict to the name of its architecture."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

from adaptkit.architectures import OWN, arguments_of, without_memory
from adaptkit.errors import CheckpointError, few, shown
from adaptkit.fingerprints import Fingerprint, Shapes, digest, sketch, table

_MOST_KEYS = 4096  # of a state dict that is looked at; the longest known one has 1,548
_COUNTER = "num_batches_tracked"  # which files of torch 0.4 and earlier lack
_CLOSEST = 3  # architectures that an unknown state dict is compared with key by key
_SHOWN = 2  # keys of each kind that an error lists
_ADVICE = "give --arch (arch=)"


def known_as(state_dict: Mapping[str, Tensor]) -> str | None:
    """Return the known architecture whose keys and shapes a state dict has, None if there is none.

    Args:
        state_dict: keys without a prefix, to tensors.

    >>> from torchvision.models import resnet18
    >>> known_as(resnet18(num_classes=10).state_dict())
    'torchvision:resnet18'
    """
    tensors = _counted(state_dict)
    if len(state_dict) > _MOST_KEYS or not all(map(_stored, tensors.values())):
        return None
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    for heads in {known.heads for known in table().values()}:
        if _class_count(found, heads) and (known := table().get(digest(found, heads))):
            return known.arch
    return next((d.arch for d in _differences_to_own(tensors, found) if not d.count), None)


def recognise(state_dict: Mapping[str, Tensor], *, what: str = "the state dict") -> str:
    """Return the architecture that a state dict is of, such as "torchvision:resnet18".

    Known are torchvision's classification and segmentation models, `models.IBN_NETS` and
    adaptkit:small_cnn, each with any number of classes. All keys and shapes have to be theirs, but
    for `num_batches_tracked`; no two of them have the same. Values are not looked at, and no model
    is built but for those that an error compares with, without memory. What keys and shapes do not
    show (strides, activations, how images are prepared) is taken to be as torchvision has it.

    Args:
        state_dict: keys without a prefix, to tensors.
        what: how an error begins.

    Raises:
        CheckpointError: it is of no known architecture; the error names the closest and what
            differs.

    >>> from torchvision.models import resnet18
    >>> recognise(resnet18(num_classes=10).state_dict())
    'torchvision:resnet18'
    """
    if found := known_as(state_dict):
        return found
    if len(state_dict) > _MOST_KEYS:
        raise CheckpointError(f"{what} has more keys than any known architecture: {_ADVICE}")
    tensors = _counted(state_dict)
    for key, value in tensors.items():
        if not _stored(value):  # the model that the shapes ask for could be of any size
            raise CheckpointError(
                f"{what} has an empty tensor or one of repeated values, '{shown(key)}' of shape "
                f"{tuple(value.shape)}, as no known architecture has: {_ADVICE}"
            )
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    differences = [*_differences_to_own(tensors, shapes), *_differences(shapes)]
    differences.sort(key=lambda each: each.count)
    near = [d for d in differences if d.is_near and d.count <= 2 * differences[0].count]
    if not near:
        raise CheckpointError(
            f"{what} resembles none of the known ones: {_ADVICE}, as in torchvision:resnet18"
        )
    raise CheckpointError(
        f"{what} looks like {', or like '.join(map(str, near))}: rename its keys, or {_ADVICE} if "
        f"it is of another architecture"
    )


@dataclass(frozen=True)
class _Difference:
    """How a state dict differs from those of an architecture."""

    arch: str
    num_classes: int | None
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]
    keys: int  # of both together

    @classmethod
    def between(
        cls, found: Shapes, arch: str, expected: Shapes, num_classes: int | None
    ) -> "_Difference":
        return cls(
            arch,
            num_classes,
            [k for k in expected if k not in found],
            [shown(k) for k in found if k not in expected],
            [
                f"{k} {found[k]} for {expected[k]}"
                for k in expected
                if k in found and found[k] != expected[k]
            ],
            len(found.keys() | expected.keys()),
        )

    @property
    def count(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)

    @property
    def is_near(self) -> bool:
        """Whether most names are the same, whatever their shapes."""
        return 2 * (len(self.missing) + len(self.unexpected)) < self.keys

    def __str__(self) -> str:
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.reshaped,
        }
        said = ", ".join(f"{kind} {few(keys, _SHOWN)}" for kind, keys in kinds.items() if keys)
        classes = f" with {self.num_classes} classes" if self.num_classes else ""
        differ = "1 key differs" if self.count == 1 else f"{self.count} keys differ"
        return f"{self.arch}{classes}; {differ}: {said}"


def _differences_to_own(tensors: Mapping[str, Tensor], found: Shapes) -> Iterator[_Difference]:
    """Compare with adaptkit's models, which have any width."""
    for name in OWN["adaptkit"]:
        arch = f"adaptkit:{name}"
        arguments = arguments_of(arch, tensors)
        with suppress(CheckpointError):  # of arguments that make no model
            expected = _shapes(arch, arguments)
            yield _Difference.between(found, arch, expected, arguments.get("num_classes"))


def _differences(found: Shapes) -> Iterator[_Difference]:
    """Compare with the closest of the table."""
    for known in _closest(found):
        with suppress(CheckpointError):  # of names that this torchvision does not have
            expected = _shapes(known.arch, known.kwargs)
            classes = next((found[k][0] for k in known.heads if found.get(k)), None)
            if classes:
                expected |= {k: (classes, *expected[k][1:]) for k in known.heads}
            yield _Difference.between(found, known.arch, expected, classes)


def _closest(found: Shapes) -> list[Fingerprint]:
    """Return the few whose sketches are the most alike, none much less so than the first."""
    own = sketch(found)
    likeness: dict[str, tuple[float, Fingerprint]] = {}
    for known in table().values():
        alike = known.likeness(own)
        if alike > likeness.get(known.arch, (0,))[0]:
            likeness[known.arch] = alike, known
    ranked = sorted(likeness.values(), key=lambda each: each[0], reverse=True)[:_CLOSEST]
    return [known for alike, known in ranked if 2 * alike > ranked[0][0]]


def _class_count(found: Shapes, heads: tuple[str, ...]) -> int | None:
    """Return the first dimension that all of `heads` have, or None."""
    sizes = {found[key][0] if found.get(key) else None for key in heads}
    return sizes.pop() if len(sizes) == 1 else None


def _shapes(arch: str, kwargs: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    expected = without_memory(arch, kwargs).state_dict()
    return {k: tuple(v.shape) for k, v in expected.items() if not k.endswith(_COUNTER)}


def _counted(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state_dict.items() if not k.endswith(_COUNTER)}


def _stored(value: Tensor) -> bool:
    """Whether a tensor holds as many values as its shape says, and at least one."""
    size = prod(value.shape) * value.element_size()  # numel() can overflow
    return 0 < size <= value.untyped_storage().nbytes()
