"""From what a file calls a sample's class to the index of a model's output."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from adaptkit.errors import DataError, few


@dataclass(frozen=True)
class Partly:
    """The labels of samples of which some have none.

    Args:
        labels: the class of each as an index, −1 for none.
        classes: the names that the indices stand for.
        note: on how they were taken.
        where: what to call their place.
        said: of the whole, of which these samples may be a part.

    >>> found = as_indices(["1", "", "0"], "a.csv", classes=None, outputs=2)
    >>> print(found.labels, found.note)
    None 1 of 3 samples in a.csv have no label, so all count as unlabelled.
    >>> found.partly.at([0, 2]).alone().labels
    [1, 0]
    """

    labels: list[int]
    classes: list[str] | None
    note: str
    where: object
    said: str = ""

    def at(self, indices: Sequence[int]) -> "Partly":
        """Return what is known of some of the samples, in this order."""
        return replace(self, labels=[self.labels[i] for i in indices])

    def alone(self) -> "Found":
        """Return what these samples come to as a target by themselves."""
        missing, count = sum(label < 0 for label in self.labels), len(self.labels)
        if not missing:
            return Found(self.labels, self.classes, self.note)
        if missing == count:
            return NONE
        some = f"{missing:,} of {count:,} samples in {self.where} have no label"
        said = f"{some}, so all count as unlabelled."
        return Found(None, None, said, replace(self, said=said))


class Found(NamedTuple):
    """What labels come to.

    Args:
        labels: the class of each sample as an index; None where not each has one.
        classes: the names that the indices stand for.
        note: on how they were taken.
        partly: what some of the samples have, where not each has a label.
    """

    labels: list[int] | None
    classes: list[str] | None
    note: str
    partly: Partly | None = None


NONE = Found(None, None, "")


def as_indices(
    values: Sequence[str], where: object, *, classes: Sequence[str] | None, outputs: int | None
) -> Found:
    """Return labels as indices, the names of the classes, and a note on how they were taken.

    Args:
        values: one a sample: names of classes, or the outputs' numbers from 0; "" for none.
        where: what to call their place.
        classes: the names of the model's outputs, if they are known.
        outputs: how many outputs the model has, if that is known.

    Raises:
        DataError: a label is no class of the model's.

    >>> as_indices(["dog", "cat"], "a.csv", classes=("cat", "dog"), outputs=2)[:2]
    ([1, 0], ['cat', 'dog'])
    >>> as_indices(["2", "0"], "a.csv", classes=None, outputs=3)[:2]
    ([2, 0], ['0', '1', '2'])
    """
    there = [value for value in values if value]
    if not there:
        return NONE
    known = _as_indices(there, where, classes, outputs)
    if len(there) == len(values) or known.labels is None:
        return known
    each = iter(known.labels)
    labels = [next(each) if value else -1 for value in values]
    return Partly(labels, known.classes, known.note, where).alone()


def _as_indices(
    values: Sequence[str], where: object, classes: Sequence[str] | None, outputs: int | None
) -> Found:
    found = sorted(set(values))
    if classes and set(found) & set(classes):
        if unknown := [name for name in found if name not in classes]:
            raise DataError(
                f"{where}: no class of the checkpoint is named {few(unknown)}; its classes are "
                f"{few(classes)}"
            )
        return _numbered(values, classes)
    if (numbers := _whole(values)) is not None:
        return _as_given(numbers, where, classes, outputs)
    if classes:
        return _none(
            f"no label in {where} ({few(found)}) is a class of the checkpoint ({few(classes)}), "
            f"so the samples count as unlabelled."
        )
    if len(found) == outputs:
        order = f"its {outputs} outputs are taken for the labels in the order of their names."
        return _numbered(values, found, f"the checkpoint names no classes; {order}")
    count = "an unknown number of" if outputs is None else outputs
    return _none(
        f"the checkpoint names no classes, and {where} has {len(found)} labels for {count} "
        f"outputs, so the samples count as unlabelled."
    )


def _whole(values: Sequence[str]) -> list[str] | None:
    """Return labels that are whole numbers, without the point that other programs gave them.

    >>> _whole(["1.0", "2"]), _whole(["1.0", "a"])
    (['1', '2'], None)
    """
    ends = [value.removesuffix(".0") for value in values]
    return ends if all(end.isdecimal() and end.isascii() for end in ends) else None


def _none(note: str) -> Found:
    return Found(None, None, note)


def _numbered(values: Sequence[str], names: Sequence[str], note: str = "") -> Found:
    index = {name: number for number, name in enumerate(names)}
    return Found([index[value] for value in values], list(names), note)


def _as_given(
    values: Sequence[str], where: object, classes: Sequence[str] | None, outputs: int | None
) -> Found:
    """Take labels that are numbers for the outputs' own."""
    indices = [int(value) for value in values]
    largest = max(indices)
    count = len(classes) if classes else largest + 1 if outputs is None else outputs
    if largest >= count:
        raise DataError(
            f"{where}: label {largest} is none of the model's {count} outputs, which are numbered "
            f"from 0"
        )
    return Found(indices, list(classes or map(str, range(count))), "")
