"""More labelled images, drawn by rule, that the guard's forecasts and their limits stand on."""

from collections.abc import Callable
from functools import cache

from benchmarks import images
from benchmarks.drawn.glyphs import coloured_glyphs, glyphs
from benchmarks.drawn.letters import ALPHABET, CYRILLIC, cluttered, letters
from benchmarks.drawn.places import places
from benchmarks.drawn.scattered import scattered
from benchmarks.drawn.shapes import counted, shapes
from benchmarks.drawn.some import some
from benchmarks.drawn.textures import lands, patterns, stripes
from benchmarks.drawn.things import cells, clocks, faces, flags
from benchmarks.images import Images

NAMES: dict[str, Callable[[], Images]] = {
    "scattered digits": lambda: scattered("scattered digits", images.named("digits"), 0, 20),
    "scattered MNIST": lambda: scattered("scattered MNIST", images.named("MNIST"), 4, 10),
    "letters": lambda: letters("letters", ALPHABET),
    "scattered letters": lambda: scattered(
        "scattered letters", letters("letters", ALPHABET[:10]), 4, 30
    ),
    "cluttered letters": lambda: cluttered("cluttered letters", CYRILLIC),
    "glyphs": lambda: glyphs("glyphs", 20, seed=0),
    "coloured glyphs": lambda: coloured_glyphs("coloured glyphs", 10, seed=1),
    "shapes": lambda: shapes("shapes", 10),
    "three shapes": lambda: shapes("three shapes", 3),
    "counted discs": lambda: counted("counted discs", 6),
    "patterns": lambda: patterns("patterns"),
    "stripes": lambda: stripes("stripes", 8),
    "lands": lambda: lands("lands"),
    "places": lambda: places("places"),
    "cells": lambda: cells("cells"),
    "flags": lambda: flags("flags"),
    "faces": lambda: faces("faces"),
    "clocks": lambda: clocks("clocks", 12),
}


# Of each of these sets two classes, and three, on which the guard's limits for few classes stand.
_CLASSES = {
    "MNIST": ((3, 8), (4, 7, 9)),
    "digits": ((4, 9), (3, 5, 8)),
    "letters": ((2, 14), (4, 5, 8)),
    "glyphs": ((0, 1), (2, 3, 4)),
    "coloured glyphs": ((0, 1), (2, 3, 4)),
    "shapes": ((0, 3), (1, 4, 6)),
    "patterns": ((0, 1), (2, 3, 4)),
    "places": ((0, 1), (2, 3, 4)),
    "cells": ((0, 1), (2, 3, 4)),
    "flags": ((0, 1), (2, 3, 4)),
    "faces": ((0, 2), (1, 3, 4)),
    "clocks": ((0, 3), (1, 4, 7)),
}
_FEW = {
    f"{count} of {name}": (name, classes[place])
    for place, count in enumerate(("two", "three"))
    for name, classes in _CLASSES.items()
}
FEW = tuple(_FEW)


@cache
def named(name: str) -> Images:
    """Return the images of `NAMES`, of `FEW`, or of `images.NAMES`.

    Raises:
        MissingDataError: they are not on this machine.
    """
    if name in _FEW:
        whole, classes = _FEW[name]
        return some(name, named(whole), classes)
    return NAMES[name]() if name in NAMES else images.named(name)
