"""From what a file calls a sample's class to the index of a model's output."""

from collections.abc import Sequence

from adaptkit.errors import DataError, few

Found = tuple[list[int] | None, list[str] | None, str]


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

    >>> as_indices(["dog", "cat"], "a.csv", classes=("cat", "dog"), outputs=2)
    ([1, 0], ['cat', 'dog'], '')
    >>> as_indices(["2", "0"], "a.csv", classes=None, outputs=3)
    ([2, 0], ['0', '1', '2'], '')
    """
    found = sorted(set(values))
    if "" in found:
        missing = sum(not value for value in values)
        some = f"{missing:,} of {len(values):,} samples in {where} have no label, so all count as"
        return _none("" if missing == len(values) else f"{some} unlabelled.")
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
    return None, None, note


def _numbered(values: Sequence[str], names: Sequence[str], note: str = "") -> Found:
    index = {name: number for number, name in enumerate(names)}
    return [index[value] for value in values], list(names), note


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
    return indices, list(classes or map(str, range(count))), ""
